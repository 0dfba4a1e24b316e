"""A whole move to another image tower under a stream of searches: real services all of them.

`python -m tests.moving` does it and prints what it took. The model that ships is what is moved to;
what is moved from is the same with noise in the weights of its image tower, and finds less.
"""

import contextlib
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.services.training.buildings.dataset import Picture, read_dataset, write_dataset
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectRef
from cra.shared.errors import UnavailableError
from cra.shared.settings import Settings
from tests.servers import ROOT, free_ports, running, wait_until
from tests.stack import Stack, local_stack
from tests.stream import Stream, Truth

MODEL: Final = ROOT / "deploy" / "models" / "miniature"
NOISE: Final = 0.2
"""Deviation of what is added to each weight, in deviations of its tensor."""
K: Final = 10


def worsen(folder: Path, noise: float = NOISE) -> Path:
    """Write the model that ships with noise in its image tower; return its folder."""
    import torch

    from cra.shared.model.checkpoints import find_model, load_clip, save_checkpoint

    model = load_clip(find_model(str(MODEL)))
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.visual.parameters():
            if weights.dim() > 1:
                weights.add_(noise * weights.std() * torch.randn_like(weights))
    folder.mkdir()
    save_checkpoint(model, folder / "checkpoint.pt")
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "name": "worse"}))
    return folder


@contextlib.contextmanager
def embedding_of(stack: Stack, model: Path, port: int, folder: Path) -> Iterator[RemoteEncoder]:
    """Run an embedding service of another model beside a stack; yield its encoder."""
    folder.mkdir()
    encoder = RemoteEncoder(
        f"dns:///127.0.0.1:{port}", stack.settings.service_token.get_secret_value(), timeout=5
    )

    def ready() -> bool:
        try:
            return bool(encoder.embed_texts(["塔"]).vectors)
        except UnavailableError:
            return False

    env = {**stack.env, "CRA_MODEL": str(model), "CRA_EMBEDDING_PORT": str(port)}
    command = [sys.executable, "-m", "cra.services.embedding"]
    with running(command, folder, ready, _quiet(env), patience=15):
        yield encoder
    encoder.close()


@contextlib.contextmanager
def ingest_of(stack: Stack, target: str, folder: Path) -> Iterator[Settings]:
    """Run a second ingest with worker and beat, as docs/operations.md says; yield its settings."""
    port, events = free_ports(2)
    redis_url = stack.env["CRA_REDIS_URL"].removesuffix("/0") + "/1"
    env = _quiet(
        {
            **stack.env,
            "CRA_EMBEDDING_TARGET": target,
            "CRA_OTHER_EMBEDDING_TARGET": "",
            "CRA_REDIS_URL": redis_url,
            "CRA_INGEST_PORT": str(port),
            "CRA_INGEST_TARGET": f"dns:///127.0.0.1:{port}",
            "CRA_EVENTS_PORT": str(events),
            "CRA_RECONCILE_SECONDS": "2",
            "CRA_HEARTBEAT_FOLDER": "",
        }
    )
    settings = stack.settings.model_copy(update={"ingest_target": env["CRA_INGEST_TARGET"]})
    celery = [str(Path(sys.executable).parent / "celery"), "-A", "cra.services.ingest.worker"]
    commands = {
        "ingest": [sys.executable, "-m", "cra.services.ingest"],
        "worker": [*celery, "worker", "--pool", "prefork", "--loglevel", "WARNING"],
        "beat": [*celery, "beat", "-s", str(folder / "schedule"), "--pidfile=", "-l", "WARNING"],
    }
    with contextlib.ExitStack() as servers:
        for name, command in commands.items():
            place = folder / name
            place.mkdir(parents=True)
            servers.enter_context(running(command, place, lambda: True, env, patience=15))
        yield settings


