"""What an optical satellite sees of a procedural ship: paint in the sun, shadows, the sea, and all that lies between.

Chips are like those of HOSS ReID: tight around the ship, its axis upright, 8-bit RGB at 0.75 m.
"""

import cv2
import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from datasets.ships.designs import Ship
from datasets.ships.plans import PLAN_PIXEL, chip_placement, draw_plan, is_lit, lean_over, turn_plan
from datasets.ships.scenes import Berth, OpticalPass, seen_from

OPTICAL_PIXEL = 0.75
"""Metres per pixel of an optical chip."""


def render_optical(ship: Ship, passing: OpticalPass, berth: Berth, rng: Generator, *, jitter: float = 1.0) -> np.ndarray:
    """See `ship` from an optical satellite.

    Args:
        ship: as it lies in the water.
        passing: the pass, in the scene's frame.
        berth: how the ship lies in the scene.
        rng: of this chip: the annotator's error, waves and noise.
        jitter: factor on the annotator's error.

    Returns:
        (H, W, 3) uint8, OPTICAL_PIXEL metres per pixel.
    """
    seen, plan = seen_from(passing, berth), draw_plan(ship)
    turn = turn_plan(plan.height.shape, seen.direction, PLAN_PIXEL)
    lit = turn.back(is_lit(turn.ahead(plan.height), seen.sun_slope, PLAN_PIXEL), plan.height.shape)
    # A wall or crown that faces the sun is brighter; this also draws the seams between hatches.
    slope_y, slope_x = np.gradient(plan.height)
    facing = -(slope_x * np.cos(seen.direction) + slope_y * np.sin(seen.direction))
    hull = plan.hull[..., None]
    light = (0.3 + 0.7 * lit) * np.clip(1 - 0.06 * facing, 0.6, 1.4)
    water = _sea(plan.hull.shape, seen, rng) * (0.55 + 0.45 * lit[..., None])
    water += _wake(ship, plan.hull.shape, rng)
    picture = np.where(hull > 0, plan.paint * light[..., None], water).astype(np.float32)
    picture = lean_over(picture, plan.height, seen.lean_direction, seen.lean)
    shape, placement = _frame(ship, seen, berth, plan.hull.shape, rng, jitter)
    chip = cv2.warpAffine(
        picture, placement, shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return _expose(chip, seen, rng)


def _sea(shape: tuple[int, int], seen: OpticalPass, rng: Generator) -> np.ndarray:
    """Water with swell: (P, Q, 3), reflectance."""
    swell = gaussian_filter(rng.standard_normal(shape, np.float32), (rng.uniform(0.6, 1.5), rng.uniform(1, 3)))
    return np.float32(seen.sea) * (1 + seen.swell * (swell / swell.std())[..., None])


def _wake(ship: Ship, shape: tuple[int, int], rng: Generator) -> np.ndarray | float:
    """Foam behind the stern of the one ship in seven that is under way: (P, Q, 1) reflectance, else 0."""
    if rng.random() > 0.15:
        return 0.0
    y, x = np.ogrid[: shape[0], : shape[1]]
    behind = (y - shape[0] / 2) * PLAN_PIXEL - ship.length / 2
    foam = np.exp(-(((x - shape[1] / 2) * PLAN_PIXEL / (0.2 * ship.beam)) ** 2)) * (behind > 0)
    return (foam * rng.uniform(0.1, 0.4) * rng.uniform(0.3, 1.5, shape))[..., None]


def _frame(
    ship: Ship, seen: OpticalPass, berth: Berth, plan_shape: tuple[int, int], rng: Generator, jitter: float
) -> tuple[tuple[int, int], np.ndarray]:
    """(H, W) of the chip that an annotator cuts, and its place on the plan."""
    height = ship.length * max(rng.normal(1.10, 0.025 * jitter), 1.02) / OPTICAL_PIXEL
    lean = ship.freeboard * seen.lean * abs(np.cos(seen.lean_direction))
    width = (ship.beam * max(rng.normal(1.25, 0.06 * jitter), 1.08) + lean) / OPTICAL_PIXEL
    shape = int(np.clip(round(height), 50, 513)), int(np.clip(round(width), 14, 101))
    # The deck is what one frames, and it leans by its height above the water.
    deck = ship.freeboard * seen.lean * np.array([np.cos(seen.lean_direction), np.sin(seen.lean_direction)])
    shift = deck * 0.8 + rng.normal(0, 0.012 * jitter, 2) * (ship.beam, ship.length)
    turn = rng.normal(0, 0.02 * jitter) + np.pi * berth.bow_down
    return shape, chip_placement(shape, plan_shape, OPTICAL_PIXEL, shift, turn)


def _expose(chip: np.ndarray, seen: OpticalPass, rng: Generator) -> np.ndarray:
    """From reflectance (H, W, 3) to the product: blur, sharpening, calibration, air, cloud and noise; uint8."""
    chip = cv2.GaussianBlur(chip, (0, 0), 0.9)
    chip = chip + seen.sharpness * (chip - cv2.GaussianBlur(chip, (0, 0), 1.5))
    chip = chip * np.float32(seen.cast) + seen.haze * np.float32([0.6, 0.9, 1.2])
    if seen.cloud:
        cloud = gaussian_filter(rng.standard_normal(chip.shape[:2]), 20)
        cover = seen.cloud * np.clip(0.7 + 0.4 * cloud / cloud.std(), 0, 1)[..., None]
        chip = chip * (1 - cover) + cover * np.float32([0.62, 0.58, 0.56])
    chip = chip + rng.normal(0, 0.01, chip.shape)
    return np.clip(np.rint(chip * 255), 1, 255).astype(np.uint8)
