"""How a batch of texts is cut into forward passes."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from cra.shared.model.encoders import Passes, cut, encode_by_length
from cra.shared.model.tokenizer import PAD

LENGTHS = st.lists(st.integers(1, 52), min_size=1, max_size=40).map(sorted)
PASSES = st.builds(Passes, cost=st.integers(0, 200), most=st.integers(1, 600))


def _cost(lengths: list[int], ends: list[int], passes: Passes) -> float:
    total, start = 0, 0
    for end in ends:
        tokens = (end - start) * lengths[end - 1]
        if tokens > passes.most and end - start > 1:
            return float("inf")
        total += passes.cost + tokens
        start = end
    return total


@given(LENGTHS, PASSES)
def test_every_text_is_in_one_pass_and_none_has_more_tokens_than_it_may(
    lengths: list[int], passes: Passes
) -> None:
    """Passes go from the first text to the last; only one of a single text is over the most.

    Fails when the first start that is tried lies one earlier.
    """
    found = cut(lengths, passes)
    assert [found[0].start, *(part.stop for part in found)] == [
        *(part.start for part in found),
        len(lengths),
    ]
    for part in found:
        count = part.stop - part.start
        assert count == 1 or count * lengths[part.stop - 1] <= passes.most


@given(LENGTHS.map(lambda lengths: lengths[:9]), PASSES)
def test_no_other_cut_costs_less(lengths: list[int], passes: Passes) -> None:
    """Of all ways to cut, the one that is found pads and passes least.

    Fails when a pass costs nothing, and when texts that fit in one pass are never cut.
    """
    count = len(lengths)
    ways = [
        [*ends, count] for fewer in range(count) for ends in combinations(range(1, count), fewer)
    ]
    least = min(_cost(lengths, ends, passes) for ends in ways)
    assert _cost(lengths, [part.stop for part in cut(lengths, passes)], passes) == least


def test_texts_of_like_length_share_a_pass() -> None:
    """Sixteen names go in one pass, and a sentence among them in one of its own."""
    passes = Passes(cost=32, most=512)
    assert cut([8] * 16, passes) == [slice(0, 16)]
    assert cut([8] * 15 + [40], passes) == [slice(0, 15), slice(15, 16)]
    assert cut([22] * 32, passes) == [slice(0, 9), slice(9, 32)]


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1), PASSES)
def test_vectors_come_back_in_the_order_of_their_texts(
    texts: list[list[int]], passes: Passes
) -> None:
    """Whatever the passes, each text has the vector of its own tokens.

    Fails when the vectors stay in the order of the passes.
    """
    ids_nt = np.full((len(texts), 12), PAD, np.int64)
    for row, text in zip(ids_nt, texts, strict=True):
        row[: len(text)] = text

    def forward(given_nt: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        first, total = given_nt[:, 0], given_nt.sum(axis=1)
        return np.stack([first, total], axis=1).astype(np.float32)

    found_nd = encode_by_length(ids_nt, forward, passes)
    expected_nd = forward(ids_nt)
    expected_nd /= np.linalg.norm(expected_nd, axis=1, keepdims=True)
    np.testing.assert_allclose(found_nd, expected_nd, rtol=1e-6)
