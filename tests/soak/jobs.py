"""Commands that write, small enough for a second, to be killed."""

import csv
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import rasterio
from rasterio.transform import from_origin

import bbdm.sample
import bbdm.train
import bbdm.train_first_stage
import test as test_command
import train
import train_pair
from tests.chip_files import write_hoss
from tests.commands import settings
from tests.soak import indexing
from tests.test_bbdm_programs import TINY as BRIDGE
from tests.test_pretrain import write_pairs
from tools import calibrate, convert_weights, cut_chips, fuse_results, import_dataset, make_dataset, rank, repeat, report, tune
from utils.files import write_text

SLOW = ("tools.repeat",)
"""Jobs that start programs anew, which takes many times as long."""


@dataclass(frozen=True)
class Job:
    """A command to be killed.

    Attributes:
        name: of it.
        program: whose `main` it calls.
        words: folder of a run -> arguments, the same on every start.
        ranks: processes that work together.
        prepare: puts into the folder of a run what has to lie there.
        refuses: name, in that folder, of an output that is refused if it is there; it appears whole or not at all.
        shares: starts of the names of hidden files that may be left for a day, since other runs may be at work on them.
    """

    name: str
    program: ModuleType
    words: Callable[[Path], list[object]]
    ranks: int = 1
    prepare: Callable[[Path], None] = lambda folder: None
    refuses: str = ""
    shares: str | tuple[str, ...] = ""

    def may_leave(self, name: str) -> bool:
        """Whether what a kill leaves under this name may stay."""
        return bool(self.shares) and name.startswith(self.shares)

    def is_done(self, folder: Path) -> bool:
        """Whether the command would refuse to start again, since all is there."""
        return bool(self.refuses) and (folder / self.refuses).exists()


def words_of(values: dict[str, object]) -> list[object]:
    """KEY VALUE KEY VALUE ..."""
    return [word for item in values.items() for word in item]


def trainings(data: Path) -> list[Job]:
    """The four kinds of training, and one by two processes; each goes on where it was killed."""
    resume = {"DATASETS.ROOT_DIR": data, "SOLVER.RESUME": "auto", "SOLVER.SAVE_MINUTES": 0.005}
    tiny = settings(MODEL__DROP_PATH=0.2, SOLVER__MAX_EPOCHS=2, SOLVER__LOG_PERIOD=2, SOLVER__IMS_PER_BATCH=4)
    reid = dict(zip(tiny[::2], tiny[1::2])) | resume
    small = {"MODEL.TRANSFORMER_TYPE": "vit_mini_patch16_224_TransOSS"}
    pairs = reid | small | {"MODEL.PAIR": True, "MODEL.SSE": False, "SOLVER.IMS_PER_PASS": 2}
    shared = reid | small | {"SOLVER.IMS_PER_BATCH": 8, "SOLVER.EVAL_PERIOD": 1}
    bridge = BRIDGE | resume | {"SOLVER.LOG_PERIOD": 4, "BBDM.DROPOUT": 0.1}
    stage = bridge | {"BBDM.FIRST_STAGE_WIDTH": 32, "BBDM.FIRST_STAGE_MULTIPLIERS": "[1, 1]", "BBDM.FIRST_STAGE_BLOCKS": 1}
    kinds = (
        ("train", train, reid | small | {"DATALOADER.NUM_WORKERS": 1, "TEST.REPORT": True}, 1),
        ("train, 2 processes", train, shared, 2),
        ("train_pair", train_pair, pairs, 1),
        ("bbdm.train", bbdm.train, bridge, 1),
        ("bbdm.train_first_stage", bbdm.train_first_stage, stage, 1),
    )
    return [
        Job(name, program, lambda folder, keys=keys: words_of(keys | {"OUTPUT_DIR": folder}), ranks)
        for name, program, keys, ranks in kinds
    ]


