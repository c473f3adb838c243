"""A ship seen from straight above, as grids, and how a beam of light or of radar falls on it.

Legend: P, Q rows and columns of a plan; A, R rows and columns of a grid that is turned so that a beam runs along its rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from datasets.ships.decks import Part
from datasets.ships.designs import Ship

PLAN_PIXEL = 0.75
"""Metres per pixel of a plan."""

_MARGIN = 24.0  # metres of sea around the hull: room for shadow, layover and a chip's edge


@dataclass(frozen=True)
class Plan:
    """A ship seen from above, PLAN_PIXEL metres per pixel, bow up, the ship's centre in the middle.

    Attributes:
        hull: (P, Q) float32, 1 on the ship, 0 on the sea.
        height: (P, Q) float32, metres above the water.
        paint: (P, Q, 3) float32, reflectance of red, green and blue, 0..1.
        echo: (P, Q) float32, radar backscatter of the surface, linear, with the ship's own bright corners.
    """

    hull: np.ndarray
    height: np.ndarray
    paint: np.ndarray
    echo: np.ndarray


def _covers(part: Part, x: np.ndarray, y: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The rows and columns of a plan around a part, and where in them it is; x (1, Q), y (P, 1) metres."""
    reach = np.hypot(part.width, part.length) / 2 if part.turn else max(part.width, part.length) / 2
    rows = slice(*np.searchsorted(y[:, 0], [part.y - reach, part.y + reach]))
    columns = slice(*np.searchsorted(x[0], [part.x - reach, part.x + reach]))
    dx, dy = x[:, columns] - part.x, y[rows] - part.y
    if part.turn:
        cos, sin = np.cos(part.turn), np.sin(part.turn)
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    if part.round:
        inside = (dx / part.width) ** 2 + (dy / part.length) ** 2 <= 0.25
    else:
        inside = (np.abs(dx) <= part.width / 2) & (np.abs(dy) <= part.length / 2)
    return (rows, columns), inside


