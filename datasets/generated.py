"""Folders of generated pseudo-SAR pictures: the only place that knows the manifest and the names of samples.

A store holds `manifest.json` and, for sample k of each source chip, an 8-bit PNG `<source stem>_<k>.png` of the chip's own
size. Every PNG carries the manifest's run and its own name, so that a picture of another run or source is found out. The
manifest is written before the pictures, each of which appears whole or not at all: a run that stopped goes on with the rest.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from datasets.chips import IMAGE_SUFFIXES, read_shape
from utils.errors import DataError, some
from utils.files import replacing, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERSION = 1
PNG_KEY = "generated"
"""Key of the text in a PNG: `<run> <file name>`."""


@dataclass(frozen=True)
class Run:
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
    def digest(self) -> str:
        """Short name of this run: equal for equal settings only."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """An optical chip that samples are made from.

    Attributes:
        split: as in `Chip.split`.
        name: file name.
        width: of the chip, and of its samples, in pixels.
        height: likewise.
    """

    split: str
    name: str
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def sample_name(self, k: int) -> str:
        """File name of sample k, k = 0..K-1."""
        return f"{Path(self.name).stem}_{k}.png"


@dataclass(frozen=True)
class GeneratedSamples:
    """What a reader gets.

    Attributes:
        paths: file name of a source -> its K samples in order of k; in the order in which the sources were given.
        per_image: K; 0 if there are no sources.
        run: of the manifest; None for a folder without one.
    """

    paths: dict[str, tuple[Path, ...]]
    per_image: int
    run: Run | None = None


class SampleStore:
    """A folder that samples are written into; see `open_store`."""

    def __init__(self, folder: Path, run: Run):
        self.folder = folder
        self.run = run

    def is_written(self, source: Source, k: int) -> bool:
        """Whether sample k of `source` is there, whole and of this run."""
        path = self.folder / source.sample_name(k)
        return path.is_file() and _fault(path, self.run, source.size) is None

    def write(self, source: Source, k: int, picture: NDArray[np.uint8]) -> None:
        """Write a picture (height, width, 3) uint8 of the source's own size, whole or not at all."""
        if picture.shape != (source.height, source.width, 3):
            raise ValueError(f"a sample of {source.name} has the shape {picture.shape}, not its source's")
        name = source.sample_name(k)
        text = PngImagePlugin.PngInfo()
        text.add_text(PNG_KEY, f"{self.run.digest} {name}")
        with replacing(self.folder / name) as temporary:
            Image.fromarray(picture).save(temporary, pnginfo=text)


def open_store(folder: Path, run: Run, sources: Sequence[Source], *, config: dict[str, Any]) -> SampleStore:
    """Begin a store, or go on with one of the same run; its manifest then also holds `sources`.

    Args:
        folder: made where it is missing.
        run: settings of the samples.
        sources: chips that samples will be made from.
        config: the whole configuration, for the reader of the manifest.

    Raises:
        DataError: samples of another run, or pictures without a manifest, are in the folder; two sources would share names.
    """
    _refuse_shared_names(sources, folder)
    known: dict[str, Source] = {}
    if (folder / MANIFEST).is_file():
        manifest_run, manifest_sources, config = _read_manifest(folder)
        _refuse_other_run(folder, manifest_run, run)
        known = {source.name: source for source in manifest_sources}
    elif folder.is_dir() and (strangers := _pictures(folder)):
        names = some(path.name for path in strangers)
        raise DataError(f"{folder} holds pictures but no {MANIFEST}: {names}; name a new folder with OUTPUT_DIR")
    moved = [source.name for source in sources if known.get(source.name, source) != source]
    if moved:
        raise DataError(f"{folder} holds samples of other chips of the same name: {some(moved)}; name a new OUTPUT_DIR")
    known |= {source.name: source for source in sources}
    _refuse_shared_names(known.values(), folder)
    entries = [
        {**asdict(source), "samples": [source.sample_name(k) for k in range(run.samples_per_image)]}
        for source in sorted(known.values(), key=lambda source: (source.split, source.name))
    ]
    content = {"version": VERSION, **asdict(run), "sources": entries, "config": config}
    write_json(folder / MANIFEST, content)
    return SampleStore(folder, run)


