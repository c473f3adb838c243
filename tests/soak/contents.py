"""What a folder of results tells: whether each file is whole, and its content less what a clock or a place decides."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from utils.checkpoint import description_of, load

CLOCKS = {"seconds", "steps_per_second", "environment", "command", "RESUME"}
"""Keys whose values differ from run to run."""

LOGS = {"train_log.txt", "test_log.txt", "environment.json"}
"""Files that differ from run to run."""


def faults_of(folder: Path) -> list[str]:
    """The files that are there under their own name and are not whole; a last line of metrics may be torn."""
    return [f"{path.relative_to(folder)}: {fault}" for path in files_of(folder) if (fault := _fault(path))]


def files_of(folder: Path) -> Iterator[Path]:
    """Files that a command has finished."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part.endswith(".lance") for part in parts):
            yield path


def leftovers_of(folder: Path) -> list[str]:
    """Hidden files and folders: what a command should have cleared away."""
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob(".*"))]


def _fault(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            for line in content.split(b"\n")[:-1]:
                json.loads(line)
        elif path.suffix == ".html":
            return "" if content.rstrip().endswith(b"</html>") else "cut short"
        elif path.suffix in (".csv", ".yml", ".md"):
            return "" if content.endswith(b"\n") else "cut short"
        elif path.name not in LOGS:
            _read(path, content)
    except Exception as error:
        return repr(error)[:300]
    return ""


def _read(path: Path, content: bytes) -> Any:
    """What a file says, in values that can be compared."""
    if path.suffix in (".pth", ".safetensors"):
        loaded = load(path)
        return [dict(loaded) if isinstance(loaded, Mapping) else loaded, description_of(loaded)]
    if path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        return [json.loads(line) for line in lines]
    if path.suffix in (".png", ".tif", ".jpg"):
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    elif path.suffix == ".npz":
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) if file[name].dtype.kind in "fiu" else str(file[name]) for name in file}
    return content


def contents_of(folder: Path) -> dict[str, str]:
    """Name of each file -> hash of what it tells."""
    told = {}
    for path in files_of(folder):
        digest = hashlib.sha256()
        if path.name not in LOGS and path.suffix != ".html":
            _feed(digest, _read(path, path.read_bytes()), str(folder).encode())
        told[str(path.relative_to(folder))] = digest.hexdigest()
    return told


def _feed(digest, value: Any, place: bytes) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            if key not in CLOCKS:
                digest.update(f"{key}:".encode())
                _feed(digest, value[key], place)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _feed(digest, item, place)
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        lines = text.replace(place, b"FOLDER").split(b"\n")
        digest.update(b"\n".join(line for line in lines if not line.lstrip().startswith(b"RESUME:")))
