"""Splits by group, and duplicates that would leak between them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from cra.services.training.buildings.dataset import make
from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.data.duplicates import find_duplicates, near_pairs
from cra.services.training.data.split import split

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}
GROUPS = st.lists(st.text(max_size=8), max_size=40)


def _image(name: str, group: str, content: bytes = b"", caption: str = "") -> Image:
    return Image(name, group, (caption or name,), lambda: content)


def _dataset(groups: list[str]) -> DataSet:
    return DataSet(tuple(_image(str(i), group) for i, group in enumerate(groups)))


@given(groups=GROUPS, seed=st.integers(0, 100))
def test_no_group_is_torn_apart(groups: list[str], seed: int) -> None:
    """Every image is in exactly one part, in its order, with all of its group."""
    parts = split(_dataset(groups), SHARES, seed)
    assert list(parts) == list(SHARES)
    everything = sorted(int(image.image_id) for part in parts.values() for image in part.images)
    assert everything == list(range(len(groups)))
    homes: dict[str, set[str]] = {}
    for name, part in parts.items():
        ids = [int(image.image_id) for image in part.images]
        assert ids == sorted(ids)
        for image in part.images:
            homes.setdefault(image.group, set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


@given(groups=GROUPS, more=GROUPS, seed=st.integers(0, 100))
def test_more_data_moves_no_group(groups: list[str], more: list[str], seed: int) -> None:
    """What was in training stays in training when data is added: no test image is ever learnt."""
    before = split(_dataset(groups), SHARES, seed)
    after = split(_dataset([*more, *groups]), SHARES, seed)
    for name, part in before.items():
        assert {i.group for i in part.images} <= {i.group for i in after[name].images}


def test_parts_have_their_shares() -> None:
    """Of 4,000 groups, each part gets about its share; another seed splits otherwise."""
    whole = _dataset([f"project {i}" for i in range(4000)])
    parts = split(whole, SHARES)
    for name, share in SHARES.items():
        assert len(parts[name]) / 4000 == pytest.approx(share, abs=0.03)
    other = split(whole, SHARES, seed=1)
    assert {i.group for i in parts["test"].images} != {i.group for i in other["test"].images}


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_shares_must_add_up(shares: dict[str, float]) -> None:
    """Shares that are no whole are refused."""
    with pytest.raises(ValueError, match="add up"):
        split(_dataset(["a"]), shares)


def _smaller(content: bytes) -> bytes:
    with PillowImage.open(io.BytesIO(content)) as image:
        buffer = io.BytesIO()
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def test_duplicates_are_found_and_those_across_groups_come_first() -> None:
    """The same file, a smaller copy and an equal caption are each reported; other pictures not."""
    contents = [make(2 * i, "test").jpeg for i in range(6)]
    images = [_image(f"{i}", f"g{i}", content) for i, content in enumerate(contents)]
    images += [
        _image("copy", "g0", contents[0]),
        _image("stolen", "elsewhere", contents[1]),
        _image("small", "elsewhere", _smaller(contents[2])),
        _image("says", "g3", make(40, "test").jpeg, caption="4"),
    ]
    seen: list[int] = []
    found = find_duplicates(DataSet(tuple(images)), progress=seen.append)
    assert {(one.kind, one.first, one.second, one.across_groups) for one in found} == {
        ("same file", "1", "stolen", True),
        ("looks alike", "2", "small", True),
        ("same caption", "4", "says", True),
        ("same file", "0", "copy", False),
    }
    assert [one.across_groups for one in found] == sorted(
        (one.across_groups for one in found), reverse=True
    )
    assert seen == list(range(1, 11))


def test_what_cannot_be_decoded_has_no_duplicates() -> None:
    """A bad image ends no search, and equal garbage is no pair of duplicates."""
    good = make(0, "test").jpeg
    contents = [b"", b"garbage", b"garbage", good[:100], good]
    images = tuple(_image(str(i), "g", content) for i, content in enumerate(contents))
    assert find_duplicates(DataSet(images)) == []


def test_many_of_the_same_are_each_paired_with_the_first() -> None:
    """A thousand empty pictures give as many lines, not half a million."""
    content = make(0, "test").jpeg
    images = tuple(_image(str(i), "g", content) for i in range(40))
    found = find_duplicates(DataSet(images))
    assert [(one.first, one.second) for one in found] == [("0", str(i)) for i in range(1, 40)]


@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), max_size=20, unique=True),
    flips=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 63)), max_size=20),
    near=st.integers(0, 8),
)
def test_near_pairs_are_all_pairs_that_are_near(
    hashes: list[int], flips: list[tuple[int, int]], near: int
) -> None:
    """No pair is missed or told twice, and each comes with the bits that it differs in."""
    hashes += [hashes[place % len(hashes)] ^ (1 << bit) for place, bit in flips if hashes]
    expected = {
        (i, j, (one ^ other).bit_count())
        for i, one in enumerate(hashes)
        for j, other in enumerate(hashes)
        if i < j and (one ^ other).bit_count() <= near
    }
    found = list(near_pairs(np.array(hashes, np.uint64), near))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_near_pairs_are_found_across_blocks() -> None:
    """More hashes than are compared at once: the first and the last still meet."""
    hashes = np.random.default_rng(0).integers(0, 2**63, 5000, dtype=np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b101)
    hashes[4000] = hashes[2500] ^ np.uint64(1 << 62)
    assert list(near_pairs(hashes, 4)) == [(0, 4999, 2), (2500, 4000, 1)]
