"""Ranking and scoring features under the protocols.

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
from processor.ranking.intervals import METHOD, mean_interval
from processor.ranking.reranking import Sharing, rerank_apart
from processor.ranking.results import KINDS, RATES, Evaluation, Outcome, Score
from processor.ranking.retrieval import RetrievalResult, join_results, rank_distances, rank_features
from utils import distributed
from utils.errors import DataError
from utils.log import ONCE, table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranking:
    """How galleries are ranked.

    Attributes:
        normalise: whether features are L2-normalised first.
        same_modality: whether gallery images of the query's own modality stay in (they do, as released).
        expansion: `count` and `alpha` of `processor.ranking.expansion.expand_queries`; None for the queries' own features.
        reranking: `k1`, `k2` and `lambda_value` of `processor.ranking.reranking.rerank_blocks`; None for plain distances.
            Queries of different modalities are re-ranked apart.
        device: where distances are computed.
        memory_bytes: about how much memory distances take at a time.
    """

    normalise: bool = True
    same_modality: bool = True
    expansion: Mapping[str, Any] | None = None
    reranking: Mapping[str, Any] | None = None
    device: torch.device | None = None
    memory_bytes: int = 1 << 30

    @property
    def reranking_options(self) -> dict[str, Any]:
        """Arguments of `processor.ranking.reranking.rerank_apart`; only where `reranking` is not None."""
        return {**self.reranking, "device": self.device, "memory_bytes": self.memory_bytes}


def build_ranking(cfg, device: torch.device) -> Ranking:
    """The ranking of TEST.*."""
    expansion = {"count": cfg.TEST.QUERY_EXPANSION, "alpha": cfg.TEST.QUERY_EXPANSION_ALPHA}
    reranking = {"k1": cfg.TEST.RE_RANKING_K1, "k2": cfg.TEST.RE_RANKING_K2, "lambda_value": cfg.TEST.RE_RANKING_LAMBDA}
    return Ranking(
        normalise=cfg.TEST.FEAT_NORM == "yes",
        same_modality=cfg.TEST.SAME_MODALITY_GALLERY,
        expansion=expansion if cfg.TEST.QUERY_EXPANSION else None,
        reranking=reranking if cfg.TEST.RE_RANKING else None,
        device=device,
        memory_bytes=int(cfg.TEST.RANKING_MEMORY * 2**30),
    )


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
            sharing = Sharing(distributed.rank(), distributed.world_size(), distributed.gather)
            options = {**ranking.reranking_options, "sharing": sharing}
            blocks = rerank_apart(of_query, features[gallery], modalities[query], **options)
            own = rank_distances(blocks, **identities, rows=sharing.rows(len(query)))
            return join_results(distributed.gather(own))
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
    expanded = expand_queries(query, gallery, **ranking.expansion, **modalities, device=ranking.device)
    return functional.normalize(expanded) if ranking.normalise else expanded


def score_protocol(protocol: Protocol, result: RetrievalResult, records: Sequence[Chip]) -> Score:
    """The figures of a ranked protocol; arguments as for `rank_protocol`."""
    counted = result.matches > 0
    queries = [records[index] for index in protocol.query]
    ships = np.array([query.ship for query in queries])[counted]
    values = {"mAP": result.average_precision, "R1": result.hits(1), "R5": result.hits(5), "R10": result.hits(10)}
    intervals = {rate: mean_interval(values[rate][counted], ships) for rate in RATES}
    outcomes = zip(queries, result.average_precision, result.matches, result.first_match, strict=True)
    return Score(
        **{rate: interval.mean for rate, interval in intervals.items()},
        queries=result.queries,
        queries_counted=result.queries_counted,
        gallery=result.gallery,
        distractors=sum(records[index].ship == DISTRACTOR for index in protocol.gallery),
        chance=float(np.mean(result.matches[counted] / result.ranked[counted])),
        **{f"{rate}_interval": interval for rate, interval in intervals.items()},
        per_query=tuple(
            Outcome(query.path.name, query.ship, float(precision) if matches else None, int(first))
            for query, precision, matches, first in outcomes
        ),
    )


def tell_doubts(name: str, result: RetrievalResult) -> None:
    """Log what takes meaning from the figures of a protocol: queries that do not count, and those whose distances tie."""
    missing, tied = result.queries - result.queries_counted, int(np.count_nonzero(result.tied))
    if missing:
        notice = f"{name}: {missing} of {result.queries} queries have no match in the gallery and do not count"
        logger.info(notice, extra={ONCE: notice})
    warn_of_ties(f"{name}: ", tied, result.queries)


def warn_of_ties(where: str, tied: int, queries: int) -> None:
    """Warn where most of the gallery lies at one distance, for `tied` of the queries."""
    if tied:
        logger.warning(
            "%sfor %d of %d queries most of the gallery lies at one distance, so that the order of the files ranks it; "
            "check the weights and the images",
            where,
            tied,
            queries,
            extra={ONCE: f"{where}tied"},
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
        result = rank_protocol(protocol, of, records, ranking)
        tell_doubts(protocol.name, result)
        return score_protocol(protocol, result, records)

    features = functional.normalize(features) if ranking.normalise else features
    fused_sources = frozenset(sources)
    evaluations = {}
    for name, protocol in protocols.items():
        uses_samples = fused is not None and not fused_sources.isdisjoint((*protocol.query, *protocol.gallery))
        evaluations[name] = Evaluation(score(protocol, features), score(protocol, fused) if uses_samples else None)
    return evaluations


def results_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The figures as text, in percent, with counts, and below them their 95 % intervals: two tables within 80 columns."""
    figures, intervals = [], []
    for name, evaluation in evaluations.items():
        for kind, score in ((kind, getattr(evaluation, kind)) for kind in KINDS):
            if score is not None:
                counts = [f"{score.queries_counted} of {score.queries}", score.gallery, score.distractors]
                figures.append([name, kind, *(f"{100 * getattr(score, rate):.1f}" for rate in RATES), *counts])
                ends = (getattr(score, f"{rate}_interval").percent() for rate in RATES)
                intervals.append([name, kind, *ends, f"{100 * score.chance:.1f}"])
    above = table(["protocol", "", *RATES, "queries", "gallery", "distractors"], figures)
    return f"{above}\n\n{table(['95 %', '', *RATES, 'chance, R1'], intervals)}"


