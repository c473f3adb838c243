"""Reading and writing of weights files, and what is refused."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from utils.checkpoint import CONTAINERS, find_state_dict, load, load_state_dict, save
from utils.errors import CheckpointError, UsageError

WEIGHTS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "b.half": torch.randn(3, generator=torch.Generator().manual_seed(0)).half(),
    "c.brain": torch.ones(2, 2, dtype=torch.bfloat16),
    "count": torch.tensor(7),
}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        value.dtype == right[name].dtype and torch.equal(value, right[name]) for name, value in left.items()
    )


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, WEIGHTS)
    assert same(load_state_dict(tmp_path / name), WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_format_is_told_by_the_content(tmp_path: Path) -> None:
    save(tmp_path / "weights.safetensors", WEIGHTS)
    (tmp_path / "weights.safetensors").rename(tmp_path / "weights.pth")
    assert same(load_state_dict(tmp_path / "weights.pth"), WEIGHTS)


def test_safetensors_takes_views_and_shared_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    save(tmp_path / "w.safetensors", {"a": base, "b": base, "c": base.t()})
    assert torch.equal(load_state_dict(tmp_path / "w.safetensors")["c"], base.t())


def test_safetensors_holds_tensors_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"w\.safetensors cannot hold epoch"):
        save(tmp_path / "w.safetensors", {"a": torch.ones(1), "epoch": 3})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_state_dicts_are_found(container: str, prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in WEIGHTS.items()}
    assert same(find_state_dict({container: wrapped, "epoch": 3}), WEIGHTS)
    assert same(find_state_dict({"state_dict": {container: wrapped}}), WEIGHTS)


def test_options_of_a_command_line_pass(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    assert same(load_state_dict(tmp_path / "w.pth"), WEIGHTS)


class RunsCode:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    content = {"model": WEIGHTS, "extra": RunsCode(tmp_path / "made")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"w\.pth holds (posix|nt)\.mkdir .* could run code, so it was not read"):
        load(tmp_path / "w.pth")
    assert not (tmp_path / "made").exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"holds torch\.nn\.modules\.linear\.Linear .* save its state dict alone"):
        load(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="is a TorchScript program that runs code"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x08\0\0\0\0\0\0\0{broken}", pickle.dumps(RunsCode)])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is no checkpoint"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, WEIGHTS)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=rf"{name} is no checkpoint or is cut short"):
        load(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*absent\.pth"):
        load(tmp_path / "absent.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(2)], {"model": {"epoch": 1}}])
def test_a_file_without_tensors_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth holds no tensors by name"):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_any_flipped_byte_is_noticed_or_changes_nothing(tmp_path: Path, name: str) -> None:
    """Padding and fields that nobody reads may change; a tensor, a name or a type never does in silence."""
    path = tmp_path / name
    save(path, WEIGHTS)
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert same(load(path), WEIGHTS), place
        except CheckpointError as error:
            assert name in str(error)
            refused += 1
    assert refused > len(content) / 12


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_tensor_that_is_not_what_was_written_is_told_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save(path, {"a": torch.full((64,), 3.0)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((64,), 3.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: .* not those that were written; take another copy"):
        load(path)


def test_a_file_without_checksums_of_ours_is_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors"), WEIGHTS)
