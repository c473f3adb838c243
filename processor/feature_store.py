"""A folder that keeps the features of sets of images, so that the same network sees the same images once.

An entry's name is a hash of all that decides its features: the weights, every image file in its order, the settings, the code
that reads images and computes features, the libraries and the device. Whatever changes, another name is asked for, so an entry
cannot be stale; one that is damaged, or that lies under a name not its own, is extracted anew.

Legend: I images, D feature width.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.records import Chip
from utils import distributed
from utils.checkpoint import load, save, sha256
from utils.errors import CheckpointError
from utils.files import sweep_old
from utils.log import describe_environment

logger = logging.getLogger(__name__)

CODE = ("model/*.py", "datasets/*.py", "processor/extraction.py")
"""The files of this program that decide what a feature is."""

NOT_OF_FEATURES = {
    *("MODEL.DEVICE", "MODEL.DEVICE_ID", "MODEL.PRETRAIN_CHOICE", "MODEL.PRETRAIN_PATH", "MODEL.PRETRAIN_PARTIAL"),
    *(
        "INPUT.MAX_PIXELS",
        "TEST.WEIGHT",
        "TEST.FEATURE_STORE",
        "TEST.FUSION_TAU",
        "TEST.FEAT_NORM",
        "TEST.SAME_MODALITY_GALLERY",
    ),
    *("TEST.QUERY_EXPANSION", "TEST.QUERY_EXPANSION_ALPHA", "TEST.RE_RANKING", "TEST.RE_RANKING_K1", "TEST.RE_RANKING_K2"),
    *("TEST.RE_RANKING_LAMBDA", "TEST.RANKING_MEMORY", "TEST.FUSION_SAMPLES", "TEST.DIST_MAT", "TEST.EVAL"),
    *("TEST.COMMON_SPACE", "TEST.COMMON_SPACE_SHRINKAGE", "TEST.COMMON_SPACE_DIMENSIONS", "TEST.COMMON_SPACE_DIR"),
}
"""Keys of MODEL, INPUT and TEST that features do not depend on, or that are hashed otherwise. Every other key counts, so that
one that is added later cannot be forgotten."""


def hash_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file; every process gets those that rank 0 read."""
    return distributed.broadcast([sha256(path) for path in paths] if distributed.is_main() else None)


def hash_text(parts: Iterable[str]) -> str:
    """One SHA-256 of texts in their order."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def chip_contents(records: Sequence[Chip], hashes: Sequence[str]) -> list[str]:
    """What decides the picture of each chip: its file (`hashes`), how it is read, its modality."""
    return [
        f"{digest} {record.path.suffix.lower()} {int(record.modality)}"
        + " upright" * record.upright
        + " turned" * record.turned
        for record, digest in zip(records, hashes, strict=True)
    ]


def sample_contents(samples: Sequence[Chip], source_hashes: Sequence[str]) -> list[str]:
    """The same for generated pictures: the file, and the file of the chip it was made from, whose size triple it has."""
    hashes = hash_files([sample.path for sample in samples])
    return [f"{digest} of {source}" for digest, source in zip(hashes, source_hashes, strict=True)]


def build_origin(cfg, *, weights_sha256: str, device: torch.device) -> dict[str, Any]:
    """All that decides features beside the images, as values of JSON."""
    environment = describe_environment(seed=cfg.SOLVER.SEED, device=device)
    root = Path(__file__).parent.parent
    code = sorted(path for pattern in CODE for path in root.glob(pattern))
    keys = {f"{section}.{name}": value for section in ("MODEL", "INPUT", "TEST") for name, value in cfg[section].items()}
    return {
        "weights": weights_sha256,
        "settings": {key: value for key, value in keys.items() if key not in NOT_OF_FEATURES},
        "code": hash_text(sha256(path) for path in code),
        "packages": environment["packages"],
        "device": environment["device_name"],
    }


def stored(
    folder: Path | None,
    origin: Mapping[str, Any],
    contents: Sequence[str],
    extract: Callable[[], Tensor],
    width: int | None = None,
) -> tuple[Tensor, float]:
    """The features of images: those in the store, or else what `extract` gives, which is then kept. All ranks call it.

    Args:
        folder: of the store; None keeps nothing, and `contents` are not looked at.
        origin: from `build_origin`.
        contents: (I,) what decides each picture, in order (`chip_contents`, `sample_contents`).
        extract: gives (I, D) features of these images, on every rank.
        width: D; None where it is not known.

    Returns:
        (I, D) float32 on the CPU, not normalised, and the seconds that extracting them took, now or when they were stored.
    """
    path = None
    if folder is not None:
        path = folder / f"{hash_text([json.dumps(dict(origin), sort_keys=True), *contents])}.pth"
        found = distributed.broadcast(_read(path, len(contents), width) if distributed.is_main() else None)
        if found is not None:
            logger.info("features of %d images come from %s", len(contents), path)
            return found
    start = time.perf_counter()
    values = extract()
    seconds = time.perf_counter() - start
    if path is not None and distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        sweep_old(folder)
        save(path, {"key": path.stem, "features": values, "sha256": _hash_tensor(values), "seconds": seconds})
    distributed.barrier()
    return values, seconds


def _hash_tensor(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy()).hexdigest()


def _read(path: Path, count: int, width: int | None) -> tuple[Tensor, float] | None:
    """The entry, if it is there, whole, and what its name says."""
    if not path.is_file():
        return None
    try:
        entry = load(path)
        values = entry["features"]
        shape = (count, width or values.shape[-1])
        fits = values.dtype == torch.float32 and tuple(values.shape) == shape and bool(values.isfinite().all())
        if fits and entry["key"] == path.stem and entry["sha256"] == _hash_tensor(values):
            return values, float(entry["seconds"])
        reason = "it is not what its name says"
    except (CheckpointError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) or type(error).__name__
    logger.warning("%s is not used and made anew: %s", path, reason)
    return None
