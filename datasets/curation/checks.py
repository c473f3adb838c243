"""What a data set in HOSS layout holds, and all that is wrong with it: `read_hoss` stops at the first error, this goes on."""

import filecmp
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.catalogue import CROSS_PROTOCOLS, FOLDERS, Finding, file_of, list_chips, make_protocols
from datasets.chips import has_colour, modality_of_pixels, read_optical, read_sar
from datasets.curation.duplicates import perceptual_hash
from datasets.curation.faults import MAIN_SPLITS, PixelFacts, copies, near_duplicates, odd_chips, shared_ships
from datasets.pairs import choose_join, join_views, list_views
from datasets.records import DISTRACTOR, Chip, Modality, Split
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
        registered_pairs: of `OptiSar_Pair/`, where it is there: `optical` and `sar` pictures, `folders`, `ids`, pairs
            `by_folder` and `by_id`, and which `join` pre-training takes ('' for none).
    """

    splits: dict[str, SplitFacts]
    protocols: dict[str, ProtocolFacts]
    training_pairs: int
    training_pair_ships: int
    findings: tuple[Finding, ...]
    registered_pairs: Mapping[str, Any] = field(default_factory=dict)

    def count(self, level: str) -> int:
        """Number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_dataset(root_dir: str | Path, *, description: str = "") -> DatasetReport:
    """Read every chip of `<root_dir>/HOSS` and look for faults; say how the pictures of `<root_dir>/OptiSar_Pair` are joined.

    Args:
        root_dir: the folder that holds `HOSS/`, `OptiSar_Pair/` or both.
        description: of a progress bar; empty for none.

    Raises:
        DataError: there is no such folder.
    """
    hoss, registered = Path(root_dir) / "HOSS", Path(root_dir) / "OptiSar_Pair"
    if not hoss.is_dir() and not registered.is_dir():
        raise DataError(f"{hoss} is no folder; give the folder that holds HOSS/")
    report = _check_hoss(hoss, description) if hoss.is_dir() else DatasetReport({}, {}, 0, 0, ())
    if not registered.is_dir():
        return report
    pairs, found = _check_registered_pairs(root_dir)
    findings = tuple(sorted((*report.findings, *found), key=lambda finding: finding.level))
    return replace(report, registered_pairs=pairs, findings=findings)


def _check_registered_pairs(root_dir: str | Path) -> tuple[dict[str, Any], list[Finding]]:
    """What `OptiSar_Pair/` holds, and why it cannot be read as it is."""
    try:
        views = list_views(root_dir)
    except DataError as error:
        return {}, [Finding("error", "pairs", str(error), ())]
    facts = {
        "optical": sum(len(sides["RGB"]) for sides in views.values()),
        "sar": sum(len(sides["SAR"]) for sides in views.values()),
        "folders": len({folder for folder, _ in views}),
        "ids": len({number for _, number in views}),
        "by_folder": len(join_views(views, "folder")),
        "by_id": len(join_views(views, "id")),
        "join": "",
    }
    try:
        return facts | {"join": choose_join(views)}, []
    except DataError as error:
        return facts, [Finding("error", "pairs", str(error), ())]


def _check_hoss(hoss: Path, description: str) -> DatasetReport:
    findings: list[Finding] = []
    splits: dict[Split, tuple[Chip, ...]] = {}
    for split in MAIN_SPLITS:
        splits[split], found = list_chips(hoss, split)
        findings += found
    chips = [chip for split in splits.values() for chip in split]
    facts: list[PixelFacts] = []
    with progress(len(chips), description, unit="chip", visible=bool(description)) as bar:
        for chip in chips:
            result = _read(chip)
            (findings if isinstance(result, Finding) else facts).append(result)
            bar.update()
    protocols = {name: _protocol_facts(*sides) for name, sides in _protocol_sides(hoss, splits, findings).items()}
    findings += [*odd_chips(facts), *shared_ships(splits), *copies(facts), *near_duplicates(facts), *_unmatched(protocols)]
    pairs = _training_pairs(splits[Split.TRAIN])
    groups = {split.value: own for split, own in splits.items()} | {"all": chips}
    return DatasetReport(
        splits={name: _split_facts(own, facts) for name, own in groups.items()},
        protocols=protocols,
        training_pairs=sum(pairs.values()),
        training_pair_ships=len(pairs),
        findings=tuple(sorted(findings, key=lambda finding: finding.level)),
    )