def counting_rules(ranking: Ranking) -> dict[str, Any]:
    """What a figure counts, for results.json and the line below the table."""
    return {
        "same_modality_gallery": ranking.same_modality,
        "queries_without_match": "left out",
        "distractors": "match nothing",
        "query_expansion": ranking.expansion,
        "reranking": ranking.reranking,
        "interval": METHOD,
        "interval_level": 0.95,
    }


def counting_line(ranking: Ranking) -> str:
    """The counting rules in one line, but for the method of the intervals."""
    own = "stay in" if ranking.same_modality else "are left out of"
    line = f"counted: queries with a match; images of the query's own modality {own} the gallery; distractors match nothing"
    return "; ".join([line, *_steps_of(ranking)])


def unusual_line(ranking: Ranking) -> str:
    """Of the counting rules those that are not as released; empty where all are."""
    left_out = [] if ranking.same_modality else ["without the gallery images of the query's own modality"]
    return "; ".join([*left_out, *_steps_of(ranking)])


def _steps_of(ranking: Ranking) -> list[str]:
    steps = []
    if ranking.expansion:
        steps.append("queries expanded by {count} images, alpha {alpha:g}".format(**ranking.expansion))
    if ranking.reranking:
        steps.append("re-ranked with k1 {k1}, k2 {k2}, lambda {lambda_value:g}".format(**ranking.reranking))
    return steps
