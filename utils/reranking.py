"""k-reciprocal re-ranking with sparse neighbourhoods.

Source: Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, section 3.
As in the published results of this field, distances are squared Euclidean and each image's row of them is divided by its
maximum. Q queries, G gallery images, N = Q + G images, D numbers a feature.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from utils.retrieval import squared_distances


@dataclass(frozen=True)
class _Neighbours:
    """The nearest images of each of N images: `indices` (N, K) nearest first, itself before all, and `farthest` (N,)."""

    indices: np.ndarray
    farthest: np.ndarray

    def graph(self, k: int) -> csr_array:
        """(N, N) sparse: 1 where a column is among the `k` nearest of a row."""
        nearest = self.indices[:, :k]
        ends = np.arange(0, nearest.size + 1, nearest.shape[1])
        return csr_array((np.ones(nearest.size, np.float32), nearest.ravel(), ends), shape=(len(nearest), len(nearest)))

    def reciprocal(self, k: int) -> csr_array:
        """(N, N) sparse: 1 where two images are each among the `k` nearest of the other (equation 3)."""
        graph = self.graph(k)
        return graph.multiply(graph.T).tocsr()


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
) -> Iterator[Tensor]:
    """Re-ranked distances in blocks of rows (B, G), float32 on the CPU, in the order of the queries.

    Memory beside the features: a few hundred numbers an image for its neighbourhood, and `memory_bytes`.

    Args:
        query: (Q, D) features, normalised by the caller; distances are computed where they are.
        gallery: (G, D) features.
        k1: size of the neighbourhoods; half of them have round(k1 / 2). In a set of fewer images all are neighbours.
        k2: number of neighbours, itself included, whose encodings are averaged; 1 averages nothing.
        lambda_value: share of the original distance in the result, 0..1.
        memory_bytes: about how much memory blocks of distances take.

    Raises:
        ValueError: a parameter out of its range.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(f"re-ranking needs k1 >= 1, k2 >= 1 and 0 <= lambda <= 1, not {k1}, {k2} and {lambda_value}")
    images = torch.cat([query, gallery]).float()
    block_rows = max(1, min(1024, memory_bytes // (16 * len(images))))
    neighbours = _nearest(images, max(k1 + 1, k2), block_rows)
    encoding = _average(_encode(images, neighbours, k1, block_rows), neighbours, k2)
    by_image, by_neighbour = encoding[: len(query)], encoding[len(query) :].tocsc()
    farthest = torch.from_numpy(neighbours.farthest[: len(query), None])
    for start in range(0, len(query), block_rows):
        stop = min(start + block_rows, len(query))
        original = squared_distances(images[start:stop], images[len(query) :]).cpu() / farthest[start:stop]
        shared = torch.from_numpy(_shared_weight(by_image[start:stop], by_neighbour))
        jaccard = 1 - shared / (2 - shared)
        yield jaccard.lerp_(original, lambda_value)


def _nearest(images: Tensor, count: int, block_rows: int) -> _Neighbours:
    """The `count` nearest of each image (fewer in a smaller set), and the largest distance of each, 1 if all are zero."""
    count = min(count, len(images))
    indices, farthest = [], []
    for start in range(0, len(images), block_rows):
        distances = squared_distances(images[start : start + block_rows], images)
        largest = distances.amax(1)
        farthest.append(torch.where(largest > 0, largest, 1.0).cpu())
        # An image is its own nearest neighbour, even among copies of it.
        distances.diagonal(start).fill_(-1.0)
        indices.append(distances.topk(count, dim=1, largest=False).indices.to(torch.int32).cpu())
    return _Neighbours(torch.cat(indices).numpy(), torch.cat(farthest).numpy())


def _encode(images: Tensor, neighbours: _Neighbours, k1: int, block_rows: int) -> csr_array:
    """(N, N) sparse rows that sum to 1: Gaussian weights of the expanded reciprocal neighbours (equations 4 to 7)."""
    near = neighbours.reciprocal(k1 + 1)
    half = neighbours.reciprocal(round(k1 / 2) + 1)
    enough = 2 / 3 * half.sum(axis=1)
    data, columns, lengths = [], [], []
    for start in range(0, len(images), block_rows):
        block = near[start : start + block_rows]
        overlap = (block @ half.T).multiply(block).tocsr()
        overlap.data = (overlap.data > enough[overlap.indices]).astype(np.float32)
        expanded = (block + overlap @ half).tocsr()
        expanded.eliminate_zeros()
        length = np.diff(expanded.indptr)
        rows = np.repeat(np.arange(start, start + len(length)), length)
        distances = _pair_distances(images, rows, expanded.indices, block_rows)
        weights = np.exp(-distances / neighbours.farthest[rows])
        totals = np.bincount(rows - start, weights, len(length)).astype(np.float32)
        data.append(weights / totals[rows - start])
        columns.append(expanded.indices)
        lengths.append(length)
    ends = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return csr_array((np.concatenate(data), np.concatenate(columns), ends), shape=near.shape)


def _pair_distances(images: Tensor, rows: np.ndarray, columns: np.ndarray, block_rows: int) -> np.ndarray:
    """(P,) squared distances between images `rows` and `columns`, (P,) each."""
    pairs = 4 * block_rows
    rows, columns = (torch.from_numpy(index).long().to(images.device).split(pairs) for index in (rows, columns))
    blocks = [(images[row] - images[column]).square_().sum(1) for row, column in zip(rows, columns)]
    return torch.cat(blocks).cpu().numpy()


def _average(encoding: csr_array, neighbours: _Neighbours, k2: int) -> csr_array:
    """Local query expansion (equation 11): the mean encoding of the `k2` nearest."""
    average = neighbours.graph(k2) @ encoding
    average.data /= min(k2, len(neighbours.indices))
    return average


def _shared_weight(by_image, by_neighbour) -> np.ndarray:
    """(B, G) float32: the sum over neighbours of the smaller weight (numerator of equation 10) for queries and gallery.

    Args:
        by_image: (B, N) sparse by rows, encodings of the queries.
        by_neighbour: (G, N) sparse by columns, encodings of the gallery.
    """
    shared = np.zeros((by_image.shape[0], by_neighbour.shape[0]), np.float32)
    ends = by_neighbour.indptr.astype(np.int64)
    for row, (first, last) in enumerate(zip(by_image.indptr[:-1], by_image.indptr[1:])):
        columns = by_image.indices[first:last]
        lengths = ends[columns + 1] - ends[columns]
        # The places, in the arrays of `by_neighbour`, of all that these columns hold.
        places = np.arange(lengths.sum()) + np.repeat(ends[columns] - (np.cumsum(lengths) - lengths), lengths)
        weights = np.minimum(by_neighbour.data[places], np.repeat(by_image.data[first:last], lengths))
        shared[row] = np.bincount(by_neighbour.indices[places], weights, shared.shape[1])
    return shared
