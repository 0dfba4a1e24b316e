"""`cra doctor` on real servers: each is broken in turn, mended, and found well."""

import io
from collections.abc import Iterator

import redis
from pydantic import SecretStr

from cra.services.cli import embedding_checks, part_checks
from cra.services.cli.findings import Facts, Finding, State
from cra.services.cli.probe import event_path
from cra.shared.adapters.object_store import connect
from cra.shared.adapters.release_store import POINTER
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.settings import Settings
from tests.swap import World


def states(found: Iterator[Finding]) -> list[State]:
    """Return states alone."""
    return [one.state for one in found]


def test_the_object_store(releases_s3: Settings) -> None:
    """Wrong keys, a bucket that is not there and a pointer that is torn are each told.

    Break: no `list_objects` in the check, which alone asks for the right to list.
    """
    s3, facts = releases_s3, Facts()
    assert states(part_checks.object_store(s3, facts)) == [State.OK, State.OK]
    assert facts.releases == {"the pointer": ""}
    denied = s3.model_copy(update={"s3_secret_key": SecretStr("wrong")})
    (told,) = part_checks.object_store(denied, Facts())
    assert told.state is State.WRONG
    assert "CRA_S3_SECRET_KEY" in told.mend
    lacking = s3.model_copy(update={"buckets": ("images", "plans")})
    told = list(part_checks.object_store(lacking, Facts()))[1]
    assert (told.state, told.found) == (State.WRONG, "the bucket 'plans' does not exist")
    client = connect(s3)
    client.put_object(s3.releases_bucket, POINTER, io.BytesIO(b"torn"), 4)
    assert states(part_checks.object_store(s3, Facts())) == [State.OK, State.WRONG]
    client.remove_object(s3.releases_bucket, POINTER)


def test_redis(redis_url: str) -> None:
    """One that drops work to make room is wrong, one that forgets at a restart a warning."""
    settings = Settings(redis_url=SecretStr(redis_url))
    assert states(part_checks.broker(settings, Facts())) == [State.OK]
    with redis.Redis.from_url(redis_url) as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
            told = states(part_checks.broker(settings, Facts()))
            assert told == [State.WARNING, State.WRONG, State.OK]
            client.config_set("requirepass", "secret")
            assert states(part_checks.broker(settings, Facts())) == [State.WRONG]
        finally:
            client.config_set("requirepass", "")
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")


def test_milvus(milvus_lite: str, vectors: MilvusVectorStore) -> None:
    """A collection that is not there is a warning, one of another dimension wrong."""
    vectors.ensure_collection("d0c7000000000001", 8)
    settings = Settings(milvus_uri=milvus_lite)
    for tower, dimension, state in [
        ("d0c7000000000001", 8, State.OK),
        ("d0c7000000000001", 16, State.WRONG),
        ("d0c7000000000002", 8, State.WARNING),
        ("", 0, State.OK),
    ]:
        facts = Facts({"embedding": tower} if tower else {}, dimension=dimension)
        assert states(part_checks.milvus(settings, facts)) == [state]


def test_towers_and_releases_are_compared(world: World) -> None:
    """Embedding's replicas, the gateway and the pointer name one tower and one release."""
    facts = Facts()
    here = world.settings
    assert State.WRONG not in states(part_checks.object_store(here, facts))
    assert states(embedding_checks.embedding(here, facts)) == [State.OK, State.OK]
    assert states(part_checks.gateway(here, facts)) == [State.OK]
    assert len(facts.towers) == 3
    assert len(facts.releases) == 4
    assert states(part_checks.agreement(here, facts)) == [State.OK, State.OK]
    facts.releases["the pointer"] = "another-00000000"
    assert states(part_checks.agreement(here, facts)) == [State.OK, State.WRONG]


def test_a_path_without_events_is_told(world: World) -> None:
    """Where no event reaches ingest, the picture that was put is not found; nothing of it stays.

    Break: no `finally` around the removal.
    """
    here = world.settings
    (told,) = event_path(here, Facts(), within=0.5)
    assert told.state is State.WRONG
    assert "its notification" in told.mend
    left = connect(here).list_objects("images", prefix="cra-doctor/", recursive=True)
    assert list(left) == []
