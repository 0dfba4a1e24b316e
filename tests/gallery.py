"""The local stack with rendered buildings in its bucket, as `make demo` has them, and metadata."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cra.services.training.buildings.attributes import BUILDING
from cra.services.training.buildings.dataset import Picture, read_dataset, write_dataset
from cra.shared.adapters.release_store import S3ReleaseStore
from deploy.demo.releases import shipped
from tests.servers import ROOT, wait_until
from tests.stack import Stack, local_stack


def metadata_of(picture: Picture) -> dict[str, str]:
    """Return a caption, and what shows of roof and wall in an architect's words."""
    found = {"caption": picture.plain[0] if picture.plain else ""}
    for fact in picture.facts:
        slot, _, value = fact.partition("=")
        if slot in {"roof", "wall"}:
            found[slot] = " ".join(BUILDING[slot].values[value].professional[:1])
    return {name: value for name, value in found.items() if value}


@contextlib.contextmanager
def gallery(folder: Path, milvus: str, count: int) -> Iterator[tuple[Stack, dict[str, Picture]]]:
    """Run a stack with the model that ships and its tuned release; yield it and its pictures.

    Args:
        folder: of its data and pictures.
        milvus: `server` or `lite`.
        count: how many pictures; a third lies in one folder, the rest in another.
    """
    write_dataset(folder / "pictures", "test", count, workers=2)
    pictures = {
        f"{'庭院' if number % 3 else '街景'}/{one.file.name}": one
        for number, one in enumerate(read_dataset(folder / "pictures"))
    }
    model = ROOT / "deploy" / "models" / "miniature"
    with local_stack(folder / "data", model, milvus) as stack:
        S3ReleaseStore(stack.settings).publish(shipped())
        for key, one in pictures.items():
            stack.put(key, one.file.read_bytes(), metadata_of(one))
        wait_until(
            lambda: stack.settled() and stack.status().indexed == count, "all are indexed", 180
        )
        yield stack, pictures