def tests(data: Path, made: Path) -> list[Job]:
    """What uses weights: samples, tests, choices, pages, rankings. `made` holds what trainings and samples left."""
    reid = {"DATASETS.ROOT_DIR": data, "MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": 0}
    sample = BRIDGE | {"DATASETS.ROOT_DIR": data, "BBDM.WEIGHT": made / "bbdm.train" / "bridge_2.pth"}
    weights, samples = made / "train" / "transformer_2.pth", made / "bbdm.sample"
    fusion = {"DATASETS.QUERY_ADD_DIR": samples, "DATASETS.GALLERY_ADD_DIR": samples}
    query, gallery = (data / "HOSS" / name for name in ("query", "bounding_box_test"))
    many = write_hoss(made.parent / "many", train_ships=0, test_ships=44, views=1)

    def weights_in(folder: Path) -> None:
        shutil.copy(weights, folder / "w.pth")

    def tested_in(folder: Path) -> None:
        shutil.copytree(made / "test", folder, dirs_exist_ok=True)
        (folder / "report.html").unlink(missing_ok=True)

    return [
        Job("bbdm.sample", bbdm.sample, lambda folder: words_of(sample | {"OUTPUT_DIR": folder})),
        Job(
            "test",
            test_command,
            lambda folder: [
                *("--weights", weights),
                *words_of(reid | fusion | {"TEST.FEATURE_STORE": folder / "store", "OUTPUT_DIR": folder / "out"}),
            ],
            shares="store/",
        ),
        Job(
            "tools.tune",
            tune,
            lambda folder: [
                *("--weights", folder / "w.pth", "--store", samples, "--taus", "0.1,0.3", "--json", folder / "t.json"),
                *words_of(reid | {"TEST.FEATURE_STORE": folder / "store"}),
            ],
            prepare=weights_in,
            shares=("store/", ".w.", ".t."),
        ),
        Job(
            "tools.report", report, lambda folder: [folder / "out", "--attention", 2], prepare=tested_in, shares="out/.report."
        ),
        Job(
            "tools.rank",
            rank,
            lambda folder: [
                *("--query", query, "--gallery", gallery, "--weights", weights, "--sheets", "--output", folder / "out"),
                *words_of({"MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": 0}),
            ],
        ),
        Job(
            "tools.calibrate",
            calibrate,
            lambda folder: ["--weights", folder / "w.pth", "--data", many, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0],
            prepare=weights_in,
            shares=".w.",
        ),
        Job(
            "tools.convert_weights",
            convert_weights,
            lambda folder: [weights, folder / "w.safetensors"],
            refuses="w.safetensors",
            shares=".w.",
        ),
        *[
            Job(
                "tools.index",
                indexing,
                lambda folder: [
                    *("--weights", weights, "--chips", gallery, "--index", folder / "index", "--batch", 7),
                    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0),
                ],
            )
        ]
        * (importlib.util.find_spec("lancedb") is not None),
    ]


def makers(data: Path, base: Path) -> list[Job]:
    """What makes data sets and tables."""
    table, scene, boxes = base / "chips.csv", base / "s_SAR.tif", base / "boxes.csv"
    chips = sorted((data / "HOSS" / "bounding_box_test").glob("0*.tif"))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "ship_id"])
        writer.writerows([str(path), path.name[:4]] for path in chips)
    values = np.random.default_rng(0).gamma(1.0, 1.0, (1, 400, 400)).astype(np.float32)
    place = {"crs": "EPSG:32650", "transform": from_origin(500_000, 3_000_000, 2.0, 2.0)}
    shape = {"width": 400, "height": 400, "count": 1, "dtype": "float32"}
    with rasterio.open(scene, "w", driver="GTiff", **shape, **place) as file:
        file.write(values)
    lines = [f"{30 * n + 10},{30 * n + 10},{30 * n + 30},{30 * n + 40}" for n in range(11)]
    write_text(boxes, "\n".join(["xmin,ymin,xmax,ymax", *lines]) + "\n")
    ships = ["--train-ships", 2, "--test-ships", 3, "--workers", 1]
    return [
        Job(
            "tools.make_dataset",
            make_dataset,
            lambda folder: ["--output", folder / "out", *ships],
            refuses="out",
            shares=".out.lock",
        ),
        Job(
            "tools.import_dataset",
            import_dataset,
            lambda folder: ["--csv", table, "--output", folder / "out"],
            refuses="out",
            shares=".out.lock",
        ),
        Job("tools.cut_chips", cut_chips, lambda folder: ["--scene", scene, "--boxes", boxes, "--output", folder / "out"]),
    ]


def programs(data: Path) -> list[Job]:
    """What starts other programs."""
    keys = settings(DATASETS__ROOT_DIR=data, SOLVER__MAX_EPOCHS=2, SOLVER__SAVE_MINUTES=0.005, DATASETS__VAL_FRACTION=0)
    return [Job("tools.repeat", repeat, lambda folder: ["--seeds", "1-2", *keys, "OUTPUT_DIR", folder])]


def fusing(made: Path) -> list[Job]:
    """What reads rankings."""
    files = [made / "tools.rank" / "out" / name for name in ("ranking.csv", "prediction.json")]
    return [Job("tools.fuse_results", fuse_results, lambda folder: [*files, "--output", folder / "out"])]


def write_data(base: Path) -> Path:
    """Chips and pairs for all jobs."""
    return write_pairs(write_hoss(base / "data", train_ships=4, test_ships=8, views=2), count=4)