@lru_cache(maxsize=1)
def draw_plan(ship: Ship) -> Plan:
    """Rasterise `ship`. The last plan is kept for further views of the same visit: read it only."""
    rows, columns = (round((size / 2 + _MARGIN) / PLAN_PIXEL) * 2 + 1 for size in (ship.length, ship.beam))
    y, x = np.ogrid[:rows, :columns]
    x, y = (x - columns // 2) * PLAN_PIXEL, (y - rows // 2) * PLAN_PIXEL
    inside = np.abs(x) <= ship.half_width(y)
    grain = np.random.default_rng(ship.grain_seed)
    height = np.where(inside, ship.freeboard, 0).astype(np.float32)
    paint = np.broadcast_to(np.float32(ship.deck_paint), (*inside.shape, 3)).copy()
    echo = np.full(inside.shape, ship.deck_echo, np.float32)
    for part in ship.parts:
        where, there = _covers(part, x, y)
        there = there & inside[where]
        height[where][there] = max(ship.freeboard + part.height, 0.5)
        paint[where][there] = part.paint
        echo[where][there] = part.echo
    rail = inside & (np.abs(x) > ship.half_width(y) - 1.2)
    echo[rail] += ship.rail_echo
    paint[rail] = paint[rail] * 0.5 + 0.25
    # Wear of the paint, and a few strong corners among many faint ones.
    wear = gaussian_filter(grain.standard_normal(inside.shape, np.float32), (4.0, 1.5)) + 1
    corners = gaussian_filter(grain.gamma(0.15, 1 / 0.15, inside.shape).astype(np.float32), 0.6)
    return Plan(inside.astype(np.float32), height, np.clip(paint * wear[..., None], 0, 1), echo * corners * inside)


@dataclass(frozen=True)
class Turn:
    """A grid over a plan that is turned so that a beam runs along its rows, from column 0 on.

    Attributes:
        matrix: (2, 3), from pixels (column, row) of the turned grid to pixels of the plan.
        shape: (A, R).
        pixel: metres.
    """

    matrix: np.ndarray
    shape: tuple[int, int]
    pixel: float

    def ahead(self, image: np.ndarray) -> np.ndarray:
        """Resample a plan's grid (P, Q) or (P, Q, 3) onto this one, nearest: walls stay steep."""
        return cv2.warpAffine(image, self.matrix, self.shape[::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)

    def back(self, image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Resample a turned grid (A, R) onto a plan of `shape`."""
        return cv2.warpAffine(image, self.matrix, shape[::-1], flags=cv2.INTER_LINEAR)

    def place(self, matrix: np.ndarray) -> np.ndarray:
        """The map (2, 3) from a chip to this grid, from the map (2, 3) from the chip to the plan."""
        return cv2.invertAffineTransform(self.matrix) @ np.vstack([matrix, [0, 0, 1]])


def turn_plan(shape: tuple[int, int], direction: float, pixel: float, margin: float = 0.0) -> Turn:
    """The turned grid for a beam that travels in `direction` (radians from x to y) over a plan of `shape` (P, Q).

    Args:
        shape: of the plan.
        direction: in the plan, 0 for a beam that travels to starboard.
        pixel: metres of a pixel of the turned grid.
        margin: metres more on every side.
    """
    cos, sin = np.cos(direction), np.sin(direction)
    scale = pixel / PLAN_PIXEL
    high, wide = shape
    rows, columns = (
        int((reach + 2 * margin / PLAN_PIXEL) / scale) + 1
        for reach in (abs(cos) * high + abs(sin) * wide, abs(cos) * wide + abs(sin) * high)
    )
    rotation = scale * np.array([[cos, -sin], [sin, cos]])
    middle = np.array([wide - 1, high - 1]) / 2 - rotation @ np.array([columns - 1, rows - 1]) / 2
    return Turn(np.column_stack([rotation, middle]), (rows, columns), pixel)


def is_lit(height: np.ndarray, slope: float, pixel: float) -> np.ndarray:
    """What a parallel beam reaches that travels along the rows, from column 0 on.

    Args:
        height: (A, R) float32, metres.
        slope: metres that the beam falls per metre of ground; more than 0.
        pixel: metres.

    Returns:
        (A, R) float32, 1 in the beam, 0 in the shadow.
    """
    above = height + np.arange(height.shape[1], dtype=np.float32) * np.float32(slope * pixel)
    return (above >= np.maximum.accumulate(above, axis=1) - 0.3).astype(np.float32)


def lean_over(picture: np.ndarray, height: np.ndarray, direction: float, lean: float) -> np.ndarray:
    """A plan as it is seen at a slant: high things move over what lies behind them, and their walls show.

    Slices of the ship are drawn from the water up, each as far out as it is high; a slice that is not the top is wall.

    Args:
        picture: (P, Q, 3) float32.
        height: (P, Q) float32, metres.
        direction: radians from x to y, toward which things lean.
        lean: metres that a metre of height moves.

    Returns:
        (P, Q, 3) float32.
    """
    leant, size = picture.copy(), picture.shape[1::-1]
    pixels = height * np.float32(lean / PLAN_PIXEL)
    for level in range(1, int(pixels.max()) + 1):
        shift = np.float32([[1, 0, round(np.cos(direction) * level)], [0, 1, round(np.sin(direction) * level)]])
        reached = cv2.warpAffine(pixels, shift, size, flags=cv2.INTER_NEAREST)
        top = cv2.warpAffine(picture, shift, size, flags=cv2.INTER_NEAREST)
        here = reached >= level
        shade = np.where(reached < level + 1, np.float32(1), np.float32(0.55))
        leant[here] = (top * shade[..., None])[here]
    return leant


def chip_placement(
    shape: tuple[int, int], plan_shape: tuple[int, int], pixel: float, shift: np.ndarray, turn: float
) -> np.ndarray:
    """The map (2, 3) from pixels of a chip of `shape` to those of a plan, for an annotator's error.

    Args:
        shape: (H, W) of the chip.
        plan_shape: (P, Q).
        pixel: metres of the chip's pixels.
        shift: (2,) metres (x, y) by which the chip's middle misses the ship's.
        turn: radians by which the chip's axis misses the ship's; pi: the bow is below.
    """
    scale = pixel / PLAN_PIXEL
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    plan_middle = np.array([plan_shape[1] - 1, plan_shape[0] - 1]) / 2 + shift / PLAN_PIXEL
    return np.column_stack([rotation, plan_middle - rotation @ (np.array([shape[1] - 1, shape[0] - 1]) / 2)])
