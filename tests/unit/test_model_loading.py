"""Models by name or path: the same files that cn_clip loads, and clear words for the rest."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cn_clip.clip import utils
from cn_clip.clip.model import CLIP

from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import find_model, load_clip, packaged_config, save_checkpoint
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.model.runtime import Runtime
from cra.shared.model.text_tower import TextTower
from tests.checkpoints import Vision, make_checkpoint, tiny_config
from tests.pictures import FILES, decode
from tests.unit.reference import TOLERANCE, Reference, split_config

OFFICIAL = "ViT-B-16"
STRUCT = "ViT-B-16@RoBERTa-wwm-ext-base-chinese"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path / "tiny-model")


def test_a_folder_a_file_and_a_config_elsewhere_are_one_model(folder: Path, tmp_path: Path) -> None:
    """A folder, its checkpoint file, and the file with its config named: all the same towers."""
    config = tmp_path / "elsewhere.json"
    config.write_bytes((folder / "config.json").read_bytes())
    sources = [
        find_model(str(folder)),
        find_model(str(folder / "checkpoint.pt")),
        find_model(str(folder / "checkpoint.pt"), str(config)),
    ]
    assert sources[0] == sources[1] == sources[2]
    assert sources[0].name == "tiny"
    assert sources[0].config == tiny_config()


def test_a_model_without_a_name_is_called_as_its_folder(folder: Path) -> None:
    """A config may leave out name and normaliser: the folder's name, and `identity`."""
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    source = find_model(str(folder))
    assert (source.name, source.normalizer) == ("tiny-model", "identity")


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_the_shape_may_be_named_as_in_cn_clip(
    vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`VISION@TEXT` reads the two configs of cn_clip's package, as its own loader does."""
    folder = make_checkpoint(tmp_path, vision=vision)
    split_config(folder, vision)
    monkeypatch.setattr(utils, "__file__", str(folder / "utils.py"))
    source = find_model(str(folder / "checkpoint.pt"), "tiny-vision@tiny-text")
    assert source.config == tiny_config(vision)
    expected = TextTower(find_model(str(folder)), "cpu").encode(["塔"])[0]
    assert (TextTower(source, "cpu").encode(["塔"])[0] == expected).all()


@pytest.mark.parametrize("name", utils.available_models())
def test_an_official_name_is_downloaded_by_cn_clip(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each official name means cn_clip's own file in the given cache, and its packaged shape."""
    asked = []

    def download(model: str, root: str) -> str:
        asked.append((model, root))
        return str(tmp_path / utils._MODELS[model][1])

    monkeypatch.setattr(utils, "_download", download)
    source = find_model(name, cache=tmp_path)
    assert asked == [(name, str(tmp_path))]
    assert source.checkpoint.name == utils._MODELS[name][1]
    assert source.config["image_resolution"] == utils._MODEL_INFO[name]["input_resolution"]
    inspect.signature(CLIP).bind(**source.config)
    assert isinstance(source.config["vision_layers"], int | list)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def _normalizer(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**tiny_config(), "normalizer": "cra-99"}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_no_config, "config of model .* is missing"),
        (_no_json, "config.json: is no JSON object"),
        (_a_list, "config.json: is no JSON object"),
        (_normalizer, "unknown normalizer 'cra-99'"),
    ],
)
def test_a_config_that_does_not_do(harm: Callable[[Path], None], words: str, folder: Path) -> None:
    """A config that is missing, broken or of another project is refused in so many words."""
    harm(folder)
    with pytest.raises(FailedPreconditionError, match=words):
        find_model(str(folder))


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        ("no/such/model", "", "no model 'no/such/model'.*ViT-B-16"),
        ("ViT-B-17", "", "no model 'ViT-B-17'"),
        ("", "", "no model ''"),
        ("{folder}/..", "", r"the folder '.*' holds no model: .*checkpoint\.pt is missing"),
        ("{folder}/checkpoint.pt", "{folder}/none.json", "is missing: .*none.json"),
        ("{folder}/checkpoint.pt", "ViT-B-99@RBT3-chinese", "no model config 'ViT-B-99'"),
        ("{folder}/checkpoint.pt", "ViT-B-16@", "no model config ''"),
        ("{folder}/checkpoint.pt", "RBT3@ViT-B-16", "no model config 'RBT3'"),
    ],
)
def test_a_model_that_is_not_there(model: str, config: str, words: str, folder: Path) -> None:
    """What cannot be found is refused, naming it and, for a model, the names there are."""
    with pytest.raises(FailedPreconditionError, match=words):
        find_model(model.format(folder=folder), config.format(folder=folder))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="a pointer file"),
        pytest.param(b"\x80\x02}q\x00.", id="a pickle of nothing"),
        pytest.param(b"PK\x03\x04" + b"\0" * 100, id="a broken archive"),
    ],
)
def test_a_file_that_is_no_checkpoint(content: bytes, folder: Path) -> None:
    """What is no checkpoint is refused as such, naming the file."""
    (folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(FailedPreconditionError, match=r"checkpoint\.pt"):
        load_clip(find_model(str(folder)))


def test_a_cut_checkpoint(folder: Path) -> None:
    """A download that ended early is refused, naming the file."""
    whole = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FailedPreconditionError, match=r"checkpoint\.pt"):
        load_clip(find_model(str(folder)))


