"""Cross-modal data generation and fusion, CDGF (MOS, section 3.3): generated pseudo-SAR features join the optical ones.

Legend: I test images, S of them with samples, K samples of each, D feature width.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from datasets.generated import read_samples
from datasets.records import Chip, Modality, Protocol
from processor.ranking.retrieval import squared_distances
from utils.errors import DataError


def fuse(features: Tensor, sample_features: Tensor, *, tau: float) -> Tensor:
    """normalise((1 - tau) f + tau * mean_k f_k), every feature L2-normalised first.

    Args:
        features: (S, D) of optical images, of norm 1.
        sample_features: (S, K, D) of the pictures generated from them, of any norm.
        tau: weight of the generated ones, 0..1 (TEST.FUSION_TAU).

    Returns:
        (S, D), of norm 1; `features` itself where tau is 0.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is {tau}; it must be between 0 and 1")
    if tau == 0:
        return features  # to the last digit, which normalising again would change
    generated = functional.normalize(sample_features, dim=-1).mean(1)
    return functional.normalize((1 - tau) * features + tau * generated)


def fuse_images(features: Tensor, sample_features: Tensor, sources: Sequence[int], *, tau: float) -> Tensor:
    """Features of all images, L2-normalised; those with samples fused, the rest (SAR images) as they are.

    Args:
        features: (I, D), of any norm.
        sample_features: (S, K, D) of the samples of S source images.
        sources: (S,) index of each source among the I images.
        tau: see `fuse`.

    Returns:
        (I, D), of norm 1.
    """
    fused = functional.normalize(features)
    index = torch.as_tensor(sources)
    fused[index] = fuse(fused[index], sample_features, tau=tau)
    return fused


def largest_move(tau: float) -> float:
    """How far fusion can move a feature of norm 1, whatever the pictures: 2 sin(a / 2) with sin a = tau / (1 - tau).

    The generated part has a norm of tau at most, so it turns the feature by a at most, where it is orthogonal to the sum. From
    tau 0.5 on it can turn it anywhere, which is 2 away at most.
    """
    return 2 * math.sin(math.asin(tau / (1 - tau)) / 2) if tau < 0.5 else 2.0


def count_movable(protocol: Protocol, images: Sequence[Chip], features: Tensor, sources: Collection[int], tau: float) -> int:
    """How many queries of a protocol could gain or lose their first rank by fusion of weight tau, whatever the pictures.

    A distance changes by `largest_move` at most for each of its ends that has pictures (triangle inequality), so a query keeps
    its first rank, or goes on without it, unless the nearest match and the nearest other image are nearer to each other.

    Args:
        protocol: over `images`.
        images: (I,) the test images.
        features: (I, D), of norm 1, before fusion.
        sources: indices of images with pictures.
        tau: weight of the pictures, 0..1.
    """
    move, has = largest_move(tau), set(sources)
    ships = torch.tensor([chip.ship for chip in images])
    moves = torch.tensor([move if index in has else 0.0 for index in range(len(images))])
    gallery, count = torch.tensor(protocol.gallery), 0
    for query in torch.tensor(protocol.query).split(256):
        distances = squared_distances(features[query], features[gallery]).sqrt()
        matches = ships[query][:, None] == ships[gallery]
        near, far = ((distances + sign * moves[gallery]) for sign in (-1, 1))

        def nearest(values: Tensor, taken: Tensor) -> Tensor:
            return values.masked_fill(~taken, math.inf).min(dim=1).values

        lost = nearest(near, ~matches) - nearest(far, matches) <= 2 * moves[query]
        won = nearest(near, matches) - nearest(far, ~matches) <= 2 * moves[query]
        hit = nearest(distances, matches) < nearest(distances, ~matches)
        count += int((torch.where(hit, lost, won) & matches.any(dim=1)).sum())
    return count


@dataclass(frozen=True)
class SampleSet:
    """Which test images have generated samples, and what these are.

    Attributes:
        images: (I,) the test images; those with samples know the size that the samples were made for, which reading checks.
        sources: (S,) indices of the images with samples.
        chips: (S,) of K generated pictures each, in order of k.
        per_image: K.
        steps: network calls of a sample: one number, or those of each run where they differ; None for a folder whose manifest
            does not tell.
    """

    images: tuple[Chip, ...]
    sources: tuple[int, ...]
    chips: tuple[tuple[Chip, ...], ...]
    per_image: int
    steps: tuple[int | None, ...] = ()


def build_samples(cfg, images: Sequence[Chip]) -> SampleSet | None:
    """The samples of DATASETS.*_ADD_DIR, the first TEST.FUSION_SAMPLES of each image."""
    folders = {"query_dir": cfg.DATASETS.QUERY_ADD_DIR, "gallery_dir": cfg.DATASETS.GALLERY_ADD_DIR}
    return find_samples(images, **folders, count=cfg.TEST.FUSION_SAMPLES, measured=cfg.TEST.GENERATED_SIZE == "file")


def find_samples(
    images: Sequence[Chip], *, query_dir: str, gallery_dir: str, count: int = 0, measured: bool = False
) -> SampleSet | None:
    """Find the samples of the optical test images; every one of a side whose folder is given must have them.

    Args:
        images: the test images.
        query_dir: samples of the query side (DATASETS.QUERY_ADD_DIR); empty for none.
        gallery_dir: samples of the gallery side (DATASETS.GALLERY_ADD_DIR); empty for none.
        count: K, the first samples of each image (TEST.FUSION_SAMPLES); 0 for all.
        measured: a sample's size triple is that of its own file (TEST.GENERATED_SIZE), not of its source.

    Returns:
        None if neither folder is given.

    Raises:
        DataError: see `datasets.generated.read_samples`; also two folders of different K, or of fewer than `count`.
    """
    if not query_dir and not gallery_dir:
        return None
    optical = [chip for chip in images if chip.modality is Modality.OPTICAL]
    found: dict[Path, tuple[Chip, ...]] = {}
    counts: dict[str, int] = {}
    steps: list[int | None] = []
    for split in dict.fromkeys(chip.split for chip in optical):
        if not (folder := query_dir if split.side == "query" else gallery_dir):
            continue
        sources, others = ([chip for chip in optical if (chip.split == split) is own] for own in (True, False))
        samples, run = read_samples(folder, split=split, sources=sources, elsewhere=others)
        found |= samples
        counts[folder] = len(samples[sources[0].path])
        steps.append(run.steps if run else None)
    _refuse_unequal(counts)
    if not found:
        raise DataError(f"no optical image is on the side of {query_dir or gallery_dir}; nothing can be fused")
    folder, per_image = next(iter(counts.items()))
    if count > per_image:
        raise DataError(f"{folder} holds {per_image} samples of an image, fewer than TEST.FUSION_SAMPLES {count}; lower it")
    return SampleSet(
        images=tuple(found[chip.path][0].source if chip.path in found else chip for chip in images),
        sources=tuple(index for index, chip in enumerate(images) if chip.path in found),
        chips=tuple(_first(found[chip.path], count, measured) for chip in images if chip.path in found),
        per_image=count or per_image,
        steps=tuple(dict.fromkeys(steps)),
    )


def _refuse_unequal(counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        told = " and ".join(f"{count} samples of an image in {folder}" for folder, count in counts.items())
        raise DataError(f"there are {told}; both sides need the same number")


def _first(samples: Sequence[Chip], count: int, measured: bool) -> tuple[Chip, ...]:
    """The first `count` samples, or all for 0, each measured itself or not."""
    return tuple(replace(sample, measured=measured) for sample in samples[: count or None])
