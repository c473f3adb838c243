"""Reading a configuration: file, then command line; each value is checked, and the result is frozen."""

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.defaults import KEYS, default_cfg
from utils.errors import LONGEST_NAME, UsageError, shorten, shown
from utils.reading import CONFIG_LIMIT, parse_yaml, read_text

logger = logging.getLogger(__name__)

SDF_NET = {"MODEL.MODALITY_LOSS_WEIGHT": 0.0, "INPUT.SAR_DENOISE": "max", "INPUT.COLOR_JITTER": 0.2}
"""What the released SDF-Net program does whatever its file says, since it knows no such keys."""

BASE_KEY = "_BASE_"
"""A .yml may name another one (relative to itself) whose settings it starts from."""

LONGEST_CHAIN = 20
"""Files that may start from one another."""


def load_cfg(
    config_file: str | Path | None = None, overrides: Sequence[str] = (), *, base: Sequence[tuple[str, str, Any]] = ()
) -> CfgNode:
    """Build the configuration of a run.

    Args:
        config_file: a .yml; every key that it does not name keeps its default.
        overrides: KEY VALUE KEY VALUE ..., as on the command line; stronger than the file.
        base: (source, dotted name, value), weaker than both.

    Returns:
        A frozen node with every key of `configs.defaults`, each of its default's type.

    Raises:
        UsageError: unknown key, value of another type or range, key that a file holds twice, unreadable file.
    """
    cfg = default_cfg()
    named: set[str] = set()
    settings = list(_read_file(Path(config_file))) if config_file else []
    settings += _settings_of_sdf_net(settings, config_file)
    for source, name, value in [*base, *settings, *_read_overrides(overrides)]:
        if name == "SOLVER.IMS_PER_BATCH" and value in ("auto", "Auto", "AUTO"):  # the batch as it is, in parts that fit
            name, value = "SOLVER.IMS_PER_PASS", -1
        _set(cfg, name, value, source)
        named.add(name)
    _check(cfg)
    _report(cfg, named - {name for _, name, _ in base}, config_file)
    cfg.freeze()
    return cfg


def _settings_of_sdf_net(
    settings: Sequence[tuple[str, str, Any]], config_file: str | Path | None
) -> list[tuple[str, str, Any]]:
    """What to add to the settings of a released SDF-Net file, which names a weight that no other released program has."""
    named = {name for _, name, _ in settings}
    if "MODEL.STRUCT_LOSS_WEIGHT" not in named or named & {"MODEL.MODALITY_LOSS_WEIGHT", "INPUT.SAR_DENOISE"}:
        return []
    added = {name: value for name, value in SDF_NET.items() if name not in named}
    logger.info(
        "%s names MODEL.STRUCT_LOSS_WEIGHT and neither MODEL.MODALITY_LOSS_WEIGHT nor INPUT.SAR_DENOISE: it runs as SDF-Net, "
        "with %s; MOS's own settings are 2.0 and 'percentile'",
        config_file,
        ", ".join(f"{name} {value}" for name, value in added.items()),
    )
    return [(str(config_file), name, value) for name, value in added.items()]


def get_value(cfg: CfgNode, name: str) -> Any:
    """The value of the key with that dotted name."""
    node: Any = cfg
    for part in name.split("."):
        node = node[part]
    return node


def _read_file(path: Path, seen: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    """Yield (source, dotted name, value) of a .yml, its base first."""
    content, place = _read_yaml(path), os.path.realpath(path)
    if place in seen:
        raise UsageError(f"{path}: {BASE_KEY} leads back to a file that it came from; break the circle")
    if len(seen) == LONGEST_CHAIN:
        raise UsageError(f"{path} is the base of {LONGEST_CHAIN} files, one of the other by {BASE_KEY}; join some of them")
    base = content.pop(BASE_KEY, None)
    if base is not None:
        yield from _read_file(path.parent / str(base), (*seen, place))
    for section, value in content.items():
        if not isinstance(value, dict):
            yield str(path), section, value
            continue
        for name, item in value.items():
            yield str(path), f"{section}.{name}", item


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content, document = parse_yaml(read_text(path, limit=4 * CONFIG_LIMIT))
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}; give an existing .yml") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    _refuse_twice(document, path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no settings; it must map sections such as MODEL to keys")
    keys = [*content, *(key for value in content.values() if isinstance(value, dict) for key in value)]
    if strangers := [key for key in keys if not isinstance(key, str)]:
        raise UsageError(f"{path} names a section or key {shown(strangers[0])}, which is no word; sections and keys are words")
    return content


