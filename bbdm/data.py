"""Pairs of an optical and a SAR picture: which there are, and reading them in batches.

Legend: B batch, H x W pixels of the network's pictures, in [-1, 1].
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.chips import FORMATS, IMAGE_SUFFIXES, SAR_MODES, read_chip, read_optical, read_shape
from datasets.hoss import read_hoss
from datasets.loaders import ChipLoader, Draw, KeyedBatches
from datasets.records import Modality, Record
from datasets.samplers import ShuffledSampler
from datasets.sar import SarRendering, build_sar_rendering
from datasets.transforms import resize
from utils.errors import DataError, UsageError
from utils.log import progress

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""

FOLDER_NAMES = {Modality.OPTICAL: ("opt", "rgb", "a"), Modality.SAR: ("sar", "b")}
"""How the folder of a modality may begin, in lower case; single letters are whole names (BBDM's A and B)."""


@dataclass(frozen=True)
class Pair:
    """An optical and a SAR file of one scene or ship.

    Attributes:
        optical: path.
        sar: path.
        place: what training and validation must not share: the scene, or the ship.
        registered: whether the two show the same ground pixel by pixel.
    """

    optical: Path
    sar: Path
    place: str
    registered: bool = True


@dataclass(frozen=True)
class PairLists:
    """Pairs to train on, and those held out for validation (may be none)."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]


def read_registered_pairs(folder: str | Path, *, hold_out_every: int = 0) -> PairLists:
    """List the pairs of a folder that holds one folder for each modality, with the same file names (but for suffix) in both.

    Folders are named after QXS-SAROPT (`opt...`, `sar...`) or BBDM (`A` optical, `B` SAR). They may lie under `train/` and
    `val/` (or `test/`); then `val/` is held out and `hold_out_every` is not used.

    Args:
        folder: BBDM.PAIRS_DIR.
        hold_out_every: every N-th place in sorted order is held out; a place is the text before the first `_` of a name.

    Raises:
        DataError: no such folders, unpaired names, pairs of different size, no pair. The message lists names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"BBDM.PAIRS_DIR {folder} is no folder; it holds a folder of pictures for each modality")
    if (folder / "train").is_dir():
        held_out = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
        return PairLists(_read_folder(folder / "train"), _read_folder(held_out) if held_out else ())
    return split_by_place(_read_folder(folder), hold_out_every)


def read_hoss_pairs(root_dir: str | Path, *, hold_out_every: int = 0) -> PairLists:
    """List every optical x SAR view of each training ship of a data set in HOSS layout; its place is the ship.

    Ships that one sensor alone saw make no pair and are counted in the log.

    Raises:
        DataError: as `datasets.hoss.read_hoss`; also if no ship was seen by both sensors.
    """
    ships: dict[int, dict[Modality, list[Record]]] = {}
    for record in read_hoss(root_dir, test=False).train:
        ships.setdefault(record.pid, {modality: [] for modality in Modality})[record.modality].append(record)
    pairs = tuple(
        Pair(optical.path, sar.path, str(pid), registered=False)
        for pid, views in sorted(ships.items())
        for optical in views[Modality.OPTICAL]
        for sar in views[Modality.SAR]
    )
    if not pairs:
        raise DataError(
            f"no training ship under {root_dir} has both an optical and a SAR chip, so there is no pair to train on"
        )
    single = [str(pid) for pid, views in sorted(ships.items()) if not all(views.values())]
    if single:
        logger.info("%d of %d ships were seen by one sensor only and make no pair: %s", len(single), len(ships), _some(single))
    return split_by_place(pairs, hold_out_every)


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
            raise DataError(f"{folder}: no {name} picture of the same name for {_some(alone)}; add or remove the other one")
    if not optical:
        raise DataError(f"{folder} holds no pair; put pictures ({', '.join(IMAGE_SUFFIXES)}) into its two folders")
    pairs = tuple(Pair(optical[stem], sar[stem], stem.partition("_")[0]) for stem in sorted(optical))
    with progress(len(pairs), "checking pairs", unit="pair") as bar:
        differing = []
        for pair in pairs:
            if read_shape(pair.optical) != read_shape(pair.sar):
                differing.append(pair.optical.stem)
            bar.update()
    if differing:
        raise DataError(
            f"{folder}: optical and SAR pictures of different size for {_some(differing)}; registered pairs are equal"
        )
    return pairs


