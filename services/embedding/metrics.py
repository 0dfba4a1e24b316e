"""What the embedding service counts beside its calls: lines, batches, towers, releases."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info

from cra.shared.metrics import BUCKETS

QUEUE_ITEMS: Final = Gauge(
    "cra_tower_queue_items", "Texts or images that wait for a tower", ["tower"]
)
QUEUE_SECONDS: Final = Histogram(
    "cra_tower_queue_seconds",
    "Time that a text or image has waited for its tower",
    ["tower"],
    buckets=BUCKETS,
)
ENCODE_SECONDS: Final = Histogram(
    "cra_tower_encode_seconds",
    "Time of a batch in its tower's process, there and back",
    ["tower"],
    buckets=BUCKETS,
)
BATCH_ITEMS: Final = Histogram(
    "cra_tower_batch_items",
    "Texts or images in a batch",
    ["tower"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
REFUSED: Final = Counter(
    "cra_tower_refused_items",
    "Texts or images that were refused: the line is full, or their turn would come too late",
    ["tower", "reason"],
)
DROPPED: Final = Counter(
    "cra_tower_dropped_items",
    "Texts or images that left the line unencoded: too late, or their caller hung up",
    ["tower"],
)
FAILED_BATCHES: Final = Counter(
    "cra_tower_failed_batches", "Batches that could not be encoded", ["tower"]
)
RESTARTS: Final = Counter(
    "cra_tower_restarts", "Processes of a tower that died or hung and were replaced", ["tower"]
)
PREPARE_SECONDS: Final = Histogram(
    "cra_image_prepare_seconds",
    "Time to decode and prepare an encoded image that came with a call",
    buckets=BUCKETS,
)
MODEL: Final = Info(
    "cra_model", "What the towers are: model, image tower, engine, device and precision"
)
RELEASES: Final = Gauge(
    "cra_releases", "Text releases in the bucket and the model's own, by state", ["state"]
)
