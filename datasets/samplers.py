"""Which images make up each training batch, and what the augmentation of each is drawn from.

A plan of an epoch is drawn for all ranks from (seed, epoch), and each rank takes its columns of it, so that ranks never need to
talk, never share a place of a batch, and all have the same number of batches. A plan does not depend on the number of ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError, UsageError

Plan = Callable[[np.random.Generator], NDArray[np.int64]]
"""Draws the batches of an epoch over all ranks: (batches, batch_size) image indices."""


class Draw(NamedTuple):
    """One place of an epoch's plan: which image, and what its augmentation is drawn from.

    Attributes:
        index: of the image in its data set.
        key: seed of the random choices. It names the place of the plan and not the image, so that an image drawn twice for a
            batch is augmented twice, and results depend neither on the workers nor on the number of ranks.
    """

    index: int
    key: tuple[int, ...] = ()


class BatchSampler:
    """The batches of one rank, as DataLoader takes them.

    Args:
        plan: draws the batches of an epoch.
        batch_size: images of a batch over all ranks.
        seed: of every plan, together with the epoch.
        rank: of this process, 0..world_size-1.
        world_size: number of processes.
        paired: places 2 j and 2 j + 1 of a plan's batch hold the two images of a pair. A rank has whole pairs, the optical
            images of all of them first, then their SAR images in the same order.
        alike: both images of a pair have one key, so that they are cut and flipped alike.

    Raises:
        UsageError: `batch_size` cannot be shared equally among the ranks.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        paired: bool = False,
        alike: bool = False,
    ):
        if batch_size % world_size:
            raise UsageError(
                f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared equally by {world_size} processes; change one of them"
            )
        self.plan = plan
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = self.skip = 0
        self._known: tuple[int, NDArray[np.int64]] | None = None
        self.alike = alike
        # The columns of a plan that are this rank's, in the order in which they make its batches.
        own = np.arange(batch_size).reshape(world_size, -1)[rank]
        self.columns = np.concatenate([own[0::2], own[1::2]]) if paired else own

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the epoch, and how many of its batches to pass over because they were learned from before."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the draws of each batch."""
        for number, batch in enumerate(self._plan()[self.skip :, self.columns].tolist(), start=self.skip):
            places = (number * self.batch_size + self.columns) // (2 if self.alike else 1)
            yield [Draw(index, (self.seed, self.epoch, place)) for index, place in zip(batch, places.tolist(), strict=True)]

    def __len__(self) -> int:
        """Batches of this epoch, those that are passed over too."""
        return len(self._plan())

    def _plan(self) -> NDArray[np.int64]:
        """The epoch's batches, made once: of 25,000 ships that takes a second."""
        if self._known is None or self._known[0] != self.epoch:
            self._known = self.epoch, self.plan(np.random.default_rng([self.seed, self.epoch]))
        return self._known[1]


def shuffle_images(count: int, *, batch_size: int, **sharing: int) -> BatchSampler:
    """Every image once an epoch, in random order.

    What is left over after the last whole batch waits for another epoch: a smaller batch could not be shared equally by the
    ranks, and one of a single image has no batch statistics.

    Args:
        count: number of images.
        batch_size: images of a batch over all ranks.
        **sharing: `seed`, `rank` and `world_size` as for `BatchSampler`.

    Raises:
        UsageError: the ranks cannot share a batch equally.
        DataError: fewer images than a batch.
    """
    _require(count, batch_size, "images")
    return BatchSampler(partial(_shuffled, count=count, batch_size=batch_size), batch_size=batch_size, **sharing)


def shuffle_pairs(count: int, *, pairs: int, alike: bool = False, **sharing: int) -> BatchSampler:
    """Every pair once an epoch, in random order; image 2 i is the optical one of pair i, image 2 i + 1 its SAR one.

    Args:
        count: number of pairs.
        pairs: of a batch over all ranks.
        alike: as for `BatchSampler`.
        **sharing: `seed`, `rank` and `world_size` as for `BatchSampler`.

    Raises:
        UsageError: a rank's share of a batch is not a whole number of pairs.
        DataError: fewer pairs than a batch.
    """
    if pairs % sharing.get("world_size", 1):
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH gives {pairs} pairs a batch, no whole number of pairs for each of "
            f"{sharing['world_size']} processes; change it"
        )
    _require(count, pairs, "pairs")
    plan = partial(_shuffled_pairs, count=count, batch_size=pairs)
    return BatchSampler(plan, batch_size=2 * pairs, paired=True, alike=alike, **sharing)


