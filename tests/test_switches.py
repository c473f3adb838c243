"""Every switch from end to end: a tiny training or test that differs from another one by the switch alone, and in its result.

What a switch does is tested where it is built; here, that it reaches the run at all, and where one step shows it, as what.
"""

import json
from pathlib import Path

import pytest
import torch

import model.build
import model.resnet
import test as test_program
import train
from configs.defaults import KEYS
from tests.chip_files import write_hoss
from tests.commands import call, settings
from tests.test_configs import released_defaults
from utils.checkpoint import load

BASE = {
    "MODEL__TRANSFORMER_TYPE": "vit_mini_patch16_224_TransOSS",
    "SOLVER__MAX_EPOCHS": 1,
    "SOLVER__WARMUP_EPOCHS": 2,  # so that the one epoch is warm-up, in which every group has a rate of its own
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "DATALOADER__NUM_INSTANCE": 4,
}
STEPS = {"SOLVER__SCHEDULER": "multistep", "SOLVER__STEPS": "[1]"}
CENTRES = {"MODEL__IF_WITH_CENTER": "yes"}
MARGIN = {"MODEL__NO_MARGIN": False}
ARCFACE = {"MODEL__ID_LOSS_TYPE": "arcface"}
SGD = {"SOLVER__OPTIMIZER_NAME": "SGD"}
RESNET = {"MODEL__NAME": "resnet50", "MODEL__MIE": False, "MODEL__SSE": False}
TWO_TOKENS = {"MODEL__DISENTANGLE": True}
FIRST_BLOCK = {"MODEL__STRUCT_LAYER_INDEX": 1}
STRUCTURE = {"MODEL__STRUCT_LOSS_WEIGHT": 1.0}
EXPANSION = {"TEST__QUERY_EXPANSION": 3}
RERANKING = {"TEST__RE_RANKING": True, "TEST__RE_RANKING_K1": 4, "TEST__RE_RANKING_K2": 2}

TRAINING = [
    *((ARCFACE | {"MODEL__ID_LOSS_TYPE": kind}, {}) for kind in ("arcface", "cosface", "amsoftmax", "circle")),
    ({"SOLVER__COSINE_SCALE": 10}, ARCFACE),
    ({"SOLVER__COSINE_MARGIN": 0.1}, ARCFACE),
    ({"MODEL__ID_LOSS_WEIGHT": 2.0}, {}),
    ({"MODEL__IF_LABELSMOOTH": "on"}, ARCFACE),
    (MARGIN, {}),
    ({"SOLVER__MARGIN": 0.9}, MARGIN),
    ({"MODEL__TRIPLET_LOSS_WEIGHT": 0.0}, {}),
    (CENTRES, {}),
    ({"SOLVER__CENTER_LR": 5.0}, CENTRES),
    ({"SOLVER__CENTER_LOSS_WEIGHT": 0.1}, CENTRES),
    ({"MODEL__MODALITY_LOSS_WEIGHT": 0.0}, {}),
    ({"MODEL__MODALITY_LOSS_TYPE": "global"}, {}),
    ({"MODEL__MODALITY_LOSS_SQUARED": True}, {}),
    ({"MODEL__NECK": "no"}, {}),
    ({"MODEL__STRIDE_SIZE": "[8,8]"}, {}),
    ({"MODEL__MIE": False}, {}),
    ({"MODEL__MIE_COE": 1.0}, {}),
    ({"MODEL__SSE": False}, {}),
    ({"MODEL__POSITION_INIT": "sincos"}, {}),
    ({"MODEL__DROP_PATH": 0.5}, {}),
    ({"MODEL__DROP_OUT": 0.5}, {}),
    ({"MODEL__ATT_DROP_RATE": 0.5}, {}),
    (TWO_TOKENS, {}),
    *(({"MODEL__ABLATION_MODE": fusion}, TWO_TOKENS) for fusion in ("shared", "specific", "concat")),
    ({"MODEL__ORTH_LOSS_WEIGHT": 10.0}, TWO_TOKENS),
    (STRUCTURE, FIRST_BLOCK),
    ({"MODEL__STRUCT_LAYER_INDEX": 2}, STRUCTURE | FIRST_BLOCK),
    (RESNET, {}),
    ({"MODEL__LAST_STRIDE": 2}, RESNET),
    *(({"INPUT__SAR_DENOISE": kind}, {}) for kind in ("max", "lee", "nlm", "clahe")),
    ({"INPUT__SAR_LOW_PERCENT": 40.0}, {}),
    ({"INPUT__SAR_HIGH_PERCENT": 80.0}, {}),
    ({"INPUT__PROB": 0.0}, {}),
    ({"INPUT__RE_PROB": 0.0}, {}),
    ({"INPUT__PADDING": 6}, {}),
    ({"INPUT__COLOR_JITTER": 0.2}, {}),
    ({"INPUT__PIXEL_MEAN": "[0,0,0]"}, {}),
    ({"INPUT__PIXEL_STD": "[1,1,1]"}, {}),
    ({"DATALOADER__SAMPLER": "softmax"}, {}),
    ({"DATALOADER__NUM_INSTANCE": 2}, {}),
    (SGD, {}),
    ({"SOLVER__OPTIMIZER_NAME": "Adam"}, {"SOLVER__WEIGHT_DECAY": 0.5}),
    ({"SOLVER__MOMENTUM": 0.0}, SGD),
    ({"SOLVER__WEIGHT_DECAY": 0.5}, {}),
    ({"SOLVER__WEIGHT_DECAY_BIAS": 0.5}, {}),
    ({"SOLVER__BIAS_LR_FACTOR": 2}, {}),
    ({"SOLVER__LARGE_FC_LR": True}, {}),
    ({"SOLVER__WARMUP_EPOCHS": 3}, {}),
    ({"SOLVER__WARMUP_FACTOR": 0.5}, {}),
    (STEPS, {}),
    ({"SOLVER__GAMMA": 0.5}, STEPS),
    ({"SOLVER__WARMUP_METHOD": "constant"}, STEPS),
    ({"SOLVER__AMP": "bf16"}, {}),
]
"""(the switch, settings of both runs)."""

