import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.ranking import retrieval
from processor.ranking.retrieval import (
    RetrievalResult,
    join_results,
    mostly_tied,
    rank_distances,
    rank_features,
    squared_distances,
)
from utils.errors import DataError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("metrics*.npz"))


def reference(distances, query_ids, gallery_ids, query_modalities=None, gallery_modalities=None):
    """Average precision and first match of each query, by sorting everything."""
    for query, row in enumerate(distances):
        keep = np.ones(len(row), bool) if query_modalities is None else gallery_modalities != query_modalities[query]
        ids = gallery_ids[keep][np.argsort(row[keep], kind="stable")]
        ranks = np.flatnonzero((ids == query_ids[query]) & (ids != -1)) + 1
        if len(ranks):
            yield np.mean(np.arange(1, len(ranks) + 1) / ranks), ranks[0]
        else:
            yield math.nan, 0


def assert_same(left: RetrievalResult, right: RetrievalResult):
    np.testing.assert_array_equal(left.average_precision, right.average_precision)
    np.testing.assert_array_equal(left.first_match, right.first_match)
    np.testing.assert_array_equal(left.matches, right.matches)
    np.testing.assert_array_equal(left.ranked, right.ranked)
    np.testing.assert_array_equal(left.tied, right.tied)
    assert left.gallery == right.gallery


def close_features(queries=24, gallery=300, width=768, seed=0):
    """Normalised features of which many differ by a few units in the last place: float32 products would misorder them."""
    generator = torch.Generator().manual_seed(seed)
    bases = torch.nn.functional.normalize(torch.randn(4, width, generator=generator), dim=1)
    pick = torch.randint(0, 4, (queries + gallery,), generator=generator)
    noise = torch.randn(queries + gallery, width, generator=generator)
    features = bases[pick] + 2e-8 * noise
    ids = torch.randint(-1, 6, (queries + gallery,), generator=generator)
    return features[:queries], features[queries:], {"query_ids": ids[:queries], "gallery_ids": ids[queries:]}


