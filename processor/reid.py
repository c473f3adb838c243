"""Re-identification as a task of the engine: identities, triplets and alignment of modalities, judged by the protocols."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datasets.records import Batch
from model.features import Features
from model.reid import ReIDOutput
from processor.parts import AS_FIT, Said, find_part, learn_in_parts
from processor.ranking.evaluation import RATES, Evaluation
from processor.selection import Selection, SelectionSplit
from processor.task import Task
from processor.update import Update
from utils import distributed
from utils.device import Precision
from utils.global_batch import gather_rows
from utils.log import MetricsWriter

logger = logging.getLogger(__name__)

BEST = {"best_model_mAP": ("mAP", "mAP"), "best_model_rank1": ("rank1", "R1")}
"""File of best weights -> the metric as its record names it, and as scores do; of the ALL protocol, plain."""


@dataclass
class ReIDTask(Task):
    """Each chip is told by its ship, and the best weights are those of the best mAP and of the best R1.

    Attributes:
        network: gives a `ReIDOutput` of images, modalities, sizes and labels.
        criterion: gives terms of `feature`, `scores`, labels, modalities and the features' `parts`, and their `total`.
        update: steps the optimisers.
        schedule: sets the learning rates of an epoch (1, 2, ...).
        precision: in which the network computes.
        device: where.
        test: scores the protocols with the weights of now.
        split: what the protocols are of, and so what the best weights are chosen on.
        local_losses: whether each process compares the images of its own share only, not those of the whole batch.
        part: images that go through the backbone together (`processor.parts`); 0: the whole batch, -1: as many as fit.
        evaluations: the last scores.
    """

    network: nn.Module
    criterion: nn.Module
    update: Update
    schedule: Any
    precision: Precision
    device: torch.device
    test: Callable[[], Mapping[str, Evaluation]]
    split: SelectionSplit
    local_losses: bool = False
    part: int = 0
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    name = "train"

    def __post_init__(self):
        self.numbers = (*self.criterion.weights, "loss", "accuracy")
        self.parts = {"criterion": self.criterion, "update": self.update}

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the terms of the objective, their weighted total and the share of ships that were told right."""
        batch, network = batch.to(self.device), distributed.unwrap(self.network)
        if self.part == AS_FIT:
            self.part = find_part(network, partial(self._see, network), batch)
        if not 0 < self.part < len(batch.images):
            with self.precision.autocast():
                output = self.network(batch.images, batch.modalities, batch.sizes, batch.labels)
            numbers = self._learn(output, batch)
        else:

            def learn(said: Said) -> Tensor:
                with self.precision.autocast():
                    output = network.judge(Features(**said), batch.labels)
                return self._learn(output, batch)

            others = [value for name, value in network.named_parameters() if not name.startswith("base.")]
            parts, see = batch.split(self.part), partial(self._see, self.network)
            numbers = learn_in_parts(parts, see, learn, self.update, others=others)
        self.update.complete()
        return numbers

    def _see(self, network: nn.Module, part: Batch) -> Said:
        """What the backbone tells of images."""
        with self.precision.autocast():
            told = network(part.images, part.modalities, part.sizes, judges=False)
        return {name: values for name, values in vars(told).items() if values is not None}

    def _learn(self, output: ReIDOutput, batch: Batch) -> Tensor:
        """The numbers of a step, gradients taken."""
        share = (lambda rows: rows) if self.local_losses else gather_rows
        feature, scores, labels, modalities = map(share, (output.feature, output.scores, batch.labels, batch.modalities))
        parts = {name: None if rows is None else share(rows) for name, rows in vars(output.parts).items()}
        terms = self.criterion(feature, scores, labels, modalities, **parts)
        total = self.criterion.total(terms)
        self.update.backward(total)
        accuracy = (scores.argmax(1) == labels).float().mean()
        return torch.stack([*(terms[name].detach() for name in self.criterion.weights), total.detach(), accuracy])

    def begin(self, epoch: int) -> None:
        """Set the learning rates."""
        self.schedule.step(epoch)

    def rate(self) -> float:
        """Of the network's first parameters."""
        return self.update.optimizers[0].param_groups[0]["lr"]

    def evaluate(self, epoch: int, metrics: MetricsWriter) -> dict[str, float]:
        """Score the protocols; the ALL protocol chooses the best weights."""
        self.evaluations = self.test()
        for protocol, evaluation in self.evaluations.items():
            score = evaluation.plain
            rates = {rate: getattr(score, rate) for rate in RATES}
            intervals = {f"{rate}_interval": getattr(score, f"{rate}_interval").ends for rate in RATES}
            metrics.write(kind=self.split.name, epoch=epoch, protocol=protocol, **rates, **intervals)
        scores = {protocol: evaluation.plain for protocol, evaluation in self.evaluations.items()}
        told = (f"{protocol} {100 * score.mAP:.1f} / {100 * score.R1:.1f}" for protocol, score in scores.items())
        logger.info("epoch %d, mAP / R1: %s", epoch, ", ".join(told))
        return {file: getattr(scores["ALL"], rate) for file, (_, rate) in BEST.items()}

    def selection(self, name: str, *, epoch: int, figure: float) -> dict[str, Any]:
        """On which split the weights were chosen (`processor.selection.Selection`)."""
        split = {"split": self.split.name, **{key: getattr(self.split, key) for key in ("fraction", "seed", "root", "images")}}
        return asdict(Selection(epoch, BEST[name][0], figure, **split))
