"""JPEGs dropped into the bucket: how fast they are indexed, and what queries feel of it."""

import contextlib
import io
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from cn_clip.clip import image_transform
from cn_clip.clip.model import CLIP
from PIL import Image

from cra.shared import budget
from cra.shared.adapters.vector_store import MilvusVectorStore, collection_name
from cra.shared.model.openvino_towers import OpenVinoImageTower
from cra.shared.model.pixels import prepare
from cra.shared.model.runtime import Runtime
from cra.shared.settings import Settings
from tests.bench.measure import Comparison, percentile, seconds_of, times
from tests.bench.model import Queries, converted, reference
from tests.bench.stack import encoder, running
from tests.photos import LARGE, TWELVE_MEGAPIXELS, photograph
from tests.servers import wait_until
from tests.stack import Stack

DIFFERENT = 12
"""JPEGs that are made; each object is one of them with bytes of its own after its end."""
COUNTS = {LARGE: 640, TWELVE_MEGAPIXELS: 256}
THEIR_BATCH = 16
LEFT = 64
"""Images that are not counted at the end, when the line has no full batch any more."""
TEXTS, PICTURES = 200, 30
"""Queries of each kind in a round."""
Ask = tuple[Callable[[], object], int]
"""A query of a kind, and how many of them a round has."""


def run(rounds: int) -> list[Comparison]:
    """Measure both sizes; the tower alone, cn_clip's loop and ingest take turns."""
    ours, theirs = _tower(), reference()
    torch.set_num_threads(budget.cores())
    found = []
    with (
        running(QUERY_CACHE="0", RECONCILE_SECONDS="100000") as stack,
        contextlib.closing(MilvusVectorStore(stack.settings)) as store,
    ):
        index = _Index(store, stack.settings)
        for size, count in COUNTS.items():
            photographs = [photograph(seed, size) for seed in range(DIFFERENT)]
            alone, loop, indexed = [], [], []
            for number in range(rounds):
                alone.append(_tower_alone(ours, photographs))
                loop.append(_their_loop(theirs, photographs))
                folder = f"{size[0]}/{number}"
                indexed.append(_indexing(stack, index, folder, photographs, count))
            title = f"a JPEG of {size[0]} x {size[1]} put, decoded, encoded and indexed"
            notes = {"images a second": f"{1000 / statistics.median(indexed):.1f}"}
            wanted = (0.8, 1.6) if size == LARGE else (None, None)
            against = "the image tower alone, from prepared pixels"
            found.append(Comparison(title, indexed, alone, against, "ms", wanted[0], notes))
            against = f"a loop of cn_clip: PIL, batch {THEIR_BATCH}, fp32"
            found.append(Comparison(title, indexed, loop, against, "ms", wanted[1]))
        found += _queries(rounds, stack, index, [photograph(n) for n in range(DIFFERENT)])
    return found


def _tower() -> OpenVinoImageTower:
    return OpenVinoImageTower(converted(), Runtime.choose("cpu", engine="auto"), budget.cores())


def _tower_alone(tower: OpenVinoImageTower, photographs: list[bytes]) -> float:
    """Return the milliseconds of an image, of batches of 8."""
    pixels = np.stack([prepare(one, tower.preprocessing).pixels for one in photographs[:8]])
    return statistics.median(times(lambda: tower.encode(pixels), 5)) / len(pixels)


def _their_loop(model: CLIP, photographs: list[bytes]) -> float:
    """Return the milliseconds of an image, from its bytes to its vector."""
    transform = image_transform(224)
    batch = (photographs * 2)[:THEIR_BATCH]

    def once() -> None:
        images = [transform(Image.open(io.BytesIO(one))) for one in batch]
        with torch.no_grad():
            features = model.encode_image(torch.stack(images))
            (features / features.norm(dim=-1, keepdim=True)).numpy()

    return seconds_of(once) / len(batch) * 1000


class _Index:
    """Counts what is indexed, by a query that costs next to nothing."""

    def __init__(self, store: MilvusVectorStore, settings: Settings) -> None:
        tower = encoder(settings).models().image_tower
        store.ensure_collection(tower.fingerprint, tower.dimension)
        self._name, self._client = collection_name(tower.fingerprint), store._client()

    def count(self) -> int:
        rows = self._client.query(
            self._name, filter="", output_fields=["count(*)"], consistency_level="Bounded"
        )
        return int(rows[0]["count(*)"])


def _put(stack: Stack, folder: str, photographs: list[bytes], count: int) -> None:
    def put(number: int) -> None:
        # What stands after a JPEG's end is ignored, but makes it another object.
        content = photographs[number % len(photographs)] + number.to_bytes(4, "big")
        stack.put(f"{folder}/{number}.jpg", content)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(count)))


def _indexing(
    stack: Stack, index: _Index, folder: str, photographs: list[bytes], count: int
) -> float:
    """Return the milliseconds of an image, from when all are in the bucket."""
    before = index.count()
    _put(stack, folder, photographs, count)
    begun, already = time.monotonic(), index.count() - before
    pause = threading.Event()
    while index.count() - before < count - LEFT:
        # Seldom: to count costs what is measured.
        pause.wait(0.5)
    took, done = time.monotonic() - begun, index.count() - before - already
    wait_until(lambda: index.count() - before >= count, "all are indexed", 600)
    return took / done * 1000


def _queries(
    rounds: int, stack: Stack, index: _Index, photographs: list[bytes]
) -> Iterator[Comparison]:
    """Ask by texts and by pictures while nothing else is done, and then during ingest."""
    texts = Queries(11)
    pictures = itertools.cycle(photographs)
    kinds: dict[str, Ask] = {
        "a new text": (lambda: stack.search.search(texts()), TEXTS),
        "a picture": (lambda: stack.search.search(image=next(pictures)), PICTURES),
    }
    for kind, (ask, count) in kinds.items():
        quiet, during, middles = [], [], []
        for number in range(rounds):
            quiet.append(percentile(times(ask, count), 0.95))
            before, images = index.count(), COUNTS[LARGE]
            _put(stack, f"{kind}/{number}", photographs, images)
            taken = times(ask, count)
            # All of them fell into the time in which there was work.
            assert index.count() - before < images, "ingest was over before the queries were"
            during.append(percentile(taken, 0.95))
            middles.append(statistics.median(taken))
            wait_until(lambda: index.count() - before >= images, "all are indexed", 600)  # noqa: B023
        yield Comparison(
            f"Search of {kind} during ingest at full speed, p95",
            during,
            quiet,
            "the same without ingest",
            "ms",
            1 / 3,
            {"p50 during ingest": f"{statistics.median(middles):.1f} ms"},
        )
    yield _beside_pictures(rounds, *kinds.values())


def _beside_pictures(rounds: int, texts: Ask, pictures: Ask) -> Comparison:
    """Ask by texts while somebody else asks by pictures, one after another."""
    quiet, beside = [], []
    for _ in range(rounds):
        quiet.append(percentile(times(*texts), 0.95))
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():  # noqa: B023
                pictures[0]()

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            beside.append(percentile(times(*texts), 0.95))
            over.set()
        asked.result()
    return Comparison(
        "Search of a new text beside a caller who searches by pictures, p95",
        beside,
        quiet,
        "the same alone",
        "ms",
    )
