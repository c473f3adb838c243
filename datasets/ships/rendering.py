"""Procedural ships: one record, seen by an optical and by a SAR sensor.

A ship is a hull and a list of deck parts. Both sensors look at the same plan of it (heights, paint, radar echo), so what they
share is what two real chips of a ship share: outline and the layout of what stands on deck. Paint is seen by the optical
sensor only; echo strength by the SAR only. Chips are like those of HOSS ReID: tight around the ship, bow up, optical 8-bit RGB
at 0.75 m, SAR float32 at 1 m with values between 0 and about 11.

Legend: H, W rows and columns of a chip; P, Q rows and columns of a plan. Metres run from the ship's centre: x to starboard,
y aft. Randomness: a ship is fixed by the generator that draws it, a view by the one given to the renderer.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from datasets.ships.designs import Ship

OPTICAL_PIXEL = 0.75
"""Metres per pixel of an optical chip."""
SAR_PIXEL = 1.0
"""Metres per pixel of a SAR chip."""
PLAN_PIXEL = 0.5
"""Metres per pixel of a plan."""
SAR_CEILINGS = (2.4, 4.8, 6.9, 11.0)
"""Largest values of the products that HOSS mixes."""

_PLAN_MARGIN = 24.0  # metres of sea around the hull: room for shadow and layover


@dataclass(frozen=True)
class Plan:
    """A ship seen from above, PLAN_PIXEL metres per pixel, bow up, the ship's centre in the middle.

    Attributes:
        hull: (P, Q) float32, 1 on the ship, 0 on the sea.
        height: (P, Q) float32, metres above the water.
        paint: (P, Q, 3) float32, reflectance of red, green and blue, 0..1.
        echo: (P, Q) float32, radar backscatter of the surface from above, linear; the open deck of most ships is about 0.1.
    """

    hull: np.ndarray
    height: np.ndarray
    paint: np.ndarray
    echo: np.ndarray


@lru_cache(maxsize=1)
def draw_plan(ship: Ship) -> Plan:
    """Rasterise `ship`. The last plan is kept for further views of the same ship: read it only."""
    rows, columns = (round((size / 2 + _PLAN_MARGIN) / PLAN_PIXEL) * 2 + 1 for size in (ship.length, ship.beam))
    y, x = np.ogrid[:rows, :columns]
    x, y = (x - columns // 2) * PLAN_PIXEL, (y - rows // 2) * PLAN_PIXEL
    inside = np.abs(x) <= ship.half_width(y)
    grain = np.random.default_rng(ship.grain_seed)
    height = np.where(inside, ship.freeboard, 0).astype(np.float32)
    paint = np.broadcast_to(np.float32(ship.deck_paint), (*inside.shape, 3)).copy()
    echo = np.full(inside.shape, ship.deck_echo, np.float32)
    for part in ship.parts:
        if part.round:
            where = ((x - part.x) / part.width) ** 2 + ((y - part.y) / part.length) ** 2 <= 0.25
        else:
            where = (np.abs(x - part.x) <= part.width / 2) & (np.abs(y - part.y) <= part.length / 2)
        where = where & inside
        height[where] = ship.freeboard + part.height
        paint[where] = part.paint
        echo[where] = part.echo
    rail = inside & (np.abs(x) > ship.half_width(y) - 1.2)
    echo[rail] += ship.rail_echo
    # Small fittings: specks of paint, and a few strong corners among many faint ones.
    wear = gaussian_filter(grain.standard_normal(inside.shape, np.float32), 1.0) * 0.2 + 1
    corners = gaussian_filter(grain.gamma(0.1, 10.0, inside.shape).astype(np.float32), 0.8)
    return Plan(inside.astype(np.float32), height, np.clip(paint * wear[..., None], 0, 1), echo * corners * inside)


def _shift(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Move `image` (P, Q) by (dx, dy) pixels, rounded; what enters is 0."""
    matrix = np.float32([[1, 0, round(dx)], [0, 1, round(dy)]])
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_NEAREST)


def cast_shadow(height: np.ndarray, direction: tuple[float, float], slope: float) -> np.ndarray:
    """Find what a parallel beam does not reach.

    Args:
        height: (P, Q) float32, metres.
        direction: unit vector (x, y) in which shadows fall.
        slope: metres that the beam falls per metre of ground; more than 0.

    Returns:
        (P, Q) float32, 1 in shadow, 0 in light.
    """
    dark = np.zeros(height.shape, bool)
    reach = min(float(height.max()) / slope, _PLAN_MARGIN)
    for distance in np.arange(1.0, reach + 1.0, 1.5):
        steps = distance / PLAN_PIXEL
        dark |= _shift(height, direction[0] * steps, direction[1] * steps) - distance * slope > height + 0.5
    return dark.astype(np.float32)


