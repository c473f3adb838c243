"""The golden vectors, and that their checks can fail."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