@st.composite
def retrieval_sets(draw):
    """Small sets full of ties, in numbers that float16 holds exactly."""
    queries, gallery, width = draw(st.integers(1, 5)), draw(st.integers(1, 24)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    features = (random.integers(0, levels, (queries + gallery, width)) / 4 - 0.5).astype(dtype)
    ids = random.integers(-1, draw(st.integers(0, 5)), queries + gallery)
    modalities = random.integers(0, 2, queries + gallery) if draw(st.booleans()) else None
    return features, ids, modalities, queries


@settings(max_examples=200, deadline=None)
@given(retrieval_sets(), st.sampled_from([1, 3, 1 << 20]))
def test_ranks_are_those_of_a_stable_sort(data, block):
    features, ids, modalities, queries = data
    query, gallery = features[:queries], features[queries:]
    distances = np.square(query[:, None].astype(float) - gallery.astype(float)).sum(2)
    truth = {"query_ids": ids[:queries], "gallery_ids": ids[queries:]}
    if modalities is not None:
        truth |= {"query_modalities": modalities[:queries], "gallery_modalities": modalities[queries:]}
    average, first = map(np.array, zip(*reference(distances, *truth.values())))
    arguments = {name: torch.from_numpy(value) for name, value in truth.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_COUNTING_BLOCK", block)
        patch.setattr(retrieval, "_GALLERY_BLOCK", block)
        if not first.any():
            with pytest.raises(DataError, match="none of the"):
                rank_features(torch.from_numpy(query), torch.from_numpy(gallery), **arguments)
            return
        by_features = rank_features(torch.from_numpy(query), torch.from_numpy(gallery), **arguments)
        by_distances = rank_distances(torch.from_numpy(distances), **arguments)
    np.testing.assert_array_equal(by_features.first_match, first)
    np.testing.assert_allclose(by_features.average_precision, average, rtol=1e-14)
    assert_same(by_features, by_distances)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_each_type_rank_as_their_exact_distances(dtype):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(90, 48, generator=generator).to(dtype)
    ids = np.random.default_rng(1).integers(-1, 9, 90)
    exact = features.double()
    distances = (exact[:10, None] - exact[10:]).square().sum(2)
    result = rank_features(features[:10], features[10:], query_ids=ids[:10], gallery_ids=ids[10:])
    average, first = zip(*reference(distances.numpy(), ids[:10], ids[10:]))
    np.testing.assert_allclose(result.average_precision, average, rtol=1e-14)
    np.testing.assert_array_equal(result.first_match, first)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_distances_and_metrics(path):
    golden = np.load(path, allow_pickle=False)
    query, gallery = torch.from_numpy(golden["qf"]), torch.from_numpy(golden["gf"])
    truth = {"query_ids": golden["q_pids"], "gallery_ids": golden["g_pids"]}
    distances = squared_distances(query, gallery)
    np.testing.assert_allclose(distances, golden["dist"], atol=1e-5)
    for result in (rank_features(query, gallery, **truth), rank_distances(distances, **truth)):
        found = [result.rank(k) for k in range(1, len(golden["cmc"]) + 1)]
        np.testing.assert_allclose(found, golden["cmc"], atol=1e-5)
        assert result.mean_average_precision == pytest.approx(float(golden["mAP"]), abs=1e-5)
        assert result.rank(1) == pytest.approx(golden["cmc"][0], abs=1e-5)


def test_near_ties_are_decided_the_same_way_in_every_block_shape_and_share(monkeypatch):
    query, gallery, truth = close_features()
    whole = rank_features(query, gallery, **truth)
    assert_same(rank_features(query, gallery, **truth, memory_bytes=1), whole)
    for ranks in (2, 3, 40):
        assert_same(join_results([rank_features(query, gallery, **truth, share=(rank, ranks)) for rank in range(ranks)]), whole)
    monkeypatch.setattr(retrieval, "_GALLERY_BLOCK", 7)
    monkeypatch.setattr(retrieval, "_COUNTING_BLOCK", 100)
    assert_same(rank_features(query, gallery, **truth), whole)


def test_the_order_of_coordinates_and_of_queries_does_not_matter():
    query, gallery, truth = close_features()
    whole = rank_features(query, gallery, **truth)
    assert_same(rank_features(query.flip(1), gallery.flip(1), **truth), whole)
    turned = rank_features(query.flip(0), gallery, query_ids=truth["query_ids"].flip(0), gallery_ids=truth["gallery_ids"])
    np.testing.assert_array_equal(turned.average_precision[::-1], whole.average_precision)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_near_ties_are_decided_the_same_way_on_cuda():
    query, gallery, truth = close_features()
    assert_same(rank_features(query, gallery, **truth, device="cuda"), rank_features(query, gallery, **truth))
    assert_same(rank_features(query.cuda(), gallery.cuda(), **truth), rank_features(query, gallery, **truth))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e15])
def test_the_unit_of_the_features_does_not_matter(scale):
    query, gallery, truth = close_features(gallery=60, width=16)
    query, gallery = query + torch.randn(16), gallery + torch.randn(60, 16)
    plain = rank_features(query.double(), gallery.double(), **truth)
    scaled = rank_features(
        query.double() * 2.0 ** round(math.log2(scale)), gallery.double() * 2.0 ** round(math.log2(scale)), **truth
    )
    assert_same(plain, scaled)


def test_metrics_of_a_ranking_worked_by_hand():
    distances = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    result = rank_distances(distances, query_ids=[7, 5, 8], gallery_ids=[7, -1, 7, 8])
    np.testing.assert_allclose(result.average_precision, [(1 / 2 + 2 / 3) / 2, np.nan, 1 / 4])
    assert result.first_match.tolist() == [2, 0, 4]
    assert result.matches.tolist() == [2, 0, 1]
    assert (result.queries, result.queries_counted, result.gallery) == (3, 2, 4)
    assert result.mean_average_precision == pytest.approx((7 / 12 + 1 / 4) / 2)
    assert [result.rank(k) for k in (1, 2, 3, 4)] == [0, 0.5, 0.5, 1]
    np.testing.assert_array_equal(result.hits(2), [1, np.nan, 0])


def test_images_of_the_querys_modality_are_left_out_when_asked():
    distances = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    ids = {"query_ids": [7], "gallery_ids": [7, 3, 7, 5]}
    modalities = {"query_modalities": [0], "gallery_modalities": [0, 0, 1, 1]}
    assert rank_distances(distances, **ids).average_precision[0] == pytest.approx((1 + 2 / 3) / 2)
    cross = rank_distances(distances, **ids, **modalities)
    assert cross.average_precision[0] == 1
    assert cross.matches[0] == 1


