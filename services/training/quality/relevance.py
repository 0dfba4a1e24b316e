"""One threshold for every query: on the calibrated relevance against on the raw score.

Shapes in this file: q queries, h hits of each, p pairs of both, b resamples, d embedding dimension.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training.buildings.attributes import SLOTS, phrases
from cra.services.training.evaluation.exact import Vectors
from cra.services.training.evaluation.intervals import Estimate
from cra.services.training.quality.world import K, Row, World
from cra.shared.relevance import LEAST, Background

SAMPLED: Final = 1000
OF_EACH_KIND: Final = 500
PASSED: Final = 0.01
"""Share of the wrong images above the threshold of `rates`."""
FEATURE: Final = "one threshold: relevance for score"
_THERE: Final = (
    "professional captions",
    "plain captions",
    "pictures, for others of the building",
)
MIXTURES: Final[Sequence[tuple[str, Callable[[str], bool]]]] = (
    ("all kinds", lambda kind: True),
    ("texts of all kinds", lambda kind: not kind.startswith("pictures")),
    ("captions and pictures, of what is there", lambda kind: kind in _THERE),
)
"""Kinds of queries that share a threshold, by name."""
_ELSEWHERE: Final = (
    "一只橘猫趴在键盘上", "一碗牛肉面", "夏天的海底珊瑚", "足球比赛的进球瞬间", "刚出炉的面包",
    "宇航员在月球上行走", "实验室里的显微镜", "高速行驶的摩托车", "一束白色玫瑰的特写",
    "小提琴和乐谱", "沙滩上的螃蟹", "手机充电器", "穿西装的男人在开会", "正在喝水的斑马",
    "热气腾腾的火锅", "一叠旧报纸", "滑雪运动员腾空而起", "牙医诊所的椅子", "蜂巢里的蜜蜂",
    "电路板的微距照片", "婴儿在睡觉", "拳击手套", "一篮子鸡蛋", "飞机驾驶舱的仪表",
    "国际象棋的棋子", "股票走势图", "显微镜下的细胞", "咖啡杯上的拉花", "旧金山的出租车票",
    "森林里的小鹿喝溪水",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Kind:
    """Queries of one kind, and which images are right."""

    name: str
    queries_qd: Vectors
    right_qn: npt.NDArray[np.bool_]
    left_out_qn: npt.NDArray[np.bool_]
    """Images that are not searched."""
    places: tuple[int, ...]
    """Pictures of the buildings that the queries are about, by which they are resampled."""


@dataclass(frozen=True, eq=False)
class Hits:
    """The best `K` of each query. All [q, h]."""

    score: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]
    """How far the score stands above the mean of the background."""
    right: npt.NDArray[np.bool_]


def study(world: World) -> list[Row]:
    """Return a row for the mixture of all kinds, and for each kind by itself.

    The threshold of every row is the one that is best for the mixture: it is chosen on one half of
    the buildings and measured on the other, and the other way round.
    """
    kinds = list(_kinds(world))
    hits = [_hits(world, kind) for kind in kinds]
    whole = Hits(*(np.concatenate(parts) for parts in zip(*map(_fields, hits), strict=True)))
    places = [place for kind in kinds for place in kind.places]
    half_q = _halves(world, places)
    scored = [_cross(figures, whole.right, half_q) for figures in (whole.score, whole.deviations)]
    measure = "F1 of hits above one threshold"
    rows = [world.row(FEATURE, "tuned", "all kinds", places, scored[0], scored[1], measure)]
    start = 0
    for kind in kinds:
        part = slice(start, start + len(kind.places))
        start = part.stop
        off_q, on_q = (one[part] for one in scored)
        rows.append(world.row(FEATURE, "tuned", kind.name, kind.places, off_q, on_q, measure))
    return rows


def areas(world: World) -> list[tuple[str, Estimate, Estimate, Estimate]]:
    """Return how often a right hit of any query stands above a wrong one of any other.

    Returns:
        for each mixture of kinds its name and the area under the curve of the score, of the
        relevance, and their difference; intervals by bootstrap over queries.
    """
    hits = [(kind.name, _hits(world, kind)) for kind in _kinds(world)]
    return [(name, *_areas_of([h for kind, h in hits if has(kind)])) for name, has in MIXTURES]


def _areas_of(hits: Sequence[Hits]) -> tuple[Estimate, Estimate, Estimate]:
    whole = Hits(*(np.concatenate(parts) for parts in zip(*map(_fields, hits), strict=True)))
    rng = np.random.default_rng(0)
    count = len(whole.score)
    drawn_bq = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(500)]
    weights_bq = [np.ones(count, np.int64), *drawn_bq]
    off_b, on_b = (
        _areas(figures, whole.right, weights_bq) for figures in (whole.score, whole.deviations)
    )
    return _estimate(off_b), _estimate(on_b), _estimate(on_b - off_b)


def rates(world: World) -> list[tuple[str, float, float]]:
    """Return how much of what is wrong stands above one threshold: of the score, of the relevance.

    Each threshold lets through 1 % of the wrong images, in the mean of the kinds. Images that the
    background was made of do not count.

    Returns:
        a share for each kind of queries, then its standard deviation over all queries and the
        share that a tenth of the queries exceeds.
    """
    order = np.random.default_rng(1).permutation(len(world.images_nd))
    drawn = max(LEAST, min(SAMPLED, len(order) // 2))
    background, rest = _background(world.images_nd[order[:drawn]]), order[drawn:]
    kinds = list(_kinds(world))
    columns = []
    for relative in (False, True):
        figures, wrong = [], []
        for kind in kinds:
            scores_qn = (kind.queries_qd @ world.images_nd[rest].T).astype(np.float64)
            figures.append(_deviations(background, kind, scores_qn) if relative else scores_qn)
            wrong.append(~(kind.right_qn | kind.left_out_qn)[:, rest])
        pairs = list(zip(figures, wrong, strict=True))
        all_p = np.concatenate([figure[is_wrong] for figure, is_wrong in pairs])
        weights_p = np.concatenate([np.full(one.sum(), 1 / one.sum()) for one in wrong])
        falling = np.argsort(-all_p, kind="stable")
        passed_p = np.cumsum(weights_p[falling]) / len(kinds)
        bound = all_p[falling][np.searchsorted(passed_p, PASSED)]
        shares = [((f >= bound) & w).sum(axis=1) / w.sum(axis=1).clip(1) for f, w in pairs]
        over_q = np.concatenate(shares)
        spread = [float(over_q.std()), float(np.quantile(over_q, 0.9))]
        columns.append([float(share.mean()) for share in shares] + spread)
    names = [kind.name for kind in kinds]
    names += ["standard deviation over all queries", "exceeded by a tenth of the queries"]
    return list(zip(names, *columns, strict=True))


def fit(world: World) -> tuple[float, float]:
    """Return middle and width of the logistic curve that tells right hits from wrong ones best."""
    hits = [_hits(world, kind) for kind in _kinds(world)]
    z_p = np.concatenate([one.deviations.ravel() for one in hits])
    right_p = np.concatenate([one.right.ravel() for one in hits]).astype(np.float64)
    # Newton's method on the likelihood of two parameters.
    design_p2 = np.stack([z_p, np.ones_like(z_p)], axis=1)
    slope = np.array([1.0, -3.0])
    for _ in range(50):
        chance_p = 1 / (1 + np.exp(-design_p2 @ slope))
        gradient = design_p2.T @ (right_p - chance_p)
        curvature = design_p2.T @ (design_p2 * (chance_p * (1 - chance_p))[:, None])
        slope = slope + np.linalg.solve(curvature, gradient)
    return float(-slope[1] / slope[0]), float(1 / slope[0])


def scales(world: World) -> list[tuple[str, float, float, float]]:
    """Return for each kind the mean score of its best hit, and the relevance's mean and least."""
    found = []
    for kind in _kinds(world):
        hits = _hits(world, kind)
        best = hits.deviations[:, 0]
        found.append(
            (kind.name, float(hits.score[:, 0].mean()), float(best.mean()), float(best.std()))
        )
    return found


