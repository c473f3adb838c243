"""Reading a data set in HOSS layout: which chips there are, of which ships, and which protocols they make.

`<root>/HOSS/{bounding_box_train,query,bounding_box_test}` and, where present,
`<root>/HOSS/subset/{O2S,S2O}/{query,bounding_box_test}`. A chip is named `<pid>_..._RGB.<suffix>` or `<pid>_..._SAR.<suffix>`.
"""

import filecmp
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets.chips import IMAGE_SUFFIXES
from datasets.records import DISTRACTOR, Chip, Modality, Protocol, Split
from utils.errors import DataError, some

logger = logging.getLogger(__name__)

CHIP_NAME = re.compile(r"(-1|[0-9]{1,18})_(?:.*_)?(RGB|SAR)", re.IGNORECASE)
MODALITIES = {"RGB": Modality.OPTICAL, "SAR": Modality.SAR}
CROSS_PROTOCOLS = {"O2S": (Modality.OPTICAL, Modality.SAR), "S2O": (Modality.SAR, Modality.OPTICAL)}
"""Name of a protocol -> modality of its queries, modality of its gallery."""


@dataclass(frozen=True)
class HossData:
    """What a data set in HOSS layout holds.

    Attributes:
        train: training chips, sorted by file name; empty if they were not asked for.
        labels: pid of a training ship -> its label, 0..N-1 in the order of the pids.
        images: every test image once: the queries, then the gallery, each sorted by file name, then images that only
            `subset/` holds; empty if they were not asked for.
        protocols: 'ALL', 'O2S' and 'S2O' over `images`; O2S or S2O is left out where one of its sides would be empty.
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
        for name, records in parts.items():
            ships = len({record.ship for record in records} - {DISTRACTOR})
            optical = sum(record.modality is Modality.OPTICAL for record in records)
            distractors = sum(record.ship == DISTRACTOR for record in records)
            lines.append(f"{name:<12}{ships:>8}{len(records):>8}{optical:>8}{len(records) - optical:>8}{distractors:>13}")
        return "\n".join(lines)


def read_hoss(root_dir: str | Path, *, train: bool = True, test: bool = True) -> HossData:
    """List the chips of `<root_dir>/HOSS`. No image is opened.

    Args:
        root_dir: the folder that holds `HOSS/` (DATASETS.ROOT_DIR).
        train: read `bounding_box_train`.
        test: read `query`, `bounding_box_test` and `subset`.

    Raises:
        DataError: a missing or empty folder, names without pid or modality, two files of one name, distractors anywhere but
            in a gallery.
    """
    hoss = Path(root_dir) / "HOSS"
    if not hoss.is_dir():
        raise DataError(f"{hoss} is no folder; set DATASETS.ROOT_DIR to the folder that holds HOSS/")
    train_records = read_split(hoss / "bounding_box_train", Split.TRAIN) if train else ()
    pids = sorted({record.ship for record in train_records})
    labels = {pid: label for label, pid in enumerate(pids)}
    images, protocols = _read_test(hoss) if test else ((), {})
    return HossData(train=train_records, labels=labels, images=images, protocols=protocols)


def read_split(folder: Path, split: Split) -> tuple[Chip, ...]:
    """List the chips of one folder, sorted by file name.

    Hidden files are passed over; so are files of other suffixes than `IMAGE_SUFFIXES` (in any case), with a warning.

    Args:
        folder: holds the chips; its own subfolders are not read.
        split: written into the records; distractors may stand in a gallery only.

    Raises:
        DataError: as `read_hoss`.
    """
    paths = _image_paths(folder)
    names = {path: CHIP_NAME.fullmatch(path.stem) for path in paths}
    _refuse(
        (path.name for path, match in names.items() if match is None or not path.is_file()),
        f"{folder} holds chips that are no files or are not named <pid>_..._RGB or <pid>_..._SAR; rename or remove",
    )
    copies = Counter(path.stem.lower() for path in paths)
    _refuse(
        (path.name for path in paths if copies[path.stem.lower()] > 1),
        f"{folder} holds several files of one name but for suffix or case; keep one of each of",
    )
    records = tuple(Chip(path, int(match[1]), MODALITIES[match[2].upper()], split) for path, match in names.items())
    if split.side != "gallery":
        _refuse(
            (record.path.name for record in records if record.ship == DISTRACTOR),
            f"{folder} holds distractors (pid {DISTRACTOR}), which belong in bounding_box_test; move",
        )
    return records


def _image_paths(folder: Path) -> list[Path]:
    """Entries of `folder` with the suffix of an image, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; a data set in HOSS layout needs it, see DATASETS.ROOT_DIR")
    visible = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    paths = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    others = [path.name for path in visible if path.suffix.lower() not in IMAGE_SUFFIXES]
    if not paths:
        raise DataError(f"{folder} holds no chip ({', '.join(IMAGE_SUFFIXES)}); put the chips of this split there")
    if others:
        logger.warning("%s: passed over what has no suffix of an image: %s", folder, some(others))
    return paths


