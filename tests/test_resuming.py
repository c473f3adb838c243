"""Going on from a last.pth of other settings or other data: listed, refused where it cannot be meant, allowed by name."""

import shutil

import pytest

import bbdm.train
import train
from processor.resuming import compare_settings, describe_chips
from tests.chip_files import write_chip, write_hoss
from tests.commands import call, settings
from tests.test_bbdm_programs import TINY as BRIDGE
from utils.checkpoint import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, views=2)


def reid(data, folder, **changes):
    keys = {"SOLVER__MAX_EPOCHS": 1, "SOLVER__CHECKPOINT_PERIOD": 1} | changes
    return call(train.main, *settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=folder, **keys))


def bridge(data, folder, **changes):
    keys = BRIDGE | {"SOLVER.MAX_EPOCHS": 1, "DATASETS.ROOT_DIR": data, "OUTPUT_DIR": folder}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return call(bbdm.train.main, *(str(word) for item in keys.items() for word in item))


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """Folders of a run of each kind, to be gone on with into other folders."""
    root = tmp_path_factory.mktemp("done")
    for run in (reid, bridge):
        ended = run(data, root / run.__name__)
        assert ended.status == 0, ended.err
    return root


REFUSED = [
    (reid, "SOLVER.BASE_LR", 0.5), (reid, "SOLVER.OPTIMIZER_NAME", "SGD"), (reid, "SOLVER.WARMUP_EPOCHS", 2),
    (reid, "SOLVER.SCHEDULER", "multistep"), (reid, "SOLVER.IMS_PER_BATCH", 4), (reid, "SOLVER.WEIGHT_DECAY", 0.1),
    (reid, "SOLVER.SEED", 1), (reid, "DATALOADER.NUM_INSTANCE", 2), (reid, "MODEL.MODALITY_LOSS_WEIGHT", 1.0),
    (reid, "MODEL.DROP_PATH", 0.5), (reid, "INPUT.SAR_DENOISE", "max"),
    (reid, "INPUT.SAR_LOW_PERCENT", 1.0), (reid, "DATASETS.VAL_FRACTION", 0.25),
    (bridge, "BBDM.OBJECTIVE", "noise"), (bridge, "BBDM.SCHEDULE", "sin"), (bridge, "BBDM.IMAGE_SIZE", "[8,8]"),
    (bridge, "BBDM.LOSS", "l2"), (bridge, "BBDM.MAX_VARIANCE", 2.0), (bridge, "BBDM.ACCUMULATION", 1),
    (bridge, "BBDM.EMA_DECAY", 0.5), (bridge, "BBDM.NUM_TIMESTEPS", 100),
]  # fmt: skip


@pytest.mark.parametrize(("run", "key", "value"), REFUSED, ids=lambda value: str(getattr(value, "__name__", value)))
def test_what_cannot_be_meant_is_refused_and_allowed_by_name(data, done, tmp_path, run, key, value):
    change = {key.replace(".", "__"): value, "SOLVER__RESUME": done / run.__name__ / "last.pth"}
    ended = run(data, tmp_path / "run", **change)
    assert ended.status == 2
    assert f"{key} " in ended.sentence
    assert f"SOLVER.RESUME_ALLOW \"['{key}']\"" in ended.sentence
    ended = run(data, tmp_path / "run", **change, SOLVER__RESUME_ALLOW=f"['{key}', 'data']")
    assert ended.status == 0 or "does not fit this run" in ended.sentence  # of other shapes, which no name can allow
    assert not list((tmp_path / "run").glob("*.pth"))  # the one epoch was done before


def test_several_differences_are_listed(data, done, tmp_path):
    ended = reid(data, tmp_path, SOLVER__RESUME=done / "reid" / "last.pth", SOLVER__SEED=1, SOLVER__BASE_LR=0.5)
    assert "SOLVER.BASE_LR 0.001 -> 0.5, SOLVER.SEED 1234 -> 1" in ended.sentence


def test_what_can_be_meant_is_told(data, done, tmp_path):
    shutil.copytree(data, tmp_path / "moved")
    changes = {"SOLVER__MAX_EPOCHS": 2, "SOLVER__LOG_PERIOD": 7, "TEST__RE_RANKING": True, "SOLVER__SAVE_MINUTES": 3}
    ended = reid(tmp_path / "moved", tmp_path / "run", SOLVER__RESUME=done / "reid" / "last.pth", **changes)
    assert ended.status == 0, ended.err
    line = next(line for line in ended.err.splitlines() if line.startswith("going on with other settings"))
    for key in ("SOLVER.MAX_EPOCHS 1 -> 2", "SOLVER.LOG_PERIOD", "TEST.RE_RANKING", "DATASETS.ROOT_DIR", "OUTPUT_DIR"):
        assert key in line
    assert load(tmp_path / "run" / "last.pth")["epoch"] == 2


@pytest.mark.parametrize("change", ["content", "fewer", "renamed"])
def test_other_data_are_refused(data, done, tmp_path, change):
    shutil.copytree(data, tmp_path / "data")
    chips = sorted((tmp_path / "data" / "HOSS" / "bounding_box_train").iterdir())
    if change == "content":
        write_chip(chips[0], seed=77)
    elif change == "fewer":
        chips[0].unlink()
    else:
        chips[0].rename(chips[0].with_name(chips[0].name.replace("s01", "s09").replace("c01", "c07")))
    keys = {"SOLVER__RESUME": done / "reid" / "last.pth", "SOLVER__MAX_EPOCHS": 2}
    ended = reid(tmp_path / "data", tmp_path / "run", **keys)
    assert ended.status == 2
    assert "training images" in ended.sentence and "SOLVER.RESUME_ALLOW \"['data']\"" in ended.sentence
    assert reid(tmp_path / "data", tmp_path / "run", **keys, SOLVER__RESUME_ALLOW="['data']").status == 0


def test_a_state_of_before_there_were_keys_or_data_goes_on():
    assert compare_settings(None, "A: {B: 1}") == compare_settings("[", "A: {B: 1}") == {}
    assert compare_settings("A: {B: 1, C: 2}", "A: {B: 3, D: 4}\nE: 5") == {"A.B": ("1", "3")}
    assert describe_chips([])["files"] == 0