def _kinds(world: World) -> Iterator[Kind]:
    rng = np.random.default_rng(0)
    nothing_n = np.zeros(len(world.pictures), dtype=bool)

    def texts(name: str, asked: Sequence[tuple[int, str, tuple[str, ...]]], *, gone: bool) -> Kind:
        right_qn = np.array([world.shows_all(facts) for _, _, facts in asked])
        return Kind(
            name,
            world.encode("tuned", [text for _, text, _ in asked]),
            right_qn & (not gone),
            right_qn & gone,
            tuple(place for place, _, _ in asked),
        )

    for speech in ("professional", "plain"):
        captions = world.captions(speech)
        chosen = rng.permutation(len(captions))[: 2 * OF_EACH_KIND]
        asked = [
            (place, text, world.pictures[place].names[text])
            for place, text in (captions[number] for number in chosen)
        ]
        yield texts(f"{speech} captions", asked[:OF_EACH_KIND], gone=False)
        name = f"{speech} captions of what the index lacks"
        yield texts(name, asked[OF_EACH_KIND:], gone=True)
    yield texts("single words", list(_words(world)), gone=False)
    chosen = rng.permutation(len(world.pictures))[:OF_EACH_KIND]
    buildings = np.array([picture.building for picture in world.pictures])
    itself_qn = chosen[:, None] == np.arange(len(buildings))
    yield Kind(
        "pictures, for others of the building",
        world.images_nd[chosen],
        (buildings[chosen][:, None] == buildings) & ~itself_qn,
        itself_qn,
        tuple(chosen.tolist()),
    )
    none_qn = np.tile(nothing_n, (len(_ELSEWHERE), 1))
    # Each about a building of its own, so that each is resampled by itself.
    places = tuple(range(0, 2 * len(_ELSEWHERE), 2))
    elsewhere_qd = world.encode("tuned", _ELSEWHERE)
    yield Kind("texts about other things", elsewhere_qd, none_qn, none_qn, places)


