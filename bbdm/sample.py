"""Make pseudo-SAR pictures of optical test chips: `python -m bbdm.sample --config_file FILE BBDM.WEIGHT FILE [KEY VALUE]`."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    return config_parser(
        "python -m bbdm.sample",
        "Make K pseudo-SAR pictures of every optical test chip. A run that stopped goes on with what is missing.",
        "python -m bbdm.sample --weights logs/bbdm_hoss/bridge_250.pth DATASETS.ROOT_DIR data OUTPUT_DIR out",
        weights="BBDM.WEIGHT",
    )


if __name__ == "__main__":
    answer_help(build_parser)

import torch
from PIL import Image
from torch import Tensor

from bbdm.data import to_picture, to_tensor
from bbdm.drawing import build_batch_size, build_sampling_model, draw
from bbdm.model import SamplerSettings, build_condition, build_sampler_settings
from configs.command import open_command
from datasets.catalogue import read_hoss
from datasets.chips import read_header, read_optical
from datasets.generated import SamplingRun, is_written, open_store, sample_of, write_sample
from datasets.records import Chip, Modality, Split
from datasets.transforms import resize
from datasets.validation import build_validation_data
from utils import checkpoint, cli, distributed
from utils.device import Precision
from utils.errors import DataError, UsageError

logger = logging.getLogger(__name__)

VALIDATION = (Split.VALIDATION_QUERY, Split.VALIDATION_GALLERY)
"""Splits of DATASETS.VAL_FRACTION, cut from the training set by SOLVER.SEED."""

SPLITS = tuple(split for split in Split if split is not Split.TRAIN)

MODEL_KEYS = (
    *("SPACE", "OBJECTIVE", "SCHEDULE", "NUM_TIMESTEPS", "MAX_VARIANCE", "IMAGE_SIZE", "CLIP", "GREY"),
    *("WIDTH", "MULTIPLIERS", "BLOCKS", "ATTENTION_FACTORS", "HEAD_WIDTH"),
)
"""Keys of BBDM that decide a sample's pixels beside the sampler's own."""

LATENT_KEYS = ("NORMALISE_LATENTS", "LATENT_BEFORE_QUANT_CONV", "FIRST_STAGE_ATTENTION")
"""The same of the latent model."""

Job = tuple[Chip, int]
"""One sample to make: the optical chip, which knows its size, and k."""


def build_sources(cfg) -> list[Chip]:
    """The optical chips of BBDM.SPLITS with their sizes, each once; one that main split and subset hold is of the main one.

    Raises:
        DataError: there is none, or a chip cannot be read.
        UsageError: a validation split without DATASETS.VAL_FRACTION.
    """
    splits, images = cfg.BBDM.SPLITS, []
    if not set(splits).isdisjoint(VALIDATION):
        if not cfg.DATASETS.VAL_FRACTION:
            raise UsageError("BBDM.SPLITS names validation chips; set DATASETS.VAL_FRACTION and SOLVER.SEED as in the training")
        images += build_validation_data(cfg).images
    if not set(splits).issubset(VALIDATION):
        images += read_hoss(cfg.DATASETS.ROOT_DIR, train=False).images
    chips = [chip for chip in images if chip.modality is Modality.OPTICAL and chip.split in splits]
    if not chips:
        root = cfg.DATASETS.ROOT_DIR
        raise DataError(f"{root} holds no optical chip in {', '.join(splits)}; see DATASETS.ROOT_DIR and BBDM.SPLITS")
    return [replace(chip, size=read_header(chip.path)[0]) for chip in chips]


def build_run(cfg, settings: SamplerSettings, precision: Precision) -> SamplingRun:
    """What decides the pixels of the samples; of the checkpoints, their SHA-256."""
    model = {key: cfg.BBDM[key] for key in MODEL_KEYS}
    if cfg.BBDM.CONDITION != "auto":
        model["CONDITION"] = build_condition(cfg)
    if cfg.BBDM.SAVED_SIZE == "picture":
        model["SAVED_SIZE"] = list(cfg.BBDM.IMAGE_SIZE)[::-1]
    if cfg.BBDM.SPACE == "latent":
        model |= {key: cfg.BBDM[key] for key in LATENT_KEYS}
    if precision.dtype is not None:
        model["PRECISION"] = str(precision.dtype).removeprefix("torch.")
    if cfg.BBDM.SPACE == "latent" and cfg.BBDM.FIRST_STAGE:
        model["FIRST_STAGE_SHA256"] = checkpoint.sha256(cfg.BBDM.FIRST_STAGE)
    return SamplingRun(
        samples_per_image=cfg.BBDM.SAMPLE_NUM,
        sampler=_name_sampler(settings),
        steps=settings.steps,
        eta=settings.eta,
        seed=cfg.SOLVER.SEED,
        weights_sha256=checkpoint.sha256(cfg.BBDM.WEIGHT),
        model=model,
    )


def _name_sampler(settings: SamplerSettings) -> str:
    if settings.name == "released":
        return "released (every step)" if settings.every_step else "released"
    return f"{settings.name} (order {settings.order})"


def open_shared_store(folder: Path, run: SamplingRun, sources: Sequence[Chip], config: str) -> list[Job]:
    """Open the store on rank 0 and tell every process what is still to be made."""
    jobs: list[Job] = []
    if distributed.is_main():
        open_store(folder, run, sources, config={"yaml": config})
        every = ((source, k) for source in sources for k in range(run.samples_per_image))
        jobs = [(source, k) for source, k in every if not is_written(sample_of(source, k, folder, run))]
    return distributed.broadcast(jobs)


def build_and_sample(cfg, device: torch.device, folder: Path) -> None:
    """Write the samples that `cfg` asks for into a folder; those that are there already stay."""
    unknown = [split for split in cfg.BBDM.SPLITS if split not in SPLITS]
    if unknown:
        raise UsageError(f"BBDM.SPLITS names {', '.join(unknown)}; splits are {', '.join(SPLITS)}")
    settings = build_sampler_settings(cfg)
    sources = build_sources(cfg)
    model = build_sampling_model(cfg, device)
    run = build_run(cfg, settings, model.precision)
    jobs = open_shared_store(folder, run, sources, cfg.dump())
    total = len(sources) * cfg.BBDM.SAMPLE_NUM
    logger.info("%d optical chips, %d samples, %d of them already in %s", len(sources), total, total - len(jobs), folder)
    names = list(dict.fromkeys(source.path.name for source, _ in jobs))  # all samples of a chip are of one process
    mine = set(names[distributed.rank() :: distributed.world_size()])
    own = [(source, k) for source, k in jobs if source.path.name in mine]

    @lru_cache(maxsize=1)  # the samples of a chip follow each other: it is opened once for all of them
    def read(path: Path) -> Tensor:
        picture = read_optical(path, max_pixels=cfg.INPUT.MAX_PIXELS)
        return to_tensor(resize(picture, tuple(cfg.BBDM.IMAGE_SIZE), Image.Resampling.BILINEAR))

    names = [(source.path.name, k) for source, k in own]
    drawing = {"seed": cfg.SOLVER.SEED, "batch_size": build_batch_size(cfg, device)}
    for (source, k), drawn in zip(
        own, draw(model, names, lambda job: read(own[job][0].path), settings, **drawing), strict=True
    ):
        sample = sample_of(source, k, folder, run)
        picture = resize(to_picture(drawn), (sample.saved or sample.size)[::-1], Image.Resampling.BICUBIC)
        write_sample(sample, picture)
    distributed.barrier()
    logger.info("all samples are in %s", folder)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and sample."""
    needs = {"BBDM.WEIGHT": "the checkpoint of a bridge, such as logs/bbdm_hoss/bridge_250.pth"}
    with open_command(build_parser(), arguments, needs=needs, writes=True) as command:
        build_and_sample(command.cfg, command.device, command.folder)


if __name__ == "__main__":
    cli.run(main, together=True)
