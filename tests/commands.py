"""What the commands of this folder have in common."""

import argparse
from collections.abc import Iterable


def add_names(parser: argparse.ArgumentParser, known: Iterable[str]) -> None:
    """Add the argument `names`: some of those that are known, or none, which stands for all."""
    known = tuple(known)

    def check(name: str) -> str:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return name

    # Not by `choices`, which refuse to have none.
    parser.add_argument(
        "names",
        nargs="*",
        type=check,
        metavar="NAME",
        help=f"all if none is given: {', '.join(known)}",
    )
