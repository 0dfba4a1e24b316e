"""The base model of the miniature: a small Chinese CLIP, trained from nothing on plain captions.

It stands for the official general-domain weights: it knows buildings as laymen describe them,
and no professional term. `python -m cra.services.training.base` makes it again.
"""

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cn_clip.clip.model import CLIP
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn import functional

from cra.services.training import arrays, card, words
from cra.services.training.buildings.dataset import CAPTIONS
from cra.services.training.buildings.scene import SEED
from cra.services.training.evaluation.buildings import evaluate
from cra.services.training.tuning.captions import Captions
from cra.services.training.tuning.loss import multi_positive_loss, positives
from cra.shared.model.checkpoints import find_model, save_checkpoint
from cra.shared.model.image_tower import normalize_pixels
from cra.shared.model.text_tower import TextModel
from cra.shared.model.tokenizer import Tokenizer

NAME: Final = "miniature"
NORMALIZER: Final = "identity"

CONFIG: Final[dict[str, Any]] = {
    "embed_dim": 256,
    "image_resolution": 96,
    # A ResNet: from nothing, on little data, it learns far faster than a ViT.
    "vision_layers": [1, 2, 2, 1],
    "vision_width": 24,
    "vision_patch_size": None,
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.0,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.0,
    "text_hidden_size": 128,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 512,
    "text_max_position_embeddings": 64,
    "text_num_attention_heads": 4,
    "text_num_hidden_layers": 3,
    "text_type_vocab_size": 2,
}
"""Arguments of cn_clip's CLIP. Most of the weights are the embeddings of its 21,128 tokens."""


@dataclass(frozen=True)
class Settings:
    """What a run of training depends on."""

    pictures: int = 40_000
    captions: int = 8
    """Captions of each picture; a batch takes one of them."""
    first_steps: int = 5_000
    """Steps of the first lesson, for the image tower alone: the words of all captions."""
    first_batch: int = 64
    first_size: int = 64
    """Pictures are made smaller for the first lesson, which is then three times as fast."""
    first_rate: float = 2e-3
    steps: int = 3_300
    """Steps of the second lesson, for both towers: one caption and its picture."""
    batch: int = 128
    texts: int = 3
    """Captions that a picture comes with in the second lesson: they cost little beside it."""
    words: float = 0.5
    """Weight of predicting words within the second lesson."""
    rate: float = 1e-3
    decay: float = 0.05
    warm_up: int = 200
    """Steps at the start of each lesson; from there the rate falls as a cosine."""
    clip: float = 1.0
    shift: int = 5
    """Pixels that a picture is moved by at most; it is mirrored half of the time as well."""
    seed: int = SEED

    @property
    def total(self) -> int:
        """Steps of both lessons."""
        return self.first_steps + self.steps


