"""Which chips there are: the one lister of picture files, the one parser of names, the one reader of a data set.

HOSS layout is `<root>/HOSS/{bounding_box_train,query,bounding_box_test}` and, where present,
`<root>/HOSS/subset/{O2S,S2O}/{query,bounding_box_test}`. A chip is named `<pid>_..._RGB.<suffix>` or `<pid>_..._SAR.<suffix>`.
"""

import filecmp
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.chips import modality_of_pixels
from datasets.records import DISTRACTOR, Chip, Modality, Protocol, Split
from utils.errors import DataError, is_text, some

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
"""Suffixes of chips, in lower case."""

FOLDERS = {
    Split.TRAIN: "bounding_box_train",
    Split.QUERY: "query",
    Split.GALLERY: "bounding_box_test",
    Split.O2S_QUERY: "subset/O2S/query",
    Split.O2S_GALLERY: "subset/O2S/bounding_box_test",
    Split.S2O_QUERY: "subset/S2O/query",
    Split.S2O_GALLERY: "subset/S2O/bounding_box_test",
}
"""Split -> its folder in HOSS/."""

MODALITIES = {"RGB": Modality.OPTICAL, "SAR": Modality.SAR}
"""The last word of a chip's name -> modality."""

KINDS = {modality: kind for kind, modality in MODALITIES.items()}
"""Modality -> the last word of a chip's name."""

NAME_WORDS = {"rgb": Modality.OPTICAL, "opt": Modality.OPTICAL, "optical": Modality.OPTICAL, "sar": Modality.SAR}
"""Words that tell the modality in names that follow no rule."""

CROSS_PROTOCOLS = {"O2S": (Modality.OPTICAL, Modality.SAR), "S2O": (Modality.SAR, Modality.OPTICAL)}
"""Name of a protocol -> modality of its queries, modality of its gallery."""

_CHIP_NAME = re.compile(r"(-1|[0-9]{1,18})_(?:.*_)?(RGB|SAR)", re.IGNORECASE)


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
class HossData:
    """What a data set in HOSS layout holds.

    Attributes:
        train: training chips, sorted by file name; empty if they were not asked for.
        labels: pid of a training ship -> its label, 0..N-1 in the order of the pids.
        images: every test image once: the queries, then the gallery, each sorted by file name, then images that only
            `subset/` holds; empty if they were not asked for.
        protocols: 'ALL', 'O2S' and 'S2O' over `images`; O2S or S2O is left out where none of its queries has a match.
    """

    train: tuple[Chip, ...]
    labels: dict[int, int]
    images: tuple[Chip, ...]
    protocols: dict[str, Protocol]

    @property
    def num_identities(self) -> int:
        """Number of training ships, which is the width of the classifier."""
        return len(self.labels)

    def summary(self) -> str:
        """Lines of a table for the log: ships, images, optical, SAR and distractor images of each part."""
        parts = {"train": list(self.train)} if self.train else {}
        for protocol in self.protocols.values():
            parts[f"{protocol.name} query"] = [self.images[index] for index in protocol.query]
            parts[f"{protocol.name} gallery"] = [self.images[index] for index in protocol.gallery]
        lines = [f"{'part':<12}{'ships':>8}{'images':>8}{'optical':>8}{'SAR':>8}{'distractors':>13}"]
        for name, chips in parts.items():
            ships = len({chip.ship for chip in chips} - {DISTRACTOR})
            optical = sum(chip.modality is Modality.OPTICAL for chip in chips)
            distractors = sum(chip.ship == DISTRACTOR for chip in chips)
            lines.append(f"{name:<12}{ships:>8}{len(chips):>8}{optical:>8}{len(chips) - optical:>8}{distractors:>13}")
        return "\n".join(lines)


# Files


