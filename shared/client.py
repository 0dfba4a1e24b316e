"""The client for other Python backends: typed calls to Search. Needs grpc and nothing heavier.

with SearchClient("dns:///gateway:50051") as client:
    for hit in client.search("庑殿顶的红色大殿", top_k=10).hits:
        print(hit.rank, hit.image_id, hit.score)
"""

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Self

import grpc

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.shared import rpc
from cra.shared.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from cra.shared.limits import MAX_IMAGE_BYTES
from cra.shared.tls import ClientTls

if TYPE_CHECKING:  # settings need more than a client is installed with
    from cra.shared.settings import Settings

SERVICE: Final = "cra.search.v1.SearchService"


class SearchClient:
    """Speaks to the gateway. Safe to share between threads; make one and keep it.

    Every method raises one of `cra.shared.errors`: InvalidArgumentError with the field at fault,
    NotFoundError, ResourceExhaustedError and UnavailableError with `retry_after`, and so on.

    Args:
        target: where the gateway is, such as `dns:///gateway:50051`.
        api_key: shown to the gateway, if not empty.
        timeout: seconds for one call; longer than the gateway waits for its own parts, so that
            the error names the one that is slow.
        tries: times that `search` and `call` are tried while the gateway has too much to do or
            cannot be reached, each after the pause that it asks for.
        tls: files of PEM certificates, to speak TLS; plaintext if None.

    Raises:
        FailedPreconditionError: a file of `tls` cannot be read or does not hold what it should.
        UnauthenticatedError: no header can hold the key.
    """

    def __init__(
        self,
        target: str,
        api_key: str = "",
        timeout: float = 15.0,
        tries: int = 1,
        tls: ClientTls | None = None,
    ) -> None:
        self._server = f"the gateway at {target}"
        self._channel = rpc.open_channel(target, SERVICE, api_key, tls)
        self._stub = pb_grpc.SearchServiceStub(self._channel)
        self._timeout = timeout
        self._tries = tries

    @classmethod
    def of(cls, settings: "Settings", timeout: float = 15.0, tries: int = 1) -> Self:
        """Return a client of the gateway that settings name."""
        key = settings.api_key.get_secret_value()
        return cls(settings.gateway_target, key, timeout, tries, settings.client_tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def search(
        self,
        text: str | None = None,
        *,
        image: bytes | None = None,
        image_id: str | None = None,
        terms: Iterable[pb.Term] = (),
        top_k: int = 20,
        min_score: float | None = None,
        where: pb.Filter | None = None,
        text_release: str = "",
        page_token: str = "",
        include_url: bool = False,
        min_relevance: float | None = None,
        fold_duplicates: bool = False,
        expand: bool | None = None,
    ) -> pb.SearchResponse:
        """Return one page of ranked images; at most one of text, image and image_id is given.

        Args:
            text: Chinese text, 1 to 1,000 characters.
            image: an encoded picture, at most 10 MiB.
            image_id: an indexed image, `bucket/key`.
            terms: more parts of the query, each with a weight that may be negative.
            top_k: hits on a page, 1 to 200.
            min_score: leave out hits with a lower cosine.
            where: restricts the hits.
            text_release: the release to encode with; the active one if empty.
            page_token: `next_page_token` of the page before.
            include_url: add a signed URL to each hit.
            min_relevance: leave out hits of a lower relevance, 0 to 1.
            fold_duplicates: show one of images that are copies of each other.
            expand: encode terms of architecture with their other names too; the server's default if
                None.
        """
        if sum(part is not None for part in (text, image, image_id)) > 1:
            raise ValueError("give at most one of text, image and image_id; more go into terms")
        for field, value in (
            ("text", text),
            ("image_id", image_id),
            ("text_release", text_release),
            ("page_token", page_token),
        ):
            _check_unicode(field, value or "")
        request = pb.SearchRequest(
            terms=terms,
            top_k=top_k,
            filter=where,
            text_release=text_release,
            page_token=page_token,
            include_url=include_url,
            min_relevance=min_relevance,
            fold_duplicates=fold_duplicates,
            expand=expand,
        )
        if text is not None:
            request.text = text
        if image is not None:
            request.image = image
        if image_id is not None:
            request.image_id = image_id
        if min_score is not None:
            request.min_score = min_score
        return self.call(request)

    def call(self, request: pb.SearchRequest) -> pb.SearchResponse:
        """Send a request as it is."""
        for _ in range(self._tries - 1):
            try:
                return self._call(request)
            except (ResourceExhaustedError, UnavailableError) as error:
                threading.Event().wait(error.retry_after)
        return self._call(request)

    def _call(self, request: pb.SearchRequest) -> pb.SearchResponse:
        _check_pictures(request)
        try:
            with rpc.client_span(SERVICE, "Search"):
                return self._stub.Search(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error, self._server) from error

    async def answer(self, request: pb.SearchRequest) -> pb.SearchResponse:
        """Send a request as it is, once, from a coroutine; if that is cancelled, so is the call."""
        _check_pictures(request)
        try:
            with rpc.client_span(SERVICE, "Search"):
                response: pb.SearchResponse = await rpc.answer(
                    self._stub.Search, request, self._timeout
                )
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error, self._server) from error
        return response

    def pages(self, request: pb.SearchRequest) -> Iterator[pb.SearchResponse]:
        """Yield this page and all that follow, 1,000 hits at most."""
        page_request = pb.SearchRequest()
        page_request.CopyFrom(request)
        while True:
            page = self.call(page_request)
            yield page
            if not page.next_page_token:
                return
            page_request.page_token = page.next_page_token

    def stream(self, requests: Iterable[pb.SearchRequest]) -> Iterator[pb.SearchStreamResponse]:
        """Send many requests over one stream; answers come as they are ready, by request_id."""
        messages = (pb.SearchStreamRequest(request=request) for request in requests)
        try:
            yield from self._stub.SearchStream(messages)
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error, self._server) from error


def _check_pictures(request: pb.SearchRequest) -> None:
    """Refuse a picture that is too large as the gateway would: gRPC may not even send it there."""
    holders: list[tuple[str, pb.SearchRequest | pb.Term]] = [("image", request)]
    holders += [(f"terms[{number}].image", term) for number, term in enumerate(request.terms)]
    for field, holder in holders:
        size = len(holder.image)
        if size > MAX_IMAGE_BYTES:
            raise InvalidArgumentError(
                field, f"has {size} bytes; 1 to {MAX_IMAGE_BYTES} are allowed"
            )


def _check_unicode(field: str, value: str) -> None:
    """Refuse half a character, which Python's strings can hold and no message can."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(field, "is not valid Unicode") from error