def _modality_folder(folder: Path, modality: Modality) -> Path:
    starts = FOLDER_NAMES[modality]

    def fits(name: str) -> bool:
        return any(name == start if len(start) == 1 else name.startswith(start) for start in starts)

    found = sorted(path for path in folder.iterdir() if path.is_dir() and fits(path.name.lower()))
    if len(found) != 1:
        names = " or ".join(start.upper() if len(start) == 1 else f"{start}..." for start in starts)
        what = f"{len(found)} folders ({_some(path.name for path in found)})" if found else "no folder"
        raise DataError(f"{folder} holds {what} of {modality.name} pictures; it takes one, named {names}")
    return found[0]


def _pictures(folder: Path) -> dict[str, Path]:
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    pictures = {path.stem: path for path in paths}
    if len(pictures) < len(paths):
        raise DataError(f"{folder} holds pictures of the same name but for the suffix; keep one of each")
    return pictures


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_pair(pair: Pair, render_sar: SarRendering) -> tuple[Picture, Picture]:
    """Read both pictures.

    SAR chips of ships are rendered as the ReID reader does. Of registered pairs, an 8-bit SAR picture is taken as it is, since
    someone has rendered it already; any other is rendered likewise.

    Raises:
        DataError: a file that cannot be read.
    """
    if pair.registered and _is_8_bit(pair.sar):
        return read_optical(pair.optical), read_optical(pair.sar)
    return read_optical(pair.optical), read_chip(Record(pair.sar, 0, Modality.SAR, "train"), render_sar)


def _is_8_bit(path: Path) -> bool:
    """Whether the picture has 8-bit bands; also true of a file that cannot be opened, which the reader then refuses."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode == "L" or image.mode not in SAR_MODES
    except OSError:
        return True


@dataclass
class PairBatch:
    """What the bridge trains on.

    Attributes:
        optical: (B, 3, H, W) float32 in [-1, 1].
        sar: likewise.
        indices: (B,) int64, place of each pair in its list; stays on the CPU.
    """

    optical: Tensor
    sar: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """Copy the pictures to `device`, on CUDA in the layout that its convolutions like, without waiting."""
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        optical, sar = (
            picture.to(device, non_blocking=True).contiguous(memory_format=layout) for picture in (self.optical, self.sar)
        )
        return PairBatch(optical, sar, self.indices)

    def pin_memory(self) -> "PairBatch":
        """Pin the pictures (called by DataLoader)."""
        return PairBatch(self.optical.pin_memory(), self.sar.pin_memory(), self.indices)


class PairDataset(Dataset):
    """Pairs as tensors; both pictures of a pair are cut and flipped alike.

    Args:
        pairs: to read.
        size: (rows, columns) of the tensors.
        render_sar: SAR values -> picture.
        crop: cut `size` out of registered pairs at random instead of resizing them.
        flip: flip left and right at random.
    """

    def __init__(
        self, pairs: Sequence[Pair], size: Sequence[int], render_sar: SarRendering, *, crop: bool = False, flip: bool = False
    ):
        self.pairs, self.size, self.render_sar = pairs, (int(size[0]), int(size[1])), render_sar
        self.crop, self.flip = crop, flip

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, int] | DataError:
        """Optical over SAR, (2, 3, H, W), and the index; an error is returned, for `ChipLoader` to raise."""
        draw = draw if isinstance(draw, Draw) else Draw(draw, (draw,))
        generator = np.random.default_rng(draw.key)
        pair = self.pairs[draw.index]
        try:
            pictures = list(read_pair(pair, self.render_sar))
            if self.crop and pair.registered:
                pictures = _crop(pair, pictures, self.size, generator)
        except DataError as error:
            return error
        stacked = np.stack([resize(picture, self.size, Image.Resampling.BILINEAR) for picture in pictures])
        if self.flip and generator.random() < 0.5:
            stacked = stacked[:, :, ::-1]
        return to_tensor(stacked), draw.index


def _crop(pair: Pair, pictures: list[Picture], size: tuple[int, int], generator: np.random.Generator) -> list[Picture]:
    room = [have - want for have, want in zip(pictures[0].shape, size)]
    if min(room) < 0:
        height, width = pictures[0].shape[:2]
        raise DataError(
            f"{pair.optical} is {height} x {width}, too small to cut BBDM.IMAGE_SIZE {list(size)}; set BBDM.CROP False"
        )
    top, left = (int(generator.integers(0, free, endpoint=True)) for free in room)
    return [picture[top : top + size[0], left : left + size[1]] for picture in pictures]


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3)
    return tensor.to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_picture(tensor: Tensor) -> NDArray[np.uint8]:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded; what lies outside is clipped."""
    scaled = tensor.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def collate(items: Sequence[tuple[Tensor, int] | DataError]) -> PairBatch | DataError:
    """Stack pairs into a batch; the first error among them takes its place."""
    for item in items:
        if isinstance(item, DataError):
            return item
    both = torch.stack([pictures for pictures, _ in items])
    return PairBatch(both[:, 0].contiguous(), both[:, 1].contiguous(), torch.tensor([index for _, index in items]))


