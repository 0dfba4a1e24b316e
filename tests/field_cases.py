"""Of every field of every call: requests within its limits, and past them.

`tests/integration/test_requests.py` sends them to real servers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from cra.embedding.v1 import embedding_pb2 as embedding
from cra.ingest.v1 import ingest_pb2 as ingest
from cra.search.v1 import search_pb2 as search
from tests import embedding as fake_embedding
from tests.fakes import COLOURS, SIDE, picture

RED: Final = picture(COLOURS["红"])
PIXELS: Final = bytes(SIDE * SIDE * 3)
PREPARED: Final = fake_embedding.PREPARED.fingerprint
ID: Final = "images/红.png"
MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class Bad:
    """A request that is refused."""

    request: Message
    says: str
    """What the message holds: the field and its limit."""
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True)
class Cases:
    """Of one field: requests within its limits, at them too, and past them."""

    good: Sequence[Message]
    bad: Sequence[Bad] = ()


def _search(**fields: Any) -> search.SearchRequest:
    return search.SearchRequest(**{"text": "红", **fields})


def _filter(**fields: Any) -> search.SearchRequest:
    return _search(filter=search.Filter(**fields))


def _term(**fields: Any) -> search.SearchRequest:
    return _search(terms=[search.Term(**fields)])


def _values(names: int, values: int) -> dict[str, search.MetadataValues]:
    return {f"n{n}": search.MetadataValues(values=["x"] * values) for n in range(names)}


def _texts(*texts: str, **fields: Any) -> embedding.EmbedTextsRequest:
    return embedding.EmbedTextsRequest(texts=texts, **fields)


def _images(*items: embedding.ImageItem, **fields: Any) -> embedding.EmbedImagesRequest:
    return embedding.EmbedImagesRequest(items=items, **fields)


def _pixels(data: bytes = PIXELS, preprocessing: str = PREPARED) -> embedding.EmbedImagesRequest:
    pixels = embedding.Pixels(data=data, preprocessing=preprocessing)
    return _images(embedding.ImageItem(pixels=pixels))


def _times(field: str) -> dict[str, Cases]:
    """Return the cases of a time in a filter."""
    early, late = -62_135_596_800, 253_402_300_799

    def at(**parts: int) -> search.SearchRequest:
        return _filter(**{field: parts})

    return {
        f"filter.{field}": Cases(
            [at(seconds=0), at(seconds=1_700_000_000, nanos=5)],
            [Bad(at(seconds=2**62), f"filter.{field}: is no time")],
        ),
        f"filter.{field}.seconds": Cases(
            [at(seconds=early), at(seconds=late)],
            [
                Bad(at(seconds=early - 1), f"filter.{field}: is no time between the years 1"),
                Bad(at(seconds=late + 1), f"filter.{field}: is no time between the years 1"),
            ],
        ),
        f"filter.{field}.nanos": Cases(
            [at(nanos=0), at(nanos=999_999_999)],
            [
                Bad(at(nanos=-1), f"filter.{field}.nanos: is -1; 0 to 999999999"),
                Bad(at(nanos=10**9), f"filter.{field}.nanos: is 1000000000; 0 to 999999999"),
            ],
        ),
    }


UNKNOWN: Final = grpc.StatusCode.NOT_FOUND
SEARCH: Final[dict[str, Cases]] = {
    "request_id": Cases(
        [_search(request_id=""), _search(request_id="识" * 128), _search(request_id="\0\r\n")],
        [Bad(_search(request_id="r" * 129), "request_id: has 129 characters; at most 128")],
    ),
    "text": Cases(
        [_search(text="红"), _search(text="红" * 1000), _search(text="'; drop \\\" or 1==1")],
        [
            Bad(_search(text=""), "text: is empty"),
            Bad(_search(text=" \u200b"), "text: is empty"),
            Bad(_search(text="红" * 1001), "text: has 1001 characters; at most 1000"),
        ],
    ),
    "image": Cases(
        [_search(image=RED), _search(image=RED + bytes(10 * MEBIBYTE - len(RED)))],
        [
            Bad(_search(image=b""), "image: has 0 bytes; 1 to 10485760"),
            Bad(_search(image=bytes(10 * MEBIBYTE + 1)), "image: has 10485761 bytes; 1 to 1048576"),
            Bad(_search(image=b"no image"), "image: not_an_image"),
        ],
    ),
    "image_id": Cases(
        [_search(image_id=ID)],
        [
            Bad(_search(image_id=""), "image_id: "),
            Bad(_search(image_id="images"), "image_id: 'images' is not of the form bucket/key"),
            Bad(_search(image_id="b" * 64 + "/k"), "image_id: is too long"),
            Bad(_search(image_id="b/" + "k" * 1025), "image_id: is too long"),
            Bad(_search(image_id="b" * 63 + "/" + "k" * 1024), "image_id: 'bbb", UNKNOWN),
            Bad(_search(image_id='images/" or id != "'), "is not indexed", UNKNOWN),
        ],
    ),
    "terms": Cases(
        [
            _search(terms=[search.Term(text="绿")] * 16),
            search.SearchRequest(terms=[search.Term(text="红")]),
        ],
        [
            Bad(_search(terms=[search.Term(text="绿")] * 17), "terms: has 17 entries; at most 16"),
            Bad(_search(terms=[search.Term()]), "terms[0]: holds neither text nor image"),
            Bad(_search(terms=[{"text": "红", "weight": -1}]), "terms: sum to zero"),
            Bad(search.SearchRequest(), "query: is missing"),
        ],
    ),
    "terms.text": Cases(
        [_term(text="绿" * 1000)], [Bad(_term(text="绿" * 1001), "terms[0].text: has 1001")]
    ),
    "terms.image": Cases(
        [_term(image=RED)], [Bad(_term(image=b""), "terms[0].image: has 0 bytes")]
    ),
    "terms.image_id": Cases(
        [_term(image_id=ID)],
        [
            Bad(_term(image_id="/"), "terms[0].image_id: '/' is not of the form"),
            Bad(_term(image_id="images/none"), "terms[0].image_id: ", UNKNOWN),
        ],
    ),
    "terms.weight": Cases(
        [_term(text="绿", weight=one) for one in (-100, 1e-30, 100)],
        [
            Bad(_term(text="绿", weight=one), "terms[0].weight: is ")
            for one in (0, 100.01, -101, math.nan, math.inf)
        ],
    ),
    "top_k": Cases(
        [_search(top_k=one) for one in (0, 1, 199, 200)],
        [Bad(_search(top_k=one), f"top_k: is {one}; 1 to 200") for one in (-(2**31), -1, 201)],
    ),
    "page_token": Cases(
        [_search(page_token="")],
        [
            Bad(_search(page_token=one), "page_token: ")
            for one in ("x", "不", "A" * 100_000, "\0", "=" * 7)
        ],
    ),
    "min_score": Cases(
        [_search(min_score=one) for one in (-1, 0, 1)],
        [
            Bad(_search(min_score=one), "min_score: is ")
            for one in (-1.001, 1.001, math.nan, math.inf)
        ],
    ),
    "filter": Cases(
        [_filter()], [Bad(_filter(buckets=["b"] * 65), "filter.buckets: has 65 entries")]
    ),
    "filter.buckets": Cases(
        [_filter(buckets=["b" * 63] * 64), _filter(buckets=['"', "\\", "'", ""])],
        [
            Bad(_filter(buckets=["b"] * 65), "filter.buckets: has 65 entries; at most 64"),
            Bad(_filter(buckets=["b" * 64]), "filter.buckets[0]: has 64 characters; at most 63"),
        ],
    ),
    "filter.key_prefix": Cases(
        [_filter(key_prefix="钥" * 341 + "k"), _filter(key_prefix='%_"\\')],
        [Bad(_filter(key_prefix="钥" * 342), "filter.key_prefix: has 1026 bytes; at most 1024")],
    ),
    "filter.metadata": Cases(
        [_filter(metadata=_values(16, 64)), _filter(metadata=_values(1, 1))],
        [
            Bad(_filter(metadata=_values(17, 1)), "filter.metadata: has 17 entries; at most 16"),
            Bad(
                _filter(metadata={"a": {"values": ["x"]}, "A": {"values": ["x"]}}),
                "is given twice",
            ),
        ],
    ),
    "filter.metadata.values": Cases(
        [_filter(metadata={'"]': {"values": ['") or ("1" == "1', ""]}})],
        [
            Bad(_filter(metadata=_values(1, 65)), "filter.metadata['n0']: has 65 entries; at most"),
            Bad(_filter(metadata=_values(1, 0)), "filter.metadata['n0']: has no values"),
        ],
    ),
    **_times("ingested_after"),
    **_times("ingested_before"),
    "text_release": Cases(
        [_search(text_release="colours-1"), _search(text_release="")],
        [
            Bad(_search(text_release=one), "there is no text release", UNKNOWN)
            for one in ("none", "\0", "门" * 100_000)
        ],
    ),
    "include_url": Cases([_search(include_url=one) for one in (False, True)]),
    "include_query_images": Cases([_search(include_query_images=one) for one in (False, True)]),
    "min_relevance": Cases(
        [_search(min_relevance=one) for one in (0, 0.5, 1)],
        [
            Bad(_search(min_relevance=one), "min_relevance: is ")
            for one in (-0.001, 1.001, math.nan, math.inf)
        ],
    ),
    "fold_duplicates": Cases([_search(fold_duplicates=one) for one in (False, True)]),
    "expand": Cases([_search(expand=one) for one in (False, True)]),
}

_ids = [f"images/{n}.png" for n in range(1001)]
IDS_BAD: Final = {
    "has 0 entries; 1 to 1000": [],
    "has 1001 entries; 1 to 1000": _ids,
    "image_ids[1]: 'images' is not of the form": ["images/a", "images"],
    "image_ids[0]: is too long": ["images/" + "k" * 1025],
}

CASES: Final[dict[str, dict[str, Cases]]] = {
    "cra.search.v1.SearchService/Search": SEARCH,
    "cra.embedding.v1.EmbeddingService/EmbedTexts": {
        "texts": Cases(
            [_texts("红"), _texts(*["红"] * 256), _texts("红" * 1000)],
            [
                Bad(_texts(), "texts: has 0 entries; 1 to 256"),
                Bad(_texts(*["红"] * 257), "texts: has 257 entries; 1 to 256"),
                Bad(_texts("红", "红" * 1001), "texts[1]: has 1001 characters; at most 1000"),
                Bad(_texts(""), "texts[0]: is empty"),
            ],
        ),
        "text_release": Cases(
            [_texts("红", text_release="colours-1")],
            [
                Bad(_texts("红", text_release=one), "there is no text release", UNKNOWN)
                for one in ("none", "\0", "x" * 100_000)
            ],
        ),
    },
    "cra.embedding.v1.EmbeddingService/EmbedImages": {
        "items": Cases(
            [_images(fake_embedding.GOOD), _images(*[fake_embedding.GOOD] * 64)],
            [
                Bad(_images(), "items: has 0 entries; 1 to 64"),
                Bad(_images(*[fake_embedding.GOOD] * 65), "items: has 65 entries; 1 to 64"),
                Bad(_images(embedding.ImageItem()), "items[0]: holds neither encoded bytes nor"),
            ],
        ),
        "items.encoded": Cases(
            [
                _images(embedding.ImageItem(encoded=one))
                for one in (b"", RED + bytes(10 * MEBIBYTE - len(RED)))
            ],
            [
                Bad(
                    _images(embedding.ImageItem(encoded=bytes(10 * MEBIBYTE + 1))),
                    "items[0].encoded: has 10485761 bytes; at most 10485760",
                )
            ],
        ),
        "items.pixels": Cases([_pixels()], [Bad(_pixels(b""), "items[0].pixels.data: has 0")]),
        "items.pixels.data": Cases(
            [_pixels()],
            [
                Bad(_pixels(PIXELS[1:]), "items[0].pixels.data: has 47 bytes; 4 x 4 x 3"),
                Bad(_pixels(PIXELS + b"x"), "items[0].pixels.data: has 49 bytes; 4 x 4 x 3"),
            ],
        ),
        "items.pixels.preprocessing": Cases(
            [_pixels()],
            [
                Bad(
                    _pixels(preprocessing=one),
                    "items[0].pixels: prepared for another image tower",
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
                for one in ("", "other", "门" * 10_000)
            ],
        ),
        "priority": Cases(
            [_images(fake_embedding.GOOD, priority=one) for one in (0, 1, 2)],
            [
                Bad(_images(fake_embedding.GOOD, priority=one), f"priority: is {one}; 0, 1, 2 are")
                for one in (-1, 3, 2**31 - 1)
            ],
        ),
    },
    "cra.embedding.v1.EmbeddingService/ListModels": {},
    "cra.ingest.v1.IngestService/GetStatus": {
        "refresh": Cases([ingest.GetStatusRequest(refresh=one) for one in (False, True)]),
    },
    "cra.ingest.v1.IngestService/ListFailures": {
        "page_size": Cases(
            [ingest.ListFailuresRequest(page_size=one) for one in (0, 1, 1000)],
            [
                Bad(ingest.ListFailuresRequest(page_size=one), f"page_size: is {one}; 1 to 1000")
                for one in (-(2**31), -1, 1001)
            ],
        ),
        "page_token": Cases(
            [ingest.ListFailuresRequest(page_token=one) for one in ("", "images/a")],
            [
                Bad(ingest.ListFailuresRequest(page_token=one), "page_token: ")
                for one in ("x", "b/" + "k" * 1025)
            ],
        ),
        "image_ids": Cases(
            [ingest.ListFailuresRequest(image_ids=one) for one in ([], _ids[:1], _ids[:1000])],
            [
                Bad(ingest.ListFailuresRequest(image_ids=one), says)
                for says, one in IDS_BAD.items()
                if one
            ],
        ),
    },
    "cra.ingest.v1.IngestService/RetryFailures": {
        "image_ids": Cases(
            [ingest.RetryFailuresRequest(image_ids=one) for one in (_ids[:1], _ids[:1000])],
            [
                Bad(ingest.RetryFailuresRequest(image_ids=one), says)
                for says, one in IDS_BAD.items()
            ],
        ),
        "all": Cases(
            [ingest.RetryFailuresRequest(all=True)],
            [
                Bad(
                    ingest.RetryFailuresRequest(all=True, image_ids=_ids[:1]),
                    "image_ids: must be empty with all",
                )
            ],
        ),
    },
    "cra.ingest.v1.IngestService/SyncObjects": {
        "image_ids": Cases(
            [ingest.SyncObjectsRequest(image_ids=one) for one in (_ids[:1], _ids[:1000])],
            [
                *(
                    Bad(ingest.SyncObjectsRequest(image_ids=one), says)
                    for says, one in IDS_BAD.items()
                ),
                Bad(
                    ingest.SyncObjectsRequest(image_ids=["other/a"]), "image_ids[0]: bucket 'other'"
                ),
                Bad(ingest.SyncObjectsRequest(image_ids=["images/a/"]), "ids[0]: names a fold"),
                Bad(
                    ingest.SyncObjectsRequest(image_ids=["images/a", "images/a", "images/b/"]),
                    "image_ids[2]: names a fold",
                ),
            ],
        ),
    },
    "cra.ingest.v1.IngestService/Reconcile": {
        "dry_run": Cases([ingest.ReconcileRequest(dry_run=one) for one in (True, False)]),
        "allow_mass_deletion": Cases(
            [
                ingest.ReconcileRequest(dry_run=True, allow_mass_deletion=one)
                for one in (True, False)
            ]
        ),
    },
}


def _streamed(request: Message) -> search.SearchStreamRequest:
    assert isinstance(request, search.SearchRequest)
    return search.SearchStreamRequest(request=request)


CASES["cra.search.v1.SearchService/SearchStream"] = {
    "request": Cases(
        [search.SearchStreamRequest(request=_search())],
        [Bad(search.SearchStreamRequest(), "query: is missing")],
    ),
    **{
        f"request.{path}": Cases(
            [_streamed(one) for one in cases.good],
            [Bad(_streamed(one.request), one.says, one.code) for one in cases.bad],
        )
        for path, cases in SEARCH.items()
    },
}
