"""A building: base, wings, walls and roof, and a section through it."""

from typing import Final

from cra.services.training.buildings import roofs
from cra.services.training.buildings.canvas import Canvas, Colour, Place, arch, around, rectangle
from cra.services.training.buildings.openings import Front, columns, door, windows
from cra.services.training.buildings.ornaments import crown, detail
from cra.services.training.buildings.scene import Building

WALLS: Final[dict[str, Colour]] = {
    "red_wood": (168, 44, 34), "brown_wood": (126, 82, 46), "grey_brick": (104, 116, 130),
    "red_brick": (182, 98, 70), "white": (238, 236, 228), "stone": (206, 190, 156),
    "concrete": (168, 168, 164), "glass": (122, 184, 214), "earth": (192, 146, 76),
    "yellow": (240, 206, 92), "pink": (242, 164, 178), "blue": (74, 112, 186),
    "green": (98, 168, 122), "rust": (142, 70, 22),
}  # fmt: skip
_BASES: Final = {
    "none": 0.05,
    "steps": 0.28,
    "sumeru": 0.42,
    "stilts": 0.62,
    "pilotis": 0.66,
    "plinth": 0.05,
}
_ROOF_HEIGHTS: Final = {
    "spire": 1.75,
    "onion": 1.4,
    "dome": 1.1,
    "pyramid": 1.1,
    "gable": 0.9,
    "flat": 0.2,
}
_NECK: Final = 0.34


def height(building: Building) -> float:
    """Return about how high a building is, in its units."""
    facts = building.facts
    eaves = {"single": 0, "double": 1, "triple": 2}[facts["eaves"]]
    body = int(facts["storeys"]) * building.storey
    return (
        _BASES[facts["base"]] + body + eaves * _NECK + _ROOF_HEIGHTS.get(facts["roof"], 0.75) + 0.2
    )


def tinted(building: Building, colour: Colour) -> Colour:
    """Return a colour in this building's own shade."""
    red, green, blue = (max(0, min(255, c + s)) for c, s in zip(colour, building.hue, strict=True))
    return red, green, blue


def paint(
    canvas: Canvas, place: Place, building: Building, *, lit: bool, cut: bool, side: int
) -> None:
    """Paint a building and mark what shows of it.

    Args:
        canvas: what to paint on.
        place: where its foot is.
        building: what it looks like.
        lit: whether light shines from its windows.
        cut: whether it is cut open: a section, which shows no front.
        side: -1 or 1: which side wall shows too; 0 for none.
    """
    facts = building.facts
    wall = tinted(building, WALLS[facts["wall"]])
    tiles = tinted(building, roofs.TILES[facts["tiles"]])
    foot = _BASES[facts["base"]]
    storeys = int(facts["storeys"])
    top = foot + storeys * building.storey
    front = Front(
        canvas, place, building.width, foot, top, building.storey, storeys, wall, tiles, lit
    )
    if side and not cut:
        _side(front, side)
    if facts["wings"] != "none":
        _wings(front, facts["wings"])
    _base(front, facts["base"])
    body = rectangle(place, -front.half, foot, front.half, top)
    canvas.polygon(body, wall)
    box = around(body)
    if cut:
        _section(front)
    else:
        _texture(front, facts["wall"])
        if not canvas.drawing:
            canvas.mark(f"wall={facts['wall']}", box)
        for floor in range(1, storeys):
            y = foot + floor * building.storey
            canvas.polygon(
                rectangle(place, -front.half - 0.03, y - 0.035, front.half + 0.03, y + 0.035),
                wall,
                0.55,
            )
        windows(front, facts["windows"], ground=facts["columns"] != "arcade")
        open_front = columns(front, facts["columns"])
        if open_front:
            door(front, facts["door"])
        if facts["base"] == "plinth":
            _plinth(front)
    canvas.mark(f"storeys={storeys}", box, place.unit * building.storey * 0.8)
    eave = top
    for _ in range({"single": 0, "double": 1, "triple": 2}[facts["eaves"]]):
        lower = _roof(front, eave, facts["corner"] == "flying")
        roofs.skirt(lower, 0.34)
        eave += _NECK
        canvas.polygon(
            rectangle(place, -front.half * 0.9, eave - 0.16, front.half * 0.9, eave), wall, 0.9
        )
    if eave > top:
        canvas.mark(
            f"eaves={facts['eaves']}",
            place.box(-front.half, top, front.half, eave + 0.2),
            place.unit * _NECK,
        )
    roof = _roof(front, eave, facts["corner"] == "flying")
    rise = roofs.paint(facts["roof"], roof)
    if not canvas.drawing:
        canvas.mark(
            f"tiles={facts['tiles']}", place.box(-front.half, eave, front.half, eave + rise)
        )
    crown(front, facts["crown"], facts["roof"], eave, rise)
    if not cut:
        detail(front, facts["detail"])


