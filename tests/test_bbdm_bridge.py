import numpy as np
import pytest
import torch

from bbdm.bridge import OBJECTIVES, Bridge, bridge_loss, make_schedule


@pytest.mark.parametrize("kind", ["linear", "sin"])
def test_schedule_runs_from_sar_to_optical(kind):
    schedule = make_schedule(kind, num_timesteps=1000, max_variance=0.5)
    assert len(schedule) == 1000
    assert np.all(np.diff(schedule.m) > 0)
    assert schedule.m[-1] == 0.999
    np.testing.assert_allclose(schedule.variance, schedule.m * (1 - schedule.m), atol=1e-15)


def test_first_and_last_rows_of_the_linear_schedule_are_exact():
    schedule = make_schedule("linear", num_timesteps=1000)
    assert schedule.m[0] == 0.001
    np.testing.assert_allclose(schedule.variance[[0, -1]], 2 * 0.001 * 0.999, rtol=1e-13)


def test_two_transitions_make_one_marginal():
    schedule = make_schedule("sin", num_timesteps=50)
    for gap in (1, 7):
        t = np.arange(gap, 50)
        ratio = (1 - schedule.m[t]) / (1 - schedule.m[t - gap])
        whole = ratio**2 * schedule.variance[t - gap] + schedule.transition_variance(t, t - gap)
        np.testing.assert_allclose(whole, schedule.variance[t], atol=1e-12)


def test_the_variance_of_a_reverse_step_is_that_of_a_gaussian_given_the_later_state():
    """Of x_s ~ N(., d_s) and x_t = r x_s + N(., d_{t|s}), x_s given x_t has 1 / (1 / d_s + r^2 / d_{t|s})."""
    schedule = make_schedule(num_timesteps=50)
    t, s = np.array([20, 40, 49]), np.array([19, 3, 0])
    ratio = (1 - schedule.m[t]) / (1 - schedule.m[s])
    expected = 1 / (1 / schedule.variance[s] + ratio**2 / schedule.transition_variance(t, s))
    np.testing.assert_allclose(schedule.posterior_variance(t, s), expected, rtol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_target_gives_x0_back_in_float64(objective):
    bridge = Bridge(make_schedule(), objective=objective).double()
    generator = torch.Generator().manual_seed(1)
    x0, y, noise = torch.randn(3, 5, 3, 4, 6, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 1, 500, 998, 999])
    x_t = bridge.forward_sample(x0, y, t, noise)
    recovered = bridge.predict_x0(x_t, y, t, bridge.target(x0, y, t, noise))
    torch.testing.assert_close(recovered, x0, atol=1e-10, rtol=0)


def test_forward_sample_has_the_marginals_of_the_bridge():
    bridge = Bridge(make_schedule(max_variance=1.0))
    x0, y = torch.tensor([[0.5]]).expand(2, 1), torch.tensor([[-0.25]]).expand(2, 1)
    noise = torch.randn(2, 1, 400, 400, generator=torch.Generator().manual_seed(0))
    x_t = bridge.forward_sample(x0[..., None, None], y[..., None, None], torch.tensor([250, 900]), noise)
    for i, t in enumerate((250, 900)):
        m = bridge.schedule.m[t]
        assert x_t[i].mean().item() == pytest.approx((1 - m) * 0.5 - m * 0.25, abs=0.01)
        assert x_t[i].var().item() == pytest.approx(bridge.schedule.variance[t], rel=0.02)


def test_buffers_are_no_part_of_a_checkpoint():
    assert not Bridge(make_schedule()).state_dict()


def test_loss_is_the_mean_over_elements():
    prediction, target = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 1.0]])
    assert bridge_loss(prediction, target, "l1").item() == 1.5
    assert bridge_loss(prediction, target, "l2").item() == 2.5
    assert bridge_loss(prediction.half(), target.half()).dtype == torch.float32


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'linear' or 'sin'"):
        make_schedule("cosine")
    with pytest.raises(ValueError, match="at least 2"):
        make_schedule(num_timesteps=1)
    with pytest.raises(ValueError, match="grad, noise, ysubx"):
        Bridge(make_schedule(), objective="x0")
    with pytest.raises(ValueError, match="l1, l2"):
        bridge_loss(torch.zeros(1), torch.zeros(1), "huber")
