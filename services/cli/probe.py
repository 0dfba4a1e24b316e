"""`cra doctor --probe`: a small picture is put, found, removed, and found no more."""

import io
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

from PIL import Image

from cra.services.cli.findings import Facts, Finding, State
from cra.shared.adapters.object_store import call_s3, connect
from cra.shared.client import SearchClient
from cra.shared.errors import CraError, NotFoundError
from cra.shared.settings import Settings

FOUND_WITHIN: Final = 30.0
"""Seconds; events take about one, and more where there is a line."""
ASK_AGAIN: Final = 0.25
"""Seconds."""


def event_path(
    settings: Settings, _facts: Facts, within: float = FOUND_WITHIN
) -> Iterator[Finding]:
    """The whole path from the bucket's event to an answer of the gateway, and back.

    Args:
        settings: of the object store, whose first bucket takes the picture, and of the gateway.
        within: seconds for the picture to be found, and again for it to be gone.
    """
    part = "event path"
    bucket, key = settings.buckets[0], f"cra-doctor/{uuid.uuid4().hex}.png"
    client = connect(settings)
    picture = _picture()
    try:
        call_s3(lambda: client.put_object(bucket, key, io.BytesIO(picture), len(picture)))
    except CraError as error:
        yield Finding(part, State.WRONG, error.message, "see `object store`")
        return
    began = time.monotonic()
    with SearchClient.of(settings, timeout=10) as search:
        try:
            found = _becomes(True, search, f"{bucket}/{key}", within)
            took = time.monotonic() - began
        finally:
            call_s3(lambda: client.remove_object(bucket, key))
        if not found:
            yield Finding(
                part,
                State.WRONG,
                f"a picture that was put is not found after {within:g} s",
                "is there a line (cra status)? If not, the store sends no events: its notification "
                "needs the receiver's address and CRA_EVENT_TOKEN; a reconcile finds it later",
            )
            return
        began = time.monotonic()
        if not _becomes(False, search, f"{bucket}/{key}", within):
            yield Finding(
                part,
                State.WRONG,
                f"a picture that was removed is still found after {within:g} s",
                "the store has to send events of removal, too; a reconcile removes it later",
            )
            return
        gone = time.monotonic() - began
    yield Finding(
        part, State.OK, f"a picture was found {took:.1f} s after it was put, and gone {gone:.1f} s "
        "after it was removed"
    )  # fmt: skip


def _becomes(there: bool, search: SearchClient, image_id: str, within: float) -> bool:
    """Wait until an image is indexed, or is not; False if that does not come."""

    def indexed() -> bool:
        try:
            search.search(image_id=image_id, top_k=1)
        except NotFoundError:
            return False
        return True

    return _wait(lambda: indexed() is there, within)


def _wait(condition: Callable[[], bool], within: float) -> bool:
    pause, end = threading.Event(), time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(ASK_AGAIN)
    return True


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
