"""Every job on a GPU, beside a plain restatement of the released way, in one run.

    python -m benchmarks.gpu [--only JOB ...] [--seconds 450] [--output logs/benchmarks]

Needs the checkout and its packages; writes gpu.md and gpu.json. Weights are random and chips are made up: what is measured is
speed, memory and agreement. Jobs that the seconds do not suffice for are listed as not run. `--tiny` tries the script on a CPU.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bbdm.data import layout_of
from bbdm.model import BridgeModel, SamplerSettings, build_bridge, build_condition, build_empty_first_stage, build_network
from bbdm.noise import seeded_normal
from benchmarks.measuring import (
    Row,
    forget_peak,
    machine_line,
    matrix_rates,
    operations,
    peak_memory,
    print_rows,
    size_of,
    time_call,
    time_steps,
    with_ratios,
    write_rows,
)
from benchmarks.ranking import make_set
from benchmarks.released import bridge_step, rank_whole, reid_step, released_networks
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.loaders import build_train_loader
from datasets.records import Batch
from datasets.validation import build_training_data
from model.build import build_model
from processor.engine import train_one_epoch
from processor.ranking.reranking import rerank_blocks
from processor.ranking.retrieval import rank_distances, rank_features
from processor.saving import Saver
from processor.standing import Standing
from processor.task import TrainingPlan
from processor.update import Update
from tests.chip_files import write_chip, write_hoss
from train import build_reid_task
from utils.device import find_precision
from utils.log import MetricsWriter, progress

ROOT = Path(__file__).parent.parent


@dataclass
class Bench:
    """Where and how large.

    Attributes:
        device: that is measured.
        folder: for chips, weights and runs.
        tiny: sizes that a CPU manages in a minute.
        deadline: of `time.monotonic`.
        rates: operations a second of a matrix product, by type.
    """

    device: torch.device
    folder: Path
    tiny: bool
    deadline: float
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    @property
    def precisions(self) -> dict[str, str]:
        """Way -> SOLVER.AMP."""
        return {"float32": "off", "bf16": "bf16"} | ({"fp16": "fp16"} if self.device.type == "cuda" else {})

    def steps(self, step: Callable[[], object], *, count: int = 20, warm: int = 3) -> float:
        """Seconds of a step among `count` in a row."""
        return time_steps(step, self.device, **({"count": 1, "warm": 1} if self.tiny else {"count": count, "warm": warm}))

    def share(self, work: float, seconds: float, way: str) -> float | None:
        """Of the matrix rate of a way that begins with the name of a type."""
        rate = self.rates.get(way.removeprefix("released: ").split()[0])
        return work / seconds / rate if rate else None

    def reid_cfg(self, *overrides: str):
        """MOS as released, without start weights."""
        tiny = ("MODEL.TRANSFORMER_TYPE", "vit_tiny_patch16_224_TransOSS") if self.tiny else ()
        fixed = (
            "MODEL.PRETRAIN_CHOICE",
            "none",
            "MODEL.DEVICE",
            str(self.device),
            "DATALOADER.NUM_WORKERS",
            "2" if self.tiny else "16",
        )
        return load_cfg(ROOT / "configs/hoss_transoss.yml", [*fixed, *tiny, *overrides])

    def bridge(self, config: str, amp: str, *, layout: torch.memory_format, training: bool = False) -> BridgeModel:
        """A bridge with random weights."""
        tiny = ("BBDM.WIDTH", "32", "BBDM.FIRST_STAGE_WIDTH", "32", "BBDM.IMAGE_SIZE", "[64,64]") if self.tiny else ()
        cfg = load_cfg(ROOT / "configs" / config, ["BBDM.PRETRAINED", "", *tiny])
        torch.manual_seed(0)
        stage = None if cfg.BBDM.SPACE == "pixel" else build_empty_first_stage(cfg).eval().requires_grad_(False)
        network, precision = build_network(cfg), find_precision(amp, self.device)
        for part in (network, stage) if stage else (network,):
            part.to(self.device, memory_format=layout)
        network.train(training).requires_grad_(training)
        if not training:
            precision.cast(network)
            if stage:
                precision.cast(stage)
        return BridgeModel(build_bridge(cfg).to(self.device), network, stage, precision, build_condition(cfg))

    def pictures(self, batch: int, layout: torch.memory_format) -> torch.Tensor:
        """(batch, 3, 256, 256) in [-1, 1]."""
        side = 64 if self.tiny else 256
        return (2 * torch.rand(batch, 3, side, side, device=self.device) - 1).contiguous(memory_format=layout)

    def reid_batch(self, size: int) -> Batch:
        """Made-up chips of size / 4 ships on the device, half of them of either modality."""
        places = torch.arange(size, device=self.device)
        images, sizes = torch.randn(size, 3, 256, 128, device=self.device), torch.rand(size, 3, device=self.device)
        return Batch(images, sizes, modalities=places % 2, labels=places // 4, indices=places.cpu())


def golden(bench: Bench) -> Iterator[Row]:
    """The golden vectors, computed on the device."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.golden", "--device", str(bench.device)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    good, bad = (sum(line.startswith(word) for line in lines) for word in ("ok", "FAIL"))
    failed = "; ".join(line for line in lines if line.startswith("FAIL"))
    note = f"{good} files within tolerance, {bad} not{': ' if failed else ''}{failed}"
    yield Row("golden vectors", "float32, TF32 off", time.perf_counter() - start, note=note[:900])


