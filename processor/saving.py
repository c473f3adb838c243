"""What a training keeps, and when: its weights, and last.pth to go on from to the bit, also where it is asked to end."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from processor.standing import Standing
from processor.task import Task, TrainingPlan
from utils import distributed
from utils.checkpoint import DESCRIPTION, save
from utils.cli import command_to_go_on
from utils.errors import TrainingError, some
from utils.sharding import whole
from utils.signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)

LAST = "last.pth"

ASKING_SECONDS = 1.0
"""How often several processes ask each other whether one of them is to end."""


class Saver:
    """Writes what a training keeps, when it is due and when the program is asked to end; use it as a context.

    Args:
        task: what is trained.
        plan: where to, and how often.
        chips: what the indices of batches refer to.
    """

    def __init__(self, task: Task, plan: TrainingPlan, chips: Sequence):
        self.task = task
        self.plan = plan
        self.chips = chips
        self.request = StopRequest()
        self.pause = 60 * plan.save_minutes or math.inf
        self.asked = self.saved = time.monotonic()
        self.unasked = self.asking = 1

    def __enter__(self) -> "Saver":
        """Take over signals."""
        self._signals = ExitStack()
        self._signals.enter_context(self.request.noted())
        return self

    def __exit__(self, *error: object) -> None:
        """Leave signals to whom they were."""
        self._signals.close()

    def after_step(self, at: Standing) -> None:
        """Write a state if it is time, and end if that was asked for; the device is not waited for where nothing is written.

        Raises:
            Interrupted: the program was asked to end; the state is written.
        """
        self.unasked -= 1
        if self.unasked:
            return
        number, late = self._ask()
        if number or late:
            self.write(at, self.state(at))
        if number:
            self._end(at, number)

    def _ask(self) -> tuple[int, bool]:
        """The signal, if one came, and whether a state is due: of any process, so that all do the same after the same step."""
        now = time.monotonic()
        number, late, seconds = self.request.number, now - self.saved >= self.pause, now - self.asked
        if distributed.world_size() > 1:
            number, late, seconds = distributed.maximum([number, late, seconds])
            self.asking = min(100, max(1, int(ASKING_SECONDS * self.asking / max(seconds, 1e-3))))
        self.asked, self.unasked = now, self.asking
        return int(number), bool(late)

    def _end(self, at: Standing, number: int) -> None:
        logger.info("saved %s after %s; go on with:\n  %s", self.plan.folder / LAST, at, command_to_go_on())
        raise Interrupted(number)

    @contextmanager
    def interruptible(self, at: Standing) -> Iterator[None]:
        """A block, such as an evaluation, that changes nothing that is kept: it is torn where the program is asked to end.

        Raises:
            Interrupted: the program was asked to end; the state of before the block is written.
        """
        state = self.state(at)  # beforehand, since processes gather some of it, and may not all be interrupted
        try:
            with self.request.at_once():
                yield
        except Interrupted as error:
            self.write(at, state)
            self._end(at, error.number)

    def after_epoch(self, at: Standing, *, last: bool) -> None:
        """Write the weights of an epoch and the state, if they are due.

        Raises:
            Interrupted: the program was asked to end before the last epoch; the state is written.
        """
        epoch, plan = at.epoch, self.plan
        at.close_epoch()
        number, late = self._ask()
        period = plan.evaluation_period if plan.checkpoint_period < 0 else plan.checkpoint_period
        due = last or epoch % period == 0
        if due or late or number:
            state = self.state(at)
            if due and (plan.checkpoint_period > 0 or not at.best):  # nothing is the best of a training that is not judged
                save_weights(self.task, plan.folder / f"{plan.name}_{epoch}.pth", {**plan.description, "epoch": epoch})
            self.write(at, state)
        if number and not last:
            self._end(at, number)

    def keep_best(self, at: Standing, figures: Mapping[str, float]) -> None:
        """Write the weights whose figure is the best so far, and raise `at.best`."""
        for name, figure in figures.items():
            if figure > at.best.get(name, -math.inf):
                at.best[name] = figure
                path = self.plan.folder / f"{name}.pth"
                selection = self.task.selection(name, epoch=at.epoch, figure=figure)
                save_weights(self.task, path, {**self.plan.description, "epoch": at.epoch, "selection": selection})

    def state(self, at: Standing) -> dict[str, Any]:
        """All that going on needs; call it on every process. It refers to what is learned, which goes on changing.

        Raises:
            TrainingError: what was learned is not finite.
        """
        model = whole(distributed.unwrap(self.task.network).state_dict())
        parts = {name: whole(part.state_dict()) for name, part in self.task.parts.items()}
        self._require_finite(at, {"model": model, **parts})
        told = {DESCRIPTION: {**self.plan.description, "epoch": at.epoch}}
        return {"model": model, **parts, **at.state_dict(), **self.plan.origin, **told}

    def write(self, at: Standing, state: Mapping[str, Any]) -> None:
        """Write last.pth."""
        if distributed.is_main():
            save(self.plan.folder / LAST, state)
        self.saved = time.monotonic()

    def _require_finite(self, at: Standing, state: Mapping[str, Any]) -> None:
        broken = find_broken(state)
        if broken:
            names = [] if at.batch is None else [self.chips[index].path.name for index in at.batch.tolist()]
            raise TrainingError(
                f"what was learned is not finite ({some(broken, 3)}) after {at}, whose batch was {some(names)}; {LAST} of "
                "before stays: look at these files, lower SOLVER.BASE_LR or set SOLVER.AMP off, and go on from it"
            )


def find_broken(state: Mapping[str, Any]) -> list[str]:
    """Names of the tensors of a state that are not finite. Gradients that wait may be: a scaler passes over such a step."""
    tensors = {name: value for name, value in _tensors_of(state) if value.is_floating_point() and value.numel()}
    if not tensors:
        return []
    device = next(iter(tensors.values())).device  # where all are judged, so that the device is waited for once
    finite = torch.stack([value.isfinite().all().to(device) for value in tensors.values()])
    return [name for name, fine in zip(tensors, finite.tolist(), strict=True) if not fine]


def _tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            if key != "gradients":
                yield from _tensors_of(inner, f"{name}.{key}" if name else str(key))


def save_weights(task: Task, path: Path, description: Mapping[str, Any] | None = None) -> None:
    """Write the task's weights to `path`, with what they say of themselves; call it on every process."""
    weights = task.weights()
    if distributed.is_main():
        save(path, weights, description)