HARDER = lambda off, on: (on["identity"] > 2 * off["identity"] > 2.7, True)  # noqa: E731

FIRST_STEP = {
    "ID_LOSS_WEIGHT=2.0": lambda off, on: (on["loss"], off["loss"] + off["identity"]),
    # A tenth of the target goes to the mean over all ships, which a margin on the true one makes less hard than that one.
    "IF_LABELSMOOTH=on": lambda off, on: (0.9 * off["identity"] < on["identity"] < off["identity"], True),
    # Features behind a LayerNorm have a length of sqrt(D): a mean square of gaps over D is the square of a normalised gap.
    "MODALITY_LOSS_TYPE=global": lambda off, on: (0.8 < on["alignment"] / off["alignment"] ** 2 < 1.2, True),
    "MARGIN=0.9": lambda off, on: (on["triplet"], off["triplet"] + 0.6),
    "TRIPLET_LOSS_WEIGHT=0.0": lambda off, on: (on["loss"], off["identity"] + 2 * off["alignment"]),
    "CENTER_LOSS_WEIGHT=0.1": lambda off, on: (on["loss"], off["loss"] + (0.1 - 0.0005) * off["center"]),
    "MODALITY_LOSS_WEIGHT=0.0": lambda off, on: (on["loss"], off["identity"] + off["triplet"]),
    "ORTH_LOSS_WEIGHT=10.0": lambda off, on: (on["loss"], off["loss"] + (10 - 0.1) * off["orthogonality"]),
    "STRUCT_LOSS_WEIGHT=1.0": lambda off, on: (on["loss"], off["loss"] + on["structure"]),
    "SAMPLER=softmax": lambda off, on: (on["loss"], on["identity"]),
    "WARMUP_EPOCHS=3": lambda off, on: (on["lr"], 1e-3 * (0.01 + 0.99 / 3)),
    "WARMUP_FACTOR=0.5": lambda off, on: (on["lr"], 1e-3 * (0.5 + 0.5 / 2)),
    "SCHEDULER=multistep,STEPS=[1]": lambda off, on: (on["lr"], off["lr"] / 10),
    "GAMMA=0.5": lambda off, on: (on["lr"], off["lr"] * 5),
    "WARMUP_METHOD=constant": lambda off, on: (on["lr"], 1e-3 * 0.1 * 0.01),
    "NO_MARGIN=False": lambda off, on: (on["triplet"] > off["triplet"], True),
    "COSINE_SCALE=10": lambda off, on: (on["identity"] < off["identity"] / 2, True),
    "COSINE_MARGIN=0.1": lambda off, on: (on["identity"] < off["identity"] - 5, True),
    # Against ln 4 of a classifier that has learned nothing: a margin on cosines times 30.
    **{f"ID_LOSS_TYPE={kind}": HARDER for kind in ("arcface", "cosface", "amsoftmax", "circle")},
    "MODALITY_LOSS_SQUARED=True": lambda off, on: (0.4 * off["alignment"] ** 2 < on["alignment"] < off["alignment"] ** 2, True),
}
"""Switch -> of the first step without and with it, which sees the same network and images: what is, and what should be."""

