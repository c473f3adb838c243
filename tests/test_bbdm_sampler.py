"""The samplers against exact solutions: x0 ~ N(mu, s^2) in every pixel has a known posterior mean, so a known flow."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from bbdm.bridge import make_schedule
from bbdm.sampler import exponential_weights, few_steps, released_steps, sample_few_steps, sample_released

MU, S = 0.3, 0.35


def gaussian_denoiser(schedule, y):
    def denoise(x, t):
        a, b, variance = schedule.m[t], 1 - schedule.m[t], schedule.variance[t]
        return (S**2 * b * (x - a * y) + variance * MU) / (S**2 * b**2 + variance)

    return denoise


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_flow(schedule, y, noise, steps):
    """(z - mu) / sqrt(S^2 + sigma^2) is constant along the flow, with z = (x - a y) / b and sigma = c / b."""
    first, last = steps[0], steps[-1]
    b, sigma = 1 - schedule.m, np.sqrt(schedule.variance) / (1 - schedule.m)
    z = (y + noise * math.sqrt(schedule.variance[first]) - schedule.m[first] * y) / b[first]
    z = MU + (z - MU) * math.sqrt((S**2 + sigma[last] ** 2) / (S**2 + sigma[first] ** 2))
    return gaussian_denoiser(schedule, y)(z * b[last] + schedule.m[last] * y, last)


def error_of(order, calls, *, num_timesteps=1_000_000):
    schedule = make_schedule(num_timesteps=num_timesteps)
    y, noise = 0.3 * normal(2, 1, 8, 8, seed=1), normal(2, 1, 8, 8, seed=2)
    steps = few_steps(schedule, calls)
    ours = sample_few_steps(
        gaussian_denoiser(schedule, y), y, schedule=schedule, steps=steps, noise=lambda _: noise, order=order
    )
    return (ours - exact_flow(schedule, y, noise, steps)).abs().mean().item()


@pytest.mark.parametrize(("order", "few", "many"), [(1, 80, 160), (2, 80, 160), (3, 80, 160)])
def test_few_step_sampler_converges_at_its_order(order, few, many):
    measured = math.log2(error_of(order, few) / error_of(order, many))
    assert order - 0.3 < measured < order + 0.7


def test_twenty_calls_of_the_released_schedule_are_within_a_hundredth_of_the_limit():
    assert error_of(2, 20, num_timesteps=1000) < 0.01
    assert error_of(3, 20, num_timesteps=1000) < 0.01
    assert error_of(1, 20, num_timesteps=1000) > 0.01


@pytest.mark.parametrize(
    ("sample", "steps"),
    [(sample_released, released_steps(1000, 500)), (sample_few_steps, few_steps(make_schedule(), 20))],
    ids=["released", "few steps"],
)
def test_samples_reach_the_spread_of_the_answers(sample, steps):
    schedule = make_schedule()
    y = 0.3 * normal(1, 1, 64, 64, seed=1)
    out = sample(
        gaussian_denoiser(schedule, y),
        y,
        schedule=schedule,
        steps=steps,
        noise=lambda step: normal(1, 1, 64, 64, seed=step + 2),
    )
    assert out.mean().item() == pytest.approx(MU, abs=0.02)
    assert out.std().item() == pytest.approx(S, abs=0.03)


@pytest.mark.parametrize(("sample", "asked"), [(sample_released, [0, 1, 2, 3]), (sample_few_steps, [0])])
def test_noise_is_asked_for_by_the_number_of_the_step(sample, asked):
    schedule, numbers = make_schedule(num_timesteps=9), []
    y = normal(1, 1, 2, 2)
    sample(gaussian_denoiser(schedule, y), y, schedule=schedule, steps=[8, 5, 3, 1, 0], noise=lambda i: numbers.append(i) or y)
    assert numbers == asked


@pytest.mark.parametrize("sample", [sample_released, sample_few_steps])
def test_estimates_are_bounded_where_that_is_asked_for_alone(sample):
    schedule, y = make_schedule(num_timesteps=9), torch.zeros(1, 1, 2, 2)

    def end(**settings):
        return sample(
            lambda x, t: torch.full_like(x, -3.0), y, schedule=schedule, steps=[8, 4, 1, 0], noise=lambda i: y, **settings
        )

    assert (end(clip=True).unique().item(), end().unique().item()) == (-1.0, -3.0)


def test_the_released_process_takes_its_noise_whole_unless_told_otherwise():
    schedule, y = make_schedule(num_timesteps=9), torch.zeros(1, 1, 2, 2, dtype=torch.float64)

    def last_state(**settings):
        states = []
        sample_released(
            lambda x, t: states.append(x) or y,
            y,
            schedule=schedule,
            steps=[8, 4],
            noise=lambda i: torch.ones_like(y),
            **settings,
        )
        return states[1].unique().item()

    m, delta = schedule.m, schedule.variance
    sigma = math.sqrt((delta[8] - delta[4] * (1 - m[8]) ** 2 / (1 - m[4]) ** 2) * delta[4] / delta[8])
    assert last_state() == last_state(eta=1.0) == pytest.approx(sigma, rel=1e-12)
    assert last_state(eta=0.5) == pytest.approx(sigma / 2, rel=1e-12)


def test_released_process_with_the_true_x0_keeps_the_marginals():
    schedule = make_schedule()
    x0, y = torch.full((1, 1, 300, 300), 0.4), torch.full((1, 1, 300, 300), -0.6)
    steps, states = [999, 700, 400, 30, 1], []
    sample_released(
        lambda x, _: states.append(x) or x0, y, schedule=schedule, steps=steps, noise=lambda i: normal(1, 1, 300, 300, seed=i)
    )
    for t, x_t in zip(steps[1:], states[1:], strict=True):
        m = schedule.m[t]
        assert x_t.mean().item() == pytest.approx((1 - m) * 0.4 - m * 0.6, abs=0.01)
        assert x_t.var().item() == pytest.approx(schedule.variance[t], rel=0.02)


@pytest.mark.parametrize("sampler", ["released", "few"])
def test_samples_follow_their_noise_and_calls_are_counted(sampler):
    schedule = make_schedule()
    y = normal(2, 1, 4, 4)
    calls = []

    def run(seed):
        calls.clear()

        def denoise(x, t):
            calls.append(t)
            return gaussian_denoiser(schedule, y)(x, t)

        if sampler == "released":
            steps = released_steps(1000, 12)
            return sample_released(
                denoise, y, schedule=schedule, steps=steps, noise=lambda i: normal(2, 1, 4, 4, seed=seed + i)
            )
        steps = few_steps(schedule, 12)
        return sample_few_steps(denoise, y, schedule=schedule, steps=steps, noise=lambda i: normal(2, 1, 4, 4, seed=seed + i))

    first, again, other = run(1), run(1), run(100)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1
    assert len(calls) == 12
    assert calls[0] == 999
    assert calls[-1] == 0


def test_eta_zero_draws_nothing_and_clip_bounds_the_estimate():
    schedule = make_schedule()
    y = normal(1, 1, 4, 4)
    steps = released_steps(1000, 10)
    quiet = [
        sample_released(
            gaussian_denoiser(schedule, y),
            y,
            schedule=schedule,
            steps=steps,
            noise=lambda i, seed=seed: normal(1, 1, 4, 4, seed=seed),
            eta=0.0,
        )
        for seed in (1, 2)
    ]
    assert torch.equal(*quiet)
    loud = sample_released(
        lambda x, t: 100 * torch.ones_like(x), y, schedule=schedule, steps=steps, noise=lambda i: y, eta=1.0, clip=True
    )
    assert loud.max() == 1.0


@pytest.mark.parametrize(("total", "count"), [(1000, 200), (1000, 3), (1000, 1000), (100, 10), (50, 49), (4, 4)])
def test_released_steps_fall_from_end_to_end(total, count):
    steps = released_steps(total, count)
    assert len(steps) == count
    assert steps[0] == total - 1
    assert steps[-2:] == [1, 0]
    assert all(a >= b for a, b in pairwise(steps))


@pytest.mark.parametrize("count", [2, 3, 20, 999, 1000])
def test_few_steps_fall_strictly_from_end_to_end(count):
    steps = few_steps(make_schedule(), count)
    assert len(steps) == count
    assert (steps[0], steps[-1]) == (999, 0)
    assert all(a > b for a, b in pairwise(steps))


@pytest.mark.parametrize("nodes", [[0.3], [0.3, -0.1], [0.3, -0.1, -0.9]])
def test_exponential_weights_integrate_polynomials_exactly(nodes):
    end = 0.8
    u = np.linspace(nodes[0], end, 20001)
    for degree in range(len(nodes)):
        integral = trapezoid(np.exp(u) * u**degree, u)
        weights = exponential_weights(nodes, end)
        assert sum(w * n**degree for w, n in zip(weights, nodes)) == pytest.approx(integral, rel=1e-7)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="3 to 1000 steps, not 2"):
        released_steps(1000, 2)
    with pytest.raises(ValueError, match="2 to 1000 steps, not 1001"):
        few_steps(make_schedule(), 1001)
    with pytest.raises(ValueError, match="order 1, 2 or 3"):
        sample_few_steps(lambda x, t: x, torch.zeros(1, 1, 1, 1), schedule=make_schedule(), steps=[1, 0], noise=None, order=4)
