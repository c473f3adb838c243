"""How well perceptual hashes tell near-duplicates from other ships: hits, and false alarms, on real chips.

    MOS_DATA_ROOT=<folder of HOSS/> python -m benchmarks.near_duplicates [--alarms 0.0002]

Prints a Markdown table. False alarms are counted over all pairs of chips of different ships and one modality, as they are and
shrunk to as little as a twentieth, since it is small chips that look alike. Hits are counted over the same chips and five
changed copies of each. For each hash the limit is the largest number of bits for which the share of false alarms is at most
`--alarms` in either modality and at every size.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.catalogue import read_hoss
from datasets.chips import read_chip
from datasets.records import DISTRACTOR, Chip, Modality
from datasets.sar import render_percentile
from utils.log import table

SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)
HASHES = (
    *(("phash", side) for side in (8, 12, 16, 20)),
    *(("dhash", side) for side in (8, 16)),
    *(("whash", side) for side in (8, 16)),
    ("average_hash", 16),
)
"""Functions of ImageHash, and rows and columns of their bits."""


def hash_bits(name: str, side: int, picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Bits of one of ImageHash's hashes of a picture, (side * side,)."""
    return getattr(imagehash, name)(Image.fromarray(picture), side).hash.ravel()


def changed(picture: NDArray[np.uint8], random: np.random.Generator) -> dict[str, NDArray[np.uint8]]:
    """What a near-duplicate of a picture may be."""
    height, width = picture.shape[:2]
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=60)
    return {
        "JPEG 60": np.asarray(Image.open(jpeg)),
        "size + 8 %": cv2.resize(picture, (round(1.08 * width), round(1.08 * height))),
        "cut 3 %": picture[max(1, round(0.03 * height)) :, max(1, round(0.03 * width)) :],
        "0.7 x + 20": (0.7 * picture.astype(np.float32) + 20).astype(np.uint8),
        "noise 8": np.clip(picture + random.normal(0, 8, (height, width, 1)), 0, 255).astype(np.uint8),
    }


def shrunk(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """A picture as a coarser sensor would show it, 4 pixels wide and high at least."""
    height, width = (max(4, round(scale * side)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def different_ships(chips: Sequence[Chip]) -> NDArray[np.bool_]:
    """(N, N) whether two chips show different ships, each pair once; every distractor is a ship of its own."""
    ships = np.array([chip.ship if chip.ship != DISTRACTOR else -number for number, chip in enumerate(chips, start=2)])
    return np.triu(ships[:, None] != ships, 1)


def measure(
    hash_of: Callable[[NDArray[np.uint8]], NDArray[np.bool_]], chips: Sequence[Chip]
) -> tuple[dict[tuple[str, float], NDArray[np.int64]], dict[str, list[int]]]:
    """Bits that differ: (modality, scale) -> between different ships; name of a change -> between a chip and its copy."""
    random = np.random.default_rng(0)
    between: dict[tuple[str, float], NDArray[np.int64]] = {}
    within: dict[str, list[int]] = {}
    for modality in Modality:
        own = [chip for chip in chips if chip.modality is modality]
        pictures = [read_chip(chip, render_percentile) for chip in own]
        for scale in SCALES:
            small = [shrunk(picture, scale) for picture in pictures]
            hashes = np.stack([hash_of(picture) for picture in small])
            between[modality.name, scale] = (hashes[:, None] != hashes).sum(2)[different_ships(own)]
            for picture, bits in zip(small, hashes):
                for change, copy in changed(picture, random).items():
                    within.setdefault(change, []).append(np.count_nonzero(bits != hash_of(copy)))
    return between, within


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alarms", type=float, default=2e-4, help="largest share of false alarms (default 2e-4)")
    alarms = parser.parse_args(arguments).alarms
    data = read_hoss(os.environ["MOS_DATA_ROOT"])
    chips = [*data.train, *data.images]
    rows = []
    for name, side in HASHES:
        between, within = measure(partial(hash_bits, name, side), chips)
        limit = min(int(np.sort(bits)[int(alarms * len(bits))]) - 1 for bits in between.values())
        wrong = {
            modality.name: " / ".join(str((bits <= limit).sum()) for (own, _), bits in between.items() if own == modality.name)
            for modality in Modality
        }
        hits = [f"{np.mean(np.array(bits) <= limit):.0%}" for bits in within.values()]
        rows.append([name, side**2, limit, *wrong.values(), *hits])
    pairs = ", ".join(f"{len(bits)} {modality}" for (modality, scale), bits in between.items() if scale == 1)
    print(f"{date.today()}: {len(chips)} chips; at each of the sizes {SCALES} {pairs} pairs of different ships\n")
    names = ["hash", "bits", "limit", *(f"false alarms, {name}" for name in wrong), *(f"hits, {change}" for change in within)]
    print(table(names, rows, "pipe"))


if __name__ == "__main__":
    main(sys.argv[1:])
