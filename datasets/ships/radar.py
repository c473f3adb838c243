"""What a SAR satellite sees of a procedural ship.

A radar sorts echoes by their distance: high things come earlier and lean towards it (layover), and throw a shadow behind them.
Steep faces shine, and walls with what they stand on (dihedrals) shine most where they face the beam. The strongest echoes leave
side lobes along range and azimuth, a ship that moves is smeared along azimuth, and speckle multiplies all of it.

Chips are like those of HOSS ReID: float32 at 1 m, 0 to about the product's ceiling.
"""

import cv2
import numpy as np
from numpy.random import Generator

from datasets.ships.designs import Ship
from datasets.ships.plans import chip_placement, draw_plan, is_lit, turn_plan
from datasets.ships.scenes import Berth, RadarPass, seen_from

SAR_PIXEL = 1.0
"""Metres per pixel of a SAR chip."""

_FLASH = 0.25
"""Radians off a wall's normal within which it shines as a dihedral."""

_SPREAD = 2.0
"""Metres, the standard deviation of where echoes that went to and fro on board seem to come from."""


def render_sar(
    ship: Ship, passing: RadarPass, berth: Berth, rng: Generator, *, scintillation: float = 1.0, jitter: float = 1.0
) -> np.ndarray:
    """See `ship` from a SAR satellite.

    Args:
        ship: as it lies in the water.
        passing: the pass, in the scene's frame.
        berth: how the ship lies in the scene.
        rng: of this chip: the annotator's error, which corners shine, and speckle.
        scintillation: how much a corner's echo differs from pass to pass: its squared relative spread.
        jitter: factor on the annotator's error.

    Returns:
        (H, W) float32, SAR_PIXEL metres per pixel.
    """
    seen, plan = seen_from(passing, berth), draw_plan(ship)
    turn = turn_plan(plan.hull.shape, seen.direction, SAR_PIXEL, margin=30.0)
    echo, landing = _echoes(turn.ahead(plan.height), turn.ahead(plan.echo), seen, scintillation, rng)
    power = _lay_over(echo, landing)
    power += seen.multipath * (cv2.GaussianBlur(power, (0, 0), _SPREAD / SAR_PIXEL) - power)
    power = _focus(power + seen.sea, seen, rng)
    shape, placement = _frame(ship, seen, berth, plan.hull.shape, rng, jitter)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    power = cv2.warpAffine(power, turn.place(placement), shape[::-1], flags=flags)
    gain = seen.gain * rng.uniform(0.85, 1.2)
    return (seen.ceiling * np.tanh(gain * np.sqrt(np.maximum(power, 1e-7)))).astype(np.float32)


def _echoes(
    height: np.ndarray, surface: np.ndarray, seen: RadarPass, scintillation: float, rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Power of the echo of each place of a turned grid, and the column where it lands, both (A, R)."""
    slope = 1 / np.tan(seen.incidence)
    lit = is_lit(height, slope, SAR_PIXEL)
    rise = np.maximum(np.diff(height, axis=1, append=0), 0)  # a wall towards the radar, which comes from column 0
    # Ships are built at right angles: their walls face the beam near multiples of a quarter turn.
    off = (seen.direction + np.pi / 4) % (np.pi / 2) - np.pi / 4
    flash = 0.2 + np.exp(-((off / _FLASH) ** 2))
    walls = 0.2 * flash * np.minimum(rise, 8) ** 2
    shape = 1 / max(scintillation, 1e-3)
    echo = (surface + walls) * lit * rng.gamma(shape, 1 / shape, height.shape).astype(np.float32)
    # A wall's echo comes from its foot, which is where `rise` has it.
    return echo, np.arange(height.shape[1]) - height * (slope / SAR_PIXEL)


def _lay_over(echo: np.ndarray, landing: np.ndarray) -> np.ndarray:
    """Add up echoes (A, R) where they land, each shared by two columns: (A, R)."""
    rows, columns = echo.shape
    left = np.floor(landing).astype(np.int64)
    share = (landing - left).astype(np.float32)
    found = np.zeros(rows * columns)
    base = np.arange(rows)[:, None] * columns
    for shift, part in ((0, echo * (1 - share)), (1, echo * share)):
        place = base + np.clip(left + shift, 0, columns - 1)
        found += np.bincount(place.ravel(), part.ravel(), rows * columns)
    return found.reshape(rows, columns).astype(np.float32)


def _focus(power: np.ndarray, seen: RadarPass, rng: Generator) -> np.ndarray:
    """The image of scatterers of a mean power (A, R), which interfere: speckle is as fine as the point response is.

    Each look is the squared magnitude of a complex Gaussian field that the point response has blurred. That response falls off
    along range (columns) and azimuth (rows) as side lobes do, and a ship that moves is smeared along azimuth.
    """
    field = rng.standard_normal((2 * seen.looks, *power.shape), np.float32) * np.sqrt(power / (2 * seen.looks))
    across = _response(seen.resolution, seen.side_lobes)
    along = _response(float(np.hypot(seen.resolution, seen.smear)), seen.side_lobes)
    focused = [cv2.sepFilter2D(part, -1, across, along, borderType=cv2.BORDER_CONSTANT) for part in field]
    return np.square(focused).sum(axis=0)


def _response(sigma: float, side_lobes: float) -> np.ndarray:
    """Amplitude (65,) of a point's echo along one axis: a Gaussian of `sigma` metres, and lobes that fall with the distance.

    Its squares sum to 1, so that the mean power of a scene stays what it was.
    """
    reach = np.abs(np.arange(-32, 33)) * SAR_PIXEL
    amplitude = np.exp(-((reach / sigma) ** 2) / 2) + np.sqrt(side_lobes) / (1 + reach)
    return np.float32(amplitude / np.sqrt(np.square(amplitude).sum()))


def _frame(
    ship: Ship, seen: RadarPass, berth: Berth, plan_shape: tuple[int, int], rng: Generator, jitter: float
) -> tuple[tuple[int, int], np.ndarray]:
    """(H, W) of the chip that an annotator cuts, and its place on the plan."""
    towards = -np.array([np.cos(seen.direction), np.sin(seen.direction)])
    height = ship.length * max(rng.normal(1.10, 0.035 * jitter), 1.02) / SAR_PIXEL
    width = (ship.beam * max(rng.normal(1.3, 0.08 * jitter), 1.1) + 6 * abs(towards[0])) / SAR_PIXEL
    shape = int(np.clip(round(height), 50, 513)), int(np.clip(round(width), 14, 101))
    deck = towards * (ship.freeboard + 2) / np.tan(seen.incidence)
    shift = deck + rng.normal(0, 0.015 * jitter, 2) * (ship.beam, ship.length)
    turn = rng.normal(0, 0.025 * jitter) + np.pi * berth.bow_down
    return shape, chip_placement(shape, plan_shape, SAR_PIXEL, shift, turn)
