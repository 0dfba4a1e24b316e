"""Predictions in Chinese CLIP's format, which its own `evaluation.py` scores.

Its ids are whole numbers. Image ids that are none are numbered by place, and texts, whose ids a
data set does not keep, in the order of the queries; so the answers are written in the same
numbers, in the format of its `texts.jsonl`.
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
    file: Path, queries: Queries, image_ids: Sequence[str], images_nd: Vectors, texts_qd: Vectors
) -> Path:
    """Write the best ten images of each text, and the right ones beside them.

    Args:
        file: of the predictions.
        queries: what was asked.
        image_ids: of the gallery.
        images_nd: its unit vectors.
        texts_qd: unit vectors of the texts.

    Returns:
        the file of the answers: `predictions.jsonl` has `predictions.answers.jsonl`.
    """
    ids = _numbers(image_ids)
    found = best(texts_qd, images_nd, DEPTH)
    answers = file.with_name(f"{file.stem}.answers{file.suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_lines(
        file,
        [
            {"text_id": query, "image_ids": [ids[place] for place in places]}
            for query, places in enumerate(found)
        ],
    )
    _write_lines(
        answers,
        [
            {
                "text_id": query,
                "text": text,
                "image_ids": [ids[i] for i in queries.images_of.row(query)],
            }
            for query, text in enumerate(queries.texts)
        ],
    )
    return answers


def _numbers(image_ids: Sequence[str]) -> list[int]:
    """Return the ids as numbers; their places, unless each is a number in its usual writing."""
    if all(one.isascii() and one.isdecimal() and str(int(one)) == one for one in image_ids):
        return [int(one) for one in image_ids]
    return list(range(len(image_ids)))


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