def test_a_config_without_an_image_tower(folder: Path) -> None:
    """Two text towers make no model; that is said, too, when the weights are loaded."""
    source = find_model(str(folder / "checkpoint.pt"), "RBT3-chinese@RBT3-chinese")
    with pytest.raises(FailedPreconditionError, match="embed_dim"):
        load_clip(source)


def test_a_checkpoint_of_another_shape(folder: Path) -> None:
    """Weights that do not fit the config are refused; no key goes unused."""
    fields = json.loads((folder / "config.json").read_text())
    for change in ({"text_num_hidden_layers": 1}, {"embed_dim": 16}, {"vision_layers": 3}):
        (folder / "config.json").write_text(json.dumps(fields | change))
        with pytest.raises(FailedPreconditionError, match=r"checkpoint\.pt"):
            load_clip(find_model(str(folder)))


@pytest.mark.parametrize("missing", ["embed_dim", "image_resolution", "vocab_size"])
def test_a_config_that_lacks_a_field(missing: str, folder: Path) -> None:
    """A config without a size is refused by both towers, naming the checkpoint."""
    fields = json.loads((folder / "config.json").read_text())
    del fields[missing]
    (folder / "config.json").write_text(json.dumps(fields))
    for kind in (TextTower, ImageTower):
        with pytest.raises(FailedPreconditionError, match=r"checkpoint\.pt.*" + missing):
            kind(find_model(str(folder)), "cpu")


def test_code_in_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    """A checkpoint is data: a pickle that would run a function is refused and runs nothing."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    torch.save({"state_dict": Evil()}, folder / "checkpoint.pt")
    with pytest.raises(FailedPreconditionError):
        load_clip(find_model(str(folder)))
    assert not mark.exists()


def test_what_is_saved_loads_in_cn_clip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`save_checkpoint` after `load_clip` is the same model for us and for cn_clip."""
    again = tmp_path / "again"
    again.mkdir()
    save_checkpoint(load_clip(find_model(str(folder))), again / "checkpoint.pt")
    (again / "config.json").write_bytes((folder / "config.json").read_bytes())
    split_config(again)
    monkeypatch.setattr(utils, "__file__", str(again / "utils.py"))
    reference = Reference(
        str(again / "checkpoint.pt"),
        vision_model_name="tiny-vision",
        text_model_name="tiny-text",
        input_resolution=32,
    )
    first, second = (
        TextTower(find_model(str(folder)), "cpu"),
        TextTower(find_model(str(again)), "cpu"),
    )
    assert first.release == second.release
    assert first.image_tower == second.image_tower
    np.testing.assert_allclose(
        first.encode(["塔"])[0], reference.encode_texts(["塔"]), atol=TOLERANCE
    )


@pytest.mark.slow
def test_an_official_shape_by_its_name(tmp_path: Path) -> None:
    """`ViT-B-16` at full size, loaded by its name by cn_clip and by us, gives the same vectors."""
    torch.manual_seed(0)
    save_checkpoint(CLIP(**packaged_config(STRUCT)), tmp_path / utils._MODELS[OFFICIAL][1])
    reference = Reference(OFFICIAL, download_root=str(tmp_path))
    source = find_model(OFFICIAL, cache=tmp_path)
    texts = ["“歇山顶”的红色大殿", "紅色的宮殿", "盝顶", "飞檐" * 60]
    np.testing.assert_allclose(
        TextTower(source, "cpu").encode(texts)[0], reference.encode_texts(texts), atol=TOLERANCE
    )
    files = [FILES["JPEG, CMYK"], FILES["PNG, palette, one clear colour"], FILES["PNG, RGBA"]]
    pixels = np.stack([prepare(file, Preprocessing(224)).pixels for file in files])
    np.testing.assert_allclose(
        ImageTower(source, "cpu").encode(pixels),
        reference.encode_images([*map(decode, files)]),
        atol=TOLERANCE,
    )


def test_a_device_that_is_not_there_is_named() -> None:
    """Before any weights are moved to it."""
    with pytest.raises(FailedPreconditionError, match="no device 'cuda:99': torch sees"):
        Runtime.choose("cuda:99")
