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
    with torch.no_grad():
        # Which pairs count has no slope: gradients run through two distances an image, not through the matrix of all.
        distances = euclidean_distances(features, features)
        same = labels[:, None] == labels[None, :]
        positive = distances.masked_fill(~same, -torch.inf).argmax(1)
        negative = distances.masked_fill(same, torch.inf).argmin(1)
    nearest = torch.where(same.all(1), torch.inf, _paired_distances(features, features.index_select(0, negative)))
    difference = _paired_distances(features, features.index_select(0, positive)) - nearest
    return functional.softplus(difference).mean() if margin is None else functional.relu(difference + margin).mean()


def _paired_distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (B,) of each row of `a` (B, D) from the same row of `b` (B, D)."""
    return (a - b).square().sum(1).clamp(min=TINY_SQUARE).sqrt()


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
    groups = _groups(labels)
    optical_mean, optical_variance, optical = _group_statistics(features, groups, modalities == 0)
    sar_mean, sar_variance, sar = _group_statistics(features, groups, modalities == 1)
    weight = ((optical > 0) & (sar > 0)).to(features.dtype)
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
    groups = _groups(labels)
    optical_mean, _, optical = _group_statistics(structure, groups, modalities == 0)
    sar_mean, _, sar = _group_statistics(structure, groups, modalities == 1)
    weight = ((optical > 0) & (sar > 0)).to(structure.dtype)
    return (weight * (optical_mean - sar_mean).square().mean(1)).sum() / weight.sum().clamp(min=1)


def _groups(labels: Tensor) -> tuple[Tensor, int]:
    """Place (B,) of each label (B,) among the identities, and how many places there are; some may have no image."""
    if labels.device.type != "cpu":
        return _groups_by_first_image(labels)
    ids, place = labels.unique(return_inverse=True)
    return place, len(ids)


def _groups_by_first_image(labels: Tensor) -> tuple[Tensor, int]:
    """The same at the place of each identity's first image: a host need not wait to learn how many there are."""
    return (labels[:, None] == labels[None, :]).byte().argmax(1), len(labels)


def _group_statistics(features: Tensor, groups: tuple[Tensor, int], members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C, D) of each of C groups' rows among `members` (B,), and how many these are (C,)."""
    # A row that is no member is added to a group of its own, which is dropped: no mask of the features is made.
    place, count = groups
    place = torch.where(members, place, count)
    zeros = features.new_zeros(count + 1, features.shape[1])
    number = features.new_zeros(count + 1).index_add(0, place, features.new_ones(len(place)))[:-1]
    share = 1 / number.clamp(min=1)[:, None]
    mean = zeros.index_add(0, place, features)[:-1] * share
    variance = (zeros.index_add(0, place, features.square())[:-1] * share - mean.square()).clamp(min=0)
    # With one member the difference above is rounding, not variance.
    return mean, torch.where(number[:, None] > 1, variance, 0.0), number


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
