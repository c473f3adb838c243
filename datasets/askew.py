"""Chips in which the ship does not stand upright: noticed from the picture, and turned.

Upright chips of diagonal ships are common (OpenSARShip), and TransOSS knows ships only that stand upright.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ASKEW = 20.0
"""Degrees from which a chip is called askew; annotators and layover make a few degrees."""

LEAST_ELONGATION = 2.5
"""Length by width of what stands out, from which it has an axis."""

MARGIN = (1.1, 1.25)
"""Height and width of a turned chip by those of its ship, as in HOSS."""


@dataclass(frozen=True)
class Axis:
    """Where a ship lies in a chip, as far as brightness tells.

    Attributes:
        angle: degrees from the top to its axis, clockwise, above -90 up to 90.
        middle: column and row of its middle.
        length, width: in pixels.
    """

    angle: float
    middle: tuple[float, float]
    length: float
    width: float


def ship_axis(picture: NDArray[np.uint8]) -> Axis | None:
    """Estimate the axis of the ship in a picture (H, W, 3).

    What differs from the sea at the chip's border, by Otsu's threshold (1979), is taken for the ship; its axis is that of
    largest variance.

    Returns:
        None where nothing stands out, or nothing that is longer than wide.
    """
    values = picture.astype(np.float32)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    contrast = cv2.GaussianBlur(np.abs(values - np.median(border, axis=0)).mean(axis=2), (0, 0), 1.5)
    if contrast.max() < 1:
        return None
    levels = (contrast / contrast.max() * 255).astype(np.uint8)
    _, mask = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    joined = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    if count < 2:
        return None
    rows, columns = np.nonzero((labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()) & (mask > 0))
    if len(rows) < 12:
        return None
    points = np.column_stack([columns, rows]).astype(np.float64)
    middle = points.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov((points - middle).T))
    along, across = (np.ptp(np.percentile((points - middle) @ directions[:, k], [1, 99])) + 1 for k in (1, 0))
    if along < LEAST_ELONGATION * across or variances[0] <= 0:
        return None
    x, y = directions[:, 1]
    angle = np.degrees(np.arctan2(x, -y))
    angle -= 180 * np.ceil((angle - 90) / 180)
    return Axis(float(angle), (float(middle[0]), float(middle[1])), float(along), float(across))


def askew_angle(picture: NDArray[np.uint8]) -> float | None:
    """Degrees by which a ship lies askew in a picture; None where it stands upright or has no axis to tell."""
    axis = ship_axis(picture)
    return axis.angle if axis and abs(axis.angle) >= ASKEW else None


def stand_up(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a picture (H, W, 3) so that its ship stands upright, and cut it out with the margins of HOSS.

    What lies outside the picture repeats its edge. A picture without an axis stays as it is.
    """
    axis = ship_axis(picture)
    if axis is None:
        return picture
    height, width = max(8, round(axis.length * MARGIN[0])), max(8, round(axis.width * MARGIN[1]))
    matrix = cv2.getRotationMatrix2D(axis.middle, axis.angle, 1.0)  # counter-clockwise, in its sense
    matrix[:, 2] += np.array([width, height]) / 2 - 0.5 - axis.middle
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
