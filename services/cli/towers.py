"""The embedding service, and that of a second image tower while one moves: whose is what."""

from typing import Final, Self

from cra.services.cli.replicas import BASE, LOADED_WITHIN, Replicas
from cra.shared.errors import (
    CraError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from cra.shared.ports import Models, ReleaseStore
from cra.shared.releases import Choice
from cra.shared.settings import Settings


class Towers:
    """The replicas of each embedding service that answers now.

    Raises:
        UnavailableError: none does.
    """

    def __init__(self, settings: Settings) -> None:
        self.all: Final[list[Replicas]] = []
        self.problems: Final[list[str]] = []
        """Why an embedding service does not answer."""
        self._first: Replicas | None = None
        for one in filter(None, (settings, settings.other_tower)):
            try:
                replicas = Replicas(one)
            except UnavailableError as error:
                self.problems.append(error.message)
                continue
            except CraError:
                self.__exit__()
                raise
            self.all.append(replicas)
            if one is settings:
                self._first = replicas
        if not self.all:
            raise UnavailableError("; ".join(self.problems))

    @property
    def two(self) -> bool:
        """Whether there are two, down or not."""
        return len(self.all) + len(self.problems) > 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for replicas in self.all:
            replicas.close()

    def of_image_tower(self, fingerprint: str) -> Replicas:
        """Return the replicas of an image tower; those of CRA_EMBEDDING_TARGET if it is empty.

        Raises:
            UnavailableError: it may be the one that does not answer.
            FailedPreconditionError: no embedding service has it.
        """
        for replicas in self.all:
            if replicas.fingerprint == fingerprint or (not fingerprint and replicas is self._first):
                return replicas
        if self.problems:
            raise UnavailableError("; ".join(self.problems))
        served = " and ".join(f"{one.at} serves {one.fingerprint}" for one in self.all)
        raise FailedPreconditionError(
            f"no embedding service has the image tower {fingerprint}: {served}"
        )

    def answering(self, choice: Choice) -> Models | None:
        """Return what the image tower serves that a choice is for; None if it does not answer."""
        try:
            return self.of_image_tower(choice.image_tower).any
        except CraError:
            return None

    def serve(self, fingerprint: str) -> bool:
        """Tell whether an embedding service has an image tower."""
        return any(one.fingerprint == fingerprint for one in self.all)

    def stands_by(self, models: Models) -> bool:
        """Tell whether it is the other image tower that answers."""
        told = [one.any.newest_choice for one in self.all]
        newest = max((one for one in told if one), key=lambda one: one.version, default=Choice())
        answering = self.answering(newest)
        return answering is not None and answering.image_tower != models.image_tower

    def find(self, name: str, store: ReleaseStore) -> tuple[Choice, Replicas]:
        """Return the choice of a release, by its name or `base`, and whose it is.

        Raises:
            InvalidArgumentError: `base` may be that of either image tower.
            NotFoundError: there is no such release.
            UnavailableError: it may be that of an embedding service that does not answer.
            FailedPreconditionError: it fits none, or both, or a replica refuses it.
        """
        bases = {one.any.base_release for one in self.all}
        if name == BASE and self.two:
            raise InvalidArgumentError(
                "NAME",
                f"`base` may be either image tower's own text tower: say {' or '.join(bases)}",
            )
        owners = [
            one
            for one in self.all
            if name == BASE or name in {models.base_release for models in one.models.values()}
        ]
        if len(owners) > 1:
            raise FailedPreconditionError(
                f"the own text towers of both image towers are named {name}: give one of the "
                "models another `name` in its config.json"
            )
        if owners:
            return Choice(image_tower=owners[0].fingerprint), owners[0]
        try:
            manifest = store.manifest(name)
        except NotFoundError:
            if self.problems:  # it may be the base of what is down
                raise UnavailableError("; ".join(self.problems)) from None
            raise
        replicas = None if self.two else self.all[0]
        replicas = replicas or self.of_image_tower(manifest.image_tower)
        replicas.check_fit(name, manifest)
        replicas.check_refused(name)
        return Choice(release=name, image_tower=replicas.fingerprint), replicas

    def prepare(self, name: str, store: ReleaseStore) -> str:
        """Return a release's real name once all replicas of its image tower can answer with it.

        Raises: as `find`.
        """
        choice, replicas = self.find(name, store)
        if choice.release:
            replicas.wait_loaded(choice.release, LOADED_WITHIN)
        return choice.release or replicas.any.base_release


def real_name(settings: Settings, release: str) -> str:
    """Return a release's name, that of the model's own text tower for `base`.

    Raises:
        InvalidArgumentError: that is asked for, and there are two image towers.
        UnavailableError: that is asked for, and no replica answers.
    """
    if release != BASE:
        return release
    with Towers(settings) as towers:
        if towers.two:
            names = " or ".join(one.any.base_release for one in towers.all)
            raise InvalidArgumentError("release", f"`base` may be of two image towers: say {names}")
        return towers.all[0].any.base_release
