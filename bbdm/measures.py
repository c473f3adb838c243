"""How near generated SAR pictures are to real ones: functions of tensors.

Legend: N pictures, K samples of one, H x W pixels; grey values in 0..1, float32. Speckle makes two real SAR pictures of one
scene differ pixel by pixel, so a single sample is judged by what speckle leaves alone: the distribution of its values, their
local contrast, their spectrum, and its place in a feature space. Only the mean of many samples is judged pixel by pixel.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from processor.ranking.retrieval import rank_features

SPECKLE_WINDOW = 7
SSIM_BORDER = 5
SSIM_BATCH = 64


def to_grey(pictures: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W) in 0..1: the mean of the bands, clipped."""
    return pictures.float().mean(dim=-3).add(1).div(2).clamp(0, 1)


def l1(first: Tensor, second: Tensor) -> Tensor:
    """(N, H, W) twice -> (N,) mean absolute difference."""
    return (first - second).abs().mean(dim=(1, 2))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; Gaussian window of 11 pixels, sigma 1.5): (N, H, W) twice -> (N,).

    1 for equal pictures. As in the paper, windows that reach over the border count for nothing; a side has at least 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # two seconds that only evaluation needs

    means = []
    for parts in zip(first[:, None].split(SSIM_BATCH), second[:, None].split(SSIM_BATCH), strict=True):
        pair = (part.double() for part in parts)  # the variance of a smooth picture is lost in the rounding of float32
        _, local = structural_similarity_index_measure(*pair, sigma=1.5, data_range=1.0, return_full_image=True)
        means.append(local[:, 0, SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER].mean(dim=(1, 2)))
    return torch.cat(means).float()


def histogram_distance(first: Tensor, second: Tensor) -> Tensor:
    """First Wasserstein distance between the distributions of grey values: (N, H, W) twice, of one size -> (N,)."""
    return (first.flatten(1).sort(dim=1).values - second.flatten(1).sort(dim=1).values).abs().mean(dim=1)


def speckle_contrast(pictures: Tensor) -> Tensor:
    """Median over windows of 7 x 7 of standard deviation by mean, black windows left out: (N, H, W) -> (N,)."""
    mean = F.avg_pool2d(pictures[:, None], SPECKLE_WINDOW, stride=1)
    variance = (F.avg_pool2d(pictures[:, None] ** 2, SPECKLE_WINDOW, stride=1) - mean**2).clamp(min=0)
    ratio = torch.where(mean > 1e-3, variance.sqrt() / mean.clamp(min=1e-3), math.nan)
    return ratio.flatten(1).nanmedian(dim=1).values.nan_to_num(0.0)


def spectrum(pictures: Tensor) -> Tensor:
    """Log10 of the power at each distance from frequency 0, averaged over directions: (N, H, W) -> (N, min(H, W) / 2)."""
    height, width = pictures.shape[1:]
    power = torch.fft.fft2(pictures - pictures.mean(dim=(1, 2), keepdim=True)).abs().square() / (height * width)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    count = min(height, width) // 2
    ring = (radius * 2 * count).round().long().clamp(max=count).flatten()
    sums = torch.zeros(len(pictures), count + 1).index_add_(1, ring, power.flatten(1))
    means = sums / torch.bincount(ring)  # the corners lie beyond the last ring, so that each has a pixel
    return means[:, 1:].clamp(min=1e-8).log10()


def spectrum_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of `spectrum`: (N, H, W) twice -> (N,), in powers of ten."""
    return (spectrum(first) - spectrum(second)).abs().mean(dim=1)


def contrast_distance(first: Tensor, second: Tensor) -> Tensor:
    """Absolute difference of `speckle_contrast`: (N, H, W) twice -> (N,)."""
    return (speckle_contrast(first) - speckle_contrast(second)).abs()


def feature_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 - cosine: (N, D) twice -> (N,), 0..2."""
    return 1 - F.cosine_similarity(first, second, dim=1)


def diversity(samples: Tensor) -> Tensor:
    """Mean L1 between two samples of a picture: (N, K, H, W) -> (N,); 0 for K = 1."""
    count = samples.shape[1]
    if count == 1:
        return torch.zeros(len(samples))
    total = sum((samples[:, i] - samples[:, j]).abs().mean(dim=(1, 2)) for i in range(count) for j in range(i))
    return total / (count * (count - 1) / 2)


def match_ranks(queries: Tensor, gallery: Tensor, query_places: Tensor, gallery_places: Tensor) -> Tensor:
    """Rank, from 1, of the nearest gallery feature of a query's own place: (Q, D), (G, D), (Q,), (G,) -> (Q,) int64.

    Features are compared by cosine, and ranked as those of ships are: of equally near ones, the gallery's first comes first, so
    that features that are all alike rank as chance does. Places count from 0, and every query needs a match.

    Raises:
        DataError: a feature is not finite.
    """
    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    result = rank_features(queries, gallery, query_ids=query_places, gallery_ids=gallery_places)
    return torch.from_numpy(result.first_match)
