"""Scoring features under the protocols, and the results of a test as records.

Legend: I test images, D feature width.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datasets.records import DISTRACTOR, Chip, Protocol
from processor.ranking.expansion import expand_queries
from processor.ranking.intervals import METHOD, Interval, mean_interval
from processor.ranking.reranking import rerank_apart
from processor.ranking.retrieval import RetrievalResult, join_results, rank_distances, rank_features
from utils import distributed
from utils.errors import DataError
from utils.log import table

logger = logging.getLogger(__name__)

RATES = ("mAP", "R1", "R5", "R10")
"""The figures of a protocol that are rates, each with an interval."""


@dataclass(frozen=True)
class Reranking:
    """Parameters of k-reciprocal re-ranking (Zhong et al. 2017)."""

    k1: int = 50
    k2: int = 15
    lambda_value: float = 0.3


@dataclass(frozen=True)
class Expansion:
    """Parameters of query expansion; see `processor.ranking.expansion.expand_queries`."""

    count: int
    alpha: float = 0.0


@dataclass(frozen=True)
class Ranking:
    """How galleries are ranked.

    Attributes:
        normalise: whether features are L2-normalised first.
        same_modality: whether gallery images of the query's own modality stay in (they do, as released).
        expansion: None for the queries' own features.
        reranking: None for plain distances. Queries of different modalities are re-ranked apart.
        device: where distances are computed.
        memory_bytes: about how much memory distances take at a time.
    """

    normalise: bool = True
    same_modality: bool = True
    expansion: Expansion | None = None
    reranking: Reranking | None = None
    device: torch.device | None = None
    memory_bytes: int = 1 << 30

    @property
    def reranking_options(self) -> dict[str, Any]:
        """Arguments of `processor.ranking.reranking.rerank_apart`; only where `reranking` is not None."""
        return {**vars(self.reranking), "device": self.device, "memory_bytes": self.memory_bytes}


def build_ranking(cfg, device: torch.device) -> Ranking:
    """The ranking of TEST.*."""
    parameters = Reranking(cfg.TEST.RE_RANKING_K1, cfg.TEST.RE_RANKING_K2, cfg.TEST.RE_RANKING_LAMBDA)
    return Ranking(
        normalise=cfg.TEST.FEAT_NORM == "yes",
        same_modality=cfg.TEST.SAME_MODALITY_GALLERY,
        expansion=Expansion(cfg.TEST.QUERY_EXPANSION, cfg.TEST.QUERY_EXPANSION_ALPHA) if cfg.TEST.QUERY_EXPANSION else None,
        reranking=parameters if cfg.TEST.RE_RANKING else None,
        device=device,
        memory_bytes=int(cfg.TEST.RANKING_MEMORY * 2**30),
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one query.

    Attributes:
        query: file name.
        ship: its pid.
        AP: average precision, 0..1; None where the query has no match in the gallery and does not count.
        first_match: 1-based rank of its nearest match; 0 where there is none.
    """

    query: str
    ship: int
    AP: float | None
    first_match: int


@dataclass(frozen=True)
class Score:
    """The figures of one protocol; rates in 0..1.

    Attributes:
        mAP, R1, R5, R10: over the queries that count.
        queries, queries_counted, gallery: numbers of images; a query without a match in the gallery does not count.
        distractors: gallery images that match no query.
        chance: expected R1 of a random ranking, the mean of matches / images ranked over the queries that count.
        mAP_interval, R1_interval, R5_interval, R10_interval: 95 % intervals that allow for several queries of a ship
            (`processor.ranking.intervals`).
        per_query: the outcome of each query, counted or not, in the protocol's order.
    """

    mAP: float
    R1: float
    R5: float
    R10: float
    queries: int
    queries_counted: int
    gallery: int
    distractors: int
    chance: float
    mAP_interval: Interval
    R1_interval: Interval
    R5_interval: Interval
    R10_interval: Interval
    per_query: tuple[Outcome, ...]


@dataclass(frozen=True)
class Evaluation:
    """A protocol's scores without and with generated samples; `fused` is None where it has none."""

    plain: Score
    fused: Score | None = None


def rank_protocol(protocol: Protocol, features: Tensor, records: Sequence[Chip], ranking: Ranking) -> RetrievalResult:
    """Rank the protocol's gallery for each of its queries; processes share the queries.

    Args:
        protocol: indices into `features` and `records`.
        features: (I, D).
        records: (I,) the test images.
        ranking: how.

    Raises:
        DataError: no query has a match.
    """
    pids = torch.tensor([record.ship for record in records])
    modalities = torch.tensor([int(record.modality) for record in records])
    query, gallery = torch.tensor(protocol.query), torch.tensor(protocol.gallery)
    identities = {"query_ids": pids[query], "gallery_ids": pids[gallery]}
    if not ranking.same_modality:
        identities |= {"query_modalities": modalities[query], "gallery_modalities": modalities[gallery]}
    try:
        of_query = expand(features[query], features[gallery], modalities[query], modalities[gallery], ranking)
        if ranking.reranking is not None:
            blocks = rerank_apart(of_query, features[gallery], modalities[query], **ranking.reranking_options)
            return rank_distances(blocks, **identities)
        share = (distributed.rank(), distributed.world_size())
        where = {"device": ranking.device, "memory_bytes": ranking.memory_bytes}
        own = rank_features(of_query, features[gallery], **identities, **where, share=share)
        return join_results(distributed.gather(own))
    except DataError as error:
        raise DataError(f"{protocol.name}: {error}") from error