def reid_training(bench: Bench) -> Iterator[Row]:
    """A training step of ViT-B, batch 32, its batch on the device already."""
    size = 8 if bench.tiny else 32
    batch, device, work = bench.reid_batch(size), bench.device, 0
    labels, images = batch.labels, batch.images
    torch.manual_seed(0)
    model = build_model(bench.reid_cfg(), num_identities=361).to(device).train()
    with released_networks():
        step = reid_step(model, device)
        forget_peak(device)
        seconds = bench.steps(lambda: step(images, batch.modalities, batch.sizes, labels))
    yield Row(
        "ReID training step",
        "released: fp16" if device.type == "cuda" else "released: float32",
        seconds,
        size,
        memory=peak_memory(device),
    )
    for way, amp in [*bench.precisions.items(), ("bf16 compiled", "bf16")]:
        if " " in way and bench.tiny:
            continue
        mode = "on" if "compiled" in way else "off"
        task = bench_task(bench, amp, mode)
        forget_peak(device)
        start = time.perf_counter()
        task.step(batch)
        if not work:
            work = operations(lambda task=task: task.step(batch))
        first = time.perf_counter() - start
        seconds = bench.steps(lambda task=task: task.step(batch))
        note = f"first call {first:.1f} s" if " " in way else ""
        yield Row("ReID training step", way, seconds, size, bench.share(work, seconds, way), peak_memory(device), note=note)
        torch._dynamo.reset()


def bench_task(bench: Bench, amp: str, mode: str):
    """Our training of made-up chips."""
    root = chips(bench)
    cfg = bench.reid_cfg("SOLVER.AMP", amp, "SOLVER.COMPILE", mode, "DATASETS.ROOT_DIR", str(root))
    task = build_reid_task(cfg, read_hoss(root), bench.device)
    task.begin(1)
    task.network.train()
    return task


def chips(bench: Bench) -> Path:
    """A data set of made-up chips, about as large as HOSS's: 1,024 to train on, 1,200 to test on."""
    root = bench.folder / "chips"
    if not root.exists():
        folders, ships = root / "HOSS", (16, 8) if bench.tiny else (128, 200)
        for ship in range(sum(ships)):
            for view, kind in ((view, kind) for view in range(4 if ship < ships[0] else 3) for kind in ("RGB", "SAR")):
                test = "query" if view == 0 else "bounding_box_test"
                folder = folders / ("bounding_box_train" if ship < ships[0] else test)
                write_chip(folder / f"{ship + 1:04d}_s01c{view}_{kind}.tif", 10 * ship + view, height=200, width=50)
    return root


def reid_loop(bench: Bench) -> Iterator[Row]:
    """The loop from files to weights: seconds of a step, and the share of them in which the device waits for data."""
    device, root = bench.device, chips(bench)
    for way, amp in bench.precisions.items():
        cfg = bench.reid_cfg(
            "SOLVER.AMP", amp, "DATASETS.ROOT_DIR", str(root), "SOLVER.IMS_PER_BATCH", "16" if bench.tiny else "32"
        )
        data = build_training_data(cfg)
        loader, task = build_train_loader(cfg, data, device_type=device.type), build_reid_task(cfg, data, device)
        plan = TrainingPlan(bench.folder, "bench", 4, 4, 4, 1000, 0.0, 0, {})
        metrics, at = MetricsWriter(bench.folder / "metrics.jsonl"), Standing.at_start(task)
        with Saver(task, plan, loader.dataset.chips) as saver, progress(0, "steps", visible=False) as bar:
            for _ in range(2):  # workers start in the first epoch, and it is not counted
                start = time.perf_counter()
                train_one_epoch(task, loader, plan, at, metrics, saver, bar)
                at.close_epoch()
                seconds = (time.perf_counter() - start) / len(loader)
        batch = next(iter(loader)).to(device)
        alone = bench.steps(lambda task=task, batch=batch: task.step(batch))
        note = f"device waits {100 * max(0.0, 1 - alone / seconds):.0f} % of the time; {len(loader.dataset)} chips"
        yield Row("ReID training, files to weights", way, seconds, len(batch.indices), note=note)


