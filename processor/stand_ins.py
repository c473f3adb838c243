"""Pictures that take the place of generated ones, to tell what generation could gain at most, and what anything would gain.

A perfect bridge would give another SAR picture of the same ship: a spare view, which is ranked nowhere. A picture of another
ship of that size, the optical picture in grey and the mean SAR picture tell how much of a gain is no knowledge of the ship.

Legend: S sources, the optical images that have a stand-in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.catalogue import HossData
from datasets.chips import ChipReading, read_header, read_optical
from datasets.records import DISTRACTOR, Chip, Modality, Protocol
from datasets.transforms import resize
from processor.fusion import SampleSet, find_samples
from utils.errors import DataError


def find_spare_views(folder: Path, data: HossData) -> SampleSet:
    """The K spare SAR views of every optical image of `data.images`, from a folder in the layout of generated samples.

    Their size triples are those of their own files: a real SAR chip is cut as large as its ship looks.

    Args:
        folder: such as `spare/test` of `tools.make_dataset --spare-views`; it may hold views of training chips too.
        data: its images, which may be a part of training chips that validates.

    Raises:
        DataError: a missing, extra or duplicate view.
    """
    found = find_samples([*data.images, *data.train], query_dir=str(folder), gallery_dir=str(folder), measured=True)
    count = len(data.images)
    sources = tuple(index for index in found.sources if index < count)
    chips = tuple(chips for chips, index in zip(found.chips, found.sources) if index < count)
    return SampleSet(found.images[:count], sources, chips, found.per_image)


def take_spare_views(data: HossData) -> tuple[HossData, SampleSet]:
    """Take one SAR chip of each ship that has two or more in the gallery out of every gallery, as that ship's spare view.

    Returns:
        The data whose galleries lack these chips, and the spare view of each optical image of these ships.

    Raises:
        DataError: no ship has two SAR chips in the gallery, or none of those an optical image.
    """
    shown: dict[int, list[int]] = {}
    for index in data.protocols["ALL"].gallery:
        chip = data.images[index]
        if chip.modality is Modality.SAR and chip.ship != DISTRACTOR:
            shown.setdefault(chip.ship, []).append(index)
    spare = {ship: data.images[indices[-1]] for ship, indices in shown.items() if len(indices) > 1}
    optical = [(index, chip) for index, chip in enumerate(data.images) if chip.modality is Modality.OPTICAL]
    sources = tuple(index for index, chip in optical if chip.ship in spare)
    if not sources:
        raise DataError(
            "no ship of an optical image has two SAR chips in the gallery, so none has one to spare; name some with --spare"
        )
    names = {chip.path.name for chip in spare.values()}  # a copy in subset/ goes too
    protocols = {
        name: Protocol(name, own.query, tuple(index for index in own.gallery if data.images[index].path.name not in names))
        for name, own in data.protocols.items()
    }
    chips = tuple((spare[data.images[index].ship],) for index in sources)
    return replace(data, protocols=protocols), SampleSet(data.images, sources, chips, 1)


def match_sizes(samples: SampleSet) -> list[int]:
    """For each source the place (0..S-1) of the source of another ship whose chip is nearest in size, the first of equals.

    Near is a small |log width ratio| + |log height ratio|. A distractor's ship is that of no other source.
    """
    chips = [samples.images[index] for index in samples.sources]
    sizes = np.log([chip.size or read_header(chip.path)[0] for chip in chips])
    ships = np.array([chip.ship for chip in chips])
    nearest = []
    for place, size in enumerate(sizes):
        distances = np.abs(sizes - size).sum(axis=1)
        distances[ships == ships[place]] = np.inf if ships[place] != DISTRACTOR else distances[ships == ships[place]]
        distances[place] = np.inf
        nearest.append(int(distances.argmin()))
    return nearest


def write_stand_ins(folder: Path, samples: SampleSet, draw: Callable[[Chip], Image.Image]) -> SampleSet:
    """Write a picture for each source of `samples` into a folder; `draw` gives it, of one band and the source's own size."""
    chips = []
    for index in samples.sources:
        source = samples.images[index]
        path = folder / f"{index}.png"
        draw(source).save(path)
        chips.append((Chip(path, source.ship, Modality.SAR, source.split, rendered=True, source=source),))
    return replace(samples, chips=tuple(chips), per_image=1, steps=())


def draw_grey(chip: Chip) -> Image.Image:
    """An optical chip in grey."""
    return Image.fromarray(read_optical(chip.path)).convert("L")


def build_mean_drawing(chips: Sequence[Chip], read: ChipReading, size: tuple[int, int]) -> Callable[[Chip], Image.Image]:
    """A function that gives the mean SAR picture of `chips`, averaged at `size` (rows, columns), in the size of any chip."""
    pictures = [read(chip) for chip in chips if chip.modality is Modality.SAR]
    bilinear = Image.Resampling.BILINEAR
    mean = np.mean([np.asarray(resize(picture, size, bilinear), dtype=np.float32) for picture in pictures], axis=0)
    picture = Image.fromarray(mean.round().astype(np.uint8)).convert("L")
    return lambda chip: picture.resize(chip.size or read_header(chip.path)[0], bilinear)