def _words(world: World) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for slot, spec in SLOTS.items():
        for key in spec.values:
            fact = f"{slot}={key}"
            showing = np.flatnonzero(world.shows_all([fact]))
            for word in (*phrases(fact, "plain"), *phrases(fact, "professional")):
                if len(showing):
                    yield int(showing[0]), word, (fact,)


def _hits(world: World, kind: Kind) -> Hits:
    sample = np.random.default_rng(1).permutation(len(world.images_nd))[:SAMPLED]
    background = _background(world.images_nd[sample])
    scores_qn = (kind.queries_qd @ world.images_nd.T).astype(np.float64)
    scores_qn[kind.left_out_qn] = -np.inf
    best_qh = np.argsort(-scores_qn, axis=1, kind="stable")[:, :K]
    score_qh = np.take_along_axis(scores_qn, best_qh, axis=1)
    deviations_qh = _deviations(background, kind, score_qh)
    return Hits(score_qh, deviations_qh, np.take_along_axis(kind.right_qn, best_qh, axis=1))


def _background(images_nd: Vectors) -> Background:
    background = Background.of(images_nd)
    if background is None:
        raise ValueError(f"{len(images_nd)} pictures are too few")
    return background


def _deviations(
    background: Background, kind: Kind, scores_qh: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    found_qh = np.empty_like(scores_qh)
    for row, query in enumerate(kind.queries_qd):
        scale = background.scale(query)
        if scale is None:
            raise ValueError("a query gives every picture the same score")
        found_qh[row] = (scores_qh[row] - scale.mean) / scale.deviation
    return found_qh


def _fields(hits: Hits) -> tuple[npt.NDArray[np.generic], ...]:
    return hits.score, hits.deviations, hits.right


def _halves(world: World, places: Sequence[int]) -> npt.NDArray[np.bool_]:
    numbers: Mapping[str, int] = {
        name: number for number, name in enumerate(sorted({p.building for p in world.pictures}))
    }
    return np.array([numbers[world.pictures[place].building] % 2 == 0 for place in places])


def _cross(
    figures_qh: npt.NDArray[np.float64],
    right_qh: npt.NDArray[np.bool_],
    half_q: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Return the F1 of each query at the threshold that is best for the other half. Shape [q]."""
    found_q = np.empty(len(figures_qh))
    for half in (half_q, ~half_q):
        figures, right = figures_qh[~half], right_qh[~half]
        bounds = np.quantile(figures, np.linspace(0.0, 1.0, 201))
        best = max(bounds, key=lambda bound, f=figures, r=right: float(f1(f, r, bound).mean()))  # type: ignore[misc]
        found_q[half] = f1(figures_qh[half], right_qh[half], best)
    return found_q


def f1(
    figures_qh: npt.NDArray[np.float64], right_qh: npt.NDArray[np.bool_], bound: float
) -> npt.NDArray[np.float64]:
    """Return the F1 of the hits at or above a bound, for each query. Shape [q].

    1 for a query without a right hit of which nothing is above the bound.
    """
    above_qh = figures_qh >= bound
    both_q = (above_qh & right_qh).sum(axis=1)
    total_q = above_qh.sum(axis=1) + right_qh.sum(axis=1)
    return np.where(total_q == 0, 1.0, 2 * both_q / np.maximum(total_q, 1))


def _areas(
    figures_qh: npt.NDArray[np.float64],
    right_qh: npt.NDArray[np.bool_],
    weights_bq: Sequence[npt.NDArray[np.int64]],
) -> npt.NDArray[np.float64]:
    """Return the area under the curve with each query counted so often. Shape [b]."""
    order = np.argsort(figures_qh, axis=None)
    right_p, query_p = right_qh.ravel()[order], order // figures_qh.shape[1]
    found = []
    for weights_q in weights_bq:
        weights_p = weights_q[query_p].astype(np.float64)
        wrong_below_p = np.cumsum(weights_p * ~right_p)
        total = (weights_p * right_p).sum() * wrong_below_p[-1]
        found.append((weights_p * right_p * wrong_below_p).sum() / total)
    return np.array(found)


def _estimate(values_b: npt.NDArray[np.float64]) -> Estimate:
    """Return the first value, with the interval of the others."""
    low, high = np.quantile(values_b[1:], [0.025, 0.975])
    return Estimate(float(values_b[0]), float(low), float(high))
