"""Trees, people and things before a building."""

import math
from typing import Final

from cra.services.training.buildings.canvas import Box, Canvas, Colour, Place, ellipse, rectangle

_LEAVES: Final[dict[str, Colour]] = {
    "round": (40, 110, 44), "blossom": (246, 156, 190), "autumn": (232, 160, 34),
}  # fmt: skip


def tree(canvas: Canvas, kind: str, place: Place) -> None:
    """Paint a tree of about 2.2 units before the building."""
    if kind == "none":
        return
    trunk: Colour = (92, 64, 40)
    canvas.polygon(rectangle(place, -0.07, 0, 0.07, 1.2), trunk)
    reach = 0.55
    if kind == "pine":
        for i in range(4):
            wide, y = 0.62 - 0.13 * i, 0.45 + 0.42 * i
            canvas.polygon(
                [place.point(-wide, y), place.point(0, y + 0.75), place.point(wide, y)],
                (24, 76, 56),
            )
    elif kind == "bare":
        for angle, start in ((35, 0.8), (60, 1.1), (90, 1.1), (120, 1.0), (148, 0.7), (75, 1.0)):
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            canvas.stroke(
                [place.point(0, start), place.point(0.75 * x, start + 0.95 * y)],
                trunk,
                place.unit * 0.05,
            )
            canvas.stroke(
                [
                    place.point(0.4 * x, start + 0.5 * y),
                    place.point(0.4 * x + 0.12, start + 0.5 * y + 0.4),
                ],
                trunk,
                place.unit * 0.035,
            )
    elif kind == "palm":
        canvas.polygon(rectangle(place, -0.06, 1.0, 0.06, 1.75), trunk)
        for angle in (-20, 15, 50, 90, 130, 165, 200):
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            tip = place.point(0.75 * x, 1.75 + 0.5 * y - 0.15)
            canvas.polygon(
                [place.point(0, 1.7), place.point(0.35 * x, 1.85 + 0.4 * y), tip], (60, 140, 60)
            )
    else:
        for x, y, radius in (
            (-0.3, 1.3, 0.4),
            (0.3, 1.35, 0.4),
            (0.0, 1.7, 0.46),
            (0.0, 1.3, 0.45),
        ):
            canvas.polygon(
                ellipse(place, x, y, radius, radius * 0.95),
                _LEAVES[kind],
                0.9 + 0.1 * y / 1.7,
                edge=canvas.drawing,
            )
    box = place.box(-reach, 0.2, reach, 2.1)
    canvas.hide(place.box(-reach * 0.8, 0.9, reach * 0.8, 2.1))
    if not (canvas.drawing and kind in {"blossom", "autumn", "round"}):
        canvas.mark(f"tree={kind}", box)


def people(canvas: Canvas, kind: str, place: Place) -> None:
    """Paint people of about 0.5 units, standing left and right of the place."""
    count = {"none": 0, "one": 1, "few": 4, "crowd": 12}[kind]
    if not count:
        return
    xs = []
    for i in range(count):
        x = 0.36 * (i - (count - 1) / 2) * (0.62 if kind == "crowd" else 1.0)
        y = float(canvas.rng.uniform(-0.12, 0.06)) if count > 1 else 0.0
        tones: tuple[Colour, ...] = (
            (220, 60, 60),
            (50, 80, 170),
            (240, 200, 70),
            (250, 250, 250),
            (60, 60, 66),
        )
        coat = tones[int(canvas.rng.integers(len(tones)))]
        canvas.polygon(rectangle(place, x - 0.07, y, x + 0.07, y + 0.2), (40, 42, 54))
        canvas.polygon(rectangle(place, x - 0.1, y + 0.18, x + 0.1, y + 0.46), coat)
        canvas.polygon(ellipse(place, x, y + 0.54, 0.08, 0.09), (236, 196, 164))
        xs.append(x)
    box = place.box(min(xs) - 0.1, -0.1, max(xs) + 0.1, 0.62)
    canvas.hide(box)
    canvas.mark(f"people={kind}", box, place.unit * 0.2)


def thing(canvas: Canvas, kind: str, place: Place) -> None:
    """Paint a thing before the building."""
    if kind == "none":
        return
    box = _THINGS[kind](canvas, place)
    canvas.hide(box)
    canvas.mark(f"object={kind}", box)


def _boat(canvas: Canvas, place: Place) -> Box:
    canvas.polygon(
        [place.point(x, y) for x, y in ((-0.7, 0.22), (0.7, 0.22), (0.46, -0.06), (-0.46, -0.06))],
        (130, 70, 34),
    )
    canvas.polygon(rectangle(place, -0.3, 0.22, 0.26, 0.42), (236, 222, 190))
    canvas.polygon(
        [place.point(x, y) for x, y in ((-0.4, 0.4), (0.36, 0.4), (0.2, 0.56), (-0.24, 0.56))],
        (90, 70, 50),
    )
    return place.box(-0.7, -0.06, 0.7, 0.56)


