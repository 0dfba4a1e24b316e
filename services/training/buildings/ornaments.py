"""What sits on top of a roof and what hangs on a wall."""

from collections.abc import Callable
from typing import Final

from cra.services.training.buildings.canvas import Colour, ellipse, rectangle
from cra.services.training.buildings.openings import DARK, FRAME, Front

_RED: Final[Colour] = (224, 30, 30)
_GOLD: Final[Colour] = (244, 196, 48)
_RIDGES: Final = {"hip": 0.55, "hip_gable": 0.7, "overhanging": 1.2, "flush": 1.0}


def crown(front: Front, kind: str, roof: str, eave: float, rise: float) -> None:
    """Paint what sits on the roof, whose eave and rise are in units."""
    canvas, place, half = front.canvas, front.place, front.half
    top = eave + rise
    if kind == "none":
        return
    if kind == "beasts":
        ridge = half * _RIDGES[roof]
        y = eave + rise * (0.4 if roof == "hip_gable" else 0.94)
        for side in (-1, 1):
            points = [
                (0.08, 0.0),
                (0.1, 0.2),
                (-0.02, 0.36),
                (-0.16, 0.32),
                (-0.06, 0.24),
                (-0.12, 0.0),
            ]
            canvas.polygon(
                [place.point(side * (ridge + x), y + dy) for x, dy in points], (70, 90, 80)
            )
        canvas.mark(
            "crown=beasts", place.box(-ridge - 0.1, y, ridge + 0.1, y + 0.36), place.unit * 0.2
        )
    elif kind == "finial":
        canvas.polygon(rectangle(place, -0.04, top - 0.08, 0.04, top + 0.08), _GOLD)
        canvas.polygon(ellipse(place, 0, top + 0.16, 0.14, 0.15), _GOLD)
        canvas.mark("crown=finial", place.box(-0.14, top, 0.14, top + 0.3))
    elif kind == "cross":
        canvas.polygon(rectangle(place, -0.04, top - 0.04, 0.04, top + 0.46), FRAME)
        canvas.polygon(rectangle(place, -0.16, top + 0.24, 0.16, top + 0.33), FRAME)
        canvas.mark("crown=cross", place.box(-0.16, top, 0.16, top + 0.46))
    elif kind == "flag":
        canvas.stroke([place.point(0, top - 0.1), place.point(0, top + 0.6)], DARK, 5)
        canvas.polygon(rectangle(place, 0, top + 0.3, 0.42, top + 0.6), _RED)
        if not canvas.drawing:
            canvas.mark("crown=flag", place.box(0, top + 0.2, 0.42, top + 0.6))
    elif kind == "chimney":
        x = half * 0.5
        canvas.polygon(
            rectangle(place, x - 0.12, eave + rise * 0.3, x + 0.12, top + 0.26), (150, 76, 56)
        )
        canvas.polygon(rectangle(place, x - 0.16, top + 0.22, x + 0.16, top + 0.32), (90, 60, 50))
        canvas.mark("crown=chimney", place.box(x - 0.14, eave + rise * 0.5, x + 0.14, top + 0.3))
    else:
        y = eave + rise * 0.16
        for x in (-half * 0.5, 0.0, half * 0.5):
            canvas.polygon(rectangle(place, x - 0.13, y, x + 0.13, y + 0.22), FRAME)
            canvas.polygon(
                rectangle(place, x - 0.08, y + 0.02, x + 0.08, y + 0.2), front.glass, lit=front.lit
            )
            canvas.polygon(
                [
                    place.point(x - 0.18, y + 0.22),
                    place.point(x, y + 0.36),
                    place.point(x + 0.18, y + 0.22),
                ],
                front.wall,
            )
        canvas.mark(
            "crown=dormers", place.box(-half * 0.6, y, half * 0.6, y + 0.34), place.unit * 0.26
        )


def detail(front: Front, kind: str) -> None:
    """Paint what hangs on the wall; a storey too few for it leaves it out, unmarked."""
    if kind != "none":
        _DETAILS[kind](front)


def _lanterns(front: Front) -> None:
    canvas, place = front.canvas, front.place
    half = front.half
    top = front.top
    for x in (-half * 0.8, -half * 0.4, half * 0.4, half * 0.8):
        canvas.polygon(ellipse(place, x, top - 0.16, 0.1, 0.11), _RED, lit=front.lit)
        canvas.stroke([place.point(x, top - 0.27), place.point(x, top - 0.36)], _GOLD, 4)
    if not canvas.drawing:
        canvas.mark(
            "detail=lanterns",
            place.box(-half * 0.9, top - 0.3, half * 0.9, top - 0.04),
            place.unit * 0.2,
        )


def _plaque(front: Front) -> None:
    canvas, place = front.canvas, front.place
    ground = front.foot + front.storey
    y = ground - 0.02
    canvas.polygon(rectangle(place, -0.34, y - 0.11, 0.34, y + 0.13), _GOLD)
    canvas.polygon(rectangle(place, -0.29, y - 0.07, 0.29, y + 0.09), (20, 30, 90))
    for x in (-0.18, 0.0, 0.18):
        canvas.stroke([place.point(x, y - 0.04), place.point(x, y + 0.06)], _GOLD, 8)
    canvas.mark("detail=plaque", place.box(-0.34, y - 0.11, 0.34, y + 0.13))


