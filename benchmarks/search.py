"""Stores of feature vectors side by side: what a search among 100,000 or 1,000,000 chips costs, and what it misses.

    pip install faiss-cpu lancedb milvus-lite pgserver pgvector psutil psycopg[binary] pymilvus qdrant-client
    python -m benchmarks.search [--count 100000] [--only NAME ...] [--folder DIR]

Prints a Markdown table; a store that is not installed is left out and named. Each store runs in a process of its own, children
(PostgreSQL) counted with it. Vectors are random with the shape of features: 768 numbers, ten chips a ship, around centres that
fall off from a first direction to a 64th. Queries are chips that the store does not hold. The filter keeps one sensor, a
quarter of the time and a sixteenth of the area: one chip in 128.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

WIDTH, LATENT = 768, 64
QUERIES, FOUND, BATCH = 100, 10, 10_000
YEAR = 365 * 86_400
WITHIN = (15.0, 45.0)
"""Longitudes and latitudes of the filter, of 0..120 degrees and of 0..120; see `is_wanted`."""


@dataclass(frozen=True)
class Chips:
    """What stores hold: (N, 768) vectors, and of each chip its sensor (0 or 1), time (s), longitude and latitude."""

    vectors: NDArray[np.float32]
    modality: NDArray[np.int64]
    time: NDArray[np.int64]
    longitude: NDArray[np.float64]
    latitude: NDArray[np.float64]

    def batches(self) -> Iterator[tuple[int, "Chips"]]:
        """In parts of `BATCH`, each with the place of its first chip."""
        for start in range(0, len(self.vectors), BATCH):
            yield start, Chips(*(values[start : start + BATCH] for values in vars(self).values()))

    def columns(self) -> dict[str, list]:
        """Everything but vectors, as lists."""
        return {name: values.tolist() for name, values in vars(self).items() if name != "vectors"}


def draw_chips(count: int, folder: Path) -> tuple[Chips, NDArray[np.float32]]:
    """Chips, whose vectors are drawn once and then read from disk, and queries (Q, 768)."""
    rng = np.random.default_rng(0)
    path = folder / f"vectors_{count}.npy"
    spread = np.linspace(1, 0.2, LATENT, dtype=np.float32)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, LATENT)))[0].T.astype(np.float32) * spread[:, None]
    ships = rng.normal(size=(max(QUERIES, count // 10), LATENT)).astype(np.float32)

    def see(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        views = ships[numbers] + rng.normal(scale=0.7, size=(len(numbers), LATENT)).astype(np.float32)
        seen = views @ turn + rng.normal(scale=0.05, size=(len(numbers), WIDTH)).astype(np.float32)
        return seen / np.linalg.norm(seen, axis=1, keepdims=True)

    queries = see(rng.integers(len(ships), size=QUERIES))
    facts = [rng.integers(2, size=count), rng.integers(4 * YEAR, size=count), *rng.uniform(0, 120, (2, count))]
    if not path.exists():
        kept = np.lib.format.open_memmap(path, "w+", np.float32, (count, WIDTH))
        for start in range(0, count, BATCH):
            kept[start : start + BATCH] = see(rng.integers(len(ships), size=min(BATCH, count - start)))
        kept.flush()
    return Chips(np.load(path, mmap_mode="r"), *facts), queries


def is_wanted(chips: Chips) -> NDArray[np.bool_]:
    """(N,) what the filter keeps."""
    low, high = WITHIN
    inside = (chips.longitude > low) & (chips.longitude < high) & (chips.latitude > low) & (chips.latitude < high)
    return inside & (chips.modality == 1) & (chips.time < YEAR)


SQL = "modality = 1 AND time < {year} AND longitude > {low} AND longitude < {high} AND latitude > {low} AND latitude < {high}"
SQL = SQL.format(year=YEAR, low=WITHIN[0], high=WITHIN[1])


class Numpy:
    """All distances; the reference."""

    needs, note = (), "exact"

    def build(self, chips: Chips, folder: Path) -> None:
        """Keep the vectors in memory."""
        self.chips, self.vectors = chips, np.array(chips.vectors)
        np.save(folder / "vectors.npy", self.vectors)

    def ask(self, vector: NDArray[np.float32], wanted: bool) -> list[int]:
        """Places of the nearest chips."""
        rows = np.flatnonzero(is_wanted(self.chips)) if wanted else None
        products = (self.vectors if rows is None else self.vectors[rows]) @ vector
        nearest = np.argpartition(-products, FOUND)[:FOUND]
        return (nearest if rows is None else rows[nearest]).tolist()


class Lance:
    """LanceDB without an index of vectors, or with one."""

    needs = ("lancedb",)

    def __init__(self, kind: str = "", **options: int):
        self.kind, self.options = kind, options
        self.note = f"{kind or 'scan, exact'} {', '.join(f'{k} {v}' for k, v in options.items())}".strip()

    def build(self, chips: Chips, folder: Path) -> None:
        """Write a table and index it."""
        import lancedb
        import pyarrow as pa

        self.table, parts = None, lancedb.connect(folder)
        for start, part in chips.batches():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.array(part.vectors).ravel()), WIDTH)
            rows = pa.table(part.columns() | {"vector": vectors, "id": np.arange(start, start + len(part.vectors))})
            if self.table is None:
                self.table = parts.create_table("chips", rows)
            else:
                self.table.add(rows)
        if self.kind:
            self.table.create_index(metric="l2", index_type=self.kind)

    def ask(self, vector: NDArray[np.float32], wanted: bool) -> list[int]:
        """Places of the nearest chips."""
        query = self.table.search(vector).select(["id", "_distance"]).limit(FOUND)
        for name, value in self.options.items():
            query = getattr(query, name)(value)
        query = query.where(SQL, prefilter=True) if wanted else query
        return query.to_arrow()["id"].to_pylist()


class Faiss:
    """FAISS: a library of indices; what else is known of chips is kept beside it."""

    needs = ("faiss",)

    def __init__(self, factory: str, **search: int):
        self.factory, self.search = factory, search
        self.note = f"{factory} {', '.join(f'{k} {v}' for k, v in search.items())}; filter by a list of ids"

    def build(self, chips: Chips, folder: Path) -> None:
        """Train, add and write."""
        import faiss

        self.library, self.chips, self.index = faiss, chips, faiss.index_factory(WIDTH, self.factory)
        if not self.index.is_trained:
            self.index.train(np.array(chips.vectors[:: max(1, len(chips.vectors) // 100_000)]))
        for _, part in chips.batches():
            self.index.add(np.array(part.vectors))
        faiss.write_index(self.index, str(folder / "index"))

    def ask(self, vector: NDArray[np.float32], wanted: bool) -> list[int]:
        """Places of the nearest chips."""
        kinds = {"HNSW": self.library.SearchParametersHNSW, "IVF": self.library.SearchParametersIVF}
        kind = next((kind for name, kind in kinds.items() if name in self.factory), self.library.SearchParameters)
        options = self.search | ({"sel": self.library.IDSelectorBatch(np.flatnonzero(is_wanted(self.chips)))} if wanted else {})
        return self.index.search(vector[None], FOUND, params=kind(**options))[1][0].tolist()


class Qdrant:
    """Qdrant's local mode, which compares all vectors; its server has an index (HNSW)."""

    needs, note = ("qdrant_client",), "local mode, exact"

    def build(self, chips: Chips, folder: Path) -> None:
        """Write a collection."""
        from qdrant_client import QdrantClient, models

        self.models, self.client = models, QdrantClient(path=str(folder))
        options = models.VectorParams(size=WIDTH, distance=models.Distance.COSINE)
        self.client.create_collection("chips", vectors_config=options)
        for start, part in chips.batches():
            columns = part.columns()
            payloads = [dict(zip(columns, values)) for values in zip(*columns.values())]
            ids = list(range(start, start + len(payloads)))
            self.client.upsert("chips", models.Batch(ids=ids, vectors=part.vectors.tolist(), payloads=payloads))

    def ask(self, vector: NDArray[np.float32], wanted: bool) -> list[int]:
        """Places of the nearest chips."""
        condition, models = None, self.models
        if wanted:
            box = models.Range(gt=WITHIN[0], lt=WITHIN[1])
            must = [models.FieldCondition(key=key, range=box) for key in ("longitude", "latitude")]
            must.append(models.FieldCondition(key="time", range=models.Range(lt=YEAR)))
            must.append(models.FieldCondition(key="modality", match=models.MatchValue(value=1)))
            condition = models.Filter(must=must)
        found = self.client.query_points("chips", query=vector.tolist(), query_filter=condition, limit=FOUND)
        return [point.id for point in found.points]


