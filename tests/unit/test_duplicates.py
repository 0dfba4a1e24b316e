"""Folding copies under the best of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cra.search.v1 import search_pb2 as pb
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query import parse
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.domain import ImageRecord, ObjectRef, ScoredImage, Version
from cra.shared.duplicates import fold
from cra.shared.settings import Settings
from tests.fakes import ColourEncoder


def at(*degrees: float) -> npt.NDArray[np.float32]:
    """Return unit vectors in a plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_copies_go_under_the_best() -> None:
    """Each image stands once: kept, or under the first that is as near as the bound."""
    bound = float(np.cos(np.radians(10)))
    assert fold(at(0, 90, 5, 95, 50), bound) == [[0, 2], [1, 3], [4]]
    assert fold(at(), bound) == []


def test_a_chain_is_not_one_picture() -> None:
    """What is near a folded image only is kept: similarity does not travel."""
    bound = float(np.cos(np.radians(10)))
    assert fold(at(0, 8, 16, 24), bound) == [[0, 1], [2, 3]]


def test_a_longer_list_folds_its_beginning_alike() -> None:
    """What is kept of the first images is the same however many follow: so pages fit together."""
    rng = np.random.default_rng(0)
    vectors_nd = at(*rng.uniform(0, 360, 200))
    whole = [group[0] for group in fold(vectors_nd, 0.999)]
    for count in (1, 10, 77, 150):
        kept = [group[0] for group in fold(vectors_nd[:count], 0.999)]
        assert kept == [place for place in whole if place < count]


class Ranked:
    """An index whose images are in a fixed order: the first are all copies of one."""

    def __init__(self, copies: int, others: int) -> None:
        self.images = [
            ScoredImage(
                ImageRecord(ObjectRef("images", f"{n}"), Version("e", 1), "", {}, 1, 1, 0.0),
                1 - n / 1000,
                np.eye(others + 1, dtype=np.float32)[max(0, n - copies + 1)],
            )
            for n in range(copies + others)
        ]

    def search(self, _tower: str, _vector: Any, limit: int, *_: Any, **__: Any) -> list[Any]:
        """See `ports.VectorStore`."""
        return self.images[:limit]


def test_the_query_image_at_the_end_of_what_was_fetched_is_not_the_end() -> None:
    """More is fetched although the last image of what was is left out, as the query itself.

    Broken on purpose: with `is_hit` in place of `is_near` one picture is found, and no next page.
    """
    index = Ranked(copies=100, others=50)
    engine = SearchEngine(
        ColourEncoder("0" * 16),
        index,  # type: ignore[arg-type]
        S3ObjectStore(Settings()),
        PageTokens("key"),
        QueryCache(0),
    )
    for place in range(30, 45):  # where the first fetch ends
        query = parse(
            pb.SearchRequest(image_id=f"images/{place}", top_k=10, fold_duplicates=True), ()
        )
        ranked, _ = engine._ranked(query, "t", np.ones(2, np.float32), None, 10)
        assert len(ranked) > 10
