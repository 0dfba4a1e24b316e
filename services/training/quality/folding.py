"""The normaliser cra-1 against none: queries written in other characters that mean the same."""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Final

import opencc

from cra.services.training.quality.world import SPEECHES, Row, World

NORMALIZER: Final = "cra-1"
_OLD: Final = str.maketrans("拱斗窗砖阶墙", "栱枓牕甎堦墻")
_COMPATIBLE: Final = str.maketrans(
    {
        unicodedata.normalize("NFKC", chr(code)): chr(code)
        for start, stop in ((0xF900, 0xFADA), (0x2F00, 0x2FD6))
        for code in range(start, stop)
        if unicodedata.normalize("NFKC", chr(code)) != chr(code)
    }
)
"""Kangxi radicals and compatibility ideographs, as text copied from PDF files has them."""


def rewritings() -> Mapping[str, Callable[[str], str]]:
    """Return ways of writing a text in other characters that mean the same."""
    traditional = opencc.OpenCC("s2t")
    return {
        "as they are": lambda text: text,
        "in traditional characters": lambda text: str(traditional.convert(text)),
        "with old variants (栱, 牕, 甎)": lambda text: text.translate(_OLD),
        "with compatibility forms (⽊ for 木)": lambda text: text.translate(_COMPATIBLE),
    }


def study(world: World) -> list[Row]:
    """Return a row for each way of writing, tower and way of speaking; only texts that change."""
    rows = []
    for speech in SPEECHES:
        captions = world.captions(speech)
        for name, rewrite in rewritings().items():
            queries = [
                (place, rewrite(text))
                for place, text in captions
                if name == "as they are" or rewrite(text) != text
            ]
            texts = [text for _, text in queries]
            for label in world.towers:
                off, on = (
                    world.found(queries, world.encode(label, texts, normalizer))
                    for normalizer in ("identity", NORMALIZER)
                )
                places = [place for place, _ in queries]
                title = f"{speech} captions {name}"
                rows.append(world.row("character folding", label, title, places, off, on))
    return rows