def draw_identities(labels: Sequence[int], *, instances: int, batch_size: int, **sharing: int) -> BatchSampler:
    """Batches of P identities with K images each, whole identities to a rank.

    An identity's images are shuffled and cut into groups of K, what is left over waits for another epoch; an identity with
    fewer than K images makes one group, drawn with replacement. A batch takes one group of each of P random identities that
    have groups left; the epoch ends when fewer than P have.

    Args:
        labels: identity of each image.
        instances: K.
        batch_size: P x K, over all ranks.
        **sharing: `seed`, `rank` and `world_size` as for `BatchSampler`.

    Raises:
        UsageError: K does not divide `batch_size`, or the ranks cannot share P equally.
        DataError: fewer than P identities.
    """
    world_size = sharing.get("world_size", 1)
    if batch_size % instances:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {batch_size} is not a multiple of DATALOADER.NUM_INSTANCE {instances}; change one"
        )
    identities = batch_size // instances
    if identities % world_size:
        raise UsageError(
            f"the {identities} ships of a batch (SOLVER.IMS_PER_BATCH / DATALOADER.NUM_INSTANCE) cannot be shared "
            f"equally by {world_size} processes; change one of them"
        )
    labels = np.asarray(labels)
    counts = np.unique(labels, return_counts=True)[1]
    images = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])  # of each label, in order
    if len(images) < identities:
        raise DataError(
            f"the training split has {len(images)} ships, fewer than the {identities} of a batch of "
            f"{batch_size} with {instances} images each; lower SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE"
        )
    plan = partial(_drawn_identities, images=images, identities=identities, instances=instances)
    return BatchSampler(plan, batch_size=batch_size, **sharing)


def take_in_order(count: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[Draw]]:
    """Batches that hold each image once, in order; the last is perhaps smaller. This rank has every `world_size`-th batch.

    A batch holds the same images however many ranks there are: what a network makes of an image depends in its last digits on
    what goes through it together.
    """
    starts = range(0, count, batch_size)[rank::world_size]
    return [[Draw(index) for index in range(start, min(start + batch_size, count))] for start in starts]


def take_pairs_in_order(count: int, *, pairs: int, rank: int = 0, world_size: int = 1) -> list[list[Draw]]:
    """The same of pairs, `pairs` to a batch: optical images first; both images of a pair have its number as their key."""
    batches = take_in_order(count, batch_size=pairs, rank=rank, world_size=world_size)
    return [[Draw(2 * pair + side, (pair,)) for side in (0, 1) for pair, _ in batch] for batch in batches]


def _require(count: int, batch_size: int, unit: str) -> None:
    if count < batch_size:
        raise DataError(f"there are {count} {unit} to train on, fewer than a batch of {batch_size}; lower SOLVER.IMS_PER_BATCH")


def _shuffled(generator: np.random.Generator, *, count: int, batch_size: int) -> NDArray[np.int64]:
    """All of `count` shuffled and cut into batches."""
    batches = count // batch_size
    return generator.permutation(count)[: batches * batch_size].reshape(batches, batch_size)


def _shuffled_pairs(generator: np.random.Generator, *, count: int, batch_size: int) -> NDArray[np.int64]:
    """All pairs shuffled and cut into batches, the two images of a pair side by side."""
    pairs = _shuffled(generator, count=count, batch_size=batch_size)
    return np.stack([2 * pairs, 2 * pairs + 1], axis=2).reshape(len(pairs), 2 * batch_size)


def _drawn_identities(
    generator: np.random.Generator, *, images: Sequence[NDArray[np.int64]], identities: int, instances: int
) -> NDArray[np.int64]:
    """Cut each identity's images into groups, then draw identities until fewer than P have groups left."""
    groups = [_groups(own, instances, generator) for own in images]
    left = np.array([len(group) for group in groups])
    batches = []
    while np.count_nonzero(left) >= identities:
        chosen = generator.choice(np.flatnonzero(left), identities, replace=False)
        left[chosen] -= 1
        batches.append(np.concatenate([groups[identity][left[identity]] for identity in chosen]))
    return np.stack(batches)


def _groups(images: NDArray[np.int64], instances: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Groups of K images of one identity, (groups, K)."""
    if len(images) < instances:
        return generator.choice(images, (1, instances))
    whole = len(images) // instances
    return generator.permutation(images)[: whole * instances].reshape(whole, instances)
