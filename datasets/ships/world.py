"""A world of ships: from its seed and difficulty to the picture of any view."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from datasets.records import Modality
from datasets.sar import render_percentile
from datasets.ships.counts import CAMERAS, View, cameras_of
from datasets.ships.designs import Ship, draw_ship, load_ship
from datasets.ships.optical import render_optical
from datasets.ships.radar import render_sar
from datasets.ships.scenes import Berth, RadarPass, draw_berth, draw_optical_pass, draw_radar_pass

_LOAD, _BERTH, _SCENE, _CAMERA, _CHIP, _SPARE = range(10, 16)  # what a generator is for: no two share a stream


@dataclass(frozen=True)
class World:
    """Everything that decides the pixels of a view, beside the view.

    Attributes:
        seed: another seed, other ships and scenes.
        difficulty: 0..1, how much differs between two chips of a ship, and how alike two ships are; in proportion to it are
            the squared relative spread of a corner's radar echo from pass to pass (at most 1), the share of sisters (0.5), the
            annotator's error (that of HOSS), and the variety of passes and berths (any side of the radar, any heading,
            satellites up to 26 degrees off the vertical, bows above or below alike).
        scenes: roadsteads on a day, 2 or more; spare views have passes of all of them.
    """

    seed: int
    difficulty: float
    scenes: int

    def _rng(self, *words: int) -> Generator:
        return np.random.default_rng([self.seed, *words])

    def ship(self, number: int, scene: int) -> Ship:
        """Ship `number` as it lies in `scene`."""
        ship = draw_ship(number, seed=self.seed, sisters=0.5 * self.difficulty)
        return load_ship(ship, self._rng(_LOAD, number, scene))

    def draw(self, view: View) -> np.ndarray:
        """The chip of a view: (H, W, 3) uint8 if it is optical, else (H, W) float32."""
        ship, rng = self.ship(view.number, view.scene), self._rng(_CHIP, view.number, view.scene, view.camera)
        passing = self._rng(_SCENE, view.scene), self._rng(_CAMERA, view.scene, view.camera)
        if view.chip.modality is Modality.OPTICAL:
            seen = draw_optical_pass(*passing, variety=self.difficulty)
            return render_optical(ship, seen, self._berth(view), rng, jitter=self.difficulty)
        return self._sar(ship, draw_radar_pass(*passing, variety=self.difficulty), view, rng)

    def draw_spare(self, view: View, k: int) -> np.ndarray:
        """Spare SAR view `k` of an optical view, as a picture (H, W, 3) uint8; none is of a pass that chips of the scene have.

        Even k: the same visit in one more pass over the scene, much like the others, as HOSS's own chips of a ship are. It
        tells what could be gained at most. Odd k: the same visit in a pass of another scene: as good a picture of the ship,
        by another radar, from another side; a generator that does not know the radar can do no better.
        """
        ship, rng = self.ship(view.number, view.scene), self._rng(_SPARE, view.number, view.scene, view.camera, k)
        scene, camera = view.scene, CAMERAS + 1 + k
        if k % 2:
            scene = 1 + (view.scene - 1 + int(rng.integers(1, self.scenes))) % self.scenes
            camera = int(rng.choice(cameras_of(scene, Modality.SAR)))
        passing = self._rng(_SCENE, scene), self._rng(_CAMERA, scene, camera)
        return render_percentile(self._sar(ship, draw_radar_pass(*passing, variety=self.difficulty), view, rng))

    def _berth(self, view: View) -> Berth:
        of_scene, of_ship = self._rng(_BERTH, view.scene), self._rng(_BERTH, view.scene, view.number)
        return draw_berth(of_scene, of_ship, variety=self.difficulty)

    def _sar(self, ship: Ship, seen: RadarPass, view: View, rng: Generator) -> np.ndarray:
        return render_sar(ship, seen, self._berth(view), rng, scintillation=self.difficulty, jitter=self.difficulty)
