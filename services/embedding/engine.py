"""Which engine the towers of this service run on, and how they are loaded with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cra.shared import budget
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.converted import Converted, convert_model, convert_release
from cra.shared.model.runtime import Precision, Runtime
from cra.shared.releases import Release
from cra.shared.settings import Settings

if TYPE_CHECKING:
    from cra.shared.model.checkpoints import ModelSource
    from cra.shared.model.encoders import ImageEncoder, TextEncoder

_log = structlog.get_logger()


@dataclass(frozen=True)
class Engine:
    """Loads towers; the tower processes have one from their parent."""

    settings: Settings
    runtime: Runtime
    converted: Converted | None
    """The model for OpenVINO; None for torch."""

    @classmethod
    def choose(cls, settings: Settings) -> "Engine":
        """Choose the engine, and convert the model if that is needed and was not done before.

        Raises:
            FailedPreconditionError: there is no such device or model.
            UnavailableError: the model cannot be converted now.
        """
        try:
            runtime = Runtime.choose(settings.device, settings.precision, settings.runtime)
        except FailedPreconditionError as error:
            asked = (settings.device, settings.precision, settings.runtime)
            names = "CRA_DEVICE={}, CRA_PRECISION={}, CRA_RUNTIME={}".format(*asked)
            raise FailedPreconditionError(f"{names}: {error.message}") from error
        if runtime.engine != "openvino":
            return cls(settings, runtime, None)
        model = convert_model(
            settings.model, settings.config, settings.model_cache, _store(settings)
        )
        return cls(settings, runtime, model)

    def text_tower(self, release: Release | None = None) -> "TextEncoder":
        """Load the text tower of a release, or the model's own.

        Raises:
            FailedPreconditionError: it does not load.
        """
        if self.converted is None:
            from cra.shared.model.text_tower import TextTower  # noqa: PLC0415 - torch, only here

            self.limit_threads()
            return TextTower(release or self._source(), self.runtime.device, self.runtime.precision)
        from cra.shared.model import int8_weights  # noqa: PLC0415
        from cra.shared.model.openvino_towers import OpenVinoTextTower  # noqa: PLC0415

        towers = convert_release(release, _store(self.settings)) if release else self.converted

        def load(precision: Precision) -> OpenVinoTextTower:
            return OpenVinoTextTower(towers, self._at(precision), self._threads)

        if self.settings.precision != "int8":
            return load(self.settings.precision)
        names = int8_weights.names()
        return int8_weights.load_if_kept(
            load, lambda tower: tower.encode(names)[0], f"text tower of {towers.info.release}"
        )

    def image_tower(self) -> "ImageEncoder":
        """Load the image tower.

        Raises:
            FailedPreconditionError: it does not load.
        """
        if self.converted is None:
            from cra.shared.model.image_tower import ImageTower  # noqa: PLC0415

            self.limit_threads()
            # Its own `auto`: not every image tower keeps the tolerance at the fastest.
            return ImageTower(self._source(), self.runtime.device, self.settings.precision)
        from cra.shared.model import int8_weights  # noqa: PLC0415
        from cra.shared.model.openvino_towers import OpenVinoImageTower  # noqa: PLC0415

        towers = self.converted

        def load(precision: Precision) -> OpenVinoImageTower:
            return OpenVinoImageTower(towers, self._at(precision), self._threads)

        asked, usual = self.settings.precision, towers.info.image_precision
        if asked == "int8" and usual == "auto":
            pictures = int8_weights.pictures(towers.info.input_size or 0)
            return int8_weights.load_if_kept(
                load, lambda tower: tower.encode(pictures), f"image tower of {towers.info.name}"
            )
        if asked == "int8":
            _log.warning("not in int8, nor in bf16: an image tower with batch norm", takes=usual)
        return load(usual if asked in {"auto", "int8"} else asked)

    def _at(self, precision: Precision) -> Runtime:
        return Runtime.choose(self.runtime.device, precision, self.runtime.engine)

    def limit_threads(self) -> None:
        """Have torch take no more threads than its share, in the process that calls it."""
        if self.converted is None:
            import torch  # noqa: PLC0415

            torch.set_num_threads(self._threads)

    @property
    def text_lanes(self) -> int:
        """Batches of texts in their process at once.

        They take turns, so that the tower never waits for the next one. That was measured with
        OpenVINO alone; torch has one.
        """
        return 2 if self.runtime.engine == "openvino" else 1

    @property
    def image_lanes(self) -> int:
        """Batches of images that are encoded at once, so that a stream that is done has the next.

        Torch on CPU takes one: two would fight for its threads.
        """
        on_cpu = self.runtime.device == "cpu" and self.runtime.engine == "torch"
        return 1 if on_cpu else 2

    @property
    def max_batch(self) -> int:
        """Most items in one forward pass; 0 if that is to be found by measuring."""
        return self.settings.max_batch

    @property
    def _threads(self) -> int:
        return budget.tower_threads(self.settings.tower_threads)

    def _source(self) -> "ModelSource":
        from cra.shared.model.checkpoints import find_model  # noqa: PLC0415

        cache = Path(self.settings.model_cache) if self.settings.model_cache else None
        return find_model(self.settings.model, self.settings.config, cache)


def _store(settings: Settings) -> Path:
    if settings.converted_models:
        return Path(settings.converted_models)
    return Path.home() / ".cache" / "cra" / "converted"
