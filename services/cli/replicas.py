"""Every replica of the embedding service, asked one by one: what the gateway's channel hides."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Self

from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.errors import CraError, FailedPreconditionError, UnavailableError
from cra.shared.ports import Models, ReleaseState
from cra.shared.releases import Manifest
from cra.shared.settings import Settings

BASE: Final = "base"
"""Stands for the model's own text tower, whatever its name."""
LOADED_WITHIN: Final = 120.0
"""Seconds for a release to be loaded."""
ASK_AGAIN: Final = 0.1
"""Seconds between two rounds of questions."""
ANSWERS_WITHIN: Final = 5.0
"""Seconds for one question."""


def addresses(target: str) -> list[str]:
    """Return a gRPC target for each address that a target stands for.

    Raises:
        UnavailableError: its name cannot be resolved.
    """
    scheme, sign, rest = target.partition(":")
    if scheme in {"ipv4", "ipv6"}:
        return [f"{scheme}:{one}" for one in rest.split(",")]
    if scheme == "unix" or (not sign and "/" in target):
        return [target]
    name = rest if scheme == "dns" else target
    if name.startswith("//"):
        name = name[2:].partition("/")[2]
    host, _, port = name.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{target}: {error}") from error
    return sorted(
        {
            f"ipv6:[{where[0]}]:{port}" if family == socket.AF_INET6 else f"ipv4:{where[0]}:{port}"
            for family, _, _, _, where in found
        }
    )


class Replicas:
    """The replicas that answer now.

    Raises:
        UnavailableError: none does.
    """

    def __init__(self, settings: Settings) -> None:
        self.at: Final = settings.embedding_target
        self._encoders = {
            address: RemoteEncoder.of(settings, address, ANSWERS_WITHIN)
            for address in addresses(settings.embedding_target)
        }
        self.models: dict[str, Models] = {}
        """What each one serves, by its address."""
        self.silent: list[str] = []
        """What those that do not answer say, or gRPC for them."""
        for address, encoder in list(self._encoders.items()):
            try:
                self.models[address] = encoder.models()
            except UnavailableError as error:
                self.silent.append(error.message)
                self._encoders.pop(address).close()
        if not self.models:
            raise UnavailableError(
                f"the embedding service at {settings.embedding_target} does not answer: "
                + "; ".join(self.silent)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channels."""
        for encoder in self._encoders.values():
            encoder.close()

    def health(self, address: str) -> str:
        """Return what is wrong with one that answers, by standard health; empty if nothing is."""
        try:
            return "" if self._encoders[address].is_ready() else "it says that it is not ready"
        except CraError as error:
            return f"it does not say whether it is ready: {error.message}"

    @property
    def fingerprint(self) -> str:
        """The image tower that one of them serves."""
        return self.any.image_tower.fingerprint

    @property
    def any(self) -> Models:
        """What one of them serves."""
        return next(iter(self.models.values()))

    def check_fit(self, name: str, manifest: Manifest) -> None:
        """Check that a release was made for the image tower that is served.

        Raises:
            FailedPreconditionError: it was made for another one.
        """
        for address, models in self.models.items():
            tower = models.image_tower
            served = (tower.fingerprint, tower.dimension)
            if (manifest.image_tower, manifest.dimension) != served:
                raise FailedPreconditionError(
                    f"{name} was made for the image tower {manifest.image_tower}, and {address} "
                    f"serves {tower.fingerprint}: it cannot search that index"
                )

    def check_refused(self, name: str) -> None:
        """Check that no replica has found a release bad already.

        Raises:
            FailedPreconditionError: one has.
        """
        for address, models in self.models.items():
            for one in models.releases:
                if one.name == name and one.state is ReleaseState.REFUSED:
                    raise FailedPreconditionError(f"{address} refuses {name}: {one.problem}")

    def wait_loaded(self, name: str, seconds: float) -> None:
        """Return when every replica can answer with a release, or has no room for it yet.

        Raises:
            FailedPreconditionError: one of them refuses it.
            UnavailableError: one of them is still loading it.
        """

        def ready(models: Models) -> bool:
            for one in models.releases:
                if one.name == name and one.state is ReleaseState.REFUSED:
                    raise FailedPreconditionError(f"{name} is refused: {one.problem}")
                if one.name == name:
                    return one.state is not ReleaseState.LOADING
            return False

        self._wait(ready, f"has {name} loaded", seconds)

    def wait_active(self, release: str, version: int, seconds: float) -> None:
        """Return when a version of the pointer is in force on every replica.

        Raises:
            UnavailableError: names those where it is not.
        """

        def ready(models: Models) -> bool:
            target = release or models.base_release
            return models.pointer_version >= version and models.active_release.name == target

        self._wait(ready, f"has {release or 'the base'} active", seconds)

    def _wait(self, ready: Callable[[Models], bool], what: str, seconds: float) -> None:
        end, pause = time.monotonic() + seconds, threading.Event()
        missing = dict.fromkeys(self._encoders, "")
        while True:
            for address in list(missing):
                try:
                    models = self._encoders[address].models()
                    if ready(models):
                        del missing[address]
                    else:
                        missing[address] = models.releases_problem
                except UnavailableError as error:
                    missing[address] = error.message
            if not missing:
                return
            if time.monotonic() > end:
                reasons = "; ".join(
                    f"not {address}" + (f" ({reason})" if reason else "")
                    for address, reason in missing.items()
                )
                raise UnavailableError(f"not every replica {what} after {seconds:g} s: {reasons}")
            pause.wait(ASK_AGAIN)
