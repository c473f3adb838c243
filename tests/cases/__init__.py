"""Files that went wrong somewhere, with the values that they mean, and the check that a reader gives them or refuses.

A folder of them holds `truth.npz`: under a file's name without suffix and `_SAR` or `_RGB` the values as stored, of a chip of
two polarisations (H, W, 2). A file that is not in it has to be refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.catalogue import is_picture
from datasets.chips import read_optical, read_sar
from datasets.rasters import NODATA, ORIENTATION, TIFF_STARTS, read_tags
from utils.errors import DataError

FOLDER = Path(__file__).parent

LOSSY_DIFFERENCE = 8
"""Mean difference in grey levels that JPEG may make."""

PRECISION = 2e-7
"""Of float32, relative."""

TURNS = dict(enumerate(Image.Transpose[name] for name in (
    "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"
)))  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of one file: 'ok', 'refused' or 'WRONG', with the reason of the last two."""

    word: str
    name: str
    reason: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.word} {self.name}" + (f"  {self.reason}" if self.word == "WRONG" else "")


def check_cases(folder: Path = FOLDER) -> Iterator[Verdict]:
    """Read every picture beside a `truth.npz` in `folder` and below, in order of names."""
    for truth in sorted(folder.rglob("truth.npz")):
        with np.load(truth, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        for path in sorted(path for path in truth.parent.iterdir() if is_picture(path)):
            yield check_case(path, values.get(path.stem.rpartition("_")[0]))


def check_case(path: Path, truth: NDArray | None) -> Verdict:
    """Read one picture as its name says; the truth is None of one that has to be refused."""
    name = f"{path.parent.name}/{path.name}"
    is_sar = path.stem.upper().endswith("_SAR")
    try:
        values = read_sar(path) if is_sar else read_optical(path)
    except DataError as error:
        sentence = str(error)
        whole = str(path) in sentence and "\n" not in sentence
        return Verdict("refused" if whole else "WRONG", name, sentence)
    if truth is None:
        return Verdict("WRONG", name, "was read and should have been refused")
    fault = fault_of_sar(path, values, truth) if is_sar else fault_of_optical(path, values, truth)
    return Verdict("WRONG" if fault else "ok", name, fault)


def fault_of_optical(path: Path, picture: NDArray, truth: NDArray) -> str:
    """What is wrong with an optical picture; '' for nothing."""
    truth = turned(truth, path)
    if picture.shape != truth.shape:
        return f"has shape {picture.shape}, not {truth.shape}"
    difference = np.abs(picture.astype(float) - truth)
    lossy = "jpeg" in path.name.lower() or "jpg" in path.name.lower()
    wrong = difference.mean() >= LOSSY_DIFFERENCE if lossy else difference.any()
    return f"differs by {difference.mean():.3g} on average" if wrong else ""


def fault_of_sar(path: Path, values: NDArray, truth: NDArray) -> str:
    """What is wrong with SAR values; '' for nothing. Nodata and NaN have to be NaN, and nothing else."""
    truth = turned(truth if truth.ndim == 2 else truth[..., 0], path)
    if values.shape != truth.shape or np.iscomplexobj(truth):
        return f"has shape {values.shape} of {values.dtype}, not {truth.shape} of {truth.dtype}"
    truth = truth.astype(np.float64)
    nodata = tag_of(path, NODATA)
    unknown = np.isnan(truth)
    if nodata is not None:
        unknown |= np.isclose(truth, float(str(nodata).strip("\0 ")), rtol=PRECISION, atol=0)
    if (np.isnan(values) != unknown).any():
        return f"takes {np.isnan(values).sum()} pixels for unknown, not {unknown.sum()}"
    differing = ~np.isclose(values[~unknown], truth[~unknown], rtol=PRECISION, atol=0)
    return f"has {differing.sum()} wrong values" if differing.any() else ""


def turned(truth: NDArray, path: Path) -> NDArray:
    """The stored picture turned as the file's orientation tag says, by Pillow, which the reader does not use for it."""
    orientation = tag_of(path, ORIENTATION)
    if orientation not in range(2, 9):
        return truth
    places = np.arange(truth.shape[0] * truth.shape[1], dtype=np.int32).reshape(truth.shape[:2])
    places = np.asarray(Image.fromarray(places).transpose(TURNS[orientation - 2]))
    return truth.reshape(-1, *truth.shape[2:])[places]


def tag_of(path: Path, number: int) -> object:
    """A tag of a TIFF, or of the EXIF part of a PNG or JPEG; None where it has none."""
    content = path.read_bytes()
    if content.startswith(TIFF_STARTS):
        return read_tags(content).get(number)
    with Image.open(path) as image:
        return image.getexif().get(number)
