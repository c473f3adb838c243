"""Identity classifiers: logits from features (B, D) -> (B, C), C identities.

A linear map is the released default. The margin heads take the labels in training and add their margin to the true identity's
logit; cosines are of L2-normalised features and class weights, logits are scaled by `scale` (s), the margin is m.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

TINY_SQUARE = 1e-12
"""Least squared sine under the root, whose slope is infinite at 0."""


def linear_head(in_features: int, classes: int) -> nn.Linear:
    """A linear classifier without bias, (B, D) -> (B, C)."""
    head = nn.Linear(in_features, classes, bias=False)
    nn.init.normal_(head.weight, std=0.001)
    return head


def arcface_logits(cosine: Tensor, labels: Tensor, *, scale: float, margin: float) -> Tensor:
    """Additive angular margin (Deng et al. 2019): cos(theta + m) for the true identity.

    Where theta + m would pass pi, the target is cos(theta) - m sin(m), which keeps falling.

    Args:
        cosine: (B, C) in -1..1.
        labels: (B,).
    """
    sine = (1 - cosine.square()).clamp(min=TINY_SQUARE).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    target = torch.where(cosine > -math.cos(margin), shifted, cosine - margin * math.sin(margin))
    return scale * _at_labels(cosine, labels, target)


def cosface_logits(cosine: Tensor, labels: Tensor, *, scale: float, margin: float) -> Tensor:
    """Additive cosine margin (CosFace, AM-Softmax; 2018): cos(theta) - m; arguments as for `arcface_logits`."""
    return scale * _at_labels(cosine, labels, cosine - margin)


def circle_logits(cosine: Tensor, labels: Tensor, *, scale: float, margin: float) -> Tensor:
    """Circle loss (Sun et al. 2020): each logit weighted by its distance from its optimum, weights without gradient."""
    positive = (1 + margin - cosine.detach()).clamp(min=0) * (cosine - 1 + margin)
    negative = (cosine.detach() + margin).clamp(min=0) * (cosine - margin)
    return scale * _at_labels(negative, labels, positive)


def _at_labels(others: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """`targets` in the true identity's column of each row, `others` elsewhere."""
    is_target = functional.one_hot(labels, others.shape[1]).bool()
    return torch.where(is_target, targets, others)


MARGINS = {
    "arcface": arcface_logits,
    "cosface": cosface_logits,
    "amsoftmax": cosface_logits,
    "circle": circle_logits,
}


class MarginHead(nn.Module):
    """A cosine classifier with a margin on the true identity.

    Args:
        kind: a key of `MARGINS`.
        in_features: D.
        classes: C.
        scale: s (SOLVER.COSINE_SCALE).
        margin: m (SOLVER.COSINE_MARGIN).

    Tensors bear the released names and start as there: `weight` (C, D), for 'amsoftmax' `W` (D, C).
    """

    def __init__(self, kind: str, in_features: int, classes: int, *, scale: float, margin: float):
        super().__init__()
        self.kind, self.scale, self.margin = kind, scale, margin
        if kind == "amsoftmax":
            self.W = nn.Parameter(nn.init.xavier_normal_(torch.empty(in_features, classes)))
            return
        self.weight = nn.Parameter(torch.empty(classes, in_features))
        if kind == "circle":
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        else:
            nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, D) -> (B, C); with labels (B,) the margin is applied, without them the logits are scaled cosines."""
        weight = self.W.t() if self.kind == "amsoftmax" else self.weight
        cosine = functional.linear(functional.normalize(features), functional.normalize(weight))
        if labels is None:
            return self.scale * cosine
        return MARGINS[self.kind](cosine, labels, scale=self.scale, margin=self.margin)
