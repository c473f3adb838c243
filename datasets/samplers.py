"""Which images make up each training batch.

A sampler draws one plan for all ranks from (seed, epoch) and gives each rank its columns of it, so that ranks never need to
talk, never share a place of a batch, and all have the same number of batches. A plan does not depend on the number of ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError, UsageError


class BatchSampler(ABC):
    """Batches of image indices for one rank; subclasses write `plan`.

    Args:
        batch_size: images of a batch over all ranks.
        seed: of every plan, together with the epoch.
        rank: of this process, 0..world_size-1.
        world_size: number of processes.

    Raises:
        UsageError: `batch_size` cannot be shared equally among the ranks.
    """

    def __init__(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size % world_size:
            raise UsageError(
                f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared equally by {world_size} processes; change one of them"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    @abstractmethod
    def plan(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw the batches of an epoch, over all ranks: (batches, batch_size) image indices."""

    def columns(self) -> NDArray[np.int64]:
        """(batch_size / world_size,) columns of the plan that are this rank's, in the order in which they make its batches."""
        return np.arange(self.batch_size).reshape(self.world_size, -1)[self.rank]

    def batches(self) -> NDArray[np.int64]:
        """Batches of this rank: (batches, batch_size / world_size) image indices."""
        return self.plan(np.random.default_rng([self.seed, self.epoch]))[:, self.columns()]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the image indices of each batch."""
        yield from self.batches().tolist()

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self.batches())


class ShuffledSampler(BatchSampler):
    """Every image once an epoch, in random order.

    What is left over after the last whole batch waits for another epoch: a smaller batch could not be shared equally by the
    ranks, and one of a single image has no batch statistics.

    Args:
        count: number of images.
        unit: what they are called in an error.
        **sharing: as `BatchSampler`.

    Raises:
        DataError: fewer images than a batch.
    """

    def __init__(self, count: int, *, unit: str = "images", **sharing: int):
        super().__init__(**sharing)
        if count < self.batch_size:
            raise DataError(
                f"there are {count} {unit} to train on, fewer than a batch of {self.batch_size}; lower SOLVER.IMS_PER_BATCH"
            )
        self.count = count

    def plan(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Shuffle all images and cut them into batches."""
        batches = self.count // self.batch_size
        return generator.permutation(self.count)[: batches * self.batch_size].reshape(batches, self.batch_size)


class PairSampler(ShuffledSampler):
    """Batches of pairs, each pair once an epoch: the optical images of a rank's pairs, then their SAR images in that order.

    Image 2 i is the optical one of pair i, image 2 i + 1 its SAR one.

    Args:
        count: number of pairs.
        **sharing: as `BatchSampler`; `batch_size` counts images, two a pair.

    Raises:
        UsageError: a rank's share of a batch is not a whole number of pairs.
        DataError: fewer pairs than a batch holds.
    """

    def __init__(self, count: int, **sharing: int):
        super().__init__(2 * count, **sharing)
        if self.batch_size % (2 * self.world_size):
            raise UsageError(
                f"SOLVER.IMS_PER_BATCH {self.batch_size} is no whole number of pairs for each of {self.world_size} processes"
            )
        self.pairs = count

    def plan(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Shuffle all pairs and cut them into batches, the two images of a pair side by side."""
        size = self.batch_size // 2
        batches = self.pairs // size
        pairs = generator.permutation(self.pairs)[: batches * size].reshape(batches, size)
        return np.stack([2 * pairs, 2 * pairs + 1], axis=2).reshape(batches, self.batch_size)

    def columns(self) -> NDArray[np.int64]:
        """This rank's columns of the plan, optical images first."""
        own = super().columns()
        return np.concatenate([own[0::2], own[1::2]])


class IdentitySampler(BatchSampler):
    """Batches of P identities with K images each, whole identities to a rank.

    An identity's images are shuffled and cut into groups of K, what is left over waits for another epoch; an identity with
    fewer than K images makes one group, drawn with replacement. A batch takes one group of each of P random identities that
    have groups left; the epoch ends when fewer than P have.

    Args:
        labels: identity of each image.
        instances: K.
        **sharing: as `BatchSampler`; `batch_size` is P x K.

    Raises:
        UsageError: K does not divide `batch_size`, or the ranks cannot share P equally.
        DataError: fewer than P identities.
    """

    def __init__(self, labels: Sequence[int], *, instances: int, **sharing: int):
        super().__init__(**sharing)
        if self.batch_size % instances:
            raise UsageError(
                f"SOLVER.IMS_PER_BATCH {self.batch_size} is not a multiple of DATALOADER.NUM_INSTANCE {instances}; change one"
            )
        self.instances = instances
        self.identities = self.batch_size // instances
        if self.identities % self.world_size:
            raise UsageError(
                f"the {self.identities} ships of a batch (SOLVER.IMS_PER_BATCH / DATALOADER.NUM_INSTANCE) cannot be shared "
                f"equally by {self.world_size} processes; change one of them"
            )
        labels = np.asarray(labels)
        self.images = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if len(self.images) < self.identities:
            raise DataError(
                f"the training split has {len(self.images)} ships, fewer than the {self.identities} of a batch of "
                f"{self.batch_size} with {instances} images each; lower SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE"
            )

    def plan(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Cut each identity's images into groups, then draw identities until fewer than P have groups left."""
        groups = [self._groups(images, generator) for images in self.images]
        left = np.array([len(group) for group in groups])
        batches = []
        while np.count_nonzero(left) >= self.identities:
            chosen = generator.choice(np.flatnonzero(left), self.identities, replace=False)
            left[chosen] -= 1
            batches.append(np.concatenate([groups[identity][left[identity]] for identity in chosen]))
        return np.stack(batches)

    def _groups(self, images: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Groups of K images of one identity, (groups, K)."""
        if len(images) < self.instances:
            return generator.choice(images, (1, self.instances))
        whole = len(images) // self.instances
        return generator.permutation(images)[: whole * self.instances].reshape(whole, self.instances)
