"""The whole catalogue of odd objects, put into the bucket of a running stack among good neighbours.

`python -m tests.bad_inputs` runs it and writes the table, docs/bad-inputs.md.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.shared.adapters.object_store import encode_metadata
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import IndexedImage, ObjectRef, Vector
from cra.shared.model.pixels import FORMATS
from cra.shared.ports import Priority
from deploy.local.state import StateFile
from tests.odd_objects import ODD_OBJECTS, OddObject
from tests.odd_pixels import turned
from tests.pictures import colourful, encode
from tests.servers import ROOT, wait_until
from tests.stack import Stack, local_stack

DOCUMENT = ROOT / "docs" / "bad-inputs.md"
MODEL = ROOT / "deploy" / "models" / "miniature"
NEIGHBOURS = 40
LIKE = 0.95
"""Cosine that an odd file's vector has at least with that of its picture."""


@dataclass(frozen=True)
class Row:
    """What became of one object."""

    kind: str
    expected: str
    got: str
    message: str
    """What the failure list says."""


def put_all(stack: Stack) -> None:
    """Put every odd object, and between them pictures that nothing is wrong with."""
    step = max(1, len(ODD_OBJECTS) // NEIGHBOURS)
    with ThreadPoolExecutor(4) as pool:
        jobs = []
        for number, odd in enumerate(ODD_OBJECTS):
            # Made here: Pillow's images cannot be saved by two threads at once.
            jobs.append(pool.submit(_put, stack, odd, odd.content()))
            if number % step == 0:
                seed = number // step
                jobs.append(pool.submit(stack.put, neighbour(seed).key, make_neighbour(seed)))
        for job in jobs:
            job.result()


def neighbours() -> list[ObjectRef]:
    """Return the pictures that nothing is wrong with."""
    step = max(1, len(ODD_OBJECTS) // NEIGHBOURS)
    return [neighbour(number // step) for number in range(0, len(ODD_OBJECTS), step)]


def neighbour(seed: int) -> ObjectRef:
    """Return the name of one."""
    return ObjectRef("images", f"neighbours/{seed}.jpg")


def make_neighbour(seed: int) -> bytes:
    """Return its file."""
    return encode(colourful(160, 120, seed=1000 + seed), "JPEG", quality=90)


def _put(stack: Stack, odd: OddObject, content: bytes) -> None:
    headers: dict[str, Any] = {**encode_metadata(dict(odd.metadata)), **odd.headers}
    kind = headers.pop("Content-Type", "image/jpeg")
    stack.bucket.put_object(
        "images", odd.key, io.BytesIO(content), len(content), kind, metadata=headers
    )


def settle(stack: Stack) -> None:
    """Wait until everything is indexed or failed; a reconcile finds what events missed."""
    for _ in stack.ingest.Reconcile(ingest.ReconcileRequest(), timeout=120):
        pass
    wait_until(stack.settled, "everything is indexed or failed", 180)


def failures(stack: Stack) -> dict[str, ingest.Failure]:
    """Return the failure list, by image_id."""
    found: dict[str, ingest.Failure] = {}
    token = ""
    while True:
        page = stack.ingest.ListFailures(ingest.ListFailuresRequest(page_token=token), timeout=20)
        found |= {failure.image_id: failure for failure in page.failures}
        token = page.next_page_token
        if not token:
            return found


def look(stack: Stack) -> list[Row]:
    """Return what became of each odd object, in the words of `OddObject.expected`."""
    service = stack.settings.service_token.get_secret_value()
    encoder = RemoteEncoder(stack.settings.embedding_target, service)
    failed = failures(stack)
    refs = [ObjectRef("images", odd.key) for odd in ODD_OBJECTS]
    with contextlib.closing(MilvusVectorStore(stack.settings)) as store:
        tower = encoder.models().image_tower.fingerprint
        indexed = {
            image.record.ref: image
            for start in range(0, len(refs), 50)
            for image in store.fetch(tower, refs[start : start + 50])
        }
    vectors = _Pictures(encoder)
    return [
        Row(odd.kind, odd.expected, *_became(odd, ref, indexed, failed, vectors))
        for odd, ref in zip(ODD_OBJECTS, refs, strict=True)
    ]


class _Pictures:
    """Vectors of the pictures that are to be seen: upright, then in every other position."""

    def __init__(self, encoder: RemoteEncoder) -> None:
        self._encoder = encoder
        self._known: dict[int, npt.NDArray[np.float32]] = {}

    def of(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """Return one vector a row."""
        if id(picture) not in self._known:
            files = [encode(one, "PNG") for one in (picture, *turned(picture))]
            results = self._encoder.embed_encoded_images(files, Priority.INTERACTIVE).results
            self._known[id(picture)] = np.stack([_vector(one) for one in results])
        return self._known[id(picture)]


def _vector(result: object) -> Vector:
    assert isinstance(result, np.ndarray), result
    return result


def _became(
    odd: OddObject,
    ref: ObjectRef,
    indexed: Mapping[ObjectRef, IndexedImage],
    failed: Mapping[str, ingest.Failure],
    vectors: _Pictures,
) -> tuple[str, str]:
    """Return outcome and message."""
    image, failure = indexed.get(ref), failed.get(ref.image_id)
    if image is None:
        return (failure.reason, failure.message) if failure else ("nothing", "")
    got = f"indexed, {image.record.width} x {image.record.height}"
    if failure is not None:
        return f"{got}, and {failure.reason}", failure.message
    wanted = {name: value for name, value in odd.metadata.items() if value}
    if dict(image.record.metadata) != wanted:
        got += ", its metadata changed"
    if odd.picture is not None:
        likeness = vectors.of(odd.picture) @ image.vector
        if likeness[0] < LIKE:
            got += f", unlike its picture ({likeness[0]:.3f})"
        elif likeness[0] < likeness.max() - 1e-4:
            got += ", not upright"
    return got, ""


@dataclass(frozen=True)
class Processes:
    """The worker's processes at one moment."""

    pids: frozenset[int]
    memory: int
    """Bytes, of the one that holds most."""
    peak: int
    """Bytes that one of them had at most since it started."""


def worker_processes(data: Path) -> Processes:
    """Look at the processes of a stack's worker: Celery's own and its children."""
    state = StateFile(data).read()
    assert state is not None
    (pid,) = [part.pid for part in state.parts if part.name == "worker"]
    parent = psutil.Process(pid)
    processes = [parent, *parent.children(recursive=True)]
    return Processes(
        frozenset(process.pid for process in processes),
        max(process.memory_info().rss for process in processes),
        max(_peak(process.pid) for process in processes),
    )


def _peak(pid: int) -> int:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024


def table(rows: Iterable[Row]) -> str:
    """Return the table of docs/bad-inputs.md."""
    lines = [
        "| kind | expected | got | what the failure list says |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (row.kind, row.expected, row.got, row.message)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def read_table(text: str) -> list[tuple[str, ...]]:
    """Return the rows of the table in a document: kind, expected, got, message."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line[1:-1].split(" | ")) for line in lines[2:]]


_HEAD = """# Bad and odd inputs

`make bad-inputs` puts each of these {count} objects into the bucket of the local stack, among
pictures that nothing is wrong with, and writes this table. A good one is indexed with the size of
the picture as viewers show it; its vector has a cosine of at least {like} with the picture's own,
and is nearer to it than to the picture in any other position. A bad one is on the failure list,
which `cra failures` shows.

Formats that are decoded: {formats}.
Of a file with several pictures the first counts. A HEIC or AVIF is turned and mirrored as the file
says, and EXIF data, which repeats it, does not turn it again. Limits: 89,478,485 pixels, 65,535 on
a side, 64 MiB a file (`CRA_MAX_OBJECT_BYTES`), 100 scans of a JPEG, 100,000 segments of a JPEG or
chunks of a PNG, 128 entries of metadata in 32 KiB. What no checksum covers cannot be told from what
was meant: flipped bits in the pixels of a JPEG or WebP are indexed as viewers show them. Decoding
one image takes at most 1 GiB; a file that is refused, 64 MiB.

Keys that S3 allows, but SeaweedFS or the MinIO SDK does not (`..`, a segment of `.`, backslashes,
NUL, two slashes), come as recorded events of MinIO in `tests/integration/test_sync.py`: nothing is
left in line, and what a listing shows but nobody can ask for is listed as `bad_key`.

"""


def main() -> None:
    """Run the catalogue on a stack of its own, write the table; exit 1 if anything is unlike it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        local_stack(Path(folder) / "data", MODEL, "lite") as stack,
    ):
        put_all(stack)
        settle(stack)
        rows = look(stack)
    head = _HEAD.format(count=len(rows), like=LIKE, formats=", ".join(FORMATS))
    DOCUMENT.write_text(head + table(rows), encoding="utf-8")
    wrong = [row for row in rows if row.got != row.expected]
    sys.stdout.write(table(wrong or rows))
    sys.stdout.write(f"{len(rows) - len(wrong)} of {len(rows)} as expected\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
