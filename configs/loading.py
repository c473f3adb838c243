"""Reading a configuration: file, then command line, then checks; the result is frozen."""

import ast
import difflib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.defaults import CHOICES, FLAGS, RANGES, UNUSED, default_cfg
from utils.errors import UsageError

logger = logging.getLogger(__name__)

BASE_KEY = "_BASE_"
"""A .yml may name another one (relative to itself) whose settings it starts from."""

TRUE_WORDS = ("yes", "on", "true", "1")
FALSE_WORDS = ("no", "off", "false", "0")


def load_cfg(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Build the configuration of a run.

    Args:
        config_file: a .yml; every key that it does not name keeps its default.
        overrides: KEY VALUE KEY VALUE ..., as on the command line; stronger than the file.

    Returns:
        A frozen node with every key of `configs.defaults`, each of its default's type.

    Raises:
        UsageError: unknown key, value of another type or range, unreadable file.
    """
    cfg = default_cfg()
    named: set[str] = set()
    settings = list(_read_file(Path(config_file))) if config_file else []
    for source, key, value in [*settings, *_read_overrides(overrides)]:
        _set(cfg, key, value, source)
        named.add(key)
    _check(cfg)
    _report(cfg, named, config_file)
    cfg.freeze()
    return cfg


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    """Yield (source, dotted key, value) of a .yml, its base first."""
    if path.resolve() in seen:
        raise UsageError(f"{path}: {BASE_KEY} leads back to a file that it came from; break the circle")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}; give an existing .yml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no settings; it must map sections such as MODEL to keys")
    base = content.pop(BASE_KEY, None)
    if base is not None:
        yield from _read_file(path.parent / str(base), (*seen, path.resolve()))
    for key, value in _flatten(content):
        yield str(path), key, value


def _flatten(content: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _read_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    if len(overrides) % 2:
        raise UsageError(
            f"settings on the command line come as KEY VALUE pairs; the last of {' '.join(overrides)} stands alone"
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        yield "command line", key, value


def _set(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    *sections, name = key.split(".")
    node: Any = cfg
    for section in sections:
        node = node.get(section) if isinstance(node, CfgNode) else None
    if value is None and isinstance(node, CfgNode) and isinstance(node.get(name), CfgNode):
        return  # a section whose keys are all commented out
    if not isinstance(node, CfgNode) or name not in node or isinstance(node[name], CfgNode):
        raise UsageError(f"{source}: there is no key {key}; {_nearest(key)}")
    try:
        node[name] = _convert(key, value, node[name])
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:
        raise UsageError(f"{source}: {key} cannot be {value!r}; it takes {_expected(key, node[name])}") from error


def known_keys(cfg: CfgNode | None = None, prefix: str = "") -> list[str]:
    """All dotted keys of the schema (or of `cfg`)."""
    keys: list[str] = []
    for name, value in (default_cfg() if cfg is None else cfg).items():
        keys += known_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [f"{prefix}{name}"]
    return keys


def _nearest(key: str) -> str:
    keys = known_keys()
    upper = key.upper()
    # A right name in a wrong section is nearer than a wrong name in the right one.
    same_name = [known for known in keys if known.rpartition(".")[2] == upper.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(upper, keys, n=1, cutoff=0.0)
    return f"the nearest is {near[0]}"


def _convert(key: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`; released spellings are read as what they mean."""
    if isinstance(value, str) and value[:1] in ("(", "["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if not isinstance(default, str):  # a word may begin so
                raise
    if isinstance(value, tuple | list) and len(value) == 1 and not isinstance(default, list):
        value = value[0]
    if key == "MODEL.PRETRAIN_CHOICE" and str(value).lower() in (*FALSE_WORDS, "none", ""):
        return "none"
    if key in FLAGS:
        on, off = FLAGS[key]
        return on if _truth(value) else off
    if isinstance(default, bool):
        return _truth(value)
    if isinstance(default, list):
        if not isinstance(value, tuple | list) or not value:
            raise ValueError("not a list")
        return [_convert(key, item, default[0]) for item in value] if default else list(value)
    if isinstance(default, int):
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError("not a whole number")
        return int(number)
    if isinstance(default, float):
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise ValueError("not a number")
        return float(value)
    if isinstance(value, tuple | list | dict):
        raise ValueError("not a word")
    return "" if value is None and default == "" else str(value)


def _truth(value: Any) -> bool:
    word = str(value).lower()
    if word not in TRUE_WORDS + FALSE_WORDS:
        raise ValueError("neither yes nor no")
    return word in TRUE_WORDS


def _expected(key: str, default: Any) -> str:
    if key in FLAGS:
        return f"{FLAGS[key][0]!r} or {FLAGS[key][1]!r}"
    if isinstance(default, list):
        return f"a list such as {list(default)}"
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
    return kinds[type(default)]


def _check(cfg: CfgNode) -> None:
    for key, choices in CHOICES.items():
        value = get_value(cfg, key)
        if value not in choices:
            raise UsageError(f"{key} cannot be {value!r}; it is one of {', '.join(choices)}")
    _check_lists(cfg)
    _check_ranges(cfg)
    batch, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if cfg.DATALOADER.SAMPLER == "softmax_triplet" and batch % instances:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {batch} is not a multiple of DATALOADER.NUM_INSTANCE {instances}; "
            "a batch holds that many images of each of its identities"
        )


def _check_lists(cfg: CfgNode) -> None:
    lengths = {
        "INPUT.SIZE_TRAIN": 2,
        "INPUT.SIZE_TEST": 2,
        "INPUT.PIXEL_MEAN": 3,
        "INPUT.PIXEL_STD": 3,
        "MODEL.STRIDE_SIZE": 2,
    }
    for key, length in lengths.items():
        value = get_value(cfg, key)
        if len(value) != length:
            raise UsageError(f"{key} has {len(value)} numbers; it takes {length}")
        if key != "INPUT.PIXEL_MEAN" and min(value) <= 0:
            raise UsageError(f"{key} is {list(value)}; its numbers are above 0")


def _check_ranges(cfg: CfgNode) -> None:
    """Bounds of single numbers, both ends included."""
    for key, (low, high) in RANGES.items():
        value = get_value(cfg, key)
        if not low <= value <= high:  # also false for NaN
            limit = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            raise UsageError(f"{key} is {value}; it must be {limit}")
    if cfg.INPUT.SAR_LOW_PERCENT >= cfg.INPUT.SAR_HIGH_PERCENT:
        raise UsageError("INPUT.SAR_LOW_PERCENT must be below INPUT.SAR_HIGH_PERCENT")


def get_value(cfg: CfgNode, key: str) -> Any:
    """The value at a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def _report(cfg: CfgNode, named: set[str], config_file: str | Path | None) -> None:
    idle = sorted(named & UNUSED.keys())
    if idle:
        reasons = "; ".join(f"{key} ({UNUSED[key]})" for key in idle)
        logger.warning("keys that are read and have no effect: %s", reasons)
    names_model = any(key.startswith("MODEL.") for key in named)
    if config_file and names_model and not named & {"MODEL.MODALITY_LOSS_WEIGHT", "INPUT.SAR_DENOISE"}:
        loss = "" if cfg.MODEL.PAIR else f"the alignment loss (weight {cfg.MODEL.MODALITY_LOSS_WEIGHT:g}) and "
        logger.info(
            "%s names neither MODEL.MODALITY_LOSS_WEIGHT nor INPUT.SAR_DENOISE: it runs as MOS, with %s%s denoising; "
            "TransOSS's own settings are 0 and 'max'",
            config_file,
            loss,
            cfg.INPUT.SAR_DENOISE,
        )
