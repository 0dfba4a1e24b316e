"""Recall beside Chinese CLIP's own evaluation, on the same features."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.evaluation import exact, predictions
from cra.services.training.evaluation.exact import Vectors
from cra.services.training.evaluation.queries import ask
from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import prepare
from cra.shared.model.text_tower import TextTower
from tests.checkpoints import make_checkpoint
from tests.evaluation import evaluate, predict, score, unit, write_lines
from tests.fakes import picture


class World:
    """60 images and 90 texts, several of either for one of the other, with vectors near by."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.image_ids = [1000 + 3 * i for i in range(60)]
        self.texts = {5000 + i: f"第{i}座房子" for i in range(90)}
        self.right = {
            text: sorted(rng.choice(self.image_ids, 1 + text % 3, replace=False).tolist())
            for text in self.texts
        }
        self.images = {one: unit(rng.normal(size=16)) for one in self.image_ids}
        self.vectors = {
            text: unit(self.images[self.right[text][-1]] + rng.normal(size=16) * 0.5)
            for text in self.texts
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of `texts.jsonl`."""
        return [
            {"text_id": one, "text": text, "image_ids": self.right[one]}
            for one, text in self.texts.items()
        ]

    @property
    def dataset(self) -> DataSet:
        """The same as a data set."""
        captions: dict[int, list[str]] = {one: [] for one in self.image_ids}
        for one, text in self.texts.items():
            for image_id in self.right[one]:
                captions[image_id].append(text)
        return DataSet(
            tuple(
                Image(str(one), str(one), tuple(texts), lambda: b"")
                for one, texts in captions.items()
            )
        )

    @property
    def images_nd(self) -> Vectors:
        """Vectors of the gallery."""
        return np.stack(list(self.images.values()))

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of texts."""
        by_text = {text: self.vectors[one] for one, text in self.texts.items()}
        return np.stack([by_text[text] for text in texts])


def test_recall_is_that_of_chinese_clip(tmp_path: Path) -> None:
    """On the same features, R@1/5/10 are equal to what cn_clip's own two scripts arrive at."""
    world = World()
    answers = write_lines(tmp_path / "texts.jsonl", world.rows)
    theirs = score(answers, predict(tmp_path, world.images, world.vectors))
    ours = exact.evaluate(world.images_nd, world.dataset, world.encode).text_to_image
    assert [100 * ours.recall[k].value for k in (1, 5, 10)] == pytest.approx(theirs, abs=1e-9)
    # They are hard enough to mean something.
    assert 10 < theirs[0] < theirs[1] < theirs[2] < 100


def test_predictions_score_the_same_there(tmp_path: Path) -> None:
    """Exported predictions and answers pass cn_clip's evaluation.py, which gives our recall."""
    world = World()
    queries = ask(world.dataset, "captions")
    file = tmp_path / "out" / "predictions.jsonl"
    ids = [image.image_id for image in world.dataset.images]
    answers = predictions.write(file, queries, ids, world.images_nd, world.encode(queries.texts))
    ours = exact.evaluate(world.images_nd, world.dataset, world.encode).text_to_image
    assert score(answers, file) == pytest.approx([100 * ours.recall[k].value for k in (1, 5, 10)])
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    right = {world.texts[one]: ids for one, ids in world.right.items()}
    assert {row["text"]: row["image_ids"] for row in rows} == right


def test_ids_that_are_no_numbers_are_numbered(tmp_path: Path) -> None:
    """Where image ids are paths, predictions and answers number them alike."""
    world = World()
    queries = ask(world.dataset, "captions")
    ids = [f"a/{one:02}.png" for one in range(len(world.dataset))]
    file = tmp_path / "predictions.jsonl"
    answers = predictions.write(file, queries, ids, world.images_nd, world.encode(queries.texts))
    ours = exact.evaluate(world.images_nd, world.dataset, world.encode).text_to_image
    assert score(answers, file) == pytest.approx([100 * ours.recall[k].value for k in (1, 5, 10)])


def test_the_command_on_a_set_of_chinese_clip(tmp_path: Path) -> None:
    """`cra evaluate` on TSV and JSONL gives what cn_clip's scripts make of the same features.

    So do the predictions that it writes, against the set's own `texts.jsonl`: they bear its ids.
    """
    rng = np.random.default_rng(3)
    images = {
        10 + 7 * i: picture((int(r), int(g), int(b)), (32 + i, 40))
        for i, (r, g, b) in enumerate(rng.integers(0, 256, (30, 3)))
    }
    texts = {100 + i: f"第{i}座{'塔亭桥院'[i % 4]}，有飞檐{i * i}" for i in range(45)}
    folder = tmp_path / "set"
    folder.mkdir()
    tsv = [
        f"{one}\t{base64.urlsafe_b64encode(content).decode()}" for one, content in images.items()
    ]
    (folder / "test_imgs.tsv").write_text("\n".join(tsv) + "\n")
    rows = [
        {
            "text_id": one,
            "text": text,
            "image_ids": rng.choice(list(images), 1 + one % 3, replace=False).tolist(),
        }
        for one, text in texts.items()
    ]
    answers = write_lines(folder / "test_texts.jsonl", rows)
    model = make_checkpoint(tmp_path / "model")
    file = tmp_path / "predictions.jsonl"
    found = evaluate(
        model, str(folder), "--split=test", f"--predictions={file}", f"--cache={tmp_path}"
    )
    (section,) = found["sections"]
    recall = section["evaluations"][0]["text_to_image"]["recall"]
    ours = [100 * recall[k]["value"] for k in ("1", "5", "10")]

    source = find_model(str(model))
    tower, text_tower = ImageTower(source, "cpu"), TextTower(source, "cpu")
    pixels = [prepare(content, tower.preprocessing).pixels for content in images.values()]
    image_feats = dict(zip(images, tower.encode(np.stack(pixels)), strict=True))
    text_feats = {one: text_tower.encode([text])[0][0] for one, text in texts.items()}
    (tmp_path / "theirs").mkdir()
    theirs = score(answers, predict(tmp_path / "theirs", image_feats, text_feats))
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert score(answers, file) == pytest.approx(theirs, abs=1e-9)
    assert 0 < theirs[1] < theirs[2] < 100
