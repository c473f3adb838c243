"""What a weights file says of itself, seen before anything is allocated for it; and what came of it, seen before it is used.

A file of torch.save is a zip archive of stored (not compressed) parts: a pickle, and the bytes of each tensor. Its reader,
torch.load, runs no code of the file; but it believes what the file says of sizes, and gives tensors that no network can take.
"""

import argparse
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import CheckpointError, shown
from utils.reading import open_regular

HEADER_LIMIT = 2**24
"""Bytes of the names, types and shapes of a safetensors file; a tensor has about a hundred."""

PICKLE_LIMIT = 2**23
"""Bytes of the pickle of an archive: names and shapes, not values. A training state of ours has a fortieth of it."""

OLD_PICKLES = 5
"""Of a file in the form before torch 1.6, one after the other: mark, version, machine, content, names of its values."""

DEPTH_LIMIT = 32
"""How deep containers may lie in each other."""

TYPES = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    }
)
"""Types of values that every operation here knows."""

PLAIN = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state")
"""Functions of torch._utils that make the tensors of a state dict."""

ODD_GLOBAL = re.compile(r"torch\._utils\._rebuild_\w+|torch\._tensor\.\w+|torch\.(?:\w+\.)*\w*Tensor|builtins\.bytearray")
"""Matches what torch.load would call although it makes things that no weights need, at whatever size the file asks for."""


def check_archive(path: Path) -> None:
    """Look at what a file of torch.save declares.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        CheckpointError: it declares more than it holds, or tensors of an odd kind.
        zipfile.BadZipFile: it is an archive that is cut short.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(OLD_PICKLES):
                _check_calls(path, _Bounded(path, file))
            return
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise CheckpointError(f"{path} holds compressed parts, as torch.save never writes; write it with torch.save")
            declared = sum(part.file_size for part in parts)
            if declared > size:
                raise CheckpointError(f"{path} declares {declared:,} bytes and has {size:,}; get the file again")
            for part in parts:
                if part.filename.endswith("data.pkl"):
                    if part.file_size > PICKLE_LIMIT:
                        raise CheckpointError(
                            f"{path} holds {part.file_size:,} bytes beside its tensors' values; save its state dict alone"
                        )
                    with archive.open(part) as pickle:
                        _check_calls(path, pickle)


class _Bounded:
    """A pickle of which nobody reads more at a time than one may have: Python takes memory for as much as is asked for."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.file = file

    def read(self, count: int) -> bytes:
        if count > PICKLE_LIMIT:
            raise CheckpointError(f"{self.path} declares {count:,} bytes of one name or number; get the file again")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(PICKLE_LIMIT)


def _check_calls(path: Path, pickle: "BinaryIO | _Bounded") -> None:
    """Refuse a pickle that would have torch make tensors of an odd kind."""
    texts = ["", ""]  # the last two, which STACK_GLOBAL takes
    operations = pickletools.genops(pickle)
    while True:
        try:
            operation, argument, _ = next(operations)
        except StopIteration:
            return
        except CheckpointError:
            raise
        except Exception:  # no pickle, or one that is cut short: torch.load says so, and its exceptions are known
            return
        if operation.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            name = ".".join(texts)
        else:
            texts = [texts[1], argument] if isinstance(argument, str) else texts
            continue
        if ODD_GLOBAL.fullmatch(name) and name.rpartition(".")[2] not in PLAIN:
            raise CheckpointError(f"{path} holds what {name} makes, which no weights need; save plain tensors alone")


def check_header(path: Path) -> None:
    """Look at how long a safetensors file says its header is; raises as `check_archive`."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_LIMIT:
        raise CheckpointError(f"{path} is no checkpoint: it declares {length:,} bytes of names; get the file again")


def check_content(path: Path, content: Any) -> None:
    """Look at what came out of a file: containers that end, and tensors whose values lie in the file.

    Raises:
        CheckpointError: containers that hold themselves or lie too deep; a tensor that is no plain one.
    """
    _check_value(path, content, "", (), set())


def _check_value(path: Path, value: Any, name: str, outer: tuple[int, ...], done: set[int]) -> None:
    """Check one value, called `name`, that lies in the containers `outer`; those that are `done` are not entered again."""
    if isinstance(value, Tensor):
        if fault := _tensor_fault(value):
            raise CheckpointError(f"{path}: the tensor {shown(name)} {fault}; save plain tensors alone")
        return
    inner = _parts_of(value)
    if inner is None or id(value) in done:
        return
    if id(value) in outer or len(outer) == DEPTH_LIMIT:
        how = "holds itself" if id(value) in outer else f"lies more than {DEPTH_LIMIT} containers deep"
        raise CheckpointError(f"{path}: what it keeps as {shown(name)} {how}; save its state dict alone")
    for key, part in inner:
        _check_value(path, part, str(key) if isinstance(key, str) else name, (*outer, id(value)), done)
    done.add(id(value))


def _parts_of(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Keys and values of a container, whatever the kind; None for what is none."""
    if isinstance(value, argparse.Namespace):
        return vars(value).items()
    if isinstance(value, Mapping):
        return [*value.items(), *((None, key) for key in value if isinstance(key, tuple))]
    return [(None, part) for part in value] if isinstance(value, list | tuple | set | frozenset) else None


def _tensor_fault(value: Tensor) -> str:
    """Why a tensor is of no use, empty if it is."""
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return "is sparse, quantised or nested"
    if value.device.type != "cpu":
        return f"has no values ({value.device.type})"
    if value.dtype not in TYPES:
        return f"is of type {str(value.dtype).removeprefix('torch.')}, in which nothing here computes"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"of shape {list(value.shape)} claims more values than the file holds"
    return ""