def testing(bench: Bench) -> Iterator[Row]:
    """test.py from start to end, three protocols."""
    root, weights = chips(bench), bench.folder / "reid.pth"
    torch.manual_seed(0)
    torch.save(build_model(bench.reid_cfg(), num_identities=361).state_dict(), weights)
    images = len(read_hoss(root, train=False).images)
    fixed = [
        "--config_file",
        "configs/hoss_transoss.yml",
        "TEST.WEIGHT",
        weights,
        "DATASETS.ROOT_DIR",
        root,
        "MODEL.DEVICE",
        bench.device,
    ]
    fixed += ["OUTPUT_DIR", bench.folder / "test", "DATALOADER.NUM_WORKERS", "16"]
    fixed += ["MODEL.TRANSFORMER_TYPE", "vit_tiny_patch16_224_TransOSS"] if bench.tiny else []
    ways = {"released: float32": ["-m", "benchmarks.released"], "float32": ["test.py"], "bf16": ["test.py"]}
    for way, program in ways.items():
        start = time.perf_counter()
        amp = ["TEST.AMP", "bf16"] if way == "bf16" else []
        ended = subprocess.run(
            [sys.executable, *map(str, [*program, *fixed, *amp])], cwd=ROOT, capture_output=True, text=True, check=False
        )
        told = re.findall(r"^ALL.*", ended.stdout, flags=re.MULTILINE)
        note = told[0] if ended.returncode == 0 and told else ended.stderr[-300:]
        yield Row("test.py, 3 protocols", way, time.perf_counter() - start, images, note=" ".join(note.split()))


@torch.inference_mode()
def extraction(bench: Bench) -> Iterator[Row]:
    """Features of a batch that is on the device already."""
    size, device = 8 if bench.tiny else 128, bench.device
    batch = bench.reid_batch(size)
    arguments = (batch.images, batch.modalities, batch.sizes)
    torch.manual_seed(0)
    exact = build_model(bench.reid_cfg()).to(device).eval()
    with released_networks():
        seconds = time_call(lambda: exact(*arguments).feature.cpu(), device)
        work = operations(lambda: exact(*arguments))
        reference = torch.nn.functional.normalize(exact(*arguments).feature)
    yield Row("extraction", "released: float32", seconds, size, bench.share(work, seconds, "float32"))
    for way, amp in [*bench.precisions.items(), *([] if bench.tiny else [("bf16 graphs", "bf16")])]:
        precision = find_precision(amp, device)
        torch.manual_seed(0)
        model = precision.cast(build_model(bench.reid_cfg()).to(device).eval())
        if "graphs" in way:
            model.compile(mode="reduce-overhead")
        with precision.autocast():
            seconds = time_call(lambda model=model: model(*arguments), device)
            work = work if "graphs" in way else operations(lambda model=model: model(*arguments))
            found = torch.nn.functional.normalize(model(*arguments).feature.float())
        note = f"normalised features within {(found - reference).abs().max().item():.1e}"
        yield Row("extraction", way, seconds, size, bench.share(work, seconds, way), note=note)


