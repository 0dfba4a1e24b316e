"""Which image tower answers: the one that there is, or of two the one that the pointer names.

While an image tower moves there are two embedding services. The pointer to the active release names
the image tower that it was chosen for, and so which of the two answers: one change of it is the
move, and one back the way back.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import structlog

from cra.shared import tracing
from cra.shared.errors import CraError, UnavailableError
from cra.shared.metrics import show_release
from cra.shared.ports import Encoder, Models, ReleaseState
from cra.shared.releases import Choice

MODELS_LAST: Final = 1.0
"""Seconds that what an encoder serves is remembered. It looks every two seconds itself, so a change
of the active release is in force well within five."""

CHOICE_LASTS: Final = 60.0
"""Seconds after which a choice that nobody tells of any more gives way to an older one: replicas
see a change at different times, and who removes the pointer's object begins anew."""

ANSWERS_SOON: Final = 1.0
"""Seconds that a query waits for the image tower that does not answer now, to learn whether it has
the release that is named."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Served:
    """An encoder and what it serves, as of one look: what a whole request is answered with."""

    encoder: Encoder
    models: Models

    @property
    def image_tower(self) -> str:
        """Fingerprint of its image tower."""
        return self.models.image_tower.fingerprint


class _Watched:
    """An encoder, and what it said last."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder: Final = encoder
        self.said: Models | None = None
        """Kept when it goes down, so that it is still known which image tower is down."""
        self.tried = False
        self._at = self._said_at = self._beside_at = -CHOICE_LASTS
        self._asking, self._beside = threading.Lock(), threading.Lock()
        self._problem = ""

    def look(self, *, again: bool = False) -> Served:
        """Return what it serves, as of a second ago at most, or of now.

        Raises:
            UnavailableError: it does not answer.
        """
        now = time.monotonic()
        if self.said is not None and self._at >= now - MODELS_LAST and not again:
            return Served(self.encoder, self.said)
        # One asks for all; those that come meanwhile do with what was known.
        alone = self._asking.acquire(blocking=False)
        try:
            recent = self._at >= now - 2 * MODELS_LAST
            if self.said is not None and recent and not alone and not again:
                return Served(self.encoder, self.said)
            self.tried = True
            models = self.encoder.models()
            self._at = now
            if self.said is None or not self._is_behind(models):
                self.said, self._said_at = models, now
            return Served(self.encoder, self.said)
        finally:
            if alone:
                self._asking.release()

    def _is_behind(self, models: Models) -> bool:
        """Tell whether a replica has not seen a pointer yet that others have.

        One that cannot read it serves the model's own text tower, and is none to go by: else which
        tower answers would change with the replica that was asked last.
        """
        return (
            self.said is not None
            and models.image_tower == self.said.image_tower
            and models.pointer_version < self.said.pointer_version
            and self._at < self._said_at + CHOICE_LASTS
        )

    def told(self, now: float) -> Choice | None:
        """Return the newest choice that it told of lately."""
        lately = self.said is not None and self._at >= now - CHOICE_LASTS
        return self.said.newest_choice if self.said is not None and lately else None

    def look_soon(self, pool: ThreadPoolExecutor) -> Served:
        """Look as `look` does, for so long only as one that hangs may keep a query waiting.

        Raises:
            UnavailableError: it does not answer, or not at once.
        """
        if self._problem:
            raise UnavailableError(self._problem)
        looking = pool.submit(self.look)
        try:
            return looking.result(ANSWERS_SOON)
        except TimeoutError:
            looking.cancel()
            raise UnavailableError("the other image tower's embedding service hangs") from None

    def try_look(self) -> None:
        """Look as `look` does, and have the log say what is wrong."""
        try:
            self.look()
            problem = ""
        except CraError as error:
            problem = error.message
        if problem != self._problem:
            _log.warning("the image tower beside", problem=problem or "none any more")
            self._problem = problem

    def look_beside(self, pool: ThreadPoolExecutor) -> None:
        """Have it looked at once a second, without waiting for it."""
        now = time.monotonic()
        if max(self._at, self._beside_at) < now - MODELS_LAST:
            self._beside_at = now
            run_beside(pool, self._beside, self.try_look)