def _read(chip: Chip) -> PixelFacts | Finding:
    """What the pixels of a chip tell, or why they cannot be read."""
    is_sar = chip.modality is Modality.SAR
    try:
        pixels = read_sar(chip.path) if is_sar else read_optical(chip.path)
    except DataError as error:
        return _reading_fault(chip, str(error))
    return PixelFacts(
        chip=replace(chip, size=pixels.shape[1::-1]),
        values=(float(np.nanmin(pixels)), float(np.nanmax(pixels))) if is_sar else None,
        colour=not is_sar and has_colour(pixels),
        digest=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
        bits=perceptual_hash(render_percentile(pixels) if is_sar else pixels),
    )


def _reading_fault(chip: Chip, message: str) -> Finding:
    """Why a chip cannot be read: it is of the other modality, or damaged or of a kind that is not understood."""
    name = file_of(chip)
    try:
        told = modality_of_pixels(chip.path)
    except DataError:
        told = None
    if told not in (None, chip.modality):
        kinds = {Modality.OPTICAL: "an optical picture (it has colour)", Modality.SAR: "a SAR chip (one band of values)"}
        message = f"{name} is named as {chip.modality.name} and its pixels are those of {kinds[told]}; rename it"
        return Finding("error", "modality", message, (name,))
    return Finding("error", "unreadable", message, (name,))


def _protocol_sides(
    hoss: Path, splits: Mapping[Split, Sequence[Chip]], findings: list[Finding]
) -> dict[str, list[Sequence[Chip]]]:
    """Queries and gallery of every protocol, from `subset/` where it is present."""
    query, gallery = splits[Split.QUERY], splits[Split.GALLERY]
    images = [*query, *gallery]
    sides = {
        name: [[images[index] for index in side] for side in (protocol.query, protocol.gallery)]
        for name, protocol in make_protocols(query, gallery).items()
    }
    for name, modalities in CROSS_PROTOCOLS.items():
        if (hoss / "subset" / name).is_dir():
            for place, (main, modality) in enumerate(zip((query, gallery), modalities)):
                chips, found = list_chips(hoss, Split(f"{name}/{('query', 'gallery')[place]}"))
                findings += [*found, *_strange_in_subset(chips, main, modality)]
                sides[name][place] = [chip for chip in chips if chip.modality is modality]
    return sides


def _strange_in_subset(subset: Sequence[Chip], main: Sequence[Chip], modality: Modality) -> Iterator[Finding]:
    """Yield chips of a subset folder that the main split does not hold, or of the wrong sensor."""
    originals = {chip.path.name: chip.path for chip in main}
    strange = [
        chip
        for chip in subset
        if chip.path.name not in originals or not filecmp.cmp(chip.path, originals[chip.path.name], shallow=False)
    ]
    wrong = [chip for chip in subset if chip.modality is not modality]
    for level, message, chips in (
        ("warning", "are no copies of files in {}", strange),
        ("error", f"are not {modality.name}, as this protocol asks", wrong),
    ):
        if chips:
            message = f"{len(chips)} file(s) of subset {message.format(FOLDERS[Split(chips[0].split.side)])}"
            yield Finding(level, "subset", message, tuple(map(file_of, chips)))


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
    counts = Counter((chip.ship, chip.modality) for chip in train)
    pairs = {pid: counts[pid, Modality.OPTICAL] * counts[pid, Modality.SAR] for pid, _ in counts}
    return {pid: count for pid, count in pairs.items() if count}


def _split_facts(chips: Sequence[Chip], facts: Sequence[PixelFacts]) -> SplitFacts:
    own = {chip.path for chip in chips}
    read = [pixels for pixels in facts if pixels.chip.path in own]
    optical = sum(chip.modality is Modality.OPTICAL for chip in chips)
    return SplitFacts(
        images=len(chips),
        ships=len({chip.ship for chip in chips} - {DISTRACTOR}),
        optical=optical,
        sar=len(chips) - optical,
        distractors=sum(chip.ship == DISTRACTOR for chip in chips),
        height=_range(pixels.chip.size[1] for pixels in read),
        width=_range(pixels.chip.size[0] for pixels in read),
        sar_values=_range(value for pixels in read for value in pixels.values or ()),
    )


def _range(values: Iterable[float]) -> tuple[Any, Any] | None:
    values = list(values)
    return (min(values), max(values)) if values else None