def _quiet(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables without ports of metrics, which are the first stack's."""
    return {
        name: "0" if name.endswith("_METRICS_PORT") else value
        for name, value in env.items()
        if name.startswith("CRA_")
    }


@dataclass
class Moved:
    """What a move was seen to do."""

    images: int = 0
    refused_empty: str = ""
    fill_seconds: float = 0.0
    recall: tuple[float, float] = (0.0, 0.0)
    flips: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the command said of each, by name."""
    windows: dict[str, float] = field(default_factory=dict)
    """Seconds from the change of the pointer until nothing but the chosen one answered."""
    refused_worse: str = ""
    searches: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    statuses: list[ingest.GetStatusResponse] = field(default_factory=list)

    def table(self) -> str:
        """Return it in Markdown."""
        rows = [
            ("images", f"{self.images}"),
            ("seconds to fill the second collection, under load", f"{self.fill_seconds:.0f}"),
            (
                f"recall@{K} before, after",
                f"{self.recall[0]:.1%}, {self.recall[1]:.1%}",
            ),
            *(
                (
                    f"{name}: seconds of the command; until all answers are of the chosen one",
                    f"{said['seconds']:.1f}; {self.windows[name]:.1f}",
                )
                for name, said in self.flips.items()
            ),
            ("searches", ", ".join(f"{n} {kind}" for kind, n in sorted(self.searches.items()))),
            ("failed", f"{len(self.failures)}"),
        ]
        return "\n".join(f"| {what} | {value} |" for what, value in rows)


def move(folder: Path, count: int = 240, milvus: str = "lite") -> Moved:
    """Move from the worse image tower to the better one, back, and there again."""
    moved = Moved(images=count)
    write_dataset(folder / "pictures", "test", count, workers=2)
    pictures = {f"{n:04}.jpg": one for n, one in enumerate(read_dataset(folder / "pictures"))}
    kept = socket.socket()
    kept.bind(("127.0.0.1", 0))  # nobody answers there, and nobody else takes it for free
    port = kept.getsockname()[1]
    other = f"dns:///127.0.0.1:{port}"
    worse = worsen(folder / "worse")
    with contextlib.ExitStack() as servers:
        stack = servers.enter_context(
            local_stack(folder / "stack", worse, milvus, OTHER_EMBEDDING_TARGET=other)
        )
        store = S3ReleaseStore(stack.settings)
        for key, one in pictures.items():
            stack.put(key, one.file.read_bytes())
        stack.put("no-image.jpg", b"no image at all")
        wait_until(lambda: _is_done(stack.status(), count), "the first is filled", 240)
        queries = _queries(folder / "queries.jsonl", pictures)
        stream = Stream(
            stack.settings.gateway_target,
            list(queries),
            [f"images/{key}" for key in pictures],
        )
        with stream.running():
            kept.close()
            encoder = servers.enter_context(embedding_of(stack, MODEL, port, folder / "embedding"))
            old = RemoteEncoder.of(stack.settings)
            servers.callback(old.close)
            names = [one.models().base_release for one in (old, encoder)]
            towers = [one.models().image_tower.fingerprint for one in (old, encoder)]
            asked = ["--queries", str(folder / "queries.jsonl"), "-k", str(K)]
            moved.refused_empty = _refused(stack, "activate", names[1], *asked)
            began = time.monotonic()
            second = servers.enter_context(ingest_of(stack, other, folder / "ingest"))
            wait_until(lambda: _is_done(_status(second), count), "the second is filled", 300, 0.5)
            moved.fill_seconds = time.monotonic() - began
            assert {one.target[0] for one in stream.answers} == {towers[0]}
            said = _cra(stack, "compare", *names, *asked)
            moved.recall = (said["summary"]["recall"][0], said["summary"]["recall"][1])
            for name, chosen, command in (
                ("flip", 1, ["activate", names[1], *asked]),
                ("rollback", 0, ["rollback"]),
                ("flip again", 1, ["activate", names[1]]),
            ):
                moved.flips[name] = _cra(stack, *command)
                changed = store.pointer().changed_at
                assert changed is not None
                moved.windows[name] = _window(stream, changed.timestamp(), towers[chosen])
            moved.refused_worse = _refused(stack, "activate", names[0], *asked)
            # What comes now is found by both, each in its own way.
            stack.put("late.jpg", next(iter(pictures.values())).file.read_bytes())
            wait_until(
                lambda: (
                    _is_done(_status(second), count + 1) and _is_done(stack.status(), count + 1)
                ),
                "both follow the bucket",
                60,
                0.5,
            )
        moved.statuses = [stack.status(), _status(second)]
        moved.failures = stream.failures
        moved.searches = Counter(one.kind for one in stream.answers)
        refs = [ObjectRef("images", key) for key in (*pictures, "late.jpg")]
        _check(stream, stack.settings, refs, dict(zip(towers, (old, encoder), strict=True)))
    return moved


def _check(
    stream: Stream,
    settings: Settings,
    refs: Sequence[ObjectRef],
    encoders: Mapping[str, RemoteEncoder],
) -> None:
    """Check every answer against the image tower and the release that it names."""
    with contextlib.closing(MilvusVectorStore(settings)) as vectors:
        images = {
            tower: {
                one.record.ref.image_id: np.asarray(one.vector)
                for one in vectors.fetch(tower, refs)
            }
            for tower in encoders
        }
    truth = Truth(images, encoders)
    for answer in stream.answers:
        truth.check(answer)
    # The check can fail: the same scores are none of the other image tower's.
    swapped = Truth(dict(zip(images, reversed(images.values()), strict=True)), encoders)
    with contextlib.suppress(AssertionError):
        swapped.check(stream.answers[0])
        raise RuntimeError("both image towers score alike")


def _queries(file: Path, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """Write a caption of every second picture as a query that has to find it; return them."""
    found = {
        one.plain[-1]: f"images/{key}" for key, one in list(pictures.items())[::2] if one.plain
    }
    lines = [json.dumps({"text": text, "image_ids": [key]}) for text, key in found.items()]
    file.write_text("\n".join(lines), encoding="utf-8")
    return found


def _status(settings: Settings) -> ingest.GetStatusResponse:
    from cra.services.cli.ingest import call_ingest

    status: ingest.GetStatusResponse
    try:
        status = call_ingest(settings, "GetStatus", ingest.GetStatusRequest(refresh=True))
    except UnavailableError:  # it starts
        return ingest.GetStatusResponse()
    return status


def _is_done(status: ingest.GetStatusResponse, count: int) -> bool:
    """Tell whether all pictures are indexed, and the one that is none has failed."""
    left = status.waiting + status.unaccounted + status.stale + status.orphaned
    return (status.indexed, status.failed, left) == (count, 1, 0)


def _cra(stack: Stack, *arguments: str) -> Any:
    done = stack.cra("releases", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _refused(stack: Stack, *arguments: str) -> str:
    done = stack.cra("releases", *arguments)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def _window(stream: Stream, changed: float, tower: str) -> float:
    """Return the seconds until nothing but one image tower answered, whoever was asked anew."""

    def others() -> list[float]:
        anew = [*stream.of("text", changed), *stream.of("image_id", changed)]
        return [one.at for one in anew if one.target[0] != tower]

    wait_until(
        lambda: bool(stream.of("text", max([changed, *others()]) + 1.0)), "it alone answers", 20
    )
    return max([changed, *others()]) - changed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="cra-moving-") as temporary:
        sys.stdout.write(move(Path(temporary)).table() + "\n")