def _roof(front: Front, eave: float, flying: bool) -> roofs.Roof:
    return roofs.Roof(front.canvas, front.place, front.half, eave, front.tiles, front.wall, flying)


def _side(front: Front, side: int) -> None:
    depth, rise = 0.5 * side, 0.1
    edge = front.half * side
    points = [
        (edge, front.foot),
        (edge + depth, front.foot + rise),
        (edge + depth, front.top + rise),
        (edge, front.top),
    ]
    front.canvas.polygon([front.place.point(*p) for p in points], front.wall, 0.62)
    eave = [
        (edge * 0.6, front.top),
        (edge + depth * 1.25, front.top + rise * 0.6),
        (edge + depth * 0.8, front.top + rise + 0.26),
        (edge * 0.6, front.top + 0.4),
    ]
    front.canvas.polygon([front.place.point(*p) for p in eave], front.tiles, 0.62)


def _wings(front: Front, kind: str) -> None:
    place, canvas = front.place, front.canvas
    if kind == "low":
        high = front.foot + front.storey * 0.72
        for side in (-1, 1):
            x0, x1 = sorted((side * front.half * 0.95, side * (front.half + 0.62)))
            canvas.polygon(rectangle(place, x0, 0, x1, high), front.wall, 0.86)
            canvas.polygon(
                rectangle(place, x0 - 0.05, high, x1 + 0.05, high + 0.2), front.tiles, 0.9
            )
            middle = (x0 + x1) / 2
            canvas.polygon(
                rectangle(place, middle - 0.1, high * 0.4, middle + 0.1, high * 0.75),
                front.glass,
                lit=front.lit,
            )
        reach = front.half + 0.62
        canvas.mark("wings=low", place.box(-reach, 0, reach, high + 0.2), place.unit * 0.4)
        return
    x0, x1 = front.half * 0.9, front.half + 0.55
    high = front.top + 0.75
    canvas.polygon(rectangle(place, x0, 0, x1, high), front.wall, 0.82)
    canvas.polygon(
        [
            place.point(x0 - 0.08, high),
            place.point((x0 + x1) / 2, high + 0.6),
            place.point(x1 + 0.08, high),
        ],
        front.tiles,
        0.85,
    )
    middle = (x0 + x1) / 2 + 0.05
    for y in (0.55, high - 0.4):
        canvas.polygon(
            arch(place, middle - 0.09, y - 0.14, middle + 0.09, y + 0.16),
            front.glass,
            lit=front.lit,
        )
    canvas.mark("wings=tower", place.box(front.half, 0, x1, high + 0.6))


