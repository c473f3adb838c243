"""SAR values to 8-bit pictures. H, W: rows and columns of the chip.

Pixels without a value (NaN) take no part in what is computed of the others, and come out black.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from datasets.despeckle import equalise, fill_nearest, lee, non_local_means
from utils.errors import UsageError

SarRendering = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Values (H, W) float32, finite or NaN, not all NaN -> picture (H, W, 3) uint8."""

ORDINARY = 1e-3
"""Least range of values at which the 1e-8 that the released program adds to it is a rounding error; units with smaller values
are changed first. The chips of HOSS have ranges from 1 on."""


def render_percentile(values: NDArray[np.float32], *, low: float = 5.0, high: float = 100.0) -> NDArray[np.uint8]:
    """Stretch the values between two percentiles of the chip to 0..255: the denoising of MOS.

    Speckle fills the lowest values, so the lower percentile cuts it. Float32 throughout and in this order of operations: in
    float64 the brightest pixel would come out as 254.

    Args:
        values: (H, W) float32, in any unit.
        low: percentile that becomes 0, in 0..100.
        high: percentile that becomes 255, above `low`, in 0..100.

    Returns:
        (H, W, 3) uint8, three equal bands; black where all values are the same.
    """
    floor, ceiling = np.percentile(values[~np.isnan(values)], [low, high]).astype(np.float32)
    if 0 < ceiling - floor < ORDINARY:
        # By a power of two, so that no digit changes.
        factor = np.exp2(np.minimum(-np.floor(np.log2(ceiling - floor)), np.float32(126)))
        values, floor, ceiling = values.clip(floor, ceiling) * factor, floor * factor, ceiling * factor
    scaled = (values - floor) / (ceiling - floor + np.float32(1e-8)) * np.float32(255)
    return _three_bands(scaled)


def render_max(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Divide by the largest value of the chip: the rendering of TransOSS.

    Args:
        values: (H, W) float32. Values below 0 come out black.

    Returns:
        (H, W, 3) uint8, three equal bands; black where all values are 0.

    Raises:
        ValueError: no value is above 0 and some are below, as in decibels.
    """
    largest = np.nanmax(values)
    if largest > 0:
        return _three_bands(values / largest * np.float32(255))
    if np.nanmin(values) < 0:
        raise ValueError("has no value above 0 (decibels?), which the SAR rendering 'max' cannot show; use 'percentile'")
    return _three_bands(values)


def render_filtered(values: NDArray[np.float32], *, name: str, low: float = 5.0, high: float = 100.0) -> NDArray[np.uint8]:
    """Stretch as `render_percentile` and filter as well; no released program does so.

    Args:
        values: (H, W) float32; for 'lee' and 'nlm' not below 0.
        name: 'lee' and 'nlm' (non-local means) filter the values before they are stretched, 'clahe' (contrast-limited
            equalisation) the stretched picture.
        low, high: percentiles, as for `render_percentile`.

    Returns:
        (H, W, 3) uint8, three equal bands.

    Raises:
        ValueError: values below 0, as in decibels, for 'lee' and 'nlm'.
    """
    if name == "clahe":
        known = ~np.isnan(values)
        grey = np.ascontiguousarray(render_percentile(values, low=low, high=high)[..., 0])
        return _three_bands(np.where(known, equalise(fill_nearest(grey, known)), 0))
    despeckle = {"lee": lee, "nlm": non_local_means}[name]
    return render_percentile(despeckle(values), low=low, high=high)


def build_sar_rendering(name: str, *, low: float = 5.0, high: float = 100.0) -> SarRendering:
    """Choose the rendering that INPUT.SAR_DENOISE names.

    Args:
        name: 'percentile' (MOS), 'max' (TransOSS), or of `render_filtered` 'lee', 'nlm' or 'clahe'.
        low: lower percentile, read by all but 'max'.
        high: upper percentile, read by all but 'max'.

    Raises:
        UsageError: an unknown name, or percentiles that are not 0 <= low < high <= 100.
    """
    if not 0 <= low < high <= 100:
        raise UsageError(f"INPUT.SAR_LOW_PERCENT {low} and INPUT.SAR_HIGH_PERCENT {high} must satisfy 0 <= low < high <= 100")
    renderings = {"percentile": partial(render_percentile, low=low, high=high), "max": render_max}
    renderings |= {kind: partial(render_filtered, name=kind, low=low, high=high) for kind in ("lee", "nlm", "clahe")}
    if name not in renderings:
        raise UsageError(f"INPUT.SAR_DENOISE cannot be {name!r}; choose one of {', '.join(renderings)}")
    return renderings[name]


def _three_bands(scaled: NDArray) -> NDArray[np.uint8]:
    """Clip to 0..255, truncate, NaN to 0, repeat to three bands."""
    return np.repeat(np.nan_to_num(scaled.clip(0, 255), nan=0).astype(np.uint8)[..., None], 3, axis=2)
