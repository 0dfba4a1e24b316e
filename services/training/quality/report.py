"""The page of what each feature brings, as Markdown and JSON."""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cra.services.training.evaluation.intervals import Estimate
from cra.services.training.evaluation.tables import p_value, percent, points
from cra.services.training.miniature.report import table
from cra.services.training.quality.duplicates import BOUNDS, PICTURES
from cra.services.training.quality.world import Row
from cra.shared import duplicates, relevance, terms
from cra.shared.settings import Settings


@dataclass(frozen=True)
class Page:
    """All that was measured."""

    split: str
    pictures: int
    towers: Mapping[str, str]
    rows: Sequence[Row]
    grid: Sequence[tuple[str, str, str, float]]
    """R@20 of expansion: queries, tower, setting, share."""
    areas: Sequence[tuple[str, Estimate, Estimate, Estimate]]
    """Of mixtures of queries: under the curve of score and of relevance, and their difference."""
    rates: Sequence[tuple[str, float, float]]
    """Per kind of queries: share of wrong images above one threshold of score, of relevance."""
    fitted: tuple[float, float]
    """Middle and width of the curve that fits best."""
    scales: Sequence[tuple[str, float, float, float]]
    """Of each kind of queries: mean score of the best hit, mean and spread of its deviations."""
    bounds: Sequence[tuple[str, Sequence[float]]]
    """Share of pairs at or above each of `BOUNDS`."""
    minutes: float


def markdown(page: Page) -> str:
    """Return the page."""
    groups = len(terms.architecture().groups)
    return f"""# What each feature of search brings

    make quality

measures every feature on against off, on {page.pictures:,} rendered pictures of buildings that no
tower has seen (`{page.split}`; constants were chosen on the validation set). Towers: base
`{page.towers["base"]}`, which knows everyday words only, and tuned `{page.towers["tuned"]}`.
Search is the exact matrix of all cosines. Figures are per cent with their 95 % interval by
bootstrap over buildings; p is that of the paired test.

## Character folding: the normaliser `cra-1` against none

On for releases that were tuned with it; the base model's own tower is served with none, since its
weights were trained with none.

{_rows(page.rows, "character folding")}

## Query expansion: {groups} groups of names

A text that holds a term is encoded with its other names as well (at most {terms.MAX_VARIANTS}
variants), and the mean is searched for, in which the text as it was written has a share of
{terms.TEXT_WEIGHT:g}. Where neither a search nor `CRA_EXPAND_QUERIES` says, it is {_default()}:
on would take that no kind of queries below loses by it, at a p of under 0.05.

{_rows(page.rows, "query expansion")}

R@20 by the number of variants and the share of the text; professional captions that hold a term,
as they are and with their terms under names of no caption:

{_grid(page.grid)}

## Relevance: one threshold for every query

Which of a query's best 20 are right, told by one threshold for queries of all kinds: captions,
single words, pictures, captions of what the index has nothing of, and texts about other things.
Right is a picture that shows all that is named, or another one of the same building. The threshold
is the best one for the mixture, chosen on one half of the buildings and measured on the other. F1
is per query, 1 where nothing is right and nothing is above the threshold.

{_rows(page.rows, "one threshold: relevance for score")}

What relevance is for: that one threshold lets through as much of what is wrong for every query.
Per cent of the wrong images above the threshold that lets 1 % through in the mean of the kinds:

{table(("queries", "score", "relevance"), _rates(page.rates))}

Relevance does not order the hits of one query otherwise than the score does. Between queries it
takes away how much each gives to everything, also where that told something: a single word that
every other picture shows has no hit far above the index. So mixtures with words are told apart
better by the score, captions mixed with pictures by relevance (area below); by F1 above, captions
gain and pictures lose.

Tried on the validation set, and not kept: median and median deviation in place of mean and standard
deviation (less even), and the mean score of the best 2 % of the sample as the unit (a little more
even, 0.73 against 0.87 of standard deviation, from 500 images), with which right pictures that are
2 % of an index push themselves down to what chance gives. A sample of 100 in place of 500 is less
even (1.04 against 0.87).

Area under the curve, how often a right hit of any query stands above a wrong one of any other:

{table(("queries", "score", "relevance", "difference"), _areas(page.areas))}

The best hit of each kind: its score, and how many deviations it stands above what its query gives
to images at random:

{table(("queries", "score", "deviations", "spread of the deviations"), _scales(page.scales))}

relevance = 1 / (1 + exp(({relevance.MIDDLE:g} - z) / {relevance.WIDTH:g})), z in deviations. A
logistic curve, since the tail of a normal distribution would put all that matters above 0.999. The
one that fits right and wrong hits best has its middle at {page.fitted[0]:.2f} and a width of
{page.fitted[1]:.2f}.

## Near-duplicates folded

{_rows(page.rows, "near-duplicates folded")}

Per cent of {min(PICTURES, page.pictures)} pictures with a cosine of at least the bound; in force
is {duplicates.BOUND:g}:

{table(("pairs", *(f"{bound:g}" for bound in BOUNDS)), _bounds(page.bounds))}

The bound keeps clear of other pictures rather than finding every copy: one that is hidden by
mistake is not seen again, a copy that is shown costs a place.

## Crops of very wide and very tall pictures

The vector of the whole picture, squashed to a square (off), against its mean with the vectors of
three square crops, or those alone, on pictures of 3:1.

{_rows(page.rows, "crops, with the whole", "crops alone")}

The mean of the whole with its crops is what should be indexed of such pictures. It is not in force:
an image costs four encodings then, and an index that was made without has to be made anew under an
image tower of another fingerprint.

Measured on {datetime.date.today().isoformat()} in {page.minutes:.1f} minutes.
"""


