"""k-reciprocal re-ranking with sparse neighbourhoods.

Source: Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, section 3.
As in the published results of this field, distances are squared Euclidean and each image's row of them is divided by its
maximum. Q queries, G gallery images, N = Q + G images, D numbers a feature.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from processor.ranking.retrieval import squared_distances, squared_norms
from utils.distributed import interleave
from utils.errors import DataError

_BLOCK_QUERIES = 256

DEFAULTS = {"k1": 50, "k2": 15, "lambda_value": 0.3, "memory_bytes": 1 << 30, "device": None}
"""Of `rerank_blocks`."""


@dataclass(frozen=True)
class Sharing:
    """How processes share blocks of work.

    Attributes:
        rank: of this process, 0 .. processes - 1.
        processes: how many share.
        gather: a value of this process -> those of all, in rank order, on all.
    """

    rank: int = 0
    processes: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def own(self, blocks: Sequence[Any]) -> Sequence[Any]:
        """The blocks that this process makes."""
        return blocks[self.rank :: self.processes]

    def join(self, made: list[Any]) -> list[Any]:
        """What all processes made of their blocks, in the order of the blocks, on all of them."""
        return interleave(self.gather(made))

    def rows(self, count: int) -> range:
        """Which of `count` rows this process has to the end."""
        own = torch.arange(count).tensor_split(self.processes)[self.rank]
        return range(int(own[0]), int(own[-1]) + 1) if len(own) else range(0)


ALONE = Sharing()


Neighbours = tuple[np.ndarray, np.ndarray]
"""(N, K) places of the K nearest of each image, nearest first, itself before all; and (N, K) exp(-d) of the distances d, each
divided by the image's largest one: in exp(-1)..1."""


def _graph(neighbours: Neighbours, k: int) -> csr_array:
    """(N, N) sparse: the closeness where a column is among the `k` nearest of a row."""
    nearest, closeness = (values[:, :k] for values in neighbours)
    ends = np.arange(0, nearest.size + 1, nearest.shape[1])
    return csr_array((closeness.ravel(), nearest.ravel(), ends), shape=(len(nearest), len(nearest)))


def _reciprocal(neighbours: Neighbours, k: int) -> csr_array:
    """(N, N) sparse, symmetric: 1 where two images are each among the `k` nearest of the other (equation 3)."""
    graph = _graph(neighbours, k)
    return graph.multiply(graph.T).sign().tocsr()


def rerank(query: Tensor, gallery: Tensor, *, k1: int = 50, k2: int = 15, lambda_value: float = 0.3) -> Tensor:
    """Re-ranked distances (Q, G), float32 on the CPU; the arguments are those of `rerank_blocks`."""
    return torch.cat(list(rerank_blocks(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value)))


