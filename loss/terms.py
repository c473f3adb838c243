"""The terms of the training objective, as functions of a batch.

Legend: B images, D feature width, C identities, P pairs. Every function returns a scalar in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional

TINY_SQUARE = 1e-12
"""Least squared distance under the root, whose slope is infinite at 0."""


def euclidean_distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (A, B) between the rows of `a` (A, D) and `b` (B, D)."""
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.t()
    return squares.clamp(min=TINY_SQUARE).sqrt()


def batch_hard_triplet(features: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
    """Triplet loss over each image's farthest positive and nearest negative (Hermans et al. 2017).

    Args:
        features: (B, D), not normalised.
        labels: (B,).
        margin: mean of max(0, d_ap - d_an + margin); None: soft margin, mean of log(1 + exp(d_ap - d_an)).

    An image is its own positive where it has no other one; without any negative its loss is 0.
    """
    distances = euclidean_distances(features, features)
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, -torch.inf).amax(1)
    negative = distances.masked_fill(same, torch.inf).amin(1)
    difference = positive - negative
    return functional.softplus(difference).mean() if margin is None else functional.relu(difference + margin).mean()


def classwise_alignment(features: Tensor, labels: Tensor, modalities: Tensor, *, squared: bool = False) -> Tensor:
    """Class-wise modality alignment loss, CMAL (MOS, section 3.2).

    For each identity seen in both modalities: the norm of the difference of the two modality means plus the norm of the
    difference of the two (biased) variances of L2-normalised features; the mean over those identities, 0 if there is none.

    Args:
        features: (B, D).
        labels: (B,).
        modalities: (B,); 0 optical, 1 SAR.
        squared: squared norms, as the paper writes it (diagonal approximation of the 2-Wasserstein distance); the released
            program does not square.
    """
    features = functional.normalize(features)
    same = labels[:, None] == labels[None, :]
    # Every image stands for its identity, at a weight of 1 / (images of that identity): no sorting and no loop over
    # identities, whose number the host need not know.
    optical_mean, optical_variance, has_optical = _group_statistics(features, same & (modalities == 0))
    sar_mean, sar_variance, has_sar = _group_statistics(features, same & (modalities == 1))
    weight = (has_optical & has_sar) / same.sum(1)
    # vector_norm has gradient 0 at 0, which one chip a modality (variance 0 on both sides) needs.
    gap = (
        torch.linalg.vector_norm(optical_mean - sar_mean, dim=1),
        torch.linalg.vector_norm(optical_variance - sar_variance, dim=1),
    )
    distance = gap[0].square() + gap[1].square() if squared else gap[0] + gap[1]
    return (weight * distance).sum() / weight.sum().clamp(min=1)


def orthogonality(shared: Tensor, specific: Tensor) -> Tensor:
    """How much of a direction two features (B, D) of an image have in common: the mean of |cos| over the batch (SDF-Net)."""
    return (functional.normalize(shared) * functional.normalize(specific)).sum(1).abs().mean()


def structure_consistency(structure: Tensor, labels: Tensor, modalities: Tensor) -> Tensor:
    """How far the two modalities of an identity differ in structure (SDF-Net).

    For each identity seen in both modalities: the mean over D of the squared difference of the two modality means; the mean
    over those identities, 0 if there is none.

    Args:
        structure: (B, D) descriptors.
        labels: (B,).
        modalities: (B,); 0 optical, 1 SAR.
    """
    same = labels[:, None] == labels[None, :]
    optical, _, has_optical = _group_statistics(structure, same & (modalities == 0))
    sar, _, has_sar = _group_statistics(structure, same & (modalities == 1))
    weight = (has_optical & has_sar) / same.sum(1)  # each image stands for its identity, as above
    return (weight * (optical - sar).square().mean(1)).sum() / weight.sum().clamp(min=1)


def _group_statistics(features: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (B, D) of each row's members (B, B), and whether it has any (B,)."""
    count = members.sum(1, keepdim=True)
    share = members.to(features.dtype) / count.clamp(min=1)
    mean = share @ features
    variance = (share @ features.square() - mean.square()).clamp(min=0)
    # With one member the difference above is rounding, not variance.
    return mean, torch.where(count > 1, variance, 0.0), count.squeeze(1) > 0


def global_alignment(features: Tensor, modalities: Tensor) -> Tensor:
    """One alignment over the batch: mean squared error of the modality means plus that of their variances (released, unused).

    Args:
        features: (B, D), not normalised.
        modalities: (B,); 0 optical, 1 SAR. 0 if the batch holds one modality.
    """
    optical = (modalities == 0).to(features.dtype)[None]
    sar = (modalities == 1).to(features.dtype)[None]
    optical_mean, optical_variance = _moments(features, optical)
    sar_mean, sar_variance = _moments(features, sar)
    both = (optical.sum() > 0) & (sar.sum() > 0)
    return torch.where(
        both, functional.mse_loss(optical_mean, sar_mean) + functional.mse_loss(optical_variance, sar_variance), 0.0
    )


def _moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    share = weights / weights.sum().clamp(min=1)
    mean = share @ features
    return mean, share @ (features - mean).square()


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Mean squared Euclidean distance of each feature (B, D) to its identity's centre in `centers` (C, D) (Wen et al. 2016)."""
    return (features - centers[labels]).square().sum(1).clamp(min=TINY_SQUARE).mean()


def pair_logits(sar: Tensor, optical: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosines of contrastive pre-training (TransOSS, section 4.1).

    Args:
        sar, optical: (P, D) features of the two halves of P pairs.
        logit_scale: logarithm of the scale.

    Returns:
        (P, P); rows SAR, columns optical.
    """
    return logit_scale.exp() * functional.normalize(sar) @ functional.normalize(optical).t()


def symmetric_contrastive(logits: Tensor) -> Tensor:
    """InfoNCE in both directions over (P, P) logits whose diagonal holds the true pairs (CLIP; TransOSS, section 4.1)."""
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.t(), targets)) / 2


def pair_loss(sar: Tensor, optical: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of pre-training on pairs, and the logits (P, P) that it is made of; see `pair_logits`. Computed in float32."""
    logits = pair_logits(sar.float(), optical.float(), logit_scale)
    return symmetric_contrastive(logits), logits
