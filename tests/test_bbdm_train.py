"""What the bridge's training does beside the loop: its average, its schedule, its grids, and what is judged and kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.averaging import build_average
from bbdm.train import BridgeTask, build_plateau, build_update, validate
from datasets.records import Batch
from processor.update import Update
from tests.commands import tiny_cfg
from utils.device import Precision
from utils.log import MetricsWriter

CPU = torch.device("cpu")


class Model:
    """Stands for a `BridgeModel`: one weight, whose loss is the weight times the first optical pixel."""

    def __init__(self, network: nn.Module):
        self.network, self.precision = network, Precision("cpu")
        self.bridge = type("Bridge", (), {"schedule": range(1000)})
        self.asked, self.greys = [], []

    def with_network(self, network):
        other = Model(network)
        other.asked, other.greys = self.asked, self.greys
        return other

    def random_loss(self, optical, sar, kind, *, sizes=None, generator=None):
        self.asked.append((kind, None if generator is None else torch.rand(1, generator=generator).item()))
        return self.network.weight.sum() * optical[0, 0, 0, 0]

    def state_shape(self, pictures):
        return tuple(pictures.shape)

    def sample(self, optical, settings, noise):
        self.asked.append((settings.name, settings.steps))
        self.greys.append(settings.grey)
        return optical * self.network.weight.sum()


def pairs_of(*values: float) -> Batch:
    """Pairs whose optical pictures are one grey, and SAR pictures black."""
    optical = torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 2)
    count = 2 * len(values)
    images = torch.cat([optical, -torch.ones_like(optical)])
    return Batch(images, torch.zeros(count, 3), torch.arange(count) // len(values), None, torch.arange(count))


def task_of(folder: Path = Path(), *, accumulation: int = 1, validation=None, grid_period: int = 0, **average) -> BridgeTask:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    model = Model(network)
    return BridgeTask(
        model=model,
        learner=model,
        average=build_average(network, 0.75),
        update=Update(network, [optimizer], torch.amp.GradScaler("cpu", enabled=False), accumulation=accumulation),
        schedule=ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.0),
        device=CPU,
        loss="l2",
        average_period=average.get("period", 1),
        average_start=average.get("start", 0),
        validation=validation,
        shown=pairs_of(0.5, 0.0, -0.5, 1.0, 0.1),
        grids=folder,
        grid_period=grid_period,
        seed=3,
    )


def test_a_step_lowers_the_loss_that_was_asked_for():
    task = task_of()
    assert task.step(pairs_of(1.0)).tolist() == [0.0]
    assert task.step(pairs_of(1.0)).tolist() == [-1.0]
    assert task.network.weight.item() == -2.0
    assert task.model.asked == [("l2", None)] * 2


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        # The weight is -1, -2, -3, -4; a copy follows it at once, the average by a quarter of the way.
        ({"period": 1, "start": 9}, [-1.0, -2.0, -3.0, -4.0]),
        ({"period": 1, "start": 0}, [-0.25, -0.6875, -1.265625, -1.94921875]),
        ({"period": 1, "start": 3}, [-1.0, -2.0, -2.25, -2.6875]),
        ({"period": 2, "start": 0}, [0.0, -0.5, -0.5, -1.375]),
    ],
)
def test_the_average_copies_before_its_start_and_then_follows_every_period(average, expected):
    task, found = task_of(**average), []
    for _ in expected:
        task.step(pairs_of(1.0))
        found.append(task.weights()["weight"].item())
    assert found == expected


def test_the_average_counts_its_period_in_steps_and_its_start_in_batches():
    task, found = task_of(accumulation=2, period=2, start=8), []
    for _ in range(12):
        task.step(pairs_of(1.0))
        found.append(task.weights()["weight"].item())
    # A step every two batches, an update every two steps: a copy after 4 batches, an average after 8 and 12.
    assert found == [0, 0, 0, -2, -2, -2, -2, -2.5, -2.5, -2.5, -2.5, -3.375]


def test_the_schedule_hears_of_the_batch_that_completes_a_step():
    task = task_of(accumulation=2)
    heard = []
    task.schedule.step = heard.append
    for _ in range(5):
        task.step(pairs_of(1.0))
    task.observe([1.0, 2.0, 3.0])  # the third to the fifth of them: the fourth completed a step
    assert heard == [2.0]
    task.step(pairs_of(1.0))
    task.observe([4.0])
    assert heard == [2.0, 4.0]


def test_the_schedule_counts_batches_that_wait_for_their_step():
    task, heard = task_of(accumulation=3), []
    task.schedule.step = heard.append
    for _ in range(5):
        task.step(pairs_of(1.0))
    task.observe([4.0, 5.0])  # of the fourth and the fifth batch, and the sixth completes the step
    assert heard == []


def test_the_rate_falls_where_the_loss_no_longer_does():
    task = task_of()
    for loss in (3.0, 2.0, 2.0, 2.0):
        task.step(pairs_of(0.0))
        task.observe([loss])
    assert task.rate() == 0.5


def test_what_is_judged_is_the_average_and_the_lowest_loss_is_the_best(tmp_path):
    task = task_of(validation=[pairs_of(1.0, 7.0), pairs_of(4.0)], period=1, start=0)
    task.step(pairs_of(1.0))
    figures = task.evaluate(5, MetricsWriter(tmp_path / "metrics.jsonl"))
    assert figures == {"bridge_best": 0.25 * (2 * 1.0 + 4.0) / 3}  # the weight of the average is -0.25
    assert (tmp_path / "metrics.jsonl").read_text() == '{"kind": "validation", "epoch": 5, "validation_loss": -0.5}\n'
    assert task_of().evaluate(5, MetricsWriter(tmp_path / "none.jsonl")) == {}
    assert not (tmp_path / "none.jsonl").exists()


def test_validation_draws_the_same_numbers_each_time():
    model = Model(nn.Linear(1, 1, bias=False))
    for seed in (1, 1, 2):
        validate(model, [pairs_of(1.0), pairs_of(1.0)], loss="l1", seed=seed, device=CPU)
    drawn = [number for _, number in model.asked]
    assert drawn[:2] == drawn[2:4]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize(
    ("period", "epoch", "last", "due"), [(2, 2, False, True), (2, 3, False, False), (2, 3, True, True), (0, 2, True, False)]
)
def test_a_grid_is_drawn_by_period_and_at_the_end(tmp_path, period, epoch, last, due):
    task = task_of(tmp_path, grid_period=period, period=1, start=9)
    task.step(pairs_of(-1.0))  # weight and average become 1, so that pictures come out as they went in
    assert task.finish(epoch, last=last) == {}
    assert [path.name for path in tmp_path.iterdir()] == [f"epoch_000{epoch}.png"] * due
    if due:
        assert task.model.asked[-1] == ("few_step", 20)
        picture = Image.open(tmp_path / f"epoch_000{epoch}.png")
        # optical | SAR | generated, the first four pairs of 4 x 2 pixels, each 192 high, below their labels
        assert picture.size == (3 * 2 * 48, 16 + 4 * 192)
        assert [picture.getpixel((x, 16))[0] for x in (0, 2 * 48, 4 * 48)] == [191, 0, 191]
        labels = np.array(picture.convert("L"))[:16].reshape(16, 3, 2 * 48)
        inked = [(labels[:, column] < 128).sum() for column in range(3)]
        assert labels.max() == 255 and 0 < inked[1] < inked[0] < inked[2]


@pytest.mark.parametrize("grey", [False, True])
def test_a_grid_is_grey_where_samples_are(tmp_path, grey):
    task = task_of(tmp_path, grid_period=1)
    task.grey = grey
    task.finish(1, last=True)
    assert task.model.greys == [grey]


def test_optimiser_and_schedule_are_those_of_the_configuration():
    keys = {"FACTOR": 0.3, "PATIENCE": 7, "COOLDOWN": 5, "THRESHOLD": 0.2, "MIN_LR": 1e-4}
    changes = {f"BBDM__PLATEAU_{key}": value for key, value in keys.items()}
    cfg = tiny_cfg(**changes, BBDM__ACCUMULATION=3, BBDM__CLIP_GRADIENT=0.7, SOLVER__BASE_LR=0.02)
    update = build_update(cfg, nn.Linear(1, 1), torch.amp.GradScaler(enabled=False), CPU)
    assert (update.accumulation, update.largest_norm, update.optimizers[0].param_groups[0]["lr"]) == (3, 0.7, 0.02)
    schedule = build_plateau(cfg, update.optimizers[0])
    found = (schedule.factor, schedule.patience, schedule.cooldown, schedule.threshold, schedule.min_lrs)
    assert found == (0.3, 7, 5, 0.2, [1e-4])
