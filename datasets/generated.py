"""Folders of generated pseudo-SAR pictures: the only place that knows the manifest and the names of samples.

A store holds `manifest.json` and, for sample k of each source chip, an 8-bit PNG `<source stem>_<k>.png` of the chip's own
size, or of the one size that its run saves. Every PNG carries the manifest's run and its own name, so that a picture of another
run or source is found out when it is read. The manifest is written before the pictures, each of which appears whole or not at
all: a run that stopped goes on with the rest.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from datasets.catalogue import list_entries, list_pictures
from datasets.chips import ORIGIN_KEY, read_generated, read_header
from datasets.records import Chip, Modality, Split
from utils.errors import DataError, shorten, some
from utils.files import replacing, write_json
from utils.reading import read_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERSION = 1

MANIFEST_LIMIT = 2**30
"""Bytes; five samples of each of a million chips take a third of it."""

Entries = dict[str, tuple[str, tuple[int, int]]]
"""What a manifest knows of its sources: file name -> split, and width and height."""


@dataclass(frozen=True)
class SamplingRun:
    """What decides the pixels of every sample of a store, beside its source and its k.

    Attributes:
        samples_per_image: K.
        sampler: name of the sampler, with its order where it has one.
        steps: network calls of a sample.
        eta: factor on the noise.
        seed: the global seed.
        weights_sha256: of the checkpoint file.
        model: sizes and settings of the bridge that made them.
    """

    samples_per_image: int
    sampler: str
    steps: int
    eta: float
    seed: int
    weights_sha256: str
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def saved(self) -> tuple[int, int] | None:
        """(width, height) of the pictures' files; None: each as its source."""
        size = self.model.get("SAVED_SIZE")
        return size and tuple(size)

    @property
    def digest(self) -> str:
        """Short name of this run: equal for equal settings only."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def sample_name(source: Path | str, k: int) -> str:
    """File name of sample k of a source, k = 0..K-1."""
    return f"{Path(source).stem}_{k}.png"


def sample_of(source: Chip, k: int, folder: Path, run: SamplingRun) -> Chip:
    """The record of sample k that a run makes, or made, of `source`, which knows its size."""
    return _sample(source, folder / sample_name(source.path, k), run)


def _sample(source: Chip, path: Path, run: SamplingRun | None) -> Chip:
    told = {"origin": f"{run.digest} {path.name}", "saved": run.saved} if run else {}
    return Chip(path, source.ship, Modality.SAR, source.split, source.size, rendered=True, source=source, **told)


def is_written(sample: Chip) -> bool:
    """Whether a sample is there, whole and of its run."""
    try:
        read_generated(sample)
    except DataError:
        return False
    return True


def write_sample(sample: Chip, picture: NDArray[np.uint8]) -> None:
    """Write a picture (height, width, 3) uint8 of the size that the run saves, whole or not at all."""
    if picture.shape != (*(sample.saved or sample.size)[::-1], 3):
        raise ValueError(f"a sample of {sample.source.path.name} has the shape {picture.shape}, not its source's or its run's")
    text = PngImagePlugin.PngInfo()
    text.add_text(ORIGIN_KEY, sample.origin)
    with replacing(sample.path) as temporary:
        Image.fromarray(picture).save(temporary, pnginfo=text)


def open_store(folder: Path, run: SamplingRun, sources: Sequence[Chip], *, config: dict[str, Any]) -> None:
    """Begin a store for `write_sample`, or go on with one of the same run; its manifest then also holds `sources`.

    Args:
        folder: made where it is missing.
        run: settings of the samples.
        sources: chips that samples will be made from; they know their sizes.
        config: the whole configuration, for the reader of the manifest.

    Raises:
        DataError: samples of another run, or pictures without a manifest, are in the folder; two sources would share names.
    """
    _refuse_shared_names([source.path.name for source in sources], folder)
    known: Entries = {}
    if (folder / MANIFEST).is_file():
        manifest_run, known, config = _read_manifest(folder)
        _refuse_other_run(folder, manifest_run, run)
    elif folder.is_dir() and (strangers := list_pictures(folder)):
        names = some(path.name for path in strangers)
        raise DataError(f"{folder} holds pictures but no {MANIFEST}: {names}; name a new folder with OUTPUT_DIR")
    ours: Entries = {source.path.name: (source.split, source.size) for source in sources}
    moved = [name for name, entry in ours.items() if known.get(name, entry) != entry]
    if moved:
        raise DataError(f"{folder} holds samples of other chips of the same name: {some(moved)}; name a new OUTPUT_DIR")
    known |= ours
    _refuse_shared_names(known, folder)
    entries = [
        {"split": split, "name": name, "width": width, "height": height}
        | {"samples": [sample_name(name, k) for k in range(run.samples_per_image)]}
        for name, (split, (width, height)) in sorted(known.items(), key=lambda item: (item[1][0], item[0]))
    ]
    write_json(folder / MANIFEST, {"version": VERSION, **asdict(run), "sources": entries, "config": config})


def read_samples(
    folder: str | Path, *, split: Split, sources: Sequence[Chip], elsewhere: Collection[Chip] | None = None
) -> tuple[dict[Path, tuple[Chip, ...]], SamplingRun | None]:
    """Find the samples of a split's optical chips. No picture is opened: what is in it is checked when it is read.

    Three layouts are read: a store with its manifest; `<source stem>/output_<k>.png`, as BBDM writes; and a flat folder of
    `<source stem>_<k>.png`. The last two are joined by stem alone, and the headers of their sources are read for their sizes.

    Args:
        folder: the samples.
        split: of the sources.
        sources: the split's optical chips; names must differ.
        elsewhere: optical chips of all other splits, whose samples the folder may hold too; None lets a store hold any other
            split, and a folder without manifest none.

    Returns:
        Path of a source -> its K generated pictures in order of k, in the order in which the sources were given; the run of the
        manifest, None for a folder without one.

    Raises:
        DataError: a missing, extra or duplicate sample; a source of another size than the manifest says. The message lists
            names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; DATASETS.QUERY_ADD_DIR and DATASETS.GALLERY_ADD_DIR name generated samples")
    _refuse_shared_names([source.path.name for source in sources], folder)
    if (folder / MANIFEST).is_file():
        return _read_store(folder, split, sources, elsewhere)
    return _read_plain(folder, sources, elsewhere or ()), None


