"""From a scene to a picture, and to what can be seen in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from cra.services.training.buildings import facade, foreground, surroundings
from cra.services.training.buildings.attributes import SLOTS
from cra.services.training.buildings.canvas import (
    SUPERSAMPLING,
    Box,
    Canvas,
    Light,
    Place,
    overlap,
)
from cra.services.training.buildings.scene import Building, Scene

HIDDEN_AT: Final = 0.5
"""Share of a mark behind something else from which on nobody sees it."""


@dataclass(frozen=True)
class Rendering:
    """A picture and what it shows."""

    image: Image.Image
    """RGB, 480 pixels on its long side."""
    facts: Mapping[str, float]
    """How large each fact shows: the smaller of its extents as a share of the picture's width or
    height. Times a tower's input size these are pixels of its input."""


def render(scene: Scene) -> Rendering:
    """Paint a scene. The same scene gives the same pixels."""
    rng = np.random.default_rng(scene.entropy)
    style, weather = scene.surroundings["style"], scene.surroundings["weather"]
    width, height = (side * SUPERSAMPLING for side in scene.size)
    canvas = Canvas(width, height, _light(weather, style, rng), rng)
    if style in {"line", "section"}:
        paper = int(rng.integers(238, 255))
        canvas.fill, canvas.line = (paper, paper, paper - int(rng.integers(0, 14))), (26, 26, 30)
    elif style == "blueprint":
        canvas.fill, canvas.line = (24, 60 + int(rng.integers(0, 20)), 140), (236, 242, 250)
    canvas.grey = style == "ink"
    place, horizon = _camera(scene, rng, width, height)
    surroundings.behind(
        canvas, weather, scene.surroundings["backdrop"], scene.surroundings["ground"], horizon
    )
    lit = weather == "night" and canvas.fill is None and not canvas.grey
    if scene.neighbour is not None:
        _neighbour(canvas, scene.neighbour, place, scene.building, lit=lit)
    slanted = 1 if place.slope > 0.02 else -1 if place.slope < -0.02 else 0
    facade.paint(canvas, place, scene.building, lit=lit, cut=style == "section", side=slanted)
    _before(canvas, scene, place)
    surroundings.falling(canvas, weather)
    canvas.mark(f"style={style}", (0.0, 0.0, float(width), float(height)))
    return Rendering(_finish(canvas, rng), _seen(canvas))


def _light(weather: str, style: str, rng: np.random.Generator) -> Light:
    if style != "photograph":
        return Light()
    light = surroundings.LIGHTS[weather]
    exposure = float(rng.uniform(0.86, 1.08))
    red, green, blue = (gain * exposure * float(rng.uniform(0.97, 1.03)) for gain in light.gain)
    return Light((red, green, blue), light.haze, light.amount)


def _camera(scene: Scene, rng: np.random.Generator, width: int, height: int) -> tuple[Place, float]:
    """Return where the building stands in the picture, and the horizon in pixels."""
    building = scene.building
    squeeze = float(rng.uniform(0.86, 1.08))
    slope = float(rng.uniform(-0.07, 0.07)) if rng.random() < 0.6 else 0.0
    high = facade.height(building)
    wide = 2 * building.width + 0.7 + (1.1 if building.facts["wings"] != "none" else 0.0)
    fill = float(rng.uniform(0.8, 0.95))
    ground = height * float(rng.uniform(0.8, 0.87))
    unit = min(fill * ground / high, fill * width / (wide * squeeze))
    if scene.neighbour is not None:
        unit *= 0.86
    x = width * float(rng.uniform(0.42, 0.58))
    if scene.framing == "far":
        unit *= 0.72
        x = width * float(rng.uniform(0.35, 0.65))
    elif scene.framing == "roof":
        unit *= 1.45
        ground = unit * high + height * 0.06
    elif scene.framing == "entrance":
        unit *= 1.5
        ground = height * 0.86
    elif scene.framing == "side":
        unit *= 1.3
        x = width / 2 + float(rng.choice([-1, 1])) * unit * squeeze * building.width * 0.7
    horizon = ground - height * float(rng.uniform(0.03, 0.08))
    return Place(x, ground, unit, squeeze, slope), horizon