def rerank_blocks(
    query: Tensor,
    gallery: Tensor,
    *,
    k1: int = 50,
    k2: int = 15,
    lambda_value: float = 0.3,
    memory_bytes: int = 1 << 30,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Re-ranked distances in blocks of rows (B, G), float32 on the CPU, in the order of the queries.

    Memory beside the features: a few hundred numbers an image for its neighbourhood, and `memory_bytes`.

    Args:
        query: (Q, D) features, normalised by the caller.
        gallery: (G, D) features.
        k1: size of the neighbourhoods; half of them have round(k1 / 2). In a set of fewer images all are neighbours.
        k2: number of neighbours, itself included, whose encodings are averaged; 1 averages nothing.
        lambda_value: share of the original distance in the result, 0..1.
        memory_bytes: about how much memory blocks of distances take.
        device: where distances are computed; by default where `query` is.

    Raises:
        ValueError: a parameter out of its range.
        DataError: a feature is not finite.
    """
    prepared = _prepare(query, gallery, k1, k2, lambda_value, memory_bytes, device, ALONE)
    yield from prepared.blocks(0, len(query))


def rerank_apart(query: Tensor, gallery: Tensor, groups: Tensor, *, sharing: Sharing = ALONE, **options) -> Iterator[Tensor]:
    """As `rerank_blocks`, each group of queries as if the others were not there.

    The neighbourhoods of k-reciprocal re-ranking hold queries too, so the queries of one sensor would change the ranking of the
    other's.

    Args:
        query, gallery: as for `rerank_blocks`.
        groups: (Q,) group of each query, such as its modality.
        sharing: of the work among processes, all of which call this; each gets the distances of its own queries,
            `sharing.rows(Q)`. What they get does not depend on how many they are.
        options: of `rerank_blocks`.
    """
    prepared, start = {}, {}
    own = sharing.rows(len(query))
    for group in groups.unique().tolist():
        prepared[group] = _prepare(query[groups == group], gallery, **{**DEFAULTS, **options}, sharing=sharing)
        start[group] = int((groups[: own.start] == group).sum())
    groups = groups[own.start : own.stop]
    rows = {
        group: itertools.chain.from_iterable(encoded.blocks(start[group], start[group] + int((groups == group).sum())))
        for group, encoded in prepared.items()
    }
    for block in groups.split(_BLOCK_QUERIES):
        if len(block):
            yield torch.stack([next(rows[group]) for group in block.tolist()])


@dataclass(frozen=True)
class _Encoded:
    """Queries and gallery with the weights of their neighbours.

    Attributes:
        images: (N, D), the queries first.
        squares: (N,) their `squared_norms`.
        farthest: (Q, 1) the largest distance of each query.
        encoding: (Q, N) sparse, of the queries.
        holders: (N, G) sparse: for each neighbour, the gallery images that give it weight.
        lambda_value: share of the plain distance.
        block_rows: queries whose distances are computed together.
    """

    images: Tensor
    squares: Tensor
    farthest: Tensor
    encoding: csr_array
    holders: csr_array
    lambda_value: float
    block_rows: int

    def blocks(self, first: int, last: int) -> Iterator[Tensor]:
        """Re-ranked distances (B, G) of the queries `first` .. `last` - 1, in blocks."""
        count = len(self.farthest)
        for start in range(first - first % self.block_rows, last, self.block_rows):
            stop = min(start + self.block_rows, count)
            # Of the whole block, wherever the run of queries begins: how many rows there are decides last digits.
            squares = self.squares[start:stop], self.squares[count:]
            original = squared_distances(self.images[start:stop], self.images[count:], squares=squares).cpu()
            original /= self.farthest[start:stop]
            own = slice(max(first, start), min(last, stop))
            shared = torch.from_numpy(_shared_weight(self.encoding[own], self.holders))
            jaccard = 1 - shared / (2 - shared)
            yield jaccard.lerp_(original[own.start - start : own.stop - start], self.lambda_value)


def _prepare(
    query: Tensor,
    gallery: Tensor,
    k1: int,
    k2: int,
    lambda_value: float,
    memory_bytes: int,
    device: torch.device | str | None,
    sharing: Sharing,
) -> _Encoded:
    """Find and weigh the neighbours of all images; arguments as for `rerank_blocks`."""
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(f"re-ranking needs k1 >= 1, k2 >= 1 and 0 <= lambda <= 1, not {k1}, {k2} and {lambda_value}")
    images = torch.cat([query, gallery]).float().to(query.device if device is None else device)
    if not bool(torch.isfinite(images.sum())):
        raise DataError("a feature holds NaN or infinity; check the weights and the images that it was made from")
    block_rows = max(1, min(1024, memory_bytes // (16 * len(images))))
    squares = squared_norms(images)
    neighbours, farthest = _nearest(images, squares, max(k1 + 1, k2), block_rows, sharing)
    encoding = _average(_encode(images, neighbours, farthest, k1, block_rows, sharing), neighbours, k2)
    own, holders = encoding[: len(query)], encoding[len(query) :].T.tocsr()
    return _Encoded(images, squares, torch.from_numpy(farthest[: len(query), None]), own, holders, lambda_value, block_rows)


def _nearest(images: Tensor, squares: Tensor, count: int, block_rows: int, sharing: Sharing) -> tuple[Neighbours, np.ndarray]:
    """The `count` nearest of each image, all in a smaller set; and (N,) the largest distance of each, 1 if all are zero."""
    count = min(count, len(images))
    found = []
    buffer = images.new_empty(min(block_rows, len(images)), len(images))
    for start in sharing.own(range(0, len(images), block_rows)):
        rows = slice(start, min(start + block_rows, len(images)))
        distances = squared_distances(
            images[rows], images, squares=(squares[rows], squares), out=buffer[: rows.stop - rows.start]
        )
        largest = distances.amax(1)
        largest = torch.where(largest > 0, largest, 1.0)
        # An image is its own nearest neighbour, even among copies of it.
        distances.diagonal(start).fill_(-1.0)
        nearest = distances.topk(count, dim=1, largest=False)
        closeness = nearest.values.clamp_(min=0).div_(-largest[:, None]).exp_()
        found.append((nearest.indices.to(torch.int32).cpu(), closeness.cpu(), largest.cpu()))
    indices, closeness, farthest = (torch.cat(blocks).numpy() for blocks in zip(*sharing.join(found), strict=True))
    return (indices, closeness), farthest


def _encode(
    images: Tensor, neighbours: Neighbours, farthest: np.ndarray, k1: int, block_rows: int, sharing: Sharing
) -> csr_array:
    """(N, N) sparse rows that sum to 1: weights of the expanded reciprocal neighbours (equations 4 to 7)."""
    graph = _graph(neighbours, k1 + 1)
    near, half = _reciprocal(neighbours, k1 + 1), _reciprocal(neighbours, round(k1 / 2) + 1)
    sizes = half.sum(axis=1)
    blocks = []
    for start in sharing.own(range(0, len(images), block_rows)):
        block = near[start : start + block_rows]
        overlap = (block @ half).multiply(block).tocsr()
        overlap.data = (3 * overlap.data > 2 * sizes[overlap.indices]).astype(np.float32)
        overlap.eliminate_zeros()
        expanded = (block + overlap @ half).sign()
        known = expanded.multiply(graph[start : start + block_rows])
        added = (expanded - known.sign()).tocoo()
        added.eliminate_zeros()
        rows = start + added.row
        added.data = np.exp(-_pair_distances(images, rows, added.col, block_rows) / farthest[rows])
        weights = (known + added).tocsr()
        blocks.append(weights.multiply(1 / np.maximum(weights.sum(axis=1), 1e-9)[:, None]).tocsr())
    return vstack(sharing.join(blocks), format="csr")


def _pair_distances(images: Tensor, rows: np.ndarray, columns: np.ndarray, block_rows: int) -> np.ndarray:
    """(P,) squared distances between images `rows` and `columns`, (P,) each."""
    pairs = 4 * block_rows
    rows, columns = (torch.from_numpy(index).long().to(images.device).split(pairs) for index in (rows, columns))
    distances = [(images[row] - images[column]).square_().sum(1) for row, column in zip(rows, columns)]
    return torch.cat(distances).cpu().numpy()


def _average(encoding: csr_array, neighbours: Neighbours, k2: int) -> csr_array:
    """Local query expansion (equation 11): the mean encoding of the `k2` nearest."""
    average = _graph(neighbours, k2).sign() @ encoding
    average.data /= min(k2, len(neighbours[0]))
    return average


def _shared_weight(encoding: csr_array, holders: csr_array) -> np.ndarray:
    """(B, G) float32: the sum over neighbours of the smaller of two weights (numerator of equation 10).

    Args:
        encoding: (B, N), of queries.
        holders: (N, G), of the gallery, transposed: for each neighbour, the images that give it weight.
    """
    shared = np.empty((encoding.shape[0], holders.shape[1]), np.float32)
    for row, (start, end) in enumerate(itertools.pairwise(encoding.indptr)):
        weights = holders[encoding.indices[start:end]]
        np.minimum(weights.data, np.repeat(encoding.data[start:end], np.diff(weights.indptr)), out=weights.data)
        shared[row] = weights.sum(axis=0)
    return shared
