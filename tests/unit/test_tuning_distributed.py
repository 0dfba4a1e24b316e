"""Several processes: each takes its share, and together they do what one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from cra.services.training import features
from cra.services.training.tuning.captions import Captions
from cra.services.training.tuning.pairs import Pairs
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.start import start
from cra.services.training.tuning.trainer import Kept, Trainer
from cra.shared.model.checkpoints import ModelSource, find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from tests.checkpoints import make_checkpoint
from tests.tuning import EVERYDAY, changed, make_dataset

STEPS = 4


def _learn(source: ModelSource, cache: Path, settings: TuningSettings) -> dict[str, Any]:
    """Take a few steps; return losses and weights."""
    torch.set_num_threads(1)
    dataset = make_dataset(range(2))
    begun = start(source, (text for _, text in dataset.pairs()), settings)
    vectors = features.load(dataset.images, ImageTower(source, "cpu"), cache, settings.views)
    pairs = Pairs(dataset, vectors, begun.tokenizer, settings.context_length)
    everyday = sorted(EVERYDAY)
    kept = Kept(Captions(everyday, begun.tokenizer), TextTower(source, "cpu").encode(everyday)[0])
    trainer = Trainer(begun.model, pairs, settings, kept=kept)
    # Dropout draws differently for other shapes of batches, however they are seeded.
    trainer.model.eval()
    losses = [trainer.advance() for _ in range(STEPS)]
    return {"losses": losses, "model": trainer.model.state_dict()}


def _process(rank: int, world: int, folder: Path, model: str, settings: TuningSettings) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    found = _learn(find_model(model), folder / "features", settings)
    torch.save(found, folder / f"rank-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(("world", "negatives"), [(2, "gallery"), (3, "batch")])
def test_processes_together_do_the_step_of_one(tmp_path: Path, world: int, negatives: str) -> None:
    """Two or three processes end with the losses and the weights of one, all of them alike.

    The batch of 16 does not divide by three: shares of different sizes count by their size.
    """
    model = make_checkpoint(tmp_path / "base")
    settings = changed(negatives=negatives)
    alone = _learn(find_model(str(model)), tmp_path / "features", settings)
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _process, args=(world, tmp_path, str(model), settings), nprocs=world, join=True
    )
    for rank in range(world):
        found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        for name, value in alone["model"].items():
            apart = (found["model"][name] - value).abs()
            # Adam makes a whole step of a gradient that is nothing but rounding: a few may differ.
            assert (apart > 2e-4).float().mean() < 1e-5, name
            assert apart.max() < 2 * settings.lr, name