def test_a_query_whose_only_matches_have_its_modality_does_not_count():
    modalities = {"query_modalities": [0, 1], "gallery_modalities": [0, 0]}
    result = rank_distances(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), query_ids=[7, 7], gallery_ids=[7, 3], **modalities)
    np.testing.assert_array_equal(result.average_precision, [np.nan, 0.5])


def test_equal_features_rank_in_gallery_order():
    features = torch.ones(6, 4)
    result = rank_features(features[:2], features, query_ids=[1, 2], gallery_ids=[0, 1, 2, 1, -1, 2])
    assert result.first_match.tolist() == [2, 3]
    zero = rank_features(0 * features[:2], 0 * features, query_ids=[1, 2], gallery_ids=[0, 1, 2, 1, -1, 2])
    assert_same(zero, result)


def test_blocks_of_rows_rank_as_the_whole():
    distances = torch.rand(7, 30, generator=torch.Generator().manual_seed(0))
    truth = {"query_ids": torch.arange(7), "gallery_ids": torch.arange(30) % 9}
    assert_same(rank_distances(iter(distances.split(3)), **truth), rank_distances(distances, **truth))
    with pytest.raises(ValueError, match="4 rows"):
        rank_distances(distances.split(4)[:1], **truth)
    with pytest.raises(ValueError, match="columns"):
        rank_distances(distances[:, :-1], **truth)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    features = torch.ones(4, 3)
    features[2, 1] = bad
    truth = {"query_ids": [1], "gallery_ids": [1, 1, 2]}
    with pytest.raises(DataError, match="NaN or infini"):
        rank_features(features[:1], features[1:], **truth)
    with pytest.raises(DataError, match="NaN or infini"):
        rank_distances(torch.tensor([[0.0, bad, 1.0]]), **truth)


@pytest.mark.parametrize(
    "query_ids, gallery_ids", [([1, 2], [-1, -1, -1]), ([-1, -1], [-1, -1, 3]), ([], [1, 2, 3]), ([1, 2], [])]
)
def test_no_match_at_all_is_an_error(query_ids, gallery_ids):
    with pytest.raises(DataError, match=f"none of the {len(query_ids)} queries") as error:
        rank_features(
            torch.ones(len(query_ids), 2), torch.ones(len(gallery_ids), 2), query_ids=query_ids, gallery_ids=gallery_ids
        )
    assert error.value.exit_status == 1


def test_calls_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="identities"):
        rank_features(torch.ones(2, 3), torch.ones(3, 3), query_ids=[1], gallery_ids=[1, 1, 2])
    with pytest.raises(ValueError, match="modalities"):
        rank_distances(torch.ones(1, 1), query_ids=[1], gallery_ids=[1], query_modalities=[0])


def test_chance_of_a_random_ranking_counts_the_images_that_are_ranked():
    random = torch.Generator().manual_seed(0)
    query_modalities, gallery_modalities = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0, 1, 1])
    result = rank_features(
        torch.randn(3, 4, generator=random),
        torch.randn(5, 4, generator=random),
        query_ids=torch.tensor([1, 1, 2]),
        gallery_ids=torch.tensor([1, 2, 1, 1, -1]),
        query_modalities=query_modalities,
        gallery_modalities=gallery_modalities,
    )
    assert result.ranked.tolist() == [2, 3, 3]


def test_queries_of_which_most_of_the_gallery_ties_are_known():
    distances = torch.tensor([[1.0, 1, 1, 2, 3], [1, 1, 2, 3, 4], [0, 5, 7, 7, 7], [0, 1, 1, 1, 4]])
    assert mostly_tied(distances).tolist() == [True, False, True, True]
    assert mostly_tied(distances[:, :1]).tolist() == [False] * 4  # one image ties with nothing
    ids = {"query_ids": [1, 2, 3, 1], "gallery_ids": [1, 2, 3, 1, 1]}
    assert rank_distances(distances, **ids).tied.tolist() == [True, False, True, True]
    features = torch.eye(3)[[0, 1, 0, 1, 1, 1, 2]]
    assert rank_features(features[:2], features[2:], query_ids=[1, 2], gallery_ids=[1, 2, 1, 2, 1]).tied.tolist() == [True] * 2
    close = close_features()
    assert not rank_features(*close[:2], **close[2]).tied.any()
