"""A whole evaluation: one or two text towers, by the exact matrix and through the gateway."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cra.services.training import features
from cra.services.training.data.dataset import DataSet
from cra.services.training.evaluation import exact, intervals, live, misses
from cra.services.training.evaluation.exact import Answers, Vectors
from cra.services.training.evaluation.live import LiveEvaluation, LiveGallery
from cra.services.training.evaluation.queries import KINDS, Kind, Queries, ask, has
from cra.services.training.evaluation.report import Data, Report, Section
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import BadImageError
from cra.shared.model.text_tower import TextTower

MISSES: Final = 12

Listen = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Options:
    """How an evaluation is done."""

    cache: Path
    """Folder of image features."""
    misses: int = MISSES
    """Worst misses of each kind of captions that are shown."""
    resamples: int = intervals.RESAMPLES
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Asked:
    """One kind of captions, and how the tower under evaluation answered."""

    queries: Queries
    answers: Answers


@dataclass(frozen=True, eq=False)
class Outcome:
    """A report, and what exports need beyond it."""

    report: Report
    pictures: Mapping[int, str]
    """Data URIs of the images that the misses show, by place."""
    images_nd: Vectors
    """Unit vectors of the gallery."""
    asked: Mapping[Kind, Asked]


def run(
    dataset: DataSet,
    location: str,
    image_tower: ImageTower,
    towers: Sequence[TextTower],
    options: Options,
    gallery: LiveGallery | None = None,
    listen: Listen = lambda what, done, total: None,
) -> Outcome:
    """Evaluate text towers on a data set, the last one in full, a first one to compare it with.

    Args:
        dataset: images and captions.
        location: where the data set was found, for the report.
        image_tower: encodes the images, once: features are cached.
        towers: one or two.
        options: how.
        gallery: the same images behind a gateway, to measure the service too.
        listen: progress.

    Raises:
        FailedPreconditionError: a tower was made for another image tower, there are no captions,
            an image cannot be decoded, or the gateway does not serve what is to be measured.
        NotFoundError: the gateway does not have a release.
    """
    for tower in towers:
        if tower.image_tower != image_tower.image_tower:
            raise FailedPreconditionError(
                f"{tower.release} was made for image tower {tower.image_tower}, "
                f"the model's is {image_tower.image_tower}"
            )
    kinds = [kind for kind in KINDS if has(dataset, kind)]
    if not kinds:
        raise FailedPreconditionError(f"{location} has no captions")
    names = tuple(tower.release for tower in towers)
    if gallery is not None:
        gallery.check(_of("looked up in the index", len(dataset), listen))
    images_nd = _features(dataset, image_tower, options.cache, listen)
    sections: list[Section] = []
    asked: dict[Kind, Asked] = {}
    for kind in kinds:
        # The same queries and right images for both, as the tower under evaluation reads them.
        queries = ask(dataset, kind, towers[-1].tokenizer.normalize)
        answers = [_answer(queries, images_nd, tower, listen) for tower in towers]
        asked[kind] = Asked(queries, answers[-1])
        figures = (options.resamples, options.seed)
        models = list(zip(names, answers, strict=True))
        sections.append(
            Section(
                kind,
                tuple(exact.summarise(name, queries, one, None, *figures) for name, one in models),
                exact.compare(queries, models[0], models[-1], *figures) if towers[1:] else None,
                _live(gallery, queries, images_nd, models, image_tower, options, listen),
                tuple(misses.worst(queries, dataset, images_nd, models, options.misses)),
            )
        )
    shown = misses.places_of(miss for section in sections for miss in section.misses)
    report = Report(
        Data(
            location,
            dataset.digest,
            len(dataset),
            len({image.group for image in dataset.images}),
            len(dataset.problems),
        ),
        names,
        image_tower.image_tower,
        datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        options.resamples,
        options.seed,
        tuple(sections),
    )
    return Outcome(report, misses.thumbnails(dataset, shown), images_nd, asked)


def _features(dataset: DataSet, tower: ImageTower, cache: Path, listen: Listen) -> Vectors:
    progress = _of("image features", len(dataset), listen)
    try:
        images_nd: Vectors = features.load(dataset.images, tower, cache, progress=progress)[0]
    except BadImageError as error:
        raise FailedPreconditionError(error.message) from error
    return images_nd


def _answer(queries: Queries, images_nd: Vectors, tower: TextTower, listen: Listen) -> Answers:
    count = len(queries.texts)
    progress = _of(f"{queries.kind} encoded by {tower.release}", count, listen)
    texts_qd = exact.encode_texts(tower, queries.texts, progress)
    both = _of(f"{queries.kind} ranked by {tower.release}", count + len(queries.images), listen)
    return exact.answer(queries, images_nd, texts_qd, both)


def _live(
    gallery: LiveGallery | None,
    queries: Queries,
    images_nd: Vectors,
    models: Sequence[tuple[str, Answers]],
    image_tower: ImageTower,
    options: Options,
    listen: Listen,
) -> tuple[LiveEvaluation, ...]:
    if gallery is None:
        return ()
    found = []
    for name, answers in models:
        progress = _of(f"{queries.kind} searched by {name}", len(queries.texts), listen)
        hits = gallery.search(queries.texts, name, image_tower.image_tower, progress)
        found.append(
            live.measure(
                name,
                queries,
                images_nd,
                answers.texts_qd,
                hits,
                gallery.order_n,
                options.resamples,
                options.seed,
            )
        )
    return tuple(found)


def _of(what: str, total: int, listen: Listen) -> Callable[[int], None]:
    return lambda done: listen(what, done, total)
