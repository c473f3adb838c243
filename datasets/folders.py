"""Pictures of folders without labels: which there are, what took them, and which cannot be read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.askew import askew_angle
from datasets.catalogue import find_modality, find_pictures
from datasets.chips import ChipReading
from datasets.records import DISTRACTOR, Chip, Modality, Split
from utils.errors import DataError, some
from utils.log import progress

logger = logging.getLogger(__name__)

MODALITY_CHOICES = {"optical": Modality.OPTICAL, "sar": Modality.SAR}
"""How commands call the modalities, beside 'auto'."""


@dataclass(frozen=True)
class Gathered:
    """The pictures of a folder and of the folders below it.

    Attributes:
        chips: those that can be read, sorted by path; their ship is `DISTRACTOR`.
        names: path of each -> its path below the folder, with slashes; of one in the folder itself its file name.
        broken: path of each that cannot be read -> why, in a sentence that names it.
        askew: path of each whose ship does not stand upright -> degrees, as `datasets.askew` estimates them.
    """

    chips: tuple[Chip, ...]
    names: dict[Path, str]
    broken: dict[Path, str]
    askew: dict[Path, float] = field(default_factory=dict)


def gather_chips(path: Path, split: Split, modality: str, read: ChipReading, *, upright: bool = False) -> Gathered:
    """Find and read every picture of a folder and below it, or the one picture that `path` is.

    Args:
        path: folder or file.
        split: of the chips.
        modality: 'auto' (by the name, else the pixels), 'optical' or 'sar'.
        read: how chips are read; a picture is kept if it raises no DataError.
        upright: whether askew ships are to be turned upright.

    Raises:
        DataError: no such path, or no picture there.
    """
    root = path if path.is_dir() else path.parent
    return read_pictures(find_pictures(path), root, split, modality, read, upright=upright, visible=True)


def read_pictures(
    pictures: Sequence[Path],
    root: Path | None,
    split: Split,
    modality: str,
    read: ChipReading,
    *,
    upright: bool = False,
    visible: bool = False,
) -> Gathered:
    """The same of given pictures, named by their paths below `root`, or by their files; `visible`: with a progress bar."""
    chips, broken, askew = [], {}, {}
    with progress(len(pictures), f"reading {root.name if root else 'chips'}", unit="chip", visible=visible) as bar:
        for picture in pictures:
            try:
                known = MODALITY_CHOICES.get(modality)
                chip = Chip(picture, DISTRACTOR, find_modality(picture) if known is None else known, split)
                angle = askew_angle(read(chip))
                if angle is not None:
                    askew[picture] = angle
                chips.append(replace(chip, upright=upright and angle is not None))
            except DataError as error:
                broken[picture] = str(error)
            bar.update()
    names = {chip.path: chip.path.relative_to(root).as_posix() if root else chip.path.name for chip in chips}
    return Gathered(tuple(chips), names, broken, askew)


def warn_of_askew(gathered: Gathered, *, upright: bool) -> None:
    """Say which ships do not stand upright; `upright`: they were turned."""
    if gathered.askew:
        told = some(f"{gathered.names[path]} ({angle:+.0f} degrees)" for path, angle in gathered.askew.items())
        done = "turned upright" if upright else "the model knows upright ships only; --upright turns them"
        logger.warning("ships askew in %d of %d chips: %s; %s", len(gathered.askew), len(gathered.chips), told, done)


def refuse_broken(gathered: Gathered, *, skip: bool) -> None:
    """List the files that cannot be read.

    Args:
        gathered: from `gather_chips`.
        skip: go on without them.

    Raises:
        DataError: there are some and they are not to be skipped, or none is left.
    """
    sentences, total = list(gathered.broken.values()), len(gathered.chips) + len(gathered.broken)
    if not sentences:
        return
    if len(sentences) == 1 and not skip:
        raise DataError(sentences[0])
    for sentence in sentences:
        logger.warning("%s", sentence)
    if not skip:
        raise DataError(f"{len(sentences)} of {total} files cannot be used (listed above); mend them, or add --skip-bad")
    if not gathered.chips:
        raise DataError(f"none of {total} files can be used (listed above): {sentences[0]}")


def count_broken(*sides: Gathered) -> None:
    """The end of a command that skipped files: status 1, since not all was done.

    Raises:
        DataError: some were skipped.
    """
    broken = sum(len(side.broken) for side in sides)
    if broken:
        total = broken + sum(len(side.chips) for side in sides)
        raise DataError(f"{broken} of {total} files were skipped (listed above); everything else was done")
