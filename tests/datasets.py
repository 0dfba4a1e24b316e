"""Data sets on disk for tests: folders of captions, and Chinese CLIP's format."""

import base64
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.pictures import colourful, encode


def picture(seed: int = 0, kind: str = "PNG") -> bytes:
    """Return a small image file, another one for each seed."""
    return encode(colourful(32, 24, seed), kind)


def write_files(folder: Path, *names: str) -> Path:
    """Write an image under each name, each another one; return the folder."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))
    return folder


def write_lines(file: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """Write rows as JSON lines, and texts as they are; return the file."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return file


def write_chinese_clip(
    folder: Path,
    split: str,
    images: Mapping[str, bytes],
    texts: Sequence[tuple[int, str, Sequence[int]]],
    *,
    url_safe: bool = True,
) -> Path:
    """Write a split as TSV and JSONL; return the folder.

    Args:
        folder: of all splits.
        split: its name.
        images: files by id.
        texts: id, text and image ids of each.
        url_safe: which alphabet of base64.
    """
    encoder = base64.urlsafe_b64encode if url_safe else base64.b64encode
    rows = [f"{image_id}\t{encoder(content).decode()}" for image_id, content in images.items()]
    write_lines(folder / f"{split}_imgs.tsv", rows)
    write_lines(
        folder / f"{split}_texts.jsonl",
        [{"text_id": one, "text": text, "image_ids": [*ids]} for one, text, ids in texts],
    )
    return folder


def build_lmdb(folder: Path, *splits: str) -> Path:
    """Let Chinese CLIP's own tool make LMDBs of TSV and JSONL; return their folder."""
    package = importlib.util.find_spec("cn_clip")
    assert package is not None
    assert package.submodule_search_locations is not None
    script = Path(package.submodule_search_locations[0]) / "preprocess" / "build_lmdb_dataset.py"
    command = [sys.executable, str(script), "--data_dir", str(folder), "--splits", ",".join(splits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "lmdb"
