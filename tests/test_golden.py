"""The golden vectors, and that their checks can fail."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bbdm.unet import make_unet
from tests.formula_weights import fill_formula
from tests.golden import CHECKS, FOLDER, check_file

FILES = sorted(FOLDER.glob("*.npz"))
SPOILT = {
    "bb_bridge_grad": "loop_out",
    "bb_schedule": "linear_1000_20.steps",
    "bb_unet_f4_keys": "key_shapes",
    "bb_unet_small": "out",
    "ema": "shadow",
    "fusion_query": "dist",
    "losses1": "cmal_grad",
    "lr_60": "lr",
    "metrics1": "rerank_20_6",
    "pos_embed_resize": "new",
    "pretrained_surgery": "out.patch_embed_SAR.proj.bias",
    "reid_model_after": "train_score",
    "sar_to_rgb": "mos1",
    "sdf_base_keys": "new_keys",
    "sdf_jitter": "out3",
    "sdf_losses1": "total_grad_tokens",
    "sdf_model_concat": "after.bottleneck_fuse.running_var",
    "sdf_model_plain": "grad.base.cls_token",
    "sdf_surgery_transoss": "out.pos_embed",
    "ship_size": "sar",
    "vit_base_formula": "keys",
    "vit_sse1_cam2": "feat_optical_only",
    "vqgan_f4_keys": "keys",
    "vqgan_small": "codes",
}


def kind_of(name: str) -> str:
    return max((kind for kind in CHECKS if name.startswith(kind)), key=len)


def test_every_kind_of_check_has_a_file_and_every_file_a_check():
    assert {kind_of(path.stem) for path in FILES} == set(CHECKS)


@pytest.mark.parametrize("path", [path for path in FILES if not path.stem.startswith("e2e")], ids=lambda path: path.stem)
def test_numbers_of_the_released_programs(path: Path):
    outcome = check_file(path)
    assert outcome.verdict == "ok", outcome


@pytest.mark.real_data
def test_released_evaluation_of_real_chips():
    outcome = check_file(FOLDER / "e2e_hoss_sample.npz")
    assert outcome.verdict == "ok", outcome


@pytest.mark.parametrize("name", SPOILT)
def test_one_wrong_number_fails(name: str, tmp_path: Path):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        vectors = {key: file[key] for key in file.files}
    value = vectors[SPOILT[name]].copy()
    value.flat[-1] = "[1]" if value.dtype.kind == "U" else value.flat[-1] + 1
    np.savez(tmp_path / f"{name}_spoilt.npz", **{**vectors, SPOILT[name]: value})
    assert check_file(tmp_path / f"{name}_spoilt.npz").verdict == "FAIL"


@pytest.mark.parametrize(("key", "channels"), [("nocond", 3), ("first_stage", 6)])
def test_a_network_is_shown_the_context_that_its_file_says(key: str, channels: int, tmp_path: Path):
    with np.load(FOLDER / "bb_unet_small.npz", allow_pickle=False) as file:
        vectors = {name: file[name] for name in file.files}
    network = make_unet(in_channels=channels, width=32, multipliers=(1, 2), blocks=1, attention_factors=(2,), head_width=16)
    fill_formula(network, vectors["groupnorm_weights"].tolist())
    shown = [torch.from_numpy(vectors[name]) for name in (["x", "t", "context"] if channels == 6 else ["x", "t"])]
    with torch.no_grad():
        vectors["out"] = network(*shown).numpy()
    vectors["config"] = json.dumps({**json.loads(str(vectors["config"])), "in_channels": channels, "condition_key": key})
    vectors["keys"] = np.array(list(network.state_dict()))
    vectors["key_shapes"] = np.array([json.dumps(list(tensor.shape)) for tensor in network.state_dict().values()])
    np.savez(tmp_path / "bb_unet_small_other.npz", **vectors)
    assert check_file(tmp_path / "bb_unet_small_other.npz").verdict == "ok"


def test_spoilt_files_cover_every_kind_that_needs_no_chips():
    assert {kind_of(name) for name in SPOILT} == set(CHECKS) - {"e2e_hoss_sample"}


def test_command_says_ok_skip_and_fail(tmp_path: Path):
    (tmp_path / "ship_size_other.npz").write_bytes((FOLDER / "ship_size.npz").read_bytes())
    (tmp_path / "unheard_of.npz").write_bytes((FOLDER / "ema.npz").read_bytes())
    command = [sys.executable, "-m", "tests.golden", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ok ship_size_other \d\.\d\de[-+]\d\d\nskip unheard_of unknown kind\n", done.stdout)

    (tmp_path / "lr_broken.npz").write_bytes(b"not an archive")
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL lr_broken ")
