"""Contrastive pre-training on optical-SAR pairs as a task of the engine.

Legend: B images (B / 2 pairs), D feature width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datasets.records import Batch
from processor.parts import AS_FIT, find_part, learn_in_parts
from processor.task import Task
from processor.update import Update
from utils import distributed
from utils.device import Precision
from utils.global_batch import gather_rows


@dataclass
class PairTask(Task):
    """Each SAR image finds the optical image of its pair among those of the batch, and the reverse.

    Attributes:
        network: gives a `ReIDOutput` of images, modalities and sizes; its `logit_scale` is learned too.
        objective: SAR features, optical features and the scale's logarithm -> loss, and logits (B / 2, B / 2).
        update: steps the optimiser.
        schedule: sets the learning rates of an epoch (1, 2, ...).
        precision: in which the network computes.
        device: where.
        local_losses: whether each process compares the pairs of its own share only, not those of the whole batch.
        part: images that go through the network together (`processor.parts`); 0: the whole batch, -1: as many as fit.
        largest_logit_scale: bound of the learned temperature's logarithm, so that logits cannot grow without end.
    """

    network: nn.Module
    objective: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    update: Update
    schedule: Any
    precision: Precision
    device: torch.device
    local_losses: bool = False
    part: int = 0
    largest_logit_scale: float = 4.6052  # log 100
    name = "pre-train"
    numbers = ("contrastive", "loss", "accuracy", "logit_scale")

    def __post_init__(self):
        self.parts = {"update": self.update}

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the term, the total, the share of SAR images that find their pair, and the scale."""
        batch, network = batch.to(self.device), distributed.unwrap(self.network)
        if self.part == AS_FIT:
            self.part = find_part(network, lambda part: {"feature": self._features(part)}, batch)
        if 0 < self.part < len(batch.images):
            loss, logits = learn_in_parts(
                batch.split(self.part),
                lambda part: {"feature": self._features(part)},
                lambda said: self._learn(said["feature"], network.logit_scale),
                self.update,
                others=[network.logit_scale],
            )
        else:
            loss, logits = self._learn(self._features(batch), network.logit_scale)
        self.update.complete()
        with torch.no_grad():
            network.logit_scale.clamp_(0.0, self.largest_logit_scale)
        accuracy = (logits.argmax(1) == torch.arange(len(logits), device=logits.device)).float().mean()
        return torch.stack([loss.detach(), loss.detach(), accuracy, network.logit_scale.detach().exp()])

    def begin(self, epoch: int) -> None:
        """Set the learning rates."""
        self.schedule.step(epoch)

    def rate(self) -> float:
        """Of the network's first parameters."""
        return self.update.optimizers[0].param_groups[0]["lr"]

    def _features(self, part: Batch) -> Tensor:
        with self.precision.autocast():
            feature = self.network(part.images, part.modalities, part.sizes).feature
        return feature.float()

    def _learn(self, features: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch's features (B, D), gradients taken."""
        optical, sar = features.chunk(2) if self.local_losses else map(gather_rows, features.chunk(2))
        loss, logits = self.objective(sar, optical, logit_scale)
        self.update.backward(loss)
        return loss, logits