def _placement(shape: tuple[int, int], plan_shape: tuple[int, int], pixel: float, rng: Generator) -> np.ndarray:
    """Draw a small turn and shift; return the (2, 3) map from chip pixels to plan pixels."""
    turn = np.deg2rad(rng.normal(0, 1.2))
    scale = pixel / PLAN_PIXEL
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.array([shape[1] - 1, shape[0] - 1]) / 2 + rng.normal(0, 0.015, 2) * shape[::-1]
    plan_middle = np.array([plan_shape[1] - 1, plan_shape[0] - 1]) / 2
    return np.column_stack([rotation, plan_middle - rotation @ middle])


def _to_chip(image: np.ndarray, shape: tuple[int, int], placement: np.ndarray) -> np.ndarray:
    """Resample a plan image (P, Q) or (P, Q, 3) onto a chip's grid, 0 outside."""
    return cv2.warpAffine(image, placement, shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _chip_shape(ship: Ship, pixel: float, *, widen: float, spread: float, rng: Generator) -> tuple[int, int]:
    """Draw (H, W) of a chip: the ship and a margin that varies, as annotations do, by `spread` of the length."""
    height = ship.length * max(rng.normal(1.11, spread), 1.02) / pixel
    width = ship.beam * widen * max(rng.normal(1.26, 2 * spread), 1.08) / pixel
    return max(round(height), 40), max(round(width), 12)


def render_optical(ship: Ship, rng: Generator) -> np.ndarray:
    """See `ship` from an optical satellite: sun, sea state, haze, colour and gain differ from view to view.

    Returns:
        (H, W, 3) uint8, 0.75 m per pixel.
    """
    plan = draw_plan(ship)
    angle = rng.uniform(0, 2 * np.pi)
    shadow = cast_shadow(plan.height, (np.cos(angle), np.sin(angle)), np.tan(np.deg2rad(rng.uniform(40, 65))))
    # A wall or crown that faces the sun is brighter; this also draws the dark seams between hatches.
    facing = np.gradient(plan.height, axis=1) * np.cos(angle) + np.gradient(plan.height, axis=0) * np.sin(angle)
    light = (1 - 0.6 * shadow) * np.clip(1 + 0.06 * facing, 0.5, 1.4)
    shape = _chip_shape(ship, OPTICAL_PIXEL, widen=1.0, spread=0.036, rng=rng)
    placement = _placement(shape, plan.hull.shape, OPTICAL_PIXEL, rng)
    cover = _to_chip(plan.hull, shape, placement)[..., None]
    sea = _optical_sea(ship, shape, rng) * (1 - 0.6 * _to_chip(shadow, shape, placement)[..., None])
    chip = sea * (1 - cover) + _to_chip(plan.paint * (light * plan.hull)[..., None], shape, placement)
    chip = gaussian_filter(chip, (0.6, 0.6, 0))
    cast = rng.normal(1, 0.05, 3) * rng.uniform(0.7, 1.3)
    chip = chip * cast + rng.uniform(0, 0.04) * np.array([0.7, 0.9, 1.1])  # haze is bluish
    chip = np.clip(chip, 0, 1) ** rng.uniform(0.9, 1.15) + rng.normal(0, 0.012, chip.shape)
    return np.clip(np.rint(chip * 255), 1, 255).astype(np.uint8)


def _optical_sea(ship: Ship, shape: tuple[int, int], rng: Generator) -> np.ndarray:
    """Paint water with swell, and a wake below the stern of a ship under way: (H, W, 3), reflectance."""
    colour = np.array([[0.02, 0.04, 0.07], [0.03, 0.06, 0.06], [0.02, 0.03, 0.035], [0.08, 0.12, 0.13]])[rng.integers(4)]
    swell = gaussian_filter(rng.standard_normal(shape, np.float32), (rng.uniform(0.6, 1.5), rng.uniform(1, 3)))
    sea = colour * (1 + rng.uniform(0.1, 0.5) * (swell / swell.std())[..., None])
    if rng.random() < 0.35:
        y, x = np.ogrid[: shape[0], : shape[1]]
        spread = 0.2 * ship.beam / OPTICAL_PIXEL * (1 + rng.uniform(0, 0.5))
        wake = np.exp(-(((x - shape[1] / 2) / spread) ** 2)) * (y > shape[0] * 0.9)
        sea += rng.uniform(0.1, 0.4) * (wake * np.clip(swell / swell.std() + 1, 0, 2))[..., None]
    return np.clip(sea, 0, 1)


def render_sar(ship: Ship, rng: Generator) -> np.ndarray:
    """See `ship` from a SAR satellite: side of look, incidence, sea state, speckle and product differ from view to view.

    Steep faces towards the radar shine, high things lean towards it (layover) and throw a shadow away from it, the strongest
    echoes leave a cross of sidelobes, and speckle multiplies all of it.

    Returns:
        (H, W) float32, 1 m per pixel, 0 to about 11.
    """
    plan = draw_plan(ship)
    towards = 1.0 if rng.random() < 0.5 else -1.0  # the side on which the radar is
    incidence = np.deg2rad(rng.uniform(28, 48))
    shadow = cast_shadow(plan.height, (-towards, 0.0), 1 / np.tan(incidence))
    across = np.maximum(np.gradient(plan.height, axis=1) * -towards, 0)
    along = np.abs(np.gradient(plan.height, axis=0))
    echo = plan.echo * (1 - 0.9 * shadow) + 0.15 * across + 0.12 * along
    echo *= rng.gamma(2.0, 0.5, echo.shape).astype(np.float32)  # scintillation: which corner shines depends on the angle
    lean = towards * plan.height * 0.35 / np.tan(incidence) / PLAN_PIXEL
    y, x = np.mgrid[: echo.shape[0], : echo.shape[1]]
    landing = np.clip(np.rint(x + lean).astype(int), 0, echo.shape[1] - 1)
    leant = np.zeros(echo.shape, np.float32)
    np.add.at(leant, (y, landing), echo)
    shape = _chip_shape(ship, SAR_PIXEL, widen=1.12, spread=0.05, rng=rng)
    placement = _placement(shape, plan.hull.shape, SAR_PIXEL, rng)
    power = cv2.filter2D(_to_chip(leant, shape, placement), -1, _sar_response(towards, rng), borderType=cv2.BORDER_CONSTANT)
    power = np.maximum(power, 0) * rng.uniform(0.6, 1.6) + _sar_sea(shape, rng)
    amplitude = np.sqrt(power * _speckle(shape, looks=int(rng.integers(1, 3)), rng=rng))
    return (rng.choice(SAR_CEILINGS) * np.tanh(0.45 * amplitude)).astype(np.float32)


def _sar_sea(shape: tuple[int, int], rng: Generator) -> np.ndarray:
    """Draw the sea's backscatter (H, W): very dark, with a slow swell."""
    swell = gaussian_filter(rng.standard_normal(shape), 4)
    return 10 ** rng.uniform(-4.6, -3.6) * np.exp(0.5 * swell / swell.std())


def _speckle(shape: tuple[int, int], *, looks: int, rng: Generator) -> np.ndarray:
    """Draw speckle (H, W) of mean 1: power of a complex Gaussian field, correlated over two pixels (an oversampled image)."""
    field = gaussian_filter(rng.standard_normal((2 * looks, *shape), np.float32), (0, 0.7, 0.7))
    power = (field**2).sum(0)
    return power / power.mean()


def _sar_response(towards: float, rng: Generator) -> np.ndarray:
    """Build the point response (41, 41).

    A blurred point; faint, slightly turned arms along range and azimuth; and a trail away from the radar, which lies `towards`
    (1 starboard, -1 port): echoes that went to and fro on board come later.
    """
    reach = np.arange(-20, 21)
    turn = rng.normal(0, 0.12)
    x = reach[None] * np.cos(turn) + reach[:, None] * np.sin(turn)
    y = reach[:, None] * np.cos(turn) - reach[None] * np.sin(turn)
    core = np.exp(-(x**2 + y**2) / (2 * 0.6**2))
    arms = np.exp(-(x**2) / 0.5) / (1 + np.abs(y)) ** 1.5 + np.exp(-(y**2) / 0.5) / (1 + np.abs(x)) ** 1.5
    late = -towards * x
    trail = np.where(late > 0, np.exp(-late / 6 - (y / (1 + 0.2 * np.abs(late))) ** 2), 0)
    return (core / core.sum() + 10 ** rng.uniform(-2.4, -1.8) * arms + rng.uniform(0.02, 0.12) * trail / trail.sum()).astype(
        np.float32
    )
