"""The command `cra evaluate`, and Chinese CLIP's own scripts of evaluation."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from cra.services.cli.group import cra
from cra.services.training.evaluation.exact import Vectors

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


def unit(vector: np.ndarray) -> Vectors:
    """Return a vector of length 1."""
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def call(model: Path | str, *arguments: str, **env: str) -> Result:
    """Run `cra evaluate` in this process."""
    env = {"CRA_MODEL": str(model), "CRA_DEVICE": "cpu", **env}
    return CliRunner().invoke(cra, ["evaluate", *arguments], env=env)


def evaluate(model: Path | str, *arguments: str, **env: str) -> Any:
    """Run `cra evaluate … --json` and return the report."""
    done = call(model, *arguments, "--json", **env)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)
