"""Filters against speckle, the multiplicative noise of coherent imaging. H, W: rows and columns of the chip.

Each estimates the noise from the chip itself and draws no random numbers: one chip has one result. Pixels without a value
(NaN) stay so and take no part.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

LEE_WINDOW = 5
"""Side in pixels of the window of local statistics; a ship is 20 to 60 pixels wide."""

EVEN_PERCENT = 10
"""Share of windows, those that vary least, which are taken to hold speckle alone."""

DYNAMIC_RANGE = 1e4
"""Largest by least value that non-local means tell apart; less is raised to the least."""

NLM_PATCH, NLM_SEARCH = 5, 15
"""Sides in pixels of the patches that are compared and of the window in which they are looked for."""

CLAHE_LIMIT = 2.0
"""A grey level counts at most this many times the mean of its tile's histogram."""

CLAHE_TILE = 32
"""About the side in pixels of a tile with an equalisation of its own; a ship is a few tiles long."""


def lee(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lee filter: the local mean where a window varies as speckle does, the pixel itself where it varies much more.

    x' = m + w (x - m) with w = max(0, 1 - Cu^2 / Ci^2), m and Ci the mean and the coefficient of variation in a window, Cu that
    of speckle (Lee 1980, "Digital image enhancement and noise filtering by use of local statistics"; weights in the form of
    Lopes et al. 1990). Cu is read from the chip, see `EVEN_PERCENT`, so that neither number of looks nor unit need be known.

    Args:
        values: (H, W), at least 0 or NaN: speckle multiplies intensities or amplitudes.

    Returns:
        (H, W) float32, within the range of `values`.

    Raises:
        ValueError: values below 0, as in decibels.
    """
    largest = _largest(values)
    if largest == 0:
        return values
    known = ~np.isnan(values)
    scaled = np.where(known, values, 0).astype(np.float64) / largest  # their squares stay in range, whatever the unit
    mean = _window_mean(scaled, known)
    variance = np.maximum(_window_mean(scaled**2, known) - mean**2, 0)
    variation = variance / np.maximum(mean**2, np.finfo(np.float64).tiny)
    speckle = np.percentile(variation[known], EVEN_PERCENT)
    weight = np.maximum(0, 1 - speckle / np.maximum(variation, np.finfo(np.float64).tiny))
    filtered = mean + weight * (scaled - mean)
    filtered = np.clip(filtered * largest, np.nanmin(values), largest)
    return np.where(known, filtered, np.nan).astype(np.float32)


def _largest(values: NDArray[np.float32]) -> np.float32:
    """The largest value, if none is below 0."""
    if np.nanmin(values) < 0:
        raise ValueError("has values below 0 (decibels?), which the SAR renderings 'lee' and 'nlm' cannot filter")
    return np.nanmax(values)


def _window_mean(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means of the known values of each window; the others are 0."""
    mean = cv2.blur(values, (LEE_WINDOW, LEE_WINDOW), borderType=cv2.BORDER_REFLECT)
    if known.all():
        return mean
    share = cv2.blur(known.astype(np.float64), (LEE_WINDOW, LEE_WINDOW), borderType=cv2.BORDER_REFLECT)
    return mean / np.maximum(share, 1 / LEE_WINDOW**2)


def non_local_means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Non-local means (Buades et al. 2005) of logarithms: each pixel becomes a mean of those in patches that look alike.

    In logarithms speckle is a noise that is added, as strong in bright parts as in dark ones. The filter's strength is that
    noise, see `noise_deviation`. Logarithms are cut to 8 bits, steps of 4 %, far below speckle.

    Args, Returns and Raises: as for `lee`.
    """
    largest = _largest(values)
    if largest == 0:
        return values
    known = ~np.isnan(values)
    step = np.log(DYNAMIC_RANGE) / 255
    values = fill_nearest(values, known)
    levels = 255 + np.log(np.maximum(values.astype(np.float64) / largest, 1 / DYNAMIC_RANGE)) / step
    levels = levels.round().astype(np.uint8)
    strength = noise_deviation(np.where(known, levels, np.nan))
    if strength == 0:
        return np.where(known, values, np.float32(np.nan))
    levels = cv2.fastNlMeansDenoising(levels, h=strength, templateWindowSize=NLM_PATCH, searchWindowSize=NLM_SEARCH)
    filtered = largest * np.exp((levels.astype(np.float64) - 255) * step)
    return np.where(known, filtered, np.nan).astype(np.float32)


def fill_nearest(values: NDArray, known: NDArray[np.bool_]) -> NDArray:
    """Give every pixel that is not known the value of the nearest one that is; `known` (H, W) is True somewhere."""
    if known.all():
        return values
    rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return values[rows, columns]


def noise_deviation(picture: NDArray) -> float:
    """The standard deviation of a picture's noise in grey levels; NaN is no level, and 0 comes of a picture without neighbours.

    From the median difference of neighbouring pixels, which edges hardly move.
    """
    levels = picture.astype(np.float64)
    differences = np.concatenate([np.abs(np.diff(levels, axis=axis)).ravel() for axis in (0, 1)])
    differences = differences[~np.isnan(differences)]
    # The median magnitude of a normal variable is 0.6745 deviations; a difference has twice the variance.
    return float(np.median(differences) / 0.6745 / np.sqrt(2)) if differences.size else 0.0


def equalise(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994), in tiles of about `CLAHE_TILE` pixels.

    Args:
        picture: (H, W), one band.

    Returns:
        (H, W) uint8; a picture of one grey level as it is.
    """
    if picture.min() == picture.max():
        return picture
    height, width = picture.shape
    tiles = (max(1, round(width / CLAHE_TILE)), max(1, round(height / CLAHE_TILE)))
    return cv2.createCLAHE(clipLimit=CLAHE_LIMIT, tileGridSize=tiles).apply(picture)
