"""Windows, doors and columns of a front."""

from dataclasses import dataclass
from typing import Final

from cra.services.training.buildings.canvas import Canvas, Colour, Place, arch, ellipse, rectangle

FRAME: Final[Colour] = (250, 248, 240)
DARK: Final[Colour] = (40, 40, 46)


@dataclass(frozen=True)
class Front:
    """The front wall of a building; lengths in its units."""

    canvas: Canvas
    place: Place
    half: float
    """Half its width."""
    foot: float
    top: float
    storey: float
    storeys: int
    wall: Colour
    tiles: Colour
    lit: bool

    @property
    def glass(self) -> Colour:
        """The colour of a window, or of the light in it."""
        return (255, 222, 120) if self.lit else (58, 78, 100)


def windows(front: Front, kind: str, *, ground: bool) -> None:
    """Paint the windows of every storey; the ground floor's middle is left to the door."""
    canvas, place = front.canvas, front.place
    whole = place.box(-front.half, front.foot, front.half, front.top)
    if kind == "blank":
        canvas.mark("windows=blank", whole, front.storey * place.unit)
        return
    if kind == "rose":
        _roses(front)
        return
    count = 4 if front.half > 0.8 else 2
    if kind == "strip":
        count = 2
    step = 2 * front.half / count
    high = front.storey * 0.56
    wide = min(step * 0.56, 0.34)
    for floor in range(0 if ground else 1, front.storeys):
        y = front.foot + floor * front.storey + front.storey * 0.24
        for i in range(count):
            x = -front.half + step * (i + 0.5)
            if floor == 0 and abs(x) < 0.4 and kind != "strip":
                x += 0.14 if x > 0 else -0.14
            _window(front, kind, x, y, step * 0.84 if kind == "strip" else wide, high)
    if ground or front.storeys > 1:
        canvas.mark(f"windows={kind}", whole, min(wide * place.squeeze, high) * place.unit)


def _window(front: Front, kind: str, x: float, y: float, wide: float, high: float) -> None:
    canvas, place, glass, lit = front.canvas, front.place, front.glass, front.lit
    x0, x1, y1 = x - wide / 2, x + wide / 2, y + high
    if kind == "strip":
        canvas.polygon(rectangle(place, x0, y + high * 0.3, x1, y + high * 0.75), glass, lit=lit)
    elif kind == "slit":
        for k in (-0.3, 0.0, 0.3):
            middle = x + wide * k * 1.2
            canvas.polygon(
                rectangle(place, middle - 0.028, y - 0.03, middle + 0.028, y1 + 0.03),
                glass,
                lit=lit,
                edge=False,
            )
    elif kind == "round":
        radius = min(wide, high) * 0.56
        canvas.polygon(ellipse(place, x, y + high / 2, radius * 1.25, radius * 1.25), FRAME)
        canvas.polygon(ellipse(place, x, y + high / 2, radius, radius), glass, lit=lit)
    elif kind in {"arched", "pointed"}:
        pointed = kind == "pointed"
        extra = high * 0.25 if pointed else 0.04
        canvas.polygon(
            arch(place, x0 - 0.03, y - 0.03, x1 + 0.03, y1 + extra + 0.03, pointed=pointed), FRAME
        )
        canvas.polygon(arch(place, x0, y, x1, y1 + extra, pointed=pointed), glass, lit=lit)
    elif kind == "lattice":
        canvas.polygon(rectangle(place, x0, y, x1, y1), (252, 226, 170), lit=lit)
        wood: Colour = (110, 40, 26)
        for k in range(5):
            part = k / 4
            canvas.stroke(
                [place.point(x0 + wide * part, y), place.point(x0 + wide * part, y1)], wood, 3
            )
            canvas.stroke(
                [place.point(x0, y + high * part), place.point(x1, y + high * part)], wood, 3
            )
    else:
        if kind == "shutters":
            for a, b in ((x0 - wide * 0.42, x0), (x1, x1 + wide * 0.42)):
                canvas.polygon(rectangle(place, a, y, b, y1), (36, 84, 190))
        canvas.polygon(rectangle(place, x0 - 0.025, y - 0.025, x1 + 0.025, y1 + 0.025), FRAME)
        canvas.polygon(rectangle(place, x0, y, x1, y1), glass, lit=lit)
        canvas.stroke([place.point(x, y), place.point(x, y1)], FRAME, 3)


def _roses(front: Front) -> None:
    canvas, place = front.canvas, front.place
    radius = min(front.storey * 0.46, front.half * 0.4)
    y = front.top - front.storey / 2
    places = [0.0] if front.storeys > 1 else [-front.half * 0.6, front.half * 0.6]
    for x in places:
        canvas.polygon(ellipse(place, x, y, radius, radius), FRAME)
        petals: tuple[Colour, ...] = ((206, 44, 60), (44, 82, 196), (236, 190, 44), (60, 150, 90))
        for i in range(8):
            wedge = [
                place.point(x, y),
                *ellipse(place, x, y, radius * 0.86, radius * 0.86, i * 45 + 4, i * 45 + 41),
            ]
            canvas.polygon(wedge, petals[i % 4], lit=front.lit)
        canvas.polygon(ellipse(place, x, y, radius * 0.22, radius * 0.22), FRAME)
    canvas.mark(
        "windows=rose",
        place.box(min(places) - radius, y - radius, max(places) + radius, y + radius),
        2 * radius * place.unit * place.squeeze,
    )