def read_samples(
    folder: str | Path, *, split: str, sources: Sequence[Path], elsewhere: Collection[Path] | None = None
) -> GeneratedSamples:
    """Find the samples of a split's optical chips and check every one of them.

    Three layouts are read: a store with its manifest; `<source stem>/output_<k>.png`, as BBDM writes; and a flat folder of
    `<source stem>_<k>.png`. The last two are joined by stem alone.

    Args:
        folder: the samples.
        split: of the sources, as in `Chip.split`.
        sources: the split's optical chips; names must differ.
        elsewhere: optical chips of all other splits, whose samples the folder may hold too; None lets a store hold any other
            split, and a folder without manifest none.

    Raises:
        DataError: a missing, extra, duplicate, damaged or foreign sample, or one of another size than its source. The message
            lists names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; DATASETS.QUERY_ADD_DIR and DATASETS.GALLERY_ADD_DIR name generated samples")
    _refuse(folder, "would mix the samples of chips of the same stem", _repeated(path.stem for path in sources))
    if (folder / MANIFEST).is_file():
        return _read_store(folder, split, sources, elsewhere)
    return _read_plain(folder, sources, elsewhere or ())


def _read_store(folder: Path, split: str, sources: Sequence[Path], elsewhere: Collection[Path] | None) -> GeneratedSamples:
    run, entries, _ = _read_manifest(folder)
    in_split = {entry.name: entry for entry in entries if entry.split == split}
    other_names = {entry.name for entry in entries if entry.split != split}
    names = dict.fromkeys(path.name for path in sources)
    _refuse(folder, f"has no samples of chips of the split '{split}'", [name for name in names if name not in in_split])
    strangers = [name for name in in_split if name not in names]
    if elsewhere is not None:
        strangers += sorted(other_names - {path.name for path in elsewhere})
    _refuse(folder, "has samples of chips that no split holds", strangers)
    expected = {entry.sample_name(k) for entry in entries for k in range(run.samples_per_image)}
    _refuse(
        folder, f"holds pictures that {MANIFEST} does not know", [p.name for p in _pictures(folder) if p.name not in expected]
    )
    paths = {name: tuple(folder / in_split[name].sample_name(k) for k in range(run.samples_per_image)) for name in names}
    resized = [path.name for path in sources if read_shape(path) != in_split[path.name].size]
    _refuse(folder, "was made from chips of another size than these", resized)
    _check_samples(folder, [(path, run, in_split[name].size) for name in names for path in paths[name]])
    return GeneratedSamples(paths=paths, per_image=run.samples_per_image if names else 0, run=run)


def _read_plain(folder: Path, sources: Sequence[Path], elsewhere: Collection[Path]) -> GeneratedSamples:
    """Join a folder without manifest by stem."""
    stems = {path.stem for path in sources}
    others = {path.stem for path in elsewhere} - stems
    found: dict[str, dict[int, Path]] = {stem: {} for stem in stems}
    strangers, repeated = [], []
    for path in _pictures(folder) + [inner for child in _folders(folder) for inner in _pictures(child)]:
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
    lacking = [path.name for path in sources if set(found[path.stem]) != numbers]
    _refuse(folder, f"lacks some of the samples {', '.join(map(str, sorted(numbers)))} of", lacking)
    paths = {path.name: tuple(found[path.stem][k] for k in sorted(found[path.stem])) for path in sources}
    _check_samples(folder, [(sample, None, None) for samples in paths.values() for sample in samples])
    return GeneratedSamples(paths=paths, per_image=len(numbers) if sources else 0)


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


def _read_manifest(folder: Path) -> tuple[Run, list[Source], dict[str, Any]]:
    """The run, the sources and the configuration of a manifest whose samples are the ones their sources call for."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        run = Run(**{name: content[name] for name in Run.__dataclass_fields__})
        entries = [
            (Source(**{name: entry[name] for name in Source.__dataclass_fields__}), entry) for entry in content["sources"]
        ]
        names = [(source, list(entry["samples"])) for source, entry in entries]
        wrong = [source.name for source, ours in names if ours != [source.sample_name(k) for k in range(run.samples_per_image)]]
        config = dict(content.get("config", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no manifest of generated samples ({error!r}); make the samples again") from error
    _refuse(path, "lists samples that are not its sources' own, in order", wrong)
    sources = [source for source, _ in entries]
    _refuse(path, "lists chips twice", _repeated(source.name for source in sources))
    return run, sources, config


def _refuse_other_run(folder: Path, theirs: Run, ours: Run) -> None:
    ours = Run(**json.loads(json.dumps(asdict(ours))))  # tuples as the manifest spells them
    differing = [
        f"{name} {getattr(theirs, name)!r} instead of {getattr(ours, name)!r}"
        for name in Run.__dataclass_fields__
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differing:
        raise DataError(f"{folder} holds samples of another run: {'; '.join(differing)}; name a new folder with OUTPUT_DIR")


def _refuse_shared_names(sources: Iterable[Source], folder: Path) -> None:
    repeated = _repeated(Path(source.name).stem for source in sources)
    _refuse(folder, "would mix the samples of chips of the same stem", repeated)


def _check_samples(folder: Path, samples: Sequence[tuple[Path, Run | None, tuple[int, int] | None]]) -> None:
    """Refuse samples that are missing, damaged, of another run or source, or of another size."""
    faults: dict[str, list[str]] = {}
    for path, run, size in samples:
        fault = _fault(path, run, size)
        if fault:
            faults.setdefault(fault, []).append(path.name)
    if faults:
        raise DataError(
            f"{folder}: " + "; ".join(f"{fault}: {some(names)}" for fault, names in faults.items()) + "; make them again"
        )


def _fault(path: Path, run: Run | None, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a sample, or None. Without a run, its origin is not asked for; without a size, neither is that."""
    if not path.is_file():
        return "missing samples"
    try:
        with Image.open(path) as image:
            image.load()
            origin = image.info.get(PNG_KEY)
            mode, actual = image.mode, image.size
    except Exception:  # Pillow's parsers raise almost anything on damaged files
        return "damaged samples"
    if mode not in ("RGB", "L"):
        return "samples that are no 8-bit RGB pictures"
    if run is not None and origin != f"{run.digest} {path.name}":
        return f"samples that the run of {MANIFEST} did not make under this name"
    if size is not None and actual != size:
        return "samples of another size than their source"
    return None


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeated = set()
    for name in names:
        (repeated if name in seen else seen).add(name)
    return sorted(repeated)


def _refuse(folder: Path, sentence: str, names: Sequence[str]) -> None:
    if names:
        raise DataError(f"{folder} {sentence}: {some(names)}")
