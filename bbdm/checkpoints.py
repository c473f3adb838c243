"""Weights of bridges and first stages: our files, and those that BBDM and latent diffusion publish. No file runs code."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bbdm.latents import STATISTICS
from utils import checkpoint
from utils.archives import check_archive
from utils.errors import CheckpointError, some
from utils.reading import parse_yaml

logger = logging.getLogger(__name__)

HARMLESS_PACKAGES = ("pytorch_lightning.", "lightning.", "omegaconf.")
"""Published files keep objects of these beside their tensors. They are not needed: each becomes an empty `_Ignored`."""

NETWORK_PREFIX = "denoise_fn."
FIRST_STAGE_PREFIX = "vqgan."
RESCALER_PREFIX = "cond_stage_model.channel_mapper."
FIRST_STAGE_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")


class _Ignored(dict):
    """Stands for an object of a package that is not needed. It takes any state and keeps none."""

    def __init__(self, *_: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class BridgeFile:
    """What a file holds of a bridge. Tensors are the network's, under their published names (`input_blocks.*` ...).

    Attributes:
        path: of the file.
        weights: as trained; the averaged ones where the file holds no others.
        averages: their moving average; the weights as trained where the file holds none.
        batches: of the training that left them, where the file holds both sets and the count, else None.
    """

    path: Path
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    batches: int | None


def read_bridge(path: str | Path) -> BridgeFile:
    """The network of a bare state dict, of our `last.pth`, or of BBDM's files: `model` with `denoise_fn.*`, and `ema`.

    With it come the rescaler of its condition and the statistics of latents, where there are.

    Raises:
        CheckpointError: as `utils.checkpoint.load`; also a file without a bridge's network.
    """
    content = _load(path)
    weights = {**_network_of(_tensors_under(content, "model")), **_network_of(_tensors_under(content, "state_dict"))}
    weights = weights or _network_of(checkpoint.tensors_of(content))
    averages = _network_of(_tensors_under(content, "ema"))
    strangers = averages.keys() - weights.keys() if weights else set()
    if strangers:
        raise CheckpointError(
            f"{path}: its averaged weights do not belong to its network ({some(sorted(strangers))}); get the file again"
        )
    merged = {**weights, **averages}
    if not merged:
        raise CheckpointError(
            f"{path} holds no bridge network (input_blocks.*, or denoise_fn.* in BBDM's files); see BBDM.WEIGHT"
        )
    logger.info("%s: %d tensors of the network, %d of them averaged", path, len(merged), len(averages))
    batches = _batches_of(content) if weights and averages else None
    beside = {name: content[name] for name in STATISTICS if isinstance(content.get(name), Tensor)}
    return BridgeFile(Path(path), {**(weights or merged), **beside}, {**merged, **beside}, batches)


def read_first_stage(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a first stage under LDM's names (`encoder.*` ...), from an LDM file, a BBDM file (`vqgan.*`) or ours.

    Raises:
        CheckpointError: as `utils.checkpoint.load`; also a file without a first stage.
    """
    content = _load(path)
    places = (_tensors_under(content, "state_dict"), _tensors_under(content, "model"), checkpoint.tensors_of(content))
    for tensors in places:
        stage = _inside(tensors, FIRST_STAGE_PREFIX) or tensors
        weights = {name: tensor for name, tensor in stage.items() if name.startswith(FIRST_STAGE_PARTS)}
        if weights:
            left = len(stage) - len(weights)
            logger.info("%s: %d tensors of the first stage, %d others left out", path, len(weights), left)
            return weights
    raise CheckpointError(f"{path} holds no first stage (encoder.*, decoder.*, quantize.*); see BBDM.FIRST_STAGE")


def fill_network(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, keys: str) -> None:
    """Load `tensors` into `module`: all of its own, no others, each of its shape.

    Args:
        module: to fill.
        tensors: by name.
        path: where they are from, for the message.
        keys: the configuration keys that give the module's sizes, for the message.

    Raises:
        CheckpointError: lists what is missing, left over or of another shape.
    """
    own = module.state_dict()
    faults = {
        "missing": own.keys() - tensors.keys(),
        "unknown": tensors.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape},
    }
    told = [f"{len(names)} {fault} ({some(sorted(names))})" for fault, names in faults.items() if names]
    if told:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(told)}; see {keys}")
    module.load_state_dict(dict(tensors))


def _load(path: str | Path) -> Any:
    """Read a file; objects of `HARMLESS_PACKAGES` in it are emptied, any other is refused."""
    path = Path(path)
    try:
        if path.is_file():
            check_archive(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if path.is_file() else []
    except CheckpointError:
        raise
    except Exception:  # no archive of torch.save: `load` says so in its own words
        names = []
    ignored = [(_Ignored, name) for name in names if name.startswith(HARMLESS_PACKAGES)]
    if ignored:
        logger.info("%s: objects that are not needed were left out: %s", path, some(name for _, name in ignored))
    with torch.serialization.safe_globals(ignored):
        return checkpoint.load(path)


def _batches_of(content: Mapping[str, Any]) -> int | None:
    """The batches that a training had seen when it wrote `content`: BBDM's `step`, or our steps of the optimiser."""
    if isinstance(content.get("step"), int):
        return content["step"]
    try:
        return int(content["update"]["steps"]) * int(parse_yaml(content["config"])[0]["BBDM"]["ACCUMULATION"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _tensors_under(content: Any, key: str) -> dict[str, Tensor]:
    return checkpoint.tensors_of(content.get(key)) if isinstance(content, Mapping) else {}


def _inside(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _network_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors: those under `denoise_fn.` and its rescaler's, or all if they are a network's own names."""
    is_network = any(name.startswith("input_blocks.") for name in tensors)
    network = _inside(tensors, NETWORK_PREFIX) or (dict(tensors) if is_network else {})
    beside = {name: tensor for name, tensor in tensors.items() if name.startswith(RESCALER_PREFIX)}
    return {**network, **beside} if network else {}