def _read_store(
    folder: Path, split: Split, sources: Sequence[Chip], elsewhere: Collection[Chip] | None
) -> tuple[dict[Path, tuple[Chip, ...]], SamplingRun]:
    run, entries, _ = _read_manifest(folder)
    names = {source.path.name for source in sources}
    own = {name: size for name, (entry_split, size) in entries.items() if entry_split == split}
    _refuse(folder, f"has no samples of chips of the split '{split}'", [s.path.name for s in sources if s.path.name not in own])
    strangers = [name for name in own if name not in names]
    if elsewhere is not None:
        strangers += sorted(entries.keys() - own.keys() - {chip.path.name for chip in elsewhere})
    _refuse(folder, "has samples of chips that no split holds", strangers)
    _refuse(
        folder,
        "was made from chips of another size than these",
        [source.path.name for source in sources if source.size not in (None, own[source.path.name])],
    )
    present = {path.name for path in list_pictures(folder)}
    known = {sample_name(name, k) for name in entries for k in range(run.samples_per_image)}
    _refuse(folder, f"holds pictures that {MANIFEST} does not know", sorted(present - known))
    sized = [replace(source, size=own[source.path.name]) for source in sources]
    paths = {chip: [folder / sample_name(chip.path, k) for k in range(run.samples_per_image)] for chip in sized}
    missing = [path.name for chip in sized for path in paths[chip] if path.name not in present]
    if missing:
        raise DataError(f"{folder}: missing samples: {some(missing)}; make them again")
    return {chip.path: tuple(_sample(chip, path, run) for path in paths[chip]) for chip in sized}, run


