"""Every reader of files that strangers make: good files for it, how they are made worse, and how it is called."""

import argparse
import contextlib
import csv
import io
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import save_file

from bbdm.checkpoints import read_bridge, read_first_stage
from bbdm.unet import make_unet
from configs import load_cfg
from configs.described import load_described
from datasets.chips import read_generated, read_header, read_optical, read_sar
from datasets.curation.boxes import read_boxes
from datasets.curation.importing import read_table, read_task
from datasets.generated import SamplingRun, open_store, read_samples, sample_of, write_sample
from datasets.records import Chip, Modality, Split
from model.pretrained import load_pretrained
from model.reid import ReIDModel
from model.transoss import TransOSS
from processor.feature_store import stored
from processor.ranking.lists import ProtocolLists
from processor.ranking.results import read_results, results_path, write_results
from processor.report.listing import ListedImage, RunLists, read_lists, write_lists
from processor.report.runs import read_runs
from processor.resuming import restore
from processor.saving import Saver
from processor.selection import build_tuning_sentences, write_tuning
from processor.standing import Standing
from processor.task import TrainingPlan
from tests import autoencoder
from tests.chip_files import optical_pixels, sar_values, write_chip
from tests.commands import tiny_cfg
from tests.soak import mutants
from tests.soak.mutants import Mutation
from tests.test_convert_config import TEMPLATE
from tests.test_results import RESULTS
from tools import convert_config, cut_chips, fuse_results, identify, inspect_weights
from utils.checkpoint import description_of, load, load_state_dict, save
from utils.log import MetricsWriter

CPU = torch.device("cpu")
WEIGHTS = {"base.a": torch.arange(24.0).view(4, 6), "base.b": torch.ones(3, dtype=torch.float16), "n": torch.tensor(7)}


@dataclass(frozen=True)
class Reader:
    """A reader to be tried.

    Attributes:
        name: of it.
        suffix: of its files.
        mutate: how they are made worse.
        prepare: folder, new -> good files, all of which lie in it, and what reads a file of that folder.
    """

    name: str
    suffix: str
    mutate: Mutation
    prepare: Callable[[Path], tuple[list[Path], Callable[[Path], object]]]


# Weights


def checkpoints(folder: Path):
    """Files of torch.save, of either form."""
    nested = OrderedDict(WEIGHTS)
    nested._metadata = {"description": {"config": "MODEL: {NAME: transformer}"}}
    shared = torch.arange(12.0)
    contents = [
        nested,
        {"state_dict": WEIGHTS, "epoch": 3, "args": argparse.Namespace(lr=0.1), "list": [1, (2.5, "x", None, True)]},
        {"model": {f"module.{name}": value for name, value in WEIGHTS.items()}},
        {"a": shared[:6], "b": shared[6:].view(2, 3).t(), "p": torch.nn.Parameter(shared)},
    ]
    paths = []
    for number, content in enumerate(contents):
        for legacy in (False, True):
            paths.append(folder / f"{number}{'l' * legacy}.pth")
            torch.save(content, paths[-1], _use_new_zipfile_serialization=not legacy)

    def read(path: Path) -> None:
        description_of(load(path))
        load_state_dict(path)

    return paths, read


def safetensors(folder: Path):
    """Ours, with a checksum and a description, and others'."""
    save(folder / "ours.safetensors", WEIGHTS, {"config": "MODEL: {NAME: transformer}"})
    save_file(WEIGHTS, folder / "theirs.safetensors")
    save_file({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}, folder / "small.safetensors", {"format": "pt"})
    return sorted(folder.iterdir()), load_state_dict