class Trainer:
    """Both towers, their optimiser and how far they are.

    The same settings, threads and machine give the same weights, also after an interruption:
    batches and augmentation depend on the step alone.
    """

    def __init__(self, settings: Settings, train: arrays.Arrays, config: dict[str, Any]) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.step = 0
        self.seconds = 0.0
        """What the steps took so far."""
        self.model = CLIP(**config).train()
        # Twice as fast on CPU as the default layout.
        self.model.visual.to(memory_format=torch.channels_last)
        self._text = TextModel.from_clip(self.model)
        self._train = train
        self._tokenizer = Tokenizer(NORMALIZER)
        captions = [picture.plain for picture in train.pictures]
        vocabulary = words.vocabulary(captions)
        self._words_nv = words.targets(captions, vocabulary)
        features = self.model.visual.attnpool.c_proj.in_features
        self._heads = torch.nn.ModuleDict(
            {
                "features": torch.nn.Linear(features, len(vocabulary)),
                "embedding": torch.nn.Linear(config["embed_dim"], len(vocabulary)),
            }
        )
        self._parameters = [*self.model.parameters(), *self._heads.parameters()]
        matrices = [p for p in self._parameters if p.ndim > 1]
        others = [p for p in self._parameters if p.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.rate,
            betas=(0.9, 0.98),
            eps=1e-6,
        )

    def advance(self) -> float:
        """Do one step; return the loss of its lesson.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        begun = time.monotonic()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        pixels_nssc, texts, words_nv = self._batch()
        images = normalize_pixels(pixels_nssc)
        if self.step < self.settings.first_steps:
            lesson = loss = self._first_lesson(images, words_nv)
        else:
            lesson, loss = self._second_lesson(images, texts, words_nv)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step} is {loss.item()}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        self._optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, math.log(100.0))
        self.step += 1
        self.seconds += time.monotonic() - begun
        return lesson.item()

    def save(self, path: Path) -> None:
        """Write everything that going on needs; a crash midway leaves the old file."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "heads": self._heads.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: it was written under other settings.
        """
        state = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise ValueError(f"{path} belongs to other settings: {state['settings']}; remove it")
        self.model.load_state_dict(state["model"])
        self._heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.seconds = state["seconds"]

    def _first_lesson(self, images: torch.Tensor, words_nv: torch.Tensor) -> torch.Tensor:
        """Return the loss of telling the words of an image from its features' mean."""
        size = self.settings.first_size
        small = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        with _bf16():
            means = _features(self.model, small.contiguous(memory_format=torch.channels_last))
            logits_nv = self._heads["features"](means)
        return words.loss(logits_nv.float(), words_nv)

    def _second_lesson(
        self, images: torch.Tensor, texts: list[str], words_nv: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the contrastive loss, and with it that of the words; both from embeddings."""
        each = len(texts) // len(images)
        with _bf16():
            images_nd = self.model.encode_image(
                images.contiguous(memory_format=torch.channels_last)
            )
            texts_nd = Captions(texts, self._tokenizer).encode(
                self._text, np.arange(len(texts)), "cpu"
            )
            logits_nv = self._heads["embedding"](images_nd)
        contrast = multi_positive_loss(
            functional.normalize(images_nd.float(), dim=-1),
            functional.normalize(texts_nd.float(), dim=-1),
            positives([place // each for place in range(len(texts))], texts, len(images)),
            self.model.logit_scale.exp(),
        )
        return contrast, contrast + self.settings.words * words.loss(logits_nv.float(), words_nv)

    def _rate(self) -> float:
        settings = self.settings
        step, steps, rate = self.step, settings.first_steps, settings.first_rate
        if step >= steps:
            step, steps, rate = step - steps, settings.steps, settings.rate
        if step < settings.warm_up:
            return rate * (step + 1) / settings.warm_up
        part = (step - settings.warm_up) / max(1, steps - settings.warm_up)
        return rate * (0.5 + 0.5 * math.cos(math.pi * part))

    def _batch(self) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return pixels [n, s, s, 3], captions (those of one picture together) and words [n, v]."""
        settings, pictures = self.settings, self._train.pictures
        first = self.step < settings.first_steps
        size = settings.first_batch if first else settings.batch
        epoch, place = divmod(self.step, len(pictures) // size)
        order = np.random.default_rng((settings.seed, size, epoch)).permutation(len(pictures))
        chosen = np.sort(order[place * size : (place + 1) * size])
        rng = np.random.default_rng((settings.seed, self.step))
        texts = [
            str(text)
            for index in chosen
            for text in rng.choice(pictures[index].plain, settings.texts)
        ]
        pixels = augment(self._train.pixels[chosen], settings.shift, rng)
        return torch.from_numpy(pixels), texts, torch.from_numpy(self._words_nv[chosen]).float()


def augment(
    pixels_nssc: np.ndarray[Any, np.dtype[np.uint8]], shift: int, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Mirror each image half of the time and move it by up to `shift` pixels; [n, s, s, 3]."""
    size = pixels_nssc.shape[1]
    padded = np.pad(pixels_nssc, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    moved = np.empty_like(pixels_nssc)
    for i, (down, across, mirrored) in enumerate(
        rng.integers(0, (2 * shift + 1, 2 * shift + 1, 2), (len(padded), 3))
    ):
        image = padded[i, down : down + size, across : across + size]
        moved[i] = image[:, ::-1] if mirrored else image
    return moved


def ship(model: CLIP, config: dict[str, Any], folder: Path) -> None:
    """Write a model folder that `find_model` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"name": NAME, "normalizer": NORMALIZER, **config}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    for name, buffer in model.visual.named_buffers():
        if name.endswith("num_batches_tracked"):
            # Unused in inference, and no fp16 holds it.
            buffer.zero_()
    save_checkpoint(model, folder / "checkpoint.pt")


def train(
    settings: Settings,
    config: dict[str, Any],
    out: Path,
    work: Path,
    *,
    workers: int,
    snapshot_s: float,
) -> float:
    """Train the base model and write it; an interrupted run goes on where it was.

    Args:
        settings: of the run.
        config: arguments of cn_clip's CLIP.
        out: model folder; holds the newest snapshot all along.
        work: folder for arrays and the state of the run.
        workers: processes that render.
        snapshot_s: seconds between two snapshots.

    Returns:
        seconds that the steps took, interruptions left out.

    Raises:
        ValueError: `work` holds the state of a run with other settings.
        FloatingPointError: the loss is not finite.
    """
    pictures = _load(
        work, "train", settings.pictures, config["image_resolution"], workers, settings.captions
    )
    trainer = Trainer(settings, pictures, config)
    state = work / "state.pt"
    if state.is_file():
        trainer.restore(state)
    saved = time.monotonic()
    average = math.nan
    with _bar("training", settings.total) as (bar, task):
        while trainer.step < settings.total:
            fresh = trainer.step in {0, settings.first_steps} or math.isnan(average)
            loss = trainer.advance()
            average = loss if fresh else 0.98 * average + 0.02 * loss
            lesson = "words" if trainer.step <= settings.first_steps else "pairs"
            bar.update(task, completed=trainer.step, description=f"{lesson}, loss {average:.3f}")
            if not sys.stdout.isatty() and trainer.step % 50 == 0:
                bar.console.print(
                    f"step {trainer.step} {lesson} {average:.4f} {trainer.seconds:.0f} s"
                )
            if time.monotonic() - saved > snapshot_s:
                trainer.save(state)
                if lesson == "pairs":
                    ship(trainer.model, config, out)
                saved = time.monotonic()
    trainer.save(state)
    ship(trainer.model, config, out)
    return trainer.seconds


def _bf16() -> torch.autocast:
    """Do arithmetic in bf16; the weights stay fp32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def _features(model: CLIP, images: torch.Tensor) -> torch.Tensor:
    """Return the mean over the last feature map, for images of any size.

    `ModifiedResNet.forward` up to its pooling, which is bound to one size by its positions.
    """
    visual = model.visual
    x = images
    for conv, norm in (
        (visual.conv1, visual.bn1),
        (visual.conv2, visual.bn2),
        (visual.conv3, visual.bn3),
    ):
        x = visual.relu(norm(conv(x)))
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.avgpool(x)))))
    means: torch.Tensor = x.mean(dim=(2, 3))
    return means


def _load(
    work: Path, split: str, count: int, size: int, workers: int, captions: int = CAPTIONS
) -> arrays.Arrays:
    with _bar(f"rendering {split}", count) as (bar, task):
        return arrays.load(
            work,
            split,
            count,
            size,
            lambda done: bar.update(task, completed=done),
            workers=workers,
            captions=captions,
        )


@contextmanager
def _bar(description: str, total: int) -> Iterator[tuple[Progress, Any]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(), disable=not sys.stdout.isatty()) as bar:
        yield bar, bar.add_task(description, total=total)


def main() -> None:
    """Train, evaluate, write the model and its card."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m cra.services.training.base", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("deploy/models/miniature"))
    parser.add_argument("--work", type=Path, default=Path(".data/base"), help="arrays and state")
    parser.add_argument("--pictures", type=int, default=defaults.pictures)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--first-steps", type=int, default=defaults.first_steps)
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--gallery", type=int, default=2000, help="held-out pictures to search")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--snapshot-s", type=float, default=180.0, help="seconds between snapshots")
    parser.add_argument("--evaluate-only", action="store_true", help="measure what is in --out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(
        pictures=options.pictures,
        first_steps=options.first_steps,
        steps=options.steps,
        rate=options.rate,
        seed=options.seed,
    )
    seconds = None
    if not options.evaluate_only:
        seconds = train(
            settings,
            CONFIG,
            options.out,
            options.work,
            workers=options.workers,
            snapshot_s=options.snapshot_s,
        )
    source = find_model(str(options.out))
    size = source.config["image_resolution"]
    gallery = _load(options.work, "test", options.gallery, size, options.workers)
    found = evaluate(source, gallery)
    Console().print(card.table(found))
    if seconds is not None:
        text = card.text(
            found, asdict(settings), source, seconds, options.threads, datetime.date.today()
        )
        (options.out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
