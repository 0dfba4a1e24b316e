"""Keeps what answers in line with the bucket of releases.

Level-triggered: one thread looks at the bucket every few seconds, another brings what is loaded in
line with it. A swap is one assignment under a lock, so a request sees one release or the other.
What goes wrong with the bucket or with a release leaves what is served as it is.
"""

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from cra.services.embedding.metrics import RELEASES
from cra.services.embedding.shelf import Served, Shelf
from cra.services.embedding.towers import Towers
from cra.shared.errors import (
    CraError,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from cra.shared.metrics import show_release
from cra.shared.ports import ReleaseState, ReleaseStore
from cra.shared.releases import NAME
from cra.shared.settings import Settings

LONGEST_LOOK: Final = 3.0
"""Seconds that a caller who names an unknown release waits for a look at the bucket."""
LONGEST_LOAD: Final = 5.0
"""Seconds that a caller waits for a release that is being loaded."""
LOOKS_APART: Final = 0.1
"""Seconds between two looks at the bucket, however many callers ask for one."""
LOADS_APART: Final = 1.0
"""Seconds between two looks at what is loaded, unless something is to be."""
GRACE: Final = 10.0
"""Seconds that a release which is no longer wanted still answers; gateways remember for one."""
LONGEST_END: Final = 5.0
"""Seconds that the end waits for a bucket that does not answer."""
MAX_DEATHS: Final = 2
"""Processes that a release may take down while it is loaded."""
LONGEST_PAUSE: Final = 60.0
"""Seconds, or the time between two looks if that is longer, until what was postponed is tried."""

_PASSES: Final = (
    UnavailableError,
    DeadlineExceededError,
    NotFoundError,
    PermissionDeniedError,
    OSError,
)
"""What is wrong with the bucket, the disk or a process, and not with the release."""

_log = structlog.get_logger()


class Releases:
    """The releases that the text tower's process has loaded beside the model's own.

    Args:
        towers: load them.
        store: where they are published.
        settings: how often to look, and how many to load.
    """

    def __init__(self, towers: Towers, store: ReleaseStore, settings: Settings) -> None:
        self._towers, self._store = towers, store
        self._poll_seconds = settings.release_poll_seconds
        self._folder = tempfile.TemporaryDirectory(
            prefix="cra-releases-", ignore_cleanup_errors=True
        )
        # All that follows changes under this lock.
        self._changed = threading.Condition()
        self._shelf = Shelf(towers.info, settings.max_releases)
        self._closed = False
        self._blind = False
        """The bucket did not answer."""
        self._looks_asked = self._looks_begun = self._looks_done = 0
        self._postponed: dict[str, float] = {}
        """What could not be loaded for no fault of its own, and until when it is left alone."""
        self._postponements: Counter[str] = Counter()
        self._deaths: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._look_always, name="releases-look", daemon=True),
            threading.Thread(target=self._load_always, name="releases-load", daemon=True),
        ]

    def start(self) -> None:
        """Begin to follow the bucket."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads and remove the copies of releases."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(LONGEST_END)
        self._folder.cleanup()

    def check(self) -> None:
        """Raise UnavailableError until the release that was active at the start has come to be.

        Who asks for whichever is active is told so too: other replicas answer with it already, and
        a caller's channel tries those.
        """
        with self._changed:
            self._check()

    def _check(self) -> None:
        if not self._shelf.settled:
            raise UnavailableError("the active text release is still being loaded")

    @property
    def active(self) -> str:
        """The release that answers when none is named."""
        with self._changed:
            return self._shelf.active

    def served(self) -> Served:
        """Return what is served now; raise UnavailableError as `check` does."""
        with self._changed:
            self._check()
            return self._shelf.served()

    @contextmanager
    def use(self, asked: str, seconds: float) -> Iterator[str]:
        """Hold a release for as long as it encodes; yields its name.

        Args:
            asked: a release's name, or empty for the active one.
            seconds: how long the caller has.

        Raises:
            NotFoundError: there is no such release.
            FailedPreconditionError: it is refused, or one too many.
            UnavailableError: it is still being loaded, or the bucket does not answer.
        """
        with self._changed:
            if not asked:
                self._check()
            name = asked or self._shelf.active
            if self._shelf.state(name) is not ReleaseState.LOADED:
                self._await(name, time.monotonic() + seconds)
            self._users[name] += 1
        try:
            yield name
        finally:
            with self._changed:
                self._users[name] -= 1

    def _await(self, name: str, until: float) -> None:
        """Return when a release is loaded; under the lock, which is let go while it waits."""
        shelf = self._shelf
        if NAME.fullmatch(name) is None:
            raise NotFoundError(f"there is no text release {name!r}")
        if shelf.state(name) is None and not self._blind:
            # Another replica may know it already.
            self._look_now(min(until, time.monotonic() + LONGEST_LOOK))
        self._changed.wait_for(
            lambda: self._closed or shelf.state(name) is not ReleaseState.LOADING,
            min(until, time.monotonic() + LONGEST_LOAD) - time.monotonic(),
        )
        state = shelf.state(name)
        if state is None and self._blind:
            raise UnavailableError(f"nobody can tell now whether there is a text release {name!r}")
        if state is None:
            raise NotFoundError(f"there is no text release {name!r}")
        if state is ReleaseState.LOADING:
            raise UnavailableError(f"the text release {name} is being loaded")
        if state is not ReleaseState.LOADED:
            raise FailedPreconditionError(f"the text release {name} {shelf.reason(name)}")

    def _look_now(self, until: float) -> None:
        """Wait for a look at the bucket that begins from now on; all who wait share one."""
        wanted = self._looks_begun + 1
        self._looks_asked = wanted
        self._changed.notify_all()
        self._changed.wait_for(
            lambda: self._closed or self._looks_done >= wanted, until - time.monotonic()
        )
        if self._looks_done < wanted:
            raise UnavailableError("the bucket of releases does not answer in time")

    # The first thread: what the bucket says.

    def _look_always(self) -> None:
        pause = threading.Event()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._looks_asked > self._looks_begun,
                    self._poll_seconds - LOOKS_APART if self._looks_begun else 0,
                )
                if self._closed:
                    return
                self._looks_begun += 1
                look = self._looks_begun
            try:
                self._look()
            except Exception:  # a bug must not end the thread
                _log.exception("looking at the releases failed")
            with self._changed:
                self._looks_done = look
                self._changed.notify_all()
            pause.wait(LOOKS_APART)

    def _look(self) -> None:
        published, pointer = None, None
        bucket_problem, pointer_problem, blind = "", "", False
        try:
            published = self._store.list()
            pointer = self._store.pointer()
        except CraError as error:
            if published is None:
                # Without a bucket, nothing was ever published: that is known.
                bucket_problem, blind = error.message, not isinstance(error, NotFoundError)
            else:
                pointer_problem = error.message
        with self._changed:
            shelf = self._shelf
            if published is not None:
                shelf.see_published(published)
            if pointer is not None:
                shelf.see_pointer(pointer)
            self._blind = blind
            shelf.see_problem("bucket", bucket_problem)
            shelf.see_problem("pointer", pointer_problem)
            shelf.follow()
            self._show()

    def _show(self) -> None:
        """Have the metrics say what is served."""
        served = self._shelf.served()
        show_release(served.active, self._towers.info.image_tower)
        states = Counter(one.state for one in served.releases)
        for state in ReleaseState:
            RELEASES.labels(state.name.lower()).set(states[state])

    # The second thread: what is loaded.

    def _load_always(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._next()), LOADS_APART)
                if self._closed:
                    return
                name = self._next()
            try:
                self._find_lost()
                if name:
                    self._load(name)
                self._unload()
            except UnavailableError as error:
                _log.warning("releases wait for the text tower", problem=error.message)
            except Exception:  # a bug must not end the thread
                _log.exception("loading releases failed")

    def _next(self) -> str:
        """Return what to load next; empty: nothing."""
        now = time.monotonic()
        waiting = (
            name
            for name in self._shelf.wanted()
            if name not in self._shelf.loaded and now >= self._postponed.get(name, now)
        )
        return next(waiting, "")

    def _find_lost(self) -> None:
        """Notice what a process that was replaced could not load again."""
        there = self._towers.loaded_releases()
        with self._changed:
            lost = self._shelf.loaded - there
            for name in lost:
                self._shelf.lose(name)
            if self._looks_done:  # before that the pointer is not known
                self._shelf.follow()
        for name in lost:
            self._towers.unload_release(name)

    def _load(self, name: str) -> None:
        with self._changed:
            if name not in self._shelf.published:
                return
            state = self._shelf.published[name].state
        began, deaths = time.monotonic(), None
        try:
            manifest = self._store.manifest(name)
            with self._changed:
                self._shelf.see_manifest(name, manifest)
            release = self._store.fetch(name, Path(self._folder.name))
            deaths = self._towers.text_deaths
            self._towers.load_release(release)
        except _PASSES as error:
            if deaths is not None and self._towers.text_deaths > deaths:
                self._deaths[name] += 1
            if self._deaths[name] < MAX_DEATHS:
                _log.warning("not loaded yet", release=name, problem=str(error))
                self._postpone(name)
                return
            reason = f"{MAX_DEATHS} processes died while they loaded it"
        except CraError as error:
            reason = error.message
        except Exception as error:  # it must not be tried for ever
            _log.exception("loading a release failed", release=name)
            reason = repr(error)
        else:
            reason = ""
            _log.info("loaded", release=name, seconds=round(time.monotonic() - began, 2))
        if reason:
            shutil.rmtree(Path(self._folder.name) / name, ignore_errors=True)
        del self._deaths[name]
        with self._changed:
            self._postponed.pop(name, None)
            del self._postponements[name]
            if reason:
                self._shelf.refuse(name, state, reason)
            else:
                self._shelf.loaded.add(name)
            self._shelf.follow()
            self._show()
            self._changed.notify_all()

    def _postpone(self, name: str) -> None:
        """Have a release be tried again later, after ever longer."""
        with self._changed:
            pause = self._poll_seconds * 2 ** min(10, self._postponements[name])
            longest = max(LONGEST_PAUSE, self._poll_seconds)
            self._postponed[name] = time.monotonic() + min(longest, pause)
            self._postponements[name] += 1
            # A bucket that lists and does not give must not keep the service from serving.
            self._shelf.settled = True

    def _unload(self) -> None:
        """Let go what is no longer wanted and nobody uses."""
        with self._changed:
            going = {name for name in self._shelf.unwanted(GRACE) if not self._users[name]}
            self._shelf.loaded -= going
        for name in going:
            self._towers.unload_release(name)
            shutil.rmtree(Path(self._folder.name) / name, ignore_errors=True)
            _log.info("unloaded", release=name)
