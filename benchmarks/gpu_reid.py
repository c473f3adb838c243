"""Re-identification: training, testing, features, ranking and re-ranking, beside the released way."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.gpu_setup import ROOT, Bench, chips
from benchmarks.measuring import Row, forget_peak, operations, peak_memory, time_call
from benchmarks.ranking import make_set
from benchmarks.released import rank_whole, reid_step, released_networks
from datasets.catalogue import read_hoss
from datasets.loaders import build_train_loader
from datasets.validation import build_training_data
from model.build import build_model
from processor.engine import train_one_epoch
from processor.ranking.reranking import rerank_blocks
from processor.ranking.retrieval import rank_distances, rank_features
from processor.saving import Saver
from processor.standing import Standing
from processor.task import TrainingPlan
from train import build_reid_task
from utils.device import find_precision
from utils.log import MetricsWriter, progress


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