class Towers:
    """Encoders of one image tower, or of two.

    Args:
        first: answers unless the pointer names the other one's image tower.
        other: of a second image tower, while one moves.
    """

    def __init__(self, first: Encoder, other: Encoder | None = None) -> None:
        self._first = _Watched(first)
        self._other = _Watched(other) if other is not None else None
        self._both = [self._first, *([self._other] if self._other else [])]
        self._pool = ThreadPoolExecutor(3, "tower")
        self._lock = threading.Lock()
        self._choice: tuple[float, Choice] | None = None
        self._shown: Models | None = None

    def close(self) -> None:
        """End what runs beside."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def current(self) -> Served:
        """Return what answers who names nothing.

        Raises:
            UnavailableError: it does not answer; never is it replaced by the other one.
        """
        if self._other is None:
            served = self._first.look()
        else:
            self._look()
            named = self._named()
            served = named.look()
            # It may just have told that the other one was chosen.
            if self._named() is not named:
                served = self._named().look()
            served = self._ahead(served)
        if served.models is not self._shown:
            self._shown = served.models
            show_release(served.models.active_release.name, served.image_tower)
        return served

    def of_release(self, name: str) -> Served:
        """Return what answers who names a release; what answers now if it is empty.

        Raises:
            UnavailableError: that does not answer, or it may have the release and does not.
        """
        if not name or self._other is None:
            return self.current()
        # What answers comes first: models may have their own text towers under one name.
        named = self._look()
        for one in sorted(self._both, key=lambda one: one is not named):
            if one.said is not None and _owns(one.said, name):
                return one.look()
        served = self.current()
        other = next(one for one in self._both if one.encoder is not served.encoder)
        beside = other.look_soon(self._pool)
        said = served.models.release(name)
        if _owns(beside.models, name) or (said and said.image_tower == beside.image_tower):
            return beside
        return served

    def image_towers(self) -> list[str]:
        """Return the fingerprints of the image towers that are known, down or not."""
        if self._other is None:
            return [self._first.look().image_tower]
        self._look()
        return [one.said.image_tower.fingerprint for one in self._both if one.said is not None]

    def of_image_tower(self, fingerprint: str) -> Served | None:
        """Return what serves one of `image_towers`; None if that has just changed.

        Raises:
            UnavailableError: it does not answer.
        """
        for one in self._both:
            if one.said is not None and one.said.image_tower.fingerprint == fingerprint:
                served = one.look()
                return self._ahead(served) if served.image_tower == fingerprint else None
        return None

    def learn(self) -> None:
        """Ask whoever has not answered since this process began.

        Raises:
            UnavailableError: it does not answer.
        """
        for one in self._both:
            if one.said is None:
                one.look()

    @property
    def two(self) -> bool:
        """Whether there are two image towers."""
        return self._other is not None

    def again(self, served: Served) -> Served:
        """Return what the same encoder serves now."""
        return next(one for one in self._both if one.encoder is served.encoder).look(again=True)

    def beside(self, work: Callable[[Served], None], running: threading.Lock) -> None:
        """Have something done with the image tower that does not answer, if it is known.

        Args:
            work: is not waited for, and fails nobody; the log says why.
            running: held meanwhile; if it is, nothing is done.
        """
        if self._other is None:
            return

        def run() -> None:
            try:
                named = self._named()
                beside = next(one for one in self._both if one is not named)
                if beside.said is not None:
                    work(beside.look())
            except CraError as error:
                _log.warning("the image tower beside is not ready", problem=error.message)

        run_beside(self._pool, running, run)

    def _look(self) -> _Watched | None:
        """Return what the pointer names, if it names one of both; have the rest looked at beside.

        At first each is waited for.
        """
        for one in self._both:
            if not one.tried:
                one.try_look()
        try:
            named = self._named()
        except UnavailableError:
            named = None
        for one in self._both:
            if one is not named:
                one.look_beside(self._pool)
        return named

    def _named(self) -> _Watched:
        """Return what the pointer names.

        Raises:
            UnavailableError: it names neither.
        """
        choice = self._newest()
        if choice is None or not choice.image_tower:
            return self._first
        for one in self._both:
            if one.said is not None and one.said.image_tower.fingerprint == choice.image_tower:
                return one
        for one in self._both:
            if one.said is None:  # nobody knows yet which one it has; asking tells that it is down
                return one
        raise UnavailableError(
            f"the active release is of the image tower {choice.image_tower}, which neither "
            "CRA_EMBEDDING_TARGET nor CRA_OTHER_EMBEDDING_TARGET serves"
        )

    def _newest(self) -> Choice | None:
        """Return the newest choice that any encoder told of."""
        now = time.monotonic()
        told = [one.told(now) for one in self._both]
        found = max((one for one in told if one), key=lambda one: one.version, default=None)
        with self._lock:
            if found is not None and (
                self._choice is None
                or found.version >= self._choice[1].version
                or now >= self._choice[0] + CHOICE_LASTS
            ):
                self._choice = (now, found)
            return self._choice[1] if self._choice else None

    def _ahead(self, served: Served) -> Served:
        """Return what an encoder serves, by the newest choice before it follows that itself.

        Else what was active on an image tower some time ago would answer for as long as its encoder
        has not looked at the pointer, which the other one may have seen already.
        """
        choice, models = self._newest(), served.models
        if (
            choice is None
            or choice.image_tower != served.image_tower
            or choice.version <= models.pointer_version
        ):
            return served
        name = choice.release or models.base_release
        chosen = models.release(name)
        if chosen is None or chosen.active or chosen.state is not ReleaseState.LOADED:
            return served
        releases = [replace(one, active=one.name == name) for one in models.releases]
        return replace(served, models=replace(models, releases=releases))


def run_beside(pool: ThreadPoolExecutor, running: threading.Lock, work: Callable[[], None]) -> None:
    """Run something on another thread, unless `running` is held, which is so meanwhile."""
    if not running.acquire(blocking=False):
        return

    def run() -> None:
        try:
            tracing.mute()
            work()
        except Exception:  # a bug must show
            _log.exception("what runs beside has failed")
        finally:
            running.release()

    try:
        pool.submit(run)
    except RuntimeError:  # it is being closed
        running.release()


def _owns(models: Models, name: str) -> bool:
    """Tell whether a release is one of this image tower."""
    found = models.release(name)
    return found is not None and found.image_tower == models.image_tower.fingerprint
