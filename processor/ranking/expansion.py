"""Query expansion: each query's feature joined by those of its nearest gallery images.

Sources: Chum et al. 2007, "Total Recall" (the average); Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human
Annotation", section 5 (weights by similarity).

Legend: Q queries, G gallery images, D numbers a feature, n neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional

from processor.ranking.retrieval import squared_distances

_BLOCK_QUERIES = 256


def expand_queries(
    query: Tensor,
    gallery: Tensor,
    *,
    count: int,
    alpha: float = 0.0,
    query_modalities: Tensor | None = None,
    gallery_modalities: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The weighted mean of each query and its `count` nearest gallery images; the query itself weighs 1.

    Args:
        query: (Q, D) features.
        gallery: (G, D) features.
        count: n; of a smaller gallery all, with 0 the queries come back as they are.
        alpha: a neighbour weighs its cosine to the query, 0 where that is negative, to this power; 0: all weigh 1.
        query_modalities: (Q,) modality of each query. If given, with `gallery_modalities`, an image of the query's own
            modality is no neighbour of it.
        gallery_modalities: (G,).
        device: where distances are computed; by default where `query` is.

    Returns:
        (Q, D) float32 where `query` is, not normalised.
    """
    if count == 0:
        return query
    on_device = gallery.to(device if device is not None else query.device).float()
    expanded = []
    for rows in torch.arange(len(query)).split(_BLOCK_QUERIES):
        block = query[rows].to(on_device)
        distances = squared_distances(block, on_device)  # (B, G)
        if query_modalities is not None and gallery_modalities is not None:
            own = query_modalities[rows, None] == gallery_modalities
            distances = distances.masked_fill(own.to(distances.device), torch.inf)
        nearest = distances.topk(min(count, len(gallery)), dim=1, largest=False)
        neighbours = on_device[nearest.indices]  # (B, n, D)
        weights = functional.cosine_similarity(block[:, None], neighbours, dim=2).clamp(min=0) ** alpha
        weights = weights.masked_fill(nearest.values.isinf(), 0.0)[..., None]
        mean = (block + (weights * neighbours).sum(1)) / (1 + weights.sum(1))
        expanded.append(mean.to(query.device))
    return torch.cat(expanded)
