"""FID, LPIPS and diversity, as the bridge's own paper measures pictures, through torchmetrics and weights that the user names.

Legend: N pictures of held-out places, K samples of one, H x W pixels, D features; pictures are uint8 RGB, as they are saved.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from processor.ranking.intervals import Interval, measure_interval
from utils import checkpoint
from utils.errors import CheckpointError

BATCH = 32
LEAST_SIDE = 64
"""Smaller pictures are enlarged before LPIPS's network, which halves them five times."""

LPIPS_NETWORKS = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
"""Shape of the first convolution -> torchmetrics's name of the network."""


def measure_quality(
    samples: Tensor,
    real: Tensor,
    places: Sequence[str],
    *,
    features: Callable[[Tensor], Tensor],
    perceive: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Interval]:
    """The measures of BBDM's paper.

    Args:
        samples: (N, K, 3, H, W).
        real: (N, 3, H, W), of the same places.
        places: (N,) names.
        features: pictures (B, 3, H, W) -> (B, D): the space of the Frechet distance.
        perceive: two batches of pictures -> (B,) LPIPS; None leaves it out.

    Returns:
        `Frechet`: the distance between all samples and all real pictures, one number without an upper end, left out for a
        single real picture; `deviation`: of the K values of a pixel, 0..255, mean over pixels; `LPIPS`: of each sample and its
        real picture.
    """
    number = np.unique(np.asarray(places), return_inverse=True)[1]
    count, singles = samples.shape[1], samples.flatten(0, 1)
    deviation = [own.float().std(dim=0, correction=0).mean().item() for own in samples]
    measured = {"deviation": measure_interval(deviation, number, lowest=0.0)}
    if len(real) > 1:
        distance = frechet_distance(_in_parts(features, singles), _in_parts(features, real))
        measured["Frechet"] = measure_interval([distance], [0], lowest=0.0)
    if perceive is not None:
        pairs = zip(singles.split(BATCH), real.repeat_interleave(count, dim=0).split(BATCH), strict=True)
        values = torch.cat([perceive(*pair) for pair in pairs]).view(-1, count).mean(dim=1)
        measured["LPIPS"] = measure_interval(values, number, lowest=0.0)
    return measured


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Between normal distributions of the means and covariances of (N, D) and (M, D) features, N and M at least 2.

    |mean - mean'|^2 + trace(C + C' - 2 (C C')^(1/2)), of Heusel et al. 2017; 0 or a little below for equal sets.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # two seconds that only evaluation needs

    space = nn.Identity()
    space.num_features = first.shape[1]
    metric = FrechetInceptionDistance(feature=space)
    metric.update(second, real=True)
    metric.update(first, real=False)
    return metric.compute().item()


def read_inception(path: str | Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network of FID, Inception v3 as TensorFlow published it in 2015: pictures (B, 3, H, W) -> (B, 2048) on the CPU.

    Raises:
        CheckpointError: as `utils.checkpoint.load`; also another network.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    checkpoint.load(path)  # refuses what could run code, which the reader below would run
    settings = {"name": "inception-v3-compat", "features_list": ["2048"], "feature_extractor_weights_path": str(path)}
    try:
        network = NoTrainInceptionV3(**settings).to(device)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not the Inception v3 of FID; BBDM.FID_WEIGHTS names weights-inception-2015-12-05-6726825d.pth of "
            "torch-fidelity"
        ) from error
    return lambda pictures: network(pictures.to(device)).cpu()


def read_lpips(path: str | Path, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS by torchvision's AlexNet or VGG-16 of `path`, and torchmetrics's weights of its layers: two (B, 3, H, W) -> (B,).

    Raises:
        CheckpointError: as `utils.checkpoint.load`; also another network.
    """
    from torchmetrics.functional.image.lpips import _LPIPS  # the public one downloads what the user has named

    tensors = checkpoint.tensors_of(checkpoint.load(path))
    first = tensors.get("features.0.weight")
    kind = LPIPS_NETWORKS.get(tuple(first.shape)) if first is not None else None
    try:
        network = _LPIPS(net=kind, pnet_rand=True)
        names = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
        network.net.load_state_dict({name: tensors[theirs] for name, theirs in names.items()})
    except (LookupError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is neither torchvision's AlexNet nor its VGG-16, which BBDM.LPIPS_WEIGHTS names"
        ) from error
    network.to(device)

    @torch.no_grad()
    def perceive(first: Tensor, second: Tensor) -> Tensor:
        return network(*(_to_perceive(pictures.to(device)) for pictures in (first, second))).flatten().cpu()

    return perceive


def _to_perceive(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) -> [-1, 1], each side at least `LEAST_SIDE`."""
    size = [max(side, LEAST_SIDE) for side in pictures.shape[2:]]
    return nn.functional.interpolate(pictures.float().div(127.5).sub(1), size=size, mode="bilinear")


def _in_parts(features: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    return torch.cat([features(part) for part in pictures.split(BATCH)])