LEARNED = {
    "ID_LOSS_TYPE=amsoftmax": lambda off, on: (on["model.classifier.W"].shape, off["model.classifier.weight"].t().shape),
    "IF_WITH_CENTER=yes": lambda off, on: (on["criterion.centers"].shape, (4, 24)),
    "CENTER_LR=5.0": lambda off, on: (on["criterion.centers"].norm() > 5 * off["criterion.centers"].norm(), True),
    "OPTIMIZER_NAME=SGD": lambda off, on: (on[BIAS].norm() > 2 * off[BIAS].norm(), True),  # by gradients, not by rates
    "OPTIMIZER_NAME=Adam": lambda off, on: (on[QKV].norm() < 0.99 * off[QKV].norm(), True),  # decay is part of the gradient
    "NECK=no": lambda off, on: (any("bottleneck" in name for name in on), False),
    "STRIDE_SIZE=[8,8]": lambda off, on: (on["model.base.pos_embed"].shape, (1, 1 + 3 * 3, 24)),
    "DISENTANGLE=True": lambda off, on: (on["model.base.pos_embed"].shape, (1, 2 + 2 * 2, 24)),
    "ABLATION_MODE=concat": lambda off, on: (on["model.bottleneck_fuse.weight"].shape, (2 * 24,)),
    "MIE=False": lambda off, on: (off.keys() - on.keys(), {"model.base.mie_embed"}),
    "SSE=False": lambda off, on: (off.keys() - on.keys(), {f"{SIZE_TOKEN}.weight", f"{SIZE_TOKEN}.bias"}),
    "WEIGHT_DECAY=0.5": lambda off, on: (on[QKV].norm() < off[QKV].norm(), True),
    # Biases and the classifier begin at 0 or near it, so that their length is how far they went.
    "WEIGHT_DECAY_BIAS=0.5": lambda off, on: (on[BIAS].norm() < off[BIAS].norm(), True),
    "BIAS_LR_FACTOR=2": lambda off, on: (on[BIAS].norm() > 1.5 * off[BIAS].norm(), True),
    "LARGE_FC_LR=True": lambda off, on: (on[CLASSIFIER].norm() > 1.2 * off[CLASSIFIER].norm(), True),
    "MOMENTUM=0.0": lambda off, on: (on[BIAS].norm() < off[BIAS].norm() / 1.1, True),
}
"""Switch -> of the tensors learned without and with it: what is, and what should be."""

BIAS, CLASSIFIER = "model.base.blocks.0.mlp.fc2.bias", "model.classifier.weight"
QKV, SIZE_TOKEN = "model.base.blocks.0.attn.qkv.weight", "model.base.wh_embed.linear_layer"

TESTING = [
    ({"TEST__NECK_FEAT": "after"}, {}),
    ({"TEST__FEAT_NORM": "no"}, {"TEST__NECK_FEAT": "after"}),  # before the neck a LayerNorm has made norms alike
    ({"TEST__FLIP": True}, {}),
    ({"TEST__SAME_MODALITY_GALLERY": False}, {}),
    (EXPANSION, {}),
    ({"TEST__QUERY_EXPANSION_ALPHA": 60.0}, EXPANSION),
    (RERANKING, {}),
    ({"TEST__RE_RANKING_K1": 8}, RERANKING),
    ({"TEST__RE_RANKING_K2": 6}, RERANKING),
    ({"TEST__RE_RANKING_LAMBDA": 1.0}, RERANKING),
]


