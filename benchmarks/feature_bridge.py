"""The Brownian bridge between features instead of pictures: a rival of generation that costs microseconds an image.

Optical features of training ships are led to SAR features of the same ships by the equations of `bbdm.bridge`; the network is
a perceptron, and training takes seconds.

Legend: N chips, P pairs, B batch, S images, K samples of each, D feature width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bbdm.bridge import Bridge, bridge_loss, make_schedule
from bbdm.sampler import few_steps, sample_few_steps

STEPS, BATCH, RATE, HIDDEN, CALLS = 1500, 256, 1e-3, 512, 5


class Perceptron(nn.Module):
    """Predicts the bridge's target from x_t, y, both (B, D, 1, 1), and m_t (B,)."""

    def __init__(self, width: int):
        super().__init__()
        sizes = (2 * width + 1, HIDDEN, HIDDEN, width)
        layers = [[nn.Linear(size, after), nn.SiLU(), nn.Dropout(0.1)] for size, after in pairwise(sizes)]
        self.layers = nn.Sequential(*[layer for group in layers for layer in group][:-2])

    def forward(self, x: Tensor, y: Tensor, m: Tensor) -> Tensor:
        """(B, D, 1, 1)."""
        return self.layers(torch.cat([x.flatten(1), y.flatten(1), m[:, None]], dim=1))[..., None, None]


def pairs_of_ships(modalities: Sequence[int], ships: Sequence[int]) -> Tensor:
    """(P, 2) places of an optical and a SAR chip of one ship, all such pairs."""
    found = [
        (optical, sar)
        for optical, (sensor, ship) in enumerate(zip(modalities, ships))
        if sensor == 0
        for sar, (other, same) in enumerate(zip(modalities, ships))
        if other == 1 and same == ship
    ]
    return torch.tensor(found)


def train_feature_bridge(features: Tensor, pairs: Tensor, *, seed: int) -> tuple[Bridge, Perceptron]:
    """Train on features (N, D) of deviation about 1 and pairs of `pairs_of_ships`."""
    torch.manual_seed(seed)
    bridge, network = Bridge(make_schedule()), Perceptron(features.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        y, x0 = (features[side][..., None, None] for side in pairs[torch.randint(len(pairs), (BATCH,))].unbind(1))
        t, noise = torch.randint(len(bridge.schedule), (BATCH,)), torch.randn_like(x0)
        x = bridge.forward_sample(x0, y, t, noise)
        loss = bridge_loss(network(x, y, bridge.m[t]), bridge.target(x0, y, t, noise), "l2")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return bridge, network.eval()


@torch.no_grad()
def sample_features(bridge: Bridge, network: Perceptron, optical: Tensor, *, count: int, seed: int) -> Tensor:
    """(S, K, D) samples of the SAR feature of each optical one (S, D)."""
    y = optical.repeat_interleave(count, dim=0)[..., None, None]
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))

    def denoise(x: Tensor, t: int) -> Tensor:
        at = torch.full((len(x),), t)
        return bridge.predict_x0(x, y, at, network(x, y, bridge.m[at]))

    steps = few_steps(bridge.schedule, CALLS)
    found = sample_few_steps(denoise, y, schedule=bridge.schedule, steps=steps, noise=lambda _: noise)
    return found.flatten(1).unflatten(0, (-1, count))
