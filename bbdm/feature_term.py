"""A term of the bridge's loss that asks for pictures in which a re-identification network sees the ship.

The bridge's own loss counts pixels, and most of a SAR picture's pixels are speckle and sea. This term compares what a frozen
network makes of the estimate x0_hat with what it makes of the real SAR picture; it is not in the paper.

Legend: B pairs, H x W pixels of the bridge's pictures, D features.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.described import load_described
from datasets.records import Modality
from model.build import build_model
from model.pretrained import load_weights
from utils.checkpoint import without_start_values
from utils.errors import UsageError


@dataclass(frozen=True)
class FeatureTerm:
    """weight / B * the sum over pairs with m_t <= until of 1 - cos(f(x0_hat), f(x0)).

    Attributes:
        network: a `ReIDModel`, frozen, in evaluation mode.
        size: (rows, columns) of its pictures.
        mean, std: (3, 1, 1), by which its pictures are normalised.
        weight: of the term beside the bridge's loss.
        until: the largest m_t at which an estimate is looked at; near 1, where the bridge starts, it is a blur.
        grey: whether samples are made grey (BBDM.GREY), so that estimates are too.
    """

    network: nn.Module
    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    weight: float
    until: float
    grey: bool

    def __call__(self, estimate: Tensor, sar: Tensor, sizes: Tensor, m: Tensor) -> Tensor:
        """The term of a batch: a number.

        Args:
            estimate: (B, 3, H, W) x0_hat, about [-1, 1].
            sar: (B, 3, H, W) x0.
            sizes: (2 B, 3) size triples of the optical chips, which a sample has, and of the SAR chips.
            m: (B,) m_t.
        """
        of_optical, of_sar = sizes.chunk(2)
        with torch.no_grad():
            wanted = self._see(sar, of_sar)
        apart = 1 - functional.cosine_similarity(self._see(estimate, of_optical), wanted)
        return self.weight * (apart * (m <= self.until)).mean()

    def _see(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        """Features (B, D) of SAR pictures (B, 3, H, W) in [-1, 1]."""
        if self.grey:
            pictures = pictures.mean(1, keepdim=True).expand_as(pictures)
        pictures = functional.interpolate(pictures.add(1).div(2), size=self.size, mode="bilinear", antialias=True)
        modalities = torch.full((len(pictures),), int(Modality.SAR), device=pictures.device)
        return self.network((pictures - self.mean) / self.std, modalities, sizes).feature.float()


def build_feature_term(cfg, device: torch.device) -> FeatureTerm | None:
    """The term of BBDM.FEATURE_*; None where BBDM.FEATURE_WEIGHT is 0.

    Raises:
        UsageError: no weights, weights that do not describe themselves, or a bridge between latents.
        CheckpointError: see `model.pretrained.load_weights`.
    """
    if not cfg.BBDM.FEATURE_WEIGHT:
        return None
    path = cfg.BBDM.FEATURE_NETWORK
    if not path:
        raise UsageError("BBDM.FEATURE_WEIGHT is above 0 and BBDM.FEATURE_NETWORK empty; name the weights of the ReID network")
    if cfg.BBDM.SPACE != "pixel":
        raise UsageError("BBDM.FEATURE_WEIGHT looks at pictures, and BBDM.SPACE latent has none; set it to 0")
    own, _ = load_described(None, ["TEST.WEIGHT", path], "TEST.WEIGHT")
    network = without_start_values(partial(build_model, own))
    load_weights(path, network)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (own.INPUT.PIXEL_MEAN, own.INPUT.PIXEL_STD))
    return FeatureTerm(
        network=network.to(device).eval().requires_grad_(False),
        size=tuple(own.INPUT.SIZE_TEST),
        mean=mean,
        std=std,
        weight=cfg.BBDM.FEATURE_WEIGHT,
        until=cfg.BBDM.FEATURE_UNTIL,
        grey=cfg.BBDM.GREY,
    )
