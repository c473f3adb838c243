"""Where a training stands, as exactly as a run needs that goes on from there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from processor.task import Task
from utils import distributed


@dataclass
class Standing:
    """Where a training stands.

    Attributes:
        sums: (N,) float64, the numbers of the epoch's batches that have been looked at, added up; of all processes the mean.
        epoch: that is being learned, from 1 on.
        step: steps of it that are done.
        finished: all of them are done and told; only the evaluation is left.
        recent: of each batch since then its numbers (N,), on the device, and the indices of its chips.
        best: name of the best weights' file -> their figure.
        batch: indices of the chips of the last batch.
    """

    sums: Tensor
    epoch: int = 1
    step: int = 0
    finished: bool = False
    recent: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    batch: Tensor | None = None

    def __str__(self) -> str:
        """In words, for whoever reads where a training stopped."""
        if not self.step:
            return f"epoch {self.epoch - 1}"
        return f"step {self.step} of epoch {self.epoch}"

    def add(self, numbers: Tensor, indices: Tensor) -> None:
        """Count a batch."""
        self.recent.append((numbers, indices))
        self.step, self.batch = self.step + 1, indices

    def close_epoch(self) -> None:
        """Turn to the first step of the next epoch."""
        self.epoch, self.step, self.finished = self.epoch + 1, 0, False
        self.sums = torch.zeros_like(self.sums)

    def has_logged(self, line: Mapping[str, Any]) -> bool:
        """Whether a line of metrics.jsonl was written before."""
        told = line["step"] <= self.step if line["kind"] == "step" else line["kind"] == "epoch" and self.finished
        return line["epoch"] < self.epoch or (line["epoch"] == self.epoch and told)

    def state_dict(self) -> dict[str, Any]:
        """As last.pth keeps it; 'epoch' counts those that are done. Call it on every process."""
        own = torch.stack([numbers for numbers, _ in self.recent]) if self.recent else torch.zeros(0, len(self.sums))
        within = {"step": self.step, "finished": self.finished, "sums": self.sums, "numbers": distributed.mean(own)}
        within["indices"] = [indices for _, indices in self.recent]
        return {"epoch": self.epoch - 1, "best": dict(self.best), "within": within}

    @classmethod
    def at_start(cls, task: Task) -> "Standing":
        """Before the first step of a task."""
        return cls(torch.zeros(len(task.numbers), dtype=torch.float64))

    @classmethod
    def of_state(cls, state: Mapping[str, Any], task: Task) -> "Standing":
        """Where a state was taken, by `state_dict`, of a task.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the state is of something else.
        """
        at = cls.at_start(task)
        at.epoch, at.best = int(state["epoch"]) + 1, dict(state["best"])
        within = state.get("within")
        if within is not None:  # states were once written at the end of an epoch only
            at.step, at.finished, at.sums = int(within["step"]), bool(within["finished"]), within["sums"].clone()
            at.recent = list(zip(within["numbers"].to(task.device).unbind(), within["indices"], strict=True))
        return at