def states(folder: Path):
    """A last.pth, gone on with."""
    cfg = tiny_cfg()
    task = autoencoder.build_task(cfg, CPU)
    plan = TrainingPlan(folder, "a", 2, 1, 1, 1, 0.0, 1, {"config": cfg.dump(), "data": {"files": 2, "sha256": "ab"}})
    task.update(sum(value.square().sum() for value in task.network.parameters()))
    at = Standing.at_start(task)
    at.add(torch.zeros(1), torch.arange(2))
    saver = Saver(task, plan, [])
    saver.write(at, saver.state(at))
    good = (folder / "last.pth").rename(folder / "good.pth")
    return [good], lambda path: restore(task, plan, path)


def bridges(folder: Path):
    """A bridge's network, bare and in a state of BBDM, and a first stage."""
    network = make_unet(in_channels=6, width=32, multipliers=(1,), blocks=1, head_width=32).state_dict()
    network = {name: value[..., :1].clone() for name, value in network.items()}
    save(folder / "bare.pth", network)
    prefixed = {f"denoise_fn.{name}": value for name, value in network.items()}
    save(folder / "theirs.pth", {"model": prefixed, "ema": prefixed, "step": 7, "config": "BBDM: {ACCUMULATION: 2}"})
    stage = {"vqgan.encoder.a": torch.ones(2), "vqgan.decoder.b": torch.ones(2), "vqgan.quantize.c": torch.ones(2)}
    save(folder / "stage.pth", stage)

    def read(path: Path) -> None:
        read_bridge(path) if "stage" not in path.name else read_first_stage(path)

    return sorted(folder.iterdir()), read


