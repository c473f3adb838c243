"""The re-identification model: backbone, BNNeck, classifier.

Legend: B images, D feature width (twice the backbone's where two features stand side by side), C training identities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.features import Features, fuse_tokens, fused_width
from model.heads import MarginHead

INITIAL_LOGIT_SCALE = 2.6592
"""log(1 / 0.07): the temperature at which contrastive pre-training starts."""


@dataclass
class ReIDOutput:
    """What the model says of a batch.

    Attributes:
        feature: (B, D) before the neck; triplet and alignment losses use it.
        neck_feature: (B, D) after the neck.
        scores: (B, C) identity logits from `neck_feature`; None where the model has no classifier.
        parts: what `feature` was made of; the losses of SDF-Net use it.
    """

    feature: Tensor
    neck_feature: Tensor
    scores: Tensor | None
    parts: Features


class ReIDModel(nn.Module):
    """Backbone -> feature -> BNNeck -> classifier. Tensor names are those of the released checkpoints.

    Args:
        base: maps (images, modalities, sizes) to `Features` and has `num_features`, their width.
        classifier: a linear head or a `MarginHead`, (B, D) -> (B, C); None for a model that only extracts features.
        neck: whether features pass a BatchNorm1d (bias frozen at 0) on their way to the classifier.
        fusion: how a shared and a specific feature become one (`fuse_tokens`); None for a backbone with a shared one alone.
            The fused feature has a neck of its own, `bottleneck_fuse`; `bottleneck` is there all the same, since the released
            loader of SDF-Net wants it, and unused.
    """

    def __init__(self, base: nn.Module, classifier: nn.Module | None = None, *, neck: bool = True, fusion: str | None = None):
        super().__init__()
        self.fusion = fusion
        self.num_features = fused_width(base.num_features, fusion)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.base = base
        self.classifier = classifier
        self.bottleneck = nn.BatchNorm1d(base.num_features) if neck else nn.Identity()
        if fusion:
            self.bottleneck_fuse = nn.BatchNorm1d(self.num_features) if neck else nn.Identity()
            self.bottleneck.requires_grad_(False)
        if neck:
            self.neck.bias.requires_grad_(False)

    @property
    def neck(self) -> nn.Module:
        """The neck that features pass."""
        return self.bottleneck_fuse if self.fusion else self.bottleneck

    def units(self) -> list[nn.Module]:
        """Parts whose tensors are needed together, inner ones first; together they hold all that is trained but `logit_scale`.

        The last block is none: `model.transoss.leading_tokens` takes its tensors from outside.
        """
        blocks = list(self.base.blocks[:-1]) if hasattr(self.base, "blocks") else []
        parts = [*blocks, self.base, self.neck, self.classifier]
        return [part for part in parts if part is not None and any(own.requires_grad for own in part.parameters())]

    def forward(
        self, images: Tensor, modalities: Tensor, sizes: Tensor, labels: Tensor | None = None, *, judges: bool = True
    ) -> ReIDOutput | Features:
        """Features and scores of a batch.

        Args:
            images: (B, 3, H, W), normalised.
            modalities: (B,) int64; 0 optical, 1 SAR; one modality alone will do.
            sizes: (B, 3) size triples.
            labels: (B,) int64; a margin head adds its margin to these identities.
            judges: whether `judge` follows; False: only what the backbone tells.
        """
        parts = self.base(images, modalities, sizes)
        return self.judge(parts, labels) if judges else parts

    def judge(self, parts: Features, labels: Tensor | None = None) -> ReIDOutput:
        """Features and scores of what the backbone tells of a batch; the neck looks at the batch as a whole."""
        feature = fuse_tokens(parts.shared, parts.specific, self.fusion) if self.fusion else parts.shared
        neck_feature = self.neck(feature)
        if self.classifier is None:
            scores = None
        elif isinstance(self.classifier, MarginHead):
            scores = self.classifier(neck_feature, labels)
        else:
            scores = self.classifier(neck_feature)
        return ReIDOutput(feature=feature, neck_feature=neck_feature, scores=scores, parts=parts)
