"""Faults of chips that could be read: odd ones, copies, ships and pictures that should not be in two splits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from datasets.catalogue import Finding, file_of
from datasets.curation.duplicates import near_pairs
from datasets.records import DISTRACTOR, Chip, Modality, Split

MAIN_SPLITS = (Split.TRAIN, Split.QUERY, Split.GALLERY)

LEAST_SIDE = 8
"""Pixels; a chip with a shorter side shows no ship."""


@dataclass(frozen=True)
class PixelFacts:
    """What the pixels of a chip tell.

    Attributes:
        chip: with its size.
        values: least and largest SAR value; None of an optical chip.
        colour: whether the bands of an optical chip differ.
        digest: equal for equal pixels only.
        bits: perceptual hash, (HASH_BITS,) bool.
    """

    chip: Chip
    values: tuple[float, float] | None
    colour: bool
    digest: str
    bits: NDArray[np.bool_]


def odd_chips(facts: Sequence[PixelFacts]) -> Iterator[Finding]:
    """Yield chips that can be read and are hardly meant so."""
    odd = {
        "modality": (
            "are named as OPTICAL and have no colour; see that none of them is SAR",
            lambda f: not f.values and not f.colour,
        ),
        "odd chip": (f"have a side below {LEAST_SIDE} pixels", lambda f: min(f.chip.size) < LEAST_SIDE),
        "lying": (
            "are wider than high; turn them until bow and stern are above each other",
            lambda f: f.chip.size[0] > f.chip.size[1],
        ),
        "blank": ("hold one value only", lambda f: not f.bits.any()),
        "negative": (
            "hold SAR values below 0 (decibels?), which the rendering 'max' cuts",
            lambda f: f.values and f.values[0] < 0,
        ),
    }
    for kind, (message, is_odd) in odd.items():
        files = tuple(file_of(own.chip) for own in facts if is_odd(own))
        if files:
            yield Finding("warning", kind, f"{len(files)} chip(s) {message}", files)


def shared_ships(splits: Mapping[Split, Sequence[Chip]]) -> Iterator[Finding]:
    """Yield the ships that are in training and in the test."""
    train = {chip.ship for chip in splits[Split.TRAIN]}
    shared = [chip for split in (Split.QUERY, Split.GALLERY) for chip in splits[split] if chip.ship in train - {DISTRACTOR}]
    if shared:
        pids = sorted({chip.ship for chip in shared})
        message = f"{len(pids)} ship(s) are in training and in the test, such as {pids[0]}; training and test ships must differ"
        yield Finding("error", "shared ship", message, tuple(map(file_of, shared)))


def copies(facts: Sequence[PixelFacts]) -> Iterator[Finding]:
    """Yield groups of chips with the same pixels: an error across splits or ships, else a warning."""
    groups: dict[str, list[Chip]] = {}
    for own in facts:
        if own.bits.any():
            groups.setdefault(own.digest, []).append(own.chip)
    copied = [group for group in groups.values() if len(group) > 1]
    harmful = [group for group in copied if len({(chip.split, chip.ship) for chip in group}) > 1]
    for level, where, some in (
        ("error", "in several splits or under several ships; keep one", harmful),
        ("warning", "twice in one split", [group for group in copied if group not in harmful]),
    ):
        if some:
            files = tuple(" = ".join(map(file_of, group)) for group in some)
            yield Finding(level, "copy", f"{len(some)} picture(s) are {where}", files)


def near_duplicates(facts: Sequence[PixelFacts]) -> Iterator[Finding]:
    """Yield pairs of chips of different splits that look almost the same and are no copies."""
    for one, other in combinations(MAIN_SPLITS, 2):
        files = []
        for modality in Modality:
            first, second = (
                [f for f in facts if (f.chip.split, f.chip.modality) == (split, modality) and f.bits.any()]
                for split in (one, other)
            )
            if first and second:
                pairs = near_pairs(np.stack([f.bits for f in first]), np.stack([f.bits for f in second]))
                near = [(first[i], second[j]) for i, j in pairs]
                files += [f"{file_of(a.chip)} = {file_of(b.chip)}" for a, b in near if a.digest != b.digest]
        if files:
            advice = "see whether a ship is in both" if one is Split.TRAIN else "judge by O2S and S2O, ALL is easy for them"
            message = f"{len(files)} pair(s) of {one} and {other} look alike; {advice}"
            yield Finding("warning", "near-duplicate", message, tuple(files))
