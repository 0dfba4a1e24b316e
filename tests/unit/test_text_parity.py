"""Law 3 for text: our text tower is cn_clip's, to 1e-4 on the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cn_clip import clip
from hypothesis import given
from hypothesis import strategies as st

from cra.shared.model.checkpoints import find_model, load_clip
from cra.shared.model.text_tower import TextTower, encode_text
from cra.shared.model.tokenizer import CONTEXT_LENGTH, Tokenizer
from tests.unit.reference import TOLERANCE, Reference, load_reference

LONG = "飞檐翘角的大殿坐落在汉白玉须弥座上" * 8

TEXTS = [
    pytest.param("飞檐下的红色大门", id="plain"),
    pytest.param("“歇山顶”与‘悬山顶’", id="curly quotes"),
    pytest.param("\"歇山顶\"与'悬山顶'", id="straight quotes"),
    pytest.param("紅色的宮殿，飛簷翹角，門前有兩隻石獅", id="traditional"),
    pytest.param("庑殿顶、盝顶、鸱吻、戗脊、斗栱、檩条、槅扇门", id="outside the vocabulary"),
    pytest.param("🏯😀", id="emoji"),
    pytest.param(" ", id="a space"),
    pytest.param("。", id="a full stop"),
    pytest.param("１９３０年代的Art Deco大楼，高88.5m，位于No.1路", id="mixed Latin and digits"),
    pytest.param("café Ÿ naïve ＡＢＣ", id="accents and full width"),
    pytest.param("两层\t木构\n建筑\u3000\u200b", id="white space"),
    pytest.param("[MASK] [SEP] [UNK]", id="the vocabulary's own tokens"),
    pytest.param("x" * 150, id="one word over the word limit"),
    pytest.param(LONG, id="over 52 tokens"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """It, in cn_clip's hands."""
    return load_reference(folder)


@pytest.fixture(scope="module")
def tower(folder: Path, reference: Reference) -> TextTower:
    """It, in ours."""
    return TextTower(find_model(str(folder)), "cpu", "fp32")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_cn_clips_vector(text: str, tower: TextTower, reference: Reference) -> None:
    """Whatever the text holds, its vector is the one that cn_clip computes."""
    vectors, _ = tower.encode([text])
    np.testing.assert_allclose(vectors, reference.encode_texts([text]), rtol=0, atol=TOLERANCE)


def test_texts_of_all_lengths_share_a_batch(tower: TextTower, reference: Reference) -> None:
    """In one batch, too, each text has cn_clip's vector, and no two of them look alike."""
    texts: list[str] = [str(param.values[0]) for param in TEXTS]
    vectors, _ = tower.encode(texts)
    np.testing.assert_allclose(vectors, reference.encode_texts(texts), rtol=0, atol=TOLERANCE)
    likeness = vectors @ vectors.T - np.eye(len(texts))
    # Curly and straight quotes differ, so parity is not the agreement of constants.
    assert likeness.max() < 1 - 100 * TOLERANCE


def test_a_vector_does_not_depend_on_its_batch(tower: TextTower) -> None:
    """A short text alone and beside one of 52 tokens has the same vector: padding is masked."""
    alone, _ = tower.encode(["红门"])
    beside, _ = tower.encode(["红门", LONG])
    np.testing.assert_allclose(alone[0], beside[0], rtol=0, atol=1e-6)


def test_vectors_are_repeatable_and_of_unit_length(tower: TextTower) -> None:
    """Dropout is off: the same text gives the same bits, of unit length, as float32."""
    first, _ = tower.encode(["红门", "塔"])
    second, _ = tower.encode(["红门", "塔"])
    assert (first == second).all()
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("characters", "cut"), [(49, False), (50, False), (51, True), (999, True)])
def test_what_is_cut_is_flagged(
    characters: int, cut: bool, tower: TextTower, reference: Reference
) -> None:
    """50 tokens and the two of the frame fit; one more is cut, as cn_clip cuts it, and said."""
    text = ("门窗" * 500)[:characters]
    vectors, truncated = tower.encode([text, "短"])
    assert truncated == [cut, False]
    np.testing.assert_allclose(vectors[0], reference.encode_texts([text])[0], atol=TOLERANCE)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_any_texts_have_cn_clips_tokens(texts: list[str]) -> None:
    """For all Unicode text the tokens are cn_clip's; only the padding is shorter."""
    ids, truncated = Tokenizer("identity")(texts)
    expected = clip.tokenize(texts).numpy()
    length = ids.shape[1]
    assert length <= CONTEXT_LENGTH
    assert (ids == expected[:, :length]).all()
    assert (expected[:, length:] == 0).all()
    assert all(ids[n, -1] != 0 for n, cut in enumerate(truncated) if cut)


def test_the_text_tower_needs_no_image_tower(folder: Path, reference: Reference) -> None:
    """Our `encode_text` is `CLIP.encode_text`: the same numbers for the same tokens."""
    model = load_clip(find_model(str(folder)))
    ids = clip.tokenize(["红色的塔", "园林里的亭子"])
    with torch.no_grad():
        ours, theirs = encode_text(model, ids), reference.model.encode_text(ids)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_bf16_keeps_the_direction(folder: Path, tower: TextTower) -> None:
    """Law 3 for faster arithmetic: a cosine of at least 0.999 with fp32."""
    texts = ["红色的塔", "园林里的亭子，水边有柱廊", LONG]
    exact, _ = tower.encode(texts)
    fast, _ = TextTower(find_model(str(folder)), "cpu", "bf16").encode(texts)
    assert (exact * fast).sum(axis=1).min() >= 0.999
