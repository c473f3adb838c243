"""An index of chips: vector, sensor, ship, time, place and thumbnail of each, kept by LanceDB in a folder or an object store.

A line of the index is a chip. What its vectors were made by is written into the index, so that no other network asks it.
Conditions of sensor, time and place are met before vectors are compared.

Legend: Q queries, D feature width.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.records import Modality
from utils.errors import DataError, UsageError

logger = logging.getLogger(__name__)

TABLE = "chips"
BLOCK = 10_000
"""Lines that are read at a time."""

MANY = 100_000
"""Lines from which on vectors are compared through an approximate index unless `exact` is asked for."""

PROBES, REFINED = 40, 20
"""Cells of the approximate index that a query looks into; of how many times as many chips as are wanted it takes the whole
vectors. At 100,000 and 1,000,000 chips: benchmarks/search.md."""

KEPT = timedelta(hours=1)
"""How long replaced lines stay on disk for those who are just reading them."""


@dataclass(frozen=True)
class IndexedChip:
    """A line of an index, but for its vector.

    Attributes:
        path: the file, absolute.
        name: what it is called in results.
        file: SHA-256 of the file.
        modality: of the picture.
        upright: whether the chip was to be turned upright if its ship lies askew.
        ship: '' where it is not known.
        sensor: such as the satellite's name; '' where it is not known.
        time: UTC; None where it is not known.
        longitude, latitude: degrees; None where they are not known.
        thumbnail: JPEG.
    """

    path: str
    name: str
    file: str
    modality: Modality
    upright: bool = False
    ship: str = ""
    sensor: str = ""
    time: datetime | None = None
    longitude: float | None = None
    latitude: float | None = None
    thumbnail: bytes = b""

    def details(self) -> dict[str, str]:
        """What `datasets.known.Sighting` calls details."""
        told = {"sensor": self.sensor, "time": write_time(self.time)}
        told |= {name: "" if (value := getattr(self, name)) is None else f"{value:g}" for name in ("longitude", "latitude")}
        return {name: value for name, value in told.items() if value}


FACTS = ("name", "ship", "sensor", "time", "longitude", "latitude")
"""Fields that tables tell, which can change without the file."""

FIELDS = tuple(name for name in IndexedChip.__dataclass_fields__ if name != "thumbnail")


def read_time(text: str) -> datetime | None:
    """A time as ISO 8601 or as in TIFF ('2026:01:31 10:00:00'), UTC where no zone is named; None of any other text."""
    text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text.strip())
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def write_time(time: datetime | None) -> str:
    """ISO 8601 in UTC, to the second; '' of None."""
    return "" if time is None else time.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Conditions:
    """Which chips a search looks among; what is empty is no condition. A chip that lacks the fact of a condition is left out.

    Attributes:
        modality: of the chip.
        sensors: one of these.
        after, before: times, both included.
        box: west, south, east, north in degrees; across the date line west is greater than east.
        known: whether the ship is known.
        ships: one of these.
    """

    modality: Modality | None = None
    sensors: tuple[str, ...] = ()
    after: datetime | None = None
    before: datetime | None = None
    box: tuple[float, float, float, float] | None = None
    known: bool = False
    ships: tuple[str, ...] = ()

    def sql(self) -> str:
        """As the condition of a query; '' for none."""
        parts = [] if self.modality is None else [f"modality = {quoted(self.modality.name.lower())}"]
        parts += [
            f"{field} IN ({', '.join(map(quoted, v))})" for field, v in (("sensor", self.sensors), ("ship", self.ships)) if v
        ]
        parts += [
            f"time {sign} timestamp '{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}'"
            for sign, moment in ((">=", self.after), ("<=", self.before))
            if moment is not None
        ]
        if self.box is not None:
            west, south, east, north = self.box
            across = "OR" if west > east else "AND"
            parts.append(f"(longitude >= {west!r} {across} longitude <= {east!r})")
            parts.append(f"latitude BETWEEN {south!r} AND {north!r}")
        return " AND ".join(parts + (["ship <> ''"] if self.known else []))


def quoted(text: str) -> str:
    """Text as SQL spells it."""
    return "'" + text.replace("'", "''") + "'"


def is_index(where: str | Path) -> bool:
    """Whether there is an index, or may be one, at an address."""
    return "://" in str(where) or (Path(where) / f"{TABLE}.lance").is_dir()


def _library():
    """LanceDB and PyArrow. LanceDB takes any module `datasets` for Hugging Face's, so ours is hidden while it is imported."""
    own = sys.modules.pop("datasets", None)
    try:
        import lancedb.scannable
        import pyarrow
    except ImportError as error:
        raise UsageError(f"an index needs LanceDB ({error}); pip install -r requirements-search.txt") from error
    finally:
        if own is not None:
            sys.modules["datasets"] = own
    lancedb.scannable._registered_modules.add("datasets")
    return lancedb, pyarrow


