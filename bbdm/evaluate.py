"""Compare generated with real SAR pictures: `python -m bbdm.evaluate --config_file FILE BBDM.WEIGHT FILE [KEY VALUE ...]`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbdm import measures
from bbdm.data import build_pairs, build_validation_loader
from bbdm.embedding import train_embedding
from bbdm.model import BridgeModel, SamplerSettings, build_model, build_sampler_settings
from bbdm.noise import sample_seed, seeded_normal
from configs import load_cfg
from configs.command import config_parser
from datasets.pairs import Pair, PairLists
from utils import checkpoint, cli
from utils.device import build_device, build_precision
from utils.errors import DataError, UsageError
from utils.files import write_json
from utils.log import make_output_dir, progress, setup_logging, table

logger = logging.getLogger(__name__)

RESAMPLES = 2000

LOWER_IS_BETTER = ("L1", "histogram", "contrast", "spectrum", "features", "rank")
HIGHER_IS_BETTER = ("SSIM", "diversity", "top1")


@dataclass(frozen=True)
class Figure:
    """A measure's mean over places, and the range of its 95 % bootstrap over places.

    Attributes:
        mean: over pictures.
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float


def draw(
    model: BridgeModel,
    pictures: Sequence[Tensor],
    names: Sequence[str],
    settings: SamplerSettings,
    *,
    count: int,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Draw `count` samples of each optical picture (3, H, W) in [-1, 1]: (N, K, H, W) grey in 0..1, on the CPU."""
    jobs = [(index, k) for index in range(len(pictures)) for k in range(count)]
    samples = []
    with progress(-(-len(jobs) // batch_size) * settings.steps, "sampling", unit="call") as bar:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            optical = torch.stack([pictures[index] for index, _ in batch]).to(device)
            seeds = torch.tensor([sample_seed(seed, names[index], k) for index, k in batch], device=device)
            shape = model.state_shape(optical)[1:]
            noise = lambda step, seeds=seeds, shape=shape: seeded_normal(seeds, step, shape)  # noqa: E731
            samples.append(measures.to_grey(model.sample(optical, settings, noise, on_call=bar.update)).cpu())
    return torch.cat(samples).unflatten(0, (len(pictures), count))


def compare(
    samples: Tensor, real: Tensor, places: Sequence[str], embed: Callable[[Tensor], Tensor], *, resamples: int = RESAMPLES
) -> dict[str, Figure]:
    """Every measure of samples against real SAR pictures of the same places.

    Args:
        samples: (N, K, H, W) grey in 0..1; a baseline has K = 1.
        real: (N, H, W).
        places: of each picture; intervals come from resampling places.
        embed: pictures (N, H, W) -> features (N, D).
        resamples: of the bootstrap.

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
    return {name: bootstrap(value.numpy(), number.numpy(), resamples=resamples) for name, value in values.items()}


def bootstrap(values: np.ndarray, places: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Figure:
    """Mean of `values` (N,) with its 95 % range over resampled `places` (N,) int."""
    sums, sizes = np.bincount(places, values), np.bincount(places)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Figure(float(values.mean()), float(low), float(high))


def verdict(figures: dict[str, dict[str, Figure]]) -> list[str]:
    """Sentences that say where the generated pictures do not beat both baselines."""
    lost = []
    for name in (*LOWER_IS_BETTER, "SSIM", "top1"):
        sign = 1 if name in LOWER_IS_BETTER else -1
        better = [
            base
            for base in figures
            if base != "generated" and sign * figures[base][name].mean <= sign * figures["generated"][name].mean
        ]
        if better:
            lost.append(f"{name}: generated pictures do not beat {' and '.join(better)}")
    return lost or ["generated pictures beat both baselines in every measure"]


def build_comparison(
    cfg, device: torch.device, *, embed: Callable[[Tensor], Tensor] | None = None
) -> dict[str, dict[str, Figure]]:
    """Sample the held-out pairs of BBDM.PAIRS and compare: generated pictures and the two baselines.

    Args:
        cfg: the configuration.
        device: of the bridge.
        embed: SAR pictures (N, H, W) in 0..1 -> features (N, D); by default a small network trained contrastively on the SAR
            pictures of the training places.
    """
    if not cfg.BBDM.WEIGHT:
        raise UsageError("BBDM.WEIGHT is empty; name the checkpoint of a bridge")
    settings = build_sampler_settings(cfg)
    pairs: PairLists = build_pairs(cfg)
    if not pairs.validation:
        raise DataError("no pair is held out; set BBDM.HOLD_OUT_EVERY as in training, or give val/ folders")
    model = build_model(cfg, device, build_precision(cfg, device), weights=cfg.BBDM.WEIGHT)
    model.network.eval().requires_grad_(False)
    held_out, train = (_read(cfg, part) for part in (pairs.validation, pairs.train))
    names = [pair.optical.path.name for pair in pairs.validation]
    samples = draw(
        model,
        held_out[:, 0],
        names,
        settings,
        count=cfg.BBDM.SAMPLE_NUM,
        seed=cfg.SOLVER.SEED,
        batch_size=cfg.BBDM.SAMPLE_BATCH,
        device=device,
    )
    optical, real = measures.to_grey(held_out[:, 0]), measures.to_grey(held_out[:, 1])
    known = measures.to_grey(train[:, 1])
    embed = embed or train_embedding(known, seed=cfg.SOLVER.SEED)
    mean_picture = known.mean(dim=0).expand_as(real)
    methods = {"generated": samples, "grey optical": optical[:, None], "mean SAR": mean_picture[:, None]}
    places = [pair.place for pair in pairs.validation]
    return {name: compare(pictures, real, places, embed) for name, pictures in methods.items()}


def _read(cfg, pairs: Sequence[Pair]) -> Tensor:
    """(N, 2, 3, H, W) in [-1, 1]: optical and SAR of each pair, cut at a place that only its index decides."""
    read = []
    with progress(len(pairs), "reading pairs", unit="pair") as bar:
        for batch in build_validation_loader(cfg, pairs, device_type="cpu"):
            read.append(torch.stack(batch.images.chunk(2), dim=1))
            bar.update(len(read[-1]))
    return torch.cat(read)


def build_report(cfg, figures: dict[str, dict[str, Figure]], *, features: str) -> dict[str, Any]:
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
        "figures": {name: {key: asdict(figure) for key, figure in values.items()} for name, values in figures.items()},
        "verdict": verdict(figures),
    }


def publish(report: dict[str, Any], folder: Path) -> None:
    """Log the table and verdict of a report, and write it to evaluation.json of `folder`."""
    columns = (*LOWER_IS_BETTER, *HIGHER_IS_BETTER)
    rows = [[name, *(f"{values[key]['mean']:.4f}" for key in columns)] for name, values in report["figures"].items()]
    arrows = [f"{column} {'-' if column in LOWER_IS_BETTER else '+'}" for column in columns]
    logger.info("%s\n(-: lower is better, +: higher; features: %s)", table(["pictures", *arrows], rows), report["features"])
    for sentence in report["verdict"]:
        logger.info("%s", sentence)
    write_json(folder / "evaluation.json", report)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and compare."""
    parser = config_parser(
        "python -m bbdm.evaluate",
        "Compare generated with real SAR pictures of held-out pairs, beside two baselines. For ships, tools.evaluate_ships "
        "does the same in the feature space of a re-identification network.",
        "python -m bbdm.evaluate --config_file configs/bbdm_qxs.yml BBDM.WEIGHT logs/bbdm_qxs/bridge_100.pth OUTPUT_DIR out",
    )
    options = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(options.config_file, options.overrides)
    folder = make_output_dir(cfg.OUTPUT_DIR)
    figures = build_comparison(cfg, build_device(cfg))
    space = "a small network trained contrastively on the SAR pictures of the training places"
    publish(build_report(cfg, figures, features=space), folder)


if __name__ == "__main__":
    cli.run(main)