def ranking(bench: Bench) -> Iterator[Row]:
    """Ranking 10,000 queries in a gallery of 100,000."""
    queries, gallery, few = (100, 1000, 20) if bench.tiny else (10_000, 100_000, 500)
    query, images, truth = make_set(queries, gallery)
    query, images = query.to(bench.device), images.to(bench.device)
    ships = {name: ids.numpy() for name, ids in truth.items()}
    seconds = time_call(
        lambda: rank_whole(query[:few], images, ships["query_ids"][:few], ships["gallery_ids"]), bench.device, seconds=0, warm=0
    )
    yield Row("ranking", "released: sorted whole", seconds, few, note=f"{few} of the queries x {gallery}")
    result = []
    seconds = time_call(lambda: result.append(rank_features(query, images, **truth)), bench.device, seconds=0, warm=1)
    part = rank_features(query[:few], images, query_ids=truth["query_ids"][:few], gallery_ids=truth["gallery_ids"])
    whole = rank_whole(query[:few], images, ships["query_ids"][:few], ships["gallery_ids"])
    note = f"{queries} x {gallery}; mAP of the first {few} {part.mean_average_precision:.6f}, released {whole:.6f}"
    yield Row("ranking", "float64 integers", seconds, queries, note=note)


def reranking(bench: Bench) -> Iterator[Row]:
    """Re-ranking, neighbours on the device."""
    for queries, gallery in [(100, 900)] if bench.tiny else [(1_000, 9_000), (10_000, 100_000)]:
        query, images, truth = make_set(queries, gallery)
        start = time.perf_counter()
        blocks = rerank_blocks(query, images, device=bench.device)
        result = rank_distances(blocks, **truth)
        note = f"mAP {result.mean_average_precision:.6f}; a dense matrix has {4 * (queries + gallery) ** 2 / 1e9:.1f} GB"
        yield Row(f"re-ranking {queries} x {gallery}", "sparse", time.perf_counter() - start, queries, note=note)


@dataclass(frozen=True)
class BridgeWay:
    """How a bridge is run.

    Attributes:
        name: of the row; its first word is the type of the matrix rate that it is a share of.
        amp: SOLVER.AMP.
        released: the released way.
        kept: latents are kept (training).
        mode: of torch.compile.
    """

    name: str
    amp: str
    released: bool = False
    kept: bool = False
    mode: str | None = None

    def layout(self, device: torch.device) -> torch.memory_format:
        """Of pictures and convolutions; sets whether those may round to TF32, too."""
        torch.backends.cudnn.allow_tf32 = self.amp == "tf32"
        return torch.contiguous_format if self.released else layout_of(find_precision(self.amp, device))


RELEASED = BridgeWay("released: float32, TF32", "tf32", released=True)


def bridge_training(bench: Bench, config: str, job: str, ways: Sequence[BridgeWay]) -> Iterator[Row]:
    """A training step of batch 8 with its share of the optimiser's step."""
    size, work, device = 2 if bench.tiny else 8, 0, bench.device
    for way in ways:
        layout = way.layout(device)
        model = bench.bridge(config, way.amp, layout=layout, training=True)
        optical, sar = bench.pictures(size, layout), bench.pictures(size, layout)
        if way.kept:
            optical, sar, model = model.encode(optical, "cond"), model.encode(sar, "ori"), model.between_latents()
        if way.mode:
            model.network.compile(mode=way.mode)
        with released_networks() if way.released else nullcontext():
            forget_peak(device)
            step = bridge_step(model, accumulation=4) if way.released else our_bridge_step(model, device)
            start = time.perf_counter()
            try:
                step(optical, sar)
                first = time.perf_counter() - start
                seconds = bench.steps(partial(step, optical, sar), count=8, warm=3)
            except torch.OutOfMemoryError:
                yield Row(job, way.name, None, size, note="out of memory")
                continue
            # The first stage's work is no share of a step that does without it.
            work = work or (operations(partial(step, optical, sar)) if way.kept or model.first_stage is None else 0)
        share = bench.share(work, seconds, way.name) if work else None
        note = f"first call {first:.1f} s" if way.mode else size_of(model.network)
        yield Row(job, way.name, seconds, size, share, peak_memory(device), note=note)
        torch._dynamo.reset()


