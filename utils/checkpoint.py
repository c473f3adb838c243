"""Weights and training states on disk. The only module that calls `torch.load`, always with `weights_only`."""

import hashlib
import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.files import replacing

logger = logging.getLogger(__name__)

CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "ema", "module")
"""Keys under which programs keep the state dict, in the order in which they are tried."""


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write `content` with torch.save, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(dict(content), temporary)


def load(path: str | Path) -> Any:
    """Read what `save` (or another program's torch.save) wrote, on the CPU; tensors and plain containers only.

    Raises:
        CheckpointError: no such file, no checkpoint, cut short, or one that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give the path of an existing file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            name = str(error).partition("GLOBAL ")[2].split(" ")[0] or "an unknown type"
            raise CheckpointError(
                f"{path} holds {name} beside tensors and could run code, so it was not read; save its state dict alone"
            ) from error
        raise CheckpointError(f"{path} is no checkpoint; it should be a file written by torch.save") from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        zipfile.BadZipFile,
        UnicodeDecodeError,
        AttributeError,
    ) as error:
        raise CheckpointError(f"{path} is no checkpoint or is cut short; it should be a file written by torch.save") from error


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: bare or under one of `CONTAINERS`, less any `module.` prefix.

    Raises:
        CheckpointError: see `load`; also a file without tensors.
    """
    content = load(path)
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name; a checkpoint is a state dict, bare or under 'state_dict' or 'model'"
        )
    return strip_prefix(tensors, "module.")


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take `prefix` off every name, if every name has it."""
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): value for name, value in tensors.items()}
    return dict(tensors)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
