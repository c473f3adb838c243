"""Going on from a last.pth, if it is of this training: of the same data, and of settings that can be meant to change."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datasets.records import Chip
from processor.standing import Standing
from processor.task import Task, TrainingPlan
from utils import distributed
from utils.checkpoint import load
from utils.errors import CheckpointError, UsageError, some
from utils.reading import parse_yaml
from utils.sharding import load_whole

logger = logging.getLogger(__name__)

MAY_DIFFER = {
    *("SOLVER.MAX_EPOCHS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.EVAL_PERIOD", "SOLVER.LOG_PERIOD", "SOLVER.SAVE_MINUTES"),
    *("SOLVER.RESUME", "SOLVER.RESUME_ALLOW", "SOLVER.TRACKERS", "SOLVER.IMS_PER_PASS"),
    *("SOLVER.AMP", "SOLVER.COMPILE", "SOLVER.DETERMINISTIC", "MODEL.DEVICE", "MODEL.DEVICE_ID"),
    *("MODEL.PRETRAIN_CHOICE", "MODEL.PRETRAIN_PATH", "MODEL.PRETRAIN_PARTIAL", "INPUT.SIZE_TEST"),
    *("DATALOADER.NUM_WORKERS", "DATASETS.ROOT_DIR", "DATASETS.QUERY_ADD_DIR", "DATASETS.GALLERY_ADD_DIR", "OUTPUT_DIR"),
    *("BBDM.PAIRS_DIR", "BBDM.WEIGHT", "BBDM.PRETRAINED", "BBDM.FIRST_STAGE", "BBDM.ACTIVATION_CHECKPOINTS"),
    *("SOLVER.SHARD", "SOLVER.ACTIVATION_CHECKPOINTS"),
    *("BBDM.GRID_PERIOD", "BBDM.SPLITS", "BBDM.SAMPLER", "BBDM.ETA"),
}
"""Keys that say how long, where or on what a training runs, or that it no longer asks: told where they differ. Any other key
says what is learned, and is refused, so that one that is added later cannot be forgotten."""

MAY_DIFFER_FROM = ("TEST.", "BBDM.SAMPLE")
"""Starts of more such keys."""

DATA = "data"
"""Name, beside those of keys, of the training images."""

HEAD = 2**16
"""Bytes of a file that `describe_chips` reads."""

SLICE = 256
"""Files that one of its threads reads at a time."""


def describe_chips(chips: Sequence[Chip]) -> dict[str, Any]:
    """What tells one training set from another: number of files, and SHA-256 of names, ships, sizes and first `HEAD` bytes.

    The folder does not count, so that a data set may move. Every process gets what rank 0 read.
    """

    total = hashlib.sha256()
    if distributed.is_main():
        slices = [chips[start : start + SLICE] for start in range(0, len(chips), SLICE)]
        with ThreadPoolExecutor(8) as pool:
            for digests in pool.map(lambda part: b"".join(map(_describe, part)), slices):
                total.update(digests)
    return {"files": len(chips), "sha256": distributed.broadcast(total.hexdigest())}


def _describe(chip: Chip) -> bytes:
    """What a chip adds to the digest of its data set."""
    told = f"{chip.path.name} {chip.ship} {int(chip.modality)} ".encode("utf-8", "surrogateescape")
    try:
        with chip.path.open("rb", buffering=0) as file:
            return hashlib.sha256(told + b"%d " % os.fstat(file.fileno()).st_size + file.read(HEAD)).digest()
    except OSError:
        return told  # reading it says more, once it is its turn


def restore(task: Task, plan: TrainingPlan, path: str | Path) -> Standing:
    """Put a training where a last.pth was written; returns where it stands.

    Raises:
        CheckpointError: no such file, or not of this training.
        UsageError: it is of other settings or data.
    """
    state = load(path)
    if isinstance(state, Mapping):
        _refuse_other_run(state, plan, path)
    try:
        load_whole(distributed.unwrap(task.network), state["model"])
        for name, part in task.parts.items():
            load_whole(part, state[name])
        at = Standing.of_state(state, task)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"SOLVER.RESUME {path} does not fit this run: {reason}; resume with the config of the run that wrote it"
        ) from error
    logger.info("resumed from %s after %s", path, at)
    return at


def _refuse_other_run(state: Mapping[str, Any], plan: TrainingPlan, path: str | Path) -> None:
    """List what differs from the run of a last.pth, and refuse what cannot be meant."""
    differing = compare_settings(state.get("config"), plan.origin["config"])
    before, now = state.get(DATA), plan.origin.get(DATA)
    if before is not None and now is not None and dict(before) != now:
        differing[DATA] = f"{before['files']} training images, {before['sha256'][:8]}", f"{now['files']}, {now['sha256'][:8]}"
    told = {name: f"{name} {old} -> {new}" for name, (old, new) in differing.items()}
    refused = [name for name in told if not (name in MAY_DIFFER or name.startswith(MAY_DIFFER_FROM) or name in plan.allowed)]
    if refused:
        raise UsageError(
            f"SOLVER.RESUME {path} is of a run that differs: {some((told[name] for name in refused), 3)}; set it as it was, "
            f"or allow it by SOLVER.RESUME_ALLOW \"['{refused[0]}']\""
        )
    if told:
        logger.info("going on with other settings than before: %s", "; ".join(told.values()))


def compare_settings(before: Any, now: str) -> dict[str, tuple[str, str]]:
    """Keys of two configurations, as YAML, whose values differ -> both values; keys that one of them lacks do not count."""
    try:
        old, new = (_flatten(parse_yaml(text)[0]) for text in (before, now))
    except (ValueError, AttributeError, TypeError):
        return {}  # a state that was written without, or of no configuration
    return {key: (f"{old[key]!r}", f"{new[key]!r}") for key in sorted(old.keys() & new.keys()) if old[key] != new[key]}


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for section, node in content.items():
        keys |= {f"{section}.{key}": value for key, value in node.items()} if isinstance(node, Mapping) else {section: node}
    return keys
