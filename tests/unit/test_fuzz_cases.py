"""What the fuzzers know: their corpus, and every case that once broke a target, without them."""

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import FOLDER, TARGETS, text
from tests.hostile import HOSTILE

CASES = sorted(
    file
    for kind in ("corpus", "found")
    for target in TARGETS
    for file in (FOLDER / kind / target).glob("*")
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_a_corpus(target: str) -> None:
    """The fuzzer of each target begins where it once came to."""
    assert len([case for case in CASES if case.parts[-3:-1] == ("corpus", target)]) > 10


def test_the_corpus_is_small() -> None:
    """All cases together are well under a megabyte."""
    assert sum(case.stat().st_size for case in CASES) < 700_000


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_holds(target: str) -> None:
    """Each input of a target's corpus and of what it once found keeps what the target asks."""
    check = importlib.import_module(f"tests.fuzz.{target}").check
    for case in CASES:
        if case.parent.name == target:
            try:
                check(case.read_bytes())
            except BaseException as error:
                error.add_note(f"the case is {case.relative_to(Path.cwd())}")
                raise


@given(
    st.text(max_size=60) | st.lists(st.sampled_from([*HOSTILE, *"斗栱傳統ﷺ①Ａ “”"])).map("".join)
)
def test_any_text_keeps_what_the_target_asks(given_text: str) -> None:
    """Whatever a text holds, it is refused or folded once for all, and its token ids are in range.

    Fails when a row of ids is not cut.
    """
    text.check(given_text.encode("utf-8", "replace"))
