"""What chips look like, in numbers: to tell how far rendered chips are from real ones.

Legend: H, W rows and columns of a chip; N chips; metres as the chip's sensor has them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.optimize import minimize

from datasets.records import Modality
from datasets.ships.optical import OPTICAL_PIXEL
from datasets.ships.radar import SAR_PIXEL
from datasets.transforms import GREY, resize

PIXELS = {Modality.OPTICAL: OPTICAL_PIXEL, Modality.SAR: SAR_PIXEL}
"""Metres per pixel of a sensor's chips."""

_FREQUENCIES = (0.03, 0.35)  # cycles per pixel: below is the ship's outline, above the sensor's blur
_SMALL = (64, 16)


def grey_values(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture (H, W, 3) in grey (H, W), 0..1."""
    return picture.astype(np.float32) @ np.float32(GREY) / np.float32(255 * sum(GREY))


def describe_picture(picture: NDArray[np.uint8], modality: Modality) -> dict[str, float]:
    """Statistics of a chip as the networks see it, by name.

    Args:
        picture: (H, W, 3), of a SAR chip its rendering.
        modality: its sensor.
    """
    grey, pixel = grey_values(picture), PIXELS[modality]
    area = grey.size * pixel**2
    peaks = (grey == maximum_filter(grey, 3)) & (grey > 0.5 * grey.max())
    found = {
        "length, m": grey.shape[0] * pixel,
        "width, m": grey.shape[1] * pixel,
        "mean grey": float(grey.mean()),
        "10 % of pixels below": float(np.percentile(grey, 10)),
        "median grey": float(np.median(grey)),
        "10 % of pixels above": float(np.percentile(grey, 90)),
        "contrast, std / mean": float(grey.std() / max(grey.mean(), 1e-6)),
        "spectrum slope along": spectrum_slope(grey),
        "spectrum slope across": spectrum_slope(grey.T),
        "neighbours alike along": _likeness(grey[1:], grey[:-1]),
        "neighbours alike across": _likeness(grey[:, 1:], grey[:, :-1]),
        "bright points in 1,000 m2": float(1000 * peaks.sum() / area),
    }
    if modality is Modality.OPTICAL:
        bands = picture.astype(np.float32).reshape(-1, 3).mean(axis=0)
        brightest = np.maximum(picture.max(axis=2), 1)
        found["saturation"] = float(((brightest - picture.min(axis=2)) / brightest).mean())
        found["blue / red"] = float(bands[2] / max(bands[0], 1))
    return found


def spectrum_slope(grey: NDArray[np.float32]) -> float:
    """Slope of log power over log frequency along the rows' direction (axis 0), between `_FREQUENCIES` cycles a pixel."""
    window = np.hanning(len(grey))[:, None]
    power = np.square(np.abs(np.fft.rfft((grey - grey.mean(axis=0)) * window, axis=0))).mean(axis=1)
    frequency = np.fft.rfftfreq(len(grey))
    inside = (frequency >= _FREQUENCIES[0]) & (frequency <= _FREQUENCIES[1])
    return float(np.polyfit(np.log(frequency[inside]), np.log(power[inside] + 1e-12), 1)[0])


def _likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Correlation of two equal shapes; 0 where one is constant."""
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / max(np.sqrt((first**2).sum() * (second**2).sum()), 1e-12))


def pixel_features(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Grey pictures shrunk to 64 x 16, less their mean, of norm 1: (N, 1024). A product of two is their correlation."""
    small = [grey_values(resize(picture, _SMALL, 3)).ravel() for picture in pictures]
    centred = np.stack(small) - np.mean(small, axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)


def tell_apart(values: NDArray[np.float64], labels: NDArray[np.bool_], groups: Sequence, folds: int = 5) -> NDArray[np.bool_]:
    """Which of some chips a logistic regression puts on the right side that has not seen chips of their group.

    Args:
        values: (N, F) statistics, finite.
        labels: (N,) which of two sides each is of.
        groups: (N,) such as ships; those of one group are in one fold.
        folds: parts that the groups are cut into, each in turn what is tested.

    Returns:
        (N,) whether each is told right.
    """
    _, group = np.unique(np.array([str(name) for name in groups]), return_inverse=True)
    fold = np.random.default_rng(0).permutation(group.max() + 1)[group] % folds
    right = np.zeros(len(values), bool)
    for part in range(folds):
        train, test = fold != part, fold == part
        mean, spread = values[train].mean(axis=0), values[train].std(axis=0) + 1e-9
        scaled = np.clip((values - mean) / spread, -5, 5)
        weights = _fit_logistic(scaled[train], labels[train])
        right[test] = (scaled[test] @ weights[1:] + weights[0] > 0) == labels[test]
    return right


def _fit_logistic(values: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (1 + F,), the constant first, of a logistic regression with a unit Gaussian prior and sides of equal weight."""
    inputs, signs = np.column_stack([np.ones(len(values)), values]), np.where(labels, 1.0, -1.0)
    share = np.where(labels, 0.5 / max(labels.mean(), 1e-9), 0.5 / max(1 - labels.mean(), 1e-9))

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = signs * (inputs @ weights)
        slope = -signs * share / (1 + np.exp(np.clip(margin, -50, 50)))
        prior = np.append(0.0, weights[1:])
        return float((share * np.logaddexp(0, -margin)).sum() + prior @ prior / 2), slope @ inputs + prior

    return minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x


def mean_distances(features: NDArray[np.float32], ships: Sequence) -> Mapping[str, NDArray[np.float64]]:
    """For each chip its mean distance (1 - correlation) to others of its ship, NaN where there are none, and of other ships.

    Args:
        features: (N, D), of norm 1.
        ships: (N,).

    Returns:
        'within ships' and 'between ships', (N,) each.
    """
    names = np.array([str(ship) for ship in ships])
    distance = 1 - features.astype(np.float64) @ features.T
    same = names[:, None] == names[None]
    own, others = same & ~np.eye(len(names), dtype=bool), ~same
    count, rest = own.sum(axis=1), others.sum(axis=1)
    within = np.where(count, (distance * own).sum(axis=1) / np.maximum(count, 1), np.nan)
    return {"within ships": within, "between ships": (distance * others).sum(axis=1) / np.maximum(rest, 1)}
