"""A small network that puts SAR pictures of one place near each other, trained on the training places: a feature space in which
generated pictures are compared with real ones.

Legend: B batch, H x W pixels, D feature width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.log import progress

FEATURES = 64
WIDTHS = (32, 64, 128)
STEPS = 400
BATCH = 48
TEMPERATURE = 0.2


def make_layers() -> nn.Sequential:
    """Grey pictures (B, 1, H, W) around 0 -> (B, D)."""
    layers: list[nn.Module] = []
    for before, after in zip((1, *WIDTHS), WIDTHS):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTHS[-1], FEATURES))


def train_embedding(pictures: Tensor, *, seed: int, steps: int = STEPS) -> Callable[[Tensor], Tensor]:
    """Train on real SAR pictures: two views of a picture (moved, of other gain and speckle) shall meet (SimCLR).

    Args:
        pictures: (N, H, W) in 0..1, of the training places.
        seed: of weights and views.
        steps: of Adam, each with up to 48 pictures.

    Returns:
        Grey pictures (B, H, W) in 0..1 -> (B, D) features of length 1, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = make_layers()
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    with progress(steps, "feature space", unit="step") as bar:
        for _ in range(steps):
            chosen = pictures[torch.randperm(len(pictures), generator=generator)[:BATCH]]
            first, second = (_embed(layers, _view(chosen, generator)) for _ in range(2))
            logits = first @ second.T / TEMPERATURE
            own = torch.arange(len(chosen))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
    return partial(_embed, layers.eval().requires_grad_(False))


def _embed(layers: nn.Sequential, pictures: Tensor) -> Tensor:
    return F.normalize(layers(pictures[:, None] - 0.5), dim=1)


def _view(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move by up to an eighth of the sides, change gain, multiply by speckle: (B, H, W) -> the same."""
    count, height, width = pictures.shape
    top, left = (int(torch.randint(-side // 8, side // 8 + 1, (), generator=generator)) for side in (height, width))
    moved = pictures.roll((top, left), dims=(1, 2))
    gain = 0.7 + 0.6 * torch.rand(count, 1, 1, generator=generator)
    speckle = 1 + 0.3 * torch.randn(pictures.shape, generator=generator)
    return (moved * gain * speckle).clamp(0, 1)