def door(front: Front, kind: str) -> None:
    """Paint the door in the middle of the ground floor."""
    canvas, place, foot = front.canvas, front.place, front.foot
    high = front.storey * 0.82
    if kind == "single":
        canvas.polygon(rectangle(place, -0.12, foot, 0.12, foot + high * 0.9), (92, 60, 36))
        return
    half = 0.24
    if kind == "red_double":
        canvas.polygon(
            rectangle(place, -half - 0.03, foot, half + 0.03, foot + high + 0.03), (60, 20, 16)
        )
        for x0, x1 in ((-half, -0.01), (0.01, half)):
            canvas.polygon(rectangle(place, x0, foot, x1, foot + high), (226, 32, 28))
            for k in (0.3, 0.6):
                canvas.polygon(
                    ellipse(place, (x0 + x1) / 2, foot + high * k, 0.035, 0.035),
                    (240, 200, 60),
                    edge=False,
                )
    elif kind == "arch":
        canvas.polygon(arch(place, -half - 0.05, foot, half + 0.05, foot + high + 0.08), FRAME)
        canvas.polygon(arch(place, -half, foot, half, foot + high + 0.03), DARK)
    elif kind == "moon":
        radius = high * 0.56
        half = radius
        canvas.polygon(ellipse(place, 0, foot + radius * 0.92, radius * 1.18, radius * 1.18), FRAME)
        canvas.polygon(ellipse(place, 0, foot + radius * 0.92, radius, radius), (86, 130, 84))
    elif kind == "pediment":
        half = 0.44
        for x in (-0.34, 0.34):
            canvas.polygon(rectangle(place, x - 0.055, foot, x + 0.055, foot + high), FRAME)
        canvas.polygon(rectangle(place, -0.2, foot, 0.2, foot + high * 0.9), (70, 50, 40))
        canvas.polygon(
            [
                place.point(-half - 0.06, foot + high),
                place.point(0, foot + high + 0.3),
                place.point(half + 0.06, foot + high),
            ],
            FRAME,
        )
        canvas.mark("door=pediment", place.box(-half, foot, half, foot + high + 0.3))
        return
    elif kind == "glazed":
        half = 0.42
        canvas.polygon(
            rectangle(place, -half, foot, half, foot + high), (170, 226, 240), lit=front.lit
        )
        for x in (-0.21, 0.0, 0.21):
            canvas.stroke([place.point(x, foot), place.point(x, foot + high)], DARK, 3)
    else:
        half = 0.52
        for x in (-0.36, 0.0, 0.36):
            canvas.polygon(arch(place, x - 0.17, foot, x + 0.17, foot + high + 0.05), FRAME)
            canvas.polygon(arch(place, x - 0.13, foot, x + 0.13, foot + high), DARK)
    canvas.mark(f"door={kind}", place.box(-half, foot, half, foot + high))


def columns(front: Front, kind: str) -> bool:
    """Paint what stands before the ground floor; return whether a door is still to be seen."""
    canvas, place, half, foot = front.canvas, front.place, front.half, front.foot
    high = foot + front.storey
    if kind == "none":
        return True
    if kind == "arcade":
        canvas.polygon(rectangle(place, -half, foot, half, high), front.wall, 0.95)
        count = 5
        step = 2 * half / count
        for i in range(count):
            x = -half + (i + 0.5) * step
            canvas.polygon(arch(place, x - step * 0.36, foot, x + step * 0.36, high - 0.06), DARK)
        canvas.mark(
            "columns=arcade",
            place.box(-half, foot, half, high),
            min(step * 0.7, front.storey) * place.unit,
        )
        return False
    if kind == "pair":
        for x in (-0.4, 0.4):
            canvas.polygon(rectangle(place, x - 0.08, foot, x + 0.08, high), (238, 226, 196))
        canvas.polygon(rectangle(place, -0.56, high - 0.04, 0.56, high + 0.1), (238, 226, 196), 0.9)
        canvas.mark("columns=pair", place.box(-0.5, foot, 0.5, high), place.unit * 0.16)
        return True
    colour: Colour = (222, 40, 30) if kind == "red_row" else (252, 252, 248)
    canvas.polygon(rectangle(place, -half, foot, half, high), front.wall, 0.55)
    for i in range(6):
        x = -half * 0.96 + 2 * half * 0.96 * i / 5
        canvas.polygon(rectangle(place, x - 0.065, foot, x + 0.065, high), colour)
    canvas.polygon(
        rectangle(place, -half * 1.06, high - 0.05, half * 1.06, high + 0.05), colour, 0.85
    )
    if not canvas.drawing:
        canvas.mark(f"columns={kind}", place.box(-half, foot, half, high), place.unit * 0.13)
    return True
