"""Pairs of an optical and a SAR picture of one scene or ship, from which the bridge and contrastive pre-training learn."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.catalogue import IMAGE_SUFFIXES, MODALITIES, list_entries, list_pictures
from datasets.chips import read_header
from datasets.records import DISTRACTOR, Chip, Modality, Split
from utils.errors import DataError, some
from utils.log import progress

logger = logging.getLogger(__name__)

FOLDER_NAMES = {Modality.OPTICAL: ("opt", "rgb", "a"), Modality.SAR: ("sar", "b")}
"""How the folder of a modality may begin, in lower case; single letters are whole names (BBDM's A and B)."""


@dataclass(frozen=True)
class Pair:
    """An optical and a SAR chip of one scene or ship.

    Attributes:
        optical: of it.
        sar: of it. An 8-bit picture of a registered pair has been rendered by somebody already and is read as it is.
        place: what training and validation must not share: the scene, or the ship.
        registered: whether the two show the same ground pixel by pixel.
    """

    optical: Chip
    sar: Chip
    place: str
    registered: bool = True


@dataclass(frozen=True)
class PairLists:
    """Pairs to train on, and those held out for validation (may be none)."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]


def chips_of(pairs: Iterable[Pair]) -> list[Chip]:
    """The chips of pairs: 2 i is the optical one of pair i, 2 i + 1 its SAR one."""
    return [chip for pair in pairs for chip in (pair.optical, pair.sar)]


def read_registered_pairs(folder: str | Path, *, hold_out_every: int = 0) -> PairLists:
    """List the pairs of a folder that holds one folder for each modality, with the same file names (but for suffix) in both.

    Folders are named after QXS-SAROPT (`opt...`, `sar...`) or BBDM (`A` optical, `B` SAR). They may lie under `train/` and
    `val/` (or `test/`); then `val/` is held out and `hold_out_every` is not used.

    Args:
        folder: holds the folders.
        hold_out_every: every N-th place in sorted order is held out; a place is the text before the first `_` of a name.

    Raises:
        DataError: no such folders, unpaired names, pairs of different size, no pair. The message lists names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of pairs; it holds a folder of pictures for each modality")
    if (folder / "train").is_dir():
        held_out = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
        return PairLists(_read_folder(folder / "train"), _read_folder(held_out) if held_out else ())
    return split_by_place(_read_folder(folder), hold_out_every)


def pair_ship_views(records: Iterable[Chip], *, hold_out_every: int = 0) -> PairLists:
    """List every optical x SAR view of each ship; its place is the ship.

    Ships that one sensor alone saw make no pair and are counted in the log.

    Args:
        records: training chips.
        hold_out_every: every N-th ship is held out; see `split_by_place`.

    Raises:
        DataError: no ship was seen by both sensors.
    """
    ships: dict[int, dict[Modality, list[Chip]]] = {}
    for record in records:
        ships.setdefault(record.ship, {modality: [] for modality in Modality})[record.modality].append(record)
    pairs = tuple(
        Pair(optical, sar, str(pid), registered=False)
        for pid, views in sorted(ships.items())
        for optical in views[Modality.OPTICAL]
        for sar in views[Modality.SAR]
    )
    if not pairs:
        raise DataError("no training ship has both an optical and a SAR chip, so there is no pair to train on")
    single = [str(pid) for pid, views in sorted(ships.items()) if not all(views.values())]
    if single:
        logger.info("%d of %d ships were seen by one sensor only and make no pair: %s", len(single), len(ships), some(single))
    return split_by_place(pairs, hold_out_every)


def read_optisar_pairs(root_dir: str | Path, *, join: str = "auto") -> tuple[Pair, ...]:
    """List the pairs of `<root_dir>/OptiSar_Pair/<folder>/*_<id>_*_{RGB,SAR}.{tif,png}`, and log how they were joined.

    Args:
        root_dir: the folder that holds `OptiSar_Pair/`.
        join: 'folder': one optical and one SAR picture share folder and id; 'id': as the released reader, every optical with
            every SAR picture of an id, over all folders, and an id that one sensor alone saw makes no pair; 'auto': whichever
            of the two the names allow, see `choose_join`.

    Raises:
        DataError: no such folder or pair, names without id or modality, names that cannot be joined so, a file that is no
            picture.
    """
    views = list_views(root_dir)
    join = choose_join(views) if join == "auto" else join
    if join == "folder" and (uneven := [name for name, sides in views.items() if not _is_one_each(sides)]):
        raise DataError(
            f"OptiSar_Pair of {root_dir}: not one optical and one SAR picture for {some(map('/'.join, uneven))} (folder/id); "
            "add or remove pictures, or set DATASETS.PAIR_JOIN id"
        )
    files = join_views(views, join)
    if not files:
        raise DataError(f"OptiSar_Pair of {root_dir} holds no pair; put pictures of both sensors into folders of it")
    manner = "by folder and id, one to one" if join == "folder" else "by id over all folders, many to many, as released"
    logger.info("%d pairs, joined %s", len(files), manner)
    return tuple(_open_pairs(files))


def list_views(root_dir: str | Path) -> dict[tuple[str, str], dict[str, list[Path]]]:
    """Pictures of `<root_dir>/OptiSar_Pair`: (folder, id) -> 'RGB' and 'SAR' -> files, in sorted order.

    Raises:
        DataError: no such folder; names without id or modality.
    """
    root = Path(root_dir) / "OptiSar_Pair"
    if not root.is_dir():
        raise DataError(f"{root} is no folder; set DATASETS.ROOT_DIR to the folder that holds OptiSar_Pair/")
    views: dict[tuple[str, str], dict[str, list[Path]]] = {}
    odd = []
    for path in sorted(path for folder in list_entries(root) if folder.is_dir() for path in list_pictures(folder)):
        fields = path.stem.split("_")
        if len(fields) < 3 or fields[-1].upper() not in MODALITIES:
            odd.append(path.name)
        else:
            views.setdefault((path.parent.name, fields[1]), {"RGB": [], "SAR": []})[fields[-1].upper()].append(path)
    if odd:
        raise DataError(f"{root} holds pictures not named *_<id>_*_RGB or *_<id>_*_SAR: {some(odd)}; rename or remove them")
    return dict(sorted(views.items()))


def choose_join(views: Mapping[tuple[str, str], Mapping[str, Sequence[Path]]]) -> str:
    """'folder' where every folder holds one optical and one SAR picture of each of its ids, else 'id' where an id means one
    thing: each has pictures of both sensors, and none is complete in one folder and found in another.

    Raises:
        DataError: neither; the message lists names.
    """
    if all(map(_is_one_each, views.values())):
        return "folder"
    folders: dict[str, list[tuple[str, str]]] = {}
    for folder, number in views:
        folders.setdefault(number, []).append((folder, number))
    doubtful = []
    for places in folders.values():
        complete = [all(views[place].values()) for place in places]
        both = all(any(views[place][side] for place in places) for side in MODALITIES)
        if not both or (any(complete) and len(places) > 1):
            doubtful += places
    if doubtful:
        doubtful = [place for place in doubtful if not _is_one_each(views[place])] or doubtful
        raise DataError(
            f"OptiSar_Pair: not one optical and one SAR picture for {some(map('/'.join, doubtful))} (folder/id); add or remove "
            "pictures, or set DATASETS.PAIR_JOIN id if an id is the same scene in every folder"
        )
    return "id"


def join_views(views: Mapping[tuple[str, str], Mapping[str, Sequence[Path]]], join: str) -> list[tuple[Path, Path, str]]:
    """Every (optical, SAR, id) of the same id, and for `join` 'folder' of the same folder; see `list_views`."""
    groups: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for (folder, number), sides in views.items():
        group = groups.setdefault((folder if join == "folder" else "", number), {"RGB": [], "SAR": []})
        for side, paths in sides.items():
            group[side] += paths
    return [
        (optical, sar, number)
        for (_, number), sides in sorted(groups.items())
        for optical in sides["RGB"]
        for sar in sides["SAR"]
    ]


def _is_one_each(sides: Mapping[str, Sequence[Path]]) -> bool:
    return all(len(paths) == 1 for paths in sides.values())


def split_by_place(pairs: Sequence[Pair], hold_out_every: int) -> PairLists:
    """Hold out every N-th place in sorted order; 0 holds out none. DataError if nothing is left to train on."""
    places = sorted({pair.place for pair in pairs})
    held_out = set(places[hold_out_every - 1 :: hold_out_every]) if hold_out_every else set()
    train = tuple(pair for pair in pairs if pair.place not in held_out)
    if not train:
        raise DataError(f"BBDM.HOLD_OUT_EVERY {hold_out_every} holds out all {len(places)} places; raise it, or set 0")
    return PairLists(train, tuple(pair for pair in pairs if pair.place in held_out))


def _read_folder(folder: Path) -> tuple[Pair, ...]:
    pictures = {modality: _pictures(_modality_folder(folder, modality)) for modality in Modality}
    optical, sar = pictures[Modality.OPTICAL], pictures[Modality.SAR]
    for here, there, name in ((optical, sar, "SAR"), (sar, optical, "optical")):
        alone = sorted(here.keys() - there.keys())
        if alone:
            raise DataError(f"{folder}: no {name} picture of the same name for {some(alone)}; add or remove the other one")
    if not optical:
        raise DataError(f"{folder} holds no pair; put pictures ({', '.join(IMAGE_SUFFIXES)}) into its two folders")
    pairs = tuple(_open_pairs([(optical[stem], sar[stem], stem.partition("_")[0]) for stem in sorted(optical)]))
    if differing := [pair.optical.path.stem for pair in pairs if pair.optical.size != pair.sar.size]:
        raise DataError(
            f"{folder}: optical and SAR pictures of different size for {some(differing)}; registered pairs are equal"
        )
    return pairs


def _open_pairs(files: Sequence[tuple[Path, Path, str]]) -> Iterator[Pair]:
    """The registered pairs of (optical, SAR, place), with what the headers of their files tell."""
    with progress(len(files), "checking pairs", unit="pair") as bar:
        for optical, sar, place in files:
            yield Pair(_open_chip(optical, Modality.OPTICAL), _open_chip(sar, Modality.SAR), place)
            bar.update()


def _open_chip(path: Path, modality: Modality) -> Chip:
    size, is_8_bit = read_header(path)
    return Chip(path, DISTRACTOR, modality, Split.TRAIN, size, rendered=is_8_bit and modality is Modality.SAR)


def _modality_folder(folder: Path, modality: Modality) -> Path:
    starts = FOLDER_NAMES[modality]

    def fits(name: str) -> bool:
        return any(name == start if len(start) == 1 else name.startswith(start) for start in starts)

    found = sorted(path for path in list_entries(folder) if path.is_dir() and fits(path.name.lower()))
    if len(found) != 1:
        names = " or ".join(start.upper() if len(start) == 1 else f"{start}..." for start in starts)
        what = f"{len(found)} folders ({some(path.name for path in found)})" if found else "no folder"
        raise DataError(f"{folder} holds {what} of {modality.name} pictures; it takes one, named {names}")
    return found[0]


def _pictures(folder: Path) -> dict[str, Path]:
    paths = list_pictures(folder)
    pictures = {path.stem: path for path in paths}
    if len(pictures) < len(paths):
        raise DataError(f"{folder} holds pictures of the same name but for the suffix; keep one of each")
    return pictures
