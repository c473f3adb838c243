"""From an optical picture to a SAR one: the released reverse process, and a few-step solver for the same network.

Both take `denoise(x_t, t) -> x0_hat`, an estimate of the SAR picture from a state of the bridge, both (B, C, H, W), t an int,
and `noise(step) -> (B, C, H, W)`, so that every sample of a batch can have a seed of its own. Scalars are float64 Python
numbers from the schedule: nothing waits for the device.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from bbdm.bridge import Schedule

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]


def released_steps(num_timesteps: int, sample_step: int) -> list[int]:
    """The `sample_step` time steps of the released process: T-1 downwards in equal parts, rounded down, then 1 and 0.

    Raises ValueError unless 3 <= sample_step <= num_timesteps.
    """
    if not 3 <= sample_step <= num_timesteps:
        raise ValueError(f"the released sampler takes 3 to {num_timesteps} steps, not {sample_step}")
    last = num_timesteps - 1
    return [last - -(-i * last // (sample_step - 2)) for i in range(sample_step - 2)] + [1, 0]


def every_step(num_timesteps: int) -> list[int]:
    """All time steps, T-1 to 0: the released process without a list."""
    return list(range(num_timesteps - 1, -1, -1))


def sample_released(
    denoise: Denoise, y: Tensor, *, schedule: Schedule, steps: Sequence[int], noise: Noise, eta: float = 1.0, clip: bool = False
) -> Tensor:
    """Run the released reverse process (BBDM, algorithm 2 with eq. 13-14) from x_T = y.

    Args:
        denoise: the network's estimate of x0.
        y: (B, C, H, W) optical pictures.
        schedule: the bridge's coefficients.
        steps: decreasing time steps that end at 0; one call of `denoise` each.
        noise: called with 0, 1, ... once per step but the last.
        eta: factor on the noise; 1 is the process that keeps the bridge's marginals.
        clip: clamp every estimate of x0 to [-1, 1] (pictures only).

    Returns:
        (B, C, H, W) the estimate of x0 at the last step.
    """
    m, variance = schedule.m, schedule.variance
    x = y
    for step, t in enumerate(steps):
        x0 = denoise(x, t)
        if clip:
            x0 = x0.clamp(-1.0, 1.0)
        if step + 1 == len(steps):
            return x0
        s = steps[step + 1]
        sigma2 = schedule.posterior_variance(t, s)
        keep = math.sqrt((variance[s] - sigma2) / variance[t])
        mean = (1 - m[s]) * x0 + m[s] * y + keep * (x - (1 - m[t]) * x0 - m[t] * y)  # eq. 14
        x = mean + eta * math.sqrt(max(sigma2, 0.0)) * noise(step)
    raise ValueError("the list of steps is empty")


def few_steps(schedule: Schedule, sample_step: int) -> list[int]:
    """`sample_step` time steps from T-1 to 0, as equal as whole steps allow in lambda = log((1 - m) / sqrt(variance)).

    Raises ValueError unless 2 <= sample_step <= T.
    """
    if not 2 <= sample_step <= len(schedule):
        raise ValueError(f"the few-step sampler takes 2 to {len(schedule)} steps, not {sample_step}")
    log_snr = np.log((1 - schedule.m) / np.sqrt(schedule.variance))
    wanted = np.linspace(log_snr[-1], log_snr[0], sample_step)
    steps = [len(schedule) - 1]
    for left, value in zip(range(sample_step - 2, -1, -1), wanted[1:]):
        nearest = int(np.abs(log_snr - value).argmin())
        steps.append(max(min(nearest, steps[-1] - 1), left))  # strictly down, with room for the steps that are left
    return steps


def sample_few_steps(
    denoise: Denoise, y: Tensor, *, schedule: Schedule, steps: Sequence[int], noise: Noise, order: int = 2, clip: bool = False
) -> Tensor:
    """Draw one random state beside y, then solve the bridge's probability-flow equation with few calls of `denoise`.

    With marginals N(a_t y + b_t x0, c_t^2), a = m, b = 1 - m, c = sqrt(variance), and lambda = log(b / c), the process without
    noise obeys exactly (the limit of DBIM's rho = 0, arXiv 2405.15885)

        x_s = (c_s / c_t) x_t + (a_s - a_t c_s / c_t) y + c_s * integral_{lambda_t}^{lambda_s} e^lambda x0_hat(lambda) d lambda.

    The integral is taken over the polynomial through the last `order` estimates. The first step, away from y, is all noise
    (rho = c): at t = steps[0] the state is y + c_t noise, whose mean is the bridge's but for (1 - m_t)(x0 - y), a thousandth.
    It alone makes samples of one picture differ.

    Args:
        denoise: the network's estimate of x0.
        y: (B, C, H, W) optical pictures.
        schedule: the bridge's coefficients.
        steps: strictly decreasing time steps; one call of `denoise` each.
        noise: called once, with 0.
        order: 1, 2 or 3; the first steps use as many estimates as there are.
        clip: clamp every estimate of x0 to [-1, 1] (pictures only).

    Returns:
        (B, C, H, W) the estimate of x0 at the last step.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"the few-step sampler has order 1, 2 or 3, not {order}")
    a, c = schedule.m, np.sqrt(schedule.variance)
    log_snr = np.log((1 - schedule.m) / c)
    x = y + float(c[steps[0]]) * noise(0)
    times: list[float] = []
    estimates: list[Tensor] = []
    for t, s in zip(steps, [*steps[1:], None]):
        x0 = denoise(x, t)
        estimates = [x0.clamp(-1.0, 1.0) if clip else x0, *estimates][:order]
        times = [float(log_snr[t]), *times][:order]
        if s is None:
            return estimates[0]
        shrink = float(c[s] / c[t])
        x = shrink * x + float(a[s] - a[t] * shrink) * y
        for estimate, weight in zip(estimates, exponential_weights(times, float(log_snr[s]))):
            x = x + float(c[s]) * weight * estimate
    raise ValueError("the list of steps is empty")


def exponential_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Weights w_j with sum_j w_j p(nodes[j]) = integral from nodes[0] to `end` of e^u p(u) du for polynomials p.

    Exact for degrees below len(nodes): the weights of an exponential Adams-Bashforth step. They solve a Vandermonde system for
    the moments I_k = integral_0^h e^u u^k du = h^k e^h - k I_{k-1}, h = end - nodes[0].
    """
    h = end - nodes[0]
    moments = [math.expm1(h)]
    for k in range(1, len(nodes)):
        moments.append(h**k * math.exp(h) - k * moments[-1])
    powers = np.vander(np.asarray(nodes) - nodes[0], increasing=True).T
    return (math.exp(nodes[0]) * np.linalg.solve(powers, np.asarray(moments))).tolist()
