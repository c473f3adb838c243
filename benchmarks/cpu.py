"""Every job on one core of a CPU, beside a plain restatement of the released way, and how its cost grows.

    python -m benchmarks.cpu [--only JOB ...] [--rounds 3] [--seconds 800] [--profile] [--output benchmarks]

Ways of a job are called in turn, `--rounds` times, and medians of processor seconds are compared: a busy machine disturbs all
alike. Writes results-<date>.md; with --profile it prints where our way of each job spends its time instead. Weights are random
and chips made up. Jobs that the seconds do not suffice for are listed as not run. `--tiny` tries the script.
"""

import argparse
import cProfile
import math
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_bridge import RELEASED, BridgeWay, draw_samples, our_bridge_step
from benchmarks.gpu_reid import bench_task
from benchmarks.gpu_setup import ROOT, Bench, chips
from benchmarks.measuring import DTYPES, Row, machine_line, operations, print_rows, with_ratios
from benchmarks.ranking import dense_distances, make_set
from benchmarks.released import (
    alignment_by_loop,
    bridge_step,
    rank_whole,
    reid_step,
    released_networks,
    triplet_by_masks,
)
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.loaders import build_train_loader
from loss.terms import batch_hard_triplet, classwise_alignment
from model.build import build_model
from processor.extraction import extract_features
from processor.ranking.reranking import rerank
from processor.ranking.retrieval import rank_features
from utils.device import Precision, find_precision
from utils.log import table

CPU = torch.device("cpu")

Ways = Mapping[str, Callable[[], object]]
"""Name of a way -> what is timed; the first one is the released way."""


def losses(bench: Bench) -> Iterator[tuple[str, Ways, int, float]]:
    """Triplet and alignment, forward and backward, four images of an identity."""
    count, ships = (64, 16) if bench.tiny else (512, 128)
    yield f"losses, {count} images of {ships} ships", loss_ways(count, ships), count, 0.0


