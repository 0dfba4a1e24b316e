"""Which backgrounds are kept; the index is a fake."""

from typing import Any

import pytest

from cra.services.gateway import background
from cra.services.gateway.background import Backgrounds


class Index:
    """An index too small for a background."""

    def sample(self, *_: Any) -> list[Any]:
        """See `ports.VectorStore`."""
        return []


def test_the_scope_that_was_not_asked_for_the_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who searches without a scope keeps a background while others come with theirs.

    Broken on purpose: in a cache for which a look is a use, `refresh` has the first one go.
    """
    monkeypatch.setattr(background, "SCOPES", 4)
    backgrounds = Backgrounds(Index())  # type: ignore[arg-type]
    for number in range(3):
        backgrounds.of("tower", (f"bucket-{number}",))
    for number in range(3, 20):
        backgrounds.of("tower", ())
        backgrounds.refresh("tower")
        backgrounds.of("tower", (f"bucket-{number}",))
        assert backgrounds.of("tower", ()) is not None
    assert backgrounds.of("tower", ("bucket-18",)) is not None
    assert backgrounds.of("tower", ("bucket-0",)) is None