def _bridge(canvas: Canvas, place: Place) -> Box:
    stone: Colour = (214, 210, 200)
    canvas.polygon([place.point(-1.1, -0.06), *ellipse(place, 0, -0.06, 1.1, 0.52, 180, 0)], stone)
    canvas.polygon(ellipse(place, 0, -0.06, 0.42, 0.34, 180, 0), (46, 70, 86))
    canvas.stroke(ellipse(place, 0, 0.02, 1.08, 0.56, 170, 10), stone, 8, 0.75)
    return place.box(-1.1, -0.06, 1.1, 0.58)


def _lions(canvas: Canvas, place: Place) -> Box:
    for x in (-0.62, 0.62):
        canvas.polygon(rectangle(place, x - 0.15, -0.1, x + 0.15, 0.1), (150, 150, 148))
        canvas.polygon(ellipse(place, x, 0.22, 0.13, 0.16), (216, 216, 212))
        canvas.polygon(
            ellipse(place, x - 0.04 * (1 if x > 0 else -1), 0.42, 0.12, 0.12), (216, 216, 212)
        )
    return place.box(-0.77, -0.1, 0.77, 0.54)


def _car(canvas: Canvas, place: Place) -> Box:
    tones: tuple[Colour, ...] = ((200, 40, 44), (40, 90, 190), (246, 246, 246), (240, 190, 40))
    paint = tones[int(canvas.rng.integers(len(tones)))]
    canvas.polygon(
        [place.point(x, y) for x, y in ((-0.3, 0.26), (-0.2, 0.46), (0.22, 0.46), (0.36, 0.26))],
        (150, 190, 210),
    )
    canvas.polygon(rectangle(place, -0.56, 0.04, 0.56, 0.27), paint)
    for x in (-0.32, 0.32):
        canvas.polygon(ellipse(place, x, 0.03, 0.11, 0.11), (24, 24, 26))
    return place.box(-0.56, -0.08, 0.56, 0.46)


def _lamp(canvas: Canvas, place: Place) -> Box:
    for x in (-0.5, 0.5):
        canvas.polygon(rectangle(place, x - 0.035, 0, x + 0.035, 1.1), (40, 40, 46))
        canvas.polygon(ellipse(place, x, 1.18, 0.13, 0.15), (255, 240, 170), lit=True)
    return place.box(-0.63, 0.3, 0.63, 1.3)


def _fence(canvas: Canvas, place: Place) -> Box:
    for y in (0.08, 0.24):
        canvas.polygon(rectangle(place, -1.9, y, 1.9, y + 0.05), (150, 108, 64))
    for i in range(20):
        x = -1.9 + 0.2 * i
        canvas.polygon(rectangle(place, x - 0.03, -0.05, x + 0.03, 0.36), (176, 130, 80))
    return place.box(-1.8, -0.05, 1.8, 0.36)


def _gateway(canvas: Canvas, place: Place) -> Box:
    for x in (-0.78, -0.3, 0.3, 0.78):
        canvas.polygon(rectangle(place, x - 0.05, 0, x + 0.05, 0.86), (186, 40, 34))
    for x0, x1, y in ((-0.96, -0.26, 0.8), (0.26, 0.96, 0.8), (-0.5, 0.5, 0.98)):
        canvas.polygon(rectangle(place, x0 + 0.08, y - 0.12, x1 - 0.08, y), (40, 110, 150))
        canvas.polygon(
            [
                place.point(x0, y),
                place.point(x1, y),
                place.point(x1 - 0.1, y + 0.18),
                place.point(x0 + 0.1, y + 0.18),
            ],
            (236, 190, 50),
        )
    return place.box(-0.9, 0.0, 0.9, 1.16)


def _screen(canvas: Canvas, place: Place) -> Box:
    canvas.polygon(rectangle(place, -0.72, -0.08, 0.72, 0.5), (240, 232, 214))
    canvas.polygon(
        [place.point(x, y) for x, y in ((-0.24, 0.2), (0, 0.4), (0.24, 0.2), (0, 0.0))],
        (70, 120, 90),
    )
    canvas.polygon(
        [place.point(x, y) for x, y in ((-0.82, 0.48), (0.82, 0.48), (0.7, 0.64), (-0.7, 0.64))],
        (60, 62, 68),
    )
    return place.box(-0.76, -0.08, 0.76, 0.62)


def _fountain(canvas: Canvas, place: Place) -> Box:
    canvas.polygon(ellipse(place, 0, 0.02, 0.7, 0.16), (180, 180, 178))
    canvas.polygon(ellipse(place, 0, 0.05, 0.6, 0.11), (70, 150, 210))
    for x in (-0.42, -0.22, 0.0, 0.22, 0.42):
        canvas.stroke(
            [
                place.point(x * 0.2, 0.06),
                place.point(x * 0.6, 0.66 - abs(x) * 0.5),
                place.point(x, 0.16),
            ],
            (220, 242, 255),
            place.unit * 0.05,
        )
    return place.box(-0.6, -0.1, 0.6, 0.66)


_THINGS: Final = {
    "boat": _boat, "bridge": _bridge, "lions": _lions, "car": _car, "lamp": _lamp,
    "fence": _fence, "gateway": _gateway, "screen": _screen, "fountain": _fountain,
}  # fmt: skip
