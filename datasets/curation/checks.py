"""What a data set in HOSS layout holds, and what is wrong with it. Unlike `datasets.hoss`, goes on after each fault."""

import filecmp
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets.chips import IMAGE_SUFFIXES, read_optical, read_sar
from datasets.curation.duplicates import perceptual_hash
from datasets.curation.faults import SPLITS, ChipFacts, Finding, copies, near_duplicates, odd_chips, shared_ships
from datasets.hoss import CHIP_NAME, CROSS_PROTOCOLS, MODALITIES
from datasets.modality import has_colour, modality_of_pixels
from datasets.records import DISTRACTOR, Chip, Modality
from datasets.sar import render_percentile
from utils.errors import DataError
from utils.log import progress


@dataclass(frozen=True)
class SplitFacts:
    """Counts of a split, by the names of its files; ranges (least, largest) over those that could be read."""

    images: int
    ships: int
    optical: int
    sar: int
    distractors: int
    height: tuple[int, int] | None
    width: tuple[int, int] | None
    sar_values: tuple[float, float] | None


@dataclass(frozen=True)
class ProtocolFacts:
    """Queries of a protocol, those with a match in its gallery, and the names of those without."""

    queries: int
    with_match: int
    gallery: int
    without_match: tuple[str, ...]


@dataclass(frozen=True)
class DatasetReport:
    """All about a data set.

    Attributes:
        splits: 'train', 'query', 'gallery' and, of all three, 'all'.
        protocols: 'ALL', 'O2S' and 'S2O'.
        training_pairs: optical x SAR pairs of training chips of one ship.
        training_pair_ships: ships that have any.
        findings: errors first.
    """

    splits: dict[str, SplitFacts]
    protocols: dict[str, ProtocolFacts]
    training_pairs: int
    training_pair_ships: int
    findings: tuple[Finding, ...]

    def count(self, level: str) -> int:
        """Number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_dataset(root_dir: str | Path, *, description: str = "") -> DatasetReport:
    """Read every chip of `<root_dir>/HOSS` and look for faults.

    Args:
        root_dir: the folder that holds `HOSS/`.
        description: of a progress bar; empty for none.

    Raises:
        DataError: there is no such folder.
    """
    hoss = Path(root_dir) / "HOSS"
    if not hoss.is_dir():
        raise DataError(f"{hoss} is no folder; give the folder that holds HOSS/")
    findings: list[Finding] = []
    splits = {split: _list_chips(hoss, folder, split, findings) for split, folder in SPLITS.items()}
    records = [record for split in splits.values() for record in split]
    chips: list[ChipFacts] = []
    with progress(len(records), description, unit="chip", visible=bool(description)) as bar:
        for record in records:
            chips += _read(record, hoss, findings)
            bar.update()
    protocols = {name: _protocol_facts(*sides) for name, sides in _protocol_sides(hoss, splits, findings).items()}
    findings += [*odd_chips(chips), *shared_ships(splits), *copies(chips), *near_duplicates(chips), *_unmatched(protocols)]
    pairs = _training_pairs(splits["train"])
    return DatasetReport(
        splits={name: _split_facts(split, chips) for name, split in {**splits, "all": records}.items()},
        protocols=protocols,
        training_pairs=sum(pairs.values()),
        training_pair_ships=len(pairs),
        findings=tuple(sorted(findings, key=lambda finding: finding.level)),
    )


def _list_chips(hoss: Path, folder: str, split: str, findings: list[Finding]) -> list[Chip]:
    """Records of the chips in `hoss/folder` that are named by the rules; the others are found fault with."""
    if not (hoss / folder).is_dir():
        findings.append(Finding("error", "missing folder", f"{folder} is missing; HOSS layout needs it"))
        return []
    paths = sorted(path for path in (hoss / folder).iterdir() if not path.name.startswith("."))
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        findings.append(Finding("error", "empty folder", f"{folder} holds no chip; put the chips of this split there"))
    matches = {path: CHIP_NAME.fullmatch(path.stem) if path.is_file() else None for path in images}
    records = [
        Chip(path, int(match[1]), MODALITIES[match[2].upper()], split) for path, match in matches.items() if match is not None
    ]
    stems = Counter(path.stem.lower() for path in images)
    faults = [
        (
            "error",
            "name",
            "are not named <pid>_..._RGB or <pid>_..._SAR, or are no files",
            [p for p in images if not matches[p]],
        ),
        ("error", "name", "share a name but for suffix or case; keep one", [p for p in images if stems[p.stem.lower()] > 1]),
        ("warning", "not a chip", "have no suffix of an image and are passed over", [p for p in paths if p not in matches]),
    ]
    if not split.endswith("gallery"):
        strays = [record.path for record in records if record.ship == DISTRACTOR]
        faults.append(("error", "distractor", f"have pid {DISTRACTOR}, which belongs in bounding_box_test only", strays))
    for level, kind, message, wrong in faults:
        if wrong:
            names = tuple(f"{folder}/{path.name}" for path in wrong)
            findings.append(Finding(level, kind, f"{len(wrong)} file(s) of {folder} {message}", names))
    return records


def _read(record: Chip, hoss: Path, findings: list[Finding]) -> Iterator[ChipFacts]:
    """Yield the chip of a record; where it cannot be read, say why instead."""
    name = record.path.relative_to(hoss).as_posix()
    try:
        pixels = read_optical(record.path) if record.modality is Modality.OPTICAL else read_sar(record.path)
    except DataError as error:
        findings.append(_reading_fault(record, name, str(error)))
        return
    is_sar = record.modality is Modality.SAR
    picture = render_percentile(pixels) if is_sar else pixels
    yield ChipFacts(
        record=record,
        name=name,
        height=pixels.shape[0],
        width=pixels.shape[1],
        values=(float(pixels.min()), float(pixels.max())) if is_sar else None,
        colour=not is_sar and has_colour(pixels),
        digest=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
        bits=perceptual_hash(picture),
    )


def _reading_fault(record: Chip, name: str, message: str) -> Finding:
    """Why a chip cannot be read: it is of the other modality, or damaged or of a kind that is not understood."""
    try:
        told = modality_of_pixels(record.path)
    except DataError:
        told = None
    if told not in (None, record.modality):
        kinds = {Modality.OPTICAL: "an optical picture (it has colour)", Modality.SAR: "a SAR chip (one band of values)"}
        message = f"{name} is named as {record.modality.name} and its pixels are those of {kinds[told]}; rename it"
        return Finding("error", "modality", message, (name,))
    return Finding("error", "unreadable", message, (name,))


def _protocol_sides(
    hoss: Path, splits: dict[str, list[Chip]], findings: list[Finding]
) -> dict[str, tuple[list[Chip], list[Chip]]]:
    """Queries and gallery of every protocol, from `subset/` where it is present."""
    sides = {"ALL": (splits["query"], splits["gallery"])}
    for name, modalities in CROSS_PROTOCOLS.items():
        own = []
        for split, modality in zip(("query", "gallery"), modalities):
            records = splits[split]
            if (hoss / "subset" / name).is_dir():
                records = _list_chips(hoss, f"subset/{name}/{SPLITS[split]}", f"{name}/{split}", findings)
                findings += _strange_in_subset(hoss, records, splits[split], modality)
            own.append([record for record in records if record.modality is modality])
        sides[name] = (own[0], own[1])
    return sides


def _strange_in_subset(hoss: Path, subset: list[Chip], main: list[Chip], modality: Modality) -> Iterator[Finding]:
    """Yield chips of a subset folder that the main split does not hold, or of the wrong sensor."""
    originals = {record.path.name: record.path for record in main}
    same = {r: r.path.name in originals and filecmp.cmp(r.path, originals[r.path.name], shallow=False) for r in subset}
    faults = [
        (
            "warning",
            f"are no copies of files in {SPLITS[subset[0].split[4:]]}" if subset else "",
            [r for r in subset if not same[r]],
        ),
        ("error", f"are not {modality.name}, as this protocol asks", [r for r in subset if r.modality is not modality]),
    ]
    for level, message, wrong in faults:
        if wrong:
            names = tuple(record.path.relative_to(hoss).as_posix() for record in wrong)
            yield Finding(level, "subset", f"{len(wrong)} file(s) of subset {message}", names)


def _protocol_facts(query: Sequence[Chip], gallery: Sequence[Chip]) -> ProtocolFacts:
    ships = {record.ship for record in gallery} - {DISTRACTOR}
    without = tuple(record.path.name for record in query if record.ship not in ships)
    return ProtocolFacts(len(query), len(query) - len(without), len(gallery), without)


def _unmatched(protocols: dict[str, ProtocolFacts]) -> Iterator[Finding]:
    """Yield the protocols in which queries find no match."""
    for name, facts in protocols.items():
        if not facts.queries or not facts.gallery:
            if name != "ALL":  # whose folders are named as missing or empty already
                sides = f"{facts.queries} queries and {facts.gallery} gallery images"
                yield Finding("warning", "no match", f"{name} has {sides} and is left out of a test")
        elif not facts.with_match:
            message = f"no query of {name} has a match in its gallery; a test would stop"
            yield Finding("error", "no match", message, facts.without_match)
        elif facts.without_match:
            message = f"{len(facts.without_match)} of {facts.queries} queries of {name} have no match and do not count"
            yield Finding("warning", "no match", message, facts.without_match)


def _training_pairs(train: Sequence[Chip]) -> dict[int, int]:
    """Optical x SAR pairs of each ship that has any."""
    counts = Counter((record.ship, record.modality) for record in train)
    pairs = {pid: counts[pid, Modality.OPTICAL] * counts[pid, Modality.SAR] for pid, _ in counts}
    return {pid: count for pid, count in pairs.items() if count}


def _split_facts(records: Sequence[Chip], chips: Sequence[ChipFacts]) -> SplitFacts:
    own = {record.path for record in records}
    read = [chip for chip in chips if chip.record.path in own]
    optical = sum(record.modality is Modality.OPTICAL for record in records)
    return SplitFacts(
        images=len(records),
        ships=len({record.ship for record in records} - {DISTRACTOR}),
        optical=optical,
        sar=len(records) - optical,
        distractors=sum(record.ship == DISTRACTOR for record in records),
        height=_range(chip.height for chip in read),
        width=_range(chip.width for chip in read),
        sar_values=_range(value for chip in read for value in chip.values or ()),
    )


def _range(values: Iterable[float]) -> tuple[Any, Any] | None:
    values = list(values)
    return (min(values), max(values)) if values else None
