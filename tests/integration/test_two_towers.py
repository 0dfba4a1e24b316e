"""Searches while an image tower moves: two encoders, two collections; only the models are fakes."""

import contextlib
import dataclasses
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cra.search.v1 import search_pb2 as pb
from cra.services.gateway import towers as towers_module
from cra.services.gateway.paging import PageTokens, Position
from cra.services.gateway.query import parse
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import Ranking, SearchEngine
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Version
from cra.shared.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from cra.shared.model.pixels import prepare
from cra.shared.relevance import LEAST
from cra.shared.settings import Settings
from tests.fakes import COLOURS, picture, vector_of
from tests.servers import wait_until
from tests.towers import Tower, choose

IMAGES = LEAST + 8


@dataclasses.dataclass
class Moving:
    """A gateway's engine, and what it stands on."""

    engine: SearchEngine
    vectors: MilvusVectorStore
    old: Tower
    new: Tower

    def search(self, **fields: Any) -> Ranking:
        """Search, and check that every hit is of the image tower that the answer names."""
        ranking = self.engine.search(parse(pb.SearchRequest(**fields)))
        for hit in ranking.hits:
            assert hit.image.record.ref.bucket == ranking.image_tower
        return ranking

    def settle(self, tower: Tower) -> None:
        """Wait until an image tower answers."""
        wait_until(lambda: self.search(text="红").image_tower == tower.fingerprint, "it answers", 5)


def fill(vectors: MilvusVectorStore, tower: Tower, images: int) -> None:
    """Index pictures, each in a bucket that is named by the image tower."""
    info = tower.models().image_tower
    vectors.ensure_collection(tower.fingerprint, info.dimension)
    rng = np.random.default_rng(0)
    made = []
    for number, colour in enumerate([*COLOURS.values(), *rng.integers(0, 256, (images, 3))]):
        red, green, blue = (int(part) for part in colour)
        pixels = prepare(picture((red, green, blue)), tower.preprocessing).pixels
        ref = ObjectRef(tower.fingerprint, f"{number:03}.png")
        record = ImageRecord(ref, Version("etag", 1), "0" * 16, {}, 64, 48, 1.0)
        made.append(IndexedImage(record, tower.vector(vector_of(pixels))))
    vectors.upsert(tower.fingerprint, made)
    wait_until(
        lambda: (
            len(vectors.search(tower.fingerprint, made[0].vector, 999, SearchFilter())) == len(made)
        ),
        "all are searchable",
    )


@pytest.fixture
def moving(
    vectors: MilvusVectorStore, s3: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Moving]:
    """The old image tower answers; both are filled."""
    monkeypatch.setattr(towers_module, "MODELS_LAST", 0.0)
    # Own text towers of one name: nothing may be taken for the other's by its name.
    old, new = (Tower(uuid.uuid4().hex[:16], turn) for turn in (0, 7))
    for tower in (old, new):
        fill(vectors, tower, IMAGES)
    choose(1, old, new)
    engine = SearchEngine(old, vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(100), new)
    yield Moving(engine, vectors, old, new)
    for tower in (old, new):
        tower.hangs.set()
    engine.close()


def test_texts_pictures_and_ids_are_answered_by_one_image_tower(moving: Moving) -> None:
    """Whatever is asked by, vectors are of the image tower whose collection is searched.

    And what is remembered of a text is not taken for the other image tower's, though their text
    towers have one name.

    Break: leave the image tower out of the keys of `QueryCache`.
    """
    for version, tower in enumerate((moving.old, moving.new, moving.old), start=1):
        choose(version, tower, moving.old, moving.new)
        moving.settle(tower)
        for asked in (
            {"text": "红"},
            {"image": picture(COLOURS["红"])},
            {"image_id": f"{tower.fingerprint}/000.png", "include_query_images": True},
        ):
            best = moving.search(**asked).hits[0]
            assert best.image.record.ref.key == "000.png"
            assert best.image.score == pytest.approx(1, abs=1e-3)


