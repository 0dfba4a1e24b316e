"""Terms of architecture and their other names."""

import numpy as np
import pytest

from cra.shared import terms
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.text import MAX_CHARACTERS, NORMALIZERS
from cra.shared.terms import Terms


def test_the_list_holds() -> None:
    """Over 200 groups; each name in one alone, normalised, and the well-known ones together."""
    groups = terms.architecture().groups
    names = [name for group in groups for name in group]
    assert len(groups) >= 200
    assert len(names) == len(set(names))
    assert all(NORMALIZERS["cra-1"](name) == name and len(name) >= 2 for name in names)
    together = {name: group for group in groups for name in group}
    for one, other in (
        ("飞扶壁", "扶拱垛"),
        ("斗拱", "铺作"),
        ("歇山顶", "九脊顶"),
        ("庑殿顶", "四阿顶"),
        ("攒尖顶", "撮尖顶"),
        ("鸱吻", "正吻"),
        ("雀替", "插角"),
        ("女儿墙", "压檐墙"),
        ("玫瑰窗", "玫瑰花窗"),
        ("尖券", "尖拱"),
    ):
        assert other in together[one]


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([["斗拱", "铺作"], ["斗科", "斗拱"]], "stands twice"),
        ([["斗栱", "铺作"]], "written as"),
        ([["飛扶壁", "扶拱垛"]], "written as"),
        ([["券", "拱券"]], "two characters"),
        ([["斗拱"]], "two names"),
    ],
)
def test_a_bad_list_is_refused(groups: list[list[str]], problem: str) -> None:
    """What would be ambiguous, or never found, is an error that names it."""
    with pytest.raises(FailedPreconditionError, match=problem):
        Terms(groups)


def test_the_longest_name_is_found() -> None:
    """A term inside a longer one is not found by itself."""
    some = Terms([["幕墙", "帷幕墙"], ["玻璃幕墙", "玻璃帷幕"], ["雀替", "插角"]])
    assert some.find("玻璃幕墙和石材幕墙，雀替") == ["玻璃幕墙", "幕墙", "雀替"]
    assert some.variants("玻璃幕墙大楼") == ["玻璃帷幕大楼"]


def test_variants_take_the_names_in_turn_and_are_bounded() -> None:
    """The k-th variant has the k-th other name of every term; there are no more than asked for."""
    some = Terms([["甲一", "甲二", "甲三", "甲四"], ["乙一", "乙二"]])
    assert some.variants("甲二与乙一", 3) == ["甲一与乙二", "甲三与乙二", "甲四与乙二"]
    assert some.variants("甲二与乙一", 1) == ["甲一与乙二"]
    assert some.variants("甲二", 0) == []
    assert some.variants("没有") == []


def test_what_the_normaliser_folds_is_found() -> None:
    """Traditional characters and old variants are terms too."""
    some = terms.architecture()
    assert some.variants("飛扶壁", 1) == ["扶拱垛"]
    assert some.variants("斗栱", 1) == ["铺作"]


def test_a_variant_that_would_be_too_long_is_left_out() -> None:
    """No text is encoded that a caller could not have sent."""
    some = Terms([["甲一", "甲一二三四"]])
    assert some.variants("甲一" + "墙" * (MAX_CHARACTERS - 5)) != []
    assert some.variants("甲一" + "墙" * (MAX_CHARACTERS - 4)) == []


def test_the_mean_is_of_unit_length_and_weighted() -> None:
    """The text has its share, its variants the rest together; alone it is unchanged."""
    one, other = np.eye(2, dtype=np.float32)
    assert terms.mean(one, []) is one
    found = terms.mean(one, [other, other], weight=0.8)
    assert np.linalg.norm(found) == pytest.approx(1.0)
    assert found[0] / found[1] == pytest.approx(4.0)
    np.testing.assert_array_equal(terms.mean(one, [-one], weight=0.5), one)
