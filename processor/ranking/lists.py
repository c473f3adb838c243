"""What each query found: the nearest gallery images, where the true ship stood, and how far matches and others lie.

Legend: Q queries, K images of a list, I test images, B bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.records import DISTRACTOR, Chip, Protocol
from processor.ranking.evaluation import Ranking, expand
from processor.ranking.reranking import rerank_apart
from processor.ranking.retrieval import ranked_distances

NO_IMAGE = -1
"""Stands for an image where there is none: a gallery shorter than a list, a query without a match."""

BINS = 60


@dataclass(frozen=True)
class ProtocolLists:
    """What the queries of one protocol found; images are indices into the test images.

    Attributes:
        query: (Q,) int32, the queries in the protocol's order.
        nearest: (Q, K) int32, nearest first, `NO_IMAGE` behind the end of a shorter gallery.
        distances: (Q, K) float32: squared Euclidean, or re-ranked.
        match: (Q,) int32, the nearest image of the query's ship; `NO_IMAGE` without one.
        match_distance: (Q,) float32; NaN without one.
        edges: (B + 1,) float32 of the histograms.
        matches, others: (B,) int64, how many pairs of a query and a gallery image of its ship, or of another, lie so far apart.
    """

    query: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    match: np.ndarray
    match_distance: np.ndarray
    edges: np.ndarray
    matches: np.ndarray
    others: np.ndarray


def list_nearest(
    protocol: Protocol, features: Tensor, images: Sequence[Chip], ranking: Ranking, *, length: int = 10
) -> ProtocolLists:
    """List what each query of a protocol found. Of two images at one distance the first of the gallery comes first.

    Args:
        protocol: indices into `images`.
        features: (I, D), normalised where they should be.
        images: (I,) the test images.
        ranking: how; `same_modality` False leaves out what the query's own sensor took.
        length: K.
    """
    gallery = np.array(protocol.gallery)
    ships = np.array([images[index].ship for index in protocol.gallery])
    modalities = np.array([int(images[index].modality) for index in protocol.gallery])
    rows, histograms = [], _Histograms()
    distances = _rows_of_distances(protocol, features, images, ranking)
    for query, row in zip((images[index] for index in protocol.query), distances, strict=True):
        kept = slice(None) if ranking.same_modality else modalities != int(query.modality)
        values, places, own = row[kept], gallery[kept], ships[kept] == query.ship
        own &= query.ship != DISTRACTOR
        histograms.add(values, own)
        rows.append(_nearest_of(values, places, own, length))
    nearest, found, match, match_distance = (np.array(column) for column in zip(*rows, strict=True))
    return ProtocolLists(
        np.array(protocol.query, np.int32),
        nearest.astype(np.int32),
        found.astype(np.float32),
        match.astype(np.int32),
        match_distance.astype(np.float32),
        np.linspace(0, histograms.end, BINS + 1, dtype=np.float32),
        *histograms.counts,
    )


class _Histograms:
    """Counts of two kinds of distances, in bins that grow with the largest one."""

    def __init__(self):
        self.end, self.counts = 0.0, np.zeros((2, BINS), np.int64)

    def add(self, values: np.ndarray, own: np.ndarray) -> None:
        """Count distances (G,), those of `own` (G,) apart from the others."""
        largest = float(values.max(initial=0))
        self.end = self.end or largest or 1.0
        while largest > self.end:  # bins twice as wide: each pair becomes one
            self.counts = np.pad(self.counts.reshape(2, -1, 2).sum(2), ((0, 0), (0, BINS // 2)))
            self.end *= 2
        for count, chosen in zip(self.counts, (own, ~own)):
            count += np.histogram(values[chosen], BINS, (0, self.end))[0]


def _nearest_of(values: np.ndarray, places: np.ndarray, own: np.ndarray, length: int) -> tuple:
    """The nearest images of one query and their distances, filled up to `length`; its nearest match and that distance."""
    count = min(length, len(values))
    limit = np.partition(values, count - 1)[count - 1] if count else 0.0
    near = np.flatnonzero(values <= limit)  # in the order of the gallery, more than `count` where distances tie
    near = near[values[near].argsort(kind="stable")][:count]
    nearest, found = np.full(length, NO_IMAGE), np.full(length, np.nan)
    nearest[:count], found[:count] = places[near], values[near]
    if not own.any():
        return nearest, found, NO_IMAGE, np.nan
    best = np.flatnonzero(own)[values[own].argmin()]
    return nearest, found, places[best], values[best]


def _rows_of_distances(protocol: Protocol, features: Tensor, images: Sequence[Chip], ranking: Ranking) -> Iterator[np.ndarray]:
    """The distances (G,) of each query, by which `processor.ranking.evaluation.rank_protocol` ranks."""
    query, gallery = torch.tensor(protocol.query), torch.tensor(protocol.gallery)
    modalities = torch.tensor([int(image.modality) for image in images])
    of_query = expand(features[query], features[gallery], modalities[query], modalities[gallery], ranking)
    if ranking.reranking is not None:
        blocks = rerank_apart(of_query, features[gallery], modalities[query], **ranking.reranking_options)
    else:
        blocks = ranked_distances(of_query, features[gallery], device=ranking.device, memory_bytes=ranking.memory_bytes)
    for block in blocks:
        yield from block.cpu().numpy()
