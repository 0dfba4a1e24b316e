"""The commands that measure and break things."""

import argparse

import pytest

from tests.commands import add_names


def test_names_may_be_left_out_and_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """Without names there are none, which stands for all; an unknown one is refused by name.

    Break: `choices=known` in place of `type=check`, which refuses to have none.
    """
    parser = argparse.ArgumentParser()
    add_names(parser, {"one": 1, "two": 2})
    assert parser.parse_args([]).names == []
    assert parser.parse_args(["two", "one"]).names == ["two", "one"]
    with pytest.raises(SystemExit):
        parser.parse_args(["three"])
    assert "'three' is none of one, two" in capsys.readouterr().err
