"""Designs of procedural ships: what a ship is before any sensor looks at it. `datasets.ships.decks` says what stands on deck.

Metres run from the ship's centre: x to starboard, y aft. Sizes come in classes, as ships do: many ships share one size, and
their deck tells them apart. Sister ships share the whole plan, and differ in paint, fittings and wear.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from datasets.ships.decks import CARGO, DECKS, Hold, Part, vary

FAMILY = 4
"""So many ships in a row may be sisters."""

_DECK_PAINTS = ((0.30, 0.12, 0.09), (0.22, 0.10, 0.09), (0.14, 0.22, 0.17), (0.16, 0.17, 0.19), (0.14, 0.17, 0.24))


@dataclass(frozen=True)
class Kind:
    """A type of ship.

    Attributes:
        share: of all ships, 0..1.
        sizes: length and beam in metres of its size classes.
        freeboard: metres between water and deck, laden and in ballast.
    """

    share: float
    sizes: tuple[tuple[int, int], ...]
    freeboard: tuple[float, float]


KINDS_OF_SHIP = {
    "bulk carrier": Kind(0.52, ((180, 30), (190, 32), (200, 32), (225, 32), (229, 36), (292, 45), (330, 57)), (5, 11)),
    "tanker": Kind(0.17, ((115, 18), (183, 32), (228, 32), (250, 44), (274, 48), (333, 60)), (4, 12)),
    "container ship": Kind(0.09, ((145, 23), (210, 30), (260, 32), (294, 32), (366, 51)), (6, 10)),
    "general cargo ship": Kind(0.12, ((82, 13), (100, 16), (120, 18), (142, 22), (170, 27)), (3, 6)),
    "car carrier": Kind(0.03, ((180, 30), (200, 34)), (20, 22)),
    "gas carrier": Kind(0.03, ((160, 26), (228, 36), (290, 46)), (7, 10)),
    "coaster": Kind(0.04, ((46, 11), (60, 12), (75, 13)), (2, 4)),
}
"""Shares and sizes that give about the chips' sizes of the public sample of HOSS: mostly bulk carriers around 200 m."""


@dataclass(frozen=True)
class Ship:
    """One identity, as it lies in the water on one visit.

    Attributes:
        kind: a key of `KINDS_OF_SHIP`.
        length, beam: metres.
        freeboard: metres from the water to the deck.
        bow, stern: share of the length over which the hull narrows to the point and to the transom.
        bow_fullness: exponent of the bow's curve, 1 (pointed) to 3 (blunt).
        transom: width of the stern as a share of the beam.
        deck_paint: reflectance of red, green and blue, 0..1.
        deck_echo, rail_echo: radar backscatter of the open deck and of its edge, linear.
        parts: what stands on deck, lowest first.
        holds: where cargo goes.
        grain_seed: seed of wear and small fittings.
    """

    kind: str
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
    holds: tuple[Hold, ...]
    grain_seed: int

    def half_width(self, y: np.ndarray) -> np.ndarray:
        """Half of the hull's width in metres at `y` (any shape, metres from the centre); negative beyond the ends."""
        from_bow = (y + self.length / 2) / (self.bow * self.length)
        from_stern = (self.length / 2 - y) / (self.stern * self.length)
        narrowing = np.sqrt(1 - (1 - np.clip(from_bow, 0, 1)) ** self.bow_fullness)
        narrowing = narrowing * (self.transom + (1 - self.transom) * np.sqrt(np.clip(from_stern, 0, 1)))
        return np.where((from_bow >= 0) & (from_stern >= 0), self.beam / 2 * narrowing, -1.0)


def draw_ship(number: int, *, seed: int, sisters: float) -> Ship:
    """Draw ship `number` of the world `seed`.

    Args:
        number: 1 or more; the same ship in every data set of that seed.
        seed: of the world.
        sisters: probability that the ship has the plan of its family (`FAMILY` ships in a row), 0..1.
    """
    detail = np.random.default_rng([seed, 1, number])
    plan_number = number // FAMILY if detail.random() < sisters else -number
    # Families and single ships draw their plans from streams of their own.
    plan = np.random.default_rng([seed, 2, int(plan_number < 0), abs(plan_number)])
    names = list(KINDS_OF_SHIP)
    kind = names[plan.choice(len(names), p=[KINDS_OF_SHIP[name].share for name in names])]
    sizes = KINDS_OF_SHIP[kind].sizes
    length, beam = np.array(sizes[plan.integers(len(sizes))]) * plan.normal(1, 0.02, 2)
    bow = plan.uniform(0.08, 0.16) if kind != "container ship" else plan.uniform(0.18, 0.26)
    paint = vary(_DECK_PAINTS[plan.integers(len(_DECK_PAINTS))], detail)
    parts, holds = DECKS[kind](float(length), float(beam), plan, detail)
    return Ship(
        kind=kind,
        length=float(length),
        beam=float(beam),
        freeboard=KINDS_OF_SHIP[kind].freeboard[0],
        bow=float(bow),
        stern=float(plan.uniform(0.04, 0.10)),
        bow_fullness=float(plan.uniform(1.7, 3.0)) if kind != "container ship" else float(plan.uniform(1.0, 1.4)),
        transom=float(plan.uniform(0.5, 0.95)),
        deck_paint=paint,
        deck_echo=float(10 ** detail.uniform(-2.4, -1.7)),
        rail_echo=float(10 ** detail.uniform(-1.0, -0.4)),
        parts=tuple(parts),
        holds=tuple(holds),
        grain_seed=int(detail.integers(2**31)),
    )


def load_ship(ship: Ship, rng: Generator) -> Ship:
    """The ship on one visit: its draught, and what is in and on its holds."""
    laden, ballast = KINDS_OF_SHIP[ship.kind].freeboard
    cargo = [part for hold in ship.holds for part in CARGO[hold.cargo](hold, rng)]
    return replace(ship, freeboard=float(rng.uniform(laden, ballast)), parts=(*ship.parts, *cargo))
