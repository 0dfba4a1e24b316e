"""Tuning: what learns, what stays, and that it ends the same however often it is interrupted."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from cra.services.training import features
from cra.services.training.data.dataset import DataSet, Image, Problem
from cra.services.training.tuning import lora, run
from cra.services.training.tuning.export import export
from cra.services.training.tuning.interpolation import choose, interpolate
from cra.services.training.tuning.optimizer import make_optimizer, set_rate
from cra.services.training.tuning.run import Tuned, tune
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.start import merged, start
from cra.services.training.tuning.trainer import Trainer
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import ModelSource, find_model, load_clip
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from cra.shared.releases import read_release
from tests.checkpoints import make_checkpoint
from tests.tuning import SETTINGS, Heard, changed, make_base, make_dataset

TRAIN, VALIDATION = make_dataset(range(3)), make_dataset(range(3, 5))
TEXTS = ["丹朱色的庑殿", "红色", "石绿色的鸱吻", "戗脊"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A tiny base model."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of its images, made once."""
    return tmp_path_factory.mktemp("features")


def _tune(
    base: ModelSource, work: Path, cache: Path, settings: TuningSettings = SETTINGS
) -> tuple[Tuned, Heard]:
    heard = Heard()
    tuned = tune(base, TRAIN, VALIDATION, settings, work=work, cache=cache, listener=heard)
    return tuned, heard


def test_words_that_the_base_never_saw_find_their_images(
    base: ModelSource, cache: Path, tmp_path: Path
) -> None:
    """Tuned on other buildings, captions find theirs: recall rises from about chance to most."""
    tuned, heard = _tune(
        base, tmp_path, cache, changed(max_epochs=30, valid_k=4, lr=5e-3, wise_ft=False)
    )
    assert tuned.before.field < 0.3
    assert tuned.after.field > 0.6
    assert heard.losses[-1] < heard.losses[0]
    assert heard.done == {"train": (72, 72), "validation": (48, 48)}
    assert [step for step, _, _ in heard.scores] == [9 * epoch for epoch in range(31)]


