"""Which release a search is answered by, where encoders disagree; only the model is a fake."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cra.search.v1 import search_pb2 as pb
from cra.services.gateway import towers
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query import parse
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import Ranking, SearchEngine
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Version
from cra.shared.errors import FailedPreconditionError, NotFoundError, UnavailableError
from cra.shared.model.pixels import prepare
from cra.shared.ports import EncodedTexts, Models, ReleaseState, TextReleaseInfo
from cra.shared.settings import Settings
from tests.fakes import COLOURS, ColourEncoder, picture, vector_of
from tests.servers import wait_until


class Replica(ColourEncoder):
    """Says that some releases are there, and has others.

    Attributes:
        says: what ListModels says, the active one first.
        has: what answers, the active one first.
        asked: releases that texts were to be encoded with.
        lies: the release that answers name, whatever was asked for.
    """

    def __init__(self) -> None:
        super().__init__(uuid.uuid4().hex[:16])
        self.says = self.has = ["tuned-00000001", "colours-1"]
        self.states: dict[str, ReleaseState] = {}
        self.asked: list[str] = []
        self.looks = 0
        self.lies = ""

    def models(self) -> Models:
        """See `ports.Encoder`."""
        self.looks += 1
        releases = [
            TextReleaseInfo(
                name,
                number == 0,
                "identity",
                self.fingerprint,
                self.states.get(name, ReleaseState.LOADED),
                "it was made for another image tower" if name in self.states else "",
            )
            for number, name in enumerate(self.says)
        ]
        return replace(super().models(), releases=releases)

    def embed_texts(
        self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        """See `ports.Encoder`."""
        self.asked.append(text_release)
        if text_release and text_release not in self.has:
            raise NotFoundError(f"there is no text release {text_release!r}")
        answer = super().embed_texts(texts, "", timeout)
        return replace(answer, text_release=self.lies or text_release or self.has[0])


@pytest.fixture
def replica() -> Replica:
    """The model."""
    return Replica()


@pytest.fixture
def search(replica: Replica, vectors: MilvusVectorStore, s3: Settings) -> Callable[..., Ranking]:
    """A search engine over three pictures."""
    tower = replica.models().image_tower
    vectors.ensure_collection(tower.fingerprint, tower.dimension)
    images = [
        IndexedImage(
            ImageRecord(
                ObjectRef("images", f"{name}.png"), Version("etag", 1), "0" * 16, {}, 64, 48, 1.0
            ),
            vector_of(prepare(picture(COLOURS[name]), replica.preprocessing).pixels),
        )
        for name in "红绿蓝"
    ]
    vectors.upsert(tower.fingerprint, images)
    wait_until(
        lambda: len(vectors.search(tower.fingerprint, images[0].vector, 9, SearchFilter())) == 3,
        "all are searchable",
    )
    engine = SearchEngine(replica, vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(0))
    return lambda **fields: engine.search(parse(pb.SearchRequest(**fields)))


def test_the_active_release_is_asked_for(search: Callable[..., Ranking], replica: Replica) -> None:
    """A query that names none is encoded with the active one, resolved once and passed on."""
    ranking = search(text="红")
    assert ranking.text_release == "tuned-00000001"
    assert ranking.hits[0].image.record.ref.key == "红.png"
    assert replica.asked == ["tuned-00000001"]


def test_what_is_served_is_remembered_for_a_second(
    search: Callable[..., Ranking], replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every query asks what is active; after a second, one does and finds the new one."""
    assert towers.MODELS_LAST <= 1.0
    looks = replica.looks
    for _ in range(5):
        search(text="红")
    assert replica.looks <= looks + 1
    replica.says = ["colours-1", "tuned-00000001"]
    monkeypatch.setattr(towers, "MODELS_LAST", 0.0)
    assert search(text="红").text_release == "colours-1"


def test_a_replica_that_is_ahead_or_behind(
    search: Callable[..., Ranking], replica: Replica
) -> None:
    """What was active a second ago and is gone where it is asked for fails no unnamed query."""
    search(text="红")
    replica.has = ["colours-1"]
    assert search(text="红").text_release == "colours-1"
    assert replica.asked[-2:] == ["tuned-00000001", ""]


def test_a_release_that_is_named_is_never_replaced(
    search: Callable[..., Ranking], replica: Replica
) -> None:
    """A named release is asked for as it is, and its absence is the caller's to know."""
    assert search(text="红", text_release="colours-1").text_release == "colours-1"
    replica.has = ["colours-1", "new-00000002"]
    # ListModels does not know it yet; where it is answered, it is known.
    assert search(text="红", text_release="new-00000002").text_release == "new-00000002"
    with pytest.raises(NotFoundError, match="tuned-00000001"):
        search(text="红", text_release="tuned-00000001")


def test_a_page_whose_release_is_gone(search: Callable[..., Ranking], replica: Replica) -> None:
    """The next page is of the release of the first, or NOT_FOUND naming it."""
    first = search(text="红", top_k=1)
    replica.says = ["colours-1", "tuned-00000001"]
    second = search(text="红", top_k=1, page_token=first.next_page_token)
    assert (second.text_release, second.hits[0].rank) == ("tuned-00000001", 2)
    replica.has = ["colours-1"]
    with pytest.raises(NotFoundError, match="tuned-00000001"):
        search(text="红", top_k=1, page_token=first.next_page_token)


def test_an_answer_of_another_release_is_no_answer(
    search: Callable[..., Ranking], replica: Replica
) -> None:
    """Vectors of a release that was not asked for are never ranked by."""
    replica.lies = "colours-1"
    with pytest.raises(UnavailableError, match="colours-1"):
        search(text="红")


def test_pictures_need_no_release_but_a_real_one(
    search: Callable[..., Ranking], replica: Replica
) -> None:
    """A query without text is answered for the release that it names, which has to be there."""
    image = picture(COLOURS["绿"])
    assert search(image=image).text_release == "tuned-00000001"
    assert search(image=image, text_release="colours-1").text_release == "colours-1"
    with pytest.raises(NotFoundError, match="none-00000000"):
        search(image=image, text_release="none-00000000")
    replica.says = [*replica.says, "foreign-00000003"]
    replica.states = {"foreign-00000003": ReleaseState.REFUSED}
    with pytest.raises(FailedPreconditionError, match="another image tower"):
        search(image=image, text_release="foreign-00000003")
    assert replica.asked == []
