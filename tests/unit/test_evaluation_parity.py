"""Recall beside Chinese CLIP's own evaluation, on the same features."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.evaluation import exact, predictions
from cra.services.training.evaluation.exact import Vectors
from cra.services.training.evaluation.queries import ask

# cn_clip's script of predictions moves tensors to CUDA and has no option for that; here they stay
# where they are, and everything else is its own code.
_ON_CPU = """
import runpy, sys, torch
torch.Tensor.cuda = lambda self: self
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


def run_cn_clip(script: str, *arguments: str | Path) -> None:
    """Run a script of cn_clip's evaluation."""
    done = subprocess.run(
        [sys.executable, "-c", _ON_CPU, f"cn_clip.eval.{script}", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON, one object a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def predict(folder: Path, images: Mapping[int, Vectors], texts: Mapping[int, Vectors]) -> Path:
    """Write features as cn_clip's extract_features.py does; let cn_clip search with them."""
    image_feats = write_lines(
        folder / "imgs.img_feat.jsonl",
        [{"image_id": one, "feature": vector.tolist()} for one, vector in images.items()],
    )
    text_feats = write_lines(
        folder / "texts.txt_feat.jsonl",
        [{"text_id": one, "feature": vector.tolist()} for one, vector in texts.items()],
    )
    output = folder / "predictions.jsonl"
    arguments = [f"--image-feats={image_feats}", f"--text-feats={text_feats}"]
    run_cn_clip("make_topk_predictions", *arguments, "--top-k=10", f"--output={output}")
    return output


def score(answers: Path, predicted: Path) -> list[float]:
    """Let cn_clip's evaluation.py score predictions; return its R@1, R@5 and R@10 in per cent."""
    out = predicted.with_suffix(".score.json")
    run_cn_clip("evaluation", answers, predicted, out)
    result = json.loads(out.read_text())
    assert result["success"], result
    return [result["scoreJson"][name] for name in ("r1", "r5", "r10")]


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


def unit(vector: np.ndarray) -> Vectors:
    """Return a vector of length 1."""
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


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
