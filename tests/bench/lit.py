"""A step of LiT against a step of Chinese CLIP's own trainer, on the same pairs and settings.

Its trainer runs as it is, from the installed package, with `--freeze-vision`: it encodes the
frozen images at every step, and pads every caption to 52 tokens. Both learn with fp32 weights;
its amp needs CUDA, so on CPU it computes in fp32, where ours computes in bf16 as is our default.
Shape of ViT-B/16, random weights. What the cached features cost, once, is noted beside it.
"""

import copy
import time
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from cn_clip.clip import tokenize
from cn_clip.clip.model import CLIP
from cn_clip.training import train as their_trainer
from torch.nn import functional

from cra.services.training.buildings.dataset import make
from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.tuning.pairs import Pairs
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.trainer import Trainer
from cra.shared.model.checkpoints import packaged_config
from cra.shared.model.image_tower import normalize_pixels
from cra.shared.model.text_tower import TextModel
from cra.shared.model.tokenizer import Tokenizer
from tests.bench.measure import Comparison, compare
from tests.bench.model import SHAPE

BATCH: Final = 32
STEPS: Final = 2
TOLERANCE: Final = 1e-5


def captions(count: int) -> list[str]:
    """Return different captions of rendered buildings, as the miniature is tuned on."""
    found: dict[str, None] = {}
    index = 0
    while len(found) < count:
        found |= dict.fromkeys(one.text for one in make(index, "test").professional[:1])
        index += 1
    return list(found)[:count]


class _Theirs:
    """Chinese CLIP's trainer on CPU, for as many steps as it is asked for."""

    def __init__(
        self, model: CLIP, images: torch.Tensor, texts: list[str], settings: TuningSettings
    ) -> None:
        for parameter in model.visual.parameters():
            parameter.requires_grad = False
        self._model = _Wrapped(model)
        self._batches = [
            (image, tokenize(list(text)), torch.zeros(len(image)))
            for image, text in zip(
                torch.split(images, BATCH),
                [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)],
                strict=True,
            )
        ]
        self._optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.wd,
        )
        self._args = SimpleNamespace(
            freeze_vision=True,
            vision_model="ViT-B-16",
            accum_freq=1,
            max_steps=10**9,
            precision="fp32",
            distillation=False,
            aggregate=False,
            mask_ratio=0,
            local_device_rank=0,
            report_training_batch_acc=False,
            rank=0,
            log_interval=10**9,
            val_data=None,
            valid_step_interval=None,
            should_save=False,
            save_step_frequency=0,
        )

    def epoch(self) -> None:
        loader = _Loader(self._batches)
        data = {"train": SimpleNamespace(dataloader=loader, sampler=None)}
        with _OnCpu():
            their_trainer.train(
                self._model, data, 0, self._optimizer, None, lambda _: None, self._args, 0
            )

    def loss(self) -> float:
        """Return the loss of the first batch, without dropout."""
        self._model.eval()
        cross = torch.nn.CrossEntropyLoss()
        images, texts, _ = self._batches[0]
        with torch.no_grad(), _OnCpu():
            total, _ = their_trainer.get_loss(self._model, images, texts, cross, cross, self._args)
        return float(total)


class _Wrapped(torch.nn.Module):
    """What DistributedDataParallel is to their trainer: the model is its `module`."""

    def __init__(self, module: CLIP) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


class _Loader(list[Any]):
    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return sum(len(batch[0]) for batch in self)


class _OnCpu:
    """Keeps their trainer on CPU: it moves everything to a GPU, whatever there is."""

    def __enter__(self) -> None:
        self._all = [
            mock.patch.object(kind, "cuda", lambda self, *_, **__: self)
            for kind in (torch.Tensor, torch.nn.Module)
        ]
        for one in self._all:
            one.start()

    def __exit__(self, *_: object) -> None:
        for one in self._all:
            one.stop()


def run(rounds: int) -> list[Comparison]:
    """Compare an epoch of a few steps; first of all, that both compute the same loss.

    Raises:
        AssertionError: the losses of the same batch in fp32 differ.
    """
    # Other work shares the cores: threads that wait for each other would measure that.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = packaged_config(SHAPE)
    model = CLIP(**config).float()
    count = BATCH * STEPS
    texts = captions(count)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3)).astype(np.uint8)
    images = normalize_pixels(torch.from_numpy(pixels))
    begun = time.perf_counter()
    model.eval()
    with torch.inference_mode():
        encoded = torch.cat([model.encode_image(part) for part in torch.split(images, BATCH)])
        features_nd = functional.normalize(encoded, dim=-1).numpy()
    caching = time.perf_counter() - begun
    dataset = DataSet(
        tuple(Image(str(i), str(i), (text,), lambda: b"") for i, text in enumerate(texts))
    )
    settings = TuningSettings(
        batch_size=BATCH,
        warmup=0,
        lr=2e-5,
        negatives="batch",
        soft_positives=False,
        max_epochs=10**6,
    )

    def trainer(precision: Any) -> Trainer:
        chosen = TuningSettings(**(settings.__dict__ | {"precision": precision}))
        pairs = Pairs(dataset, features_nd[None], Tokenizer("identity"), 52)
        return Trainer(copy.deepcopy(TextModel.from_clip(model)), pairs, chosen)

    exact = trainer("fp32")
    exact.model.eval()
    with torch.no_grad():
        ours = float(exact.loss(np.arange(BATCH), np.random.default_rng(0)))
    theirs = _Theirs(model, images, texts, settings)
    difference = abs(ours - theirs.loss())
    if difference > TOLERANCE:
        raise AssertionError(f"the losses of one batch differ by {difference}")
    mine = trainer("amp")
    del exact

    def our_epoch() -> None:
        for _ in range(STEPS):
            mine.advance()

    found = compare(
        f"an epoch of LiT, batch {BATCH}",
        our_epoch,
        theirs.epoch,
        rounds,
        against="cn_clip.training.train, --freeze-vision, fp32, 52 tokens",
        notes={
            "loss of one batch in fp32": f"{ours:.6f}, differs by {difference:.1e}",
            "caching the features, once": f"{caching / count * 1000:.0f} ms an image",
            "threads": str(torch.get_num_threads()),
        },
    )
    return [found]