def _base(front: Front, kind: str) -> None:
    canvas, place, half, foot = front.canvas, front.place, front.half, front.foot
    stone: Colour = (214, 210, 200)
    if kind == "steps":
        canvas.polygon(rectangle(place, -half * 1.05, 0, half * 1.05, foot), stone, 0.72)
        for i in range(4):
            wide = 0.34 + 0.12 * (3 - i)
            canvas.polygon(
                rectangle(place, -wide, -0.14 + i * 0.1, wide, -0.04 + i * 0.1),
                stone,
                0.84 + 0.06 * i,
            )
        canvas.mark("base=steps", place.box(-0.6, -0.14, 0.6, foot))
    elif kind == "sumeru":
        for i, wide in enumerate((1.34, 1.2, 1.27, 1.14)):
            y = i * foot / 4
            canvas.polygon(
                rectangle(place, -half * wide, y, half * wide, y + foot / 4),
                (246, 244, 238),
                1.0 if i % 2 == 0 else 0.86,
            )
        canvas.mark("base=sumeru", place.box(-half * 1.3, 0, half * 1.3, foot))
    elif kind in {"stilts", "pilotis"}:
        thick, colour, count = (
            (0.05, (104, 72, 40), 6) if kind == "stilts" else (0.09, (190, 190, 186), 4)
        )
        canvas.polygon(rectangle(place, -half, 0.06, half, foot), (60, 58, 56))
        for i in range(count):
            x = -half * 0.94 + 2 * half * 0.94 * i / (count - 1)
            lean = 0.06 if kind == "stilts" else 0.0
            points = [
                (x - thick - lean, 0.0),
                (x + thick - lean, 0.0),
                (x + thick, foot),
                (x - thick, foot),
            ]
            canvas.polygon([place.point(*p) for p in points], colour)
        canvas.mark(f"base={kind}", place.box(-half, 0, half, foot))
    else:
        canvas.polygon(rectangle(place, -half * 1.04, 0, half * 1.04, foot), stone, 0.7)


def _plinth(front: Front) -> None:
    high = 0.2
    front.canvas.polygon(
        rectangle(front.place, -front.half * 1.03, 0, front.half * 1.03, front.foot + high),
        (134, 130, 122),
    )
    for i in range(1, 9):
        x = -front.half + 2 * front.half * i / 9
        front.canvas.stroke(
            [front.place.point(x, 0.02), front.place.point(x, front.foot + high)], (70, 68, 64), 3
        )
    front.canvas.mark("base=plinth", front.place.box(-front.half, 0, front.half, front.foot + high))


def _texture(front: Front, wall: str) -> None:
    canvas, place, half = front.canvas, front.place, front.half
    if canvas.drawing and wall not in {"glass", "red_brick", "grey_brick", "stone"}:
        return
    rows = {"red_brick": 0.09, "grey_brick": 0.09, "stone": 0.2, "glass": 0.2, "earth": 0.26}.get(
        wall
    )
    line: Colour = (250, 252, 255) if wall == "glass" else front.wall
    shade = 1.0 if wall == "glass" else 0.78
    if rows:
        count = int((front.top - front.foot) / rows)
        for i in range(1, count + 1):
            y = front.foot + i * rows
            canvas.stroke([place.point(-half, y), place.point(half, y)], line, 2, shade)
            if wall == "stone":
                for k in range(5):
                    x = -half + (k + 0.5 + 0.5 * (i % 2)) * 2 * half / 5.5
                    canvas.stroke([place.point(x, y - rows), place.point(x, y)], line, 2, shade)
    if wall in {"red_wood", "brown_wood", "glass", "green", "rust"}:
        for i in range(1, 8):
            x = -half + 2 * half * i / 8
            canvas.stroke([place.point(x, front.foot), place.point(x, front.top)], line, 2, shade)


def _section(front: Front) -> None:
    canvas, place, half = front.canvas, front.place, front.half
    canvas.polygon(rectangle(place, -half, front.foot, half, front.top), (250, 248, 240))
    ink: Colour = (24, 24, 24)
    thick = 0.07
    for floor in range(front.storeys + 1):
        y = front.foot + floor * front.storey
        canvas.draw.polygon(rectangle(place, -half, y - thick / 2, half, y + thick / 2), fill=ink)
        if floor < front.storeys:
            step, x = front.storey / 5, -half * 0.2
            stairs = [
                (x + 0.12 * (i // 2 + i % 2), y + step * (i // 2 + 1 if i % 2 else i // 2))
                for i in range(10)
            ]
            canvas.stroke([place.point(*p) for p in stairs], ink, 4)
            if floor % 2 == 0:
                canvas.polygon(
                    rectangle(place, half * 0.5, y + 0.05, half * 0.8, y + 0.16), (160, 130, 90)
                )
    for x in (-half, half):
        canvas.draw.polygon(rectangle(place, x - thick, front.foot, x + thick, front.top), fill=ink)
    canvas.draw.polygon(rectangle(place, -half * 1.2, -0.12, half * 1.2, 0), fill=ink)