def test_a_page_goes_on_where_it_began(moving: Moving) -> None:
    """Pages of one query are of one image tower, whatever is chosen meanwhile.

    Break: read the token for the current image tower alone in `SearchEngine._begin`.
    """
    whole = moving.search(text="红", top_k=20)
    first = moving.search(text="红", top_k=10)
    choose(2, moving.new, moving.old)
    moving.settle(moving.new)
    for _ in range(2):  # a token may be shown twice
        second = moving.search(text="红", top_k=10, page_token=first.next_page_token)
        assert second.image_tower == moving.old.fingerprint
        assert [hit.image for hit in second.hits] == [hit.image for hit in whole.hits[10:]]
    moving.old.down = "the old one is down"
    with pytest.raises(UnavailableError, match="the old one is down"):
        moving.search(text="红", top_k=10, page_token=first.next_page_token)


def test_a_page_of_an_image_tower_that_was_never_seen(moving: Moving, s3: Settings) -> None:
    """A gateway that started while its image tower is down cannot tell that a token does not fit.

    Break: leave out `learn` in `SearchEngine._begin`.
    """
    token = moving.search(text="红", top_k=10).next_page_token
    choose(2, moving.new, moving.old)
    moving.old.down = "the old one is down"
    after = SearchEngine(
        moving.old, moving.vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(0), moving.new
    )
    query = parse(pb.SearchRequest(text="红", top_k=10, page_token=token))
    with contextlib.closing(after):
        with pytest.raises(UnavailableError, match="the old one is down"):
            after.search(query)
        moving.old.down = ""
        assert after.search(query).image_tower == moving.old.fingerprint


def test_a_page_of_an_image_tower_that_is_learnt_meanwhile(moving: Moving, s3: Settings) -> None:
    """A token fits an image tower that became known after the known ones were tried.

    Break: read the token again only if `learn` found one that was unknown.
    """
    token = moving.search(text="红", top_k=10).next_page_token
    choose(2, moving.new, moving.old)
    moving.old.down = "the old one is down"

    class Meanwhile(PageTokens):
        def read(self, *args: Any) -> tuple[str, Position]:
            try:
                return super().read(*args)
            finally:
                moving.old.down = ""
                after._towers.learn()  # as what runs beside does

    after = SearchEngine(
        moving.old, moving.vectors, S3ObjectStore(s3), Meanwhile("key"), QueryCache(0), moving.new
    )
    query = parse(pb.SearchRequest(text="红", top_k=10, page_token=token))
    with contextlib.closing(after):
        assert after.search(query).image_tower == moving.old.fingerprint


def test_a_picture_is_not_searched_for_in_an_index_that_may_be_the_wrong_one(
    moving: Moving,
) -> None:
    """A release whose image tower nobody has read yet answers nothing, not even without text.

    Break: leave out the check of `image_tower` in `SearchEngine._check_release`.
    """
    moving.old.unread = ["tuned-55555555"]
    moving.search(text="红")
    with pytest.raises(UnavailableError, match="which image tower tuned-55555555 is of"):
        moving.search(image=picture(COLOURS["红"]), text_release="tuned-55555555")


def test_a_page_of_an_image_tower_that_is_gone(moving: Moving, s3: Settings) -> None:
    """With no encoder of its image tower any more, a token does not fit, as before."""
    token = moving.search(text="红", top_k=10).next_page_token
    after = SearchEngine(
        moving.new, moving.vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(0)
    )
    with pytest.raises(InvalidArgumentError, match="page_token"):
        after.search(parse(pb.SearchRequest(text="红", top_k=10, page_token=token)))


