"""Text towers swapped under load, on two embedding services, a gateway and an index."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cra.search.v1 import search_pb2 as pb
from cra.shared.client import SearchClient
from cra.shared.errors import FailedPreconditionError, NotFoundError
from cra.shared.ports import ReleaseState
from tests import servers
from tests.checkpoints import make_checkpoint
from tests.releases import make_tower_release
from tests.swap import EFFECTIVE_WITHIN, IMAGES, QUERIES, World, await_change, embed, state_of


@contextlib.contextmanager
def stream_of_queries(world: World, threads: int = 4) -> Iterator[list[Counter[str]]]:
    """Search all the time; yield what has answered so far, for each thread. A failure is raised."""
    stop = threading.Event()
    seen: list[Counter[str]] = [Counter() for _ in range(threads)]

    def ask(number: int) -> None:
        with SearchClient(world.gateway, timeout=20) as client:
            while not stop.is_set():
                query = (number + seen[number].total()) % len(QUERIES)
                response = client.search(QUERIES[query], top_k=IMAGES)
                seen[number][world.check(query, response)] += 1

    with ThreadPoolExecutor(threads) as pool:
        running: list[Future[None]] = [pool.submit(ask, number) for number in range(threads)]
        try:
            yield seen
        finally:
            stop.set()
        for one in running:
            one.result(30)


def test_answers_tell_the_releases_apart(world: World) -> None:
    """The releases rank the same images differently: the tests beside this one can fail."""
    for one in world.expected:
        for other in world.expected:
            if one != other:
                difference = np.abs(world.expected[one] - world.expected[other])
                assert (difference.max(axis=1) > 0.01).all()


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_swaps_under_a_steady_stream(world: World, rounds: int) -> None:
    """Activate and roll back: no call fails, each answer is of the release it names, in time.

    And no image is embedded again: the rows of the index are the same, to the bit.
    """
    before = world.vectors.fetch(world.fingerprint, world.refs)
    images_embedded = world.calls("EmbedImages")
    took = []
    with stream_of_queries(world) as seen:
        for turn in range(rounds):
            chosen = world.releases[turn % 2].name
            world.store.activate(chosen, world.fingerprint)
            took.append(await_change(world, chosen))
            world.store.rollback()
            took.append(await_change(world, world.base))
    total = sum(seen, Counter[str]())
    assert set(total) == {world.base, *(world.releases[n % 2].name for n in range(rounds))}
    assert all(thread.total() > rounds for thread in seen)
    assert max(took) < EFFECTIVE_WITHIN
    assert world.calls("EmbedTexts") > 0
    assert world.calls("EmbedImages") == images_embedded
    after = world.vectors.fetch(world.fingerprint, world.refs)
    assert len(before) == len(after) == IMAGES
    known = {image.record.ref: image for image in before}
    for image in after:
        assert image.record == known[image.record.ref].record
        np.testing.assert_array_equal(image.vector, known[image.record.ref].vector)


def test_image_vectors_do_not_depend_on_the_release(world: World) -> None:
    """A release is no part of the image tower: a picture's vector is the same to the bit."""
    before = embed(world.replicas[0], world.pictures)
    world.store.activate(world.releases[0].name, world.fingerprint)
    await_change(world, world.releases[0].name)
    for replica in world.replicas:
        np.testing.assert_array_equal(embed(replica, world.pictures), before)
    world.store.rollback()
    await_change(world, world.base)


def test_any_release_answers_by_its_name(world: World) -> None:
    """Whatever is active, a query that names a release is answered by it, page after page."""
    with SearchClient(world.gateway, timeout=20) as client:
        for name in world.expected:
            for query, text in enumerate(QUERIES):
                response = client.search(text, top_k=IMAGES, text_release=name)
                assert world.check(query, response) == name
        chosen = world.releases[1].name
        request = pb.SearchRequest(text=QUERIES[0], top_k=5, text_release=chosen)
        pages = list(client.pages(request))
        assert {page.text_release for page in pages} == {chosen}
        joined = [hit.image_id for page in pages for hit in page.hits]
        assert len(set(joined)) == len(joined) == IMAGES
        by_image = client.search(image=world.pictures[0], text_release=chosen)
        assert by_image.text_release == chosen


def test_a_page_keeps_the_release_of_the_first(world: World) -> None:
    """Pages of one query are of one release, whatever becomes active between them."""
    with SearchClient(world.gateway, timeout=20) as client:
        first = client.search(QUERIES[1], top_k=5)
        assert first.text_release == world.base
        world.store.activate(world.releases[0].name, world.fingerprint)
        await_change(world, world.releases[0].name)
        second = client.search(QUERIES[1], top_k=5, page_token=first.next_page_token)
        assert second.text_release == world.base
        world.store.rollback()
        await_change(world, world.base)


def test_unknown_and_foreign_releases(world: World, tmp_path: Path) -> None:
    """Unknown: NOT_FOUND; of another image tower: FAILED_PRECONDITION; unnamed queries go on."""
    other = make_checkpoint(tmp_path / "other", seed=8)
    foreign = world.store.publish(make_tower_release(tmp_path, other, other, "foreign").folder)
    with SearchClient(world.gateway, timeout=20) as client:
        for query in ({"text": "塔"}, {"image": world.pictures[0]}):
            with pytest.raises(NotFoundError, match="none-00000000"):
                client.search(**query, text_release="none-00000000")
        with pytest.raises(FailedPreconditionError, match=foreign.manifest.image_tower):
            client.search("塔", text_release=foreign.name)
        servers.wait_until(
            lambda: all(
                state_of(replica, foreign.name) is ReleaseState.REFUSED
                for replica in world.replicas
            ),
            "both replicas refuse it",
        )
        with pytest.raises(FailedPreconditionError, match=foreign.manifest.image_tower):
            client.search(image=world.pictures[0], text_release=foreign.name)
        assert client.search("塔").text_release == world.base
    assert world.active() == {world.base}
