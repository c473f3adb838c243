"""What all pictures of one pass of a satellite share: the sun, the sea and the haze; the radar's side, angle and product.

A scene is a roadstead on a day: its ships lie about alike, and its cameras pass over it within minutes, so that two pictures by
one sensor are near-duplicates, as in HOSS. Angles are in radians, from x to y of a map whose ships all have heading 0; a berth
turns them into the frame of its ship.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.random import Generator

SAR_CEILINGS = (2.4, 4.8, 6.9, 11.0)
"""Largest values of the products that HOSS mixes, one a scene."""

_SEAS = ((0.02, 0.07, 0.14), (0.02, 0.05, 0.05), (0.015, 0.02, 0.02), (0.04, 0.11, 0.17), (0.03, 0.06, 0.04))


@dataclass(frozen=True)
class OpticalPass:
    """A pass of an optical satellite.

    Attributes:
        direction: in which shadows fall.
        sun_slope: metres that sunlight falls per metre of ground.
        lean_direction, lean: how far from straight above the satellite is: metres that a metre of height moves, and whither.
        sea: reflectance of red, green and blue, 0..1.
        swell: contrast of the waves.
        cast: (3,) factors of the bands: calibration and air.
        haze: brightness that the air adds, 0..1.
        cloud: how much thin cloud hides, 0..1; 0 in most passes.
        sharpness: of the product's sharpening filter, 0..1.
    """

    direction: float
    sun_slope: float
    lean_direction: float
    lean: float
    sea: tuple[float, float, float]
    swell: float
    cast: tuple[float, float, float]
    haze: float
    cloud: float
    sharpness: float


@dataclass(frozen=True)
class RadarPass:
    """A pass of a radar satellite.

    Attributes:
        direction: in which its beam travels.
        incidence: from straight above.
        looks: independent pictures that are averaged: 1 is full speckle.
        ceiling: largest value of the product.
        gain: from the square root of power to the product's scale, before it saturates.
        sea: backscatter of the water, linear.
        smear: metres along azimuth over which a ship that moves is smeared.
        side_lobes: amplitude of a side lobe next to its point, squared.
        multipath: share of the power that went to and fro on board, and comes spread.
        resolution: metres, the standard deviation of a point's echo.
    """

    direction: float
    incidence: float
    looks: int
    ceiling: float
    gain: float
    sea: float
    smear: float
    side_lobes: float
    multipath: float
    resolution: float


@dataclass(frozen=True)
class Berth:
    """How a ship lies in a scene.

    Attributes:
        heading: of its bow.
        bow_down: whether its chips have the bow below.
    """

    heading: float
    bow_down: bool


Pass = TypeVar("Pass", OpticalPass, RadarPass)


def draw_optical_pass(scene: Generator, camera: Generator, *, variety: float) -> OpticalPass:
    """Draw a pass: the scene's sun, sea and product, and what is the camera's own. `variety`: see `datasets.ships.world`."""
    warm, bright = np.array([1.0, 0.3, -1.0]), scene.uniform(0.8, 1.45)
    cast = scene.normal(1, 0.05, 3) + scene.normal(0, 0.15) * warm
    cast += variety * (camera.normal(0, 0.05, 3) + camera.normal(0, 0.15) * warm)
    return OpticalPass(
        direction=float(scene.uniform(0, 2 * np.pi)),
        sun_slope=float(np.tan(scene.uniform(0.5, 1.0))),
        sea=tuple(np.array(_SEAS[scene.integers(len(_SEAS))]) * scene.uniform(0.5, 1.2)),
        swell=float(scene.uniform(0.03, 0.2)),
        lean_direction=float(camera.uniform(0, 2 * np.pi)),
        lean=float(np.tan(camera.uniform(0.0, 0.45) * variety)),
        cast=tuple(cast * bright * np.exp(camera.normal(0, 0.2) * variety)),
        haze=float(camera.uniform(0, 0.05)),
        cloud=float(camera.uniform(0.2, 0.7)) if camera.random() < 0.06 * variety else 0.0,
        sharpness=float(scene.uniform(0.3, 1.0)),
    )


def draw_radar_pass(scene: Generator, camera: Generator, *, variety: float) -> RadarPass:
    """Draw a pass: the scene's product, sea and geometry, and what is the camera's own. `variety`: see `datasets.ships.world`.

    Without variety every beam comes from port at an incidence of 0.65 radians.
    """
    return RadarPass(
        ceiling=float(SAR_CEILINGS[scene.integers(len(SAR_CEILINGS))]),
        sea=float(10 ** scene.uniform(-6.3, -5.3)),
        gain=float(scene.uniform(0.6, 1.15)),
        direction=float((scene.uniform(-np.pi, np.pi) + camera.normal(0, 0.1)) * variety),
        incidence=float(0.65 + (scene.uniform(-0.2, 0.2) + camera.normal(0, 0.03)) * variety),
        looks=int(scene.choice([1, 1, 2, 4])),
        smear=float(camera.exponential(0.8)),
        side_lobes=float(10 ** camera.uniform(-3.6, -1.5)),
        multipath=float(10 ** camera.uniform(-2.0, -0.8)),
        resolution=float(scene.uniform(0.55, 0.85)),
    )


def draw_berth(scene: Generator, ship: Generator, *, variety: float) -> Berth:
    """Draw how a ship lies: about as the others, a few across; the bow is above or below in all chips of a scene.

    Without variety all ships lie at heading 0 and their bows are above.
    """
    across = ship.uniform(0, 2 * np.pi) if ship.random() < 0.15 else 0.0
    return Berth(float(ship.normal(0, 0.2) + across) * variety, bool(scene.random() < 0.5 * variety))


def seen_from(passing: Pass, berth: Berth) -> Pass:
    """The pass in the frame of a ship."""
    turned = {"direction": passing.direction - berth.heading}
    if isinstance(passing, OpticalPass):
        turned["lean_direction"] = passing.lean_direction - berth.heading
    return replace(passing, **turned)
