"""The Brownian bridge between two registered pictures (BBDM, arXiv 2205.07680): schedule, forward sample, targets, loss.

Legend: B batch, C channels, H x W pixels; `x0` the picture to be made (SAR), `y` the given one (optical), both (B, C, H, W)
in [-1, 1] or first-stage latents; `t` (B,) int64 in 0..T-1; `m` the bridge's way from x0 (0) to y (1), `variance` its spread.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

OBJECTIVES = ("grad", "noise", "ysubx")
LOSSES = ("l1", "l2")


@dataclass(frozen=True)
class Schedule:
    """The bridge's coefficients in float64, indexed by t.

    Attributes:
        m: (T,) m_t, rising from almost 0 (the SAR picture) to almost 1 (the optical one).
        variance: (T,) delta_t = 2 (m_t - m_t^2) max_variance (eq. 4 of the paper, with its factor s).
    """

    m: np.ndarray
    variance: np.ndarray

    def __len__(self) -> int:
        return len(self.m)

    def transition_variance(self, t: int | np.ndarray, s: int | np.ndarray) -> np.ndarray:
        """delta_{t|s} = delta_t - delta_s (1 - m_t)^2 / (1 - m_s)^2, of the way from s to a later t (eq. 9)."""
        return self.variance[t] - self.variance[s] * ((1 - self.m[t]) / (1 - self.m[s])) ** 2

    def posterior_variance(self, t: int | np.ndarray, s: int | np.ndarray) -> np.ndarray:
        """delta_{t|s} delta_s / delta_t, of the reverse step from t to an earlier s (eq. 13)."""
        return self.transition_variance(t, s) * self.variance[s] / self.variance[t]


def make_schedule(kind: str = "linear", *, num_timesteps: int = 1000, max_variance: float = 1.0) -> Schedule:
    """Make the coefficients of `num_timesteps` steps (at least 2).

    `kind` 'linear': m_t from 0.001 to 0.999 in equal steps. 'sin': 1.0075^u for T values u in 0..T, divided by the last, and
    the last then set to 0.999. Raises ValueError for another kind.
    """
    if num_timesteps < 2:
        raise ValueError(f"a bridge needs at least 2 time steps, not {num_timesteps}")
    if kind == "linear":
        m = np.linspace(0.001, 0.999, num_timesteps)
    elif kind == "sin":
        m = 1.0075 ** np.linspace(0, num_timesteps, num_timesteps)
        m = m / m[-1]
        m[-1] = 0.999
    else:
        raise ValueError(f"the schedule is 'linear' or 'sin', not {kind!r}")
    return Schedule(m=m, variance=2.0 * (m - m**2) * max_variance)


class Bridge(nn.Module):
    """The bridge's equations on tensors; its buffers are the schedule in float32. It holds no network."""

    def __init__(self, schedule: Schedule, *, objective: str = "grad"):
        """Raise ValueError unless `objective` is one of `OBJECTIVES`."""
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"the objective is one of {', '.join(OBJECTIVES)}, not {objective!r}")
        self.schedule = schedule
        self.objective = objective
        self.register_buffer("m", torch.from_numpy(schedule.m).float(), persistent=False)
        self.register_buffer("variance", torch.from_numpy(schedule.variance).float(), persistent=False)

    def forward_sample(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = (1 - m_t) x0 + m_t y + sqrt(delta_t) noise (eq. 5); shapes as in the file's legend."""
        m, sigma = self._at(t)
        return (1.0 - m) * x0 + m * y + sigma * noise

    def target(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict at t (eq. 11): (B, C, H, W).

        'grad': x_t - x0 = m_t (y - x0) + sqrt(delta_t) noise; 'noise': the noise; 'ysubx': y - x0.
        """
        if self.objective == "noise":
            return noise
        if self.objective == "ysubx":
            return y - x0
        m, sigma = self._at(t)
        return m * (y - x0) + sigma * noise

    def predict_x0(self, x_t: Tensor, y: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """Recover x0 from a prediction of the target: the inverse of `forward_sample` and `target`."""
        if self.objective == "grad":
            return x_t - prediction
        if self.objective == "ysubx":
            return y - prediction
        m, sigma = self._at(t)
        return (x_t - m * y - sigma * prediction) / (1.0 - m)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """m_t and sqrt(delta_t), each (B, 1, 1, 1)."""
        return self.m[t].view(-1, 1, 1, 1), self.variance[t].sqrt().view(-1, 1, 1, 1)


def bridge_loss(prediction: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """Mean absolute ('l1') or squared ('l2') error over all elements, in float32 (eq. 12); ValueError for another kind."""
    if kind == "l1":
        return F.l1_loss(prediction.float(), target.float())
    if kind == "l2":
        return F.mse_loss(prediction.float(), target.float())
    raise ValueError(f"the loss is one of {', '.join(LOSSES)}, not {kind!r}")
