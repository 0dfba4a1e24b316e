"""Search on Milvus Lite, through the gateway's real gRPC server; only the model is a fake."""

import contextlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.background import Backgrounds, Drawn
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.shared import rpc
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.client import SearchClient
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Version
from cra.shared.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from cra.shared.model.pixels import prepare
from cra.shared.ports import EncodedTexts
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.fakes import COLOURS, ColourEncoder, picture, vector_of
from tests.hostile import HOSTILE
from tests.servers import free_ports, wait_until

COUNT = 60


def shade(number: int) -> tuple[int, int, int]:
    """Return a colour: three neighbours share one, so that scores tie."""
    return (200, number // 3 * 4, 30)


@pytest.fixture(scope="module")
def encoder() -> ColourEncoder:
    """The model."""
    return ColourEncoder(uuid.uuid4().hex[:16])


@pytest.fixture(scope="module")
def store(milvus_lite: str, encoder: ColourEncoder) -> Iterator[MilvusVectorStore]:
    """An index of pictures of colours."""
    with contextlib.closing(MilvusVectorStore(Settings(milvus_uri=milvus_lite))) as vectors:
        info = encoder.models().image_tower
        vectors.ensure_collection(info.fingerprint, info.dimension)
        named = {f"{name}.png": colour for name, colour in COLOURS.items()}
        shades = {f"shades/{n:02}.png": shade(n) for n in range(COUNT)}
        images = []
        for number, (key, colour) in enumerate((named | shades).items()):
            pixels = prepare(picture(colour), encoder.preprocessing).pixels
            record = ImageRecord(
                ObjectRef("images", key),
                Version("etag", 1),
                "0" * 16,
                {"parity": "even" if number % 2 == 0 else "odd"},
                64,
                48,
                1000.0 + number,
            )
            images.append(IndexedImage(record, vector_of(pixels)))
        vectors.upsert(info.fingerprint, images)
        wait_until(
            lambda: (
                len(vectors.search(info.fingerprint, images[0].vector, 100, SearchFilter()))
                == len(images)
            ),
            "all are searchable",
        )
        yield vectors


@contextlib.contextmanager
def gateway(
    store: MilvusVectorStore, encoder: ColourEncoder, s3: Settings, max_calls: int = 16
) -> Iterator[SearchClient]:
    """Run a gateway; yield a client of it."""
    with (
        serving(store, encoder, s3, max_calls) as target,
        SearchClient(target, timeout=20) as client,
    ):
        yield client


@contextlib.contextmanager
def serving(
    store: MilvusVectorStore, encoder: ColourEncoder, s3: Settings, max_calls: int = 16
) -> Iterator[str]:
    """Run a gateway; yield its target."""
    engine = SearchEngine(encoder, store, S3ObjectStore(s3), PageTokens("key"), QueryCache(100))
    servicer = SearchServicer(engine, max_calls)
    server = Server(
        Settings(max_calls=max_calls, drain_seconds=5),
        "cra.search.v1.SearchService",
        0,
        lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
        engine.check,
    )
    server.start()
    yield f"dns:///127.0.0.1:{server.port}"
    server.stop()
    servicer.close()


@pytest.fixture(scope="module")
def client(
    store: MilvusVectorStore, encoder: ColourEncoder, s3: Settings
) -> Iterator[SearchClient]:
    """A client of a gateway over the index."""
    with gateway(store, encoder, s3) as client:
        yield client


def keys(response: pb.SearchResponse) -> list[str]:
    """Return the keys of the hits, in order."""
    return [hit.key for hit in response.hits]


def test_text_finds_its_picture(client: SearchClient) -> None:
    """A Chinese query ranks what it names first, with ranks from 1, release and timing."""
    response = client.search("蓝色的房子", top_k=3)
    assert keys(response)[0] == "蓝.png"
    assert [hit.rank for hit in response.hits] == [1, 2, 3]
    assert response.hits[0].score == pytest.approx(1.0, abs=1e-4)
    assert response.hits[0].image_id == "images/蓝.png"
    assert response.text_release == "colours-1"
    assert response.timing.total.ToNanoseconds() > 0
    assert response.request_id
    scores = [hit.score for hit in response.hits]
    assert scores == sorted(scores, reverse=True)


def test_the_time_of_the_search_is_that_of_the_index_alone(
    client: SearchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the gateway does before and after it, and slowly, counts in the total alone.

    Broken on purpose: with the clock around the whole page, the search takes as long; with one
    that stops when the URLs are signed, half as long.
    """
    slow, scale_of, sign = threading.Event(), Backgrounds.of, S3ObjectStore.signed_url

    def scale_slowly(self: Backgrounds, image_tower: str, scope: tuple[str, ...]) -> Drawn | None:
        slow.wait(0.5)
        return scale_of(self, image_tower, scope)

    def sign_slowly(self: S3ObjectStore, ref: ObjectRef) -> str:
        slow.wait(0.5)
        return sign(self, ref)

    monkeypatch.setattr(Backgrounds, "of", scale_slowly)
    monkeypatch.setattr(S3ObjectStore, "signed_url", sign_slowly)
    timing = client.search("红", top_k=1, include_url=True).timing
    assert 0 < timing.search.ToNanoseconds() < timing.total.ToNanoseconds() - 1e9


def test_image_finds_itself(client: SearchClient) -> None:
    """A picture as the query finds its own copy with a cosine of 1."""
    hit = client.search(image=picture(COLOURS["绿"]), top_k=1).hits[0]
    assert hit.key == "绿.png"
    assert hit.score == pytest.approx(1.0, abs=1e-4)


def test_image_id_leaves_itself_out(client: SearchClient) -> None:
    """A query by image_id finds what is like it, and itself only if asked."""
    request = pb.SearchRequest(image_id="images/红.png", top_k=2)
    assert "红.png" not in keys(client.call(request))
    assert len(client.call(request).hits) == 2
    request.include_query_images = True
    assert keys(client.call(request))[0] == "红.png"


def test_terms_add_and_subtract(client: SearchClient, encoder: ColourEncoder) -> None:
    """The scores are cosines with the weighted sum of the terms' unit vectors."""
    parts = encoder.embed_texts(["红", "绿", "蓝"]).vectors
    total = parts[0] + 0.5 * parts[1] - 0.7 * parts[2]
    total /= np.linalg.norm(total)
    response = client.search(
        "红",
        terms=[
            pb.Term(image=picture(COLOURS["绿"]), weight=0.5),
            pb.Term(image_id="images/蓝.png", weight=-0.7),
        ],
        top_k=200,
    )
    scores = {hit.key: hit.score for hit in response.hits}
    for name in "红绿黄":
        expected = float(total @ encoder.embed_texts([name]).vectors[0])
        assert scores[f"{name}.png"] == pytest.approx(expected, abs=1e-4)
    assert "蓝.png" not in scores  # a query image is left out


def test_terms_that_sum_to_zero_are_refused(client: SearchClient) -> None:
    """There is nothing to look for, and the error says which field."""
    with pytest.raises(InvalidArgumentError) as caught:
        client.search("红", terms=[pb.Term(text="红", weight=-1)])
    assert caught.value.field == "terms"


def test_pages_join_without_gap_or_repeat(client: SearchClient) -> None:
    """Page by page gives what one large page gives, ties included, with ranks that go on."""
    whole = client.search("红", top_k=COUNT + 4)
    pages = list(client.pages(pb.SearchRequest(text="红", top_k=7)))
    joined = [hit for page in pages for hit in page.hits]
    assert [hit.image_id for hit in joined] == [hit.image_id for hit in whole.hits]
    assert [hit.rank for hit in joined] == list(range(1, COUNT + 5))
    assert not pages[-1].next_page_token


def test_page_tokens_fit_one_query(client: SearchClient) -> None:
    """A token with another query, filter or release, or a changed token, is refused."""
    first = client.search("红", top_k=5)
    client.search("红", top_k=9, page_token=first.next_page_token)  # another size is fine
    for wrong in (
        pb.SearchRequest(text="绿", page_token=first.next_page_token),
        pb.SearchRequest(
            text="红", page_token=first.next_page_token, filter=pb.Filter(key_prefix="a")
        ),
        pb.SearchRequest(text="红", page_token="A" + first.next_page_token[1:]),
        pb.SearchRequest(text="红", page_token="不"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            client.call(wrong)
        assert caught.value.field == "page_token"


def test_min_score_and_filters(client: SearchClient) -> None:
    """Hits under min_score are left out; a filter restricts by key and metadata together."""
    assert all(hit.score >= 0.9 for hit in client.search("红", top_k=200, min_score=0.9).hits)
    where = pb.Filter(key_prefix="shades/", buckets=["images"])
    where.metadata["parity"].values.append("odd")
    response = client.search("红", top_k=200, where=where)
    assert len(response.hits) == COUNT // 2
    assert all(hit.metadata["parity"] == "odd" for hit in response.hits)
    where.ingested_before.FromSeconds(1000)
    assert not client.search("红", where=where).hits


def test_urls_are_signed_when_asked_for(client: SearchClient) -> None:
    """A hit carries a signed URL of its object only if the request says so."""
    assert not client.search("红", top_k=1).hits[0].url
    url = client.search("红", top_k=1, include_url=True).hits[0].url
    assert "X-Amz-Signature" in url


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SearchRequest(), "query"),
        (pb.SearchRequest(text=""), "text"),
        (pb.SearchRequest(text="红" * 1001), "text"),
        (pb.SearchRequest(text="红", top_k=201), "top_k"),
        (pb.SearchRequest(text="红", top_k=-1), "top_k"),
        (pb.SearchRequest(text="红", min_score=1.5), "min_score"),
        (pb.SearchRequest(image=b"no image"), "image"),
        (pb.SearchRequest(image_id="nokey"), "image_id"),
        (pb.SearchRequest(text="红", terms=[pb.Term(text="绿", weight=0)]), "terms[0].weight"),
        (pb.SearchRequest(text="红", terms=[pb.Term()]), "terms[0]"),
    ],
)
def test_bad_requests_name_the_field(
    client: SearchClient, request_: pb.SearchRequest, field: str
) -> None:
    """Each bad field is answered INVALID_ARGUMENT with its name."""
    with pytest.raises(InvalidArgumentError) as caught:
        client.call(request_)
    assert caught.value.field == field


def test_unknown_names_are_not_found(client: SearchClient) -> None:
    """An image that is not indexed and a release that does not exist are NOT_FOUND."""
    with pytest.raises(NotFoundError):
        client.search(image_id="images/none.png")
    with pytest.raises(NotFoundError):
        client.search("红", text_release="none")


def test_a_stream_outlives_bad_items(client: SearchClient) -> None:
    """Each request of a stream gets its own answer or error, and the stream goes on."""
    requests = [
        pb.SearchRequest(request_id=f"r{n}", text="红" if n % 3 else "", top_k=2) for n in range(30)
    ]
    answers = {answer.request_id: answer for answer in client.stream(requests)}
    assert set(answers) == {f"r{n}" for n in range(30)}
    for number in range(30):
        answer = answers[f"r{number}"]
        if number % 3:
            assert len(answer.response.hits) == 2
        else:
            assert (answer.error.code, answer.error.field) == ("INVALID_ARGUMENT", "text")


def test_a_stream_outlives_what_is_no_query(client: SearchClient) -> None:
    """Bytes that are no message, and fields of another type, are answered as errors of their own.

    Break: `map(_readable, …)` over the messages of a stream.
    """
    good = pb.SearchStreamRequest(request=pb.SearchRequest(request_id="good", text="红", top_k=2))
    # top_k, which is the field 6, as a text; what can be read of the rest is.
    inside = pb.SearchRequest(request_id="odd", text="红").SerializeToString() + b"\x32\3abc"
    odd = bytes([0x0A, len(inside)]) + inside
    method: Any = client._channel.stream_stream(
        "/cra.search.v1.SearchService/SearchStream",
        response_deserializer=pb.SearchStreamResponse.FromString,
    )
    sent = [b"\xff\xff", odd, good.SerializeToString()]
    answers = {one.request_id: one for one in method(iter(sent), timeout=20)}
    assert {name: one.error.field for name, one in answers.items()} == {
        "": "request", "odd": "top_k", "good": ""
    }  # fmt: skip
    assert len(answers["good"].response.hits) == 2


def test_queries_of_a_stream_share_no_id(client: SearchClient) -> None:
    """Each query that brings no id of its own is given another one.

    Break: have the threads of streams work without a context for each query.
    """
    answers = client.stream(pb.SearchRequest(text="红", top_k=1) for _ in range(30))
    assert len({answer.response.request_id for answer in answers}) == 30


def test_too_many_calls_at_once_are_refused(
    store: MilvusVectorStore, s3: Settings, encoder: ColourEncoder
) -> None:
    """Over its limit a server answers RESOURCE_EXHAUSTED at once, with a time to try again."""
    import threading

    entered, release = threading.Semaphore(0), threading.Event()

    class Stuck(ColourEncoder):
        def embed_texts(
            self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
        ) -> EncodedTexts:
            if list(texts) == ["慢红"]:
                entered.release()
                release.wait(20)
            return super().embed_texts(texts, text_release, timeout)

    with gateway(store, Stuck(encoder.fingerprint), s3, max_calls=2) as client:
        slow = [threading.Thread(target=client.search, args=("慢红",)) for _ in range(2)]
        for thread in slow:
            thread.start()
        for _ in slow:
            assert entered.acquire(timeout=20)
        with pytest.raises(ResourceExhaustedError) as caught:
            client.search("红")
        assert caught.value.retry_after > 0
        release.set()
        for thread in slow:
            thread.join()
        assert client.search("红").hits


def test_a_gateway_without_its_database_says_so(s3: Settings, encoder: ColourEncoder) -> None:
    """An outage is UNAVAILABLE and never an empty result."""
    (port,) = free_ports(1)
    down = MilvusVectorStore(Settings(milvus_uri=f"http://127.0.0.1:{port}", milvus_timeout=1))
    with gateway(down, encoder, s3) as client, pytest.raises(UnavailableError):
        client.search("红")


def test_a_silent_encoder_is_named_before_the_caller_gives_up(
    store: MilvusVectorStore, encoder: ColourEncoder, s3: Settings
) -> None:
    """A caller learns which part was slow, instead of hearing nothing from the gateway.

    Break: PARTS_TAKE = 1. Then the caller's own deadline is first, and names the gateway.
    """

    class Silent(ColourEncoder):
        """Says nothing for as long as it may."""

        def embed_texts(
            self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
        ) -> EncodedTexts:
            seconds = rpc.time_left(30)  # as RemoteEncoder
            assert seconds < 2
            threading.Event().wait(seconds)
            raise DeadlineExceededError("the encoder did not answer in time")

    with gateway(store, Silent(encoder.fingerprint), s3) as client:
        client._timeout = 2
        with pytest.raises(DeadlineExceededError, match="the encoder did not answer"):
            client.search("红")


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_finds_what_it_does_not_name(client: SearchClient, text: str) -> None:
    """Through the gateway, in each string of a request that becomes part of an expression.

    None of these strings is in the index, so none finds, excludes or shows anything. Fails when
    `_hex` or `tag` returns its text as it is.
    """
    values = pb.MetadataValues(values=[text])
    for where in (
        pb.Filter(buckets=[text]),
        pb.Filter(key_prefix=text),
        pb.Filter(metadata={"parity": values}),
        pb.Filter(metadata={text: pb.MetadataValues(values=["even"])}),
        pb.Filter(buckets=["images"], metadata={"parity": values}),
    ):
        assert keys(client.search("红", where=where)) == []
    for image_id in (f"images/{text}", f"{text}/red.png"):
        try:
            client.search(image_id=image_id)
        except (NotFoundError, InvalidArgumentError):
            continue
        raise AssertionError(f"{image_id!r} was found")
    assert len(keys(client.search("红", top_k=200))) == COUNT + len(COLOURS)
