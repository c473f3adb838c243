import pytest
import torch
from torch import nn

from bbdm.averaging import build_average, update_average


def test_average_follows_the_weights_and_copies_when_told():
    network = nn.Linear(2, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    average = build_average(network, 0.75)
    nn.init.constant_(network.weight, 3.0)
    update_average(average, network)
    assert average.module.weight.tolist() == [[1.5, 1.5]]
    update_average(average, network, copying=True)
    assert average.module.weight.tolist() == [[3.0, 3.0]]
    network.weight.data.fill_(0.0)
    assert average.module.weight.tolist() == [[3.0, 3.0]]


def test_average_is_frozen_and_in_eval_mode():
    average = build_average(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not average.module.training
    assert not any(weight.requires_grad for weight in average.module.parameters())


def test_buffers_are_copied():
    network = nn.BatchNorm1d(2)
    average = build_average(network)
    network.running_mean.fill_(5.0)
    update_average(average, network)
    assert average.module.running_mean.tolist() == [5.0, 5.0]


def test_average_tends_to_constant_weights():
    network = nn.Linear(1, 1, bias=False)
    average = build_average(network, 0.9)
    start = average.module.weight.item()
    network.weight.data.fill_(2.0)
    for _ in range(10):
        update_average(average, network)
    assert average.module.weight.item() == pytest.approx(2.0 + (start - 2.0) * 0.9**10, rel=1e-5)
    assert not torch.equal(average.module.weight, network.weight)
