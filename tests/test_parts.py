"""Batches that go through the network in parts: the update is that of the whole batch."""

import contextlib

import pytest
import torch
from torch import nn

import train
from configs import load_cfg
from datasets.records import Batch
from loss.criterion import build_criterion
from model.build import build_model
from processor.parts import find_part
from processor.reid import ReIDTask
from processor.selection import SelectionSplit
from processor.update import Update
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from utils.device import Precision
from utils.errors import ResourceError, UsageError
from utils.memory import find_fitting

CPU = torch.device("cpu")
SHIPS, VIEWS = 4, 3
SDF = {
    "MODEL__DISENTANGLE": True,
    "MODEL__STRUCT_LOSS_WEIGHT": 1.0,
    "MODEL__ORTH_LOSS_WEIGHT": 10.0,
    "MODEL__STRUCT_LAYER_INDEX": 1,
}


def batch_of() -> Batch:
    generator = torch.Generator().manual_seed(0)
    count = SHIPS * VIEWS
    return Batch(
        images=torch.randn(count, 3, 32, 32, generator=generator),
        sizes=torch.randn(count, 3, generator=generator),
        modalities=torch.arange(count) % 2,
        labels=torch.arange(count) // VIEWS,
        indices=torch.arange(count),
    )


def task_of(part: int, **changes: object) -> ReIDTask:
    torch.manual_seed(0)
    cfg = tiny_cfg(**{"MODEL__DROP_PATH": 0.0, "MODEL__MODALITY_LOSS_WEIGHT": 2.0} | changes)
    model = build_model(cfg, SHIPS).train()
    criterion = build_criterion(cfg, num_identities=SHIPS, num_features=model.num_features)
    precision = Precision("cpu")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    update = Update(model, [optimizer], precision.scaler(), others=criterion.parameters())
    return ReIDTask(model, criterion, update, None, precision, CPU, dict, SelectionSplit("validation", 0.2, 3), part=part)


def gradients_of(task: ReIDTask) -> dict[str, torch.Tensor | None]:
    task.update.complete = lambda: False  # which would step and forget them
    task.step(batch_of())
    return {name: parameter.grad for name, parameter in task.network.named_parameters()}


@pytest.mark.parametrize("part", [1, 4, 5, 11])
@pytest.mark.parametrize("changes", [{}, SDF, {"MODEL__ID_LOSS_TYPE": "arcface"}], ids=["MOS", "SDF-Net", "arcface"])
def test_gradients_in_parts_are_those_of_the_whole_batch(part, changes):
    whole, parts = task_of(0, **changes), task_of(part, **changes)
    expected, found = gradients_of(whole), gradients_of(parts)
    assert sum(gradient is not None for gradient in expected.values()) > 20
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_losses_and_statistics_in_parts_are_those_of_the_whole_batch():
    whole, parts = task_of(0), task_of(5)
    torch.testing.assert_close(parts.step(batch_of()), whole.step(batch_of()))
    torch.testing.assert_close(parts.network.state_dict(), whole.network.state_dict(), atol=1e-5, rtol=1e-5)
    assert parts.network.neck.num_batches_tracked == 1


def test_cutting_the_batch_into_batches_would_be_another_update():
    """The check above can fail: gradients of two halves, each judged alone."""
    whole, halves = gradients_of(task_of(0)), task_of(0)
    halves.update.complete = lambda: False
    for half in batch_of().split(6):
        halves.step(half)
    name = "base.blocks.0.attn.qkv.weight"
    ours = dict(halves.network.named_parameters())[name].grad / 2
    assert not torch.allclose(ours, whole[name], rtol=1e-2, atol=1e-5)


def test_both_passes_of_a_part_drop_the_same_paths():
    task, seen = task_of(4, MODEL__DROP_PATH=0.5), []
    see = task._see
    task._see = lambda network, part: seen.append(see(network, part)) or seen[-1]
    task.step(batch_of())
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first["shared"], second["shared"])


# As many as fit


class Device:
    """A GPU in name: images that lie on it are counted, and more than `holds` are refused."""

    type = "cuda"


def test_the_largest_part_that_memory_holds_is_found(monkeypatch):
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    network, batch, tried = nn.Linear(2, 2), batch_of(), []

    class Images:
        device = Device()

    def see(part: Batch, holds: int = 5) -> dict[str, torch.Tensor]:
        tried.append(len(part.indices))
        if len(part.indices) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        with torch.enable_grad():
            return {"feature": network(part.sizes[:, :2])}

    real = Batch.first
    monkeypatch.setattr(Batch, "first", lambda self, size: real(batch_of(), size))
    batch.images = Images()
    assert find_part(network, see, batch) == 3 and tried == [12, 6, 3]
    assert network.weight.grad is None
    with pytest.raises(ResourceError, match="one image"):
        find_part(network, lambda part: see(part, holds=0), batch)
    assert find_part(network, see, batch_of()) == 12  # on a CPU


def test_other_errors_than_of_memory_are_not_taken_for_it():
    def attempt(size: int) -> None:
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        find_fitting(attempt, 8)


def test_auto_keeps_the_batch_and_asks_for_parts_that_fit(tmp_path):
    cfg = load_cfg(None, ["SOLVER.IMS_PER_BATCH", "auto"])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.IMS_PER_PASS) == (64, -1)
    (tmp_path / "c.yml").write_text("SOLVER: {IMS_PER_BATCH: 32}")
    cfg = load_cfg(tmp_path / "c.yml", ["SOLVER.IMS_PER_BATCH", "auto"])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.IMS_PER_PASS) == (32, -1)
    with pytest.raises(UsageError, match=r"SOLVER\.IMS_PER_BATCH cannot be 'many'"):
        load_cfg(None, ["SOLVER.IMS_PER_BATCH", "many"])


def test_the_command_trains_in_parts_and_refuses_networks_that_cannot(tmp_path):
    data = write_hoss(tmp_path / "data")
    told = {"DATASETS__ROOT_DIR": data, "SOLVER__MAX_EPOCHS": 1}
    for name, words in (("parts", ["SOLVER.IMS_PER_PASS", "3"]), ("fit", ["SOLVER.IMS_PER_BATCH", "auto"])):
        ended = call(train.main, *settings(**told, OUTPUT_DIR=tmp_path / name), *words)
        assert ended.status == 0, ended.err
    words = {"MODEL__NAME": "resnet50", "MODEL__MIE": False, "MODEL__SSE": False, "OUTPUT_DIR": tmp_path / "resnet"}
    ended = call(train.main, *settings(**told, **words, SOLVER__IMS_PER_PASS=3))
    assert ended.status == 2
    assert ended.sentence.startswith("MODEL.NAME resnet50 has statistics of whole batches inside; set SOLVER.IMS_PER_PASS 0")
