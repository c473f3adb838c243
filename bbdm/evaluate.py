"""Compare generated with real SAR pictures: `python -m bbdm.evaluate --config_file FILE BBDM.WEIGHT FILE [KEY VALUE ...]`."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    return config_parser(
        "python -m bbdm.evaluate",
        "Compare generated with real SAR pictures of held-out pairs, beside two baselines. For ships, tools.evaluate_ships "
        "does the same in the feature space of a re-identification network.",
        "python -m bbdm.evaluate --weights logs/bbdm_qxs/bridge_100.pth OUTPUT_DIR out",
        weights="BBDM.WEIGHT",
    )


if __name__ == "__main__":
    answer_help(build_parser)

import numpy as np
import torch
from torch import Tensor

from bbdm import measures
from bbdm.data import build_bridge_pairs, build_validation_loader, to_picture
from bbdm.drawing import build_batch_size, build_sampling_model, draw
from bbdm.embedding import train_embedding
from bbdm.model import build_sampler_settings
from bbdm.quality import measure_quality, read_inception, read_lpips
from configs.command import open_command
from datasets.pairs import Pair, PairLists
from processor.ranking.intervals import MEASURE_METHOD, METHOD, Interval, mean_interval, measure_interval
from utils import checkpoint, cli
from utils.errors import DataError
from utils.files import write_json
from utils.log import progress, table

logger = logging.getLogger(__name__)

NEEDS = {"BBDM.WEIGHT": "the checkpoint of a bridge"}
"""Keys that a comparison cannot do without."""

LOWER_IS_BETTER = ("L1", "histogram", "contrast", "spectrum", "features", "rank", "Frechet", "LPIPS")
HIGHER_IS_BETTER = ("SSIM", "diversity", "deviation", "top1")
LOWEST = {"SSIM": -1.0, "rank": 1.0}
"""Least value of a measure, where that is not 0."""

Figures = dict[str, dict[str, Interval]]
"""Kind of pictures -> measure -> its mean over places and the 95 % interval of that."""


def compare(samples: Tensor, real: Tensor, places: Sequence[str], embed: Callable[[Tensor], Tensor]) -> dict[str, Interval]:
    """Every measure of samples against real SAR pictures of the same places.

    Args:
        samples: (N, K, H, W) grey in 0..1; a baseline has K = 1.
        real: (N, H, W).
        places: of each picture; pictures of a place are not independent, which makes intervals wider.
        embed: pictures (N, H, W) -> features (N, D).

    Returns:
        By name. L1 and SSIM are of the mean of the K samples, the others of single samples. `rank` is that of the nearest real
        picture of the right place when a sample is the query and all real ones are the gallery, `top1` how often it is 1.
    """
    count = samples.shape[1]
    singles, targets = samples.flatten(0, 1), real.repeat_interleave(count, dim=0)
    mean = samples.mean(dim=1)
    number = torch.tensor(np.unique(np.asarray(places), return_inverse=True)[1])
    features, real_features = embed(singles), embed(real)
    ranks = measures.match_ranks(features, real_features, number.repeat_interleave(count), number)
    single_values = {
        "histogram": measures.histogram_distance(singles, targets),
        "contrast": measures.contrast_distance(singles, targets),
        "spectrum": measures.spectrum_distance(singles, targets),
        "features": measures.feature_distance(features, real_features.repeat_interleave(count, dim=0)),
        "rank": ranks.float(),
        "top1": (ranks == 1).float(),
    }
    values = {"L1": measures.l1(mean, real), "SSIM": measures.ssim(mean, real)}
    values |= {name: value.view(-1, count).mean(dim=1) for name, value in single_values.items()}
    values["diversity"] = measures.diversity(samples)
    top1 = mean_interval(values.pop("top1"), number)
    return {
        **{name: measure_interval(value, number, lowest=LOWEST.get(name, 0.0)) for name, value in values.items()},
        "top1": top1,
    }


def verdict(figures: Figures) -> list[str]:
    """Sentences that say where the generated pictures do not beat both baselines."""
    lost = []
    for name in [name for name in (*LOWER_IS_BETTER, "SSIM", "top1") if name in figures["generated"]]:
        sign = 1 if name in LOWER_IS_BETTER else -1
        better = [
            base
            for base in figures
            if base != "generated" and sign * figures[base][name].mean <= sign * figures["generated"][name].mean
        ]
        if better:
            lost.append(f"{name}: generated pictures do not beat {' and '.join(better)}")
    return lost or ["generated pictures beat both baselines in every measure"]


def build_comparison(cfg, device: torch.device, *, embed: Callable[[Tensor], Tensor] | None = None) -> Figures:
    """Sample the held-out pairs of BBDM.PAIRS and compare: generated pictures and the two baselines.

    Args:
        cfg: the configuration.
        device: of the bridge.
        embed: SAR pictures (N, H, W) in 0..1 -> features (N, D); by default a small network trained contrastively on the SAR
            pictures of the training places.
    """
    settings = build_sampler_settings(cfg)
    pairs: PairLists = build_bridge_pairs(cfg)
    if not pairs.validation:
        raise DataError("no pair is held out; set BBDM.HOLD_OUT_EVERY as in training, or give val/ folders")
    model = build_sampling_model(cfg, device)
    held_out, train = (build_pictures(cfg, part) for part in (pairs.validation, pairs.train))
    count, batch_size = cfg.BBDM.SAMPLE_NUM, build_batch_size(cfg, device)
    jobs = [(pair.optical.path.name, k) for pair in pairs.validation for k in range(count)]
    drawn = draw(model, jobs, lambda job: held_out[job // count, 0], settings, seed=cfg.SOLVER.SEED, batch_size=batch_size)
    drawn = torch.stack(list(drawn)).unflatten(0, (-1, count))
    optical, real = measures.to_grey(held_out[:, 0]), measures.to_grey(held_out[:, 1])
    known = measures.to_grey(train[:, 1])
    embed = embed or train_embedding(known, seed=cfg.SOLVER.SEED)
    mean_picture = known.mean(dim=0).expand_as(real)
    methods = {"generated": measures.to_grey(drawn), "grey optical": optical[:, None], "mean SAR": mean_picture[:, None]}
    places = [pair.place for pair in pairs.validation]
    quality = build_quality(cfg, device, embed)
    saved = {
        name: _as_saved(pictures[:, :, None].mul(2).sub(1).expand(-1, -1, 3, -1, -1)) for name, pictures in methods.items()
    }
    saved["generated"], saved_real = _as_saved(drawn), _as_saved(held_out[:, 1])
    return {
        name: compare(pictures, real, places, embed) | quality(saved[name], saved_real, places)
        for name, pictures in methods.items()
    }


def build_quality(cfg, device: torch.device, embed: Callable[[Tensor], Tensor]) -> Callable[..., dict[str, Interval]]:
    """FID by BBDM.FID_WEIGHTS, or else a Frechet distance in the space of `embed`; LPIPS by BBDM.LPIPS_WEIGHTS, if any."""

    def own_features(pictures: Tensor) -> Tensor:
        return embed(pictures.float().mean(dim=1) / 255)

    fid, lpips = cfg.BBDM.FID_WEIGHTS, cfg.BBDM.LPIPS_WEIGHTS
    features = read_inception(fid, device) if fid else own_features
    return partial(measure_quality, features=features, perceive=read_lpips(lpips, device) if lpips else None)


def _as_saved(pictures: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> the same in uint8, as a file would hold it."""
    return torch.from_numpy(to_picture(pictures)).movedim(-1, -3)


