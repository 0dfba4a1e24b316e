"""The tuned text tower that ships: published, asked beside the base, activated, rolled back."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from cra.search.v1 import search_pb2 as pb
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.client import SearchClient
from cra.shared.ports import Models, ReleaseState
from cra.shared.releases import Release
from cra.shared.settings import Settings
from deploy.local.environment import ROOT, StackError

RELEASES: Final = ROOT / "deploy" / "models" / "releases"
SEARCHES: Final = (
    "庑殿顶、朱漆木构的殿宇",
    "盝顶，须弥座",
    "硬山顶，马头墙，布瓦",
    "哥特尖塔，玫瑰窗",
    "夯土版筑的建筑，茅茨",
    "歇山顶，重檐，雪景",
)
_WAIT_SECONDS: Final = 60.0


class Towers:
    """The base's own text tower and the tuned one, both loaded for one image tower."""

    def __init__(self, settings: Settings) -> None:
        self._store = S3ReleaseStore(settings)
        self._encoder = RemoteEncoder.of(settings)
        release = self._store.publish(shipped())
        self.tuned: Final = release.name
        models, seconds = self._until(
            lambda models: any(
                (one.name, one.state) == (release.name, ReleaseState.LOADED)
                for one in models.releases
            ),
            f"{release.name} is not loaded",
        )
        self.base: Final = models.base_release
        self.loaded_after: Final = seconds
        """Seconds from publishing."""
        self.release: Final[Release] = release
        self.models: Final = models

    def activate(self) -> float:
        """Make the tuned tower the one that answers; return the seconds until it does."""
        self._store.activate(self.tuned, self.models.image_tower.fingerprint)
        return self._until_active(self.tuned)

    def roll_back(self) -> float:
        """Return to what was active before; return the seconds until it answers."""
        return self._until_active(self._store.rollback().release or self.base)

    def close(self) -> None:
        """Close the connection to the embedding service."""
        self._encoder.close()

    def _until_active(self, name: str) -> float:
        return self._until(
            lambda models: models.active_release.name == name, f"{name} is not active"
        )[1]

    def _until(self, holds: Callable[[Models], bool], problem: str) -> tuple[Models, float]:
        began = time.monotonic()
        while not holds(models := self._encoder.models()):
            if time.monotonic() - began > _WAIT_SECONDS:
                raise StackError(f"{problem} after {_WAIT_SECONDS:.0f} s: {models.releases}")
            time.sleep(0.1)
        return models, time.monotonic() - began


def shipped() -> Path:
    """Return the folder of the release that ships.

    Raises:
        StackError: there is not exactly one.
    """
    found = [folder for folder in sorted(RELEASES.glob("*")) if folder.is_dir()]
    if len(found) != 1:
        raise StackError(f"{RELEASES} holds {len(found)} releases, not one")
    return found[0]


def side_by_side(
    console: Console, client: SearchClient, towers: Towers, where: pb.Filter | None
) -> None:
    """Print the same professional queries as both towers answer them."""
    for text in SEARCHES:
        answers = [
            client.search(text, top_k=3, where=where, text_release=name).hits
            for name in (towers.base, towers.tuned)
        ]
        table = Table("base finds", "CRA finds", title=text, title_justify="left")
        for base, tuned in zip(*map(_captions, answers), strict=True):
            table.add_row(base, tuned)
        console.print(table)


def _captions(hits: Sequence[pb.Hit]) -> list[str]:
    return [f"{hit.score:.3f} {hit.metadata.get('professional', '')}" for hit in hits]
