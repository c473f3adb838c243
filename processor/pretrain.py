"""Contrastive pre-training on optical-SAR pairs: one update over all pairs of a batch, in as much memory as a part of it needs.

Legend: B images (B / 2 pairs), D feature width.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.records import Batch
from processor.train import Trainer
from utils import distributed


@dataclass
class PairTrainer(Trainer):
    """A trainer whose batches hold the optical images of some pairs, then their SAR images in the same order.

    The objective compares every pair with every other one, so a batch cannot be cut into independent parts. Where it does not
    fit into memory, features are made part by part without gradients, the objective's gradient with respect to them is taken
    over the whole batch, and each part goes through the network once more to carry its share back (Gao et al. 2021, "Scaling
    deep contrastive learning batch size under memory limited setup"). The update is that of the whole batch.

    Attributes:
        part: images that go through the network together; 0: the whole batch.
        largest_logit_scale: bound of the learned temperature's logarithm, so that logits cannot grow without end.
    """

    part: int = 0
    largest_logit_scale: float = 4.6052  # log 100

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the term, the total, the accuracy (SAR image finds its pair) and the scale as one vector."""
        network = distributed.unwrap(self.model)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if 0 < self.part < len(batch.images):
            terms, logits = self._backward_in_parts(batch.split(self.part), network.logit_scale)
        else:
            terms, logits = self._objective(self._features(batch), network.logit_scale)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        with torch.no_grad():
            network.logit_scale.clamp_(0.0, self.largest_logit_scale)
        accuracy = (logits.argmax(1) == torch.arange(len(logits), device=logits.device)).float().mean()
        values = [*terms.values(), self.criterion.total(terms), accuracy, network.logit_scale.exp()]
        return torch.stack([value.detach() for value in values])

    @property
    def metric_names(self) -> list[str]:
        """Names of the numbers that `step` returns."""
        return [*super().metric_names, "logit_scale"]

    def _features(self, part: Batch) -> Tensor:
        with self.precision.autocast():
            feature = self.model(part.images, part.modalities, part.sizes).feature
        return feature.float()

    def _objective(self, features: Tensor, logit_scale: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Terms and logits of a batch's features (B, D), gradients taken."""
        optical, sar = features.chunk(2)
        terms, logits = self.criterion(sar, optical, logit_scale)
        self.scaler.scale(self.criterion.total(terms)).backward()
        return terms, logits

    def _backward_in_parts(self, parts: list[Batch], logit_scale: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        states, features = [], []
        with torch.no_grad():
            for part in parts:
                states.append(_random_state(self.device))  # so that the second pass drops the same paths
                features.append(self._features(part))
        after = _random_state(self.device)
        whole, scale = torch.cat(features).requires_grad_(), logit_scale.detach().requires_grad_()
        terms, logits = self._objective(whole, scale)
        for number, (part, state, share) in enumerate(zip(parts, states, whole.grad.split(self.part), strict=True), start=1):
            _set_random_state(self.device, state)
            last = number == len(parts)
            with self._synchronising(last):
                carried = [(self._features(part), share)]
                # Processes average gradients in the last pass, so the scale's has to come with it.
                carried += [(logit_scale * 1.0, scale.grad)] if last else []
                torch.autograd.backward(*zip(*carried, strict=True))
        _set_random_state(self.device, after)
        return terms, logits

    def _synchronising(self, last: bool) -> AbstractContextManager:
        """Processes add up their gradients once, with the last part."""
        return nullcontext() if last or not hasattr(self.model, "no_sync") else self.model.no_sync()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