def expand(query: Tensor, gallery: Tensor, query_modalities: Tensor, gallery_modalities: Tensor, ranking: Ranking) -> Tensor:
    """The queries' features (Q, D) as `ranking` expands them by those of the gallery (G, D); modalities are (Q,) and (G,)."""
    if ranking.expansion is None:
        return query
    apart = {"query_modalities": query_modalities, "gallery_modalities": gallery_modalities}
    modalities = {} if ranking.same_modality else apart
    expanded = expand_queries(query, gallery, **vars(ranking.expansion), **modalities, device=ranking.device)
    return functional.normalize(expanded) if ranking.normalise else expanded


def score_protocol(protocol: Protocol, result: RetrievalResult, records: Sequence[Chip]) -> Score:
    """The figures of a ranked protocol; arguments as for `rank_protocol`."""
    counted = result.matches > 0
    ships = np.array([records[index].ship for index in protocol.query])[counted]
    if not counted.all():
        missing = int(np.count_nonzero(~counted))
        logger.info("%s: %d of %d queries have no match in the gallery and do not count", protocol.name, missing, len(counted))
    return Score(
        mAP=result.mean_average_precision,
        R1=result.rank(1),
        R5=result.rank(5),
        R10=result.rank(10),
        queries=result.queries,
        queries_counted=result.queries_counted,
        gallery=result.gallery,
        distractors=sum(records[index].ship == DISTRACTOR for index in protocol.gallery),
        chance=float(np.mean(result.matches[counted] / result.ranked[counted])),
        mAP_interval=mean_interval(result.average_precision[counted], ships),
        R1_interval=mean_interval(result.hits(1)[counted], ships),
        R5_interval=mean_interval(result.hits(5)[counted], ships),
        R10_interval=mean_interval(result.hits(10)[counted], ships),
        per_query=tuple(
            Outcome(records[index].path.name, records[index].ship, float(precision) if matches else None, int(first))
            for index, precision, matches, first in zip(
                protocol.query, result.average_precision, result.matches, result.first_match, strict=True
            )
        ),
    )


def evaluate(
    protocols: Mapping[str, Protocol],
    records: Sequence[Chip],
    features: Tensor,
    ranking: Ranking,
    *,
    fused: Tensor | None = None,
    sources: Collection[int] = (),
) -> dict[str, Evaluation]:
    """Score every protocol, plain and, where it uses images with generated samples, fused.

    Args:
        protocols: by name, over `records`.
        records: (I,) the test images.
        features: (I, D), not normalised.
        ranking: how galleries are ranked.
        fused: (I, D) features after fusion (`processor.fusion.fuse_images`), if there are samples.
        sources: indices of the images that have samples.

    Raises:
        DataError: no query of a protocol has a match.
    """

    def score(protocol: Protocol, of: Tensor) -> Score:
        return score_protocol(protocol, rank_protocol(protocol, of, records, ranking), records)

    features = functional.normalize(features) if ranking.normalise else features
    fused_sources = frozenset(sources)
    evaluations = {}
    for name, protocol in protocols.items():
        uses_samples = fused is not None and not fused_sources.isdisjoint((*protocol.query, *protocol.gallery))
        evaluations[name] = Evaluation(score(protocol, features), score(protocol, fused) if uses_samples else None)
    return evaluations


def results_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The figures as text, in percent, with 95 % intervals and the counting rule."""
    titles = [title for rate in RATES for title in (rate, "95 %")]
    headers = ["protocol", "", *titles, "chance", "queries", "counted", "gallery", "distractors"]
    rows = []
    for name, evaluation in evaluations.items():
        for kind, score in (("plain", evaluation.plain), ("fused", evaluation.fused)):
            if score is not None:
                figures = [
                    text
                    for rate in RATES
                    for text in (f"{100 * getattr(score, rate):.1f}", getattr(score, f"{rate}_interval").percent())
                ]
                counts = [score.queries, score.queries_counted, score.gallery, score.distractors]
                rows.append([name, kind, *figures, f"{100 * score.chance:.1f}", *counts])
    return table(headers, rows)


def counting_rules(ranking: Ranking) -> dict[str, Any]:
    """What a figure counts, for results.json and the line below the table."""
    return {
        "same_modality_gallery": ranking.same_modality,
        "queries_without_match": "left out",
        "distractors": "match nothing",
        "query_expansion": vars(ranking.expansion) if ranking.expansion else None,
        "reranking": vars(ranking.reranking) if ranking.reranking else None,
        "interval": METHOD,
        "interval_level": 0.95,
    }


def counting_line(ranking: Ranking) -> str:
    """The counting rules in one line, but for the method of the intervals."""
    own = "stay in" if ranking.same_modality else "are left out of"
    expansion, reranking = ranking.expansion, ranking.reranking
    line = f"counted: queries with a match; images of the query's own modality {own} the gallery; distractors match nothing"
    if expansion:
        line += f"; queries expanded by {expansion.count} images, alpha {expansion.alpha:g}"
    if reranking:
        line += f"; re-ranked with k1 {reranking.k1}, k2 {reranking.k2}, lambda {reranking.lambda_value:g}"
    return line


def results_dict(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The 'protocols' of results.json."""

    def figures(score: Score | None) -> dict[str, Any] | None:
        if score is None:
            return None
        values = dict(vars(score))
        for rate in RATES:
            values[f"{rate}_interval"] = values[f"{rate}_interval"].ends
        values["per_query"] = [vars(outcome) for outcome in score.per_query]
        return values

    return {
        name: {"plain": figures(evaluation.plain), "fused": figures(evaluation.fused)}
        for name, evaluation in evaluations.items()
    }
