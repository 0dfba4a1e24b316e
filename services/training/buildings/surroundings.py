"""Sky, backdrop and ground behind a building, and what falls from the sky."""

from collections.abc import Callable
from typing import Final

from cra.services.training.buildings.canvas import (
    Box,
    Canvas,
    Colour,
    Light,
    Place,
    rectangle,
)

LIGHTS: Final = {
    "day": Light(), "sun": Light((1.08, 1.05, 0.96)),
    "dusk": Light((1.02, 0.78, 0.66), (250, 120, 60), 0.1),
    "night": Light((0.44, 0.46, 0.62)), "fog": Light((0.95, 0.95, 0.95), (214, 218, 222), 0.5),
    "rain": Light((0.72, 0.76, 0.82), (120, 130, 140), 0.15), "snow": Light((0.98, 1.0, 1.04)),
}  # fmt: skip
SKIES: Final[dict[str, tuple[Colour, Colour]]] = {
    "day": ((128, 178, 226), (214, 230, 240)), "sun": ((70, 150, 238), (190, 224, 250)),
    "dusk": ((120, 70, 120), (252, 150, 70)), "night": ((8, 10, 30), (30, 34, 66)),
    "fog": ((206, 210, 214), (222, 224, 226)), "rain": ((96, 106, 116), (150, 158, 164)),
    "snow": ((176, 186, 198), (222, 228, 234)),
}  # fmt: skip
GROUNDS: Final[dict[str, Colour]] = {
    "grass": (98, 158, 66), "paved": (168, 162, 154), "water": (60, 118, 158),
    "sand": (226, 200, 140), "flowers": (86, 140, 66),
}  # fmt: skip


def behind(canvas: Canvas, weather: str, backdrop: str, ground: str, horizon: float) -> None:
    """Paint all that is behind the building; `horizon` in pixels from the top."""
    width, height, rng = canvas.width, canvas.height, canvas.rng
    everywhere: Box = (0.0, 0.0, float(width), float(height))
    if canvas.fill is not None:
        canvas.draw.rectangle(everywhere, fill=canvas.fill)
    else:
        _sky(canvas, weather, horizon)
    if weather in {"sun", "night"} and canvas.fill is None:
        x, y = width * float(rng.choice([0.12, 0.86])), height * 0.12
        size = width * 0.05
        colour: Colour = (255, 226, 90) if weather == "sun" else (240, 238, 210)
        canvas.draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
        canvas.mark(f"weather={weather}", everywhere, size * 2)
    elif canvas.fill is None and not canvas.grey:
        canvas.mark(f"weather={weather}", everywhere)
    if backdrop != "none":
        canvas.mark(f"backdrop={backdrop}", _BACKDROPS[backdrop](canvas, horizon))
    _ground(canvas, "snow" if weather == "snow" and ground != "water" else ground, horizon)
    if (weather != "snow" or ground == "water") and not canvas.drawing:
        canvas.mark(f"ground={ground}", (0.0, horizon, float(width), float(height)))


def _sky(canvas: Canvas, weather: str, horizon: float) -> None:
    top, low = SKIES[weather]
    bands = 14
    for i in range(bands):
        part = i / (bands - 1)
        colour = tuple(int(a + (b - a) * part) for a, b in zip(top, low, strict=True))
        if canvas.grey:
            colour = (int(sum(colour) / 6 + 120),) * 3
        canvas.draw.rectangle(
            (0, horizon * i / bands, canvas.width, horizon * (i + 1) / bands + 1), fill=colour
        )


def _mountains(canvas: Canvas, horizon: float) -> Box:
    width, rng = canvas.width, canvas.rng
    high = canvas.height * 0.3
    for layer, colour in ((1.5, (112, 128, 156)), (1.0, (86, 116, 108))):
        points = [(0.0, horizon)]
        for i in range(9):
            peak = (
                high
                * layer
                * (float(rng.uniform(0.75, 1.25)) if i % 2 else float(rng.uniform(0.3, 0.6)))
            )
            points.append((width * i / 8, horizon - peak))
        canvas.polygon([*points, (width, horizon)], colour)
    return (0.0, horizon - high * 1.5, float(width), horizon)


def _city(canvas: Canvas, horizon: float) -> Box:
    width, rng = canvas.width, canvas.rng
    high = canvas.height * 0.3
    x = 0.0
    while x < width:
        wide = width * float(rng.uniform(0.05, 0.1))
        tall = high * float(rng.uniform(0.8, 2.1))
        canvas.polygon(
            [
                (x, horizon),
                (x, horizon - tall),
                (x + wide, horizon - tall),
                (x + wide, horizon),
            ],
            (122, 136, 154),
        )
        for k in range(1, 6):
            y = horizon - tall * k / 6
            canvas.stroke([(x + wide * 0.2, y), (x + wide * 0.8, y)], (196, 206, 214), 4)
        x += wide * 1.1
    return (0.0, horizon - high * 1.6, float(width), horizon)


