"""What is known of the text releases and what follows from it: no threads, no I/O.

Facts come in (what the bucket lists, what the pointer says, what was loaded or refused); which
releases are wanted and which one is active is decided here.
"""

import time
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal

import structlog

from cra.services.embedding.towers import TowerInfo
from cra.shared.errors import FailedPreconditionError
from cra.shared.ports import ReleaseState, TextReleaseInfo
from cra.shared.releases import Choice, Manifest, Pointer, PublishedRelease

Topic = Literal["bucket", "pointer", "active"]

_log = structlog.get_logger()


@dataclass(frozen=True)
class Served:
    """What is served at one moment."""

    active: str
    releases: list[TextReleaseInfo]
    pointer_version: int
    problem: str
    newest_choice: Choice | None
    """None: the pointer was not read yet."""


@dataclass(frozen=True)
class _Refusal:
    state: str
    """Of the files, when they were refused."""
    reason: str


class Shelf:
    """The releases beside the model's own text tower, which is called the base.

    Args:
        info: what the tower processes have loaded.
        most: releases that are loaded beside the base.
    """

    def __init__(self, info: TowerInfo, most: int) -> None:
        self._info, self._most = info, most
        self.base = info.release
        self.active = info.release
        self.settled = False
        """Whether it was decided what the first pointer means."""
        self.loaded: set[str] = set()
        self.published: dict[str, PublishedRelease] = {}
        """By name, the newest first."""
        self._pointer = Pointer()
        self._pointer_seen = False
        self._followed = 0
        self._problems: dict[Topic, str] = {}
        self._manifests: dict[str, Manifest] = {}
        self._refused: dict[str, _Refusal] = {}
        self._unwanted: dict[str, float] = {}

    def see_published(self, releases: Iterable[PublishedRelease]) -> None:
        """Take note of what the bucket lists; a refused release that changed is tried again."""
        self.published = {one.name: one for one in releases if one.name != self.base}
        for name, refusal in list(self._refused.items()):
            if name not in self.published or self.published[name].state != refusal.state:
                del self._refused[name]
        known = self.loaded | set(self.published)
        self._manifests = {n: one for n, one in self._manifests.items() if n in known}

    def see_pointer(self, pointer: Pointer) -> None:
        """Take note of what is to be active."""
        self._pointer, self._pointer_seen = pointer, True

    def see_manifest(self, name: str, manifest: Manifest) -> None:
        """Take note of what a release says of itself.

        Raises:
            FailedPreconditionError: it does not fit the image tower.
        """
        self._manifests[name] = manifest
        if manifest.image_tower != self._info.image_tower:
            raise FailedPreconditionError(
                f"it was made for the image tower {manifest.image_tower}, and this one is "
                f"{self._info.image_tower}"
            )
        if manifest.dimension != self._info.dimension:
            raise FailedPreconditionError(
                f"its vectors have the dimension {manifest.dimension}, and the images' have "
                f"{self._info.dimension}"
            )

    def see_problem(self, topic: Topic, problem: str) -> None:
        """Take note of what is wrong, empty if nothing, and log it when that changes."""
        if problem == self._problems.get(topic, ""):
            return
        self._problems[topic] = problem
        if problem:
            _log.warning("releases", topic=topic, problem=problem, active=self.active)
        else:
            _log.info("releases", topic=topic, problem="none any more")

    def refuse(self, name: str, state: str, reason: str) -> None:
        """Leave a release alone until its files are others than those of `state`."""
        self._refused[name] = _Refusal(state, reason)
        _log.error("refused", release=name, reason=reason, active=self.active)

    def lose(self, name: str) -> None:
        """Take note that a loaded release is no longer there."""
        self.loaded.discard(name)
        if name == self.active:
            self.active = self.base
        _log.error("a loaded release is lost", release=name, active=self.active)

    def follow(self) -> None:
        """Make active what the pointer names, if that can answer."""
        target, tower = self._target, self._pointer.image_tower
        if tower and tower != self._info.image_tower:
            problem = (
                f"the pointer is for the image tower {tower}, and this one is "
                f"{self._info.image_tower}"
            )
        elif target in self.loaded | {self.base}:
            problem = ""
            if target != self.active:
                _log.info("active release", release=target, before=self.active)
            self.active = target
            self._followed = self._pointer.version
        elif target in self._refused:
            problem = f"the release {target} is to be active and {self.reason(target)}"
        elif target not in self.published:
            problem = f"the release {target} is to be active and is not in the bucket"
        else:  # it is being loaded
            return
        self.see_problem("active", problem)
        self.settled = True

    def wanted(self) -> list[str]:
        """Return what is to be loaded, in order: the active one, the one before, the newest."""
        before = [choice.release for choice in self._pointer.history[-1:]]
        names = dict.fromkeys([self._target, *before, *self.published])
        wanted = [name for name in names if name in self.published and name not in self._refused]
        wanted = wanted[: self._most]
        # What answers now has to go on until another one can.
        if self.active != self.base and self.active not in wanted:
            wanted.append(self.active)
        return wanted

    def unwanted(self, grace: float) -> set[str]:
        """Return what is loaded and was not wanted for so many seconds."""
        now, wanted = time.monotonic(), self.wanted()
        self._unwanted = {
            name: self._unwanted.get(name, now) for name in self.loaded if name not in wanted
        }
        return {name for name, since in self._unwanted.items() if now - since >= grace}

    def state(self, name: str) -> ReleaseState | None:
        """Tell how far a release is; None if there is none of this name."""
        return self._state(name, self.wanted())

    def _state(self, name: str, wanted: Container[str]) -> ReleaseState | None:
        if name == self.base or name in self.loaded:
            return ReleaseState.LOADED
        if name not in self.published:
            return None
        if name in self._refused:
            return ReleaseState.REFUSED
        return ReleaseState.LOADING if name in wanted else ReleaseState.UNLOADED

    def reason(self, name: str) -> str:
        """Say why a release that is published does not answer."""
        if name in self._refused:
            return f"is refused: {self._refused[name].reason}"
        return (
            f"is not loaded: {self._most} others are active, were so before or are newer "
            "(CRA_MAX_RELEASES)"
        )

    def served(self) -> Served:
        """Return all of it, for people."""
        names = [self.base, *self.published]
        names += sorted(self.loaded - set(names))
        problem = "; ".join(filter(None, self._problems.values()))
        wanted = set(self.wanted())
        releases = [self._describe(name, wanted) for name in names]
        choice = self._pointer.choice if self._pointer_seen else None
        return Served(self.active, releases, self._followed, problem, choice)

    @property
    def _target(self) -> str:
        return self._pointer.release or self.base

    def _describe(self, name: str, wanted: Container[str]) -> TextReleaseInfo:
        active = name == self.active
        if name == self.base:
            return TextReleaseInfo(name, active, self._info.normalizer, self._info.image_tower)
        manifest = self._manifests.get(name)
        refusal = self._refused.get(name)
        return TextReleaseInfo(
            name,
            active,
            manifest.normalizer if manifest else "",
            manifest.image_tower if manifest else "",
            self._state(name, wanted) or ReleaseState.UNLOADED,
            refusal.reason if refusal else "",
        )
