"""Features in order, fusion, the protocols' figures, the epoch, and the files that it leaves."""

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
from model.reid import ReIDOutput
from processor.features import extract_features
from processor.fusion import find_samples, fuse, fuse_images
from processor.ranking.evaluation import Ranking, build_ranking, evaluate, rank_protocol, results_table
from processor.ranking.reranking import rerank_apart
from processor.ranking.retrieval import rank_features
from processor.selection import Split
from processor.train import Run, Trainer, fit, save_checkpoints, train_one_epoch
from solver.schedule import cosine_schedule
from tests.chip_files import write_chip
from tests.commands import tiny_cfg
from utils.checkpoint import load
from utils.device import Precision
from utils.errors import CheckpointError, DataError, TrainingError
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
        return ReIDOutput(feature=feature, neck_feature=2 * feature, scores=self.classifier(feature))


def batch_of(indices, images=None) -> Batch:
    indices = torch.tensor(indices)
    images = torch.randn(len(indices), 1, 2, 2) if images is None else images
    modalities = indices % 2
    return Batch(images=images, sizes=torch.zeros(len(indices), 3), modalities=modalities, labels=modalities, indices=indices)


class Loader(list):
    """A list of batches that notes which epochs were chosen."""

    def __init__(self, batches):
        super().__init__(batches)
        self.batch_sampler = self
        self.epochs = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


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


