"""Ranking a gallery for each query: distances, cumulative matching characteristic (CMC) and mean average precision.

Q queries, G gallery images, D numbers a feature, M most matches of a query. Everything is a function of arrays; nothing is
read, written or configured here.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from processor.ranking.truth import Truth
from utils.errors import DataError

_EXACT_BITS = 25
_GALLERY_BLOCK = 4096
_COUNTING_BLOCK = 1 << 20


@dataclass(frozen=True)
class RetrievalResult:
    """How well each query's matches were ranked.

    Attributes:
        average_precision: (Q,) float64 in 0..1; NaN where the query has no match in its gallery and so does not count.
        first_match: (Q,) int64, 1-based rank of the nearest match; 0 where there is none.
        matches: (Q,) int64, number of matches.
        gallery: number of gallery images, distractors among them.
        ranked: (Q,) int64, how many of them were ranked for the query: those that were not left out.
        tied: (Q,) whether most of the gallery lies at one distance of the query (`mostly_tied`).
    """

    average_precision: np.ndarray
    first_match: np.ndarray
    matches: np.ndarray
    gallery: int
    ranked: np.ndarray
    tied: np.ndarray

    @property
    def queries(self) -> int:
        """Number of queries, counted or not."""
        return len(self.matches)

    @property
    def queries_counted(self) -> int:
        """Number of queries with at least one match."""
        return int(np.count_nonzero(self.matches))

    @property
    def mean_average_precision(self) -> float:
        """Mean of the average precision over the queries that count, in 0..1."""
        return float(np.mean(self.average_precision[self.matches > 0]))

    def hits(self, k: int) -> np.ndarray:
        """(Q,) float64: 1 where a match is among the nearest `k` images, 0 where not, NaN where the query does not count."""
        return np.where(self.matches > 0, (self.first_match <= k).astype(np.float64), np.nan)

    def rank(self, k: int) -> float:
        """Share of the counted queries with a match among the nearest `k` images, in 0..1."""
        return float(np.mean(self.first_match[self.matches > 0] <= k))


def join_results(shares: Sequence[RetrievalResult]) -> RetrievalResult:
    """The result of all queries, from the shares in their order (see `rank_features`)."""
    of_queries = ("average_precision", "first_match", "matches", "ranked", "tied")
    joined = {name: np.concatenate([getattr(share, name) for share in shares]) for name in of_queries}
    return RetrievalResult(**joined, gallery=shares[0].gallery)


def mostly_tied(distances: Tensor) -> Tensor:
    """(B,) True for rows (B, G) of which more than half is one number: the order of files, not of ships, ranks those images."""
    # More than half of a circle cannot stand apart: where no two neighbours are equal, no median need be sought.
    likely = (distances[:, 1:] == distances[:, :-1]).any(1) | (distances[:, 0] == distances[:, -1])
    tied = likely & (distances.shape[1] > 1)
    rows = distances[tied]
    tied[tied.clone()] = 2 * (rows == rows.median(dim=1, keepdim=True).values).sum(1) > rows.shape[1]
    return tied


def squared_distances(
    query: Tensor, gallery: Tensor, *, squares: tuple[Tensor, Tensor] | None = None, out: Tensor | None = None
) -> Tensor:
    """Squared Euclidean distances (Q, G) in float32 between `query` (Q, D) and `gallery` (G, D).

    `rank_features` does not need them; use them to show or to re-rank a set of moderate size.

    Args:
        query, gallery: features of any float type.
        squares: `squared_norms` of both, (Q,) and (G,), where a gallery is met again and again.
        out: (Q, G) float32 to write to, likewise.
    """
    query, gallery = query.float(), gallery.float()
    of_query, of_gallery = squares or (squared_norms(query), squared_norms(gallery))
    return torch.add(of_query[:, None], of_gallery, out=out).addmm_(query, gallery.T, alpha=-2).clamp_(min=0)


def squared_norms(features: Tensor) -> Tensor:
    """(N,) float32 of features (N, D)."""
    return torch.cat([block.float().square().sum(1) for block in features.split(_GALLERY_BLOCK)])


def rank_features(
    query: Tensor,
    gallery: Tensor,
    *,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_modalities: Tensor | None = None,
    gallery_modalities: Tensor | None = None,
    memory_bytes: int = 1 << 30,
    device: torch.device | str | None = None,
    share: tuple[int, int] = (0, 1),
) -> RetrievalResult:
    """Rank the gallery for each query by squared Euclidean distance, in bounded memory.

    Every memory budget, device, block shape and number of ranks gives the same result to the last digit, because no sum is
    ever rounded: all features are multiplied by one power of two and rounded to integers so small that products and sums of
    them are exact in float64, in whatever order they are added. Against the largest norm of a feature the rounding step is
    about 2**-25, finer than the rounding of a float32 distance. Of two images at the same distance, the one that comes first
    in the gallery ranks first.

    The rank of a match is one more than the number of nearer images; nothing is sorted but the matches. Cost: Q G (D + log M).

    Args:
        query: (Q, D) features of any float type, normalised by the caller if they should be.
        gallery: (G, D) features.
        query_ids: (Q,) identities.
        gallery_ids: (G,) identities; -1, a distractor, matches nothing.
        query_modalities: (Q,) modality of each query. If given, with `gallery_modalities`, gallery images of the query's own
            modality are left out for that query.
        gallery_modalities: (G,) modality of each gallery image.
        memory_bytes: about how much memory to use beside the features; at least one row of distances is held.
        device: where to compute; by default where `query` is. It must have float64.
        share: (i, n) ranks only the i-th of n equal runs of queries, for n processes; `join_results` puts them together.

    Raises:
        DataError: no query has a match, or a feature is not finite.
    """
    device = query.device if device is None else torch.device(device)
    truth = Truth.build(query_ids, gallery_ids, query_modalities, gallery_modalities, device)
    if (len(query), len(gallery)) != (truth.queries, truth.gallery):
        raise ValueError(f"{len(query)} x {len(gallery)} features, but {truth.queries} x {truth.gallery} identities")
    rows = torch.arange(truth.queries).tensor_split(share[1])[share[0]]
    block_rows = _rows_of_a_block(truth, query.shape[1], memory_bytes)
    return _rank_blocks(_distance_blocks(query, gallery, rows.split(block_rows), device), truth, rows)


def _rows_of_a_block(truth: Truth, width: int, memory_bytes: int) -> int:
    """How many queries fit."""
    # Eight bytes a distance; a match costs its index, threshold, mask, histogram bin and the sorting of them.
    row_bytes = 8 * truth.gallery + 80 * truth.most_matches
    working_bytes = 16 * _GALLERY_BLOCK * width + 32 * _COUNTING_BLOCK
    return max(1, min(1024, (memory_bytes - working_bytes) // row_bytes))


def _distance_blocks(query: Tensor, gallery: Tensor, blocks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """`_exact_distances` of the queries of each block; one buffer holds them all, one after the other."""
    scale = _integer_scale(query, gallery)
    squares = _gallery_squares(gallery, scale, device)
    buffer = torch.empty(max(map(len, blocks)), len(gallery), dtype=torch.float64, device=device)
    for block in blocks:
        scaled = _to_integers(query[block.to(query.device)].to(device), scale)
        yield _exact_distances(scaled, gallery, squares, scale, out=buffer[: len(block)])


def ranked_distances(
    query: Tensor, gallery: Tensor, *, device: torch.device | None = None, memory_bytes: int = 1 << 30
) -> Iterator[Tensor]:
    """Squared Euclidean distances in blocks of rows (B, G), float64, in the very order by which `rank_features` ranks.

    Args:
        query, gallery: (Q, D) and (G, D), as for `rank_features`.
        device, memory_bytes: likewise.
    """
    device = query.device if device is None else torch.device(device)
    scale, rows = _integer_scale(query, gallery), max(1, memory_bytes // (16 * len(gallery)))
    blocks = torch.arange(len(query)).split(min(1024, rows))
    for block, distances in zip(blocks, _distance_blocks(query, gallery, blocks, device), strict=True):
        own = _to_integers(query[block.to(query.device)].to(device), scale).square_().sum(1, keepdim=True)
        yield (distances + own).clamp_(min=0) / scale**2


def rank_distances(
    distances: Tensor | Iterable[Tensor],
    *,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_modalities: Tensor | None = None,
    gallery_modalities: Tensor | None = None,
    rows: range | None = None,
) -> RetrievalResult:
    """Rank the gallery for each query by given distances, as `rank_features` does by those of features.

    Args:
        distances: (Q, G) of any float type, or its blocks of rows in order (as `rerank_blocks` gives them).
        query_ids, gallery_ids, query_modalities, gallery_modalities: as for `rank_features`.
        rows: the queries that `distances` are of, where they are not of all.

    Raises:
        DataError: no query has a match, or a distance is not finite.
    """
    if isinstance(distances, Tensor):
        distances = distances.split(max(1, (1 << 26) // max(1, distances.shape[1])))
    truth = Truth.build(query_ids, gallery_ids, query_modalities, gallery_modalities, torch.device("cpu"))
    return _rank_blocks(
        distances, truth, torch.arange(truth.queries) if rows is None else torch.tensor(rows, dtype=torch.int64)
    )


def _integer_scale(query: Tensor, gallery: Tensor) -> float:
    """The power of two that takes the largest feature norm to about 2**25.

    Then |g|^2 - 2 q.g and each partial sum of it stay below 2**53, up to which float64 holds every integer. The 0.6 keeps
    features of norm 1, give or take their rounding, away from the step between two powers.
    """
    largest = 0.0
    for features in (query, gallery):
        for block in features.split(_GALLERY_BLOCK):
            longest = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).max().item()
            if not math.isfinite(longest):
                raise DataError("a feature holds NaN or infinity; check the weights and the images that it was made from")
            largest = max(largest, longest)
    return 2.0 ** (_EXACT_BITS - math.floor(math.log2(largest) + 0.6)) if largest > 0 else 1.0


def _to_integers(features: Tensor, scale: float) -> Tensor:
    """`features` times `scale`, rounded, in float64."""
    return (features.double() * scale).round_()


def _gallery_squares(gallery: Tensor, scale: float, device: torch.device) -> Tensor:
    """(G,) float64: the exact squared norm of each scaled gallery feature."""
    blocks = gallery.split(_GALLERY_BLOCK)
    return torch.cat([_to_integers(block.to(device), scale).square_().sum(1) for block in blocks])


def _exact_distances(query: Tensor, gallery: Tensor, squares: Tensor, scale: float, *, out: Tensor) -> Tensor:
    """Write |g|^2 - 2 q.g into `out` (B, G): the scaled squared distances less |q|^2, which no order within a row depends on.

    `query` (B, D) holds integers, `gallery` (G, D) the features as given, `squares` (G,) the norms of its integers.
    """
    query = query * -2
    for start in range(0, len(gallery), _GALLERY_BLOCK):
        block = slice(start, start + _GALLERY_BLOCK)
        torch.addmm(squares[block], query, _to_integers(gallery[block].to(query.device), scale).T, out=out[:, block])
    return out


def _rank_blocks(blocks: Iterable[Tensor], truth: Truth, rows: Tensor) -> RetrievalResult:
    """Rank the queries `rows` from blocks of rows of their distances."""
    shares = []
    done = 0
    for distances in blocks:
        if distances.shape[1] != truth.gallery:
            raise ValueError(f"{distances.shape[1]} columns of distances for {truth.gallery} gallery images")
        block = rows[done : done + len(distances)]
        done += len(block)
        indices, real = (table.to(distances.device) for table in truth.matches(block))
        ranks = _match_ranks(distances, indices, real, lambda columns, block=block: truth.left_out(block, columns))
        average, first, matches = _score(ranks.cpu().numpy(), real.sum(1).cpu().numpy())
        tied = mostly_tied(distances).cpu().numpy()
        shares.append(RetrievalResult(average, first, matches, truth.gallery, truth.ranked(block), tied))
    if done != len(rows):
        raise ValueError(f"{done} rows of distances for {len(rows)} queries")
    none = np.empty(0, int)
    empty = RetrievalResult(np.empty(0), none, none, truth.gallery, none, none.astype(bool))
    return join_results(shares) if shares else empty


def _match_ranks(distances: Tensor, indices: Tensor, real: Tensor, left_out: Callable[[Tensor], Tensor]) -> Tensor:
    """1-based ranks (B, M) of the matches, ascending in a row with the real ones first; the places after them mean nothing.

    Args:
        distances: (B, G).
        indices: (B, M) gallery indices of the matches, ascending in a row.
        real: (B, M) False where a row has fewer matches.
        left_out: gallery indices (C,) -> (B, C) True where an image takes no part in the ranking of a query.
    """
    rows, gallery = distances.shape
    matches = indices.shape[1]
    if not matches:
        return indices
    found = distances.gather(1, indices)
    if not bool(torch.isfinite(found[real]).all()):
        raise DataError("a distance between images is NaN or infinite; check the features that it was made from")
    # The largest finite number fills up a row: it sorts last, and never equals the infinity of an image that is left out.
    found = found.masked_fill(~real, torch.finfo(found.dtype).max)
    found, order = found.sort(dim=1, stable=True)
    indices = indices.gather(1, order)
    bins = torch.zeros(rows, matches + 1, dtype=torch.int64, device=distances.device)
    one = bins.new_ones(1, 1)
    row_keys = torch.arange(rows, device=distances.device)[:, None] * (matches + 1)
    match_keys = (row_keys + torch.searchsorted(found, found, right=True)) * gallery
    tied_before = torch.zeros_like(indices)
    columns = max(1, _COUNTING_BLOCK // max(1, rows))
    for start in range(0, gallery, columns):
        block = distances[:, start : start + columns]
        absent = left_out(torch.arange(start, start + block.shape[1], device=distances.device))
        block = block.masked_fill(absent.to(block.device), math.inf)
        place = torch.searchsorted(found, block, right=True)
        bins.scatter_add_(1, place, one.expand_as(place))
        row, column = (found.gather(1, (place - 1).clamp_(min=0)) == block).nonzero(as_tuple=True)
        # A key orders images by row, distance and place in the gallery, so a search counts the ties that come before a match.
        keys = ((row_keys[row, 0] + place[row, column]) * gallery + column + start).sort().values
        tied_before += torch.searchsorted(keys, match_keys + indices) - torch.searchsorted(keys, match_keys)
    return 1 + bins.cumsum(1)[:, :-1] + tied_before


def _score(ranks: np.ndarray, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average precision and first match of each row of ranks (B, M), of which the first `matches` (B,) are real; and these."""
    if not ranks.shape[1]:
        return np.full(len(matches), np.nan), np.zeros_like(matches), matches
    number = np.arange(1, ranks.shape[1] + 1)
    precision = np.where(number <= matches[:, None], number / ranks, 0.0)
    # A running sum, because np.sum groups its terms by the width of the block, which the memory budget decides.
    total = precision.cumsum(axis=1)[:, -1]
    with np.errstate(invalid="ignore"):
        average = total / np.where(matches > 0, matches, np.nan)
    return average, np.where(matches > 0, ranks[:, 0], 0), matches