class ChipIndex:
    """An index at an address, see `open` and `open_or_create`.

    Attributes:
        where: its address.
        origin: what its vectors were made by (`processor.feature_store.build_origin`).
        width: of a vector, D.
    """

    def __init__(self, where: str | Path, table):
        told = table.schema.metadata or {}
        if b"origin" not in told:
            raise DataError(f"{where} holds a table {TABLE!r} that is no index of this program; name another --index")
        self.where, self._table, self.origin = where, table, json.loads(told[b"origin"])
        self.width = table.schema.field("vector").type.list_size

    @classmethod
    def open(cls, where: str | Path) -> "ChipIndex":
        """Open an index.

        Raises:
            DataError: there is none.
            UsageError: LanceDB is not installed.
        """
        lancedb, _ = _library()
        missing = f"{where} holds no index; python -m tools.index makes one"
        if not is_index(where):
            raise DataError(missing)
        try:
            return cls(where, lancedb.connect(str(where)).open_table(TABLE))
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{missing} ({error})") from error

    @classmethod
    def open_or_create(cls, where: str | Path, origin: Mapping[str, Any], width: int) -> "ChipIndex":
        """Open an index, or make an empty one whose vectors are to be of `width` and made by `origin`."""
        lancedb, pa = _library()
        if TABLE in lancedb.connect(str(where)).list_tables().tables:
            return cls.open(where)
        kinds = {"upright": pa.bool_(), "time": pa.timestamp("us", "UTC"), "longitude": pa.float64(), "latitude": pa.float64()}
        fields = [(name, kinds.get(name, pa.string())) for name in FIELDS]
        fields += [("thumbnail", pa.binary()), ("vector", pa.list_(pa.float32(), width))]
        schema = pa.schema(fields, metadata={"origin": json.dumps(dict(origin), sort_keys=True)})
        return cls(where, lancedb.connect(str(where)).create_table(TABLE, schema=schema))

    def __len__(self) -> int:
        return self._table.count_rows()

    def count(self, conditions: Conditions) -> int:
        """How many chips meet conditions."""
        return self._table.count_rows(conditions.sql() or None)

    def refuse_stale(self, origin: Mapping[str, Any]) -> None:
        """Refuse to be asked by another network than the one that made the vectors.

        Raises:
            DataError: other weights, or other settings of reading and features.
        """
        make = "make an index with these weights in another place, or take the weights that made it"
        if self.origin["weights"] != origin["weights"]:
            raise DataError(f"{self.where} was made with other weights (SHA-256 {self.origin['weights'][:12]}...); {make}")
        ours, theirs = json.loads(json.dumps(origin["settings"])), self.origin["settings"]
        if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            raise DataError(f"{self.where} was made with other settings ({', '.join(differing[:5])}); {make}")
        if self.origin["code"] != origin["code"] or self.origin["packages"] != origin["packages"]:
            logger.warning(
                "%s was made by another version of this program or its libraries: vectors may differ a little", self.where
            )

    def listing(self) -> dict[str, IndexedChip]:
        """Path -> every chip, without thumbnails."""
        return {chip.path: chip for block in self._blocks(Conditions(), FIELDS) for chip in _chips(block)}

    def put(self, chips: Sequence[IndexedChip], vectors: NDArray[np.float32]) -> None:
        """Add chips with their vectors (len(chips), D), in place of those of the same path, all at once or not at all."""
        _, pa = _library()
        columns = {name: [getattr(chip, name) for chip in chips] for name in (*FIELDS, "thumbnail")}
        columns["modality"] = [chip.modality.name.lower() for chip in chips]
        values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(values, self.width)
        rows = pa.table(columns, schema=self._table.schema)
        self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def amend(self, chips: Sequence[IndexedChip]) -> None:
        """Change the `FACTS` of chips that are there."""
        told = {chip.path: chip for chip in chips}
        for start in range(0, len(chips), BLOCK):
            some = list(told)[start : start + BLOCK]
            found = self._find(f"path IN ({', '.join(map(quoted, some))})", (*FIELDS, "thumbnail", "vector"))
            changed = [replace(c, **{name: getattr(told[c.path], name) for name in FACTS}) for c in _chips(found)]
            self.put(changed, _vectors(found))

    def remove(self, paths: Iterable[str]) -> None:
        """Take chips out."""
        paths = list(paths)
        for start in range(0, len(paths), BLOCK):
            self._table.delete(f"path IN ({', '.join(map(quoted, paths[start : start + BLOCK]))})")

    def organise(self) -> None:
        """Join what came in small parts, and from `MANY` chips on make the approximate index, or bring it up to date."""
        self._table.optimize(cleanup_older_than=KEPT)
        if len(self) >= MANY and not self._table.list_indices():
            self._table.create_index("vector", config=_library()[0].index.IvfPq(distance_type="l2"))

    def search(
        self, vectors: NDArray[np.float32], conditions: Conditions, count: int, *, exact: bool = False
    ) -> list[list[tuple[IndexedChip, float]]]:
        """The nearest chips of each query that meet conditions, nearest first, with squared distances.

        Args:
            vectors: (Q, D) normalised.
            conditions: see there.
            count: of chips for each query.
            exact: compare every vector by NumPy, as is done anyway where there is no approximate index yet.
        """
        if exact or not self._table.list_indices():  # NumPy compares all in a ninth of LanceDB's time
            return self._search_exactly(vectors, conditions, count)
        found, columns = [], [*FIELDS, "thumbnail", "_distance"]
        for vector in vectors:
            query = self._table.search(vector).select(columns).limit(count).nprobes(PROBES).refine_factor(REFINED)
            if sql := conditions.sql():
                query = query.where(sql, prefilter=True)
            rows = query.to_arrow()
            found.append(list(zip(_chips(rows), rows["_distance"].to_pylist())))
        return found

    def _search_exactly(self, vectors: NDArray, conditions: Conditions, count: int) -> list[list[tuple[IndexedChip, float]]]:
        paths, best = np.empty((len(vectors), 0), object), np.empty((len(vectors), 0))
        for block in self._blocks(conditions, ("path", "vector")):
            distances = np.maximum(2 - 2 * vectors.astype(np.float64) @ _vectors(block).astype(np.float64).T, 0)
            names = np.broadcast_to(np.array(block["path"].to_pylist(), object), distances.shape)
            paths, best = np.hstack([paths, names]), np.hstack([best, distances])
            nearest = np.argsort(best, axis=1, kind="stable")[:, :count]
            paths, best = np.take_along_axis(paths, nearest, 1), np.take_along_axis(best, nearest, 1)
        chips = self.chips(set(paths.ravel()))
        return [[(chips[path], float(distance)) for path, distance in zip(*rows)] for rows in zip(paths, best)]

    def chips(self, paths: Iterable[str]) -> dict[str, IndexedChip]:
        """Path -> chip with its thumbnail."""
        paths, found = sorted(paths), {}
        for start in range(0, len(paths), BLOCK):
            sql = f"path IN ({', '.join(map(quoted, paths[start : start + BLOCK]))})"
            found |= {chip.path: chip for chip in _chips(self._find(sql, (*FIELDS, "thumbnail")))}
        return found

    def vectors(self, conditions: Conditions) -> Iterator[tuple[list[IndexedChip], NDArray[np.float32]]]:
        """Chips that meet conditions, without thumbnails, and their vectors, in blocks."""
        for block in self._blocks(conditions, (*FIELDS, "vector")):
            yield _chips(block), _vectors(block)

    def _find(self, sql: str, columns: Sequence[str]):
        return self._table.search().where(sql).select(list(columns)).to_arrow()

    def _blocks(self, conditions: Conditions, columns: Sequence[str]) -> Iterator:
        query = self._table.search().select(list(columns))
        query = query.where(sql) if (sql := conditions.sql()) else query
        yield from (block for block in query.to_batches(batch_size=BLOCK) if block.num_rows)


def _chips(rows) -> list[IndexedChip]:
    """The lines of a table of Arrow."""
    own = [name for name in IndexedChip.__dataclass_fields__ if name in rows.schema.names]
    columns = [rows[name].to_pylist() for name in own]
    found = [dict(zip(own, values)) for values in zip(*columns)]
    return [IndexedChip(**line | {"modality": Modality[line["modality"].upper()]}) for line in found]


def _vectors(rows) -> NDArray[np.float32]:
    """(lines, D)."""
    column = rows["vector"]
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
