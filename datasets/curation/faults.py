"""Faults of chips that could be read: odd ones, copies, ships and pictures that should not be in two splits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from datasets.curation.duplicates import near_pairs
from datasets.records import DISTRACTOR, Chip, Modality

SPLITS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
"""Name of a split -> its folder."""

LEAST_SIDE = 8
"""Pixels; a chip with a shorter side shows no ship."""


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        level: 'error' where training or testing would stop or mislead, 'warning' where it may be meant.
        kind: of the fault, one word or two, as in docs/data.md.
        message: what it is and what to do.
        files: concerned, relative to HOSS/; `a = b` for pairs.
    """

    level: str
    kind: str
    message: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChipFacts:
    """A chip that could be read.

    Attributes:
        record: as from its name.
        name: relative to HOSS/.
        height, width: in pixels.
        values: least and largest SAR value; None of an optical chip.
        colour: whether the bands of an optical chip differ.
        digest: equal for equal pixels only.
        bits: perceptual hash, (HASH_BITS,) bool.
    """

    record: Chip
    name: str
    height: int
    width: int
    values: tuple[float, float] | None
    colour: bool
    digest: str
    bits: NDArray[np.bool_]


def odd_chips(chips: Sequence[ChipFacts]) -> Iterator[Finding]:
    """Yield chips that can be read and are hardly meant so."""
    odd = {
        "modality": (
            "are named as OPTICAL and have no colour; see that none of them is SAR",
            lambda c: not c.values and not c.colour,
        ),
        "odd chip": (f"have a side below {LEAST_SIDE} pixels", lambda c: min(c.height, c.width) < LEAST_SIDE),
        "lying": ("are wider than high; turn them until bow and stern are above each other", lambda c: c.width > c.height),
        "blank": ("hold one value only", lambda c: not c.bits.any()),
        "negative": (
            "hold SAR values below 0 (decibels?), which the rendering 'max' cuts",
            lambda c: c.values and c.values[0] < 0,
        ),
    }
    for kind, (message, is_odd) in odd.items():
        names = tuple(chip.name for chip in chips if is_odd(chip))
        if names:
            yield Finding("warning", kind, f"{len(names)} chip(s) {message}", names)


def shared_ships(splits: Mapping[str, Sequence[Chip]]) -> Iterator[Finding]:
    """Yield the ships that are in training and in the test."""
    train = {record.ship for record in splits["train"]}
    shared = [r for split in ("query", "gallery") for r in splits[split] if r.ship in train - {DISTRACTOR}]
    if shared:
        pids = sorted({record.ship for record in shared})
        message = f"{len(pids)} ship(s) are in training and in the test, such as {pids[0]}; training and test ships must differ"
        yield Finding("error", "shared ship", message, tuple(f"{SPLITS[r.split]}/{r.path.name}" for r in shared))


def copies(chips: Sequence[ChipFacts]) -> Iterator[Finding]:
    """Yield groups of chips with the same pixels: an error across splits or ships, else a warning."""
    groups: dict[str, list[ChipFacts]] = {}
    for chip in chips:
        groups.setdefault(chip.digest, []).append(chip)
    copied = [group for group in groups.values() if len(group) > 1 and group[0].bits.any()]
    harmful = [g for g in copied if len({c.record.split for c in g}) > 1 or len({c.record.ship for c in g}) > 1]
    for level, where, some in (
        ("error", "in several splits or under several ships; keep one", harmful),
        ("warning", "twice in one split", [group for group in copied if group not in harmful]),
    ):
        if some:
            files = tuple(" = ".join(chip.name for chip in group) for group in some)
            yield Finding(level, "copy", f"{len(some)} picture(s) are {where}", files)


def near_duplicates(chips: Sequence[ChipFacts]) -> Iterator[Finding]:
    """Yield pairs of chips of different splits that look almost the same and are no copies."""
    for one, other in combinations(SPLITS, 2):
        files = []
        for modality in Modality:
            first, second = (
                [c for c in chips if c.record.split == split and c.record.modality is modality and c.bits.any()]
                for split in (one, other)
            )
            if first and second:
                pairs = near_pairs(np.stack([c.bits for c in first]), np.stack([c.bits for c in second]))
                near = [(first[i], second[j]) for i, j in pairs]
                files += [f"{a.name} = {b.name}" for a, b in near if a.digest != b.digest]
        if files:
            advice = "see whether a ship is in both" if one == "train" else "judge by O2S and S2O, ALL is easy for them"
            yield Finding(
                "warning", "near-duplicate", f"{len(files)} pair(s) of {one} and {other} look alike; {advice}", tuple(files)
            )
