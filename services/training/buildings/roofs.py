"""Roofs, seen from the front."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cra.services.training.buildings.canvas import Canvas, Colour, Place, Point, around, ellipse

TILES: Final[dict[str, Colour]] = {
    "grey": (128, 132, 138), "black": (44, 44, 50), "red": (176, 62, 46), "yellow": (228, 178, 40),
    "green": (46, 132, 74), "thatch": (182, 148, 88), "blue": (44, 86, 176),
    "purple": (112, 60, 120),
}  # fmt: skip


@dataclass(frozen=True)
class Roof:
    """What a roof needs to know of its building."""

    canvas: Canvas
    place: Place
    half: float
    """Half the width of the wall below, in units."""
    eave: float
    """Height of the eave, in units."""
    tiles: Colour
    wall: Colour
    flying: bool

    def face(self, points: list[tuple[float, float]], colour: Colour, shade: float = 1.0) -> None:
        """Fill a polygon given in units above the middle of the eave."""
        self.canvas.polygon(self.points(points), colour, shade)

    def points(self, points: list[tuple[float, float]]) -> list[Point]:
        """Return pixels of points in units above the middle of the eave."""
        return [self.place.point(x, self.eave + y) for x, y in points]

    def rows(self, left: list[Point], right: list[Point], count: int = 3) -> None:
        """Draw courses of tiles between two slopes."""
        for i in range(1, count + 1):
            part = i / (count + 1)
            ends = [
                (line[0][0] + (line[-1][0] - line[0][0]) * part,
                 line[0][1] + (line[-1][1] - line[0][1]) * part)
                for line in (left, right)
            ]  # fmt: skip
            self.canvas.stroke(ends, self.tiles, 2, 0.8)

    def curve(
        self, x0: float, y0: float, x1: float, y1: float, sag: float
    ) -> list[tuple[float, float]]:
        """Return points of a slope that hangs by `sag` in the middle."""
        return [
            (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t - sag * 4 * t * (1 - t))
            for t in (0, 0.2, 0.4, 0.6, 0.8, 1)
        ]


def paint(kind: str, roof: Roof) -> float:
    """Paint a roof and mark it; return its height in units."""
    height, reach = _ROOFS[kind](roof)
    box = around(roof.points([(-reach, 0), (reach, height), (-reach, height), (reach, 0)]))
    roof.canvas.mark(f"roof={kind}", box)
    roof.canvas.mark(
        f"corner={'flying' if roof.flying else 'straight'}", box, (box[3] - box[1]) / 3
    )
    return height


def skirt(roof: Roof, height: float) -> None:
    """Paint the roof of a lower eave, running round the wall above it."""
    _slopes(roof, roof.half * 0.98, height, overhang=0.28)


def _slopes(roof: Roof, ridge: float, height: float, overhang: float = 0.24) -> float:
    reach = roof.half + overhang + (0.1 if roof.flying else 0)
    lift = min(0.34, height * 0.75) if roof.flying else 0.0
    sag = height * (0.2 if roof.flying else 0.06)
    right = roof.curve(reach, lift, ridge, height, sag)
    left = [(-x, y) for x, y in reversed(right)]
    eave = [(-reach * 0.72, 0.0), (reach * 0.72, 0.0)]
    roof.face([*right, *left, *eave], roof.tiles)
    roof.rows(roof.points(right), roof.points([(-x, y) for x, y in right]))
    ends = roof.points([(-ridge, height), (ridge, height)])
    roof.canvas.stroke(ends, roof.tiles, roof.place.unit * 0.06, 0.6)
    return reach


def _hip(roof: Roof) -> tuple[float, float]:
    height = 0.52 + 0.12 * roof.half
    return height, _slopes(roof, roof.half * 0.55, height)


def _hip_gable(roof: Roof) -> tuple[float, float]:
    height = 0.66 + 0.12 * roof.half
    reach = _slopes(roof, roof.half * 0.72, height * 0.5)
    side = roof.half * 0.72
    roof.face([(-side, height * 0.42), (0, height * 1.12), (side, height * 0.42)], roof.tiles, 0.85)
    inner = side * 0.68
    roof.face(
        [(-inner, height * 0.48), (0, height * 0.94), (inner, height * 0.48)], (226, 206, 170)
    )
    return height * 1.12, reach


def _overhanging(roof: Roof) -> tuple[float, float]:
    height, reach = 0.5, roof.half + 0.34
    roof.face(
        [(-reach, -0.03), (reach, -0.03), (reach * 0.97, height), (-reach * 0.97, height)],
        roof.tiles,
    )
    roof.rows(
        roof.points([(reach, 0), (reach * 0.97, height)]),
        roof.points([(-reach, 0), (-reach * 0.97, height)]),
    )
    roof.canvas.stroke(
        roof.points([(-reach, height), (reach, height)]), roof.tiles, roof.place.unit * 0.07, 0.6
    )
    return height, reach


def _flush(roof: Roof) -> tuple[float, float]:
    height, reach = 0.5, roof.half
    roof.face([(-reach, 0), (reach, 0), (reach, height), (-reach, height)], roof.tiles)
    roof.rows(
        roof.points([(reach, 0), (reach, height)]), roof.points([(-reach, 0), (-reach, height)])
    )
    for side in (-1, 1):
        edge = side * reach
        inner = edge - side * 0.13
        roof.face(
            [(inner, -0.02), (edge, -0.02), (edge, height + 0.1), (inner, height + 0.1)],
            roof.wall,
            0.9,
        )
    return height + 0.1, reach


def _rolled(roof: Roof) -> tuple[float, float]:
    height, reach = 0.56, roof.half + 0.2
    crown = height * 0.62
    right = [
        (reach, 0.0),
        (reach - 0.03, crown * 0.6),
        (reach - 0.1, crown),
        (reach - 0.26, height * 0.9),
        (reach - 0.5, height),
    ]
    roof.face([*right, *((-x, y) for x, y in reversed(right))], roof.tiles)
    for part, shade in ((0.5, 0.9), (0.72, 1.08), (0.88, 1.2)):
        y = height * part
        roof.canvas.stroke(
            roof.points([(-reach + 0.3, y), (reach - 0.3, y)]),
            roof.tiles,
            roof.place.unit * 0.05,
            shade,
        )
    return height, reach


def _pyramid(roof: Roof) -> tuple[float, float]:
    height = 0.75 + 0.3 * roof.half
    reach = _slopes(roof, 0.05, height)
    roof.canvas.stroke(roof.points([(0, height), (-roof.half * 0.3, 0)]), roof.tiles, 3, 0.65)
    roof.canvas.stroke(roof.points([(0, height), (roof.half * 0.3, 0)]), roof.tiles, 3, 0.65)
    return height, reach


def _truncated(roof: Roof) -> tuple[float, float]:
    height = 0.34
    reach = _slopes(roof, roof.half * 0.88, height)
    top = roof.half * 0.84
    roof.face(
        [(-top, height), (top, height), (top, height + 0.1), (-top, height + 0.1)], roof.tiles, 0.6
    )
    return height + 0.1, reach


def _gable(roof: Roof) -> tuple[float, float]:
    height, reach = 0.45 + 0.4 * roof.half, roof.half + 0.16
    roof.face([(-reach, -0.06), (0, height), (reach, -0.06)], roof.tiles)
    inner = roof.half * 0.8
    roof.face([(-inner, -0.02), (0, height * 0.74), (inner, -0.02)], roof.wall, 0.94)
    return height, reach


def _dome(roof: Roof) -> tuple[float, float]:
    radius = roof.half * 0.86
    height = radius * 0.92 + 0.16
    roof.face([(-radius, 0), (radius, 0), (radius, 0.18), (-radius, 0.18)], roof.wall, 0.85)
    base = Place(
        *roof.place.point(0, roof.eave + 0.16),
        roof.place.unit,
        roof.place.squeeze,
        roof.place.slope,
    )
    roof.canvas.polygon(ellipse(base, 0, 0, radius * 0.95, radius * 0.92, 0, 180), roof.tiles)
    for part in (0.35, 0.7):
        roof.canvas.stroke(
            ellipse(base, 0, 0, radius * part, radius * 0.92, 0, 180), roof.tiles, 2, 0.8
        )
    return height, radius


def _onion(roof: Roof) -> tuple[float, float]:
    radius = roof.half * 0.66
    right = [
        (radius * 0.6, 0.0),
        (radius * 0.62, 0.14),
        (radius * 0.98, 0.4),
        (radius, 0.6),
        (radius * 0.8, 0.86),
        (radius * 0.35, 1.08),
        (radius * 0.1, 1.28),
        (0, 1.5),
    ]
    scale = 0.6 + 0.4 * roof.half
    half = [(x, y * scale) for x, y in right]
    roof.face([*half, *((-x, y) for x, y in reversed(half))], roof.tiles)
    for part in (0.4, 0.75):
        roof.canvas.stroke(roof.points([(x * part, y) for x, y in half]), roof.tiles, 2, 0.75)
        roof.canvas.stroke(roof.points([(-x * part, y) for x, y in half]), roof.tiles, 2, 0.75)
    return 1.5 * scale, radius


def _spire(roof: Roof) -> tuple[float, float]:
    width, height = min(0.42, roof.half * 0.5), 1.75
    roof.face(
        [(-roof.half, 0), (roof.half, 0), (roof.half * 0.92, 0.22), (-roof.half * 0.92, 0.22)],
        roof.tiles,
        0.9,
    )
    roof.face([(-width, 0.1), (width, 0.1), (width, 0.42), (-width, 0.42)], roof.wall)
    roof.face([(-width * 1.15, 0.4), (0, height), (width * 1.15, 0.4)], roof.tiles)
    roof.canvas.stroke(roof.points([(0, height), (width * 0.3, 0.4)]), roof.tiles, 3, 0.7)
    return height, max(width * 1.2, roof.half * 0.7)


def _flat(roof: Roof) -> tuple[float, float]:
    reach = roof.half + 0.06
    roof.face([(-reach, -0.02), (reach, -0.02), (reach, 0.17), (-reach, 0.17)], roof.tiles)
    return 0.17, reach


def _sawtooth(roof: Roof) -> tuple[float, float]:
    reach, height, teeth = roof.half, 0.5, 4
    step = 2 * reach / teeth
    for i in range(teeth):
        x = -reach + i * step
        roof.face([(x, -0.02), (x + step, -0.02), (x + step, height)], roof.tiles)
        roof.face(
            [(x + step * 0.82, 0.02), (x + step, 0.02), (x + step, height * 0.95)], (176, 206, 224)
        )
    return height, reach


def _vault(roof: Roof) -> tuple[float, float]:
    reach, height = roof.half + 0.08, 0.42 + 0.18 * roof.half
    base = Place(
        *roof.place.point(0, roof.eave - 0.02),
        roof.place.unit,
        roof.place.squeeze,
        roof.place.slope,
    )
    roof.canvas.polygon(ellipse(base, 0, 0, reach, height, 0, 180), roof.tiles)
    roof.canvas.polygon(ellipse(base, 0, 0, reach * 0.82, height * 0.72, 0, 180), roof.wall, 0.95)
    return height, reach


def _mansard(roof: Roof) -> tuple[float, float]:
    reach, height = roof.half + 0.1, 0.78
    roof.face(
        [(-reach, 0), (reach, 0), (reach * 0.88, height * 0.66), (-reach * 0.88, height * 0.66)],
        roof.tiles,
    )
    roof.face(
        [
            (-reach * 0.9, height * 0.64),
            (reach * 0.9, height * 0.64),
            (reach * 0.5, height),
            (-reach * 0.5, height),
        ],
        roof.tiles,
        0.75,
    )
    return height, reach


def _shed(roof: Roof) -> tuple[float, float]:
    reach, height = roof.half + 0.16, 0.62
    roof.face(
        [(-roof.half, -0.02), (roof.half, -0.02), (roof.half, height * 0.86), (-roof.half, 0.06)],
        roof.wall,
        0.95,
    )
    roof.face(
        [(-reach, 0.0), (reach, height * 0.92), (reach, height * 1.1), (-reach, 0.16)], roof.tiles
    )
    return height * 1.1, reach


def _butterfly(roof: Roof) -> tuple[float, float]:
    reach, height = roof.half + 0.22, 0.6
    roof.face(
        [
            (-roof.half, -0.02),
            (roof.half, -0.02),
            (roof.half, height * 0.8),
            (0, 0.1),
            (-roof.half, height * 0.8),
        ],
        roof.wall,
        0.95,
    )
    roof.face(
        [
            (-reach, height * 0.82),
            (0, 0.06),
            (reach, height * 0.82),
            (reach, height),
            (0, 0.24),
            (-reach, height),
        ],
        roof.tiles,
    )
    return height, reach


def _battlement(roof: Roof) -> tuple[float, float]:
    reach, height, count = roof.half + 0.06, 0.36, 5
    roof.face([(-reach, -0.02), (reach, -0.02), (reach, 0.16), (-reach, 0.16)], roof.wall, 0.85)
    step = 2 * reach / (2 * count - 1)
    for i in range(count):
        x = -reach + 2 * i * step
        roof.face([(x, 0.12), (x + step, 0.12), (x + step, height), (x, height)], roof.tiles)
    return height, reach


_ROOFS: Final[dict[str, Callable[[Roof], tuple[float, float]]]] = {
    "hip": _hip, "hip_gable": _hip_gable, "overhanging": _overhanging, "flush": _flush,
    "rolled": _rolled, "pyramid": _pyramid, "truncated": _truncated, "gable": _gable,
    "dome": _dome, "onion": _onion, "spire": _spire, "flat": _flat, "sawtooth": _sawtooth,
    "vault": _vault, "mansard": _mansard, "shed": _shed, "butterfly": _butterfly,
    "battlement": _battlement,
}  # fmt: skip