def test_the_image_tower_stays_as_it_is(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """Frozen means frozen: the checkpoint, the tower's bytes and all vectors are the same after.

    So is the fingerprint that the release names, and with it every index.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)

    def state() -> tuple[bytes, list[bytes], bytes, str]:
        tower = ImageTower(base, "cpu")
        weights = load_clip(base).visual.state_dict()
        return (
            base.checkpoint.read_bytes(),
            [weights[name].numpy().tobytes() for name in sorted(weights)],
            tower.encode(pixels).tobytes(),
            tower.image_tower,
        )

    before = state()
    vectors = features.load(VALIDATION.images, ImageTower(base, "cpu"), cache)
    tuned, _ = _tune(base, tmp_path, cache)
    assert state() == before
    assert tuned.image_tower == before[3]
    again = features.load(VALIDATION.images, ImageTower(base, "cpu"), tmp_path / "fresh")
    np.testing.assert_array_equal(again, vectors)
    assert not [name for name, _ in tuned.model.named_parameters() if "visual" in name]


def test_before_the_first_step_it_is_the_base(base: ModelSource) -> None:
    """Nothing that the base can read changes; what it cannot starts as [UNK] or its relatives.

    Characters of building have tokens whether the data holds them or not, and no folded one has.
    """
    begun = start(base, [*(text for _, text in TRAIN.pairs()), "一只𪚥"], SETTINGS)
    added = begun.tokenizer.added_tokens
    assert set("庑盝鸱戗檩槅𪚥") <= set(added)
    assert "栱" not in added
    first = base.config["vocab_size"]
    assert begun.config["vocab_size"] == first + len(added)
    texts = ["丹朱色的房子", "红色", "一只𪚥"]
    ids = torch.from_numpy(begun.tokenizer(texts)[0])
    assert (ids >= first).any()
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(begun.model.eval()(ids), dim=-1).numpy()
    np.testing.assert_allclose(vectors, TextTower(base, "cpu").encode(texts)[0], atol=1e-5)
    rows = begun.model.bert.embeddings.word_embeddings.weight.data
    beam, wood = begun.tokenizer(["梁", "木"])[0][:, 1].tolist()
    torch.testing.assert_close(rows[first + added.index("檩")], (rows[beam] + rows[wood]) / 2)


def test_added_tokens_learn_and_can_be_left_out(
    base: ModelSource, cache: Path, tmp_path: Path
) -> None:
    """With tokens of their own, 庑殿 and 戗脊 no longer read alike; without, nothing is added."""
    tuned, _ = _tune(base, tmp_path / "with", cache, changed(wise_ft=False))
    added, first = tuned.start.tokenizer.added_tokens, base.config["vocab_size"]
    words = "bert.embeddings.word_embeddings.weight"
    learnt = tuned.model.state_dict()[words][first:]
    texts = [text for _, text in TRAIN.pairs()]
    began = start(base, texts, SETTINGS).model.state_dict()[words][first:]
    moved = {
        token: not torch.equal(*rows) for token, *rows in zip(added, learnt, began, strict=True)
    }
    assert [token for token in added if moved[token]] == sorted("庑戗鸱", key=added.index)
    without, _ = _tune(base, tmp_path / "without", cache, changed(add_tokens=False))
    assert without.start.tokenizer.added_tokens == ()
    assert without.start.config["vocab_size"] == base.config["vocab_size"]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("kill_at", "settings"),
    [
        *((step, SETTINGS) for step in (1, 5, 9, 13, 17)),
        (10, changed(lora_rank=2, hard_negatives=0.25, views=2)),
    ],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    base: ModelSource, cache: Path, tmp_path: Path, settings: TuningSettings, kill_at: int
) -> None:
    """Killed at any step and started again, a run ends with the same bits as one that was not.

    Dropout is on in this model, and a state is written every three steps.
    """
    whole, unbroken = _tune(base, tmp_path / "whole", cache, settings)

    class Killer(Heard):
        def step(self, step: int, total: int, loss: float, rate: float) -> None:
            super().step(step, total, loss, rate)
            if step == kill_at:
                raise _KilledError

    work = tmp_path / "killed"

    def go(listener: Heard) -> Tuned:
        return tune(
            base,
            TRAIN,
            VALIDATION,
            settings,
            work=work,
            cache=cache,
            listener=listener,
            snapshot_steps=3,
        )

    with pytest.raises(_KilledError):
        go(Killer())
    heard = Heard()
    resumed = go(heard)
    assert heard.losses == unbroken.losses[-len(heard.losses) :]
    assert len(heard.losses) == len(unbroken.losses) - (kill_at - 1) // 3 * 3
    assert (resumed.steps, resumed.factor, resumed.after) == (
        whole.steps,
        whole.factor,
        whole.after,
    )
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_state_of_another_run_is_refused(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """A folder that holds the state of other settings or other data is not gone on with."""
    _tune(base, tmp_path, cache)
    with pytest.raises(ValueError, match=r"other settings: .*lr"):
        _tune(base, tmp_path, cache, changed(lr=1e-4))
    with pytest.raises(ValueError, match="other data"):
        tune(
            base,
            make_dataset(range(3), general=False),
            VALIDATION,
            SETTINGS,
            work=tmp_path,
            cache=cache,
            listener=Heard(),
        )


def test_a_state_of_another_base_is_refused(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """Another text tower beside the same image tower is another run, and so is other validation."""
    _tune(base, tmp_path / "work", cache)
    other = find_model(str(make_checkpoint(tmp_path / "other", text_seed=1)))
    with pytest.raises(ValueError, match="another base"):
        _tune(other, tmp_path / "work", cache)
    with pytest.raises(ValueError, match="other data"):
        tune(
            base,
            TRAIN,
            make_dataset([9]),
            SETTINGS,
            work=tmp_path / "work",
            cache=cache,
            listener=Heard(),
        )


def test_bad_images_take_no_part(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """Told so, a run leaves bad images out, names them by row, and its data are the rest."""
    bad = Image("bad.png", "g", ("塔",), lambda: b"no image", where="captions.jsonl:7")
    problems: list[Problem] = []
    tuned = tune(
        base,
        DataSet((bad, *TRAIN.images)),
        VALIDATION,
        SETTINGS,
        work=tmp_path,
        cache=cache,
        listener=Heard(),
        left_out=problems.append,
    )
    assert [problem.where for problem in problems] == ["captions.jsonl:7"]
    assert tuned.train.digest == TRAIN.digest
    assert tuned.start.tokenizer.added_tokens


def test_training_ends_when_validation_says_so(
    base: ModelSource, cache: Path, tmp_path: Path
) -> None:
    """At a rate that teaches nothing, patience ends the run long before its epochs do."""
    settings = changed(max_epochs=50, patience=2, lr=1e-12, kd_loss_weight=0.0)
    tuned, heard = _tune(base, tmp_path, cache, settings)
    assert len(heard.losses) == 9 * 3
    assert tuned.steps == 9


def test_everyday_captions_stay_where_they_were(
    base: ModelSource, cache: Path, tmp_path: Path
) -> None:
    """With their loss, everyday captions move less than without it."""

    def moved(weight: float) -> float:
        settings = changed(kd_loss_weight=weight, wise_ft=False, max_epochs=8)
        tuned, _ = _tune(base, tmp_path / str(weight), cache, settings)
        before = TextTower(base, "cpu").encode(TEXTS[1:2])[0]
        with torch.inference_mode():
            after = tuned.model(torch.from_numpy(tuned.start.tokenizer(TEXTS[1:2])[0]))
        after = torch.nn.functional.normalize(after, dim=-1).numpy()
        return float(1 - (before * after).sum())

    assert moved(30.0) < 0.8 * moved(0.0)


def test_a_release_serves_what_was_tuned(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """What the run ends with, rounded to fp16, is what the release's tower computes."""
    tuned, _ = _tune(base, tmp_path / "work", cache)
    written = export(tuned, SETTINGS, "tiny-tuned", tmp_path / "releases")
    release = read_release(written.folder)
    assert release == written
    assert release.name == written.folder.name
    assert release.manifest.base == TextTower(base, "cpu").release
    assert release.manifest.data.pairs == 144
    assert release.manifest.data.groups == 18
    tower = TextTower(release, "cpu")
    assert tower.image_tower == ImageTower(base, "cpu").image_tower
    with torch.inference_mode():
        expected = tuned.model(torch.from_numpy(tuned.start.tokenizer(TEXTS)[0]))
    expected = torch.nn.functional.normalize(expected, dim=-1)
    np.testing.assert_allclose(tower.encode(TEXTS)[0], expected.numpy(), atol=2e-3)
    card = (release.folder / "README.md").read_text(encoding="utf-8")
    assert "庑" in card
    assert "lr: 0.002" in card


def test_a_label_that_is_no_name_is_refused(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """A release's label becomes part of object keys: only plain characters are taken."""
    tuned, _ = _tune(base, tmp_path / "work", cache)
    with pytest.raises(FailedPreconditionError, match="label"):
        export(tuned, SETTINGS, "../up", tmp_path / "releases")


def test_low_rank_updates_start_at_nothing_and_merge(base: ModelSource) -> None:
    """LoRA changes nothing at first; merged, the weights compute what the updates did."""
    begun = start(base, [text for _, text in TRAIN.pairs()], changed(lora_rank=2))
    plain = start(base, [text for _, text in TRAIN.pairs()], SETTINGS)
    ids = torch.from_numpy(begun.tokenizer(TEXTS)[0])
    model = begun.model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), plain.model.eval()(ids))
    for module in model.modules():
        if isinstance(module, lora.LowRankUpdate):
            torch.nn.init.normal_(module.up, std=0.2)
    whole = merged(model, begun.config)
    assert whole.state_dict().keys() == plain.model.state_dict().keys()
    with torch.inference_mode():
        torch.testing.assert_close(whole(ids), model(ids))
        assert not torch.allclose(whole(ids), plain.model(ids))