def pretraining(folder: Path):
    """Weights that a training starts from, that a test uses, and that are looked at."""
    base = TransOSS(img_size=(32, 32), embed_dim=12, depth=2, num_heads=2)
    model = ReIDModel(base, torch.nn.Linear(12, 2, bias=False))
    torch.save(model.state_dict(), folder / "bare.pth")
    described = OrderedDict(model.state_dict())
    described._metadata = {"description": {"config": tiny_cfg().dump(), "identities": 2}}
    torch.save(described, folder / "described.pth")

    def read(path: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            inspect_weights.inspect(str(path))
        if "described" in path.name:
            load_described(None, ["TEST.WEIGHT", str(path)], "TEST.WEIGHT")
        load_pretrained(path, model, choice="self")

    return sorted(folder.iterdir()), read


# Text


def configurations(folder: Path):
    """A configuration of ours, and one of another project."""
    (folder / "a.yml").write_text(tiny_cfg().dump(), encoding="utf-8")
    (folder / "b.yml").write_text(
        "MODEL:\n  NAME: transformer # text\nINPUT: {SIZE_TRAIN: [32, 32], PROB: 0.5}\n", encoding="utf-8"
    )
    (folder / "c.yml").write_text(
        "SOLVER: {<<: &x {SEED: 3}, STEPS: [1, 2]}\nTEST: {RE_RANKING: yes}\nOUTPUT_DIR: 'a'\n", encoding="utf-8"
    )
    return sorted(folder.iterdir()), lambda path: load_cfg(path, [])


def templates(folder: Path):
    """Configurations of BBDM."""
    (folder / "a.yaml").write_text(TEMPLATE, encoding="utf-8")
    target = folder.parent / "converted.yml"

    def read(path: Path) -> None:
        target.unlink(missing_ok=True)
        convert_config.write_config(path, target)

    return sorted(folder.iterdir()), read


def results_files(folder: Path):
    """results.json."""
    write_results(folder / "a.json", RESULTS)

    def read(path: Path) -> None:
        shutil.copy(path, folder.parent / "results.json")
        results_path(folder.parent, path="w.pth", sha256="ab")
        read_results(path)

    return [folder / "a.json"], read


def chips_of(folder: Path, count: int = 3) -> list[Path]:
    return [write_chip(folder / f"{n}_{kind}.png", seed=n, height=9, width=5) for n in range(count) for kind in ("RGB", "SAR")]


def tables(folder: Path):
    """Tables of chips."""
    chips = chips_of(folder.parent / "chips")
    for name, separator in (("a", ","), ("b", ";"), ("c", "\t")):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerow(["image_id", "path", "ship_id", "modality"])
            writer.writerows([path.stem, path.name, n // 2, "optical" if n % 2 == 0 else "sar"] for n, path in enumerate(chips))
    return sorted(folder.iterdir()), lambda path: read_table(path, chips[0].parent)


def tasks(folder: Path):
    """Tasks."""
    paths, read = tables(folder.parent)
    table = read(paths[0])
    (folder / "a.json").write_bytes(mutants.compact({"query": ["0_RGB"], "candidates": ["0_SAR", "1_RGB", "1_SAR"]}))
    (folder / "b.json").write_bytes(mutants.compact([{"query": "0_RGB", "candidates": ["0_SAR", "1_SAR.png"]}]))
    return sorted(folder.iterdir()), lambda path: read_task(path, table)


def rankings(folder: Path):
    """ranking.csv and prediction.json of tools.rank."""
    fused = {"a.png": [("b.png", 0.5), ("c.png", 0.25)], "d.png": [("c.png", 1.0)]}
    (folder / "a.csv").write_text(fuse_results.format_csv(fused), encoding="utf-8")
    (folder / "b.json").write_bytes(mutants.compact({query: [name for name, _ in places] for query, places in fused.items()}))

    def read(path: Path) -> None:
        files = {path: fuse_results.read_rankings(path), folder / "a.csv": fuse_results.read_rankings(folder / "a.csv")}
        fuse_results.check_queries(files)
        fuse_results.fuse_rankings(list(files.values()))

    return sorted(folder.iterdir()), read


def boxes(folder: Path):
    """Boxes of ships in a scene."""
    (folder / "a.csv").write_text("xmin,ymin,xmax,ymax,ship\n1,2,30,40,a\n5,6,70.5,80,b\n", encoding="utf-8")
    (folder / "b.txt").write_text("imagesource:x\ngsd:0.5\n1 2 30 2 30 40 1 40 ship 0\n", encoding="utf-8")
    ring = [[1, 2], [30, 2], [30, 40], [1, 40], [1, 2]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"ship": "a"}}
    (folder / "c.geojson").write_bytes(mutants.compact({"type": "FeatureCollection", "features": [feature] * 2}))
    return sorted(folder.iterdir()), read_boxes


def manifests(folder: Path):
    """manifest.json of generated samples, read, and gone on with."""
    run = SamplingRun(2, "few_step (order 2)", 4, 1.0, 7, "ab" * 32, {"WIDTH": 32})
    store = folder.parent / "store"
    chips = [
        Chip(write_chip(folder.parent / f"{n}_a_RGB.png", n, height=9, width=5), n, Modality.OPTICAL, Split.QUERY, (5, 9))
        for n in range(3)
    ]
    open_store(store, run, chips, config={"yaml": "A: 1"})
    for chip in chips:
        for k in range(2):
            write_sample(sample_of(chip, k, store, run), optical_pixels(k, height=9, width=5))
    shutil.copy(store / "manifest.json", folder / "a.json")

    def read(path: Path) -> None:
        shutil.copy(path, store / "manifest.json")
        found, _ = read_samples(store, split=Split.QUERY, sources=chips)
        for sample in (sample for samples in found.values() for sample in samples):
            read_generated(sample)
        open_store(store, run, chips, config={})

    return [folder / "a.json"], read


def runs(folder: Path):
    """What lies in the folder of a run: a file of it is changed, its others are good."""
    run = folder.parent / "run"
    run.mkdir()
    lines = [
        {"kind": "step", "epoch": 1, "step": 1, "loss": 0.5},
        {"kind": "epoch", "epoch": 1, "loss": 0.5, "seconds": 1.0},
        {"kind": "test", "epoch": 1, "protocol": "ALL", "mAP": 0.5, "R1": 0.5},
    ]
    good = {
        "metrics.jsonl": "".join(f"{json.dumps(line)}\n" for line in lines).encode(),
        "environment.json": mutants.compact({"seed": 1, "packages": {"torch": "2"}}),
        "config.yml": tiny_cfg().dump().encode(),
        "w.tuning.json": b"",
    }
    write_results(run / "results.json", replace(RESULTS, weights={"path": str(run / "w.pth"), "sha256": "ab"}))
    write_tuning(
        run / "w.pth", digest="ab", split="test", settings=[{"TEST.FUSION_TAU": 0.1}], not_recommended=[], trials=[{"tau": 1}]
    )
    good["w.tuning.json"] = (run / "w.tuning.json").read_bytes()
    for name, content in good.items():
        (folder / name).write_bytes(content)
        (run / name).write_bytes(content)
    cfg = tiny_cfg(TEST__WEIGHT=run / "w.pth")

    def read(path: Path) -> None:
        name = path.name.split("@")[-1]
        shutil.copy(path, run / name)
        try:
            build_tuning_sentences(cfg, "ab")
            if name == "metrics.jsonl":
                MetricsWriter(run / name, keep=Standing(torch.zeros(1), 2).has_logged)
                shutil.copy(path, run / name)
            read_runs([run])
        finally:
            (run / name).write_bytes(good[name])

    return sorted(folder.iterdir()), read


def calibrations(folder: Path):
    """A calibration of probabilities."""
    names = identify.Calibration.__dataclass_fields__
    told = {"weights_sha256": "ab", "settings": {"MODEL.NAME": "transformer"}, "seed": 1}
    filled = {name: told.get(name, {"optical->sar": [0.1, 0.2, 0.3]}) for name in names}
    (folder / "a.json").write_bytes(mutants.compact(filled))
    weights = folder.parent / "w.pth"

    def read(path: Path) -> None:
        shutil.copy(path, identify.calibration_path(weights))
        identify.read_calibration(weights, "ab", told["settings"])

    return [folder / "a.json"], read


# Arrays and pictures


def listings(folder: Path):
    """ranking.npz."""
    arrays = {name: np.zeros((2, 3), np.float32) for name in ProtocolLists.__dataclass_fields__}
    images = (ListedImage("a.png", 1, False, (5, 9)), ListedImage("b.png", 1, True, (5, 9), ("c.png",)))
    write_lists(folder / "a.npz", RunLists("root", "A: 1", "w.pth", "ab", images, {("ALL", "plain"): ProtocolLists(**arrays)}))
    return [folder / "a.npz"], read_lists


def stores(folder: Path):
    """An entry of the feature store: it is used or made anew, and never raises."""
    contents, values, store = ["a", "b"], torch.arange(6.0).reshape(2, 3), folder.parent / "features"
    stored(store, {"w": 1}, contents, lambda: values)
    (entry,) = store.iterdir()
    shutil.copy(entry, folder / "a.pth")

    def read(path: Path) -> None:
        shutil.copy(path, entry)
        found, _ = stored(store, {"w": 1}, contents, lambda: values, width=3)
        assert torch.equal(found, values), "other features were used"

    return [folder / "a.pth"], read


def read_picture(path: Path) -> None:
    """As every reader does."""
    failures = []
    for read in (read_header, read_optical, read_sar):
        try:
            read(path)
        except Exception as error:
            if not hasattr(error, "exit_status"):
                raise
            failures.append(error)
    if len(failures) == 3:
        raise failures[0]


def tiffs(folder: Path):
    """TIFFs of all makes: those of the cases, and chips as HOSS has them."""
    cases = Path(__file__).parent.parent / "cases"
    for number, path in enumerate(sorted([*cases.glob("sar_tiff/*.tif"), *cases.glob("optical/*.tif")])):
        shutil.copy(path, folder / f"{number}.tif")
    write_chip(folder / "a_RGB.tif", height=20, width=9)
    write_chip(folder / "a_SAR.tif", height=20, width=9)
    return sorted(folder.iterdir()), read_picture


def pngs(folder: Path):
    """PNGs of several modes, a generated one among them."""
    picture = Image.fromarray(optical_pixels(1, height=20, width=9))
    for mode in ("RGB", "L", "P", "RGBA", "1", "LA"):
        picture.convert(mode).save(folder / f"{mode}.png")
    Image.fromarray((sar_values(1, height=9, width=7) * 9000).astype(np.uint16)).save(folder / "sixteen.png")
    source = Chip(folder / "s_RGB.png", 1, Modality.OPTICAL, Split.QUERY, (9, 20))
    run = SamplingRun(1, "few_step", 4, 1.0, 7, "ab")
    sample = sample_of(source, 0, folder, run)
    write_sample(sample, optical_pixels(2, height=20, width=9))

    def read(path: Path) -> None:
        try:
            read_generated(replace(sample, path=path))
        except Exception as error:
            if not hasattr(error, "exit_status"):
                raise
        read_picture(path)

    return sorted(folder.iterdir()), read


def jpegs(folder: Path):
    """JPEGs, with and without EXIF."""
    picture = Image.fromarray(optical_pixels(1, height=20, width=9))
    picture.save(folder / "a.jpg")
    picture.convert("L").save(folder / "b.jpg", progressive=True)
    exif = Image.Exif()
    exif[274] = 6
    picture.save(folder / "c.jpg", exif=exif)
    return sorted(folder.iterdir()), read_picture


def scenes(folder: Path):
    """A scene, of which a chip is cut."""
    values = np.random.default_rng(0).gamma(1.0, 1.0, (1, 64, 64)).astype(np.float32)
    place = {"crs": "EPSG:32650", "transform": from_origin(500_000, 3_000_000, 2.0, 2.0)}
    with rasterio.open(
        folder / "a_SAR.tif", "w", driver="GTiff", width=64, height=64, count=1, dtype="float32", **place
    ) as file:
        file.write(values)
    table = folder.parent / "boxes.csv"
    table.write_text("xmin,ymin,xmax,ymax\n20,20,40,44\n", encoding="utf-8")
    found, output = read_boxes(table), folder.parent / "cut"
    args = cut_chips.build_parser().parse_args(["--scene", "s", "--boxes", "b", "--output", str(output), "--sensor", "sar"])
    return [folder / "a_SAR.tif"], lambda path: cut_chips.cut_scene(path, found, output, args)


READERS = (
    Reader("checkpoint", ".pth", mutants.mutate_archive, checkpoints),
    Reader("safetensors", ".safetensors", mutants.mutate_safetensors, safetensors),
    Reader("training state", ".pth", mutants.mutate_archive, states),
    Reader("bridge", ".pth", mutants.mutate_archive, bridges),
    Reader("weights of a command", ".pth", mutants.mutate_archive, pretraining),
    Reader("YAML", ".yml", mutants.mutate_text, configurations),
    Reader("YAML of BBDM", ".yaml", mutants.mutate_text, templates),
    Reader("results.json", ".json", mutants.mutate_text, results_files),
    Reader("task", ".json", mutants.mutate_text, tasks),
    Reader("CSV of chips", ".csv", mutants.mutate_text, tables),
    Reader("rankings", "", mutants.mutate_text, rankings),
    Reader("boxes", "", mutants.mutate_text, boxes),
    Reader("manifest", ".json", mutants.mutate_text, manifests),
    Reader("folder of a run", "", mutants.mutate_text, runs),
    Reader("calibration", ".json", mutants.mutate_text, calibrations),
    Reader("ranking.npz", ".npz", mutants.mutate_arrays, listings),
    Reader("feature store", ".pth", mutants.mutate_archive, stores),
    Reader("TIFF", ".tif", mutants.mutate_bytes, tiffs),
    Reader("PNG", ".png", mutants.mutate_bytes, pngs),
    Reader("JPEG", ".jpg", mutants.mutate_bytes, jpegs),
    Reader("scene", ".tif", mutants.mutate_bytes, scenes),
)
"""All of them."""