ELSEWHERE = {
    "MODEL.DEVICE": "where; not what it computes",
    "MODEL.DEVICE_ID": "which GPU; not what it computes",
    "MODEL.METRIC_LOSS_TYPE": "takes one value",
    "MODEL.PAIR": "pre-training on pairs is a program of its own",
    "MODEL.PRETRAIN_CHOICE": "test_pretrained.py",
    "MODEL.PRETRAIN_PATH": "test_pretrained.py",
    "MODEL.TRANSFORMER_TYPE": "test_model.py",
    "INPUT.SIZE_TRAIN": "test_loaders.py",
    "INPUT.SIZE_TEST": "test_loaders.py",
    "DATASETS.ROOT_DIR": "where, not what",
    "DATALOADER.NUM_WORKERS": "changes nothing: test_loaders.py",
    "SOLVER.BASE_LR": "test_solver.py",
    "SOLVER.MAX_EPOCHS": "test_train.py",
    "SOLVER.IMS_PER_BATCH": "test_samplers.py",
    "SOLVER.CHECKPOINT_PERIOD": "test_train.py",
    "SOLVER.EVAL_PERIOD": "test_train.py",
    "SOLVER.LOG_PERIOD": "test_processor.py",
    "SOLVER.SEED": "test_train.py",
    "TEST.IMS_PER_BATCH": "changes nothing: test_test.py",
    "TEST.WEIGHT": "test_test.py",
    "OUTPUT_DIR": "where, not what",
}
"""Released keys that are no switches: why, or where they are tested."""


def name_of(switch: dict) -> str:
    return ",".join(f"{key.split('__')[1]}={value}" for key, value in switch.items())


def test_every_released_key_is_tried_here_or_elsewhere_or_has_no_use():
    tried = {key.replace("__", ".") for switch, both in (*TRAINING, *TESTING) for key in switch | both}
    released = released_defaults().keys()
    assert released - tried - {name for name, key in KEYS.items() if key.unused} == set(ELSEWHERE)
    assert not tried & ELSEWHERE.keys()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, test_ships=5)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Train with some settings, once for each: what was logged, what was learned, and the file of weights."""
    done = {}

    def run(changes: dict) -> tuple[list[dict], dict[str, torch.Tensor], Path]:
        key = name_of(changes)
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            ended = call(train.main, *settings(**BASE | {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": folder} | changes))
            assert ended.status == 0, ended.err
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            timed = ("seconds", "steps_per_second", "time")
            steps = [{name: value for name, value in line.items() if name not in timed} for line in lines if "lr" in line]
            state = load(folder / "last.pth")
            learned = {f"{part}.{name}": value for part in ("model", "criterion") for name, value in state[part].items()}
            done[key] = steps, learned, next(folder.glob("*_1.pth"))
        return done[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.resnet, "LAYERS", (1, 1, 1, 1))  # networks with little to compute and to save
        patch.setitem(model.build.SIZES, BASE["MODEL__TRANSFORMER_TYPE"], {"embed_dim": 24, "depth": 2, "num_heads": 2})
        yield run


@pytest.mark.parametrize(("switch", "both"), TRAINING, ids=lambda value: name_of(value) or "default")
def test_a_switch_of_training_changes_what_is_trained(trained, switch, both):
    without, changed = trained(both), trained(both | switch)
    assert all(value.isfinite().all() for value in changed[1].values())
    same_weights = without[1].keys() == changed[1].keys() and all(
        torch.equal(value, changed[1][name]) for name, value in without[1].items()
    )
    assert not same_weights or without[0] != changed[0]
    for told, values in ((FIRST_STEP, (without[0][0], changed[0][0])), (LEARNED, (without[1], changed[1]))):
        if name_of(switch) in told:
            found, expected = told[name_of(switch)](*values)
            assert found == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def test_every_expectation_is_of_a_switch():
    assert (FIRST_STEP | LEARNED).keys() <= {name_of(switch) for switch, _ in TRAINING}


def test_a_run_is_otherwise_the_same_twice(trained):
    """Without which the test above would show nothing."""
    first, second = trained({}), trained({"SOLVER__SEED": 1234})
    assert first[0] == second[0]
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())


def figures(data: Path, weights: Path, folder: Path, changes: dict) -> dict:
    where = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": folder, "TEST__WEIGHT": weights}
    ended = call(test_program.main, *settings(**BASE | where | changes))
    assert ended.status == 0, ended.err
    return json.loads((folder / "results.json").read_text())["protocols"]


@pytest.mark.parametrize(("switch", "both"), TESTING, ids=lambda value: name_of(value) or "default")
def test_a_switch_of_testing_changes_the_result(data, trained, tmp_path, switch, both):
    weights = trained({})[2]
    assert figures(data, weights, tmp_path / "1", both) == figures(data, weights, tmp_path / "2", both)
    assert figures(data, weights, tmp_path / "1", both) != figures(data, weights, tmp_path / "3", both | switch)
