"""Predictions in Chinese CLIP's format, which its own `evaluation.py` scores.

Its ids are whole numbers. Image ids that are none are numbered by place, and texts that have no id
in the order of the queries; so the answers are written in the same numbers, in the format of its
`texts.jsonl`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cra.services.training.evaluation.exact import Vectors, best
from cra.services.training.evaluation.queries import Queries

DEPTH: Final = 10
"""Images a text, as `evaluation.py` demands."""


def write(
    file: Path,
    queries: Queries,
    image_ids: Sequence[str],
    images_nd: Vectors,
    texts_qd: Vectors,
    text_ids: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write the best ten images of each text, and the right ones beside them.

    Args:
        file: of the predictions.
        queries: what was asked.
        image_ids: of the gallery.
        images_nd: its unit vectors.
        texts_qd: unit vectors of the texts.
        text_ids: those that a data set in this format gave each text.

    Returns:
        the file of the answers: `predictions.jsonl` has `predictions.answers.jsonl`.
    """
    ids = _numbers(image_ids)
    found = best(texts_qd, images_nd, DEPTH)
    predicted, right = [], []
    for query, text in enumerate(queries.texts):
        for text_id in [query] if text_ids is None else text_ids[text]:
            images = [ids[place] for place in found[query]]
            predicted.append({"text_id": text_id, "image_ids": images})
            images = [ids[place] for place in queries.images_of.row(query)]
            right.append({"text_id": text_id, "text": text, "image_ids": images})
    answers = file.with_name(f"{file.stem}.answers{file.suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_lines(file, predicted)
    _write_lines(answers, right)
    return answers


def _numbers(image_ids: Sequence[str]) -> list[int]:
    """Return the ids as numbers; their places, unless each is a number in its usual writing."""
    if all(one.isascii() and one.isdecimal() and str(int(one)) == one for one in image_ids):
        return [int(one) for one in image_ids]
    return list(range(len(image_ids)))


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