def is_picture(path: Path) -> bool:
    """Whether a file is named as a picture, in any case; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_pictures(folder: Path) -> list[Path]:
    """The entries of a folder that are named as pictures, sorted by name; none is opened.

    Raises:
        DataError: a name is no text.
    """
    return sorted((path for path in list_entries(folder) if is_picture(path)), key=lambda path: path.name)


def list_entries(folder: Path) -> list[Path]:
    """Everything in a folder, in no order; hidden files too.

    Raises:
        DataError: a name is no text. Results, manifests and logs, which are text, could not name it.
    """
    entries = list(folder.iterdir())
    if odd := [path.name for path in entries if not is_text(path.name)]:
        raise DataError(f"{folder} holds names that are no text in UTF-8: {some(sorted(odd))}; rename these files")
    return entries


def _files_of(folder: Path) -> set[str]:
    """Names of the files of a folder, and of links to files: told by the folder itself, without a look at each file."""

    def is_file(entry: os.DirEntry) -> bool:
        try:
            return entry.is_file()
        except OSError:  # a link that leads to itself
            return False

    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if is_file(entry)}


def find_pictures(path: Path) -> list[Path]:
    """The pictures of a folder and of those below it, sorted by path, or the one picture that `path` is; none is opened.

    Hidden files and folders are passed over.

    Raises:
        DataError: no such path, or no picture in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; name a folder of chips or a single chip")
    below = (picture for picture in path.rglob("*") if is_picture(picture))
    if pictures := [picture for picture in below if not _is_hidden(picture.relative_to(path))]:
        return sorted(pictures, key=lambda picture: picture.relative_to(path).parts)
    raise DataError(f"{path} and the folders below it hold no chip ({', '.join(IMAGE_SUFFIXES)})")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# Names


def parse_name(path: Path) -> tuple[int, Modality] | None:
    """Ship and modality that a name by the rules of HOSS tells; None where it does not follow them."""
    match = _CHIP_NAME.fullmatch(path.stem)
    return (int(match[1]), MODALITIES[match[2].upper()]) if match else None


def modality_of_name(path: Path) -> Modality | None:
    """The modality that words of any file name tell ('0012_s01_RGB.tif', 'sar-7.png'); None for none or for both."""
    words = re.split(r"[^0-9a-z]+", path.stem.lower())
    found = {NAME_WORDS[word] for word in words if word in NAME_WORDS}
    return found.pop() if len(found) == 1 else None


def find_modality(path: Path) -> Modality:
    """The modality of a chip from its name, else from its pixels.

    Raises:
        DataError: neither tells, or the file cannot be read.
    """
    modality = modality_of_name(path)
    if modality is None:
        modality = modality_of_pixels(path)
    if modality is None:
        raise DataError(
            f"{path} is grey and its name says neither RGB nor SAR, so its modality is open; say which it is, or rename it"
        )
    return modality


# Data sets


def file_of(chip: Chip) -> str:
    """A chip's file relative to HOSS/."""
    return f"{FOLDERS[chip.split]}/{chip.path.name}"


def list_chips(hoss: Path, split: Split) -> tuple[tuple[Chip, ...], list[Finding]]:
    """The chips of a split of `HOSS/`, sorted by file name, and what is wrong with the names there. No image is opened.

    Hidden files are passed over.
    """
    folder = FOLDERS[split]
    if not (hoss / folder).is_dir():
        message = f"{folder} is no folder; a data set in HOSS layout needs it, see DATASETS.ROOT_DIR"
        return (), [Finding("error", "missing folder", message)]
    found = [path for path in list_entries(hoss / folder) if not path.name.startswith(".")]
    entries = sorted(found, key=lambda path: path.name)
    pictures = [path for path in entries if is_picture(path)]
    files = _files_of(hoss / folder)
    names = {path: parse_name(path) if path.name in files else None for path in pictures}
    chips = tuple(Chip(path, *name, split) for path, name in names.items() if name is not None)
    findings = []
    if not pictures:
        message = f"{folder} holds no chip ({', '.join(IMAGE_SUFFIXES)}); put the chips of this split there"
        findings.append(Finding("error", "empty folder", message))
    stems = Counter(path.stem.lower() for path in pictures)
    odd = [path for path, name in names.items() if name is None]
    strays = [chip.path for chip in chips if chip.ship == DISTRACTOR and split.side != "gallery"]
    for level, kind, message, wrong in (
        ("warning", "not a chip", "files without the suffix of an image, which are passed over", set(entries) - set(pictures)),
        ("error", "name", "chips that are no files or are not named <pid>_..._RGB or <pid>_..._SAR; rename or remove", odd),
        (
            *("error", "name", "several files of one name but for suffix or case; keep one of each of"),
            [path for path in pictures if stems[path.stem.lower()] > 1],
        ),
        ("error", "distractor", f"distractors (pid {DISTRACTOR}), which belong in bounding_box_test; move", strays),
    ):
        if wrong:
            files = tuple(sorted(f"{folder}/{path.name}" for path in wrong))
            findings.append(Finding(level, kind, f"{folder} holds {message}", files))
    return chips, findings