def _read_plain(folder: Path, sources: Sequence[Chip], elsewhere: Collection[Chip]) -> dict[Path, tuple[Chip, ...]]:
    """Join a folder without manifest by stem."""
    stems = {source.path.stem for source in sources}
    others = {chip.path.stem for chip in elsewhere} - stems
    found: dict[str, dict[int, Path]] = {stem: {} for stem in stems}
    strangers, repeated = [], []
    for path in list_pictures(folder) + [inner for child in _folders(folder) for inner in list_pictures(child)]:
        stem, k = _source_of(path, folder, stems | others)
        if stem is None:
            strangers.append(str(path.relative_to(folder)))
        elif stem in stems and k in found[stem]:
            repeated.append(str(path.relative_to(folder)))
        elif stem in stems:
            found[stem][k] = path
    _refuse(folder, "holds pictures of chips that no split holds", strangers)
    _refuse(folder, "holds more than one picture for the same sample", repeated)
    numbers = {k for samples in found.values() for k in samples} or {0}
    lacking = [source.path.name for source in sources if set(found[source.path.stem]) != numbers]
    _refuse(folder, f"lacks some of the samples {', '.join(map(str, sorted(numbers)))} of", lacking)
    sized = [replace(source, size=source.size or read_header(source.path)[0]) for source in sources]
    return {chip.path: tuple(_sample(chip, path, None) for _, path in sorted(found[chip.path.stem].items())) for chip in sized}


def _source_of(path: Path, folder: Path, stems: Collection[str]) -> tuple[str | None, int]:
    """Stem of the source and k of a picture in a folder without manifest; no stem if it is nobody's."""
    if path.parent != folder:
        number = re.fullmatch(r"output_(\d+)", path.stem)
        stem = path.parent.name
    else:
        number = re.fullmatch(r".*_(\d+)", path.stem)
        stem = path.stem.rpartition("_")[0]
    if number and stem in stems:
        return stem, int(number[1])
    if path.parent == folder and path.stem in stems:  # one sample a chip, without a number
        return path.stem, 0
    return None, 0


def _read_manifest(folder: Path) -> tuple[SamplingRun, Entries, dict[str, Any]]:
    """The run, the sources and the configuration of a manifest whose samples are the ones their sources call for."""
    path = folder / MANIFEST
    try:
        content = read_json(path, limit=MANIFEST_LIMIT)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        run = SamplingRun(**{name: content[name] for name in SamplingRun.__dataclass_fields__})
        rows = [(row["name"], row["split"], (row["width"], row["height"]), list(row["samples"])) for row in content["sources"]]
        wrong = [name for name, *_, ours in rows if ours != [sample_name(name, k) for k in range(run.samples_per_image)]]
        entries = {name: (split, size) for name, split, size, _ in rows}
        config = dict(content.get("config", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = shorten(repr(error), 100)
        raise DataError(f"{path} is no manifest of generated samples ({fault}); make the samples again") from error
    _refuse(path, "lists samples that are not its sources' own, in order", wrong)
    _refuse(path, "lists chips twice", _repeated(name for name, *_ in rows))
    return run, entries, config


def _refuse_other_run(folder: Path, theirs: SamplingRun, ours: SamplingRun) -> None:
    ours = SamplingRun(**json.loads(json.dumps(asdict(ours))))  # tuples as the manifest spells them
    differing = [
        f"{name} {getattr(theirs, name)!r} instead of {getattr(ours, name)!r}"
        for name in SamplingRun.__dataclass_fields__
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differing:
        raise DataError(f"{folder} holds samples of another run: {'; '.join(differing)}; name a new folder with OUTPUT_DIR")


def _refuse_shared_names(names: Iterable[str], folder: Path) -> None:
    _refuse(folder, "would mix the samples of chips of the same stem", _repeated(Path(name).stem for name in names))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in list_entries(folder) if path.is_dir() and not path.name.startswith("."))


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeated = set()
    for name in names:
        (repeated if name in seen else seen).add(name)
    return sorted(repeated)


def _refuse(folder: Path, sentence: str, names: Sequence[str]) -> None:
    if names:
        raise DataError(f"{folder} {sentence}: {some(names)}")
