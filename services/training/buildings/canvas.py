"""What a picture is painted on: colours under a light, places in units, and marks of what shows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the canvas."""

SUPERSAMPLING: Final = 2
"""Painted so much larger and then reduced, since Pillow's drawing has no anti-aliasing."""


@dataclass(frozen=True)
class Light:
    """How a colour appears: times `gain`, then `amount` of the way to `haze`."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: Colour = (255, 255, 255)
    amount: float = 0.0

    def on(self, colour: Sequence[float], shade: float = 1.0) -> Colour:
        """Return the colour under this light."""
        red, green, blue = (
            max(
                0,
                min(255, int(part * gain * shade * (1 - self.amount) + haze * self.amount)),
            )
            for part, gain, haze in zip(colour, self.gain, self.haze, strict=True)
        )
        return red, green, blue


@dataclass(frozen=True)
class Place:
    """Where a building stands: its own units (x right, y up, from the middle of its foot)."""

    x: float
    y: float
    unit: float
    """Pixels per unit, upwards."""
    squeeze: float = 1.0
    """Width relative to height: a front seen at an angle is narrower."""
    slope: float = 0.0
    """How much the horizontal lines rise, as seen from one side."""

    def point(self, x: float, y: float) -> Point:
        """Return pixels."""
        across = x * self.unit * self.squeeze
        return self.x + across, self.y - y * self.unit - across * self.slope

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Box:
        """Return the box in pixels around a rectangle in units."""
        return around([self.point(x, y) for x in (x0, x1) for y in (y0, y1)])


@dataclass
class Canvas:
    """A picture in the making.

    `line` and `fill` turn it into a drawing: every face gets that fill and that outline.
    """

    width: int
    height: int
    """Of the canvas, which is `SUPERSAMPLING` times the picture."""
    light: Light
    rng: np.random.Generator
    fill: Colour | None = None
    line: Colour | None = None
    grey: bool = False
    image: Image.Image = field(init=False)
    draw: ImageDraw.ImageDraw = field(init=False)
    marks: dict[str, tuple[Box, float]] = field(init=False, default_factory=dict)
    occluders: list[Box] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)

    @property
    def drawing(self) -> bool:
        """Whether it has no colours of its own."""
        return self.line is not None

    def colour(self, colour: Sequence[float], shade: float = 1.0) -> Colour:
        """Return what a colour of the world is on this canvas."""
        if self.fill is not None:
            return self.fill
        if self.grey:
            tone = (sum(colour) / 3 * shade) * 0.8 + 45
            colour, shade = (tone, tone, tone * 0.98), 1.0
        return self.light.on(colour, shade)

    def polygon(
        self,
        points: Sequence[Point],
        colour: Sequence[float],
        shade: float = 1.0,
        *,
        edge: bool = True,
        lit: bool = False,
    ) -> None:
        """Fill a polygon; `lit` ones shine by themselves."""
        fill = self.colour(colour, shade)
        if lit and self.fill is None and not self.grey:
            fill = (int(colour[0]), int(colour[1]), int(colour[2]))
        outline: Colour | None = None
        if self.line is not None:
            outline = self.line
        elif edge:
            outline = (int(fill[0] * 0.62), int(fill[1] * 0.62), int(fill[2] * 0.62))
        self.draw.polygon(points, fill=fill)
        if outline is not None:
            self.draw.line([*points, points[0]], fill=outline, width=3 if self.drawing else 2)

    def stroke(
        self, points: Sequence[Point], colour: Sequence[float], width: float, shade: float = 1.0
    ) -> None:
        """Draw a line of some width in pixels of the canvas."""
        fill = self.line or self.colour(colour, shade)
        size = max(2, round(width)) if self.line is None else min(4, max(2, round(width)))
        self.draw.line(points, fill=fill, width=size)

    def mark(self, fact: str, box: Box, extent: float | None = None) -> None:
        """Note where a fact shows; `extent` in pixels, the box's smaller side if not given."""
        size = min(box[2] - box[0], box[3] - box[1]) if extent is None else extent
        self.marks[fact] = (box, size)

    def hide(self, box: Box) -> None:
        """Note that whatever was painted here before is covered now."""
        self.occluders.append(box)


def around(points: Iterable[Point]) -> Box:
    """Return the box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def overlap(box: Box, other: Box) -> float:
    """Return the share of `box` that `other` covers; 0 to 1."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return 0.0 if width <= 0 or height <= 0 or area <= 0 else width * height / area


def ellipse(
    place: Place, x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> list[Point]:
    """Return points of an ellipse's arc in pixels; degrees counter-clockwise from the right."""
    steps = max(4, int(abs(end - start) / 24))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [place.point(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def rectangle(place: Place, x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """Return the corners of a rectangle in pixels."""
    return [place.point(x0, y0), place.point(x1, y0), place.point(x1, y1), place.point(x0, y1)]


def arch(
    place: Place, x0: float, y0: float, x1: float, y1: float, *, pointed: bool = False
) -> list[Point]:
    """Return a rectangle in pixels whose top is a half circle, or a pointed arch."""
    middle, half = (x0 + x1) / 2, (x1 - x0) / 2
    spring = y1 - half * (1.5 if pointed else 1.0)
    if pointed:
        shoulder = (spring + y1) / 2 + half * 0.25
        curve = ((x1, spring), (middle + half * 0.6, shoulder), (middle, y1))
        top = [place.point(x, y) for x, y in curve]
        top += [place.point(2 * middle - x, y) for x, y in reversed(curve[:2])]
    else:
        top = ellipse(place, middle, spring, half, half, 0, 180)
    return [place.point(x0, y0), place.point(x1, y0), *top]
