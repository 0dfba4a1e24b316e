"""The gateway's memory of what releases made of texts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from cra.services.gateway.query_cache import QueryCache
from cra.shared.ports import EncodedTexts, TextReleaseInfo
from tests.fakes import ColourEncoder

TOWER = "f00dfeed00000001"


class Counting:
    """Encodes with the fake model, and counts what it was asked."""

    def __init__(self, release: str = "colours-1", tower: str = TOWER) -> None:
        self.asked: list[list[str]] = []
        self._model = ColourEncoder(tower)
        self._release = release

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode."""
        self.asked.append(list(texts))
        return replace(self._model.embed_texts(texts), text_release=self._release)


def release(name: str = "colours-1", normalizer: str = "identity") -> TextReleaseInfo:
    """Return a release that is loaded."""
    return TextReleaseInfo(name, True, normalizer, "f00dfeed00000001")


def count(result: str) -> float:
    """Return the metric."""
    return REGISTRY.get_sample_value("cra_query_cache_texts_total", {"result": result}) or 0.0


def test_a_text_is_encoded_once() -> None:
    """Asked again, a text has the same vector and flags, and nobody encodes it."""
    cache, encode = QueryCache(10), Counting()
    text = "红" * 60
    before = (count("hit"), count("miss"))
    first = cache.embed([text], release(), TOWER, encode)
    second = cache.embed([text], release(), TOWER, encode)
    assert encode.asked == [[text]]
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert first.truncated == second.truncated == [True]
    assert (second.text_release, second.image_tower) == (first.text_release, first.image_tower)
    assert (count("hit") - before[0], count("miss") - before[1]) == (1, 1)


def test_what_the_normaliser_makes_equal_is_one_text() -> None:
    """Traditional and simplified spelling share an entry where the release folds them."""
    cache, encode = QueryCache(10), Counting()
    cache.embed(["紅色的門"], release(normalizer="cra-1"), TOWER, encode)
    cache.embed(["红色的门"], release(normalizer="cra-1"), TOWER, encode)
    assert len(encode.asked) == 1
    plain = Counting("colours-2")
    cache.embed(["紅色的門"], release("colours-2"), TOWER, plain)
    cache.embed(["红色的门"], release("colours-2"), TOWER, plain)
    assert len(plain.asked) == 2


@pytest.mark.parametrize("normalizer", ["identity", "cra-1", "cra-999"])
def test_releases_do_not_share_entries(normalizer: str) -> None:
    """What one release made of a text is never another's answer, whatever its normaliser."""
    cache = QueryCache(10)
    for name in ("colours-1", "colours-2"):
        encode = Counting(name)
        assert cache.embed(["红门"], release(name, normalizer), TOWER, encode).text_release == name
        assert encode.asked == [["红门"]]


def test_image_towers_do_not_share_entries() -> None:
    """Models that differ in their image tower may name their own text towers alike.

    Break: leave the image tower out of the keys.
    """
    cache = QueryCache(10)
    for tower in (TOWER, "another"):
        encode = Counting(tower=tower)
        for _ in range(2):
            assert cache.embed(["红门"], release(), tower, encode).image_tower == tower
        assert encode.asked == [["红门"]]


def test_an_answer_by_another_release_is_not_remembered() -> None:
    """The active release may change between the look-up and the encoding."""
    cache, other = QueryCache(10), Counting("colours-2")
    assert cache.embed(["红门"], release(), TOWER, other).text_release == "colours-2"
    mine = Counting()
    assert cache.embed(["红门"], release(), TOWER, mine).text_release == "colours-1"
    assert mine.asked


def test_a_failure_is_not_remembered() -> None:
    """What could not be encoded is encoded at the next try."""
    cache, encode = QueryCache(10), Counting()

    def fail(texts: Sequence[str]) -> EncodedTexts:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        cache.embed(["红门"], release(), TOWER, fail)
    cache.embed(["红门"], release(), TOWER, encode)
    assert len(encode.asked) == 1


@pytest.mark.parametrize(("size", "again"), [(0, 3), (1, 3), (2, 2)])
def test_it_is_bounded(size: int, again: int) -> None:
    """It holds as many as it may, and lets go of what was not asked for longest."""
    cache, encode = QueryCache(size), Counting()
    for text in ("红", "绿", "红"):
        cache.embed([text], release(), TOWER, encode)
    assert len(encode.asked) == again
