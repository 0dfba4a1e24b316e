"""The peer: infinity (PyPI `infinity_emb`), with a text model of the same shape.

It lives in an environment of its own, below .build, which is made when it is first needed.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx
import psutil

from tests.bench.model import FOLDER
from tests.servers import ROOT, free_ports, running

ENVIRONMENT: Final = ROOT / ".build" / "infinity"
VERSION: Final = "0.0.78"
_REQUIREMENTS: Final = (f"infinity_emb[server,torch]=={VERSION}", "torch==2.14.1")

_MAKE_MODEL: Final = """
import sys, torch
from transformers import BertConfig, BertModel, BertTokenizerFast
torch.manual_seed(0)
vocabulary, folder = sys.argv[1:]
BertModel(BertConfig(vocab_size=21128)).save_pretrained(folder)  # the shape of bert-base
BertTokenizerFast(vocab_file=vocabulary).save_pretrained(folder)
"""


def install() -> None:
    """Make its environment, unless it is there."""
    if (ENVIRONMENT / "done").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *_REQUIREMENTS], check=True)
    (ENVIRONMENT / "done").touch()


def model() -> Path:
    """Return the folder of its model, random weights, made if it is not there."""
    folder = FOLDER / "infinity-model"
    if not (folder / "tokenizer_config.json").is_file():
        package = find_spec("cn_clip")
        assert package is not None
        assert package.submodule_search_locations
        vocabulary = Path(package.submodule_search_locations[0]) / "clip" / "vocab.txt"
        command = [str(ENVIRONMENT / "bin" / "python"), "-c", _MAKE_MODEL]
        subprocess.run([*command, str(vocabulary), str(folder)], check=True)
    return folder


class Infinity:
    """A client of a server that is up."""

    def __init__(self, port: int, process: int) -> None:
        self._process = psutil.Process(process)
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60, limits=httpx.Limits(max_connections=64)
        )

    def embed(self, text: str) -> None:
        """Have one text encoded."""
        answer = self._http.post("/embeddings", json={"model": "bench", "input": [text]})
        answer.raise_for_status()
        assert len(answer.json()["data"][0]["embedding"]) == 768

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep it from taking anything of the cores, which it does when idle too."""
        family = [self._process, *self._process.children(recursive=True)]
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                process.resume()


@contextlib.contextmanager
def server() -> Iterator[Infinity]:
    """Run it on CPU, as its defaults are there."""
    install()
    folder = FOLDER / "infinity"
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [str(ENVIRONMENT / "bin" / "infinity_emb"), "v2", "--model-id", str(model())]
    command += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--engine", "torch", "--log-level", "warning"]
    env = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success
        return False

    with running(command, folder, ready, env) as process:
        yield Infinity(port, process.pid)
