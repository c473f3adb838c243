"""A world of ships: from its seed and difficulty to the picture of any view."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from datasets.records import Modality
from datasets.sar import render_percentile
from datasets.ships.counts import View
from datasets.ships.designs import Ship, draw_ship, load_ship
from datasets.ships.optical import render_optical
from datasets.ships.radar import render_sar
from datasets.ships.scenes import draw_berth, draw_optical_pass, draw_radar_pass

_LOAD, _BERTH, _SCENE, _CAMERA, _CHIP, _SPARE = range(10, 16)  # what a generator is for: no two share a stream


@dataclass(frozen=True)
class World:
    """Everything that decides the pixels of a view, beside the view.

    Attributes:
        seed: another seed, other ships and scenes.
        difficulty: 0 and more. Of each kind of change between two chips of a ship there is as much as it says: how much a
            corner's radar echo differs from pass to pass (squared relative spread `difficulty`), how many ships are sisters
            (a share of 0.4 times `difficulty`, at most 0.9), and how far annotators err (`difficulty` times as in HOSS).
    """

    seed: int
    difficulty: float

    def _rng(self, *words: int) -> Generator:
        return np.random.default_rng([self.seed, *words])

    def ship(self, number: int, scene: int) -> Ship:
        """Ship `number` as it lies in `scene`."""
        ship = draw_ship(number, seed=self.seed, sisters=min(0.4 * self.difficulty, 0.9))
        return load_ship(ship, self._rng(_LOAD, number, scene))

    def draw(self, view: View) -> np.ndarray:
        """The chip of a view: (H, W, 3) uint8 if it is optical, else (H, W) float32."""
        ship, rng = self.ship(view.number, view.scene), self._rng(_CHIP, view.number, view.scene, view.camera)
        berth = draw_berth(self._rng(_BERTH, view.scene), self._rng(_BERTH, view.scene, view.number))
        passing = self._rng(_SCENE, view.scene), self._rng(_CAMERA, view.scene, view.camera)
        if view.chip.modality is Modality.OPTICAL:
            return render_optical(ship, draw_optical_pass(*passing), berth, rng, jitter=self.difficulty)
        return render_sar(ship, draw_radar_pass(*passing), berth, rng, **self._changes)

    def draw_spare(self, view: View, k: int) -> np.ndarray:
        """Spare SAR view `k` of an optical view: the same visit in a pass of its own, as a picture (H, W, 3) uint8."""
        rng = self._rng(_SPARE, view.number, view.scene, view.camera, k)
        berth = draw_berth(self._rng(_BERTH, view.scene), self._rng(_BERTH, view.scene, view.number))
        ship = self.ship(view.number, view.scene)
        return render_percentile(render_sar(ship, draw_radar_pass(rng, rng), berth, rng, **self._changes))

    @property
    def _changes(self) -> dict[str, float]:
        return {"scintillation": self.difficulty, "jitter": self.difficulty}
