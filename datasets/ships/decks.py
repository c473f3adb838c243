"""What stands on the decks of procedural ships: fittings that stay, and cargo that differs from visit to visit.

A deck is drawn from two streams: `plan` is common to sister ships, `detail` is the ship's own. Metres as in
`datasets.ships.designs`; y runs aft, so a deck is laid out from the bow (negative) to the stern.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

Paint = tuple[float, float, float]
"""Reflectance of red, green and blue, 0..1."""

WHITE = (0.86, 0.86, 0.84)
_BUFF = (0.72, 0.64, 0.46)
_DARK = (0.05, 0.05, 0.05)
_FUNNELS = ((0.62, 0.22, 0.18), (0.20, 0.28, 0.60), (0.70, 0.70, 0.68), (0.12, 0.12, 0.14), (0.15, 0.40, 0.25))
_BOXES = ((0.62, 0.22, 0.16), (0.20, 0.28, 0.62), (0.70, 0.70, 0.68), (0.66, 0.44, 0.18), (0.22, 0.42, 0.32), (0.45, 0.2, 0.2))
_COVERS = (
    (0.46, 0.18, 0.13),
    (0.36, 0.15, 0.15),
    (0.30, 0.36, 0.42),
    (0.28, 0.36, 0.30),
    (0.22, 0.30, 0.62),
    (0.62, 0.6, 0.56),
)


@dataclass(frozen=True)
class Part:
    """A box or cylinder on deck.

    Attributes:
        x, y: centre in metres.
        width, length: extent along x and y in metres, before it is turned.
        height: metres of its top above the deck; negative: a hole.
        paint: reflectance of red, green and blue, 0..1.
        echo: radar backscatter of its top, linear; the open deck of most ships is about 0.02.
        round: a cylinder, not a box.
        turn: radians by which a box is turned about its centre.
    """

    x: float
    y: float
    width: float
    length: float
    height: float
    paint: Paint
    echo: float
    round: bool = False
    turn: float = 0.0


@dataclass(frozen=True)
class Hold:
    """A place for cargo.

    Attributes:
        y: centre in metres.
        length: extent along y in metres.
        width: of the opening or stack, in metres.
        height: of the coaming or base above the deck, in metres.
        cargo: a key of `CARGO`.
        paint: of its cover.
    """

    y: float
    length: float
    width: float
    height: float
    cargo: str
    paint: Paint


Deck = tuple[list[Part], list[Hold]]


def vary(paint: Paint, rng: Generator, spread: float = 0.04) -> Paint:
    """Change a paint a little."""
    return tuple(float(value) for value in np.clip(np.array(paint) + rng.normal(0, spread, 3), 0.02, 0.98))


def _pick(paints: tuple[Paint, ...], rng: Generator) -> Paint:
    return vary(paints[rng.integers(len(paints))], rng)


def _bridge(y: float, length: float, beam: float, plan: Generator, detail: Generator) -> list[Part]:
    """Superstructure of `length` around `y`: accommodation, wings over the whole beam, wheelhouse, funnel and mast."""
    height = float(plan.uniform(0.55, 0.8) * min(beam, 30)) + 3
    wide, set_back = float(plan.uniform(0.6, 0.92)), float(plan.uniform(0.2, 0.35))
    mast = Part(0.0, y - 0.2 * length, 1.5, 1.5, height + 8, WHITE, 12.0)
    parts = [
        Part(0, y, beam * wide, length, height * 0.6, vary(WHITE, detail), 1.5),
        Part(0, y - length * 0.15, beam * wide * 0.85, length * 0.6, height * 0.85, vary(WHITE, detail), 1.5),
        Part(0, y - length * 0.32, beam * float(plan.uniform(0.9, 1.0)), 3.5, height, vary(WHITE, detail, 0.02), 1.5),
        Part(0, y + length * set_back, beam * 0.22, length * 0.25, height + 2, _pick(_FUNNELS, detail), 1.0),
    ]
    boats = [Part(side * beam * 0.42, y + length * 0.1, 2.5, 7, height * 0.5, (0.85, 0.35, 0.08), 1.5) for side in (-1, 1)]
    return [*parts, *boats, mast]


def _forecastle(length: float, beam: float, plan: Generator) -> list[Part]:
    """Windlasses and the foremast."""
    y = (plan.uniform(0.03, 0.05) - 0.5) * length
    windlasses = [Part(side * beam * 0.1, float(y), beam * 0.1, 4, 2, (0.45, 0.42, 0.38), 1.5) for side in (-1, 1)]
    return [*windlasses, Part(0, float(y) + 4, 1.5, 1.5, 12, WHITE, 8.0)]


def _fittings(start: float, end: float, beam: float, plan: Generator, detail: Generator) -> list[Part]:
    """Ventilators, winches and lockers along the sides; each ship leaves some out and adds others."""
    common, own = int((end - start) / 4), int((end - start) / 20) + 1
    places = [(plan.uniform(start, end), plan.choice([-1, 1]) * plan.uniform(0.3, 0.47)) for _ in range(common)]
    places = [place for place in places if detail.random() < 0.75]
    places += [(detail.uniform(start, end), detail.choice([-1, 1]) * detail.uniform(0.3, 0.45)) for _ in range(own)]
    size = detail.gamma(3.0, 0.6, len(places)) + 0.8
    return [Part(float(x) * beam, float(y), float(s), float(s), 2.5, (0.6, 0.58, 0.52), 0.7) for (y, x), s in zip(places, size)]


def _crane(y: float, x: float, reach: float, paint: Paint, turn: float = 0.0) -> list[Part]:
    """A pedestal at (x, y) and a jib of `reach` metres toward the bow, turned by `turn` radians."""
    middle = (x + np.sin(turn) * reach / 2, y - np.cos(turn) * reach / 2)
    jib = Part(float(middle[0]), float(middle[1]), 1.8, reach, 16, paint, 0.8, turn=turn)
    return [jib, Part(x, y, 4.0, 4.0, 20, paint, 6.0)]


def _helipad(y: float, size: float, height: float, detail: Generator) -> list[Part]:
    """Painted rings, which the radar does not see."""
    ring, inside = ((0.85, 0.8, 0.55), (0.25, 0.4, 0.3)) if detail.random() < 0.5 else ((0.85, 0.85, 0.85), (0.4, 0.2, 0.18))
    circles = ((1.0, ring), (0.85, inside), (0.45, ring), (0.3, inside))
    return [Part(0, y, share * size, share * size, height, paint, 0.01, round=True) for share, paint in circles]


def _bulk(length: float, beam: float, plan: Generator, detail: Generator) -> Deck:
    """Hatches in a row; ships of up to 200 m have cranes between them."""
    bridge = float(plan.uniform(0.07, 0.1)) * length
    start, end = -0.44 * length, 0.47 * length - bridge * 1.15
    count = int(np.clip(round(length / plan.uniform(30, 42)), 4, 9))
    pitch, wide = (end - start) / count, float(plan.uniform(0.5, 0.7)) * beam
    long, cover = float(plan.uniform(0.62, 0.82)) * pitch, _pick(_COVERS, detail)
    centres = start + (np.arange(count) + 0.5) * pitch
    holds = [Hold(float(y), long, wide, 2.2, "hatch", cover) for y in centres]
    parts, paint = [], vary(_BUFF, detail)
    if length < 205 and plan.random() < 0.8:
        side, jib = float(plan.choice([0.0, 0.0, 0.2])) * beam, float(plan.uniform(0.7, 0.95)) * pitch
        for y in centres[1 :: int(plan.choice([1, 1, 2]))] - pitch / 2:
            holds.append(Hold(float(y), jib, side, 0.0, "crane", paint))
    parts += _fittings(start, end, beam, plan, detail) + _forecastle(length, beam, plan)
    if detail.random() < 0.5:
        place = int(detail.integers(count))
        holds[place] = replace(holds[place], cargo="helipad")
    return parts + _bridge(0.47 * length - bridge / 2, bridge, beam, plan, detail), holds


def _tanker(length: float, beam: float, plan: Generator, detail: Generator) -> Deck:
    """A flat deck with pipes along the middle, a manifold across, and hose cranes."""
    bridge = float(plan.uniform(0.08, 0.11)) * length
    start, end = -0.44 * length, 0.47 * length - bridge * 1.1
    pale = vary((0.55, 0.50, 0.45), detail)
    width, manifold = float(plan.uniform(0.06, 0.14)) * beam, float(plan.uniform(-0.08, 0.06)) * length
    parts = [Part(0, (start + end) / 2, width, end - start, 2.5, pale, 0.5)]
    parts += [Part(0, manifold + shift, beam * 0.85, 2.0, 2.5, pale, 1.5) for shift in (-5.0, 0.0, 5.0)]
    parts += [Part(side * beam * 0.38, manifold, 3.0, 16, 3, pale, 2.0) for side in (-1, 1)]
    lines = np.linspace(start, end, int(plan.integers(4, 9)))[1:-1]
    parts += [Part(0, float(y), beam * 0.75, 0.9, 1.2, pale, 0.4) for y in lines]
    for side in (-1, 1):
        parts += _crane(manifold + 3, side * beam * 0.12, 14, vary(_BUFF, detail))
    tanks = [(float(plan.choice([-1, 1])) * beam * 0.25, float(plan.uniform(start, end))) for _ in range(plan.integers(0, 4))]
    parts += [Part(x, y, 4, 4, 5, vary(WHITE, detail), 1.5, round=True) for x, y in tanks]
    parts += _fittings(start, end, beam, plan, detail) + _forecastle(length, beam, plan)
    parts += _helipad(float(detail.uniform(start, end)), beam * 0.4, 0.0, detail) if detail.random() < 0.6 else []
    return parts + _bridge(0.47 * length - bridge / 2, bridge, beam, plan, detail), []


def _container(length: float, beam: float, plan: Generator, detail: Generator) -> Deck:
    """Stacks of boxes before and behind the bridge."""
    bridge, place = float(plan.uniform(0.05, 0.08)) * length, float(plan.uniform(0.1, 0.34)) * length
    stretches = [(-0.38 * length, place - bridge / 2 - 2), (place + bridge / 2 + 2, 0.47 * length)]
    holds = []
    for first, last in stretches:
        count = int((last - first) / 14.5)
        for index in range(count):
            y = first + (index + 0.5) * (last - first) / count
            holds.append(
                Hold(float(y), 12.4, beam * (0.92 if y > -0.3 * length else 0.7), 1.5, "boxes", _pick(_COVERS, detail))
            )
    parts = _forecastle(length, beam, plan) + _fittings(-0.4 * length, 0.45 * length, beam, plan, detail)
    return parts + _bridge(place, bridge, beam, plan, detail), holds


def _general(length: float, beam: float, plan: Generator, detail: Generator) -> Deck:
    """Two to four long hatches, often with cargo on top; cranes to one side."""
    bridge = float(plan.uniform(0.09, 0.13)) * length
    start, end = -0.42 * length, 0.47 * length - bridge * 1.1
    count, wide = int(plan.integers(2, 5)), float(plan.uniform(0.6, 0.8)) * beam
    pitch, cover = (end - start) / count, _pick(_COVERS, detail)
    centres = start + (np.arange(count) + 0.5) * pitch
    holds = [Hold(float(y), pitch * 0.88, wide, 2.0, "deck cargo", cover) for y in centres]
    parts = _forecastle(length, beam, plan) + _fittings(start, end, beam, plan, detail)
    if plan.random() < 0.5:
        side = float(plan.choice([-0.4, 0.0, 0.4])) * beam
        holds += [Hold(float(y - pitch / 2), 0.6 * pitch, side, 0.0, "crane", vary(_BUFF, detail)) for y in centres[1:]]
    return parts + _bridge(0.47 * length - bridge / 2, bridge, beam, plan, detail), holds


def _cars(length: float, beam: float, plan: Generator, detail: Generator) -> Deck:
    """A closed box with ventilators on its roof and the bridge at the bow."""
    parts = [Part(0, 0.02 * length, beam * 0.98, 0.9 * length, 3.0, vary((0.78, 0.78, 0.74), detail, 0.03), 0.02)]
    along = np.linspace(-0.38, 0.44, int(plan.integers(6, 12))) * length
    across = float(plan.uniform(0.25, 0.42)) * beam
    parts += [Part(side * across, float(y), 3, 4, 5.5, (0.5, 0.5, 0.5), 2.0) for y in along for side in (-1, 1)]
    parts += _fittings(-0.4 * length, 0.45 * length, beam, plan, detail)
    return parts + _bridge(-0.4 * length, 0.06 * length, beam, plan, detail), []


def _gas(length: float, beam: float, plan: Generator, detail: Generator) -> Deck:
    """Domes of round tanks, or a raised trunk with pipes."""
    bridge = float(plan.uniform(0.08, 0.11)) * length
    start, end = -0.42 * length, 0.47 * length - bridge * 1.1
    paint = vary((0.75, 0.74, 0.70), detail)
    if plan.random() < 0.5:
        centres = np.linspace(start, end, 2 * int(plan.integers(3, 6)) + 1)[1::2]
        size = min(float(np.diff(centres).min()) * 0.9, beam * 0.85)
        parts = [
            Part(0, float(y), size * s, size * s, 14 * (1.2 - s * s), paint, 0.2, round=True)
            for y in centres
            for s in (1, 0.75, 0.45)
        ]
    else:
        parts = [Part(0, (start + end) / 2, beam * 0.62, end - start, 5, paint, 0.03)]
    parts.append(Part(0, (start + end) / 2, beam * 0.08, end - start, 15.0, vary((0.5, 0.5, 0.48), detail), 0.8))
    parts += _fittings(start, end, beam, plan, detail) + _forecastle(length, beam, plan)
    return parts + _bridge(0.47 * length - bridge / 2, bridge, beam, plan, detail), []


DECKS = {
    "bulk carrier": _bulk,
    "tanker": _tanker,
    "container ship": _container,
    "general cargo ship": _general,
    "car carrier": _cars,
    "gas carrier": _gas,
    "coaster": _general,
}
"""Kind of ship -> function of length, beam, plan and detail that gives its parts and holds."""


def _hatch(hold: Hold, rng: Generator) -> list[Part]:
    """A closed cover, or at times an open hatch: a dark hole, its halves slid to the sides."""
    if rng.random() < 0.88:
        seam = Part(0, hold.y, 0.8, hold.length, hold.height - 0.3, tuple(value * 0.5 for value in hold.paint), 0.3)
        return [Part(0, hold.y, hold.width, hold.length, hold.height, vary(hold.paint, rng, 0.015), 0.004), seam]
    half = hold.width / 2
    hole = Part(0, hold.y, hold.width, hold.length, -8, _DARK, 0.02)
    return [hole, *(Part(side * half * 1.3, hold.y, half * 0.6, hold.length, 3.5, hold.paint, 0.01) for side in (-1, 1))]


def _working_crane(hold: Hold, rng: Generator) -> list[Part]:
    """A crane whose jib rests along the ship, or is swung out for work."""
    turn = float(rng.uniform(-1.3, 1.3)) if rng.random() < 0.15 else 0.0
    return _crane(hold.y, hold.width, hold.length, hold.paint, turn)


def _boxes(hold: Hold, rng: Generator) -> list[Part]:
    """Rows of containers, of several colours and up to six tiers."""
    rows, full = max(int(hold.width / 5), 2), int(rng.integers(0, 6))
    width = hold.width / rows
    tiers = np.clip(full + rng.integers(-1, 2, rows), 0, 6)
    places = (np.arange(rows) - (rows - 1) / 2) * width
    return [
        Part(float(x), hold.y, width, hold.length, hold.height + 2.6 * tier, _pick(_BOXES if tier else (_DARK,), rng), 0.15)
        for x, tier in zip(places, tiers.tolist())
    ]


def _deck_cargo(hold: Hold, rng: Generator) -> list[Part]:
    """A closed hatch; in one of four, pieces of cargo on top of it."""
    parts = _hatch(hold, rng)
    if rng.random() < 0.25:
        for _ in range(rng.integers(1, 5)):
            x, y = rng.uniform(-0.3, 0.3) * hold.width, hold.y + rng.uniform(-0.35, 0.35) * hold.length
            size = rng.uniform(0.1, 0.35, 2) * (hold.width, hold.length)
            parts.append(Part(float(x), float(y), *map(float, size), float(rng.uniform(3, 8)), _pick(_BOXES, rng), 0.3))
    return parts


def _painted_pad(hold: Hold, rng: Generator) -> list[Part]:
    """A hatch that stays closed, and on it a helicopter's landing place: the ship's own on every visit."""
    cover = Part(0, hold.y, hold.width, hold.length, hold.height, hold.paint, 0.004)
    size = 0.7 * min(hold.width, hold.length)
    return [cover, *_helipad(hold.y, size, hold.height, np.random.default_rng(int(abs(hold.y) * 1000)))]


CARGO = {"hatch": _hatch, "crane": _working_crane, "boxes": _boxes, "deck cargo": _deck_cargo, "helipad": _painted_pad}
"""What a hold takes -> function of the hold and a visit's generator that gives parts."""
