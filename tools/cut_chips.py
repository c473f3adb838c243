"""Cut chips out of a scene: ships upright, at the pixel size of HOSS, with a table of where and when each was seen."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.cut_chips",
        description="Cut chips out of a scene: ships upright, at the pixel size of HOSS, with a table (chips.csv).",
        epilog="example:\n  python -m tools.cut_chips --scene port_SAR.tif --boxes port.geojson --output chips/port",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scene", type=Path, required=True, metavar="FILE", help="GeoTIFF or COG of any size")
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="FILE", help="DOTA .txt, .geojson or .csv; see docs/data.md"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the chips and chips.csv")
    parser.add_argument("--sensor", choices=("auto", "optical", "sar"), default="auto", help="what took the scene (auto)")
    parser.add_argument(
        "--coordinates",
        choices=("auto", "pixel", "lonlat", "map"),
        default="auto",
        help="of the boxes: pixel, lonlat, or map, the scene's own (auto: of GeoJSON lonlat, else pixel)",
    )
    parser.add_argument("--bands", type=int, nargs="+", metavar="N", help="red, green and blue, or the band of a SAR scene")
    parser.add_argument("--pixel-size", type=float, metavar="M", help="metres of the scene's pixels, where it has no map")
    parser.add_argument(
        "--margins",
        type=float,
        nargs=2,
        default=(1.1, 1.25),
        metavar=("LENGTH", "WIDTH"),
        help="size of a chip by that of its box (1.1 1.25)",
    )
    parser.add_argument("--time", default="", help="of the scene, where neither it nor the boxes tell")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.io import DatasetReader

from datasets.catalogue import KINDS, modality_of_name
from datasets.curation.boxes import Box, read_boxes
from datasets.curation.scenes import (
    Placement,
    colour_bands,
    cut_chip,
    lonlat_of,
    metres_of_pixels,
    open_scene,
    place_box,
    stretch_of,
)
from datasets.folders import MODALITY_CHOICES
from datasets.records import Modality
from utils.cli import run
from utils.errors import DataError, UsageError
from utils.files import replacing
from utils.lock import own_folder
from utils.log import progress, setup_logging
from utils.tables import write_csv

HEADERS = ["chip", "scene", "time", "longitude", "latitude", "sensor", "angle", "length", "beam", "ship"]


@dataclass(frozen=True)
class Cutting:
    """How chips of a scene are cut.

    Attributes:
        modality: of the scene.
        bands: numbers of the bands to read.
        stretch: values that become 0 and 255 in an optical chip; None: as they are.
        pixel_size: metres of the scene's pixels; None: as its map says.
        margins: length and width of a chip by those of the ship.
        time: of the scene, '' where nobody says.
    """

    modality: Modality
    bands: list[int]
    stretch: tuple[float, float] | None
    pixel_size: float | None
    margins: tuple[float, float]
    time: str


def plan_cutting(scene: DatasetReader, args: argparse.Namespace) -> Cutting:
    """How the chips of an open scene are cut, by the arguments and by what the scene tells."""
    path = Path(scene.name)
    guessed = modality_of_name(path) or (Modality.OPTICAL if scene.count >= 3 else Modality.SAR)
    modality = MODALITY_CHOICES.get(args.sensor, guessed)
    is_sar = modality is Modality.SAR
    bands = args.bands or ([1] if is_sar else colour_bands(scene))
    if len(bands) != (1 if is_sar else 3) or not all(1 <= band <= scene.count for band in bands):
        wanted = "one band" if is_sar else "three bands"
        raise UsageError(f"--bands {bands} of {path}: name {wanted} of 1 to {scene.count}")
    metres_of_pixels(scene, np.array([scene.width, scene.height]) / 2, args.pixel_size)  # refuses a scene that tells none
    stretch = None if is_sar else stretch_of(scene, bands)
    time = args.time or scene.tags().get("TIFFTAG_DATETIME", "")
    return Cutting(modality, bands, stretch, args.pixel_size, tuple(args.margins), time)


def write_chip(path: Path, values: NDArray[np.float32], cutting: Cutting) -> None:
    """Write a chip: of SAR float32 values with NaN as nodata, of an optical scene 8-bit RGB, black where it has no value."""
    with replacing(path) as temporary:
        if cutting.modality is Modality.SAR:
            shape = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": "float32", "nodata": np.nan}
            with rasterio.open(temporary, "w", driver="GTiff", compress="deflate", **shape) as file:
                file.write(values[..., 0], 1)
            return
        if cutting.stretch:
            low, high = cutting.stretch
            values = (values - low) / max(high - low, 1e-12) * 255
        Image.fromarray(np.nan_to_num(values, nan=0).clip(0, 255).round().astype(np.uint8)).save(temporary)


def table_line(name: str, scene: DatasetReader, box: Box, place: Placement, cutting: Cutting) -> list[object]:
    """The line of a chip in the table, see `HEADERS`."""
    where = lonlat_of(scene, place) or ("", "")
    degrees = [f"{value:.6f}" if value != "" else "" for value in where]
    sizes = [f"{place.angle:.1f}", f"{place.length:.1f}", f"{place.beam:.1f}"]
    return [name, scene.name, box.time or cutting.time, *degrees, cutting.modality.name.lower(), *sizes, box.ship]


def cut_scene(path: Path, boxes: Sequence[Box], output: Path, args: argparse.Namespace) -> tuple[list[list[object]], list[str]]:
    """Cut and write the chip of every box; returns the lines of the table, and why boxes have no chip."""
    rows, faults = [], []
    with open_scene(path) as scene, progress(len(boxes), "cutting chips", unit="chip") as bar:
        cutting = plan_cutting(scene, args)
        for number, box in enumerate(boxes, 1):
            try:
                place = place_box(scene, box, cutting.pixel_size)
                values = cut_chip(scene, place, cutting.modality, cutting.bands, cutting.margins)
            except DataError as error:
                faults.append(f"{path}, box {number}: {error}")
            else:
                name = f"{path.stem}_{number:04d}_{KINDS[cutting.modality]}.tif"
                write_chip(output / name, values, cutting)
                rows.append(table_line(name, scene, box, place, cutting))
            bar.update()
    return rows, faults


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, cut and write."""
    setup_logging()
    args = build_parser().parse_args(arguments)
    if not all(0.5 <= margin <= 10 for margin in args.margins) or (args.pixel_size is not None and not args.pixel_size > 0):
        raise UsageError("--margins are from 0.5 to 10, and --pixel-size is above 0")
    boxes = read_boxes(args.boxes, args.coordinates)
    with own_folder(args.output):
        rows, faults = cut_scene(args.scene, boxes, args.output, args)
        for fault in faults:
            print(fault)
        if not rows:
            raise DataError(f"no box of {args.boxes} gives a chip of {args.scene} (listed above)")
        write_csv(args.output / "chips.csv", HEADERS, rows)
    print(f"{args.output}: {len(rows)} chips and chips.csv")
    if faults:
        raise DataError(f"{len(faults)} of {len(boxes)} boxes gave no chip (listed above); everything else was done")


if __name__ == "__main__":
    run(main)
