"""Converts the towers of a model or a release for OpenVINO: `python -m cra.shared.model.convert`.

Prints, as JSON, the folder of the converted towers, or the reason and ends with status 3.
"""

import argparse
import hashlib
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from cra.shared import budget
from cra.shared.errors import FailedPreconditionError
from cra.shared.model import converted
from cra.shared.model.checkpoints import ModelSource, find_model, image_precision, load_clip
from cra.shared.model.converted import FORMAT, IMAGE, REFUSED, TEXT, TowerInfo, place
from cra.shared.model.image_tower import image_fingerprint
from cra.shared.model.pixels import Preprocessing
from cra.shared.model.quiet_openvino import openvino
from cra.shared.model.text_tower import TextModel, base_release, load_text_model
from cra.shared.releases import Release, read_release


def convert_model(source: ModelSource, store: Path) -> Path:
    """Convert both towers of a model; return their folder.

    Raises:
        FailedPreconditionError: the checkpoint does not load.
    """

    def fill(folder: Path) -> None:
        clip = load_clip(source)
        preprocessing = Preprocessing(source.config["image_resolution"])
        _save_text(TextModel.from_clip(clip), folder)
        _save_image(clip.visual, preprocessing.input_size, folder)
        info = TowerInfo(
            name=source.name,
            release=base_release(source, clip),
            normalizer=source.normalizer,
            added_tokens=(),
            image_tower=image_fingerprint(clip, preprocessing),
            dimension=source.config["embed_dim"],
            input_size=preprocessing.input_size,
            image_precision=image_precision(source, "auto"),
        )
        converted.save(folder, info)

    return place(store, f"{source.name}-{_digest(source)}-{FORMAT}", fill)


def convert_release(release: Release, store: Path) -> Path:
    """Convert the text tower of a release; return its folder.

    Raises:
        FailedPreconditionError: weights and manifest do not fit each other.
    """

    def fill(folder: Path) -> None:
        manifest = release.manifest
        _save_text(load_text_model(release), folder)
        info = TowerInfo(
            name=manifest.label,
            release=release.name,
            normalizer=manifest.normalizer,
            added_tokens=manifest.added_tokens,
            image_tower=manifest.image_tower,
            dimension=manifest.dimension,
            input_size=None,
            image_precision="auto",
        )
        converted.save(folder, info)

    return place(store, f"{release.name}-{FORMAT}", fill)


def _digest(source: ModelSource) -> str:
    """Identify a checkpoint, its shape and normaliser; 16 hex digits."""
    with source.checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    shape = json.dumps([source.config, source.normalizer, version("openvino")], sort_keys=True)
    digest.update(shape.encode())
    return digest.hexdigest()[:16]


def _save_text(model: TextModel, folder: Path) -> None:
    ids_nt = torch.ones(2, 9, dtype=torch.long)
    _save(model, ids_nt, [-1, -1], folder / TEXT)


def _save_image(visual: torch.nn.Module, side: int, folder: Path) -> None:
    # From normalised pixels on: as fp16, mean and deviation of the pixels would not be exact.
    pixels_n3ss = torch.zeros(2, 3, side, side)
    _save(visual, pixels_n3ss, [-1, 3, side, side], folder / IMAGE)


def _save(model: torch.nn.Module, example: torch.Tensor, shape: list[int], file: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns of constants that are constants.
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(
            model.eval(), example_input=example, input=[openvino.PartialShape(shape)]
        )
    exact = all(
        torch.equal(values.half().float(), values.float()) for values in model.state_dict().values()
    )
    # Batch norm, folded into other weights, is never what was in the file.
    folded = any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    openvino.save_model(graph, file, compress_to_fp16=exact and not folded)


def main() -> None:
    """Convert, print the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--config", default="")
    parser.add_argument("--downloads", default="")
    parser.add_argument("--release", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    budget.give_way()  # queries go on while a release is converted
    torch.set_num_threads(1)
    try:
        if options.release:
            folder = convert_release(read_release(options.release), options.into)
        else:
            downloads = Path(options.downloads) if options.downloads else None
            source = find_model(options.model, options.config, downloads)
            folder = convert_model(source, options.into)
    except FailedPreconditionError as error:
        print(json.dumps(error.message))  # noqa: T201
        sys.exit(REFUSED)
    print(json.dumps(str(folder)))  # noqa: T201


if __name__ == "__main__":
    main()
