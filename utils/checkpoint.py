"""Weights and training states on disk.

The only module that calls `torch.load`, always with `weights_only`.
"""

import argparse
import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.archives import check_archive, check_content, check_header
from utils.checksums import METADATA_KEY, damaged_record, tensors_checksum
from utils.errors import CheckpointError, UsageError
from utils.files import replacing
from utils.signals import deferred

Network = TypeVar("Network", bound=nn.Module)

CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "ema", "module")
"""Keys under which programs keep the state dict, in the order in which they are tried."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that data parallelism and compilation put before every name."""

SAFETENSORS = ".safetensors"

UNREADABLE = (
    RuntimeError,
    EOFError,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    AssertionError,
    OSError,
    zipfile.BadZipFile,
    SafetensorError,
)
"""What the readers raise at a file that is none of theirs or is cut short."""


DESCRIPTION = "description"
"""Name of what a file says of itself: in the `_metadata` that a state dict has beside its tensors, which other loaders pass
over, or in the metadata of safetensors; in a training state, which no other program reads, it is an entry."""


def save(path: str | Path, content: Mapping[str, Any], description: Mapping[str, Any] | None = None) -> None:
    """Write `content`, whole or not at all: in the safetensors format if `path` ends in .safetensors, else with torch.save.

    Args:
        path: of the file.
        content: tensors by name, or anything else that is plain.
        description: plain values that tell what the tensors are (`description_of`).

    Raises:
        UsageError: a .safetensors file that would hold more than tensors by name.
        DataError: the disk does not take the file; what was at `path` stays.
    """
    with deferred(), replacing(path) as temporary:  # an interrupt within torch's writer would come out as an error of its own
        if Path(path).suffix != SAFETENSORS:
            _save_archive(temporary, _described(content, description) if description else dict(content))
            return
        others = [name for name, value in content.items() if not isinstance(value, Tensor)]
        if others:
            raise UsageError(f"{path} cannot hold {others[0]}: a {SAFETENSORS} file holds tensors only; name the file .pth")
        # Copies, because the format refuses views and tensors that share memory.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in content.items()}
        try:
            told = {DESCRIPTION: json.dumps(description)} if description else {}
            save_file(tensors, temporary, {"format": "pt", METADATA_KEY: tensors_checksum(tensors), **told})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if not number:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _described(content: Mapping[str, Any], description: Mapping[str, Any]) -> OrderedDict:
    """A state dict that says what it is."""
    described = OrderedDict(content)
    described._metadata = {DESCRIPTION: dict(description)}
    return described


def description_of(content: Any) -> Mapping[str, Any]:
    """What a file says of itself, from what `load` returned; empty for one that says nothing, as other programs' do."""
    found = getattr(content, "_metadata", None) or content
    found = found.get(DESCRIPTION) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


class _Writer:
    """A file for torch.save, whose own words for a disk that is full name neither disk nor file."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save_archive(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, torch writes its name into the file, and so into its hash
        writer = _Writer(file)
        try:
            torch.save(content, writer)
        except Exception:
            if writer.error is None:
                raise
            raise writer.error from None


def without_start_values(build: Callable[[], Network]) -> Network:
    """The network that `build` makes, on the CPU and all zeros, for weights to be loaded into.

    No start value is drawn, which takes longer than loading: 0.7 s for ViT-B, 1.5 s for the bridge of 237 million numbers.
    """
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    with torch.no_grad():
        for values in (*network.parameters(), *network.buffers()):
            values.zero_()
    return network


def load(path: str | Path) -> Any:
    """Read what `save` (or another program) wrote, on the CPU; tensors and plain containers only.

    Both formats are told apart by their first bytes. Command-line options (`argparse.Namespace`), which many training programs
    keep beside their weights, are plain values and pass.

    Raises:
        CheckpointError: no such file, no checkpoint, cut short, damaged, or one that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give the path of an existing file")
    try:
        content = _read(path)
        check_content(path, content)
        return content
    except pickle.UnpicklingError as error:
        # torch words it "Unsupported global: GLOBAL a.b ..." or "... unsupported GLOBAL os.system whose module os is blocked".
        refused = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} holds {refused[1] or refused[2]} beside tensors and could run code, so it was not read; "
                "save its state dict alone"
            ) from error
        raise CheckpointError(f"{path} is no checkpoint; it should be a file written by torch.save") from error
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename:
            raise  # the disk's; torch's own, of an archive that is cut short, names no file
        raise CheckpointError(
            f"{path} is no checkpoint or is cut short; it should be a file written by torch.save or a {SAFETENSORS} file"
        ) from error


def _read(path: Path) -> Any:
    """What a file of either format holds; what it declares is checked first, and its checksums."""
    if _is_safetensors(path):
        check_header(path)
        return _read_safetensors(path)
    if _is_program(path):
        raise CheckpointError(f"{path} is a TorchScript program that runs code, so it was not read; save its state dict alone")
    check_archive(path)
    if zipfile.is_zipfile(path) and damaged_record(path):
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written; take another copy")
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path, device="cpu")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    written = metadata.get(METADATA_KEY)
    if written not in (None, tensors_checksum(tensors)):
        raise CheckpointError(f"{path} is damaged: its tensors are not those that were written; take another copy")
    return _described(tensors, json.loads(metadata[DESCRIPTION])) if DESCRIPTION in metadata else tensors


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as safetensors do: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == SAFETENSORS or start[8:] == b"{"


def _is_program(path: Path) -> bool:
    """Whether the file is an archive of TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; see `find_state_dict`.

    Raises:
        CheckpointError: see `load`; also a file without tensors.
    """
    return require_tensors(load(path), path)


def require_tensors(content: Any, path: str | Path) -> dict[str, Tensor]:
    """`find_state_dict` of what was read of `path`, which must hold some.

    Raises:
        CheckpointError: it holds none.
    """
    tensors = find_state_dict(content)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name; a checkpoint is a state dict, bare or under 'state_dict' or 'model'"
        )
    return tensors


def find_state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of what `load` returned: bare or under `CONTAINERS`, less `WRAPPERS`; empty if there are none."""
    inner = content
    while isinstance(inner, Mapping):
        content = inner
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
    return tensors_of(content)


def tensors_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict by name, less `WRAPPERS`; empty if `content` is none."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in WRAPPERS * 2:
        tensors = strip_prefix(tensors, prefix)
    return tensors


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take `prefix` off every name, if every name has it."""
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): value for name, value in tensors.items()}
    return dict(tensors)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
