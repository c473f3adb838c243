"""Which chips a procedural data set holds: how many of what, and who sees which ship when.

As in HOSS, training and test ships differ, some ships are seen by one sensor only, and file names tell scene and camera. Every
test ship has two queries, one a sensor where both saw it; the gallery also holds distractors: ships that match nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator

from datasets.catalogue import FOLDERS, KINDS
from datasets.records import DISTRACTOR, Chip, Modality, Split

CAMERAS = 8
"""Passes over a scene, optical and SAR in turn; the first is optical in odd scenes and SAR in even ones."""

VISIT = 4
"""Most chips of a ship by one sensor in one scene; what is more comes from further visits."""

RETURNS = 0.15
"""Share of the ships with two chips or more by a sensor that come twice although one visit would hold all."""


@dataclass(frozen=True)
class Fleet:
    """The ships of a split and their chips; of a test split queries and gallery, without distractors.

    Attributes:
        both, optical_only, sar_only: ships by the sensors that saw them.
        optical, sar: chips.
    """

    both: int
    optical_only: int
    sar_only: int
    optical: int
    sar: int

    @property
    def ships(self) -> int:
        """Number of ships."""
        return self.both + self.optical_only + self.sar_only

    def scaled(self, ships: int) -> "Fleet":
        """As many `ships` in the same proportions: shares of sensors, chips of a ship."""
        optical_only, sar_only = (round(count * ships / self.ships) for count in (self.optical_only, self.sar_only))
        seen = ships - sar_only, ships - optical_only
        optical, sar = self.both + self.optical_only, self.both + self.sar_only
        chips = round(self.optical * seen[0] / optical), round(self.sar * seen[1] / sar)
        return Fleet(ships - optical_only - sar_only, optical_only, sar_only, *chips)


@dataclass(frozen=True)
class WorldSize:
    """What a data set holds.

    Attributes:
        train, test: its ships.
        distractors: optical and SAR chips of as many ships more.
        scenes: roadsteads on a day.
        spare_views: spare SAR views of each optical chip.
    """

    train: Fleet
    test: Fleet
    distractors: tuple[int, int]
    scenes: int
    spare_views: int = 2

    def scaled(self, train_ships: int | None, test_ships: int | None) -> "WorldSize":
        """With other numbers of ships; distractors go with the test ships."""
        size = self
        if train_ships is not None:
            size = replace(size, train=size.train.scaled(train_ships))
        if test_ships is not None:
            share = test_ships / size.test.ships
            distractors = tuple(round(count * share) for count in size.distractors)
            size = replace(size, test=size.test.scaled(test_ships), distractors=distractors)
        return size


SIZES = {
    "tiny": WorldSize(Fleet(200, 20, 20, 660, 660), Fleet(67, 7, 6, 222, 219), (20, 20), scenes=8),
    # 1,063 training chips of 361 ships; 176 queries of 88 ships, 430 of their chips in the gallery; 163 distractors. Of the
    # public sample's gallery two chips of three are optical, and of its 18 distractors 8.
    "hoss": WorldSize(Fleet(289, 36, 36, 574, 489), Fleet(66, 12, 10, 380, 226), (73, 90), scenes=8),
    # 100,000 chips, of which 3,200 are queries.
    "large": WorldSize(
        Fleet(16000, 2400, 1600, 44000, 40000), Fleet(1200, 220, 180, 7200, 6400), (1300, 1100), scenes=100, spare_views=0
    ),
}
"""`hoss` has the published counts of HOSS ReID; how they divide over ships is known of its public sample only."""


@dataclass(frozen=True)
class View:
    """A chip to draw.

    Attributes:
        chip: what it is; its path is relative to HOSS/.
        number: of the ship to draw, which no two distractors share.
        scene: where it lies, from 1 on.
        camera: 1..CAMERAS.
    """

    chip: Chip
    number: int
    scene: int
    camera: int


def plan_views(size: WorldSize, seed: int) -> Iterator[View]:
    """List the chips of a data set: training ships first, from ship 1 on, then test ships, then distractors."""
    rng = np.random.default_rng([seed, 0])
    first = 1
    for fleet, is_test in ((size.train, False), (size.test, True)):
        counts = _share_chips(fleet, least=2 if is_test else 1, alone=3 if is_test else 1, rng=rng)
        for ship, (optical, sar) in enumerate(counts, start=first):
            yield from _views_of_ship(ship, optical, sar, is_test, size.scenes, rng)
        first += fleet.ships
    sensors = [Modality.OPTICAL] * size.distractors[0] + [Modality.SAR] * size.distractors[1]
    for number, modality in enumerate(sensors, start=first):
        scene = int(rng.integers(1, size.scenes + 1))
        path = Path(FOLDERS[Split.GALLERY], f"{DISTRACTOR}_{number:04d}_{KINDS[modality]}.tif")
        yield View(Chip(path, DISTRACTOR, modality, Split.GALLERY), number, scene, cameras_of(scene, modality)[0])


def _share_chips(fleet: Fleet, *, least: int, alone: int, rng: Generator) -> list[tuple[int, int]]:
    """Optical and SAR chips of each ship, in an order drawn at random.

    Args:
        fleet: the ships and their chips.
        least: chips that a sensor has at least of a ship that both saw.
        alone: chips at least of a ship that one sensor saw.
        rng: of the plan.
    """
    counts = np.zeros((fleet.ships, 2), int)
    counts[: fleet.both] = least
    counts[fleet.both : fleet.both + fleet.optical_only, 0] = alone
    counts[fleet.both + fleet.optical_only :, 1] = alone
    for sensor, total in enumerate((fleet.optical, fleet.sar)):
        seen, rest = np.flatnonzero(counts[:, sensor]), total - int(counts[:, sensor].sum())
        # As even as it goes; who gets one more is drawn.
        for _ in range(rest // max(len(seen), 1)):
            counts[seen, sensor] += 1
        counts[rng.permutation(seen)[: rest % max(len(seen), 1)], sensor] += 1
    return [(int(optical), int(sar)) for optical, sar in rng.permutation(counts)]


def cameras_of(scene: int, modality: Modality) -> list[int]:
    """The cameras of a scene that have this sensor, in the order of their passes."""
    return [camera for camera in range(1, CAMERAS + 1) if (camera + scene) % 2 == modality]


def _views_of_ship(ship: int, optical: int, sar: int, is_test: bool, scenes: int, rng: Generator) -> Iterator[View]:
    """The chips of a ship, visit by visit; of a test ship the first of each sensor is a query, or the first two of the one."""
    most = max(optical, sar)
    times = max(-(-most // VISIT), 1 + (most > 1 and rng.random() < RETURNS))
    visits, each = rng.permutation(np.arange(1, scenes + 1))[:times], -(-most // times)
    queries = 1 if optical and sar else 2
    for modality, count in ((Modality.OPTICAL, optical), (Modality.SAR, sar)):
        for place in range(count):
            scene = int(visits[place // each])
            camera = cameras_of(scene, modality)[place % each]
            split = Split.TRAIN if not is_test else Split.QUERY if place < queries else Split.GALLERY
            path = Path(FOLDERS[split], f"{ship:04d}_s{scene:02d}c{camera}_{KINDS[modality]}.tif")
            yield View(Chip(path, ship, modality, split), ship, scene, camera)