def build_pictures(cfg, pairs: Sequence[Pair]) -> Tensor:
    """(N, 2, 3, H, W) in [-1, 1]: optical and SAR of each pair, cut at a place that only its index decides."""
    read = []
    with progress(len(pairs), "reading pairs", unit="pair") as bar:
        for batch in build_validation_loader(cfg, pairs, device_type="cpu"):
            read.append(torch.stack(batch.images.chunk(2), dim=1))
            bar.update(len(read[-1]))
    return torch.cat(read)


def build_report(cfg, figures: Figures, *, features: str) -> dict[str, Any]:
    """The content of evaluation.json: figures of `build_comparison`, verdict, and what they depend on.

    Args:
        cfg: the configuration.
        figures: by pictures, then measure.
        features: what the feature space is.
    """
    return {
        "weights": {"path": cfg.BBDM.WEIGHT, "sha256": checkpoint.sha256(cfg.BBDM.WEIGHT)},
        "sampler": asdict(build_sampler_settings(cfg)),
        "samples_per_image": cfg.BBDM.SAMPLE_NUM,
        "features": features,
        "networks": {
            "Frechet": f"FID, Inception v3 of {cfg.BBDM.FID_WEIGHTS}" if cfg.BBDM.FID_WEIGHTS else features,
            "LPIPS": cfg.BBDM.LPIPS_WEIGHTS or "none; BBDM.LPIPS_WEIGHTS names one",
        },
        "interval": f"95 %, over places: {MEASURE_METHOD}; of top1: {METHOD}",
        "figures": {name: {key: _ends(interval) for key, interval in values.items()} for name, values in figures.items()},
        "verdict": verdict(figures),
    }


def _ends(interval: Interval) -> dict[str, float | None]:
    """Mean and both ends; None for the end that pictures of a single place leave open."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high if np.isfinite(interval.high) else None}


def publish(report: Mapping[str, Any], folder: Path) -> None:
    """Log the table and verdict of a report, and write it to evaluation.json of `folder`."""

    def cell(figure: Mapping[str, float | None]) -> str:
        return f"{figure['mean']:.4f} ({figure['low']:.4f}-{'?' if figure['high'] is None else format(figure['high'], '.4f')})"

    figures = report["figures"]
    signs = {**dict.fromkeys(LOWER_IS_BETTER, "-"), **dict.fromkeys(HIGHER_IS_BETTER, "+")}
    known = {key: sign for key, sign in signs.items() if all(key in values for values in figures.values())}
    rows = [[f"{key} {sign}", *(cell(values[key]) for values in figures.values())] for key, sign in known.items()]
    networks = "; ".join(
        f"{name}: {network}" for name, network in {"features": report["features"], **report["networks"]}.items()
    )
    logger.info("%s\n(-: lower is better, +: higher; %s)", table(["", *figures], rows), networks)
    for sentence in report["verdict"]:
        logger.info("%s", sentence)
    write_json(folder / "evaluation.json", report)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and compare."""
    with open_command(build_parser(), arguments, needs=NEEDS, writes=True) as command:
        figures = build_comparison(command.cfg, command.device)
        space = "a small network trained contrastively on the SAR pictures of the training places"
        publish(build_report(command.cfg, figures, features=space), command.folder)


if __name__ == "__main__":
    cli.run(main)
