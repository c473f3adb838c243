"""Scoring: which ranks the rates look at, and what a configuration makes of ranking."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from datasets.records import Chip, Modality, Protocol, Split
from processor.ranking.evaluation import Ranking, build_ranking, evaluate, expand, score_protocol
from processor.ranking.expansion import expand_queries
from processor.ranking.reranking import rerank
from processor.ranking.retrieval import RetrievalResult
from tests.commands import tiny_cfg

CPU = torch.device("cpu")


def test_each_rate_counts_matches_up_to_its_own_rank():
    first = np.array([1, 2, 5, 6, 10, 11, 0])
    count = len(first)
    matches, ranked = np.where(first > 0, 1, 0), np.full(count, 20)
    precision = np.where(first > 0, 1 / np.maximum(first, 1), np.nan)
    result = RetrievalResult(precision, first, matches, 20, ranked, np.zeros(count, bool))
    chips = [Chip(Path(f"{number}.tif"), number, Modality.SAR, Split.QUERY) for number in range(count)]
    chips.append(Chip(Path("x.tif"), -1, Modality.SAR, Split.GALLERY))
    score = score_protocol(Protocol("ALL", tuple(range(count)), (count,)), result, chips)
    assert pytest.approx((1 / 6, 3 / 6, 5 / 6)) == (score.R1, score.R5, score.R10)
    assert score.mAP == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 10 + 1 / 11) / 6)
    assert (score.queries, score.queries_counted, score.gallery, score.distractors) == (7, 6, 20, 1)
    assert score.chance == pytest.approx(1 / 20)
    for rate in ("mAP", "R1", "R5", "R10"):
        interval = getattr(score, f"{rate}_interval")
        assert interval.mean == getattr(score, rate)
        assert (interval.queries, interval.ships) == (6, 6)
    assert [outcome.AP is None for outcome in score.per_query] == [False] * 6 + [True]


def test_the_configuration_reaches_ranking_by_value():
    changes = {
        **{"TEST__RE_RANKING": True, "TEST__RE_RANKING_K1": 21, "TEST__RE_RANKING_K2": 7, "TEST__RE_RANKING_LAMBDA": 0.4},
        **{"TEST__QUERY_EXPANSION": 3, "TEST__QUERY_EXPANSION_ALPHA": 2.5, "TEST__RANKING_MEMORY": 0.5},
        **{"TEST__SAME_MODALITY_GALLERY": False, "TEST__FEAT_NORM": "no"},
    }
    assert build_ranking(tiny_cfg(**changes), CPU) == Ranking(
        normalise=False,
        same_modality=False,
        expansion={"count": 3, "alpha": 2.5},
        reranking={"k1": 21, "k2": 7, "lambda_value": 0.4},
        device=CPU,
        memory_bytes=536870912,
    )
    plain = build_ranking(tiny_cfg(), CPU)
    assert plain == Ranking(True, True, None, None, CPU, 1073741824)
    assert plain == Ranking(device=CPU)


def test_expanded_queries_are_of_norm_one_where_features_are():
    """A longer query would change what is nearest under re-ranking, whose sets hold queries too."""
    generator = torch.Generator().manual_seed(0)
    query, gallery = (functional.normalize(torch.randn(count, 6, generator=generator)) for count in (4, 9))
    kinds = torch.zeros(4, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
    options = {"count": 3, "alpha": 1.0}
    plain = expand_queries(query, gallery, **options)
    assert not torch.allclose(plain.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(expand(query, gallery, *kinds, Ranking(expansion=options)), functional.normalize(plain))
    torch.testing.assert_close(expand(query, gallery, *kinds, Ranking(expansion=options, normalise=False)), plain)
    assert expand(query, gallery, *kinds, Ranking()) is query


def test_images_of_the_own_modality_expand_nothing_where_they_are_left_out():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    kinds = torch.tensor([1]), torch.tensor([1, 0])
    options = {"count": 1, "alpha": 0.0}
    ranking = Ranking(normalise=False, same_modality=False, expansion=options)
    torch.testing.assert_close(expand(query, gallery, *kinds, ranking), torch.tensor([[0.5, 0.5]]))


def test_reranking_without_parameters_has_those_of_the_method():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (functional.normalize(torch.randn(count, 8, generator=generator)) for count in (10, 90))
    assert torch.equal(rerank(query, gallery), rerank(query, gallery, k1=50, k2=15, lambda_value=0.3))
    assert not torch.equal(rerank(query, gallery), rerank(query, gallery, k1=50, k2=16, lambda_value=0.3))


def test_ties_are_told_once_a_protocol(caplog):
    chips = [Chip(Path(f"{number}.tif"), number % 2, Modality.SAR, Split.QUERY) for number in range(6)]
    evaluate({"ALL": Protocol("ALL", (0, 1), (2, 3, 4, 5))}, chips, torch.ones(6, 3), Ranking())
    assert caplog.text.count("ALL: for 2 of 2 queries most of the gallery lies at one distance") == 1
