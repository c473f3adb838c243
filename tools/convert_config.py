"""Turn a template .yml of the released BBDM program into a configuration of ours. Nothing in the file is executed."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_config",
        description="Write a template .yml of the released BBDM program as a configuration of this one. Nothing in it is run.",
        epilog="example:\n  python -m tools.convert_config Template-LBBDM-f4.yaml configs/my_f4.yml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FILE", type=Path, help="the template")
    parser.add_argument("target", metavar="NEW_FILE", type=Path, help="the .yml to write")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import yaml

from configs import load_cfg
from configs.defaults import KEYS
from utils.cli import run
from utils.errors import UsageError, shorten
from utils.files import replacing
from utils.reading import CONFIG_LIMIT, parse_yaml, read_text

RENAMED = {
    "training.n_epochs": "SOLVER.MAX_EPOCHS",
    "training.accumulate_grad_batches": "BBDM.ACCUMULATION",
    "training.save_interval": "SOLVER.CHECKPOINT_PERIOD",
    "training.validation_interval": "SOLVER.EVAL_PERIOD",
    "testing.clip_denoised": "BBDM.CLIP",
    "testing.sample_num": "BBDM.SAMPLE_NUM",
    "data.dataset_config.dataset_path": "BBDM.PAIRS_DIR",
    "data.dataset_config.flip": "BBDM.FLIP",
    "data.train.batch_size": "SOLVER.IMS_PER_BATCH",
    "model.model_load_path": "BBDM.PRETRAINED",
    "model.latent_before_quant_conv": "BBDM.LATENT_BEFORE_QUANT_CONV",
    "model.normalize_latent": "BBDM.NORMALISE_LATENTS",
    "model.EMA.ema_decay": "BBDM.EMA_DECAY",
    "model.EMA.update_ema_interval": "BBDM.EMA_PERIOD",
    "model.EMA.start_ema_step": "BBDM.EMA_START",
    "model.VQGAN.params.ckpt_path": "BBDM.FIRST_STAGE",
    "model.VQGAN.params.embed_dim": "BBDM.FIRST_STAGE_CODE_WIDTH",
    "model.VQGAN.params.n_embed": "BBDM.FIRST_STAGE_CODES",
    "model.VQGAN.params.ddconfig.ch": "BBDM.FIRST_STAGE_WIDTH",
    "model.VQGAN.params.ddconfig.ch_mult": "BBDM.FIRST_STAGE_MULTIPLIERS",
    "model.VQGAN.params.ddconfig.num_res_blocks": "BBDM.FIRST_STAGE_BLOCKS",
    "model.BB.optimizer.lr": "SOLVER.BASE_LR",
    "model.BB.lr_scheduler.factor": "BBDM.PLATEAU_FACTOR",
    "model.BB.lr_scheduler.patience": "BBDM.PLATEAU_PATIENCE",
    "model.BB.lr_scheduler.cooldown": "BBDM.PLATEAU_COOLDOWN",
    "model.BB.lr_scheduler.threshold": "BBDM.PLATEAU_THRESHOLD",
    "model.BB.lr_scheduler.min_lr": "BBDM.PLATEAU_MIN_LR",
    "model.BB.params.mt_type": "BBDM.SCHEDULE",
    "model.BB.params.objective": "BBDM.OBJECTIVE",
    "model.BB.params.loss_type": "BBDM.LOSS",
    "model.BB.params.num_timesteps": "BBDM.NUM_TIMESTEPS",
    "model.BB.params.eta": "BBDM.ETA",
    "model.BB.params.max_var": "BBDM.MAX_VARIANCE",
    "model.BB.params.UNetParams.model_channels": "BBDM.WIDTH",
    "model.BB.params.UNetParams.num_res_blocks": "BBDM.BLOCKS",
    "model.BB.params.UNetParams.attention_resolutions": "BBDM.ATTENTION_FACTORS",
    "model.BB.params.UNetParams.channel_mult": "BBDM.MULTIPLIERS",
    "model.BB.params.UNetParams.num_head_channels": "BBDM.HEAD_WIDTH",
}
"""Their key -> ours, of the same value."""

FIXED = {
    "runner": "BBDMRunner",
    "data.dataset_type": "custom_aligned",
    "data.dataset_config.channels": 3,
    "data.dataset_config.to_normal": True,
    "model.EMA.use_ema": True,
    "model.BB.optimizer.optimizer": "Adam",
    "model.BB.optimizer.weight_decay": 0,
    "model.BB.optimizer.beta1": 0.9,
    "model.VQGAN.params.ddconfig.double_z": False,
    "model.VQGAN.params.ddconfig.resolution": 256,
    "model.VQGAN.params.ddconfig.in_channels": 3,
    "model.VQGAN.params.ddconfig.out_ch": 3,
    "model.VQGAN.params.ddconfig.dropout": 0,
    "model.CondStageParams.in_channels": 3,
    "model.BB.params.UNetParams.conv_resample": True,
    "model.BB.params.UNetParams.dims": 2,
    "model.BB.params.UNetParams.use_scale_shift_norm": True,
    "model.BB.params.UNetParams.resblock_updown": True,
    "model.BB.params.UNetParams.use_spatial_transformer": False,
    "model.BB.params.UNetParams.context_dim": None,
}
"""Their key -> the one value that our bridge has built in."""

IDLE = (
    *("training.n_steps", "training.sample_interval", "model.model_name", "model.only_load_latent_mean_std"),
    *("data.dataset_name", "data.train.shuffle", "data.val.batch_size", "data.val.shuffle", "data.test.batch_size"),
    *("model.VQGAN.params.lossconfig.target", "model.BB.params.UNetParams.image_size", "model.BB.params.UNetParams.num_heads"),
)
"""Keys that decide nothing here: names, periods and the objective of the first stage, sizes that follow from others."""

DERIVED = (
    *("data.dataset_config.image_size", "model.model_type", "model.CondStageParams.n_stages"),
    *("model.CondStageParams.out_channels", "model.VQGAN.params.ddconfig.z_channels"),
    "model.VQGAN.params.ddconfig.attn_resolutions",
    *("model.BB.params.skip_sample", "model.BB.params.sample_type", "model.BB.params.sample_step"),
    *(f"model.BB.params.UNetParams.{name}" for name in ("in_channels", "out_channels", "condition_key")),
)
"""Keys that `_translate_model` reads."""

CONDITIONS = {"nocond": "none", "SpatialRescaler": "rescaler", "first_stage": "first_stage"}
"""Their condition_key -> ours of the latent model; the pixel model is shown y by any but nocond."""


def _read_tuple(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def read_template(path: Path) -> dict[str, Any]:
    """The values of a template by their dotted keys.

    Raises:
        UsageError: no such file, no YAML, a tag other than `!!python/tuple`, or no mapping.
    """
    loader = type("TemplateLoader", (yaml.SafeLoader,), {})  # plain YAML; every other tag of Python stays an error
    loader.add_constructor("tag:yaml.org,2002:python/tuple", _read_tuple)
    try:
        content, _ = parse_yaml(read_text(path, limit=4 * CONFIG_LIMIT), loader)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a template .yml of BBDM") from error
    except ValueError as error:
        raise UsageError(f"{path} is no template of plain values and tuples: {shorten(str(error), 200)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no template of BBDM; it should hold training, data and model")
    return dict(_leaves(content))


def _leaves(content: dict, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def translate_template(theirs: dict[str, Any]) -> dict[str, Any]:
    """The values of a template under our keys.

    Raises:
        UsageError: a key or value that has no counterpart here; the sentence wants the file's name before it.
    """
    unknown = sorted(theirs.keys() - {*RENAMED, *FIXED, *IDLE, *DERIVED})
    if unknown:
        raise UsageError(f"names {unknown[0]}, which has no counterpart here; take it out")
    for key, value in FIXED.items():
        if theirs.get(key, value) != value:
            raise UsageError(f"sets {key} to {theirs[key]}; here it can only be {value}")
    ours = {RENAMED[key]: value for key, value in theirs.items() if key in RENAMED}
    return {**ours, "SOLVER.AMP": "off", **_translate_model(theirs)}


def _translate_model(theirs: dict[str, Any]) -> dict[str, Any]:
    """Space, condition, picture, steps and the first stage's attention, checked against the sizes that follow from them."""
    network, stage = "model.BB.params.UNetParams.", "model.VQGAN.params."
    latent = _choose(theirs, "model.model_type", {"BBDM": False, "LBBDM": True})
    condition = _choose(theirs, f"{network}condition_key", CONDITIONS)
    if not latent:
        condition = "none" if condition == "none" else "y"
    channels = theirs.get(f"{stage}embed_dim") if latent else 3
    levels = theirs.get(f"{stage}ddconfig.ch_mult", [])
    wanted = {
        f"{network}in_channels": channels if condition == "none" else 2 * (channels or 0),
        f"{network}out_channels": channels,
        f"{stage}ddconfig.z_channels": theirs.get(f"{stage}embed_dim"),
    }
    if condition == "rescaler":
        wanted |= {"model.CondStageParams.n_stages": len(levels) - 1, "model.CondStageParams.out_channels": channels}
    for key, value in wanted.items():
        if theirs.get(key, value) != value:
            raise UsageError(f"sets {key} to {theirs[key]}, which does not fit its other sizes: they make it {value}")
    side = theirs.get("data.dataset_config.image_size", 256)
    attention = theirs.get(f"{stage}ddconfig.attn_resolutions") or [0]
    return {
        "BBDM.PAIRS": "registered",
        "BBDM.SPACE": "latent" if latent else "pixel",
        "BBDM.CONDITION": condition,
        "BBDM.IMAGE_SIZE": [side, side],
        "BBDM.SAMPLE_STEP": _steps(theirs),
        **({"BBDM.FIRST_STAGE_ATTENTION": attention} if latent else {}),
    }


