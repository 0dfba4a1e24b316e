"""What `cra doctor` finds: the words that its checks share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cra.shared import rpc
from cra.shared.settings import Settings

LOOPBACK: Final = {"127.0.0.1", "localhost", "::1", "[::1]"}


class State(Enum):
    """How a part is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"
    """It cannot be seen from here."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    part: str
    state: State
    found: str
    mend: str = ""
    """What to do about it; empty if nothing is to be done."""


@dataclass
class Facts:
    """What the parts say of themselves, to be compared."""

    towers: dict[str, str] = field(default_factory=dict)
    """Fingerprint of the image tower, by who names it."""
    stand_by: set[str] = field(default_factory=set)
    """Fingerprints of image towers that are served, and do not answer now."""
    releases: dict[str, str] = field(default_factory=dict)
    """The active text release, by who names it."""
    base_release: str = ""
    """Of the model itself, which an empty pointer stands for."""
    dimension: int = 0
    """Of the vectors; 0: nobody has said."""
    probed: bool = False
    """A picture will be put and looked for, too."""


Check = Callable[[Settings, Facts], Iterator[Finding]]


def host_of(target: str) -> str:
    """Return the host that a gRPC target or `host:port` names."""
    named = rpc.authority_of(target) or target.partition(":")[2] or target
    return named.rpartition(":")[0] or named


def is_local(target: str) -> bool:
    """Tell whether a gRPC target or `host:port` is on this machine."""
    return host_of(target) in LOOPBACK


def was_set(settings: Settings, *names: str) -> bool:
    """Tell whether somebody has set one of these settings, and it is no default."""
    return bool(settings.model_fields_set & set(names))