def test_a_named_release_is_answered_from_its_own_collection(moving: Moving) -> None:
    """So that both can be asked by name, and compared, before anything is chosen.

    Break: take `self._towers.current()` in `SearchEngine._begin`.
    """
    moving.new.has = ["tuned-11111111", "colours-1"]
    for asked in ({"text": "绿"}, {"image": picture(COLOURS["绿"])}):
        answer = moving.search(**asked, text_release="tuned-11111111")
        assert answer.image_tower == moving.new.fingerprint
        assert answer.text_release == "tuned-11111111"
        assert answer.hits[0].image.record.ref.key == "001.png"
        assert moving.search(**asked).image_tower == moving.old.fingerprint


def test_relevance_is_known_on_both(moving: Moving) -> None:
    """Right after the change a least relevance can be asked for, by callers with a scope too.

    Break: do not call `Towers.beside` in `SearchEngine.check`.
    """
    scope = (moving.old.fingerprint, moving.new.fingerprint)
    asked = parse(pb.SearchRequest(text="红", min_relevance=0.0), scope)
    plain = parse(pb.SearchRequest(text="红", min_relevance=0.0))
    with pytest.raises(UnavailableError, match="sampled"):
        moving.engine.search(asked)

    def sampled() -> bool:
        moving.engine.check()
        backgrounds = moving.engine._backgrounds
        return all(backgrounds.of(tower, scope) is not None for tower in scope)

    wait_until(sampled, "both are sampled")
    assert moving.engine.search(asked).image_tower == moving.old.fingerprint
    choose(2, moving.new, moving.old)
    moving.settle(moving.new)
    for query in (asked, plain):
        answer = moving.engine.search(query)
        assert answer.image_tower == moving.new.fingerprint
        assert answer.hits


@pytest.mark.parametrize("how", ["down", "hangs"])
def test_a_gateway_is_ready_without_the_other_one(moving: Moving, how: str) -> None:
    """The image tower that does not answer takes nobody's readiness away; the one that does, does.

    Break: call `_warm` for both in `SearchEngine.check`.
    """
    moving.engine.check()
    if how == "down":
        moving.new.down = "the new one is down"
    else:
        moving.new.hangs.clear()
    began = time.monotonic()
    for _ in range(3):
        moving.engine.check()
        assert moving.search(text="红").hits
    assert time.monotonic() - began < 5
    moving.old.down = "the old one is down"
    with pytest.raises(UnavailableError, match="the old one is down"):
        moving.engine.check()


def test_an_empty_collection_is_searched_as_it_is(moving: Moving) -> None:
    """Who is moved to an image tower without images finds nothing, and never the other's."""
    empty = Tower(uuid.uuid4().hex[:16])
    choose(5, empty, moving.old)
    engine = SearchEngine(
        moving.old,
        moving.vectors,
        S3ObjectStore(Settings()),
        PageTokens("key"),
        QueryCache(0),
        empty,
    )
    try:
        with pytest.raises(FailedPreconditionError, match="no collection"):
            engine.search(parse(pb.SearchRequest(text="红")))
        engine.check()
        assert engine.search(parse(pb.SearchRequest(text="红"))).hits == []
    finally:
        engine.close()


def test_a_change_under_a_steady_stream(moving: Moving) -> None:
    """No search fails and none is of two image towers, whatever is chosen how often."""
    stop, failures = threading.Event(), []
    seen: set[str] = set()

    def ask(number: int) -> None:
        kinds: list[dict[str, Any]] = [{"text": "红"}, {"image": picture(COLOURS["蓝"])}]
        asked = kinds[number % 2]
        while not stop.is_set():
            try:
                answer = moving.search(**asked)
                seen.add(answer.image_tower)
                if answer.hits[0].image.score < 0.99:
                    failures.append(f"{answer.hits[0].image.score}")
            except Exception as error:  # each kind of failure counts
                failures.append(repr(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 12):
        tower, other = [(moving.new, moving.old), (moving.old, moving.new)][version % 2]
        choose(version, tower)  # one of them sees it first
        moving.settle(tower)
        choose(version, tower, other)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert seen == {moving.old.fingerprint, moving.new.fingerprint}