def _balcony(front: Front) -> None:
    if front.storeys == 1:
        return
    canvas, place = front.canvas, front.place
    half = front.half
    ground = front.foot + front.storey
    reach = half * 0.8
    y = ground + 0.02
    canvas.polygon(rectangle(place, -reach, y - 0.05, reach, y + 0.03), FRAME, 0.8)
    canvas.polygon(rectangle(place, -reach, y + 0.2, reach, y + 0.25), FRAME)
    for i in range(13):
        x = -reach + 2 * reach * i / 12
        canvas.stroke([place.point(x, y), place.point(x, y + 0.22)], FRAME, 4)
    canvas.mark("detail=balcony", place.box(-reach, y - 0.05, reach, y + 0.25))


def _awning(front: Front) -> None:
    canvas, place = front.canvas, front.place
    ground = front.foot + front.storey
    y = ground - 0.06
    for i in range(6):
        x0, x1 = -0.5 + i / 6, -0.5 + (i + 1) / 6
        colour = _RED if i % 2 else FRAME
        canvas.polygon(
            [
                place.point(x0 * 0.86, y + 0.06),
                place.point(x1 * 0.86, y + 0.06),
                place.point(x1 * 1.2, y - 0.2),
                place.point(x0 * 1.2, y - 0.2),
            ],
            colour,
        )
    canvas.mark("detail=awning", place.box(-0.55, y - 0.2, 0.55, y + 0.06))


def _ivy(front: Front) -> None:
    canvas, place = front.canvas, front.place
    half = front.half
    foot = front.foot
    top = front.top
    high = (top - foot) * 0.85
    for i in range(26):
        x = -half + half * 0.75 * (i % 5) / 5 + 0.05
        y = foot + high * (i / 26) ** (1 + 0.25 * (i % 5))
        canvas.polygon(
            ellipse(place, x, y, 0.13, 0.12), (56, 124, 46), 0.85 + 0.06 * (i % 4), edge=False
        )
    if not canvas.drawing:
        canvas.mark("detail=ivy", place.box(-half, foot, -half * 0.3, foot + high))


def _brackets(front: Front) -> None:
    canvas, place = front.canvas, front.place
    half = front.half
    top = front.top
    step = 2 * half / 12
    colours: tuple[Colour, ...] = ((30, 90, 170), (240, 190, 60), (40, 140, 90))
    for i in range(12):
        x = -half + i * step
        canvas.polygon(rectangle(place, x, top - 0.17, x + step, top - 0.01), colours[i % 3])
        canvas.polygon(
            rectangle(place, x + step * 0.2, top - 0.17, x + step * 0.8, top - 0.1),
            DARK,
            edge=False,
        )
    canvas.mark("detail=brackets", place.box(-half, top - 0.17, half, top))


def _buttress(front: Front) -> None:
    canvas, place = front.canvas, front.place
    half = front.half
    top = front.top
    for side in (-1, 1):
        for far in (0.5, 0.32):
            points = [
                (half + far, 0.0),
                (half + far - 0.12, 0.0),
                (half, top * 0.7),
                (half, top * 0.82),
            ]
            canvas.polygon([place.point(side * x, y) for x, y in points], front.wall, 0.8)
    canvas.mark(
        "detail=buttress", place.box(-half - 0.5, 0, half + 0.5, top * 0.8), place.unit * 0.4
    )


def _stepped(front: Front) -> None:
    canvas, place = front.canvas, front.place
    half = front.half
    top = front.top
    for side in (-1, 1):
        for i in range(3):
            x0, x1 = sorted((side * (half + 0.16 - i * 0.0), side * (half - 0.3 + 0.14 * i)))
            high = top + 0.62 - i * 0.24
            x0, x1 = sorted((side * (half + 0.2 * i - 0.2), side * (half + 0.2 * i)))
            canvas.polygon(rectangle(place, x0, 0.0, x1, high), (248, 248, 244))
            canvas.polygon(rectangle(place, x0 - 0.04, high, x1 + 0.04, high + 0.1), (36, 36, 40))
    reach = half + 0.44
    canvas.mark("detail=stepped", place.box(-reach, 0, reach, top + 0.7), place.unit * 0.5)


def _clock(front: Front) -> None:
    canvas, place = front.canvas, front.place
    half = front.half
    top = front.top
    # A rose window takes the middle.
    x, y = (-half * 0.55 if "windows=rose" in canvas.marks else 0.0), top - front.storey * 0.42
    canvas.polygon(ellipse(place, x, y, 0.24, 0.24), DARK)
    canvas.polygon(ellipse(place, x, y, 0.2, 0.2), (255, 255, 250), lit=front.lit)
    canvas.stroke(
        [place.point(x, y + 0.14), place.point(x, y), place.point(x + 0.1, y - 0.04)], DARK, 6
    )
    canvas.mark("detail=clock", place.box(x - 0.24, y - 0.24, x + 0.24, y + 0.24))


_DETAILS: Final[dict[str, Callable[[Front], None]]] = {
    "lanterns": _lanterns,
    "plaque": _plaque,
    "balcony": _balcony,
    "awning": _awning,
    "ivy": _ivy,
    "brackets": _brackets,
    "buttress": _buttress,
    "stepped": _stepped,
    "clock": _clock,
}
