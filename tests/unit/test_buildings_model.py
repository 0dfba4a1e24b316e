"""The model that the repository ships, as it is served."""

from pathlib import Path

import pytest

from cra.services.training import arrays
from cra.services.training.evaluation.buildings import Recall, evaluate
from cra.shared.model.checkpoints import find_model

FOLDER = Path(__file__).parents[2] / "deploy" / "models" / "miniature"
GALLERY = 200


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recall]:
    """Measure the model on a small gallery of held-out buildings."""
    source = find_model(str(FOLDER))
    size = source.config["image_resolution"]
    gallery = arrays.load(tmp_path_factory.mktemp("gallery"), "test", GALLERY, size)
    return {recall.speech: recall for recall in evaluate(source, gallery)}


def test_checkpoint_is_small_enough_to_ship() -> None:
    """The checkpoint has at most 20 MB, and its card says how to make it again."""
    assert (FOLDER / "checkpoint.pt").stat().st_size <= 20e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "python -m cra.services.training.base" in card
    assert "ceiling" in card


def test_plain_recall_is_near_the_ceiling(found: dict[str, Recall]) -> None:
    """It generalises: at least 80 % of the ceiling on buildings that it never saw."""
    plain = found["plain"]
    assert plain.model[5] >= 0.8 * plain.ceiling[5]
    assert plain.model[20] >= 0.8 * plain.ceiling[20]


def test_professional_terms_are_unknown(found: dict[str, Recall]) -> None:
    """Of the same pictures in an architect's words it finds less than half as many."""
    assert found["professional"].model[5] < 0.5 * found["plain"].model[5]
    assert found["professional"].ceiling[5] > 0.8 * found["plain"].ceiling[5]
