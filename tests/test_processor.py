"""Features in order, fusion, the protocols' figures, and re-identification as it is trained."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from datasets import records
from datasets.records import Batch, Chip, Modality, Protocol
from loss.criterion import Criterion
from model.features import Features
from model.reid import ReIDOutput
from processor.extraction import CPU_BATCH, extract_features
from processor.fusion import find_samples, fuse, fuse_images
from processor.ranking.evaluation import Ranking, build_ranking, evaluate, rank_protocol, results_table
from processor.ranking.reranking import rerank_apart
from processor.ranking.retrieval import rank_features
from processor.reid import ReIDTask
from processor.selection import SelectionSplit
from processor.update import Update
from tests.chip_files import write_chip
from tests.commands import tiny_cfg
from utils.device import Precision
from utils.errors import DataError
from utils.log import MetricsWriter

CPU = torch.device("cpu")
FLOAT32 = Precision("cpu")


class Net(nn.Module):
    """Stands for a `ReIDModel`: a linear map of four pixels."""

    def __init__(self, classes: int = 2):
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)
        self.classifier = nn.Linear(3, classes, bias=False)
        self.seen = 0

    def forward(self, images, modalities, sizes, labels=None):
        self.seen += len(images)
        feature = self.layer(images.flatten(1))
        scores, parts = self.classifier(feature), Features(shared=feature)
        return ReIDOutput(feature=feature, neck_feature=2 * feature, scores=scores, parts=parts)


def batch_of(indices, images=None) -> Batch:
    indices = torch.tensor(indices)
    images = torch.randn(len(indices), 1, 2, 2) if images is None else images
    modalities = indices % 2
    return Batch(images=images, sizes=torch.zeros(len(indices), 3), modalities=modalities, labels=modalities, indices=indices)


# Features


def test_features_come_in_the_order_of_the_images_each_once():
    images = torch.randn(5, 1, 2, 2)
    order = [[3, 0], [4, 1], [2]]
    batches = [batch_of(indices, images[indices]) for indices in order]
    net = Net().train()
    found = extract_features(net, batches, count=5, device=CPU, precision=FLOAT32)
    torch.testing.assert_close(found, net.layer(images.flatten(1)).detach())
    assert net.seen == 5
    assert not net.training
    after = extract_features(net, batches, count=5, device=CPU, precision=FLOAT32, neck="after")
    torch.testing.assert_close(after, 2 * found)


def test_a_cpu_sees_a_large_batch_part_by_part_and_finds_the_same_features():
    class Watched(Net):
        sizes: tuple[int, ...] = ()

        def forward(self, images, *others):
            self.sizes += (len(images),)
            return super().forward(images, *others)

    net, batch = Watched(), batch_of(range(2 * CPU_BATCH + 3))
    found = extract_features(net, [batch], count=len(batch.indices), device=CPU, precision=FLOAT32)
    assert net.sizes == (CPU_BATCH, CPU_BATCH, 3)
    torch.testing.assert_close(found, net.layer(batch.images.flatten(1)).detach())


def test_a_mirrored_view_joins_the_feature_if_asked():
    images = torch.randn(2, 1, 2, 2)
    net = Net()
    found = extract_features(net, [batch_of([0, 1], images)], count=2, device=CPU, precision=FLOAT32, flip=True)
    mirrored = images[..., [1, 0]]
    torch.testing.assert_close(found, (net.layer(images.flatten(1)) + net.layer(mirrored.flatten(1))).detach() / 2)
    of_mirror = extract_features(net, [batch_of([0, 1], mirrored)], count=2, device=CPU, precision=FLOAT32, flip=True)
    torch.testing.assert_close(of_mirror, found)  # a picture and its mirror have one feature


def test_optical_and_sar_queries_are_reranked_apart():
    records = [Chip(Path(f"{i}.tif"), i % 3, Modality(i % 2), "query") for i in range(24)]
    features = unit(24, 8)
    ranking = Ranking(reranking={"k1": 6, "k2": 3})
    sides = tuple(range(8)), tuple(range(8, 24))
    every = rank_protocol(Protocol("ALL", *sides), features, records, ranking)
    for modality in Modality:
        own = tuple(i for i in sides[0] if records[i].modality is modality)
        alone = rank_protocol(Protocol("own", own, sides[1]), features, records, ranking)
        assert alone.first_match.tolist() == every.first_match[list(own)].tolist()
        assert alone.average_precision.tolist() == every.average_precision[list(own)].tolist()


def test_features_are_float32_whatever_the_network_computes_in():
    found = extract_features(Net(), [batch_of([0, 1])], count=2, device=CPU, precision=Precision("cpu", torch.bfloat16))
    assert found.dtype is torch.float32


@pytest.mark.parametrize("order", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 3]], []])
def test_an_image_that_is_missing_or_comes_twice_is_no_result(order):
    with pytest.raises((RuntimeError, ValueError)):
        extract_features(Net(), [batch_of(indices) for indices in order], count=3, device=CPU, precision=FLOAT32)


# Fusion


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_fusion_at_its_ends():
    features, samples = unit(4, 8), 3 * unit(4, 5, 8, seed=1)
    assert torch.equal(fuse(features, samples, tau=0), features)
    alone = functional.normalize(functional.normalize(samples, dim=-1).mean(1))
    torch.testing.assert_close(fuse(features, samples, tau=1), alone)


def test_fusion_by_hand():
    fused = fuse(torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 5.0], [0.0, 1.0]]]), tau=0.25)
    torch.testing.assert_close(fused, torch.tensor([[3.0, 1.0]]) / math.sqrt(10))


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_a_weight_outside_0_and_1_is_refused(tau):
    with pytest.raises(ValueError, match="tau is"):
        fuse(unit(1, 2), unit(1, 1, 2), tau=tau)


def test_fusion_does_not_depend_on_the_order_or_length_of_samples():
    features, samples = unit(3, 8), unit(3, 4, 8, seed=1)
    fused = fuse(features, samples, tau=0.3)
    torch.testing.assert_close(fuse(features, samples[:, [2, 0, 3, 1]] * 7, tau=0.3), fused)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(3))


def test_images_without_samples_keep_their_feature():
    features, samples = 5 * torch.randn(4, 8), unit(2, 3, 8)
    kept = features.clone()
    fused = fuse_images(features, samples, [3, 1], tau=0.5)
    plain = functional.normalize(features)
    assert torch.equal(fused[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(fused[[3, 1]], fuse(plain[[3, 1]], samples, tau=0.5))
    assert torch.equal(features, kept)


# Protocols


def chip(pid: int, modality: Modality, split: str) -> Chip:
    return Chip(Path(f"{pid}_x_{modality.name}.tif"), pid, modality, split)


OPTICAL, SAR = Modality.OPTICAL, Modality.SAR
IMAGES = (
    chip(1, OPTICAL, "query"),
    chip(2, SAR, "query"),
    chip(3, OPTICAL, "query"),  # of no gallery image
    chip(1, SAR, "gallery"),
    chip(1, OPTICAL, "gallery"),
    chip(2, OPTICAL, "gallery"),
    chip(-1, SAR, "gallery"),
)
FEATURES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7], [0.9, 0.1], [0.6, 0.8], [0.1, 0.9], [1.0, 0.05]])
ALL = {"ALL": Protocol("ALL", (0, 1, 2), (3, 4, 5, 6))}


def test_figures_of_a_protocol_by_hand(caplog):
    """Ship 1 is ranked distractor, 3, 4, 5: AP (1/2 + 2/3) / 2; ship 2 has its one match first."""
    caplog.set_level("INFO")
    score = evaluate(ALL, IMAGES, FEATURES, Ranking())["ALL"].plain
    assert (score.queries, score.queries_counted, score.gallery, score.distractors) == (3, 2, 4, 1)
    assert score.mAP == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert (score.R1, score.R5, score.R10) == (0.5, 1.0, 1.0)
    assert score.chance == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert score.mAP_interval.low <= score.mAP <= score.mAP_interval.high
    assert "ALL: 1 of 3 queries have no match in the gallery and do not count" in caplog.text


def test_own_modality_leaves_the_gallery_where_asked():
    score = evaluate(ALL, IMAGES, FEATURES, Ranking(same_modality=False))["ALL"].plain
    assert score.mAP == pytest.approx((1 / 2 + 1) / 2)  # ship 1 has only its SAR image left, behind the distractor
    modalities = [IMAGES[place].modality for place in ALL["ALL"].gallery]
    left = [sum(kind is not IMAGES[query].modality for kind in modalities) for query in (0, 1)]
    assert score.chance == pytest.approx((1 / left[0] + 1 / left[1]) / 2)  # one match each among what is left


@pytest.mark.parametrize("reranking", [None, {"k1": 4, "k2": 2}])
def test_the_memory_key_sets_the_blocks_and_not_the_figures(reranking, monkeypatch):
    budgets = []

    def note(function):
        def noting(*args, memory_bytes, **options):
            budgets.append(memory_bytes)
            return function(*args, memory_bytes=memory_bytes, **options)

        return noting

    monkeypatch.setattr("processor.ranking.evaluation.rank_features", note(rank_features))
    monkeypatch.setattr("processor.ranking.evaluation.rerank_apart", note(rerank_apart))
    rankings = [
        replace(build_ranking(tiny_cfg(TEST__RANKING_MEMORY=gigabytes), torch.device("cpu")), reranking=reranking)
        for gigabytes in (0.25, 2.0)
    ]
    small, large = (evaluate(ALL, IMAGES, FEATURES, ranking) for ranking in rankings)
    assert small == large
    assert budgets == [2**28, 2**31]


def test_lengths_of_features_count_only_where_they_are_not_normalised():
    longer = FEATURES * torch.linspace(1, 20, 7)[:, None]
    plain = evaluate(ALL, IMAGES, FEATURES, Ranking())["ALL"]
    assert evaluate(ALL, IMAGES, longer, Ranking())["ALL"] == plain
    assert evaluate(ALL, IMAGES, longer, Ranking(normalise=False))["ALL"] != plain


def test_no_valid_query_names_the_protocol():
    with pytest.raises(DataError, match=r"O2S: .*quer"):
        evaluate({"O2S": Protocol("O2S", (2,), (3, 6))}, IMAGES, FEATURES, Ranking())


def test_reranking_is_wired_and_fused_features_are_scored_where_a_protocol_uses_them():
    fused = FEATURES.flip(1)
    protocols = ALL | {"S2O": Protocol("S2O", (1,), (4, 5))}
    found = evaluate(protocols, IMAGES, FEATURES, Ranking(), fused=fused, sources=[0])
    assert found["ALL"].fused is not None
    assert found["S2O"].fused is None
    again = evaluate(ALL, IMAGES, FEATURES, Ranking(reranking={"k1": 2, "k2": 2, "lambda_value": 0.9}))["ALL"].plain
    assert again.queries_counted == 2


def test_figures_have_intervals_and_make_a_table():
    found = evaluate(ALL, IMAGES, FEATURES, Ranking(), fused=FEATURES, sources=[0])
    plain = found["ALL"].plain
    assert plain == found["ALL"].fused
    for rate in ("mAP", "R5", "R10"):
        low, high = getattr(plain, f"{rate}_interval").ends
        assert 0 <= low <= getattr(plain, rate) <= high <= 1
    low, high = plain.R1_interval.ends
    assert 0 <= low < 0.5 < high <= 1
    table = results_table(found)
    assert table.splitlines()[2].split()[:3] == ["ALL", "plain", "79.2"]
    assert table.splitlines()[3].split()[:2] == ["ALL", "fused"]


def test_no_folder_of_samples_is_no_fusion_and_one_without_optical_images_an_error(tmp_path):
    assert find_samples(IMAGES, query_dir="", gallery_dir="") is None
    images = [Chip(write_chip(tmp_path / "1_x_SAR.tif"), 1, SAR, records.Split.QUERY)]
    with pytest.raises(DataError, match="no optical image"):
        find_samples(images, query_dir=str(tmp_path), gallery_dir="")


# Training


class Schedule:
    """Notes the epochs that it set the rates of."""

    def __init__(self):
        self.epochs = []

    def step(self, epoch: int) -> None:
        self.epochs.append(epoch)


def task_of(*, weights=None, centers=None, test=dict) -> ReIDTask:
    torch.manual_seed(0)
    network, criterion = Net(), Criterion({"identity": 1.0, "triplet": 0.5} if weights is None else weights, centers=centers)
    optimizers = [torch.optim.SGD(learned.parameters(), lr=0.1) for learned in (network, criterion) if [*learned.parameters()]]
    update = Update(network, optimizers, torch.amp.GradScaler("cpu", enabled=False), others=criterion.parameters())
    return ReIDTask(network, criterion, update, Schedule(), FLOAT32, CPU, test, SelectionSplit("validation", 0.2, 3))


def numbers_of(task: ReIDTask, batch: Batch) -> dict[str, float]:
    return dict(zip(task.numbers, task.step(batch).tolist(), strict=True))


def test_a_step_tells_every_term_their_total_and_the_accuracy():
    batch = batch_of([0, 1, 2, 3, 5])  # an odd number, of which no half is right
    told = numbers_of(task_of(), batch)
    assert told["loss"] == pytest.approx(told["identity"] + 0.5 * told["triplet"], rel=1e-5)
    right = (Net.forward(task_of().network, batch.images, None, None).scores.argmax(1) == batch.labels).float().mean()
    assert told["accuracy"] == right.item()
    other = numbers_of(task_of(weights={"triplet": 0.5, "identity": 1.0}), batch)
    assert other == pytest.approx(told)
    assert told["identity"] != told["triplet"]


def test_a_step_learns_network_and_centres():
    centers = torch.ones(2, 3)
    task, batch = task_of(weights={"identity": 1.0, "center": 1.0}, centers=centers.clone()), batch_of(list(range(8)))
    losses = [numbers_of(task, batch)["loss"] for _ in range(20)]
    assert losses[-1] < losses[0]
    assert not torch.equal(task.criterion.centers, centers)


def test_rates_are_those_of_the_epoch():
    task = task_of()
    task.begin(3)
    assert (task.schedule.epochs, task.rate()) == ([3], 0.1)


def test_the_all_protocol_chooses_and_a_record_says_on_which_split(tmp_path):
    task = task_of(test=lambda: evaluate(ALL | {"S2O": Protocol("S2O", (1,), (4, 5))}, IMAGES, FEATURES, Ranking()))
    plain = task.test()["ALL"].plain
    assert task.evaluate(4, MetricsWriter(tmp_path / "m.jsonl")) == {"best_model_mAP": plain.mAP, "best_model_rank1": plain.R1}
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"], line["protocol"]) for line in lines] == [("validation", 4, p) for p in ("ALL", "S2O")]
    assert (lines[0]["mAP"], lines[0]["R5"]) == (plain.mAP, plain.R5)
    assert lines[0]["mAP_interval"] == list(plain.mAP_interval.ends)
    for name, metric in (("best_model_mAP", "mAP"), ("best_model_rank1", "rank1")):
        record = task.selection(name, epoch=4, figure=0.5)
        told = {"epoch": 4, "metric": metric, "score": 0.5, "split": "validation", "fraction": 0.2, "seed": 3}
        assert {key: record[key] for key in told} == told
