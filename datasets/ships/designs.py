"""Designs of procedural ships: what a ship is before any sensor looks at it. `datasets.ships.rendering` renders it.

Metres run from the ship's centre: x to starboard, y aft. Sizes come in classes, as ships do: many ships share one size,
and their deck layout tells them apart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

SIZE_CLASSES = ((60, 11), (100, 17), (135, 21), (180, 30), (190, 32), (200, 32), (225, 32), (260, 42), (335, 52))
"""Length and beam in metres of usual ship sizes, from coaster to very large carrier."""
_CLASS_WEIGHTS = (0.02, 0.06, 0.06, 0.14, 0.16, 0.18, 0.22, 0.12, 0.04)

_DECK_PAINTS = ((0.40, 0.24, 0.20), (0.34, 0.27, 0.24), (0.24, 0.32, 0.28), (0.30, 0.31, 0.32), (0.25, 0.28, 0.34))
_BOX_PAINTS = ((0.62, 0.22, 0.18), (0.25, 0.32, 0.60), (0.70, 0.70, 0.68), (0.66, 0.50, 0.22), (0.28, 0.45, 0.36))
_WHITE = (0.88, 0.88, 0.86)
_MIX = (0.5, 0.3, 0.2)  # share of the bays that each of a ship's three kinds of load takes


@dataclass(frozen=True)
class Part:
    """A box or cylinder on deck.

    Attributes:
        x, y: centre in metres.
        width, length: extent along x and y in metres.
        height: metres above the deck.
        paint: reflectance of red, green and blue, 0..1.
        echo: radar backscatter of its top, linear.
        round: a cylinder, not a box.
    """

    x: float
    y: float
    width: float
    length: float
    height: float
    paint: tuple[float, float, float]
    echo: float
    round: bool = False


@dataclass(frozen=True)
class Ship:
    """One identity.

    Attributes:
        length, beam, freeboard: metres.
        bow, stern: share of the length over which the hull narrows to the point and to the transom.
        bow_fullness: exponent of the bow's curve, 1 (a wedge) to 3 (blunt).
        transom: width of the stern as a share of the beam.
        deck_paint: reflectance of red, green and blue, 0..1.
        deck_echo, rail_echo: radar backscatter of the open deck and of its edge, linear.
        parts: what stands on deck, lowest first.
        grain_seed: seed of wear and small fittings.
    """

    length: float
    beam: float
    freeboard: float
    bow: float
    stern: float
    bow_fullness: float
    transom: float
    deck_paint: tuple[float, float, float]
    deck_echo: float
    rail_echo: float
    parts: tuple[Part, ...]
    grain_seed: int

    def half_width(self, y: np.ndarray) -> np.ndarray:
        """Half of the hull's width in metres at `y` (any shape, metres from the centre); negative beyond the ends."""
        from_bow = (y + self.length / 2) / (self.bow * self.length)
        from_stern = (self.length / 2 - y) / (self.stern * self.length)
        narrowing = 1 - (1 - np.clip(from_bow, 0, 1)) ** self.bow_fullness
        narrowing = narrowing * (self.transom + (1 - self.transom) * np.sqrt(np.clip(from_stern, 0, 1)))
        return np.where((from_bow >= 0) & (from_stern >= 0), self.beam / 2 * narrowing, -1.0)


def draw_ship(rng: Generator) -> Ship:
    """Draw a ship: size class, hull form, place of the bridge, and a load in each bay of the cargo deck."""
    length, beam = np.array(SIZE_CLASSES[rng.choice(len(SIZE_CLASSES), p=_CLASS_WEIGHTS)]) * rng.normal(1, 0.01, 2)
    bow, stern = rng.uniform(0.08, 0.18), rng.uniform(0.04, 0.10)
    deck_paint = _vary(_DECK_PAINTS[rng.integers(len(_DECK_PAINTS))], rng)
    return Ship(
        length=float(length),
        beam=float(beam),
        freeboard=float(rng.uniform(3, 9)),
        bow=float(bow),
        stern=float(stern),
        bow_fullness=float(rng.uniform(1.4, 3.0)),
        transom=float(rng.uniform(0.5, 0.95)),
        deck_paint=deck_paint,
        deck_echo=float(10 ** rng.uniform(-1.3, -0.9)),
        rail_echo=float(10 ** rng.uniform(-0.8, -0.2)),
        parts=tuple(_deck(float(length), float(beam), float(bow), deck_paint, rng)),
        grain_seed=int(rng.integers(2**31)),
    )


def _vary(paint: tuple[float, float, float], rng: Generator, spread: float = 0.04) -> tuple[float, float, float]:
    """Change a paint a little."""
    return tuple(float(value) for value in np.clip(np.array(paint) + rng.normal(0, spread, 3), 0.02, 0.98))