def _neighbour(
    canvas: Canvas, building: Building, place: Place, main: Building, *, lit: bool
) -> None:
    """Paint a second building beside and behind the main one."""
    side = 1 if place.x < canvas.width / 2 else -1
    free = (
        canvas.width - place.x if side > 0 else place.x
    ) - main.width * place.unit * place.squeeze
    unit = min(place.unit * 0.8, 0.72 * place.y / facade.height(building))
    x = place.x + side * (
        main.width * place.unit * place.squeeze + max(free * 0.5, building.width * unit * 0.75)
    )
    marks = dict(canvas.marks)
    canvas.marks.clear()
    facade.paint(
        canvas,
        Place(x, place.y - canvas.height * 0.02, unit, place.squeeze),
        building,
        lit=lit,
        cut=False,
        side=0,
    )
    for slot in ("roof", "wall"):
        fact = f"{slot}={building.facts[slot]}"
        if fact in canvas.marks:
            marks[f"neighbour_{fact}"] = canvas.marks[fact]
    canvas.marks.clear()
    canvas.marks.update(marks)
    reach = main.width * place.unit * place.squeeze
    # Only what the main building leaves free; its own marks come after this one.
    body = (
        place.x - reach,
        place.y - facade.height(main) * place.unit * 0.8,
        place.x + reach,
        place.y,
    )
    for fact in [name for name in canvas.marks if name.startswith("neighbour_")]:
        if overlap(canvas.marks[fact][0], body) > HIDDEN_AT:
            del canvas.marks[fact]


def _before(canvas: Canvas, scene: Scene, place: Place) -> None:
    rng, facts = canvas.rng, scene.surroundings
    unit = place.unit if scene.framing in {"whole", "far"} else place.unit * 0.75
    # Small things are painted no smaller than a share of the picture, or nobody could name them.
    unit = min(max(unit, canvas.height * 0.24), canvas.height * 0.4)
    deep = canvas.height - place.y
    side = int(rng.choice([-1, 1]))
    trunk = place.x + side * canvas.width * float(rng.uniform(0.3, 0.42))
    if facts["tree"] != "none":
        foreground.tree(
            canvas,
            facts["tree"],
            Place(trunk, place.y + deep * 0.25, unit * float(rng.uniform(0.85, 1.1))),
        )
    low = place.y + deep * float(rng.uniform(0.5, 0.62))
    if facts["object"] in {"lamp", "gateway"}:
        low = place.y + deep * 0.4
    foreground.thing(
        canvas, facts["object"], Place(canvas.width * float(rng.uniform(0.4, 0.6)), low, unit * 0.9)
    )
    if facts["people"] != "none":
        x = place.x - side * canvas.width * float(rng.uniform(0.2, 0.3))
        if facts["people"] == "crowd":
            x = canvas.width / 2
        foreground.people(canvas, facts["people"], Place(x, place.y + deep * 0.7, unit * 1.05))


def _seen(canvas: Canvas) -> dict[str, float]:
    frame: Box = (0.0, 0.0, float(canvas.width), float(canvas.height))
    facts = {}
    for fact, (box, extent) in canvas.marks.items():
        slot = fact.partition("=")[0]
        inside = overlap(box, frame)
        own = SLOTS[slot].coverage
        hidden = 0.0
        if slot not in {"tree", "people", "object", "weather", "ground", "style", "backdrop"}:
            hidden = max((overlap(box, other) for other in canvas.occluders), default=0.0)
        if inside < own or hidden > HIDDEN_AT:
            continue
        across, down = box[2] - box[0], box[3] - box[1]
        # The extent is in pixels of a picture that gets squashed: take the worse of both sides.
        facts[fact] = round(min(extent, across, down) / max(canvas.width, canvas.height), 4)
    return facts


def _finish(canvas: Canvas, rng: np.random.Generator) -> Image.Image:
    image = canvas.image.reduce(SUPERSAMPLING)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.4, 1.1))))
    pixels = np.asarray(image, dtype=np.int16)
    strength = int(rng.integers(2, 12))
    noise = rng.integers(-strength, strength + 1, size=pixels.shape[:2], dtype=np.int8)
    return Image.fromarray(np.clip(pixels + noise[:, :, None], 0, 255).astype(np.uint8))