class Milvus:
    """Milvus Lite; the cluster has the same interface."""

    needs, note = ("pymilvus", "milvus_lite"), "HNSW, ef 100"

    def build(self, chips: Chips, folder: Path) -> None:
        """Write a collection and index it."""
        from pymilvus import DataType, MilvusClient

        self.client = MilvusClient(str(folder / "chips.db"))
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=WIDTH)
        for name, kind in (("modality", "INT64"), ("time", "INT64"), ("longitude", "DOUBLE"), ("latitude", "DOUBLE")):
            schema.add_field(name, getattr(DataType, kind))
        index = self.client.prepare_index_params()
        options = {"M": 16, "efConstruction": 100}
        index.add_index(field_name="vector", index_type="HNSW", metric_type="L2", params=options)
        self.client.create_collection("chips", schema=schema, index_params=index)
        for start, part in chips.batches():
            columns = {"id": range(start, start + len(part.vectors)), "vector": np.array(part.vectors)} | part.columns()
            rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
            for first in range(0, len(rows), 1000):
                self.client.insert("chips", rows[first : first + 1000])
        self.client.load_collection("chips")

    def ask(self, vector: NDArray[np.float32], wanted: bool) -> list[int]:
        """Places of the nearest chips."""
        condition = SQL.replace(" = ", " == ").replace("AND", "and") if wanted else ""
        options = {"params": {"ef": 100}}
        found = self.client.search("chips", [vector], filter=condition, limit=FOUND, search_params=options)
        return [hit["id"] for hit in found[0]]