def _forest(canvas: Canvas, horizon: float) -> Box:
    width, rng = canvas.width, canvas.rng
    high = canvas.height * 0.3
    for i in range(16):
        x = width * (i + float(rng.uniform(-0.3, 0.3))) / 15
        tall = high * float(rng.uniform(0.7, 1.2))
        wide = width * 0.05
        canvas.polygon(
            [(x - wide, horizon), (x, horizon - tall), (x + wide, horizon)],
            (36, 82, 50),
            0.9 + 0.2 * float(rng.random()),
        )
    return (0.0, horizon - high, float(width), horizon)


def _bamboo(canvas: Canvas, horizon: float) -> Box:
    width, rng = canvas.width, canvas.rng
    high = canvas.height * 0.3
    for i in range(26):
        x = width * (i + float(rng.uniform(-0.3, 0.3))) / 25
        tall = high * float(rng.uniform(1.3, 2.0))
        canvas.stroke(
            [(x, horizon), (x + width * 0.01, horizon - tall)], (120, 190, 70), width * 0.008
        )
        for k in (0.5, 0.7, 0.9):
            y = horizon - tall * k
            canvas.stroke(
                [(x, y), (x + width * 0.025, y + width * 0.012)], (96, 170, 60), width * 0.006
            )
    return (0.0, horizon - high * 1.4, float(width), horizon)


def _pagoda(canvas: Canvas, horizon: float) -> Box:
    width, rng = canvas.width, canvas.rng
    x, unit = width * float(rng.choice([0.1, 0.88])), canvas.height * 0.1
    place = Place(x, horizon, unit)
    for i in range(6):
        wide = 0.62 - 0.08 * i
        canvas.polygon(
            rectangle(place, -wide * 0.6, 0.7 * i, wide * 0.6, 0.7 * i + 0.5), (196, 160, 120)
        )
        canvas.polygon(
            [
                place.point(-wide, 0.7 * i + 0.45),
                place.point(0, 0.7 * i + 0.95),
                place.point(wide, 0.7 * i + 0.45),
            ],
            (90, 70, 64),
        )
    return place.box(-0.5, 0, 0.5, 5)


_BACKDROPS: Final[dict[str, Callable[[Canvas, float], Box]]] = {
    "mountains": _mountains,
    "city": _city,
    "forest": _forest,
    "bamboo": _bamboo,
    "pagoda": _pagoda,
}


def _ground(canvas: Canvas, kind: str, horizon: float) -> None:
    width, height, rng = canvas.width, canvas.height, canvas.rng
    colour = (240, 244, 250) if kind == "snow" else GROUNDS[kind]
    canvas.polygon(
        [(0, horizon), (width, horizon), (width, height), (0, height)], colour, edge=False
    )
    deep = height - horizon
    if kind == "water":
        for _ in range(16):
            x, y = width * float(rng.random()), horizon + deep * float(rng.uniform(0.1, 1))
            canvas.stroke([(x, y), (x + width * 0.12, y)], (150, 200, 226), 5)
    elif kind == "paved":
        for i in range(1, 6):
            y = horizon + deep * (i / 6) ** 1.4
            canvas.stroke([(0, y), (width, y)], colour, 3, 0.8)
    elif kind == "flowers":
        for _ in range(70):
            x, y = width * float(rng.random()), horizon + deep * float(rng.uniform(0.05, 1))
            tones: tuple[Colour, ...] = ((236, 60, 100), (250, 210, 60), (190, 90, 220))
            size = width * 0.011
            canvas.draw.ellipse(
                (x - size, y - size, x + size, y + size),
                fill=canvas.line or canvas.colour(tones[int(rng.integers(3))]),
            )


def falling(canvas: Canvas, weather: str) -> None:
    """Paint rain or snow over everything."""
    if canvas.drawing or weather not in {"rain", "snow"}:
        return
    width, height = canvas.width, canvas.height
    for x, y in canvas.rng.random((90 if weather == "rain" else 130, 2)).tolist():
        if weather == "rain":
            canvas.draw.line(
                (x * width, y * height, x * width - width * 0.012, y * height + height * 0.06),
                fill=(206, 216, 226),
                width=3,
            )
        else:
            size = width * 0.005
            canvas.draw.ellipse(
                (x * width - size, y * height - size, x * width + size, y * height + size),
                fill=(255, 255, 255),
            )
