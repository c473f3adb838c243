"""Conversion of weights files keeps every bit, and gives the released programs every tensor that they read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.heads import linear_head
from model.reid import ReIDModel
from model.transoss import TransOSS
from tests.golden import FOLDER
from tools.convert_weights import convert, main, to_released
from utils.checkpoint import load_state_dict, save
from utils.errors import CheckpointError, UsageError


def make_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    base = TransOSS(img_size=(32, 32), embed_dim=16, depth=1, num_heads=2)
    return ReIDModel(base, linear_head(16, 5)).state_dict()


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {
        name: (value.dtype, tuple(value.shape), value.flatten().view(torch.uint8).tolist()) for name, value in tensors.items()
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_round_trip_keeps_every_bit(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in make_tensors().items()}
    tensors["base.norm.bias"][:3] = torch.tensor([torch.nan, -0.0, torch.inf])
    save(tmp_path / "own.pth", tensors)
    convert(tmp_path / "own.pth", tmp_path / f"released{suffix}", "released")
    convert(tmp_path / f"released{suffix}", tmp_path / "back.pth", "own")
    assert bits(load_state_dict(tmp_path / "back.pth")) == bits(tensors)


def test_a_released_file_keeps_its_unused_layer(tmp_path: Path) -> None:
    tensors = to_released(make_tensors())
    tensors["base.fc.weight"] = torch.randn(7, 16)
    save(tmp_path / "released.pth", {f"module.{name}": value for name, value in tensors.items()})
    convert(tmp_path / "released.pth", tmp_path / "again.safetensors", "released")
    assert bits(load_state_dict(tmp_path / "again.safetensors")) == bits(tensors)


def test_every_released_name_and_shape() -> None:
    vectors = np.load(FOLDER / "vit_base_formula.npz", allow_pickle=False)
    model = ReIDModel(TransOSS(img_size=(256, 128)), linear_head(768, 361))
    released = to_released(model.state_dict())
    theirs = dict(zip(vectors["keys"].tolist(), vectors["key_shapes"].tolist(), strict=True))
    assert {name: str(list(value.shape)) for name, value in released.items()} == theirs


def test_weights_of_a_training_state(tmp_path: Path) -> None:
    save(tmp_path / "last.pth", {"model": make_tensors(), "epoch": 3, "optimizers": [{}], "config": "MODEL: {}"})
    convert(tmp_path / "last.pth", tmp_path / "weights.pth", "own")
    assert bits(load_state_dict(tmp_path / "weights.pth")) == bits(make_tensors())


def test_a_bare_backbone_changes_format_only(tmp_path: Path) -> None:
    tensors = {"cls_token": torch.ones(1, 1, 4), "fc.weight": torch.ones(2, 4)}
    save(tmp_path / "vit.pth", tensors)
    convert(tmp_path / "vit.pth", tmp_path / "vit.safetensors", "own")
    assert bits(load_state_dict(tmp_path / "vit.safetensors")) == bits(tensors)
    with pytest.raises(CheckpointError, match=r"vit\.pth holds no re-identification model"):
        convert(tmp_path / "vit.pth", tmp_path / "released.pth", "released")


def test_bad_targets_are_named(tmp_path: Path) -> None:
    save(tmp_path / "own.pth", make_tensors())
    with pytest.raises(UsageError, match=r"own\.pth exists"):
        convert(tmp_path / "own.pth", tmp_path / "own.pth", "own")
    with pytest.raises(UsageError, match=r"suffix of .*own\.onnx names no format"):
        convert(tmp_path / "own.pth", tmp_path / "own.onnx", "own")
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*absent\.pth"):
        convert(tmp_path / "absent.pth", tmp_path / "new.pth", "own")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path / "own.pth", make_tensors())
    main([str(tmp_path / "own.pth"), str(tmp_path / "new.safetensors"), "--layout", "released"])
    assert f"{len(make_tensors()) + 2} tensors in the released layout" in capsys.readouterr().out


def test_the_command_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    command = [sys.executable, "-m", "tools.convert_weights", str(tmp_path / "bad.pth"), str(tmp_path / "new.pth")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "new.pth").exists()