def read_hoss(root_dir: str | Path, *, train: bool = True, test: bool = True, key: str = "DATASETS.ROOT_DIR") -> HossData:
    """List the chips of `<root_dir>/HOSS`; the first error among what is found ends it. No image is opened.

    Args:
        root_dir: the folder that holds `HOSS/`.
        train: read `bounding_box_train`.
        test: read `query`, `bounding_box_test` and `subset`.
        key: the configuration key that names it, for the message.

    Raises:
        DataError: a missing or empty folder, names without pid or modality, two files of one name, distractors anywhere but
            in a gallery, a query side and a gallery without a common ship.
    """
    hoss = Path(root_dir) / "HOSS"
    if not hoss.is_dir():
        raise DataError(f"{hoss} is no folder; set {key} to the folder that holds HOSS/")
    train_chips = _read_split(hoss, Split.TRAIN) if train else ()
    images, protocols = _read_test(hoss) if test else ((), {})
    return HossData(train=train_chips, labels=label_ships(train_chips), images=images, protocols=protocols)


def label_ships(chips: Iterable[Chip]) -> dict[int, int]:
    """Pid of a ship -> its label, 0..N-1 in the order of the pids."""
    return {pid: label for label, pid in enumerate(sorted({chip.ship for chip in chips}))}


def _read_split(hoss: Path, split: Split) -> tuple[Chip, ...]:
    """The chips of a split, of which no error may be found; warnings go to the log."""
    chips, findings = list_chips(hoss, split)
    for finding in findings:
        files = f": {some(Path(file).name for file in finding.files)}" if finding.files else ""
        if finding.level == "error":
            raise DataError(f"{hoss}/{finding.message}{files}")
        logger.warning("%s/%s%s", hoss, finding.message, files)
    return chips


def _read_test(hoss: Path) -> tuple[tuple[Chip, ...], dict[str, Protocol]]:
    """Test images, each once, and the protocols over them."""
    query, gallery = _read_split(hoss, Split.QUERY), _read_split(hoss, Split.GALLERY)
    images, protocols = [*query, *gallery], make_protocols(query, gallery)
    if not have_match(images, protocols["ALL"]):
        raise DataError(
            f"{hoss}: none of the {len(query)} queries has a match among the {len(gallery)} images of bounding_box_test; "
            "the two should show the same ships"
        )
    places: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        places.setdefault(image.path.name, []).append(index)
    for name in CROSS_PROTOCOLS:
        if (hoss / "subset" / name).is_dir():
            sides = (_read_split(hoss, Split(f"{name}/{side}")) for side in ("query", "gallery"))
            protocols[name] = Protocol(name, *(tuple(_place(chip, images, places) for chip in side) for side in sides))
        if not have_match(images, protocols[name]):
            protocol = protocols.pop(name)
            counts = (len(protocol.query), len(protocol.gallery))
            message = "%s: no %s protocol, since none of its %d queries has a match among its %d gallery images"
            logger.warning(message, hoss, name, *counts)
    return tuple(images), protocols


def make_protocols(query: Sequence[Chip], gallery: Sequence[Chip]) -> dict[str, Protocol]:
    """ALL, O2S and S2O over the images (*query, *gallery), by their modalities."""
    first = len(query)
    protocols = {"ALL": Protocol("ALL", tuple(range(first)), tuple(range(first, first + len(gallery))))}
    for name, (asking, asked) in CROSS_PROTOCOLS.items():
        queries = tuple(index for index, chip in enumerate(query) if chip.modality is asking)
        candidates = tuple(index for index, chip in enumerate(gallery, start=first) if chip.modality is asked)
        protocols[name] = Protocol(name, queries, candidates)
    return protocols


def have_match(images: Sequence[Chip], protocol: Protocol) -> bool:
    """Whether any query of a protocol has a match in its gallery."""
    asked, shown = ({images[index].ship for index in side} for side in (protocol.query, protocol.gallery))
    return bool(asked & shown - {DISTRACTOR})


def _place(chip: Chip, images: list[Chip], places: dict[str, list[int]]) -> int:
    """Index of the image that `chip` is a copy of (same name, same bytes), after appending it where there is none.

    Args:
        chip: an image of a subset.
        images: all so far.
        places: file name -> indices of the images of that name.
    """
    same_name = places.setdefault(chip.path.name, [])
    # The copy of a query is looked for among the queries first, and likewise in the gallery.
    for index in sorted(same_name, key=lambda i: images[i].split != chip.split.side):
        if filecmp.cmp(images[index].path, chip.path, shallow=False):
            return index
    images.append(chip)
    same_name.append(len(images) - 1)
    return len(images) - 1
