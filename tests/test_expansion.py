"""Query expansion: worked by hand, bounded by the gallery, and the same in the evaluation and in lists."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from datasets.records import Chip, Modality, Protocol
from processor.ranking import expansion
from processor.ranking.evaluation import Ranking, build_ranking, rank_protocol
from processor.ranking.expansion import expand_queries
from tests.commands import tiny_cfg
from tools.rank import rank_records


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_mean_of_a_query_and_its_nearest_worked_by_hand():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    torch.testing.assert_close(expand_queries(query, gallery, count=1), torch.tensor([[0.8, 0.4]]))
    torch.testing.assert_close(expand_queries(query, gallery, count=2), torch.tensor([[1.6 / 3, 1.8 / 3]]))
    # Weights 1, 0.6 ** 2 and 0: an orthogonal or opposite image adds nothing.
    weighted = torch.tensor([[(1 + 0.36 * 0.6) / 1.36, 0.36 * 0.8 / 1.36]])
    torch.testing.assert_close(expand_queries(query, gallery, count=3, alpha=2.0), weighted)


def test_no_neighbour_changes_nothing_and_a_small_gallery_gives_all():
    query, gallery = unit(3, 8), unit(4, 8, seed=1)
    assert torch.equal(expand_queries(query, gallery, count=0), query)
    expected = (query + gallery.sum(0)) / 5
    torch.testing.assert_close(expand_queries(query, gallery, count=9), expected)


def test_images_of_the_own_modality_are_no_neighbours_if_modalities_are_given():
    query, gallery = unit(4, 8), unit(6, 8, seed=1)
    own, theirs = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    found = expand_queries(query, gallery, count=2, query_modalities=own, gallery_modalities=theirs)
    torch.testing.assert_close(found[own == 0], expand_queries(query[own == 0], gallery[3:], count=2))
    torch.testing.assert_close(found[own == 1], expand_queries(query[own == 1], gallery[:3], count=2))
    few = expand_queries(query, gallery, count=5, query_modalities=own, gallery_modalities=theirs)
    torch.testing.assert_close(few[own == 0], expand_queries(query[own == 0], gallery[3:], count=3))


def test_blocks_of_queries_give_the_whole(monkeypatch):
    query, gallery = unit(7, 8), unit(20, 8, seed=1)
    whole = expand_queries(query, gallery, count=3, alpha=3.0)
    monkeypatch.setattr(expansion, "_BLOCK_QUERIES", 2)
    torch.testing.assert_close(expand_queries(query, gallery, count=3, alpha=3.0), whole)


def records(count: int, split: str) -> list[Chip]:
    return [Chip(Path(f"{split}{i}.tif"), i % 4, Modality(i // 4 % 2), split) for i in range(count)]


@pytest.mark.parametrize("same_modality", [True, False])
@pytest.mark.parametrize("reranking", [None, {"k1": 6, "k2": 2}])
def test_evaluation_and_lists_expand_alike(same_modality, reranking):
    query, gallery = records(8, "query"), records(24, "gallery")
    features = unit(32, 6)
    ranking = Ranking(same_modality=same_modality, expansion={"count": 3, "alpha": 1.0}, reranking=reranking)
    protocol = Protocol("ALL", tuple(range(8)), tuple(range(8, 32)))
    result = rank_protocol(protocol, features, [*query, *gallery], ranking)
    lists = rank_records(query, gallery, features, ranking, top_k=0)
    firsts = [[record.ship for record in ranked.found].index(ranked.query.ship) + 1 for ranked in lists]
    assert firsts == result.first_match.tolist()
    plain = rank_protocol(protocol, features, [*query, *gallery], Ranking(same_modality=same_modality, reranking=reranking))
    assert (plain.average_precision != result.average_precision).any()


def test_the_configuration_chooses_it():
    assert build_ranking(tiny_cfg(), torch.device("cpu")).expansion is None
    cfg = tiny_cfg(TEST__QUERY_EXPANSION=4, TEST__QUERY_EXPANSION_ALPHA=2)
    assert build_ranking(cfg, torch.device("cpu")).expansion == {"count": 4, "alpha": 2.0}
