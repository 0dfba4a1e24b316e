"""Small releases for tests: of no weights but of structure, and of tiny towers."""

import datetime
from pathlib import Path
from typing import Any

from minio import Minio
from minio.deleteobjects import DeleteObject

from cra.shared.releases import CARD, WEIGHTS, Release, TrainingData, write_release

FIELDS: dict[str, Any] = {
    "dimension": 48,
    "normalizer": "identity",
    "config": {},
    "temperature": 0.07,
    "base": "colours-1",
    "created_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "settings": {},
    "data": TrainingData(digest="0" * 16, images=2, pairs=2, groups=1),
    "metrics": {},
}


def make_release(
    parent: Path,
    image_tower: str,
    label: str = "tuned",
    weights: bytes = b"weights",
    **changes: Any,
) -> Release:
    """Write a release of whatever bytes; towers of no weights load it."""
    fields = {**FIELDS, "image_tower": image_tower, "label": label, **changes}
    return write_release(parent, {WEIGHTS: weights, CARD: b"# card\n"}, **fields)


def make_tower_release(
    parent: Path, checkpoint: Path, text_checkpoint: Path, label: str = "tuned"
) -> Release:
    """Write a release for one tiny checkpoint's image tower, with the text tower of another."""
    from cra.shared.model.checkpoints import find_model, load_clip
    from cra.shared.model.image_tower import image_fingerprint
    from cra.shared.model.pixels import Preprocessing
    from cra.shared.model.text_tower import TextModel, encode_weights, text_config

    source = find_model(str(checkpoint))
    fingerprint = image_fingerprint(
        load_clip(source), Preprocessing(source.config["image_resolution"])
    )
    weights = encode_weights(TextModel.from_clip(load_clip(find_model(str(text_checkpoint)))))
    return make_release(
        parent,
        fingerprint,
        label,
        weights,
        dimension=source.config["embed_dim"],
        config=text_config(source.config),
        base=source.name,
    )


def empty(client: Minio, bucket: str) -> None:
    """Remove a bucket's objects."""
    found = [DeleteObject(one.object_name) for one in client.list_objects(bucket, recursive=True)]
    assert not list(client.remove_objects(bucket, found))
