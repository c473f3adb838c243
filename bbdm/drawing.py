"""Drawing samples from a trained bridge: the one way of sampling and evaluation, which so make the same pictures."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bbdm.checkpoints import read_bridge
from bbdm.data import layout_of
from bbdm.model import BridgeModel, SamplerSettings, build_bridge_model
from bbdm.noise import sample_seed, seeded_normal
from utils.device import build_compilation, find_precision
from utils.errors import CheckpointError
from utils.log import progress
from utils.memory import fitting


def draw(
    model: BridgeModel,
    jobs: Sequence[tuple[str, int]],
    read: Callable[[int], Tensor],
    settings: SamplerSettings,
    *,
    seed: int,
    batch_size: int,
) -> Iterator[Tensor]:
    """Draw one sample for each job, a file name and k; its noise follows from (seed, file name, k) alone.

    Args:
        model: with the network to sample from, in eval mode.
        jobs: what to draw.
        read: place of a job in `jobs` -> its optical picture (3, H, W) in [-1, 1], on the CPU.
        settings: the sampler.
        seed: the global seed.
        batch_size: samples that go through the network together. The last batch is filled up, since the shape decides how sums
            are rounded, and so whether pictures come out the same to the bit.

    Yields:
        (3, H, W) float32, about [-1, 1], on the CPU, in the order of `jobs`.

    Raises:
        CheckpointError: the weights give numbers that are not finite.
    """
    device = next(model.network.parameters()).device
    with progress(-(-len(jobs) // batch_size) * settings.steps, "sampling", unit="call") as bar:
        for start in range(0, len(jobs), batch_size):
            own = range(start, min(start + batch_size, len(jobs)))
            filled = [*own, *[own[-1]] * (batch_size - len(own))]
            pictures = {place: read(place) for place in own}
            optical = torch.stack([pictures[place] for place in filled]).to(device, memory_format=layout_of(model.precision))
            seeds = torch.tensor([sample_seed(seed, *jobs[place]) for place in filled], device=device)
            noise = partial(seeded_normal, seeds, shape=model.state_shape(optical)[1:])
            with fitting("BBDM.SAMPLE_BATCH", batch_size, partial(_try_sampling, model, optical, noise)):
                drawn = model.sample(optical, settings, noise, on_call=bar.update)
            if not drawn.isfinite().all():
                names = ", ".join(dict.fromkeys(jobs[place][0] for place in own))
                raise CheckpointError(
                    f"BBDM.WEIGHT gives pictures that are not finite for {names}; set SOLVER.AMP off, or train again"
                )
            yield from drawn[: len(own)].cpu()


def _try_sampling(model: BridgeModel, optical: Tensor, noise: Callable[[int], Tensor], size: int) -> None:
    """Draw fewer pictures, in two steps, to see whether they fit into memory."""
    model.sample(optical[:size], SamplerSettings(name="few_step", steps=2), lambda step: noise(step)[:size])


def build_sampling_model(cfg, device: torch.device) -> BridgeModel:
    """The bridge of BBDM.WEIGHT, in eval mode and without gradients.

    As the ReID test, it computes in float32 unless SOLVER.AMP names less: the first steps divide by small numbers.
    """
    precision = find_precision("off" if cfg.SOLVER.AMP == "auto" else cfg.SOLVER.AMP, device)
    model = build_bridge_model(cfg, device, precision, weights=read_bridge(cfg.BBDM.WEIGHT))
    precision.cast(model.network.eval().requires_grad_(False))
    if model.first_stage is not None:
        precision.cast(model.first_stage)
    build_compilation(cfg, model.network)
    return model


def build_batch_size(cfg, device: torch.device) -> int:
    """BBDM.SAMPLE_BATCH on a GPU; 1 on a CPU, which gains nothing by more, so that no bit of a picture depends on it."""
    return cfg.BBDM.SAMPLE_BATCH if device.type == "cuda" else 1
