from pathlib import Path

import numpy as np
import pytest
import torch

from processor.ranking import reranking
from processor.ranking.reranking import rerank, rerank_apart, rerank_blocks
from processor.ranking.retrieval import rank_distances
from utils.errors import DataError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("metrics*.npz"))


def features(images=80, width=16, ships=9, seed=0):
    random = np.random.default_rng(seed)
    values = random.normal(size=(ships, width))[random.integers(0, ships, images)] + 0.8 * random.normal(size=(images, width))
    return torch.from_numpy((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))


def reference(query, gallery, k1, k2, share):
    """The definition, with dense matrices and sets, in float64."""
    images = np.concatenate([query, gallery]).astype(float)
    distances = np.square(images[:, None] - images).sum(2)
    distances /= distances.max(1, keepdims=True)
    order = np.argsort(distances, axis=1, kind="stable")

    def reciprocal(image, k):
        return {other for other in order[image, : k + 1] if image in order[other, : k + 1]}

    weights = np.zeros_like(distances)
    for image in range(len(images)):
        near = reciprocal(image, k1)
        expanded = set(near)
        for other in near:
            half = reciprocal(other, round(k1 / 2))
            if len(half & near) > 2 / 3 * len(half):
                expanded |= half
        columns = sorted(expanded)
        weights[image, columns] = np.exp(-distances[image, columns])
    weights /= weights.sum(1, keepdims=True)
    weights = np.stack([weights[order[image, :k2]].mean(0) for image in range(len(images))])
    shared = np.minimum(weights[: len(query), None], weights[len(query) :]).sum(2)
    return (1 - share) * (1 - shared / (2 - shared)) + share * distances[: len(query), len(query) :]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_reranked_distances_and_metrics(path):
    golden = np.load(path, allow_pickle=False)
    query, gallery = torch.from_numpy(golden["qf"]), torch.from_numpy(golden["gf"])
    for key in {"rerank_20_6", "rerank_50_15"} & set(golden):
        k1, k2 = map(int, key.split("_")[1:])
        np.testing.assert_allclose(rerank(query, gallery, k1=k1, k2=k2), golden[key], atol=5e-3)
    distances = rerank(query, gallery, k1=20, k2=6)
    result = rank_distances(distances, query_ids=golden["q_pids"], gallery_ids=golden["g_pids"])
    cmc = np.array([result.rank(k) for k in range(1, len(golden["rerank_cmc"]) + 1)])
    assert np.abs(cmc - golden["rerank_cmc"]).max() * result.queries_counted < 1.001
    assert result.mean_average_precision == pytest.approx(float(golden["rerank_mAP"]), abs=5e-3)


@pytest.mark.parametrize(
    "k1, k2, share", [(20, 6, 0.3), (50, 15, 0.3), (5, 1, 0.3), (25, 3, 0.0), (1, 1, 1.0), (7, 90, 0.5), (200, 15, 0.3)]
)
def test_sparse_neighbourhoods_give_the_dense_definition(k1, k2, share):
    query, gallery = features().split([20, 60])
    expected = reference(query.numpy(), gallery.numpy(), k1, k2, share)
    np.testing.assert_allclose(rerank(query, gallery, k1=k1, k2=k2, lambda_value=share), expected, atol=2e-6)


def test_blocks_give_the_whole():
    query, gallery = features(90).split([30, 60])
    blocks = list(rerank_blocks(query, gallery, k1=10, k2=4, memory_bytes=16 * 90 * 7))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2]
    torch.testing.assert_close(torch.cat(blocks), rerank(query, gallery, k1=10, k2=4), atol=1e-6, rtol=0)


def test_groups_of_queries_are_reranked_as_if_alone_and_come_in_the_order_of_the_queries(monkeypatch):
    monkeypatch.setattr(reranking, "_BLOCK_QUERIES", 7)
    query, gallery = features(90).split([30, 60])
    groups = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 30))
    apart = torch.cat(list(rerank_apart(query, gallery, groups, k1=10, k2=4)))
    for group in (0, 1):
        torch.testing.assert_close(apart[groups == group], rerank(query[groups == group], gallery, k1=10, k2=4))
    assert not torch.allclose(apart, rerank(query, gallery, k1=10, k2=4), atol=1e-4)  # together, they would disturb each other


def test_copies_of_one_image_stay_nearest_to_each_other():
    copies = features(1).repeat(12, 1)
    others = features(40, seed=1)
    distances = rerank(copies[:2], torch.cat([others, copies[2:]]), k1=20, k2=6)
    assert distances[:, :40].min() > distances[:, 40:].max()


def test_more_copies_of_one_image_than_neighbours_give_finite_distances():
    copies = features(1).repeat(70, 1)
    for gallery in (copies[2:], torch.cat([features(40, seed=1), copies[2:]])):
        distances = rerank(copies[:2], gallery, k1=20, k2=6)
        assert torch.isfinite(distances).all()
        assert distances.min() >= 0 and distances.max() <= 1 + 1e-6


@pytest.mark.parametrize("gallery", [1, 2])
def test_a_gallery_of_one_or_two_images(gallery):
    distances = rerank(features(1), features(gallery, seed=1))
    assert distances.shape == (1, gallery)
    assert torch.isfinite(distances).all()


def test_half_precision_features_are_reranked_in_single_precision():
    query, gallery = features().half().split([20, 60])
    torch.testing.assert_close(rerank(query, gallery), rerank(query.float(), gallery.float()))


@pytest.mark.parametrize("wrong", [{"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}, {"lambda_value": -0.1}])
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="re-ranking needs"):
        rerank(features(4), features(5), **wrong)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    gallery = features(6)
    gallery[3, 2] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        rerank(features(2), gallery)
