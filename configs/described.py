"""The configuration of a command that uses weights: what their file says of itself stands in for a .yml, or checks it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from configs.defaults import KEYS
from configs.loading import get_value, load_cfg
from configs.schema import Key
from utils.checkpoint import description_of, load
from utils.errors import UsageError
from utils.reading import parse_yaml

logger = logging.getLogger(__name__)

DECIDED = {
    "TEST.WEIGHT": (
        *("MODEL.NAME", "MODEL.TRANSFORMER_TYPE", "MODEL.MIE", "MODEL.MIE_COE", "MODEL.SSE", "MODEL.NECK"),
        *("MODEL.LAST_STRIDE", "MODEL.DISENTANGLE"),
    ),
    "BBDM.WEIGHT": (
        *("BBDM.SPACE", "BBDM.CONDITION", "BBDM.OBJECTIVE", "BBDM.SCHEDULE", "BBDM.NUM_TIMESTEPS", "BBDM.MAX_VARIANCE"),
        *("BBDM.WIDTH", "BBDM.MULTIPLIERS", "BBDM.BLOCKS", "BBDM.ATTENTION_FACTORS", "BBDM.HEAD_WIDTH"),
        "BBDM.LATENT_BEFORE_QUANT_CONV",
    ),
}
"""Key of a weights file -> keys that its training has decided: another value makes another network, and is refused."""

TOLD = {
    "TEST.WEIGHT": (
        *("MODEL.STRIDE_SIZE", "MODEL.ABLATION_MODE", "INPUT.SIZE_TEST", "INPUT.SAR_DENOISE", "INPUT.SAR_LOW_PERCENT"),
        *("INPUT.SAR_HIGH_PERCENT", "INPUT.SAR_BAND", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD", "TEST.NECK_FEAT"),
        "TEST.FEAT_NORM",
    ),
    "BBDM.WEIGHT": (
        "BBDM.IMAGE_SIZE",
        "BBDM.GREY",
        "BBDM.NORMALISE_LATENTS",
        "INPUT.SAR_DENOISE",
        "INPUT.SAR_LOW_PERCENT",
        "INPUT.SAR_HIGH_PERCENT",
    ),
}
"""Likewise keys that may differ on purpose: where they do, it is said."""

OF_THE_RUN = (
    *("MODEL.DEVICE", "MODEL.DEVICE_ID", "MODEL.PRETRAIN_PATH", "OUTPUT_DIR", "SOLVER.RESUME"),
    *("TEST.WEIGHT", "TEST.FEATURE_STORE", "BBDM.WEIGHT", "BBDM.PRETRAINED"),
)
"""Keys that say where a training ran, not what it made."""


def load_described(config_file: str | None, overrides: Sequence[str], key: str) -> tuple[CfgNode, Mapping[str, Any]]:
    """The configuration of a command, and what the weights file of `key` says of itself; nothing if there is none.

    Without a .yml, the settings by which the weights were made stand below `overrides`, and results go beside the weights.

    Args:
        config_file, overrides: as for `load_cfg`.
        key: of the weights file, one of `DECIDED`.

    Raises:
        UsageError: a setting contradicts the weights; otherwise see `load_cfg`.
        CheckpointError: see `utils.checkpoint.load`.
    """
    cfg = load_cfg(config_file, overrides)
    path = get_value(cfg, key)
    description = description_of(load(path)) if path else {}
    own = settings_of(description)
    if not own:
        if key == "TEST.WEIGHT" and path and cfg.MODEL.NAME == "transformer" and cfg.MODEL.TRANSFORMER_TYPE == "None":
            raise UsageError(
                f"{path} does not say what it is, and nothing else does: name a --config_file with MODEL.TRANSFORMER_TYPE and "
                f"the like; python -m tools.inspect_weights {path} prints the lines"
            )
        return cfg, description
    if not config_file:
        base = {name: value for name, value in own.items() if name not in OF_THE_RUN}
        if key == "TEST.WEIGHT":
            base["OUTPUT_DIR"] = str(Path(path).parent)
        cfg = load_cfg(None, overrides, base=[(str(path), name, value) for name, value in base.items()])
    for name, value in _differing(cfg, own, DECIDED[key]):
        raise UsageError(
            f"{name} is {value}, and {path} was made with {own[name]}: leave {name} out, or take the weights that belong to it"
        )
    for name, value in _differing(cfg, own, TOLD[key]):
        logger.warning("%s is %s; %s was made with %s", name, value, path, own[name])
    return cfg, description


def _differing(cfg: CfgNode, own: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, Any]]:
    values = [(name, get_value(cfg, name)) for name in names]
    return [(name, value) for name, value in values if value != own[name]]


def settings_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of the configuration -> its value in the training that a weights file tells of; empty if it tells of none.

    A key that is younger than the file, or has a value there that it does not take, has its default; one that is gone is passed
    over.
    """
    try:
        content = parse_yaml(str(description.get("config", "")))[0]
    except ValueError:
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("MODEL"), dict):
        return {}
    flat: dict[str, Any] = {}
    for section, value in content.items():
        flat |= {f"{section}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {section: value}
    return {name: _converted(key, flat.get(name, key.default)) for name, key in KEYS.items()}


def _converted(key: Key, value: Any) -> Any:
    try:
        return key.convert(value)
    except ValueError:
        return key.default