def loss_ways(count: int, ships: int) -> dict[str, Callable[[], object]]:
    """Both ways for `count` images of `ships` ships."""
    features = torch.randn(count, 768, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(ships).repeat_interleave(count // ships)
    modalities = torch.arange(count) % 2

    def backward(triplet: Callable, alignment: Callable) -> None:
        own = features.clone().requires_grad_()
        (triplet(own, labels) + 2 * alignment(own, labels, modalities)).backward()

    return {
        "released": partial(backward, triplet_by_masks, alignment_by_loop),
        "float32": partial(backward, batch_hard_triplet, classwise_alignment),
    }


def extraction_in_turn(bench: Bench) -> Iterator[tuple[str, Ways, int, float]]:
    """Features of a batch of the default size, ViT-B."""
    size = 8 if bench.tiny else 128
    batch = bench.reid_batch(size)
    torch.manual_seed(0)
    exact = build_model(bench.reid_cfg()).eval()
    half = find_precision("bf16", CPU)
    cast = half.cast(build_model(bench.reid_cfg()).eval())

    def released() -> None:
        with released_networks(), torch.inference_mode():
            exact(batch.images, batch.modalities, batch.sizes)

    def ours(model: torch.nn.Module, precision: Precision) -> None:
        extract_features(model, [batch], count=size, device=CPU, precision=precision)

    with torch.inference_mode():
        work = operations(lambda: exact(batch.images[:1], batch.modalities[:1], batch.sizes[:1])) * size
    ways = {"released": released, "float32": partial(ours, exact, Precision("cpu")), "bf16": partial(ours, cast, half)}
    yield f"extraction, {size} images", ways, size, work


def training(bench: Bench) -> Iterator[tuple[str, Ways, int, float]]:
    """A step of re-identification of 32 images, ViT-B, without reading them."""
    size = 8 if bench.tiny else 32
    batch = bench.reid_batch(size)
    model = build_model(bench.reid_cfg(), num_identities=361).train()
    step = reid_step(model, CPU)

    def released() -> None:
        with released_networks():
            step(batch.images, batch.modalities, batch.sizes, batch.labels)

    tasks = {way: bench_task(bench, amp, "off") for way, amp in (("float32", "off"), ("bf16", "bf16"))}
    work = operations(lambda: tasks["float32"].step(batch.first(4))) * size / 4
    ways = {"released": released, **{way: partial(task.step, batch) for way, task in tasks.items()}}
    yield f"training step, {size} images", ways, size, work


def reading(bench: Bench) -> Iterator[tuple[str, Ways, int, float]]:
    """An epoch of augmented training chips, in this process."""
    root, fixed = chips(bench), ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "16" if bench.tiny else "32"]
    data, ways, count = read_hoss(root), {}, 0
    for way, megabytes in (("released: read every time", 0), ("from memory", 256)):
        cfg = bench.reid_cfg("DATASETS.ROOT_DIR", str(root), *fixed, "DATALOADER.CACHE_MB", str(megabytes))
        loader = build_train_loader(cfg, data)
        loader.batch_sampler.set_epoch(1)  # the same chips each time, so that memory holds them all after the first
        ways[way], count = partial(list, loader), len(loader) * int(fixed[-1])
    yield "training chips", ways, count, 0.0


def ranking_in_turn(bench: Bench) -> Iterator[tuple[str, Ways, int, float]]:
    """1,000 queries in a gallery of 20,000, and re-ranking of 5,000 images."""
    queries, gallery = (50, 500) if bench.tiny else (1000, 20_000)
    yield f"ranking {queries} x {gallery}", ranking_ways(queries, gallery), queries, 0.0
    queries, gallery = (50, 450) if bench.tiny else (500, 4500)
    query, images, _ = make_set(queries, gallery)
    ways = {
        "released: dense": lambda: dense_distances(query.numpy(), images.numpy()),
        "sparse": lambda: rerank(query, images),
    }
    yield f"re-ranking {queries} x {gallery}", ways, queries, 0.0


def ranking_ways(queries: int, gallery: int) -> dict[str, Callable[[], object]]:
    """Both ways."""
    query, images, truth = make_set(queries, gallery)
    ships = [truth[name].numpy() for name in ("query_ids", "gallery_ids")]
    return {
        "released": partial(rank_whole, query, images, *ships),
        "float64 integers": partial(rank_features, query, images, **truth),
    }


def bridge(bench: Bench) -> Iterator[tuple[str, Ways, int, float]]:
    """The latent bridge f4: a training step of two pictures, and a sample of three calls."""
    size, steps, samplers = 2, {}, {}
    layout = torch.contiguous_format
    pictures = bench.pictures(size, layout), bench.pictures(size, layout)
    kept = [BridgeWay("float32 kept latents", "off", kept=True), BridgeWay("bf16 kept latents", "bf16", kept=True)]
    for way in (RELEASED, BridgeWay("float32", "off"), *kept):
        model, inputs = bench.bridge("bbdm_hoss_f4.yml", way.amp, layout=layout, training=True), pictures
        if way.kept:
            inputs = model.encode(pictures[0], "cond"), model.encode(pictures[1], "ori")
            model = model.between_latents()
        step = bridge_step(model, accumulation=4) if way.released else our_bridge_step(model, CPU)
        steps[way.name.replace(", TF32", "")] = partial(_run_way, partial(step, *inputs), released=way.released)
    yield f"f4 bridge training step, {size} pictures", steps, size, 0.0
    steps.clear()
    for name, amp in (("released", "off"), ("float32", "off"), ("bf16", "bf16")):
        model = bench.bridge("bbdm_hoss_f4.yml", amp, layout=layout)
        samplers[name] = partial(_run_way, partial(draw_samples, model, pictures[0], 3), released=name == "released")
    yield f"f4 sampling, {size} pictures, 3 calls", samplers, size, 0.0


def _run_way(call: Callable[[], object], *, released: bool) -> None:
    with released_networks() if released else nullcontext():
        call()


JOBS = {
    "losses": losses,
    "ranking": ranking_in_turn,
    "reading": reading,
    "extraction": extraction_in_turn,
    "training": training,
    "bridge": bridge,
}
"""Name -> what yields titles, ways, items of a call and operations of a call (0: not counted), in the order of running."""


def time_in_turn(ways: Ways, rounds: int) -> dict[str, float]:
    """Median processor seconds of each way, called in turn after one call that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, call in ways.items():
            start = time.process_time()
            call()
            if number:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def rates_of_products(side: int, rounds: int) -> dict[str, float]:
    """Operations a processor second of a square matrix product, by type."""
    pairs = {name: torch.randn(2, side, side).to(dtype) for name, dtype in DTYPES.items() if name != "fp16"}
    spent = time_in_turn({name: partial(torch.matmul, *pair) for name, pair in pairs.items()}, rounds)
    return {name: 2 * side**3 / seconds for name, seconds in spent.items()}


def job_rows(name: str, bench: Bench, rounds: int) -> Iterator[Row]:
    """The rows of a job."""
    if bench.left < 20:
        yield Row(name, "", None, note="not run: no time left")
        return
    for title, ways, items, work in JOBS[name](bench):
        if bench.left < 20:
            yield Row(title, "", None, note="not run: no time left")
            continue
        for way, seconds in time_in_turn(ways, rounds).items():
            rate = "bf16" if way.startswith("bf16") else "float32"
            yield Row(title, way, seconds, items, bench.share(work, seconds, rate) if work else None)


def slopes(bench: Bench, rounds: int) -> Iterator[list[str]]:
    """Rows of the scaling table: what grows, its sizes, seconds at each, and the slope of log(seconds) against log(size)."""
    few = bench.tiny
    ladder = {
        "losses against images, 4 of a ship": ([64, 128] if few else [128, 256, 512, 1024], lambda n: loss_ways(n, n // 4)),
        "losses against ships among 512 images": ([8, 16] if few else [8, 32, 128], lambda n: loss_ways(512, n)),
        "ranking 500 queries against gallery": (
            [500, 1000] if few else [2500, 5000, 10_000, 20_000],
            lambda n: ranking_ways(500, n),
        ),
        "features against images, ViT-mini": ([8, 16] if few else [16, 32, 64, 128], mini_features),
        "features of 8 images against rows of a picture": (
            [64, 128] if few else [64, 128, 256, 512],
            lambda side: mini_features(8, side),
        ),
        "listing against files in a folder": ([100, 200] if few else [1000, 4000, 16_000], partial(listing, bench.folder)),
    }
    for name, (sizes, make) in ladder.items():
        if bench.left < 10:
            yield [name, "not run: no time left", "", ""]
            continue
        seconds = [list(time_in_turn(make(size), rounds).values())[-1] for size in sizes]
        slope = np.polyfit([math.log(size) for size in sizes], [math.log(value) for value in seconds], 1)[0]
        told = ", ".join(f"{1000 * value:.3g}" for value in seconds)
        yield [name, ", ".join(map(str, sizes)), told, f"{slope:.2f}"]


def mini_features(count: int, rows: int = 256) -> dict[str, Callable[[], object]]:
    """Features of `count` pictures of `rows` x 128 by half of ViT-tiny."""
    size = ["INPUT.SIZE_TRAIN", f"[{rows},128]", "INPUT.SIZE_TEST", f"[{rows},128]"]
    fixed = ["MODEL.PRETRAIN_CHOICE", "none", "MODEL.TRANSFORMER_TYPE", "vit_mini_patch16_224_TransOSS", *size]
    model = build_model(load_cfg(ROOT / "configs/hoss_transoss.yml", fixed)).eval()
    inputs = torch.randn(count, 3, rows, 128), torch.arange(count) % 2, torch.rand(count, 3)

    def see() -> None:
        with torch.inference_mode():
            for places in torch.arange(count).split(16):
                model(*(values[places] for values in inputs))

    return {"float32": see}


def listing(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """Reading the names of a data set of `count` training files."""
    root = folder / f"list{count}"
    for place in range(count + 4):
        part = "bounding_box_train" if place < count else ("query", "bounding_box_test")[place // 2 % 2]
        path = root / "HOSS" / part / f"{1 + place // 4:04d}_s01c{place // 2 % 2}_{('RGB', 'SAR')[place % 2]}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return {"listing": partial(read_hoss, root)}


def profile(name: str, bench: Bench) -> Iterator[list[str]]:
    """Rows of the profile: the functions in which our last way of each job spends most of its own time."""
    for title, ways, _, _ in JOBS[name](bench):
        way, call = list(ways.items())[-1]
        call()
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(call)
        entries = pstats.Stats(profiler).get_stats_profile()
        for function, entry in sorted(entries.func_profiles.items(), key=lambda item: -item[1].tottime)[:5]:
            share = 100 * entry.tottime / max(entries.total_tt, 1e-9)
            yield [title, way, function.replace("|", "/"), f"{entry.tottime:.3f}", f"{share:.0f} %"]


def report(call: str, seconds: float, rows: Sequence[Row], scaling: Sequence[Sequence[str]]) -> str:
    """The file of results: how they were measured, the table, the scaling table."""
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    text = (
        f"# One core of a CPU, {date.today()}\n\n`python -m benchmarks.cpu {call}`: {machine_line(CPU)}; load of the machine "
        f"(1, 5, 15 minutes) {loads} on {os.cpu_count()} cores; {seconds:.0f} s. Processor seconds, medians; no intervals, so "
        f"differences of a tenth mean nothing.\n\n{print_rows(with_ratios(rows))}\n"
    )
    if scaling:
        headers = ["what grows", "sizes", "processor ms at each", "slope, log-log"]
        text += f"\n## How costs grow\n\n{table(headers, scaling, 'pipe')}\n"
    return text


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*JOBS, "scaling"], default=[*JOBS, "scaling"], help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each way that count (default 3)")
    parser.add_argument("--seconds", type=float, default=800, help="after which no job is begun (default 800)")
    parser.add_argument("--profile", action="store_true", help="print where our way of each job spends its time")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks", help="folder of results-<date>.md")
    parser.add_argument("--tiny", action="store_true", help="try the script itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(CPU, Path(folder), arguments.tiny, start + arguments.seconds)
        if arguments.profile:
            rows = [row for name in arguments.only if name in JOBS for row in profile(name, bench)]
            print(table(["job", "way", "function", "processor seconds", "share"], rows, "pipe"))
            return
        bench.rates = rates_of_products(512 if arguments.tiny else 2048, arguments.rounds)
        rows, scaling = [], []
        for name in arguments.only:
            rows += [] if name == "scaling" else job_rows(name, bench, arguments.rounds)
            scaling += slopes(bench, arguments.rounds) if name == "scaling" else []
            print(f"{name} done, {bench.left:.0f} s left", flush=True)
    told = f"--rounds {arguments.rounds} --only {' '.join(arguments.only)}{' --tiny' if arguments.tiny else ''}"
    text = report(told, time.monotonic() - start, rows, scaling)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"results-{date.today()}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
