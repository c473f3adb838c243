"""Comparing our numbers with golden ones."""

from dataclasses import dataclass

import numpy as np
import torch

FORMULA = 1e-5
"""Tolerance of formulas, losses and schedules."""

NETWORK = 1e-4
"""Tolerance of the outputs of networks and of gradients."""


class Skip(Exception):
    """A check cannot run here; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """A largest absolute difference and what it may be."""

    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


def tensor(array) -> torch.Tensor:
    """A tensor of a (read-only) array, on torch's default device."""
    return torch.tensor(np.array(array))


def close(ours, theirs, tolerance: float) -> Comparison:
    """Compare numbers; another shape is an infinite difference."""
    ours, theirs = (
        value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value) for value in (ours, theirs)
    )
    if ours.shape != theirs.shape:
        return Comparison(np.inf, tolerance)
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return Comparison(float(difference.max()) if difference.size else 0.0, float(tolerance))


def equal(ours, theirs) -> Comparison:
    """Compare exactly: pictures, keys, shapes, lists."""
    return Comparison(0.0 if np.array_equal(np.asarray(ours), np.asarray(theirs)) else np.inf, 0.0)
