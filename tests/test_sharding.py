"""Networks whose tensors lie in parts on two processes (gloo), and activations that are computed again: as one process does."""

import json
from pathlib import Path

import pytest
import torch

import bbdm.train
import train
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from tests.test_two_ranks import bridge, lines_of, run_in_order, write_pairs
from utils import distributed
from utils.checkpoint import load
from utils.errors import UsageError
from utils.seed import redrawing, seed_step, shared_generator
from utils.sharding import build_sharding, load_whole, part_of, put_together, whole

PROGRAMS = {"train": train, "bridge": bbdm.train}
CLOSE = {"train": 1e-5, "bridge": 1e-4}
"""How near weights are: Adam makes steps of the learning rate, 3e-4, of gradients that are nothing but rounding."""

FILES = {"train": "transformer_3.pth", "bridge": "bridge_2.pth"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """Sharded trainings by two processes, and the same by one; each is then gone on with for another epoch."""
    folder = tmp_path_factory.mktemp("shards")
    data, pairs = write_hoss(folder / "data", train_ships=6, views=4), write_pairs(folder / "pairs")

    def commands(out: Path) -> list[list[object]]:
        reid = settings(
            DATASETS__ROOT_DIR=data, OUTPUT_DIR=out / "train", SOLVER__MAX_EPOCHS=3, MODEL__DROP_PATH=0.3,
            MODEL__IF_WITH_CENTER="yes", SOLVER__CENTER_LOSS_WEIGHT=0.01, DATALOADER__NUM_INSTANCE=2,
            SOLVER__OPTIMIZER_NAME="SGD", SOLVER__CHECKPOINT_PERIOD=1, SOLVER__SHARD=True,
            SOLVER__ACTIVATION_CHECKPOINTS=True, MODEL__TRANSFORMER_TYPE="vit_mini_patch16_224_TransOSS",
        )  # fmt: skip
        more = {"OUTPUT_DIR": out / "bridge", "BBDM.PAIRS_DIR": pairs, "SOLVER.SHARD": True, "BBDM.GRID_PERIOD": 1}
        more |= {"BBDM.ACTIVATION_CHECKPOINTS": True, "BBDM.CLIP_GRADIENT": 1.0, "BBDM.ACCUMULATION": 2}
        words = [*bridge(), *(word for item in more.items() for word in item)]
        return [["train", *reid], ["bbdm.train", *words]]

    run_in_order(folder, commands)
    return folder


@pytest.mark.parametrize("job", FILES)
def test_losses_figures_and_weights_are_those_of_one_process(done, job):
    one, two = (lines_of(done / name / job, "step") for name in ("one", "two"))
    assert len(one) == len(two) >= 4
    for first, second in zip(one, two, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5, abs=1e-5)
    kind = "test" if job == "train" else "validation"
    figure = "mAP" if job == "train" else "validation_loss"
    one_figures, two_figures = ([line[figure] for line in lines_of(done / name / job, kind)] for name in ("one", "two"))
    assert one_figures and two_figures == pytest.approx(one_figures, abs=1e-5)
    one, two = (load(done / name / job / FILES[job]) for name in ("one", "two"))
    assert one.keys() == two.keys()
    furthest = max(float((one[key] - two[key]).abs().max()) for key in one)
    assert furthest < CLOSE[job]


@pytest.mark.parametrize("job", FILES)
def test_the_state_is_laid_out_as_ever_and_one_process_goes_on_with_it(done, job):
    def layout(value):
        if isinstance(value, dict):
            return {key: layout(inner) for key, inner in value.items() if key not in ("description", "config")}
        if isinstance(value, list | tuple):
            return [layout(inner) for inner in value]
        return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)

    one, two = (load(done / name / job / "last.pth") for name in ("one", "two"))
    assert layout(one) == layout(two)
    words = json.loads((done / "two.json").read_text())[list(FILES).index(job)][1:]
    epochs = int(one["epoch"]) + 1
    ended = call(PROGRAMS[job].main, *words, "SOLVER.RESUME", "auto", "SOLVER.MAX_EPOCHS", epochs, "SOLVER.SHARD", False)
    assert ended.status == 0, ended.err
    assert load(done / "two" / job / "last.pth")["epoch"] == epochs


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_activations_that_are_computed_again_give_the_same_gradients(drop_path):
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        changes = {"MODEL__DISENTANGLE": True, "MODEL__STRUCT_LOSS_WEIGHT": 1.0, "MODEL__STRUCT_LAYER_INDEX": 3}
        cfg = tiny_cfg(MODEL__DROP_PATH=drop_path, SOLVER__ACTIVATION_CHECKPOINTS=again, **changes)
        model = build_model(cfg, 4).train()
        seed_step(1, 0, 1, 1)
        output = model(torch.randn(6, 3, 32, 32), torch.arange(6) % 2, torch.randn(6, 3), torch.arange(6) % 4)
        (output.scores.square().mean() + output.feature.square().mean() + output.parts.structure.square().mean()).backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    first, second = gradients
    assert first.keys() == second.keys() and len(first) > 100
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_less_is_kept_for_the_backward_pass():
    def kept(again: bool) -> int:
        model = build_model(tiny_cfg(SOLVER__ACTIVATION_CHECKPOINTS=again)).train()
        own, sizes = {value.data_ptr() for value in model.parameters()}, {}

        def keep(value):
            if value.data_ptr() not in own:
                sizes[value.data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model(torch.randn(4, 3, 32, 32), torch.arange(4) % 2, torch.randn(4, 3))
        return sum(sizes.values())

    assert kept(True) < kept(False) / 4


def test_a_repeated_pass_draws_what_processes_share_again():
    seed_step(3, 0, 1, 1)
    device = torch.device("cpu")
    torch.rand(2, generator=shared_generator(device))
    forward, again = redrawing()
    with forward:
        first = torch.rand(4, generator=shared_generator(device))
    later = torch.rand(4, generator=shared_generator(device))
    with again:
        assert torch.equal(torch.rand(4, generator=shared_generator(device)), first)
    assert not torch.equal(torch.rand(4, generator=shared_generator(device)), later)
    seed_step(3, 0, 1, 1)
    torch.rand(10, generator=shared_generator(device))
    following = torch.rand(4, generator=shared_generator(device))
    seed_step(3, 0, 1, 1)
    for count in (2, 4, 4):
        torch.rand(count, generator=shared_generator(device))
    assert torch.equal(torch.rand(4, generator=shared_generator(device)), following)


def test_one_process_shards_nothing(tmp_path):
    state = {"a": [torch.ones(2), {"b": (1, torch.zeros(3))}]}
    assert whole(state) is state
    assert part_of(state["a"][0], torch.zeros(2)) is state["a"][0]
    layer = torch.nn.Linear(2, 2)
    load_whole(layer, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    assert layer.weight.sum() == 4
    with put_together(layer):
        assert distributed.unwrap(layer) is layer


def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch):
    data = write_hoss(tmp_path / "data")
    words = settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=tmp_path / "run", SOLVER__ACTIVATION_CHECKPOINTS=True)
    ended = call(train.main, *words, "MODEL.NAME", "resnet50", "MODEL.MIE", False, "MODEL.SSE", False)
    assert (ended.status, "SOLVER.ACTIVATION_CHECKPOINTS is for MODEL.NAME transformer" in ended.sentence) == (2, True)


@pytest.mark.parametrize(("key", "value"), [("SOLVER__AMP", "fp16"), ("SOLVER__IMS_PER_PASS", 4)])
def test_what_does_not_go_with_shards_is_refused_before_anything_is_shared(monkeypatch, key, value):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UsageError, match=f"does not go with {key.replace('__', '.')}"):
        build_sharding(tiny_cfg(SOLVER__SHARD=True, **{key: value}), torch.nn.Linear(2, 2), [], "cpu")
