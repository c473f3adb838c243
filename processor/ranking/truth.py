"""Which gallery images a query should find: those of its identity, less those that are left out for it.

Legend: Q queries, G gallery images, B queries of a block, M most matches of a query.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.records import DISTRACTOR
from utils.errors import DataError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Truth:
    """Which gallery images match each query, and which are left out: gallery images grouped by identity.

    Attributes:
        order: (G,) gallery indices sorted by identity.
        first: (Q,) place in `order` of each query's first match.
        count: (Q,) how many images from there on show the query's ship, those that are left out among them.
        query_modalities, gallery_modalities: (Q,), (G,); None where nothing is left out.
    """

    order: Tensor
    first: Tensor
    count: Tensor
    query_modalities: Tensor | None
    gallery_modalities: Tensor | None

    @classmethod
    def build(cls, query_ids, gallery_ids, query_modalities, gallery_modalities, device: torch.device) -> "Truth":
        """From the arguments of `processor.ranking.retrieval.rank_features`. Raises DataError if no query has a match."""
        if (query_modalities is None) != (gallery_modalities is None):
            raise ValueError("give the modalities of both queries and gallery, or of neither")
        query_ids, gallery_ids = (torch.as_tensor(ids, device=device) for ids in (query_ids, gallery_ids))
        if query_modalities is not None:
            query_modalities = torch.as_tensor(query_modalities, device=device)
            gallery_modalities = torch.as_tensor(gallery_modalities, device=device)
        ids, order = gallery_ids.sort(stable=True)
        first = torch.searchsorted(ids, query_ids)
        count = torch.searchsorted(ids, query_ids, right=True) - first
        count[query_ids == DISTRACTOR] = 0
        truth = cls(order, first, count, query_modalities, gallery_modalities)
        if not truth.has_match():
            raise DataError(
                f"none of the {truth.queries} queries has a match among the {truth.gallery} gallery images; "
                "check that queries and gallery show the same ships"
            )
        return truth

    @property
    def queries(self) -> int:
        """Q."""
        return len(self.first)

    @property
    def gallery(self) -> int:
        """G."""
        return len(self.order)

    @property
    def most_matches(self) -> int:
        """The largest `count`."""
        return int(self.count.max())

    def matches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gallery indices (B, M), ascending in a row, of the matches of queries `rows`, and (B, M) which of them are real."""
        count = self.count[rows.to(self.count.device), None]
        column = torch.arange(int(count.max()) if len(rows) else 0, device=count.device)
        real = column < count
        indices = self.order[(self.first[rows.to(count.device), None] + column).clamp(max=max(0, self.gallery - 1))]
        return indices, real & ~self.left_out(rows, indices)

    def has_match(self) -> bool:
        """Whether any query has one."""
        if not self.queries or not self.most_matches or self.query_modalities is None:
            return self.queries > 0 and self.most_matches > 0
        rows = max(1, _BLOCK // self.most_matches)
        return any(bool(self.matches(block)[1].any()) for block in torch.arange(self.queries).split(rows))

    def ranked(self, rows: Tensor) -> np.ndarray:
        """(B,) number of gallery images that are not left out for queries `rows`."""
        if self.query_modalities is None:
            return np.full(len(rows), self.gallery)
        kinds, of_kind = self.gallery_modalities.unique(return_counts=True)
        own = self.query_modalities[rows.to(kinds.device), None] == kinds
        return self.gallery - (own * of_kind).sum(1).cpu().numpy()

    def left_out(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Which gallery images `indices` (B, M) or (C,) have the modality of queries `rows` (B,) and are to be left out."""
        indices = indices.to(self.order.device)
        if self.query_modalities is None:
            return torch.zeros((), dtype=torch.bool, device=indices.device)
        return self.query_modalities[rows.to(indices.device), None] == self.gallery_modalities[indices]