def _read_test(hoss: Path) -> tuple[tuple[Chip, ...], dict[str, Protocol]]:
    """Test images, each once, and the protocols over them."""
    query = read_split(hoss / "query", Split.QUERY)
    gallery = read_split(hoss / "bounding_box_test", Split.GALLERY)
    images = [*query, *gallery]
    num_query = len(query)
    if not {record.ship for record in query} & {record.ship for record in gallery} - {DISTRACTOR}:
        raise DataError(
            f"{hoss}: none of the {num_query} queries has a match among the {len(gallery)} images of bounding_box_test; "
            "the two should show the same ships"
        )
    protocols = {"ALL": Protocol("ALL", tuple(range(num_query)), tuple(range(num_query, len(images))))}
    main_split = tuple(enumerate(images))
    places: dict[str, list[int]] = {}
    for index, image in main_split:
        places.setdefault(image.path.name, []).append(index)
    for name, (query_modality, gallery_modality) in CROSS_PROTOCOLS.items():
        folder = hoss / "subset" / name
        if folder.is_dir():
            sides = tuple(
                tuple(_place(record, images, places) for record in read_split(folder / side, Split(f"{name}/{split}")))
                for side, split in (("query", "query"), ("bounding_box_test", "gallery"))
            )
        else:
            sides = (
                tuple(i for i, record in main_split[:num_query] if record.modality is query_modality),
                tuple(i for i, record in main_split[num_query:] if record.modality is gallery_modality),
            )
        asked, shown = ({images[place].ship for place in side} for side in sides)
        if asked & shown - {DISTRACTOR}:
            protocols[name] = Protocol(name, *sides)
        else:
            logger.warning(
                "%s: no %s protocol, since none of its %d queries has a match among its %d gallery images",
                *(hoss, name),
                *map(len, sides),
            )
    return tuple(images), protocols


def _place(record: Chip, images: list[Chip], places: dict[str, list[int]]) -> int:
    """Index of the image that `record` is a copy of (same name, same bytes), after appending it where there is none.

    Args:
        record: an image of a subset.
        images: all so far.
        places: file name -> indices of the images of that name.
    """
    role = record.split.side
    same_name = places.setdefault(record.path.name, [])
    # The copy of a query is looked for among the queries first, and likewise in the gallery.
    for index in sorted(same_name, key=lambda i: images[i].split != role):
        if filecmp.cmp(images[index].path, record.path, shallow=False):
            return index
    images.append(record)
    same_name.append(len(images) - 1)
    return len(images) - 1


def _refuse(names: Iterable[str], sentence: str) -> None:
    """Raise a DataError of `sentence` and the names, if there are any."""
    names = list(names)
    if names:
        raise DataError(f"{sentence}: {some(names)}")
