"""The training objective of re-identification: named terms, and their weights in one dict."""

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

from loss.terms import (
    batch_hard_triplet,
    center_loss,
    classwise_alignment,
    global_alignment,
    orthogonality,
    structure_consistency,
)

logger = logging.getLogger(__name__)

LABEL_SMOOTHING = 0.1


class Criterion(nn.Module):
    """Terms 'identity', 'triplet', 'alignment', 'center', 'orthogonality' and 'structure' of a batch.

    Only those with a weight are computed.

    Args:
        weights: weight of each term in the total.
        label_smoothing: share of the target spread over all identities.
        margin: of the triplet term; None: soft margin.
        alignment: 'classwise' or 'global'.
        alignment_squared: the paper's squared norms in the class-wise form.
        centers: initial (C, D) class centres of the 'center' term; they are learned.
    """

    def __init__(
        self,
        weights: dict[str, float],
        *,
        label_smoothing: float = 0.0,
        margin: float | None = None,
        alignment: str = "classwise",
        alignment_squared: bool = False,
        centers: Tensor | None = None,
    ):
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.label_smoothing = label_smoothing
        self.margin = margin
        self.alignment = alignment
        self.alignment_squared = alignment_squared
        self.centers = None if centers is None else nn.Parameter(centers)

    def forward(
        self,
        feature: Tensor,
        scores: Tensor,
        labels: Tensor,
        modalities: Tensor,
        *,
        shared: Tensor | None = None,
        specific: Tensor | None = None,
        structure: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted terms by name.

        Args:
            feature: (B, D) before the neck.
            scores: (B, C) identity logits.
            labels: (B,).
            modalities: (B,); 0 optical, 1 SAR.
            shared, specific: (B, D) that 'orthogonality' compares.
            structure: (B, D) descriptors of 'structure'.
        """
        # Losses are float32 whatever the network computed in.
        feature, scores = feature.float(), scores.float()
        terms: dict[str, Tensor] = {}
        if "identity" in self.weights:
            terms["identity"] = functional.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)
        if "triplet" in self.weights:
            terms["triplet"] = batch_hard_triplet(feature, labels, margin=self.margin)
        if "alignment" in self.weights:
            terms["alignment"] = self._alignment(feature, labels, modalities)
        if "center" in self.weights:
            terms["center"] = center_loss(feature, labels, self.centers)
        if "orthogonality" in self.weights:
            terms["orthogonality"] = orthogonality(shared.float(), specific.float())
        if "structure" in self.weights:
            terms["structure"] = structure_consistency(structure.float(), labels, modalities)
        return terms

    def _alignment(self, feature: Tensor, labels: Tensor, modalities: Tensor) -> Tensor:
        if self.alignment == "global":
            return global_alignment(feature, modalities)
        return classwise_alignment(feature, labels, modalities, squared=self.alignment_squared)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum that training minimises."""
        return sum(self.weights[name] * value for name, value in terms.items())


def build_criterion(cfg, *, num_identities: int, num_features: int) -> Criterion:
    """The objective that MODEL.* and SOLVER.* describe.

    Args:
        cfg: the configuration.
        num_identities: C, for centres.
        num_features: D, for centres.
    """
    weights = {
        "identity": cfg.MODEL.ID_LOSS_WEIGHT,
        # Batches of plain shuffled images hold hardly a positive pair; the released programs train on identity alone then.
        "triplet": cfg.MODEL.TRIPLET_LOSS_WEIGHT if cfg.DATALOADER.SAMPLER == "softmax_triplet" else 0.0,
        "alignment": cfg.MODEL.MODALITY_LOSS_WEIGHT if cfg.DATALOADER.SAMPLER == "softmax_triplet" else 0.0,
        "center": cfg.SOLVER.CENTER_LOSS_WEIGHT if cfg.MODEL.IF_WITH_CENTER == "yes" else 0.0,
        "orthogonality": cfg.MODEL.ORTH_LOSS_WEIGHT if cfg.MODEL.DISENTANGLE else 0.0,
        "structure": cfg.MODEL.STRUCT_LOSS_WEIGHT,
    }
    criterion = Criterion(
        weights,
        label_smoothing=LABEL_SMOOTHING if cfg.MODEL.IF_LABELSMOOTH == "on" else 0.0,
        margin=None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        alignment=cfg.MODEL.MODALITY_LOSS_TYPE,
        alignment_squared=cfg.MODEL.MODALITY_LOSS_SQUARED,
        centers=torch.randn(num_identities, num_features) if weights["center"] else None,
    )
    logger.info("loss = %s", " + ".join(f"{weight:g} x {name}" for name, weight in criterion.weights.items()))
    return criterion
