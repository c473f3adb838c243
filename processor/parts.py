"""A batch that goes through a network part by part and learns as in one piece.

Objectives compare each image of a batch with the others, so a batch cannot be cut into independent parts. Where it does not fit
into memory, what the network says of it is made part by part without gradients, the objective's gradients with respect to that
are taken over the whole batch, and each part goes through the network once more to carry its share back (Gao et al. 2021,
"Scaling deep contrastive learning batch size under memory limited setup"). The update is that of the whole batch.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from datasets.records import Batch
from processor.update import Update
from utils import distributed
from utils.errors import ResourceError
from utils.memory import find_fitting
from utils.seed import seed_part

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Said = Mapping[str, Tensor]
"""What a network says of images: name -> (B, ...)."""

AS_FIT = -1
"""SOLVER.IMS_PER_PASS: as many images as fit into memory."""


def learn_in_parts(
    parts: Sequence[Batch],
    see: Callable[[Batch], Said],
    learn: Callable[[Said], Result],
    update: Update,
    *,
    others: Iterable[nn.Parameter] = (),
) -> Result:
    """Take the gradients of a batch.

    Args:
        parts: of the batch, in order.
        see: sends a part through the network.
        learn: judges what is said of the whole batch, and takes the gradients (`update.backward`).
        update: knows how processes exchange gradients.
        others: parameters that `learn` uses and `see` does not.

    Returns:
        What `learn` does.
    """
    seeds = torch.randint(2**62, (len(parts),)).tolist()  # so that the second pass of a part drops the paths of the first
    said = []
    with torch.no_grad():
        for part, seed in zip(parts, seeds, strict=True):
            seed_part(seed)
            said.append(see(part))
    whole = {name: torch.cat([own[name] for own in said]).requires_grad_() for name in said[0]}
    with update.passes(last=False):
        result = learn(whole)
    sizes = [len(part.indices) for part in parts]
    shares = {name: values.grad.split(sizes) for name, values in whole.items() if values.grad is not None}
    for number, (part, seed) in enumerate(zip(parts, seeds, strict=True)):
        seed_part(seed)
        last = number == len(parts) - 1
        with update.passes(last=last):  # processes add up their gradients once, with the last part
            own = see(part)
            carried = [(own[name], share[number]) for name, share in shares.items()]
            # They average what the last pass brings, so the other parameters have to come with it.
            carried += [(p * 1.0, torch.zeros_like(p)) for p in others if last and p.grad is not None]
            torch.autograd.backward(*zip(*carried, strict=True))
    return result


def find_part(network: nn.Module, see: Callable[[Batch], Said], batch: Batch) -> int:
    """How many images of a batch go through the network and back at a time: all, or a half, a quarter, ..., as memory holds.

    Two moments of every parameter, which an optimiser will keep, are held meanwhile. Of several processes the one that holds
    the fewest counts. On a CPU it is the whole batch: the system lends more memory than there is.

    Raises:
        ResourceError: not even one image fits.
    """
    size = len(batch.indices)
    if batch.images.device.type == "cpu":
        return size
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    moments = [torch.empty_like(parameter) for parameter in learned for _ in range(2)]

    def attempt(count: int) -> None:
        try:
            torch.autograd.backward([values.float().sum() for values in see(batch.first(count)).values()])
        finally:
            network.zero_grad(set_to_none=True)

    with torch.random.fork_rng([batch.images.device]):
        fits = min(distributed.gather(find_fitting(attempt, size)))
    del moments
    if not fits:
        raise ResourceError("memory does not hold the network and one image; take a smaller network, or MODEL.DEVICE cpu")
    logger.info("%d of the %d images of a batch go through the network at a time", fits, size)
    return fits