def trainer_of(*, weights=None, lr: float = 0.1, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    model, criterion = Net(), Criterion({"identity": 1.0, "triplet": 0.5} if weights is None else weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = cosine_schedule(optimizer, base_lr=lr, epochs=10, warmup_epochs=2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainer(model, criterion, [optimizer], schedule, scaler, FLOAT32, CPU)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train_epoch(trainer: Trainer, loader: Loader, folder: Path, log_period: int = 2) -> dict[str, float]:
    metrics = MetricsWriter(folder / "metrics.jsonl", epoch=trainer.epoch)
    return train_one_epoch(trainer, loader, metrics=metrics, log_period=log_period, on_step=lambda: None)


def test_an_epoch_logs_every_term_and_counts(tmp_path):
    trainer, loader = trainer_of(), Loader([batch_of([0, 1, 2, 3]) for _ in range(5)])
    means = train_epoch(trainer, loader, tmp_path)
    assert trainer.epoch == 1
    assert loader.epochs == [1]
    steps, epochs = ([line for line in lines_of(tmp_path) if line["kind"] == kind] for kind in ("step", "epoch"))
    assert [line["step"] for line in steps] == [2, 4, 5]
    for line in steps:
        assert line["loss"] == pytest.approx(line["identity"] + 0.5 * line["triplet"], rel=1e-5)
        assert {"lr", "accuracy", "epoch"} <= line.keys()
    assert means["loss"] == pytest.approx((2 * steps[0]["loss"] + 2 * steps[1]["loss"] + steps[2]["loss"]) / 5, rel=1e-5)
    assert epochs[0]["loss"] == means["loss"]
    assert epochs[0]["steps_per_second"] > 0


def test_terms_are_logged_under_their_own_name_whatever_the_order_of_weights(tmp_path):
    batch = batch_of([0, 1, 2, 3])
    one = train_epoch(trainer_of(), Loader([batch]), tmp_path)
    other = train_epoch(trainer_of(weights={"triplet": 0.5, "identity": 1.0}), Loader([batch]), tmp_path)
    assert other == pytest.approx(one)
    assert one["identity"] != one["triplet"]


def test_loss_falls_and_the_rate_follows_the_schedule(tmp_path):
    trainer, batch = trainer_of(weights={"identity": 1.0}), batch_of(list(range(8)))
    losses = [train_epoch(trainer, Loader([batch] * 3), tmp_path)["loss"] for _ in range(6)]
    assert losses[-1] < losses[0]
    rates = [line["lr"] for line in lines_of(tmp_path) if line["kind"] == "step" and line["step"] == 3]
    assert rates[0] == pytest.approx(0.001 + (0.1 - 0.001) / 2)
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_every_term(tmp_path, value):
    bad = batch_of([0, 1, 2, 3])
    bad.images[1] = value
    trainer = trainer_of()
    with pytest.raises(TrainingError, match=r"epoch 1, step 2 \(identity .*triplet .*loss nan.*SOLVER\.BASE_LR") as raised:
        train_epoch(trainer, Loader([batch_of([0, 1, 2, 3]), bad, bad]), tmp_path)
    assert raised.value.exit_status == 1
    assert trainer.epoch == 0


def score_of(mean: float, first: float):
    return replace(evaluate(ALL, IMAGES, FEATURES, Ranking())["ALL"].plain, mAP=mean, R1=first)


def run_of(folder: Path, **changes) -> Run:
    plan = {"epochs": 5, "evaluation_period": 2, "checkpoint_period": 3, "log_period": 2, "config": "A: 1\n"}
    return Run(folder=folder, name="transformer", **{"split": Split("test", 0.0, 1)} | plan | changes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_best_weights_are_those_of_the_best_epoch(tmp_path):
    trainer, run = trainer_of(), run_of(tmp_path)
    bests = {"mAP": 0, "rank1": 0}
    for epoch, (mean, first) in enumerate([(0.5, 0.5), (0.4, 0.6), (0.6, 0.6), (0.6, 0.1)], start=1):
        trainer.epoch = epoch
        with torch.no_grad():
            trainer.model.layer.weight.fill_(epoch)
        save_checkpoints(trainer, run, score=score_of(mean, first), periodic=False)
        bests = {name: float(load(tmp_path / f"best_model_{name}.pth")["layer.weight"][0, 0]) for name in bests}
    assert bests == {"mAP": 3, "rank1": 2}
    assert trainer.best == {"mAP": 0.6, "rank1": 0.6}
    bests = {"best_model_mAP", "best_model_rank1"}
    assert names(tmp_path) == {f"{best}{suffix}" for best in bests for suffix in (".pth", ".json")}


def test_an_epoch_without_evaluation_writes_no_best_weights(tmp_path):
    trainer = trainer_of()
    trainer.epoch = 3
    save_checkpoints(trainer, run_of(tmp_path), score=None, periodic=True)
    assert names(tmp_path) == {"transformer_3.pth", "last.pth"}
    assert load(tmp_path / "transformer_3.pth").keys() == trainer.model.state_dict().keys()
    assert load(tmp_path / "last.pth")["config"] == "A: 1\n"


def test_fit_evaluates_and_keeps_by_period_and_at_the_end(tmp_path):
    trainer, loader, evaluated = trainer_of(), Loader([batch_of([0, 1, 2, 3])] * 2), []

    def evaluation():
        evaluated.append(trainer.epoch)
        return evaluate(ALL, IMAGES, FEATURES, Ranking())

    fit(trainer, loader, run_of(tmp_path), evaluate=evaluation)
    assert evaluated == [2, 4, 5]
    bests = {f"best_model_{metric}.{suffix}" for metric in ("mAP", "rank1") for suffix in ("pth", "json")}
    assert names(tmp_path) == bests | {"transformer_3.pth", "transformer_5.pth", "last.pth", "metrics.jsonl"}
    tests = [line for line in lines_of(tmp_path) if line["kind"] == "test"]
    assert [(line["epoch"], line["protocol"]) for line in tests] == [(2, "ALL"), (4, "ALL"), (5, "ALL")]


def test_a_trainer_goes_on_where_its_state_was_taken(tmp_path):
    batches = [batch_of([0, 1, 2, 3]) for _ in range(3)]
    straight = trainer_of()
    for _ in range(2):
        train_epoch(straight, Loader(batches), tmp_path)
    save_checkpoints(straight, run_of(tmp_path), score=score_of(0.5, 0.4), periodic=True)
    expected = torch.rand(3)
    train_epoch(straight, Loader(batches), tmp_path)

    resumed = trainer_of(seed=9)
    resumed.load_state_dict(load(tmp_path / "last.pth"))
    assert (resumed.epoch, resumed.best) == (2, {"mAP": 0.5, "rank1": 0.4})
    assert torch.equal(torch.rand(3), expected)
    train_epoch(resumed, Loader(batches), tmp_path)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("model"),
        lambda state: state["model"].pop("layer.weight"),
        lambda state: state.update(optimizers=[]),
        lambda state: state.update(epoch="x"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change):
    state = trainer_of().state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=r"SOLVER\.RESUME does not fit this run"):
        trainer_of().load_state_dict(state)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("state", [[1, 2], torch.zeros(3), {"layer.weight": torch.zeros(2)}, "text"])
def test_a_file_that_holds_no_state_is_refused(state):
    with pytest.raises(CheckpointError, match=r"SOLVER\.RESUME does not fit this run"):
        trainer_of().load_state_dict(state)