def figures(page: Page) -> str:
    """Return all figures as JSON."""
    return json.dumps(dataclasses.asdict(page), ensure_ascii=False, indent=1) + "\n"


def _default() -> str:
    return "on" if Settings.model_fields["expand_queries"].default else "off"


def _rows(rows: Iterable[Row], *features: str) -> str:
    chosen = [row for row in rows if row.feature in features]
    several = len(features) > 1
    measures = len({row.measure for row in chosen}) > 1
    header = [*(["on"] if several else []), "queries", "tower", "count"]
    header += [*(["measure"] if measures else []), "off", "on", "gain", "p"]
    lines = [
        [
            *([row.feature] if several else []),
            row.queries,
            row.tower,
            f"{row.count:,}",
            *([row.measure] if measures else []),
            percent(row.off),
            percent(row.on),
            points(row.gain),
            p_value(row.gain),
        ]
        for row in chosen
    ]
    measured = "" if measures else f"Measured: {chosen[0].measure}.\n\n"
    return measured + table(header, lines)


def _grid(grid: Sequence[tuple[str, str, str, float]]) -> str:
    settings = list(dict.fromkeys(setting for _, _, setting, _ in grid))
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for queries, tower, setting, share in grid:
        lines.setdefault((queries, tower), {})[setting] = f"{100 * share:.1f}"
    rows = [[*key, *(line[setting] for setting in settings)] for key, line in lines.items()]
    return table(("terms", "tower", *settings), rows)


def _rates(rates: Sequence[tuple[str, float, float]]) -> list[list[str]]:
    return [[name, f"{100 * off:.2f}", f"{100 * on:.2f}"] for name, off, on in rates]


def _scales(scales: Sequence[tuple[str, float, float, float]]) -> list[list[str]]:
    return [
        [name, f"{score:.2f}", f"{mean:.1f}", f"{spread:.1f}"]
        for name, score, mean, spread in scales
    ]


def _bounds(bounds: Sequence[tuple[str, Sequence[float]]]) -> list[list[str]]:
    return [
        [name, *(f"{100 * one:.2f}" if 0 < one < 0.01 else f"{100 * one:.1f}" for one in shares)]
        for name, shares in bounds
    ]


def _areas(areas: Sequence[tuple[str, Estimate, Estimate, Estimate]]) -> list[list[str]]:
    return [[name, _share(off), _share(on), _share(gain, "+.3f")] for name, off, on, gain in areas]


def _share(one: Estimate, form: str = ".3f") -> str:
    return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}})"
