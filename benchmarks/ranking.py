"""Time and memory of ranking and re-ranking, beside plain dense implementations of the same.

    python -m benchmarks.ranking [--threads 2] [--only NAME ...]

Prints a Markdown table. Each case runs in a process of its own, so its peak memory is its own (Linux and macOS); that counts
the interpreter, torch and the features. Features are random, of ships that have ten images each and 768 numbers.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import torch
from torch import Tensor

from processor.ranking.reranking import rerank, rerank_blocks
from processor.ranking.retrieval import rank_distances, rank_features, squared_distances

WIDTH = 768
K1, K2, LAMBDA = 50, 15, 0.3


def make_set(queries: int, gallery: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Normalised features (Q, D) and (G, D), and their identities as `rank_features` takes them."""
    generator = torch.Generator().manual_seed(0)
    ships = (queries + gallery) // 10
    ids = torch.randint(0, ships, (queries + gallery,), generator=generator)
    features = torch.randn(ships, WIDTH, generator=generator)[ids]
    for block in features.split(8192):
        block.add_(torch.randn(block.shape, generator=generator), alpha=2.0)
    features = torch.nn.functional.normalize(features, out=features)
    return features[:queries], features[queries:], {"query_ids": ids[:queries], "gallery_ids": ids[queries:]}


def rank_in_blocks(queries: int, gallery: int) -> dict[str, float]:
    """`rank_features`."""
    query, images, truth = make_set(queries, gallery)
    return timed(lambda: rank_features(query, images, **truth).mean_average_precision)


def rank_dense(queries: int, gallery: int) -> dict[str, float]:
    """All distances, sorted whole."""
    query, images, truth = make_set(queries, gallery)

    def run() -> float:
        order = squared_distances(query, images).argsort(dim=1)
        matches = truth["gallery_ids"][order] == truth["query_ids"][:, None]
        precision = matches.cumsum(1) / torch.arange(1, gallery + 1) * matches
        count = matches.sum(1)
        return (precision.sum(1)[count > 0] / count[count > 0]).mean().item()

    return timed(run)


def rerank_sparse(queries: int, gallery: int) -> dict[str, float]:
    """`rerank_blocks`, ranked block by block."""
    query, images, truth = make_set(queries, gallery)
    blocks = rerank_blocks(query, images, k1=K1, k2=K2, lambda_value=LAMBDA)
    return timed(lambda: rank_distances(blocks, **truth).mean_average_precision)


def rerank_dense(queries: int, gallery: int) -> dict[str, float]:
    """`dense_distances`, ranked, and compared with `rerank` afterwards."""
    query, images, truth = make_set(queries, gallery)
    distances = []

    def run() -> float:
        distances.append(dense_distances(query.numpy(), images.numpy()))
        return rank_distances(torch.from_numpy(distances[0]), **truth).mean_average_precision

    seconds = timed(run)
    difference = np.abs(rerank(query, images, k1=K1, k2=K2, lambda_value=LAMBDA).numpy() - distances[0])
    print(f"largest difference of a re-ranked distance, dense against sparse: {difference.max():.1e}", file=sys.stderr)
    return seconds


def dense_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Re-ranked distances (Q, G) as usually programmed: every matrix is dense, (Q + G) x (Q + G)."""
    images = np.concatenate([query, gallery])
    squares = np.square(images).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * images @ images.T, 0)
    distances /= distances.max(axis=1, keepdims=True)
    order = np.argpartition(distances, np.arange(K1 + 1), axis=1)[:, : K1 + 1]
    weights = np.zeros_like(distances)

    def reciprocal(image: int, k: int) -> np.ndarray:
        nearest = order[image, : k + 1]
        return nearest[(order[nearest, : k + 1] == image).any(axis=1)]

    halves = [reciprocal(image, round(K1 / 2)) for image in range(len(images))]
    for image in range(len(images)):
        near = reciprocal(image, K1)
        inside = np.zeros(len(images), bool)
        inside[near] = True
        grown = [near] + [halves[other] for other in near if inside[halves[other]].sum() > 2 / 3 * len(halves[other])]
        columns = np.unique(np.concatenate(grown))
        kernel = np.exp(-distances[image, columns])
        weights[image, columns] = kernel / kernel.sum()
    weights = np.stack([weights[nearest].mean(axis=0) for nearest in order[:, :K2]])
    holders = [np.flatnonzero(column) for column in weights.T]
    result = np.empty((len(query), len(gallery)), np.float32)
    for image in range(len(query)):
        shared = np.zeros(len(images), np.float32)
        for column in np.flatnonzero(weights[image]):
            shared[holders[column]] += np.minimum(weights[image, column], weights[holders[column], column])
        result[image] = (1 - shared / (2 - shared))[len(query) :]
    return (1 - LAMBDA) * result + LAMBDA * distances[: len(query), len(query) :]


def timed(run: Callable[[], float]) -> dict[str, float]:
    """Elapsed and processor seconds that `run` takes; says what mAP it returns, so that methods can be seen to agree."""
    start, start_cpu = time.perf_counter(), time.process_time()
    value = run()
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    print(f"mAP {value:.6f}", file=sys.stderr)
    return seconds


CASES = {
    "rank-1k-20k": (rank_in_blocks, 1_000, 20_000),
    "rank-1k-20k-dense": (rank_dense, 1_000, 20_000),
    "rank-10k-100k": (rank_in_blocks, 10_000, 100_000),
    "rerank-10k": (rerank_sparse, 1_000, 9_000),
    "rerank-10k-dense": (rerank_dense, 1_000, 9_000),
    "rerank-110k": (rerank_sparse, 10_000, 100_000),
}
"""Name -> function, queries, gallery images."""


def run_case(name: str, threads: int) -> None:
    """Run one case here and print its seconds and peak memory in bytes as JSON."""
    torch.set_num_threads(threads)
    function, queries, gallery = CASES[name]
    seconds = function(queries, gallery)
    unit = 1 if platform.system() == "Darwin" else 1024
    print(json.dumps({**seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}))


def main() -> None:
    """Run the cases one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of each case (default 2)")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run (default: all)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_case(arguments.case, arguments.threads)
        return
    threads = str(arguments.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {threads} threads, {versions}, {date.today()}\n")
    print("| case | queries | gallery | seconds | processor seconds | peak memory, GB |\n|" + " --- |" * 6)
    for name in arguments.only:
        command = [sys.executable, "-m", "benchmarks.ranking", "--case", name, "--threads", threads]
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        _, queries, gallery = CASES[name]
        cost = f"{result['seconds']:.1f} | {result['cpu_seconds']:.1f} | {result['bytes'] / 1e9:.2f}"
        print(f"| {name} | {queries} | {gallery} | {cost} |", flush=True)


if __name__ == "__main__":
    main()