def _choose(theirs: dict[str, Any], key: str, meanings: dict[str, Any]) -> Any:
    if theirs.get(key) not in meanings:
        raise UsageError(f"sets {key} to {theirs.get(key)}; here it is one of {', '.join(meanings)}")
    return meanings[theirs[key]]


def _steps(theirs: dict[str, Any]) -> int:
    """Network calls of a sample, 0 for all time steps."""
    if not theirs.get("model.BB.params.skip_sample", False):
        return 0
    if theirs.get("model.BB.params.sample_type", "linear") != "linear":
        raise UsageError("sets model.BB.params.sample_type to cosine, whose steps are fractions and never ran; take linear")
    return theirs.get("model.BB.params.sample_step", 200)


def write_config(source: Path, target: Path) -> int:
    """Write the template `source` as our configuration `target`, which is read once to check it; returns how many keys it sets.

    Raises:
        UsageError: `source` cannot be read or says what cannot be said here.
    """
    try:
        ours = translate_template(read_template(source))
    except UsageError as error:
        raise UsageError(str(error) if str(source) in str(error) else f"{source} {error}") from error
    sections: dict[str, dict[str, Any]] = {}
    for name, value in sorted(ours.items(), key=lambda item: list(KEYS).index(item[0])):
        section, _, key = name.rpartition(".")
        sections.setdefault(section, {})[key] = value
    with replacing(target) as temporary:
        told = f"# From {source.name}, a template of BBDM.\n"
        temporary.write_text(told + yaml.safe_dump(sections, sort_keys=False, default_flow_style=None), encoding="utf-8")
        try:
            load_cfg(temporary)
        except UsageError as error:
            raise UsageError(str(error).replace(str(temporary), str(source))) from error
    return len(ours)


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and convert."""
    args = build_parser().parse_args(arguments)
    count = write_config(args.source, args.target)
    print(f"{args.target}: {count} keys; set BBDM.PAIRS_DIR and OUTPUT_DIR to your own")


if __name__ == "__main__":
    run(main)
