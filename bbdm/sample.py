"""Make pseudo-SAR pictures of optical test chips: `python -m bbdm.sample --config_file FILE BBDM.WEIGHT FILE [KEY VALUE]`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bbdm.data import layout_of, to_picture, to_tensor
from bbdm.model import BridgeModel, SamplerSettings, build_model, build_sampler_settings
from bbdm.noise import sample_seed, seeded_normal
from configs import load_cfg
from configs.command import config_parser
from datasets.chips import read_header, read_optical
from datasets.generated import SampleStore, SamplingRun, open_store
from datasets.hoss import read_hoss
from datasets.records import Chip, Modality, Split
from datasets.transforms import resize
from datasets.validation import build_validation_data
from utils import checkpoint, cli, distributed
from utils.device import Precision, build_device, find_precision
from utils.errors import CheckpointError, DataError, UsageError
from utils.log import make_output_dir, progress, setup_logging

logger = logging.getLogger(__name__)

VALIDATION = (Split.VALIDATION_QUERY, Split.VALIDATION_GALLERY)
"""Splits of DATASETS.VAL_FRACTION, cut from the training set by SOLVER.SEED."""

SPLITS = tuple(split for split in Split if split is not Split.TRAIN)

MODEL_KEYS = (
    *("SPACE", "OBJECTIVE", "SCHEDULE", "NUM_TIMESTEPS", "MAX_VARIANCE", "IMAGE_SIZE", "CLIP", "GREY"),
    *("WIDTH", "MULTIPLIERS", "BLOCKS", "ATTENTION_FACTORS", "HEAD_WIDTH"),
)
"""Keys of BBDM that decide a sample's pixels beside the sampler's own."""

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


def draw_samples(
    model: BridgeModel,
    jobs: Sequence[Job],
    settings: SamplerSettings,
    *,
    seed: int,
    size: Sequence[int],
    batch_size: int,
    device: torch.device,
    on_call: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Chip, int, NDArray[np.uint8]]]:
    """Draw the sample of each job; its noise follows from (seed, file name, k) alone.

    Args:
        model: on `device`, with the network to sample from, in eval mode.
        jobs: what to make.
        settings: the sampler.
        seed: the global seed.
        size: (rows, columns) of the network's pictures.
        batch_size: samples that go through the network together. The last batch is filled up, since the shape decides how sums
            are rounded, and so whether pictures come out the same to the bit.
        device: of the model.
        on_call: called after each call of the network.

    Yields:
        Source, k and the picture (height, width, 3) uint8 of the source's own size, in the order of `jobs`.

    Raises:
        DataError: a chip cannot be read.
        CheckpointError: the weights give numbers that are not finite.
    """
    for start in range(0, len(jobs), batch_size):
        own = jobs[start : start + batch_size]
        batch = [*own, *own[-1:] * (batch_size - len(own))]
        chips = [resize(read_optical(source.path), tuple(size), Image.Resampling.BILINEAR) for source, _ in batch]
        optical = to_tensor(np.stack(chips)).to(device, memory_format=layout_of(device))
        seeds = torch.tensor([sample_seed(seed, source.path.name, k) for source, k in batch], device=device)
        noise = _noise(seeds, model.state_shape(optical)[1:])
        drawn = model.sample(optical, settings, noise, on_call=on_call)
        if not drawn.isfinite().all():
            names = ", ".join(dict.fromkeys(source.path.name for source, _ in own))
            raise CheckpointError(
                f"BBDM.WEIGHT gives pictures that are not finite for {names}; set SOLVER.AMP off, or train again"
            )
        generated = to_picture(drawn)
        for (source, k), picture in zip(own, generated, strict=False):
            yield source, k, resize(picture, source.size[::-1], Image.Resampling.BICUBIC)


def _noise(seeds: torch.Tensor, shape: Sequence[int]) -> Callable[[int], torch.Tensor]:
    return lambda step: seeded_normal(seeds, step, shape)


def build_run(cfg, settings: SamplerSettings, precision: Precision) -> SamplingRun:
    """What decides the pixels of the samples; of the checkpoints, their SHA-256."""
    model = {key: cfg.BBDM[key] for key in MODEL_KEYS}
    if precision.dtype is not None:
        model["PRECISION"] = str(precision.dtype).removeprefix("torch.")
    if cfg.BBDM.SPACE == "latent" and cfg.BBDM.FIRST_STAGE:
        model["FIRST_STAGE_SHA256"] = checkpoint.sha256(cfg.BBDM.FIRST_STAGE)
    return SamplingRun(
        samples_per_image=cfg.BBDM.SAMPLE_NUM,
        sampler=settings.name if settings.name == "released" else f"{settings.name} (order {settings.order})",
        steps=settings.steps,
        eta=settings.eta,
        seed=cfg.SOLVER.SEED,
        weights_sha256=checkpoint.sha256(cfg.BBDM.WEIGHT),
        model=model,
    )


def open_shared_store(folder: Path, run: SamplingRun, sources: Sequence[Chip], config: str) -> tuple[SampleStore, list[Job]]:
    """Open the store on rank 0 and tell every process what is still to be made."""
    jobs: list[Job] = []
    if distributed.is_main():
        store = open_store(folder, run, sources, config={"yaml": config})
        every = ((source, k) for source in sources for k in range(run.samples_per_image))
        jobs = [(source, k) for source, k in every if not store.is_written(source, k)]
    return SampleStore(folder, run), distributed.broadcast(jobs)


def build_and_sample(cfg, device: torch.device) -> None:
    """Write the samples that `cfg` asks for into OUTPUT_DIR; those that are there already stay."""
    unknown = [split for split in cfg.BBDM.SPLITS if split not in SPLITS]
    if unknown:
        raise UsageError(f"BBDM.SPLITS names {', '.join(unknown)}; splits are {', '.join(SPLITS)}")
    if not cfg.BBDM.WEIGHT:
        raise UsageError("BBDM.WEIGHT is empty; name the checkpoint of a bridge, such as logs/bbdm_hoss/bridge_250.pth")
    settings = build_sampler_settings(cfg)
    sources = build_sources(cfg)
    # As the ReID test, sampling is in float32 unless the call asks for less: the first steps divide by small numbers.
    precision = find_precision("off" if cfg.SOLVER.AMP == "auto" else cfg.SOLVER.AMP, device)
    model = build_model(cfg, device, precision, weights=cfg.BBDM.WEIGHT)
    model.network.eval().requires_grad_(False)
    folder = make_output_dir(cfg.OUTPUT_DIR)
    store, jobs = open_shared_store(folder, build_run(cfg, settings, precision), sources, cfg.dump())
    total = len(sources) * cfg.BBDM.SAMPLE_NUM
    logger.info("%d optical chips, %d samples, %d of them already in %s", len(sources), total, total - len(jobs), folder)
    own = jobs[distributed.rank() :: distributed.world_size()]
    together = cfg.BBDM.SAMPLE_BATCH if device.type == "cuda" else 1  # a CPU gains nothing by more, and so no bit depends on it
    batches = -(-len(own) // together)
    with progress(batches * settings.steps, "sampling", unit="call") as bar:
        for source, k, picture in draw_samples(
            model,
            own,
            settings,
            seed=cfg.SOLVER.SEED,
            size=cfg.BBDM.IMAGE_SIZE,
            batch_size=together,
            device=device,
            on_call=bar.update,
        ):
            store.write(source, k, picture)
    distributed.barrier()
    logger.info("all samples are in %s", folder)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and sample."""
    parser = config_parser(
        "python -m bbdm.sample",
        "Make K pseudo-SAR pictures of every optical test chip. A run that stopped goes on with what is missing.",
        "python -m bbdm.sample --config_file configs/bbdm_hoss.yml BBDM.WEIGHT logs/bbdm_hoss/bridge_250.pth OUTPUT_DIR out",
    )
    options = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(options.config_file, options.overrides)
    device = build_device(cfg)
    with distributed.process_group(device):
        build_and_sample(cfg, device)


if __name__ == "__main__":
    cli.run(main, together=True)
