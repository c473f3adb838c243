"""Parameter groups, optimisers and the learning rate over epochs."""

import math

import pytest
import torch
from torch import nn

from model.build import build_model
from solver.optimizer import build_center_optimizer, build_optimizer, group_parameters
from solver.schedule import MultiStepSchedule, build_schedule, cosine_schedule
from tests.commands import tiny_cfg


def names_by_group(model: nn.Module, groups: list[dict]) -> dict[tuple[float, float], set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {(group["lr"], group["weight_decay"]): {names[id(p)] for p in group["params"]} for group in groups}


def test_parameters_are_grouped_by_rate_and_decay():
    model = build_model(tiny_cfg(), 3)
    groups = group_parameters(
        model.named_parameters(), lr=1.0, weight_decay=0.1, bias_lr_factor=2, bias_weight_decay=0.3, classifier_lr_factor=5
    )
    found = names_by_group(model, groups)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    biases = {name for name in trained if "bias" in name}
    assert found == {
        (1.0, 0.1): trained - biases - {"classifier.weight"},
        (2.0, 0.3): biases,
        (5.0, 0.1): {"classifier.weight"},
    }
    assert "bottleneck.bias" not in biases  # frozen


def test_equal_rates_and_decays_share_a_group():
    model = build_model(tiny_cfg(), 3)
    assert len(group_parameters(model.named_parameters(), lr=1.0, weight_decay=0.1)) == 1


def test_a_bias_of_the_classifier_follows_the_classifier_where_that_has_a_rate_of_its_own():
    layers = nn.ModuleDict({"classifier": nn.Linear(2, 2)})
    rates = {"bias_lr_factor": 2.0, "weight_decay": 0.1}
    plain = names_by_group(layers, group_parameters(layers.named_parameters(), lr=1.0, **rates))
    assert plain[2.0, 0.1] == {"classifier.bias"}
    large = group_parameters(layers.named_parameters(), lr=1.0, classifier_lr_factor=3.0, **rates)
    assert names_by_group(layers, large) == {(3.0, 0.1): {"classifier.weight", "classifier.bias"}}


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)])
def test_optimisers_of_a_configuration(name, kind):
    cfg = tiny_cfg(
        SOLVER__OPTIMIZER_NAME=name, SOLVER__BASE_LR=0.0005, SOLVER__BIAS_LR_FACTOR=2, SOLVER__WEIGHT_DECAY=1e-4,
        SOLVER__WEIGHT_DECAY_BIAS=1e-4, SOLVER__LARGE_FC_LR=True,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, build_model(cfg, 3))
    assert type(optimizer) is kind
    # As released: the classifier at twice the rate falls in one group with the biases at twice the rate.
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.0005, 1e-4), (0.001, 1e-4)}
    assert all(group.get("momentum", 0.9) == 0.9 for group in optimizer.param_groups)


def test_centres_move_at_their_own_rate_whatever_their_weight_in_the_loss():
    centers = nn.Parameter(torch.zeros(1, 1))
    cfg = tiny_cfg(SOLVER__CENTER_LR=0.5, SOLVER__CENTER_LOSS_WEIGHT=0.01)
    (0.01 * centers).sum().backward()  # the slope of the centre term is 1; the total carries its weight
    build_center_optimizer(cfg, centers).step()
    assert centers.item() == pytest.approx(-0.5)


def two_groups() -> torch.optim.Optimizer:
    """Rates 1 and 2."""
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    return torch.optim.SGD([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 2.0}], lr=1.0)


def rates(*, epochs: int, **changes) -> list[tuple[float, float]]:
    optimizer = two_groups()
    return rates_of(cosine_schedule(optimizer, base_lr=1.0, epochs=epochs, **changes), optimizer, epochs)


def rates_of(schedule, optimizer: torch.optim.Optimizer, epochs: int) -> list[tuple[float, float]]:
    found = []
    for epoch in range(1, epochs + 1):
        schedule.step(epoch)
        found.append(tuple(group["lr"] for group in optimizer.param_groups))
    return found


def test_warm_up_is_linear_and_the_cosine_ends_at_an_absolute_floor():
    found = rates(epochs=20, warmup_epochs=5, warmup_factor=0.01)
    for epoch, (base, twice) in enumerate(found, start=1):
        for rate, top in ((base, 1.0), (twice, 2.0)):
            if epoch < 5:
                expected = 0.01 + (top - 0.01) * epoch / 5
            elif epoch < 20:
                expected = 0.002 + (top - 0.002) * (1 + math.cos(math.pi * epoch / 20)) / 2
            else:
                expected = 0.002
            assert rate == pytest.approx(expected), epoch


def test_both_ends_of_a_schedule_are_shares_of_the_base_rate():
    """From 0.1 x 0.5 half way up to the group's own 1 in the first of two epochs; at the end 0.002 x 0.5."""
    optimizer = two_groups()
    schedule = cosine_schedule(optimizer, base_lr=0.5, epochs=4, warmup_epochs=2, warmup_factor=0.1)
    found = [base for base, _ in rates_of(schedule, optimizer, 4)]
    assert (found[0], found[-1]) == (pytest.approx(0.05 + 0.95 / 2), pytest.approx(0.001))


def test_no_warm_up_starts_on_the_cosine():
    assert rates(epochs=4, warmup_epochs=0)[0][0] == pytest.approx(0.002 + 0.998 * (1 + math.cos(math.pi / 4)) / 2)