def build_pairs(cfg) -> PairLists:
    """The pairs that BBDM.PAIRS names."""
    every = cfg.BBDM.HOLD_OUT_EVERY
    if every < 0 or every == 1:
        raise UsageError(f"BBDM.HOLD_OUT_EVERY is {every}; it is 0 (none) or at least 2")
    if cfg.BBDM.PAIRS == "hoss":
        return read_hoss_pairs(cfg.DATASETS.ROOT_DIR, hold_out_every=every)
    if not cfg.BBDM.PAIRS_DIR:
        raise UsageError("BBDM.PAIRS_DIR is empty; name the folder that holds the registered pairs")
    return read_registered_pairs(cfg.BBDM.PAIRS_DIR, hold_out_every=every)


def build_rendering(cfg) -> SarRendering:
    """The rendering of INPUT.SAR_*."""
    return build_sar_rendering(cfg.INPUT.SAR_DENOISE, low=cfg.INPUT.SAR_LOW_PERCENT, high=cfg.INPUT.SAR_HIGH_PERCENT)


def build_train_loader(cfg, pairs: Sequence[Pair], *, device_type: str, rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Batches of SOLVER.IMS_PER_BATCH pairs over all ranks; choose the epoch by `loader.batch_sampler.set_epoch`."""
    dataset = PairDataset(pairs, cfg.BBDM.IMAGE_SIZE, build_rendering(cfg), crop=cfg.BBDM.CROP, flip=cfg.BBDM.FLIP)
    sampler = ShuffledSampler(
        len(pairs), batch_size=cfg.SOLVER.IMS_PER_BATCH, seed=cfg.SOLVER.SEED, rank=rank, world_size=world_size
    )
    return ChipLoader(dataset, batch_sampler=KeyedBatches(sampler), **_loading(cfg, device_type))


def build_validation_loader(cfg, pairs: Sequence[Pair], *, device_type: str, rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Each pair once, cut at a place of its own but never flipped; this rank every `world_size`-th."""
    dataset = PairDataset(pairs, cfg.BBDM.IMAGE_SIZE, build_rendering(cfg), crop=cfg.BBDM.CROP)
    indices = range(rank, len(pairs), world_size)
    return ChipLoader(
        dataset, sampler=indices, batch_size=max(cfg.SOLVER.IMS_PER_BATCH // world_size, 1), **_loading(cfg, device_type)
    )


def _loading(cfg, device_type: str) -> dict:
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    return {
        "collate_fn": collate,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": device_type == "cuda",
        "generator": torch.Generator().manual_seed(cfg.SOLVER.SEED),
    }
