"""The loop that trains whatever task, with one that is small enough to follow by hand, and the step of the optimisers."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from datasets.records import Batch, Chip, Modality, Split
from processor.engine import fit
from processor.resuming import restore
from processor.task import Task, TrainingPlan, build_training_plan
from processor.update import Update
from tests import autoencoder
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from utils.checkpoint import load, save
from utils.device import Precision
from utils.errors import CheckpointError, TrainingError
from utils.seed import seed_step

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


class Loader(list):
    """Batches of given images that notes which epochs were chosen; `chips` are what they are made of."""

    def __init__(self, images: list[list[float]]):
        batches = []
        for number, values in enumerate(images):
            indices = torch.arange(len(values)) + sum(map(len, images[:number]))
            pictures = torch.tensor(values)[:, None, None, None]
            batches.append(Batch(pictures, torch.zeros(len(values), 3), indices % 2, indices % 2, indices))
        super().__init__(batches)
        self.chips = [Chip(Path(f"{i}.tif"), i, Modality.SAR, Split.TRAIN) for i in range(sum(map(len, images)))]
        self.dataset = self.batch_sampler = self
        self.epochs, self.skip = [], 0

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        self.epochs.append(epoch)
        self.skip = skip

    def __iter__(self):
        return iter(self[self.skip :])


@dataclass
class Fall(Task):
    """One weight falls towards the mean of what it sees; `noise` is what steps draw at random."""

    network: nn.Module
    update: Update
    figures: list[float] = field(default_factory=list)
    noise: float = 0.0
    log: list[tuple] = field(default_factory=list)
    name, device, precision, numbers = "fall", CPU, Precision("cpu"), ("loss", "weight")

    def __post_init__(self):
        self.parts = {"update": self.update}

    def step(self, batch):
        assert self.network.training
        target = batch.images.mean() + self.noise * torch.randn(())
        loss = (self.network.weight[0, 0] - target).square()
        self.update(loss)
        return torch.stack([loss.detach(), self.network.weight[0, 0].detach()])

    def rate(self):
        return self.update.optimizers[0].param_groups[0]["lr"]

    def begin(self, epoch):
        self.log.append(("begin", epoch))

    def observe(self, losses):
        self.log.append(("observe", [round(loss, 4) for loss in losses]))

    def finish(self, epoch, *, last):
        self.log.append(("finish", epoch, last))
        return {"extra": 7.0}

    def evaluate(self, epoch, metrics):
        self.log.append(("evaluate", epoch))
        self.network.eval()
        metrics.write(kind="test", epoch=epoch)
        return {"best": self.figures[epoch - 1]} if self.figures else {}

    def selection(self, name, *, epoch, figure):
        self.log.append(("best", f"{name}.pth", epoch, figure))
        return {"epoch": epoch}


def fall(figures=(), noise=0.0, lr=0.25, momentum=0.0, **steps) -> Fall:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    update = Update(network, [optimizer], torch.amp.GradScaler("cpu", enabled=False), **steps)
    return Fall(network, update, list(figures), noise)


def plan_of(folder: Path, **changes) -> TrainingPlan:
    periods = {"evaluation_period": 2, "checkpoint_period": 3, "log_period": 2, "save_minutes": 0.0}
    folder.mkdir(exist_ok=True)
    plan = TrainingPlan(folder=folder, name="fall", epochs=5, **periods, seed=1, origin={"config": "A: 1\n"})
    return replace(plan, **changes)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The loop


def test_epochs_count_from_one_and_every_method_has_its_turn(tmp_path):
    task, loader = fall(), Loader([[1.0], [1.0], [1.0]])
    fit(task, loader, plan_of(tmp_path, epochs=1))
    assert loader.epochs == [1, 1]  # for the length of the bar, then for the batches
    # The weight is 0, then 1/2, 3/4: half way to 1 with each step.
    assert task.log == [("begin", 1), ("observe", [1.0, 0.25]), ("observe", [0.0625]), ("finish", 1, True), ("evaluate", 1)]


def test_steps_and_epochs_are_logged_with_means_over_their_batches(tmp_path):
    fit(fall(), Loader([[1.0], [1.0], [1.0]]), plan_of(tmp_path, epochs=1))
    first, second, epoch, test = lines_of(tmp_path)
    assert first == {"kind": "step", "epoch": 1, "step": 2, "loss": 0.625, "weight": 0.625, "lr": 0.25}
    assert second == {"kind": "step", "epoch": 1, "step": 3, "loss": 0.0625, "weight": 0.875, "lr": 0.25}
    assert (epoch["kind"], epoch["extra"], epoch["weight"]) == ("epoch", 7.0, pytest.approx((0.5 + 0.75 + 0.875) / 3))
    assert epoch["loss"] == pytest.approx((1 + 0.25 + 0.0625) / 3)
    assert epoch["steps_per_second"] == pytest.approx(3 / epoch["seconds"])
    assert test == {"kind": "test", "epoch": 1}


def test_evaluations_and_checkpoints_come_by_period_and_at_the_end(tmp_path):
    task = fall(figures=[0.1, 0.5, 0.9, 0.5, 0.4])
    fit(task, Loader([[1.0]]), plan_of(tmp_path))
    assert [entry[1] for entry in task.log if entry[0] == "evaluate"] == [2, 4, 5]
    assert [entry[1:] for entry in task.log if entry[0] == "finish"] == [(n, n == 5) for n in range(1, 6)]
    assert names(tmp_path) == {"best.pth", "fall_3.pth", "fall_5.pth", "last.pth", "metrics.jsonl"}
    assert load(tmp_path / "fall_3.pth").keys() == {"weight"}
    assert load(tmp_path / "last.pth")["config"] == "A: 1\n"


@pytest.mark.parametrize(("figures", "kept"), [([0.1, 0.5, 0.9, 0.5, 0.4], "best.pth"), ([], "fall_5.pth")])
def test_without_checkpoints_the_best_weights_are_kept_or_else_the_last_ones(tmp_path, figures, kept):
    fit(fall(figures=figures), Loader([[1.0]]), plan_of(tmp_path, evaluation_period=5, checkpoint_period=-1))
    assert names(tmp_path) == {kept, "last.pth", "metrics.jsonl"}


def test_without_checkpoints_a_state_is_kept_at_each_evaluation(tmp_path):
    task, state = fall(figures=[0.1, 0.5, 0.9, 0.5, 0.4]), tmp_path / "last.pth"
    task.begin = lambda epoch: seen.append(load(state)["epoch"] if state.is_file() else 0)
    seen = []
    fit(task, Loader([[1.0]]), plan_of(tmp_path, evaluation_period=2, checkpoint_period=-1))
    assert seen == [0, 0, 2, 2, 4]


def test_the_best_weights_are_those_of_the_first_epoch_with_the_highest_figure(tmp_path):
    task = fall(figures=[-0.5, -0.2, -0.3, -0.2])
    fit(task, Loader([[1.0]]), plan_of(tmp_path, epochs=4, evaluation_period=1, checkpoint_period=9))
    assert [entry for entry in task.log if entry[0] == "best"] == [("best", "best.pth", 1, -0.5), ("best", "best.pth", 2, -0.2)]
    assert load(tmp_path / "best.pth")["weight"].item() == 0.75  # after two steps
    assert load(tmp_path / "last.pth")["best"] == {"best": -0.2}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, accumulation):
    images = [[1.0], [2.0], [3.0]]  # with two batches to a step, an epoch ends in the middle of one
    options = {"noise": 0.5, "momentum": 0.9, "accumulation": accumulation, "figures": [5.0, 4.0, 3.0, 2.0, 1.0]}
    whole, parts = fall(**options), fall(**options)
    fit(whole, Loader(images), plan_of(tmp_path / "whole"))
    fit(parts, Loader(images), plan_of(tmp_path / "parts", epochs=3))
    torch.manual_seed(99)
    resumed, loader = fall(**options), Loader(images)
    fit(resumed, loader, plan_of(tmp_path / "parts"), resume=tmp_path / "parts" / "last.pth")
    assert loader.epochs == [4, 4, 5]
    assert torch.equal(whole.network.weight, resumed.network.weight)
    told = [
        [(line["epoch"], line["step"], line["loss"]) for line in lines_of(tmp_path / run) if line["kind"] == "step"]
        for run in ("whole", "parts")
    ]
    assert told[0] == told[1]
    assert load(tmp_path / "parts" / "last.pth")["best"] == {"best": 4.0}


def test_steps_draw_other_numbers_in_each_epoch_and_for_each_seed(tmp_path):
    drawn = {}
    for seed in (1, 2):
        task = fall(noise=1.0, lr=0.0)
        fit(task, Loader([[0.0], [0.0]]), plan_of(tmp_path / str(seed), seed=seed, epochs=2, log_period=1))
        drawn[seed] = [line["loss"] for line in lines_of(tmp_path / str(seed)) if line["kind"] == "step"]
    assert len({*drawn[1], *drawn[2]}) == 8
    seed_step(2, 0, 1, 2)  # of the run, the process, the epoch and the step
    assert drawn[2][1] == pytest.approx(torch.randn(()).square().item())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_its_numbers_and_files(tmp_path, value):
    task = fall()
    said = r"not finite in epoch 1, step 3 \(loss (nan|inf), weight .*\), for 2\.tif, 3\.tif; .*SOLVER\.BASE_LR"
    with pytest.raises(TrainingError, match=said) as raised:
        fit(task, Loader([[1.0], [1.0], [1.0, value]]), plan_of(tmp_path))
    assert raised.value.exit_status == 1
    assert names(tmp_path) == {"metrics.jsonl"}


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    """The last step of an epoch can spoil the weights after its loss was finite."""

    class Spoilt(Fall):
        def step(self, batch):
            numbers = super().step(batch)
            with torch.no_grad():
                self.network.weight.fill_(math.nan if self.update.steps == 2 else 1.0)
            return numbers.new_tensor([1.0, 1.0])

    task = fall()
    task = Spoilt(task.network, task.update)
    said = (
        r"what was learned is not finite \(model\.weight\) after step 1 of epoch 2, whose batch was 0\.tif; last\.pth of before"
    )
    with pytest.raises(TrainingError, match=said):
        fit(task, Loader([[1.0]]), plan_of(tmp_path, checkpoint_period=1))
    assert not (tmp_path / "fall_2.pth").exists()
    assert load(tmp_path / "last.pth")["epoch"] == 1
    assert load(tmp_path / "last.pth")["model"]["weight"].item() == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("model"),
        lambda state: state["model"].pop("weight"),
        lambda state: state["update"].update(optimizers=[]),
        lambda state: state.update(epoch="x"),
        lambda state: state.pop("best"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, change):
    fit(fall(), Loader([[1.0]]), plan_of(tmp_path, epochs=1))
    state = load(tmp_path / "last.pth")
    change(state)
    save(tmp_path / "changed.pth", state)
    with pytest.raises(CheckpointError, match=r"SOLVER\.RESUME .*changed\.pth does not fit this run"):
        restore(fall(), plan_of(tmp_path), tmp_path / "changed.pth")


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("state", [[1, 2], torch.zeros(3), {"weight": torch.zeros(2)}, "text"])
def test_a_file_that_holds_no_state_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"SOLVER\.RESUME .* does not fit this run"):
        restore(fall(), plan_of(tmp_path), tmp_path / "other.pth")


def test_the_plan_is_that_of_the_configuration(tmp_path):
    keys = {"SOLVER__MAX_EPOCHS": 9, "SOLVER__EVAL_PERIOD": 3, "SOLVER__CHECKPOINT_PERIOD": 4, "SOLVER__LOG_PERIOD": 5}
    keys |= {"SOLVER__SAVE_MINUTES": 7.5, "SOLVER__RESUME_ALLOW": ["data", "SOLVER.SEED"]}
    cfg = tiny_cfg(**keys, SOLVER__SEED=6)
    plan = build_training_plan(cfg, tmp_path, "name", split={"name": "test"})
    origin = {"config": cfg.dump(), "split": {"name": "test"}}
    assert plan == TrainingPlan(tmp_path, "name", 9, 3, 4, 5, 7.5, 6, origin, plan.description, ("data", "SOLVER.SEED"), 8)
    assert (plan.description["network"], plan.description["config"]) == ("name", cfg.dump())


# The step of the optimisers


def test_gradients_of_several_batches_make_one_step_of_their_mean():
    task = fall(accumulation=2)
    for value, steps, weight in ((1.0, 0, 0.0), (3.0, 1, 1.0), (1.0, 1, 1.0), (1.0, 2, 1.0)):
        # Gradients at 0 are -2 and -6: their mean times the rate of 1/4 is 1; at 1 they are 0.
        task.step(Loader([[value]])[0])
        assert (task.update.steps, task.network.weight.item()) == (steps, weight)
    assert task.network.weight.grad is None


def test_the_gradient_is_clipped_to_its_largest_norm():
    task = fall(largest_norm=0.5, lr=1.0)
    task.step(Loader([[10.0]])[0])
    assert task.network.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_a_scaled_gradient_is_clipped_as_it_is_without_the_scale():
    task = fall(largest_norm=0.5, lr=1.0)
    task.update.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    task.step(Loader([[10.0]])[0])
    assert task.network.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_an_optimiser_keeps_its_own_kernels_when_it_goes_on():
    first, second = fall(), fall()
    weights = [update.network.weight for update in (first.update, second.update)]
    first.update.optimizers = [torch.optim.Adam([weights[0]], lr=1e-3, fused=True)]
    second.update.optimizers = [torch.optim.Adam([weights[1]], lr=1.0)]
    first.step(Loader([[1.0]])[0])
    second.update.load_state_dict(first.update.state_dict())
    group = second.update.optimizers[0].param_groups[0]
    assert (group["lr"], bool(group["fused"])) == (1e-3, False)
    states = [update.optimizers[0].state[weight]["exp_avg"] for update, weight in zip((first.update, second.update), weights)]
    assert torch.equal(*states)


def test_a_scaler_starts_anew_where_the_run_before_had_none():
    without, scaled = fall(), fall()
    scaled.update.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled.update.load_state_dict(without.update.state_dict())
    assert scaled.update.scaler.get_scale() == 8.0
    other = fall()
    other.update.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaled.update.load_state_dict(other.update.state_dict())
    assert scaled.update.scaler.get_scale() == 2.0
    without.update.load_state_dict(scaled.update.state_dict())


# A new kind of training


def test_a_new_kind_of_training_is_one_short_file(tmp_path):
    assert len((ROOT / "tests" / "autoencoder.py").read_text().splitlines()) < 150
    data, out = write_hoss(tmp_path / "data", train_ships=4, views=2), tmp_path / "out"
    words = settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=out, SOLVER__MAX_EPOCHS=3, SOLVER__BASE_LR=0.01)
    ended = call(autoencoder.main, *words)
    assert ended.status == 0, ended.err
    assert {"autoencoder_2.pth", "autoencoder_3.pth", "last.pth", "metrics.jsonl", "config.yml"} <= names(out)
    losses = [line["loss"] for line in lines_of(out) if line["kind"] == "epoch"]
    assert losses[-1] < losses[0]
    assert "3 epochs are done" in ended.err
    ended = call(autoencoder.main, *words, "SOLVER.MAX_EPOCHS", "4", "SOLVER.RESUME", str(out / "last.pth"))
    assert "resumed from" in ended.err
    assert (out / "autoencoder_4.pth").is_file()