class Postgres:
    """PostgreSQL with pgvector, as pgserver brings it; a box of columns in place of PostGIS."""

    needs, note = ("pgserver", "psycopg", "pgvector", "psutil"), "HNSW, ef_search 100"

    def build(self, chips: Chips, folder: Path) -> None:
        """Fill a table and index it."""
        import pgserver
        import psycopg
        from pgvector.psycopg import register_vector

        self.server = pgserver.get_server(folder / "server")
        self.base = psycopg.connect(self.server.get_uri(), autocommit=True)
        self.base.execute("CREATE EXTENSION vector")
        register_vector(self.base)
        columns = "modality int, time int, longitude float8, latitude float8"
        self.base.execute(f"CREATE TABLE chips (id int PRIMARY KEY, vector vector({WIDTH}), {columns})")
        with self.base.cursor().copy("COPY chips FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "vector", "int4", "int4", "float8", "float8"])
            for start, part in chips.batches():
                for number, (vector, *facts) in enumerate(zip(np.array(part.vectors), *part.columns().values()), start=start):
                    copy.write_row([number, vector, *facts])
        self.base.execute("SET maintenance_work_mem = '4GB'")
        self.base.execute("SET max_parallel_maintenance_workers = 0")
        self.base.execute("CREATE INDEX ON chips USING hnsw (vector vector_l2_ops)")
        self.base.execute("CREATE INDEX ON chips (time)")
        self.base.execute("ANALYZE chips")
        self.base.execute("SET hnsw.ef_search = 100")

    def ask(self, vector: NDArray[np.float32], wanted: bool) -> list[int]:
        """Places of the nearest chips."""
        condition = f"WHERE {SQL}" if wanted else ""
        return [
            row[0] for row in self.base.execute(f"SELECT id FROM chips {condition} ORDER BY vector <-> %s LIMIT 10", [vector])
        ]


STORES = {
    "numpy": Numpy,
    "lancedb": Lance,
    "lancedb-pq": lambda: Lance("IVF_PQ", nprobes=20, refine_factor=20),
    "lancedb-hnsw": lambda: Lance("IVF_HNSW_SQ", nprobes=20, refine_factor=10),
    "faiss-hnsw": lambda: Faiss("HNSW16,Flat", efSearch=100),
    "faiss-ivf": lambda: Faiss("IVF1024,SQ8", nprobe=20),
    "qdrant": Qdrant,
    "milvus": Milvus,
    "pgvector": Postgres,
}


def usage() -> tuple[float, float]:
    """Processor seconds, and bytes of memory without mapped files, of this process and its children."""
    import psutil

    own = psutil.Process()
    told = [own, *own.children(recursive=True)]
    times, memory = [process.cpu_times() for process in told], [process.memory_info() for process in told]
    return sum(t.user + t.system for t in times), sum(m.rss - m.shared for m in memory)


def time_queries(store, queries: NDArray[np.float32], truth: list[list[int]], wanted: bool) -> dict[str, float]:
    """Milliseconds of a query, median and 95th percentile, processor milliseconds of one, and the share of `truth` it found."""
    for vector in queries[:5]:
        store.ask(vector, wanted)
    seconds, hits, start = [], 0, usage()[0]
    for vector, right in zip(queries, truth):
        begin = time.perf_counter()
        found = store.ask(vector, wanted)
        seconds.append(time.perf_counter() - begin)
        hits += len(set(found) & set(right))
    cpu = (usage()[0] - start) / len(queries)
    median, late = np.quantile(seconds, [0.5, 0.95])
    return {"median": 1e3 * median, "p95": 1e3 * late, "cpu": 1e3 * cpu, "recall": hits / sum(map(len, truth))}


def run_store(name: str, count: int, folder: Path) -> dict[str, object]:
    """Build a store in `folder`, ask it, and delete it."""
    chips, queries = draw_chips(count, folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store, start = STORES[name](), (time.perf_counter(), usage()[0])
    store.build(chips, folder)
    told = {"note": store.note, "build": time.perf_counter() - start[0], "build_cpu": usage()[0] - start[1]}
    told["bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    truth = json.loads((folder.parent / f"truth_{count}.json").read_text())
    told |= {key: time_queries(store, queries, truth[key], key == "filtered") for key in ("all", "filtered")}
    return told | {"memory": usage()[1]}


def write_truth(count: int, folder: Path) -> None:
    """What `Numpy` finds, to judge the others by."""
    path = folder / f"truth_{count}.json"
    chips, queries = draw_chips(count, folder)
    if not path.exists():
        exact = Numpy()
        exact.chips, exact.vectors = chips, chips.vectors
        found = {key: [exact.ask(vector, key == "filtered") for vector in queries] for key in ("all", "filtered")}
        path.write_text(json.dumps(found))


HEADERS = [
    *("store", "how", "build, s", "build, processor s", "on disk, MB", "memory, MB"),
    *("query, median ms", "95 %, ms", "processor ms", "recall@10"),
    *("filtered, median ms", "95 %, ms", "processor ms", "recall@10"),
]


def main() -> None:
    """Run the stores one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="chips (100000)")
    parser.add_argument("--only", nargs="+", choices=STORES, default=list(STORES), help="stores to run (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("logs/search"), help="of what is built (logs/search)")
    parser.add_argument("--threads", type=int, default=1, help="of each store (1)")
    parser.add_argument("--store", choices=STORES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.store:
        print(json.dumps(run_store(arguments.store, arguments.count, arguments.folder.absolute() / arguments.store)))
        return
    write_truth(arguments.count, arguments.folder)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LANCE_CPU_THREADS", "TOKIO_WORKER_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(arguments.threads))
    print(f"{platform.machine()}, {arguments.threads} thread(s), Python {platform.python_version()}, {date.today()}, "
          f"{arguments.count} chips", file=sys.stderr)  # fmt: skip
    rows = []
    for name in arguments.only:
        if lacking := [need for need in STORES[name]().needs if importlib.util.find_spec(need) is None]:
            print(f"{name}: left out, {', '.join(lacking)} not installed", file=sys.stderr)
            continue
        words = ["--store", name, "--count", str(arguments.count), "--folder", str(arguments.folder)]
        command = [sys.executable, "-m", "benchmarks.search", *words]
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        shutil.rmtree(arguments.folder / name, ignore_errors=True)
        if output.returncode:
            print(f"{name}: ended with status {output.returncode}", file=sys.stderr)
            continue
        told = json.loads(output.stdout.splitlines()[-1])
        size = [f"{told['build']:.0f}", f"{told['build_cpu']:.0f}", f"{told['bytes'] / 1e6:.0f}", f"{told['memory'] / 1e6:.0f}"]
        asked = [f"{told[kind][key]:.{3 if key == 'recall' else 1}f}" for kind in ("all", "filtered") for key in told["all"]]
        rows.append([name, told["note"], *size, *asked])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(tabulate(rows, HEADERS, "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
