"""What is checked before a release is activated, above all one of another image tower."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import Final

from rich.progress import Progress

from cra.services.cli.comparison import Asked, Compared, compare, summarise
from cra.shared.client import SearchClient
from cra.shared.console import err
from cra.shared.errors import (
    CraError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from cra.shared.settings import Settings

ASKED_AT_ONCE: Final = 8
QUERY: Final = "门"
ASK_AGAIN: Final = 0.1
"""Seconds between two questions to the gateway."""


@dataclass(frozen=True)
class Filled:
    """Images in the collections of two image towers."""

    before: int
    after: int

    def check(self, least: float) -> None:
        """Check that the new one holds enough.

        Raises:
            FailedPreconditionError: it does not.
        """
        if self.after < least * self.before:
            share = self.after / self.before
            raise FailedPreconditionError(
                f"the new image tower's collection holds {self.after} images, the old one's "
                f"{self.before}: {share:.1%}, and at least {least:.1%} are asked for (--filled); "
                "wait until its ingest is done, see `cra status`"
            )


@dataclass(frozen=True)
class Recall:
    """Share of queries that find one of their images among the first k, by two releases."""

    before: float
    after: float
    k: int
    queries: int

    def __str__(self) -> str:
        return (
            f"recall@{self.k} of {self.queries} queries: {self.before:.1%} before, "
            f"{self.after:.1%} after"
        )

    def check(self, may_lose: float) -> None:
        """Check that the new one does not find much less.

        Raises:
            FailedPreconditionError: it does.
        """
        if self.before - self.after > may_lose + 1e-9:
            raise FailedPreconditionError(
                f"{self}: it would fall by more than {may_lose:.1%} (--may-lose)"
            )


def count_images(settings: Settings, old: str, new: str) -> Filled:
    """Count what the collections of two image towers hold.

    Raises:
        UnavailableError: Milvus does not answer.
    """
    # Not at the top: other commands need not wait for pymilvus and pandas.
    from cra.shared.adapters.vector_store import MilvusVectorStore  # noqa: PLC0415

    store = MilvusVectorStore(settings)

    def count(image_tower: str) -> int:
        try:
            return store.count(image_tower)
        except FailedPreconditionError:  # nothing was ever indexed with it
            return 0

    try:
        return Filled(count(old), count(new))
    finally:
        store.close()


def check_gateway(settings: Settings, name: str, image_tower: str) -> None:
    """Check that the gateway can answer with a release, from the image tower that is its own.

    Raises:
        FailedPreconditionError: it cannot: it does not know that image tower.
    """
    try:
        with SearchClient.of(settings, timeout=30) as client:
            answered = client.search(QUERY, top_k=1, text_release=name).image_tower
    except (FailedPreconditionError, NotFoundError) as error:
        raise FailedPreconditionError(
            f"the gateway does not answer with {name}: {error.message} (does it have "
            "CRA_OTHER_EMBEDDING_TARGET?)"
        ) from error
    if answered != image_tower:
        raise FailedPreconditionError(
            f"the gateway answers {name} from the image tower {answered}, not {image_tower}"
        )


def wait_gateway(settings: Settings, image_tower: str, seconds: float) -> None:
    """Return when the gateway answers from an image tower.

    Raises:
        UnavailableError: it does not after so many seconds.
    """
    end, pause = monotonic() + seconds, Event()
    with SearchClient.of(settings, timeout=seconds) as client:
        while True:
            try:
                answered = client.search(QUERY, top_k=1).image_tower
                problem = f"it answers from {answered}"
            except CraError as error:
                answered, problem = "", error.message
            if answered == image_tower:
                return
            if monotonic() > end:
                raise UnavailableError(
                    f"{image_tower} is chosen, and the gateway does not answer from it after "
                    f"{seconds:g} s: {problem}"
                )
            pause.wait(ASK_AGAIN)


def ask_both(
    settings: Settings, asked: Sequence[Asked], names: Sequence[str], k: int, *, quiet: bool
) -> list[Compared]:
    """Ask the live index with two releases.

    Args:
        settings: where the gateway is.
        asked: the queries.
        names: of the releases; an empty one is what answers now.
        k: hits that are looked at.
        quiet: show no progress.
    """
    with SearchClient.of(settings, timeout=30) as client:

        def ask(query: Asked) -> Compared:
            before, after = (
                [hit.image_id for hit in client.search(query.text, top_k=k, text_release=name).hits]
                for name in names
            )
            return compare(query, before, after, k)

        with (
            Progress(console=err, disable=quiet, transient=True) as bar,
            ThreadPoolExecutor(ASKED_AT_ONCE) as pool,
        ):
            return list(bar.track(pool.map(ask, asked), total=len(asked), description="asked"))


def measure_recall(
    settings: Settings, asked: Sequence[Asked], name: str, k: int, *, quiet: bool
) -> Recall:
    """Ask the live index with what answers now and with a release.

    Raises:
        InvalidArgumentError: no query says which images are right.
    """
    summary = summarise(ask_both(settings, asked, ["", name], k, quiet=quiet)) if asked else None
    if summary is None or summary.recall is None:
        raise InvalidArgumentError("queries", "none has image_ids, so that there is no recall")
    return Recall(*summary.recall, k, summary.judged)