def _refuse_twice(document: yaml.Node | None, path: Path) -> None:
    """Refuse a section or key that a file holds twice: YAML takes the last and drops the others without a word."""
    sections = document.value if isinstance(document, yaml.MappingNode) else []
    inner = [(f"{section.value}.", node.value) for section, node in sections if isinstance(node, yaml.MappingNode)]
    for prefix, entries in (("", sections), *inner):
        lines: dict[str, int] = {}
        for key, _ in entries:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise UsageError(f"{path}: {name} stands on line {lines[name]} and again on line {line}; keep one of them")
            lines[name] = line


def _read_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    if len(overrides) % 2:
        raise UsageError(
            f"settings on the command line come as KEY VALUE pairs; the last of {' '.join(overrides)} stands alone"
        )
    for name, value in zip(overrides[::2], overrides[1::2], strict=True):
        yield "command line", name, value


def _set(cfg: CfgNode, name: str, value: Any, source: str) -> None:
    if value is None and isinstance(cfg.get(name), CfgNode):
        return  # a section whose keys are all commented out
    if name not in KEYS:
        raise UsageError(f"{source}: there is no key {shorten(name, LONGEST_NAME)}; the nearest is {_nearest(name)}")
    key = KEYS[name]
    try:
        converted = key.convert(value)
    except ValueError as error:
        reason = f": {error}" if str(error) else ""
        raise UsageError(f"{source}: {name} cannot be {shown(value)}{reason}; it takes {key.takes}") from error
    section, _, last = name.rpartition(".")
    (cfg[section] if section else cfg)[last] = converted


def _nearest(name: str) -> str:
    upper = name.upper()[:LONGEST_NAME]
    # A right name in a wrong section is nearer than a wrong name in the right one.
    same = [known for known in KEYS if known.rpartition(".")[2] == upper.rpartition(".")[2]]
    return (same or difflib.get_close_matches(upper, KEYS, n=1, cutoff=0.0))[0]


def _check(cfg: CfgNode) -> None:
    """What values must be to each other; `Key.convert` has checked each alone."""
    if cfg.INPUT.SAR_LOW_PERCENT >= cfg.INPUT.SAR_HIGH_PERCENT:
        raise UsageError("INPUT.SAR_LOW_PERCENT must be below INPUT.SAR_HIGH_PERCENT")
    if cfg.SOLVER.CHECKPOINT_PERIOD == 0:
        raise UsageError("SOLVER.CHECKPOINT_PERIOD cannot be 0; it takes a number of epochs, or -1 for the best weights alone")
    batch, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if cfg.DATALOADER.SAMPLER == "softmax_triplet" and batch % instances:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {batch} is not a multiple of DATALOADER.NUM_INSTANCE {instances}; "
            "a batch holds that many images of each of its identities"
        )


def _report(cfg: CfgNode, named: set[str], config_file: str | Path | None) -> None:
    idle = [name for name in sorted(named & KEYS.keys()) if KEYS[name].unused]
    if 2 * len(named) > len(KEYS):  # the config.yml that a run leaves, which names all: what was set is what differs
        idle = [name for name in idle if get_value(cfg, name) != KEYS[name].default]
    if idle:
        logger.warning("keys that are read and have no effect: %s", "; ".join(f"{name} ({KEYS[name].unused})" for name in idle))
    if cfg.MODEL.DISENTANGLE and cfg.TEST.NECK_FEAT == "before":
        logger.warning(
            "TEST.NECK_FEAT is before; the released SDF-Net compares features after the neck whatever it says, "
            "so set it to after for its figures"
        )
    names_model = any(name.startswith("MODEL.") for name in named)
    if config_file and names_model and not named & {"MODEL.MODALITY_LOSS_WEIGHT", "INPUT.SAR_DENOISE"}:
        loss = "" if cfg.MODEL.PAIR else f"the alignment loss (weight {cfg.MODEL.MODALITY_LOSS_WEIGHT:g}) and "
        logger.info(
            "%s names neither MODEL.MODALITY_LOSS_WEIGHT nor INPUT.SAR_DENOISE: it runs as MOS, with %s%s denoising; "
            "TransOSS's own settings are 0 and 'max'",
            config_file,
            loss,
            cfg.INPUT.SAR_DENOISE,
        )
