"""SAR values to 8-bit pictures. H, W: rows and columns of the chip."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from utils.errors import UsageError

SarRendering = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Finite values (H, W) float32 -> picture (H, W, 3) uint8."""


def render_percentile(values: NDArray[np.float32], *, low: float = 5.0, high: float = 100.0) -> NDArray[np.uint8]:
    """Stretch the values between two percentiles of the chip to 0..255: the denoising of MOS.

    Speckle fills the lowest values, so the lower percentile cuts it. Float32 throughout and in this order of operations: in
    float64 the brightest pixel would come out as 254.

    Args:
        values: (H, W) float32, finite, in any unit.
        low: percentile that becomes 0, in 0..100.
        high: percentile that becomes 255, above `low`, in 0..100.

    Returns:
        (H, W, 3) uint8, three equal bands; black where all values are the same.
    """
    floor, ceiling = np.percentile(values, [low, high]).astype(np.float32)
    scaled = (values - floor) / (ceiling - floor + np.float32(1e-8)) * np.float32(255)
    return _three_bands(scaled)


def render_max(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Divide by the largest value of the chip: the rendering of TransOSS.

    Args:
        values: (H, W) float32, finite. Values below 0 come out black.

    Returns:
        (H, W, 3) uint8, three equal bands; black where all values are 0.

    Raises:
        ValueError: no value is above 0 and some are below, as in decibels.
    """
    largest = values.max()
    if largest > 0:
        return _three_bands(values / largest * np.float32(255))
    if values.min() < 0:
        raise ValueError("has no value above 0 (decibels?), which the SAR rendering 'max' cannot show; use 'percentile'")
    return _three_bands(values)


def build_sar_rendering(name: str, *, low: float = 5.0, high: float = 100.0) -> SarRendering:
    """Choose the rendering that INPUT.SAR_DENOISE names.

    Args:
        name: 'percentile' (MOS) or 'max' (TransOSS).
        low: lower percentile, read by 'percentile' only.
        high: upper percentile, read by 'percentile' only.

    Raises:
        UsageError: an unknown name, or percentiles that are not 0 <= low < high <= 100.
    """
    if not 0 <= low < high <= 100:
        raise UsageError(f"INPUT.SAR_LOW_PERCENT {low} and INPUT.SAR_HIGH_PERCENT {high} must satisfy 0 <= low < high <= 100")
    renderings = {"percentile": partial(render_percentile, low=low, high=high), "max": render_max}
    if name not in renderings:
        raise UsageError(f"INPUT.SAR_DENOISE cannot be {name!r}; choose one of {', '.join(renderings)}")
    return renderings[name]


def _three_bands(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Clip to 0..255, truncate, repeat to three bands."""
    return np.repeat(scaled.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