def our_bridge_step(model: BridgeModel, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A training step as `bbdm.train` takes it."""
    optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-4, fused=device.type == "cuda")
    update = Update(model.network, [optimizer], model.precision.scaler(), accumulation=4)

    def step(optical: torch.Tensor, sar: torch.Tensor) -> None:
        with update.passes():
            update(model.random_loss(optical, sar))

    return step


def f4_training(bench: Bench) -> Iterator[Row]:
    """The latent bridge f4."""
    plain = [BridgeWay("float32", "off"), BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    kept = [BridgeWay("TF32 kept latents", "tf32", kept=True), BridgeWay("bf16 kept latents", "bf16", kept=True)]
    graphs = [] if bench.tiny else [BridgeWay("bf16 kept latents, compiled", "bf16", kept=True, mode="default")]
    yield from bridge_training(bench, "bbdm_hoss_f4.yml", "f4 bridge training step", [RELEASED, *plain, *kept, *graphs])


def pixel_training(bench: Bench) -> Iterator[Row]:
    """The pixel bridge."""
    ways = [RELEASED, BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    yield from bridge_training(bench, "bbdm_hoss.yml", "pixel bridge training step, 256", ways)


def bridge_sampling(
    bench: Bench, config: str, job: str, batch: int, calls: Sequence[int], ways: Sequence[BridgeWay]
) -> Iterator[Row]:
    """Samples of pictures that are on the device already; what would take longer than 12 s is not run."""
    device, work = bench.device, 0
    for way in ways:
        layout = way.layout(device)
        model, optical = bench.bridge(config, way.amp, layout=layout), bench.pictures(batch, layout)
        if way.mode:
            model.network.compile(mode=way.mode)
        each = first = 0.0
        for steps in calls:
            title = f"{job}, batch {batch}, {steps} calls"
            if each * steps > 12.0 or bench.left < 30:
                yield Row(
                    title,
                    way.name,
                    None,
                    batch,
                    note=f"not run: about {each * steps:.0f} s" if each else "not run: no time left",
                )
                continue
            with released_networks() if way.released else nullcontext():
                first = first or once(partial(draw_samples, model, optical, 3), device)
                forget_peak(device)
                seconds = once(partial(draw_samples, model, optical, steps), device)
                arguments = one_call(model, optical)
                work = work or operations(partial(model.predict, *arguments))
            each = seconds / steps
            note = f"first call {first:.1f} s" if way.mode else ""
            yield Row(
                title, way.name, seconds, batch, bench.share(work * steps, seconds, way.name), peak_memory(device), note=note
            )
        torch._dynamo.reset()


def draw_samples(model: BridgeModel, optical: torch.Tensor, steps: int) -> torch.Tensor:
    """One sample of each picture, with noise of its own seed."""
    seeds = torch.arange(len(optical), device=optical.device)
    noise = partial(seeded_normal, seeds, shape=model.state_shape(optical)[1:])
    return model.sample(optical, SamplerSettings(name="released", steps=steps), noise)


def once(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    return time_steps(run, device, count=1, warm=0)


def one_call(model: BridgeModel, optical: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Arguments of a call of the network."""
    y = model.encode(optical, "cond")
    return y, torch.zeros(len(y), dtype=torch.long, device=y.device), model.context(optical, y)


def f4_sampling(bench: Bench) -> Iterator[Row]:
    """The latent bridge f4."""
    ways = [RELEASED, BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    for batch in (1, 2) if bench.tiny else (1, 16, 64):
        graphs = [] if bench.tiny or batch == 64 else [BridgeWay("bf16 graphs", "bf16", mode="reduce-overhead")]
        compiled = [BridgeWay("bf16 compiled", "bf16", mode="default")] if batch == 64 else []
        calls = (4,) if bench.tiny else (20, 200)
        yield from bridge_sampling(bench, "bbdm_hoss_f4.yml", "f4 sampling", batch, calls, [*ways, *graphs, *compiled])


def pixel_sampling(bench: Bench) -> Iterator[Row]:
    """The pixel bridge."""
    ways = [RELEASED, BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    batch, calls = (2, (4,)) if bench.tiny else (4, (20,))
    yield from bridge_sampling(bench, "bbdm_hoss.yml", "pixel sampling, 256", batch, calls, ways)


def promises(bench: Bench) -> Iterator[Row]:
    """What must hold on a GPU as on a CPU: equal bits when asked for, resuming elsewhere, one sentence when memory is short."""
    root, device = write_hoss(bench.folder / "small", train_ships=8), str(bench.device)
    fixed = ["train.py", "--config_file", "configs/demo_reid.yml", "DATASETS.ROOT_DIR", root, "SOLVER.IMS_PER_BATCH", "16"]
    fixed += ["SOLVER.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.WARMUP_EPOCHS", "1"]

    def training(name: str, epochs: int, where: str, *more: str) -> subprocess.Popen:
        own = ["SOLVER.MAX_EPOCHS", epochs, "MODEL.DEVICE", where, "OUTPUT_DIR", bench.folder / name, *more]
        command = [sys.executable, *map(str, [*fixed, *own])]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def outcome(process: subprocess.Popen) -> str:
        told = process.communicate()[0].strip().splitlines()
        return "done" if process.returncode == 0 else f"exit {process.returncode}: {told[-1] if told else ''}"[:300]

    start = time.perf_counter()
    twins = [training(name, 2, device, "SOLVER.DETERMINISTIC", "True") for name in ("one", "two")]
    greedy = None if bench.tiny else memory_hog(bench, root)
    outcomes = [outcome(twin) for twin in twins]
    one, two = (
        torch.load(bench.folder / name / "transformer_2.pth", map_location="cpu", weights_only=True) for name in ("one", "two")
    )
    equal = all(torch.equal(one[key], two[key]) for key in one)
    yield Row(
        "SOLVER.DETERMINISTIC twice", device, time.perf_counter() - start, note=f"{outcomes}, weights equal to the bit: {equal}"
    )
    if greedy:
        yield Row("too large a batch", device, None, note=outcome(greedy))
    there = training("one", 3, "cpu", "SOLVER.RESUME", str(bench.folder / "one" / "last.pth"))
    yield Row("resumed on a CPU", "cpu", None, note=outcome(there))
    back = training("one", 4, device, "SOLVER.RESUME", str(bench.folder / "one" / "last.pth"))
    yield Row("resumed on the GPU", device, None, note=outcome(back))


def memory_hog(bench: Bench, root: Path) -> subprocess.Popen:
    """Sampling of 4,096 pictures together, which no card holds."""
    fixed = ["BBDM.MULTIPLIERS", "[1,1]", "BBDM.BLOCKS", "1", "DATASETS.ROOT_DIR", str(root), "MODEL.DEVICE", str(bench.device)]
    fixed += [
        "BBDM.SAMPLE_BATCH",
        "4096",
        "BBDM.SAMPLE_STEP",
        "3",
        "OUTPUT_DIR",
        str(bench.folder / "hog"),
    ]
    weights = bench.folder / "bridge.pth"
    torch.save(build_network(load_cfg(ROOT / "configs/bbdm_hoss.yml", fixed)).state_dict(), weights)
    command = ["-m", "bbdm.sample", "--config_file", "configs/bbdm_hoss.yml", *fixed, "BBDM.WEIGHT", str(weights)]
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


JOBS = {
    "golden": golden,
    "promises": promises,
    "extraction": extraction,
    "reid": reid_training,
    "loop": reid_loop,
    "test": testing,
    "ranking": ranking,
    "f4": f4_training,
    "f4-sampling": f4_sampling,
    "pixel": pixel_training,
    "pixel-sampling": pixel_sampling,
    "reranking": reranking,
}
"""Name -> what yields its rows, in the order in which they are run."""


def main() -> None:
    """Run the jobs and write the table after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="jobs to run (default: all)")
    parser.add_argument("--seconds", type=float, default=450, help="after which no job is begun (default 450)")
    parser.add_argument("--output", type=Path, default=ROOT / "logs" / "benchmarks", help="folder of gpu.md and gpu.json")
    parser.add_argument("--tiny", action="store_true", help="try the script itself, on a CPU")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else "cuda:0")
    torch.backends.cudnn.allow_tf32 = False
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "4")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, Path(folder), arguments.tiny, time.monotonic() + arguments.seconds)
        bench.rates = matrix_rates(device, 512 if arguments.tiny else 8192)
        rows = [Row("matrix product", way, 1 / (rate / 1e12), note="TFLOP/s in items/s") for way, rate in bench.rates.items()]
        for name in arguments.only:
            rows += run_job(name, bench)
            write_rows(arguments.output / "gpu.json", with_ratios(rows), machine_line(device))
            text = f"{machine_line(device)}\n\n{print_rows(with_ratios(rows))}\n"
            (arguments.output / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


def run_job(name: str, bench: Bench) -> list[Row]:
    """The rows of a job; what goes wrong is a row too, so that the other jobs are run."""
    if bench.left < 15:
        return [Row(name, "", None, note="not run: no time left")]
    start, rows = time.perf_counter(), []
    try:
        for row in JOBS[name](bench):
            rows.append(row)
            print(print_rows([row], "plain").splitlines()[-1], flush=True)
    except Exception as error:
        rows.append(Row(name, "", None, note=f"failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}"))
        print(rows[-1], flush=True)
    print(f"{name}: {time.perf_counter() - start:.0f} s, {bench.left:.0f} s left", flush=True)
    return rows


if __name__ == "__main__":
    main()
