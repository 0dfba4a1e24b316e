"""Search itself: terms to one vector, vector to ranked images."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cra.services.gateway.background import Backgrounds
from cra.services.gateway.paging import NO_FIT, PageTokens, Position
from cra.services.gateway.query import MAX_RESULTS, Query, Term
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.towers import Served, Towers
from cra.shared import rpc, terms
from cra.shared.domain import ObjectRef, ScoredImage, SearchFilter, Vector, is_finite
from cra.shared.duplicates import fold
from cra.shared.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from cra.shared.ports import (
    EncodedTexts,
    Encoder,
    EncodeTiming,
    ImageProblem,
    ObjectStore,
    Priority,
    ReleaseState,
    VectorStore,
)
from cra.shared.relevance import LEAST, Scale

TIES: Final = 8
"""How many more are asked for than are shown, so that equal scores at the edge keep their order."""

MAX_DUPLICATES: Final = 100
"""Of one hit that are named."""

NO_NUMBER: Final = "an encoded vector holds what is no number"
ZERO_SUM: Final = 1e-6
WARMED_WITHIN: Final = 10.0
"""Seconds that the image tower which does not answer has for a text."""


@dataclass(frozen=True)
class RankedImage:
    """One hit."""

    rank: int
    image: ScoredImage
    url: str
    relevance: float | None = None
    duplicates: tuple[str, ...] = ()
    """Their image_ids."""


@dataclass(frozen=True)
class Ranking:
    """A page of hits, and how it came about."""

    hits: list[RankedImage]
    next_page_token: str
    text_release: str
    image_tower: str
    truncated: bool
    encode: EncodeTiming
    search_seconds: float
    expanded_texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _EncodedQuery:
    vector: Vector
    text_release: str
    truncated: bool
    timing: EncodeTiming
    expanded_texts: tuple[str, ...]


class SearchEngine:
    """Answers queries from an encoder and a vector store.

    Args:
        encoder: of the image tower that is searched.
        vectors: have a collection for each image tower.
        objects: sign URLs.
        page_tokens: make and read them.
        cache: remembers vectors of texts.
        other: encoder of a second image tower, while one moves; see `Towers`.
    """

    def __init__(
        self,
        encoder: Encoder,
        vectors: VectorStore,
        objects: ObjectStore,
        page_tokens: PageTokens,
        cache: QueryCache,
        other: Encoder | None = None,
    ) -> None:
        self._towers = Towers(encoder, other)
        self._vectors = vectors
        self._objects = objects
        self._page_tokens = page_tokens
        self._cache = cache
        self._terms = terms.architecture()
        self._backgrounds = Backgrounds(vectors)
        self._warming = threading.Lock()

    def close(self) -> None:
        """End what runs beside the queries."""
        self._towers.close()

    def search(self, query: Query) -> Ranking:
        """Answer one query, in the time that `rpc.caller` has.

        Raises:
            InvalidArgumentError: a picture cannot be read, the terms sum to zero, or the page
                token does not fit.
            NotFoundError: an image_id is not indexed or out of the caller's scope, or the release
                does not exist.
            FailedPreconditionError: the release that is named is refused or not loaded, or a least
                relevance is asked for of too few images.
            UnavailableError: a part that is needed does not answer, or not with numbers, or a least
                relevance is asked for before the index was sampled.
            DeadlineExceededError: the time is up, or the caller has hung up.
        """
        # One look-up decides encoder, tower and release for the whole request, so that a switch of
        # the active release in the middle cannot mix two.
        served, last = self._begin(query)
        tower = served.image_tower
        encoded = self._encode(query, served, last.text_release if last else query.text_release)
        release = encoded.text_release
        rpc.check_caller()
        page, more, took = self._page(query, tower, encoded.vector, last)
        token = ""
        if more:
            end = page[-1]
            token = self._page_tokens.make(
                query.digest,
                tower,
                Position(end.rank, end.image.score, end.image.record.ref.image_id, release),
            )
        return Ranking(
            page,
            token,
            release,
            tower,
            encoded.truncated,
            encoded.timing,
            took,
            encoded.expanded_texts,
        )

    def check(self) -> None:
        """Encode a text and search with it; raise what fails."""
        self._warm(self._towers.current())
        self._towers.beside(lambda served: self._warm(served, WARMED_WITHIN), self._warming)

    def _warm(self, served: Served, seconds: float | None = None) -> None:
        tower = served.models.image_tower
        # A gateway that comes up before the first image is ingested is ready all the same.
        self._vectors.ensure_collection(tower.fingerprint, tower.dimension)
        encoded = served.encoder.embed_texts(["建筑"], timeout=seconds)
        self._vectors.search(tower.fingerprint, _numbers(encoded.vectors[0]), 1, SearchFilter())
        self._backgrounds.refresh(tower.fingerprint)

    def _begin(self, query: Query) -> tuple[Served, Position | None]:
        """Return what is to answer a query, and where its page goes on."""
        if not query.page_token:
            return self._towers.of_release(query.text_release), None
        # A page goes on where it began, for as long as there is an encoder of that image tower.
        known = self._towers.image_towers()
        try:
            tower, last = self._page_tokens.read(query.page_token, query.digest, known)
        except InvalidArgumentError:
            self._towers.learn()  # it may fit the one that was down
            learnt = self._towers.image_towers()
            if learnt == known:
                raise
            tower, last = self._page_tokens.read(query.page_token, query.digest, learnt)
        if query.text_release not in {"", last.text_release}:
            raise InvalidArgumentError("page_token", "belongs to another text_release")
        served = self._towers.of_image_tower(tower)
        if served is None:
            raise InvalidArgumentError("page_token", NO_FIT)
        return served, last

    def _page(
        self, query: Query, tower: str, vector: Vector, last: Position | None
    ) -> tuple[list[RankedImage], bool, float]:
        """Return the hits after `last`, whether there are more, and how long the index took."""
        scale = self._scale(query, tower, vector)
        seen = last.rank if last else 0
        room = min(query.top_k, MAX_RESULTS - seen)
        after = (-last.score, last.image_id) if last else None
        ranked, took = self._ranked(query, tower, vector, scale, seen + room)
        rest = [
            (image, copies)
            for image, copies in ranked
            if after is None or (-image.score, image.record.ref.image_id) > after
        ]
        page = [
            RankedImage(
                seen + number,
                image,
                self._objects.signed_url(image.record.ref) if query.include_url else "",
                scale.relevance(image.score) if scale else None,
                copies,
            )
            for number, (image, copies) in enumerate(rest[:room], start=1)
        ]
        more = len(rest) > room and seen + room < MAX_RESULTS
        return page, more, took

    def _scale(self, query: Query, tower: str, vector: Vector) -> Scale | None:
        """Return what the query gives to images at random that its caller may see."""
        drawn = self._backgrounds.of(tower, query.where.scope)
        scale = drawn.background.scale(vector) if drawn and drawn.background else None
        if query.min_relevance is not None and scale is None:
            if drawn is None:
                raise UnavailableError("the index was not sampled yet, for min_relevance")
            raise FailedPreconditionError(
                f"min_relevance: there is no relevance where there are fewer than {LEAST} images, "
                "or all have the same score"
            )
        return scale

    def _ranked(
        self, query: Query, tower: str, vector: Vector, scale: Scale | None, count: int
    ) -> tuple[list[tuple[ScoredImage, tuple[str, ...]]], float]:
        """Return over `count` hits from the top, if there are so many, each with its copies.

        And the seconds that the index took to find them.
        """
        left_out = () if query.include_query_images else _image_refs(query.terms)

        def is_near(image: ScoredImage) -> bool:
            return (query.min_score is None or image.score >= query.min_score) and (
                query.min_relevance is None
                or scale is None
                or scale.relevance(image.score) >= query.min_relevance
            )

        def is_hit(image: ScoredImage) -> bool:
            return image.record.ref not in left_out and is_near(image)

        limit = count + len(left_out) + TIES
        if not query.fold_duplicates:
            start = time.perf_counter()
            found = self._vectors.search(tower, vector, limit, query.where)
            took = time.perf_counter() - start
            return [(image, ()) for image in found if is_hit(image)], took
        most = MAX_RESULTS + len(left_out) + TIES
        took = 0.0
        while True:
            limit = min(2 * limit, most)  # how many of them are copies is not known before
            start = time.perf_counter()
            found = self._vectors.search(tower, vector, limit, query.where, with_vectors=True)
            took += time.perf_counter() - start
            hits = [image for image in found if is_hit(image)]
            groups = fold(np.array([image.vector for image in hits]))
            all_seen = len(found) < limit or not is_near(found[-1])
            if len(groups) > count or all_seen or limit == most:
                break
        ranked = [
            (
                hits[best],
                tuple(hits[place].record.ref.image_id for place in copies[:MAX_DUPLICATES]),
            )
            for best, *copies in groups
        ]
        return ranked, took

    def _encode(self, query: Query, served: Served, named: str) -> _EncodedQuery:
        """Return the unit vector of the weighted sum of the terms.

        Args:
            query: the terms.
            served: is to answer it.
            named: the release that the caller asks for; the active one if empty.
        """
        tower = served.image_tower
        texts = [term for term in query.terms if isinstance(term.content, str)]
        images = [term for term in query.terms if isinstance(term.content, bytes)]
        refs = _image_refs(query.terms)
        sides: dict[str, Vector] = {}
        timing = EncodeTiming()
        truncated = False
        expanded: list[str] = []
        if texts:
            contents = [str(term.content) for term in texts]
            variants = [self._terms.variants(text) if query.expand else [] for text in contents]
            expanded = [text for texts_of in variants for text in texts_of]
            answer = self._embed_texts([*contents, *expanded], named, served)
            release = answer.text_release
            _same_tower(tower, answer.image_tower)
            others = iter(answer.vectors[len(texts) :])
            for term, own, vector in zip(texts, variants, answer.vectors, strict=False):
                sides[term.field] = terms.mean(vector, [next(others) for _ in own])
            truncated = any(answer.truncated[: len(texts)])
            timing = _add(timing, answer.timing)
        else:
            release = self._check_release(named, served)
        if images:
            pictures = served.encoder.embed_encoded_images(
                [bytes(term.content) for term in images if isinstance(term.content, bytes)],
                Priority.INTERACTIVE,
            )
            _same_tower(tower, pictures.image_tower)
            for term, result in zip(images, pictures.results, strict=True):
                if isinstance(result, ImageProblem):
                    raise InvalidArgumentError(term.field, f"{result.reason}: {result.message}")
                sides[term.field] = result
            timing = _add(timing, pictures.timing)
        if refs:
            # What is out of the caller's scope is not even looked for, so that how long the answer
            # takes tells nothing of it either.
            scope = query.where.scope
            allowed = [ref for ref in refs if not scope or ref.bucket in scope]
            found = self._vectors.fetch(tower, allowed) if allowed else []
            known = {image.record.ref: image.vector for image in found}
            for term in query.terms:
                if isinstance(term.content, ObjectRef):
                    if term.content not in known:
                        raise NotFoundError(
                            f"{term.field}: {term.content.image_id!r} is not indexed"
                        )
                    sides[term.field] = known[term.content]
        first, *more = query.terms
        total = first.weight * sides[first.field]
        for term in more:
            total += term.weight * sides[term.field]
        least = ZERO_SUM * max(abs(term.weight) for term in query.terms)
        unit = _unit(total, least)
        return _EncodedQuery(unit, release, truncated, timing, tuple(expanded))

    def _embed_texts(self, texts: list[str], named: str, served: Served) -> EncodedTexts:
        """Encode with the release that is named, else with the active one."""
        release = named or served.models.active_release.name
        known = served.models.release(release)
        try:
            # Of a release that is not loaded where this looked, only a replica can tell.
            if known is None or known.state is not ReleaseState.LOADED:
                answer = served.encoder.embed_texts(texts, release)
            else:

                def encode(missing: Sequence[str]) -> EncodedTexts:
                    found = served.encoder.embed_texts(missing, release)
                    for vector in found.vectors:
                        _numbers(vector)  # before the cache would keep it for good
                    return found

                answer = self._cache.embed(texts, known, served.image_tower, encode)
        except (NotFoundError, FailedPreconditionError):
            if named:
                raise
            # It was active a second ago, and not here. Nobody asked for it by name, so the one
            # that is active where this is answered will do.
            return served.encoder.embed_texts(texts)
        if answer.text_release != release:
            raise UnavailableError(f"{release!r} was asked for, {answer.text_release!r} answered")
        return answer

    def _check_release(self, named: str, served: Served) -> str:
        """Return the release that a query without text is said to be answered with."""
        active = served.models.active_release.name
        if named in {"", active}:
            return active
        release = self._towers.again(served).models.release(named)
        if release is None:
            raise NotFoundError(f"there is no text release {named!r}")
        if release.state is ReleaseState.REFUSED:
            raise FailedPreconditionError(f"the text release {named} is refused: {release.problem}")
        if self._towers.two and not release.image_tower:
            raise UnavailableError(f"it is not known yet which image tower {named} is of")
        return named


def _image_refs(terms: tuple[Term, ...]) -> tuple[ObjectRef, ...]:
    return tuple({t.content for t in terms if isinstance(t.content, ObjectRef)})


def _numbers(vector: Vector) -> Vector:
    """Return a vector that can be searched with; Milvus would rank by one that is none."""
    if not is_finite(vector):
        raise UnavailableError(NO_NUMBER)
    return vector


def _unit(total: Vector, least: float) -> Vector:
    """Return a sum of terms at the length 1; one that is shorter than `least` says nothing."""
    length = math.sqrt(total.dot(total))
    if not math.isfinite(length):
        raise UnavailableError(NO_NUMBER)
    if length < least:
        raise InvalidArgumentError("terms", "sum to zero; there is nothing to look for")
    return total / length


def _same_tower(expected: str, found: str) -> None:
    if found != expected:
        raise UnavailableError("the image tower is being switched; try again", retry_after=2.0)


def _add(one: EncodeTiming, other: EncodeTiming) -> EncodeTiming:
    return EncodeTiming(one.queue + other.queue, one.encode + other.encode)