def _deck(length: float, beam: float, bow: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """Lay out forecastle, bridge and cargo bays from bow to stern."""
    start, end = (bow - 0.5) * length + 2, 0.46 * length
    bridge_length = float(np.clip(rng.uniform(0.06, 0.12) * length, 8, 30))
    free = end - start - bridge_length
    place = rng.choice([rng.uniform(0.93, 1.0), rng.uniform(0.0, 0.08), rng.uniform(0.35, 0.7)], p=[0.65, 0.12, 0.23])
    bridge = start + place * free
    parts = [Part(0, -0.5 * length + 0.05 * length, beam * 0.2, 4, 2, _WHITE, 0.8)]  # windlass on the forecastle
    stretches = [(start, bridge), (bridge + bridge_length, end)]
    bay = float(np.clip(length / rng.integers(5, 11), 11, 60))
    kinds = rng.choice(len(_LOADS), 3, replace=False)
    for first, last in stretches:
        count = int((last - first) / bay)
        for index in range(count):
            pitch = (last - first) / count
            load = _LOADS[rng.choice(kinds, p=_MIX)]
            parts += load(first + (index + 0.5) * pitch, pitch, beam, paint, rng)
    return parts + _bridge(bridge + bridge_length / 2, bridge_length, beam, rng)


def _bridge(y: float, length: float, beam: float, rng: Generator) -> list[Part]:
    """Superstructure: accommodation over the beam, wings, wheelhouse and funnel."""
    height = float(rng.uniform(12, 22))
    funnel = _vary(_BOX_PAINTS[rng.integers(len(_BOX_PAINTS))], rng)
    return [
        Part(0, y, beam * float(rng.uniform(0.7, 0.95)), length, height * 0.7, _vary(_WHITE, rng), 1.5),
        Part(0, y - length * 0.3, beam, 3.5, height, _WHITE, 2.5),
        Part(0, y + length * 0.3, beam * 0.25, length * 0.3, height + 3, funnel, 2.0),
    ]


def _hatch(y: float, pitch: float, beam: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """A flat, smooth cover: dark to the radar but for its coaming. Sometimes a crane stands behind it."""
    cover = tuple(value * 0.5 for value in paint)
    parts = [Part(0, y, beam * 0.6, pitch * 0.7, 2.0, cover, 0.01)]
    return parts + (_crane(y + pitch / 2, pitch, beam, rng) if rng.random() < 0.4 else [])


def _crane(y: float, pitch: float, beam: float, rng: Generator) -> list[Part]:
    """A post and a jib that rests along the deck."""
    x = float(rng.choice([-0.3, 0.0, 0.3])) * beam
    jib = pitch * float(rng.uniform(0.5, 0.9))
    paint = _vary((0.75, 0.72, 0.6), rng)
    return [Part(x, y - jib / 2, 2.0, jib, 8, paint, 2.0), Part(x, y, beam * 0.14, 4.5, 14, paint, 8.0)]


def _boxes(y: float, pitch: float, beam: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """A stack of containers, in rows of several colours and heights."""
    rows = 5
    tier = 2.6 * int(rng.integers(1, 6))
    return [
        Part(
            (row - (rows - 1) / 2) * beam * 0.9 / rows,
            y,
            beam * 0.9 / rows,
            pitch * 0.88,
            tier,
            _vary(_BOX_PAINTS[rng.integers(len(_BOX_PAINTS))], rng),
            0.7,
        )
        for row in range(rows)
    ]


def _pipes(y: float, pitch: float, beam: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """A tanker's deck: a pipe rack along the middle, and now and then a manifold across."""
    pale = tuple(min(value * 1.5 + 0.05, 1.0) for value in paint)
    parts = [Part(0, y, beam * 0.12, pitch, 2.0, pale, 1.2)]
    if rng.random() < 0.35:
        parts.append(Part(0, y, beam * 0.85, pitch * 0.18, 2.5, pale, 3.0))
    return parts


def _tank(y: float, pitch: float, beam: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """A round tank or dome."""
    size = min(pitch * 0.9, beam * 0.85)
    return [Part(0, y, size, size, 9.0, _vary((0.72, 0.70, 0.64), rng), 0.4, round=True)]


def _roof(y: float, pitch: float, beam: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """A covered deck, pale and ribbed, with a ventilator."""
    vent = Part(float(rng.uniform(-0.3, 0.3)) * beam, y, 5, 5, 9.0, (0.5, 0.5, 0.5), 3.0)
    return [Part(0, y, beam * 0.92, pitch, 6.0, _vary((0.80, 0.80, 0.76), rng, 0.02), 0.4), vent]


def _gap(y: float, pitch: float, beam: float, paint: tuple[float, float, float], rng: Generator) -> list[Part]:
    """An empty bay, its bottom dark."""
    return [Part(0, y, beam * 0.7, pitch * 0.8, -2.0, (0.07, 0.06, 0.06), 0.02)]


_LOADS = (_hatch, _boxes, _pipes, _tank, _roof, _gap)