def test_low_rank_updates_leave_the_base_alone(
    base: ModelSource, cache: Path, tmp_path: Path
) -> None:
    """With LoRA, of the embeddings only the added tokens learn, and LayerNorms stay."""
    tuned, _ = _tune(base, tmp_path, cache, changed(lora_rank=2, wise_ft=False))
    first = start(base, [text for _, text in TRAIN.pairs()], SETTINGS).model.state_dict()
    words = "bert.embeddings.word_embeddings.weight"
    learnt = tuned.model.state_dict()
    size = base.config["vocab_size"]
    assert torch.equal(learnt[words][:size], first[words][:size])
    assert not torch.equal(learnt[words][size:], first[words][size:])
    assert all(torch.equal(learnt[name], first[name]) for name in first if "LayerNorm" in name)
    dense = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(learnt[dense], first[dense])


def test_decay_and_rates_by_kind_and_layer(base: ModelSource) -> None:
    """Gains, biases and embeddings have no decay; each layer learns slower than the one above."""
    model = start(base, [], SETTINGS).model
    optimizer = make_optimizer(model, changed(layer_decay=0.5, wd=0.1))
    set_rate(optimizer, 2, 10, changed(lr=0.01, warmup=2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == len(names)
    assert found["text_projection"] == (0.1, 0.01)
    assert found["logit_scale"] == (0.0, 0.01)
    assert found["bert.encoder.layer.1.output.dense.weight"] == (0.1, 0.005)
    assert found["bert.encoder.layer.0.output.dense.weight"] == (0.1, 0.0025)
    assert found["bert.encoder.layer.0.output.dense.bias"] == (0.0, 0.0025)
    assert found["bert.encoder.layer.1.output.LayerNorm.weight"] == (0.0, 0.005)
    assert found["bert.embeddings.word_embeddings.weight"] == (0.0, 0.00125)
    assert optimizer.param_groups[0]["eps"] == 1e-6


def test_the_rate_rises_then_falls_to_nothing(base: ModelSource) -> None:
    """Linear warm-up to the rate, then a cosine to zero."""
    optimizer = make_optimizer(start(base, [], SETTINGS).model, SETTINGS)
    settings = changed(lr=1.0, warmup=4)
    rates = [set_rate(optimizer, step, 12, settings) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0.0, abs=1e-12)


def test_interpolation_ends_at_base_and_tuned() -> None:
    """Factor 0 is the base, 1 the tuned tower, and other shapes are refused."""
    base, tuned = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    assert torch.equal(interpolate(base, tuned, 0.0)["w"], base["w"])
    assert torch.equal(interpolate(base, tuned, 1.0)["w"], tuned["w"])
    torch.testing.assert_close(interpolate(base, tuned, 0.3)["w"], torch.full((3,), 0.3))
    with pytest.raises(ValueError, match="shapes"):
        interpolate(base, {"w": torch.ones(4)}, 0.5)


def test_the_factor_weighs_field_and_everyday_captions() -> None:
    """The weighted mean decides; with no everyday captions the field's alone, larger first."""

    def score(factor: float) -> tuple[float, float]:
        return factor, 1.0 - factor**2

    assert choose(score, 0.5).factor == 0.5
    assert choose(score, 0.0).factor == 1.0
    assert choose(score, 1.0).factor == 0.0
    assert choose(lambda _: (0.5, None), 0.5).factor == 1.0


def test_a_loss_that_is_not_finite_ends_the_run(
    base: ModelSource, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is an error that names the step, not a model that is silently useless."""

    def broken(self: Trainer, *_: object) -> torch.Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr(Trainer, "loss", broken)
    with pytest.raises(FloatingPointError, match="step 0"):
        _tune(base, tmp_path, cache, changed(kd_loss_weight=0.0))


def test_the_base_is_not_touched(base: ModelSource, cache: Path, tmp_path: Path) -> None:
    """Learning happens in a copy: the start's weights are the base's, step after step."""
    first = copy.deepcopy(start(base, [], SETTINGS).model.state_dict())
    _tune(base, tmp_path, cache)
    again = start(base, [], SETTINGS).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert run.STATE in {file.name for file in tmp_path.iterdir()}