def test_multi_step_rates_worked_by_hand():
    optimizer = two_groups()
    schedule = MultiStepSchedule(optimizer, steps=[4, 6], gamma=0.1, warmup_epochs=3, warmup_factor=0.4)
    # Warm-up 0.4 + 0.6 e / 3 in epochs 1 and 2, then the full rate, a tenth from epoch 4 on, a hundredth from epoch 6 on.
    expected = [0.6, 0.8, 1, 0.1, 0.1, 0.01, 0.01]
    found = rates_of(schedule, optimizer, 7)
    assert [base for base, _ in found] == pytest.approx(expected)
    assert [twice for _, twice in found] == pytest.approx([2 * rate for rate in expected])


def test_a_constant_warm_up_ends_at_once():
    optimizer = two_groups()
    schedule = MultiStepSchedule(optimizer, steps=[9], warmup_epochs=3, warmup_factor=0.4, warmup_method="constant")
    assert [base for base, _ in rates_of(schedule, optimizer, 4)] == pytest.approx([0.4, 0.4, 1, 1])


def test_steps_within_the_warm_up_count_too():
    optimizer = two_groups()
    schedule = MultiStepSchedule(optimizer, steps=[1], gamma=0.5, warmup_epochs=4, warmup_factor=0.0)
    assert rates_of(schedule, optimizer, 4)[1][0] == pytest.approx(0.5 * 2 / 4)


def test_the_schedule_is_chosen_by_its_name():
    cfg = tiny_cfg(
        SOLVER__SCHEDULER="multistep", SOLVER__STEPS="[2]", SOLVER__GAMMA=0.5, SOLVER__WARMUP_EPOCHS=4,
        SOLVER__WARMUP_FACTOR=0.2, SOLVER__WARMUP_METHOD="constant",
    )  # fmt: skip
    optimizer = two_groups()
    assert [base for base, _ in rates_of(build_schedule(cfg, optimizer), optimizer, 4)] == pytest.approx([0.2, 0.1, 0.1, 0.5])


@pytest.mark.parametrize("name", ["cosine", "multistep"])
def test_a_schedule_asked_for_an_epoch_gives_its_rate_whatever_came_before(name):
    """Resuming sets the epoch and nothing else."""
    cfg = tiny_cfg(SOLVER__SCHEDULER=name, SOLVER__STEPS="[5]", SOLVER__MAX_EPOCHS=10, SOLVER__WARMUP_EPOCHS=3)
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR) for _ in range(2)]
    straight, resumed = (build_schedule(cfg, optimizer) for optimizer in optimizers)
    for epoch in range(1, 8):
        straight.step(epoch)
    resumed.step(7)
    assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"] != cfg.SOLVER.BASE_LR


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_rates_and_decays_of_a_configuration_by_name(name):
    cfg = tiny_cfg(
        SOLVER__OPTIMIZER_NAME=name, SOLVER__BASE_LR=0.5, SOLVER__BIAS_LR_FACTOR=3, SOLVER__WEIGHT_DECAY=0.25,
        SOLVER__WEIGHT_DECAY_BIAS=0.125, SOLVER__LARGE_FC_LR=True, SOLVER__MOMENTUM=0.75,
    )  # fmt: skip
    model = build_model(cfg, 3)
    optimizer = build_optimizer(cfg, model)
    found = names_by_group(model, optimizer.param_groups)
    assert found.keys() == {(0.5, 0.25), (1.5, 0.125), (1.0, 0.25)}
    assert found[1.0, 0.25] == {"classifier.weight"}
    assert all("bias" in part for part in found[1.5, 0.125])
    assert not any("bias" in part for part in found[0.5, 0.25])
    assert name != "SGD" or {group["momentum"] for group in optimizer.param_groups} == {0.75}
    assert optimizer.defaults["lr"] == 0.5
    assert not optimizer.defaults["fused"]
    plain = tiny_cfg(SOLVER__BASE_LR=0.5, SOLVER__BIAS_LR_FACTOR=1, SOLVER__WEIGHT_DECAY=0.25, SOLVER__WEIGHT_DECAY_BIAS=0.25)
    assert [(group["lr"], group["weight_decay"]) for group in build_optimizer(plain, model).param_groups] == [(0.5, 0.25)]


def test_the_cosine_of_a_configuration_epoch_by_epoch():
    cfg = tiny_cfg(
        SOLVER__BASE_LR=1.0,
        SOLVER__MAX_EPOCHS=8,
        SOLVER__WARMUP_EPOCHS=2,
        SOLVER__WARMUP_FACTOR=0.1,
        SOLVER__SCHEDULER="cosine",
    )
    optimizer = two_groups()
    found = [base for base, _ in rates_of(build_schedule(cfg, optimizer), optimizer, 8)]
    cosine = [0.002 + 0.998 * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(2, 8)]
    assert found == pytest.approx([0.1 + 0.9 / 2, *cosine, 0.002])


def test_defaults_of_schedules_are_the_released_ones():
    """Five epochs of warm-up from a hundredth; a tenth at each step."""
    assert [base for base, _ in rates(epochs=10)][:4] == pytest.approx([0.01 + 0.99 * epoch / 5 for epoch in range(1, 5)])
    optimizer = two_groups()
    found = [base for base, _ in rates_of(MultiStepSchedule(optimizer, steps=[7]), optimizer, 7)]
    assert found == pytest.approx([0.01 + 0.99 * epoch / 5 for epoch in range(1, 5)] + [1, 1, 0.1])
