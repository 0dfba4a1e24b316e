"""Checks of `cra doctor` that ask another part: stores, broker, services, all of them."""

from collections.abc import Iterator

import urllib3

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.services.cli.findings import Facts, Finding, State, is_local, was_set
from cra.services.cli.ingest import call_ingest
from cra.shared.adapters.object_store import call_s3, connect
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.client import SearchClient
from cra.shared.console import count
from cra.shared.errors import (
    CraError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from cra.shared.settings import Settings

WITHIN = 10.0
"""Seconds for one call."""
QUERY = "门"
NO_OBJECT = "cra-doctor/none"
"""A key that nobody uses."""

_STORE_MEND = (
    "CRA_S3_ENDPOINT names it: is it running, and is the address right from here? The local "
    "stack's log is .data/logs/s3.log"
)
_KEYS_MEND = (
    "CRA_S3_ACCESS_KEY and CRA_S3_SECRET_KEY have to be a user's of that store, and CRA_BUCKETS "
    "buckets that it may use (deploy/s3)"
)
TOKEN_MEND = "CRA_SERVICE_TOKEN has to be the one that the services have"  # noqa: S105


def object_store(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Its answer, our credentials, the buckets, and the pointer to the active release."""
    part = "object store"
    client = connect(settings)
    try:
        for bucket in settings.buckets:
            if not call_s3(lambda bucket=bucket: client.bucket_exists(bucket)):  # type: ignore[misc]
                yield Finding(
                    part,
                    State.WRONG,
                    f"the bucket {bucket!r} does not exist",
                    "make it in the store, or name the right ones in CRA_BUCKETS",
                )
                continue
            listing = client.list_objects(bucket)
            call_s3(lambda listing=listing: next(listing, None))  # type: ignore[misc]
            yield Finding(part, State.OK, f"the bucket {bucket!r} can be listed")
    except PermissionDeniedError as error:
        yield Finding(part, State.WRONG, f"the bucket {bucket!r}: {error.message}", _KEYS_MEND)
        return
    except UnavailableError as error:
        yield Finding(part, State.WRONG, error.message, _STORE_MEND)
        return
    try:
        facts.releases["the pointer"] = S3ReleaseStore(settings).pointer().release
    except NotFoundError:
        yield Finding(part, State.OK, "no text release was ever published")
    except PermissionDeniedError as error:
        yield Finding(
            part,
            State.WRONG,
            f"bucket {settings.releases_bucket!r}: {error.message}",
            "let this user read CRA_RELEASES_BUCKET: deploy/s3/operator.json",
        )
    except FailedPreconditionError as error:
        yield Finding(
            part, State.WRONG, error.message, "then choose again: cra releases activate NAME"
        )
    else:
        yield Finding(part, State.OK, f"the bucket {settings.releases_bucket!r} can be read")


def milvus(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Its answer, and whether it has the collection of the image tower that is served.

    To be asked after the embedding service, which names the tower.
    """
    part = "Milvus"
    if not was_set(settings, "milvus_uri"):
        yield Finding(part, State.SKIPPED, "CRA_MILVUS_URI is not set here; the gateway asks it")
        return
    # Not at the top: other commands need not wait for pymilvus and pandas.
    from cra.shared.adapters.vector_store import MilvusVectorStore  # noqa: PLC0415

    tower = facts.towers.get("embedding", "")
    store = MilvusVectorStore(settings.model_copy(update={"milvus_timeout": WITHIN}))
    try:
        dimension = store.dimension(tower or "none")
    except UnavailableError as error:
        yield Finding(
            part,
            State.WRONG,
            error.message,
            "CRA_MILVUS_URI names it: is it running? It takes half a minute to start; the local "
            "stack's log is .data/logs/milvus.log",
        )
        return
    finally:
        store.close()
    if not tower:
        yield Finding(part, State.OK, f"{settings.milvus_uri} answers")
    elif dimension is None:
        yield Finding(
            part,
            State.WARNING,
            f"it has no collection for the image tower {tower}: nothing was indexed with it yet",
            "put images (`cra put`), fill it from the bucket (`cra reconcile`), or load it from a "
            "file: cra index load",
        )
    elif dimension != facts.dimension:
        yield Finding(
            part,
            State.WRONG,
            f"the collection of {tower} has vectors of {dimension}, and embedding makes them of "
            f"{facts.dimension}",
            "remove that collection; a reconcile fills it anew from the bucket",
        )
    else:
        yield Finding(part, State.OK, f"it has the collection of the image tower {tower}")


def broker(settings: Settings, _facts: Facts) -> Iterator[Finding]:
    """Redis: its answer, and that it drops and forgets nothing."""
    part = "Redis"
    if not was_set(settings, "redis_url"):
        yield Finding(part, State.SKIPPED, "CRA_REDIS_URL is not set here; ingest asks it")
        return
    try:
        import redis  # noqa: PLC0415
    except ModuleNotFoundError as error:
        yield Finding(part, State.SKIPPED, f"{error}: pip install 'cra[ingest]' to ask it")
        return
    url = settings.redis_url.get_secret_value()
    try:
        with redis.Redis.from_url(url, socket_timeout=WITHIN, socket_connect_timeout=5) as client:
            kept = client.info("persistence")["aof_enabled"]
            policy = client.info("memory")["maxmemory_policy"]
    except redis.AuthenticationError as error:
        yield Finding(part, State.WRONG, str(error), "put user and password into CRA_REDIS_URL")
        return
    except redis.RedisError as error:
        yield Finding(
            part, State.WRONG, f"it does not answer: {error}", "CRA_REDIS_URL names it: start it"
        )
        return
    if not kept:
        yield Finding(
            part,
            State.WARNING,
            "it keeps no append-only file: a restart loses the failure list and the line",
            "redis-server --appendonly yes; a reconcile finds again what was in line",
        )
    if policy != "noeviction":
        yield Finding(
            part,
            State.WRONG,
            f"maxmemory-policy is {policy}: it drops work to make room",
            "redis-cli config set maxmemory-policy noeviction, and in its configuration",
        )
    yield Finding(part, State.OK, "it answers")


def gateway(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """A search."""
    part = "gateway"
    try:
        with SearchClient.of(settings, timeout=WITHIN) as client:
            answer = client.search(QUERY, top_k=1)
    except (UnauthenticatedError, PermissionDeniedError) as error:
        yield Finding(
            part,
            State.WRONG,
            error.message,
            "set CRA_API_KEY to a key that it knows: cra keys add NAME makes one",
        )
        return
    except FailedPreconditionError as error:
        yield Finding(part, State.WARNING, error.message, "put images: cra put photos/")
        return
    except CraError as error:
        yield Finding(
            part,
            State.WRONG,
            error.message,
            "CRA_GATEWAY_TARGET names it: is it running? It needs embedding and Milvus",
        )
        return
    facts.towers["gateway"] = answer.image_tower
    facts.releases["gateway"] = answer.text_release
    milliseconds = answer.timing.total.ToNanoseconds() / 1e6
    yield Finding(part, State.OK, f"it answers a search in {milliseconds:.0f} ms")


def index(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """How far ingest is, what it misses, and whether it takes our token."""
    part = "ingest"
    try:
        status = call_ingest(settings, "GetStatus", ingest.GetStatusRequest(refresh=True))
    except CraError as error:
        yield Finding(
            part, State.WRONG, error.message, "CRA_INGEST_TARGET names it: is it running?"
        )
        return
    if status.image_tower:
        facts.towers["ingest"] = status.image_tower
    for problem in status.down:
        yield Finding(part, State.WRONG, f"it says: {problem}", "mend that part first")
    if status.last_reconcile.stopped:
        yield Finding(
            part,
            State.WRONG,
            f"the reconcile stopped: {status.last_reconcile.stopped}",
            "see what is gone from the bucket (cra reconcile --dry-run); if that is right: "
            "cra reconcile --allow-mass-deletion",
        )
    if status.failed:
        yield Finding(
            part,
            State.WARNING,
            f"{count(status.failed, 'object')} cannot be indexed",
            "cra failures lists them with the reasons, cra failures --retry tries again",
        )
    if status.unaccounted:
        # Of a few, the next reconcile takes care; where nothing is indexed, no search finds any.
        lost = not status.indexed and not status.waiting
        yield Finding(
            part,
            State.WRONG if lost else State.WARNING,
            f"unaccounted: {count(status.unaccounted, 'object')}",
            "cra reconcile",
        )
    try:
        call_ingest(
            settings,
            "RetryFailures",  # of none: it changes nothing, and asks for the token
            ingest.RetryFailuresRequest(image_ids=[f"{settings.buckets[0]}/{NO_OBJECT}"]),
        )
    except (UnauthenticatedError, PermissionDeniedError) as error:
        yield Finding(part, State.WRONG, error.message, TOKEN_MEND)
    except CraError as error:
        yield Finding(part, State.WRONG, error.message, "Redis is what it needs for that")
    yield Finding(
        part,
        State.OK,
        f"{count(status.objects, 'object')}: {status.indexed} indexed, {status.waiting} waiting",
    )


def events(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """The receiver of bucket events, where it is on this machine: its answer, and the token."""
    part = "events"
    if not (was_set(settings, "events_port") and is_local(settings.ingest_target)):
        other = "`event path` says whether it works" if facts.probed else "--probe tries the path"
        yield Finding(part, State.SKIPPED, f"the receiver cannot be seen from here; {other}")
        return
    token = settings.event_token.get_secret_value()
    if not token:
        yield Finding(
            part,
            State.WRONG,
            "CRA_EVENT_TOKEN is empty: every event is refused",
            "set the token that the object store sends",
        )
    http = urllib3.PoolManager(timeout=WITHIN, retries=False)
    address = f"http://127.0.0.1:{settings.events_port}/events"
    try:
        answer = http.request(
            "POST", address, body=b'{"Records": []}', headers={"authorization": f"Bearer {token}"}
        )
    except urllib3.exceptions.HTTPError as error:
        yield Finding(
            part,
            State.WRONG,
            f"nobody takes events at {address}: {type(error).__name__}",
            "start ingest; a reconcile finds what was missed meanwhile",
        )
        return
    if answer.status == 401:
        yield Finding(
            part,
            State.WRONG,
            "the receiver does not take CRA_EVENT_TOKEN",
            "give the object store's notification and ingest the same token",
        )
    elif answer.status != 200:
        yield Finding(
            part, State.WRONG, f"the receiver answers {answer.status}", "look at ingest's log"
        )
    else:
        yield Finding(part, State.OK, "the receiver takes events with this token")


def agreement(_settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Whether all parts name one image tower and one active release; to be asked last.

    While an image tower moves, ingest may fill the one that stands by.
    """
    towers = {
        who: tower
        for who, tower in facts.towers.items()
        if who != "ingest" or tower not in facts.stand_by
    }
    releases = {who: name or facts.base_release for who, name in facts.releases.items()}
    for what, named, mend in (
        (
            "image tower",
            towers,
            "give every replica of embedding the same CRA_MODEL, and restart what names the other",
        ),
        (
            "active release",
            {who: name for who, name in releases.items() if name},
            "replicas follow within CRA_RELEASE_POLL_SECONDS; if it lasts, cra releases list says "
            "what keeps them",
        ),
    ):
        if len(set(named.values())) > 1:
            said = ", ".join(f"{who}: {name}" for who, name in sorted(named.items()))
            yield Finding("agreement", State.WRONG, f"more than one {what}: {said}", mend)
        elif len(named) > 1:
            yield Finding("agreement", State.OK, f"one {what}: {next(iter(named.values()))}")
        else:
            yield Finding("agreement", State.SKIPPED, f"fewer than two parts name the {what}")
