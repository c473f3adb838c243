"""Small chips and data sets in HOSS layout, written for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def optical_pixels(seed: int = 0, *, height: int = 60, width: int = 24) -> np.ndarray:
    """Random picture, (height, width, 3) uint8."""
    return np.random.default_rng([seed, 0]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sar_values(seed: int = 0, *, height: int = 45, width: int = 18) -> np.ndarray:
    """Random values like those of a SAR chip, (height, width) float32."""
    return np.random.default_rng([seed, 1]).gamma(1.0, 0.5, (height, width)).astype(np.float32)


def write_chip(path: Path, seed: int = 0, *, height: int | None = None, width: int | None = None) -> Path:
    """Write a random chip of the kind and format that its name asks for; folders are made.

    Optical TIFFs are LZW-compressed RGB and SAR TIFFs raw float32, as the real ones; SAR in PNG or JPEG is 8-bit, one band.
    """
    size = {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    is_tiff = path.suffix.lower() in (".tif", ".tiff")
    if path.stem.upper().endswith("_RGB"):
        Image.fromarray(optical_pixels(seed, **size)).save(path, **({"compression": "tiff_lzw"} if is_tiff else {}))
    else:
        values = sar_values(seed, **size)
        Image.fromarray(values if is_tiff else (values / values.max() * 255).astype(np.uint8)).save(path)
    return path


def write_hoss(
    root: Path,
    *,
    train_ships: int = 4,
    test_ships: int = 3,
    views: int = 2,
    distractors: int = 2,
    subset: bool = False,
    suffix: str = ".tif",
) -> Path:
    """Write a data set in HOSS layout under `root / "HOSS"` and return `root`, which is DATASETS.ROOT_DIR.

    Args:
        root: made where it is missing.
        train_ships: pids 1, 2, ... with `views` chips of each modality.
        test_ships: pids 101, 102, ... with a query and `views` gallery chips of each modality.
        views: chips of one ship and modality.
        distractors: gallery chips of pid -1, optical and SAR in turn.
        subset: write `subset/O2S` and `subset/S2O` too, as copies.
        suffix: of every chip.
    """
    hoss = root / "HOSS"
    kinds = ("RGB", "SAR")
    for pid in range(1, train_ships + 1):
        for view in range(views):
            for kind in kinds:
                write_chip(hoss / "bounding_box_train" / f"{pid:04d}_s01c{view}_{kind}{suffix}", seed=pid * 100 + view)
    for pid in range(101, 101 + test_ships):
        for kind in kinds:
            write_chip(hoss / "query" / f"{pid:04d}_s01c0_{kind}{suffix}", seed=pid * 100)
            for view in range(1, views + 1):
                write_chip(hoss / "bounding_box_test" / f"{pid:04d}_s01c{view}_{kind}{suffix}", seed=pid * 100 + view)
    for number in range(distractors):
        write_chip(hoss / "bounding_box_test" / f"-1_{number:04d}_{kinds[number % 2]}{suffix}", seed=number)
    if subset:
        _write_subset(hoss)
    return root


def _write_subset(hoss: Path) -> None:
    """Copy the chips of each cross-modal protocol."""
    for protocol, query_kind, gallery_kind in (("O2S", "RGB", "SAR"), ("S2O", "SAR", "RGB")):
        for side, kind in (("query", query_kind), ("bounding_box_test", gallery_kind)):
            folder = hoss / "subset" / protocol / side
            folder.mkdir(parents=True)
            for path in (hoss / side).glob(f"*_{kind}.*"):
                (folder / path.name).write_bytes(path.read_bytes())
