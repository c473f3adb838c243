"""An index of chips: what it holds, what a search finds under conditions, and what is refused."""

import csv
import importlib.util
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load_cfg
from datasets.records import Modality
from model.build import build_model
from processor.chip_index import ChipIndex, Conditions, IndexedChip, is_index, read_time, write_time
from tests.test_identify import ask, world, write_ship  # noqa: F401 - a fixture
from tests.test_rank import SETTINGS
from tools import index as command
from tools import search
from utils.checkpoint import save
from utils.errors import DataError, UsageError

if importlib.util.find_spec("lancedb") is None:
    pytest.skip("needs LanceDB (requirements-search.txt)", allow_module_level=True)

ORIGIN = {"weights": "w" * 64, "settings": {"INPUT.SIZE_TEST": [64, 32]}, "code": "c", "packages": {}, "device": "cpu"}
WIDTH = 16


def draw_lines(count: int, seed: int = 0) -> tuple[list[IndexedChip], np.ndarray]:
    """Chips of two sensors, here and there, now and then, of some of which less is known."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lines = []
    for number in range(count):
        time = datetime(2026, 1, 1 + number % 28, tzinfo=UTC) if number % 5 else None
        longitude, latitude = (float(v) for v in rng.uniform((-180, -80), (180, 80))) if number % 7 else (None, None)
        path, sensor = f"/chips/it's {number}.tif", ("", "GF-3", "Sentinel-1")[number % 3]
        ship = f"ship {number % 4}" if number % 2 else ""
        told = {"ship": ship, "sensor": sensor, "time": time, "longitude": longitude, "latitude": latitude}
        lines.append(IndexedChip(path, f"n{number}", f"{number:064d}", Modality(number % 2), thumbnail=b"jpeg", **told))
    return lines, vectors


@pytest.fixture
def filled(tmp_path) -> tuple[ChipIndex, list[IndexedChip], np.ndarray]:
    lines, vectors = draw_lines(300)
    index = ChipIndex.open_or_create(tmp_path / "index", ORIGIN, WIDTH)
    index.put(lines[:200], vectors[:200])
    index.put(lines[200:], vectors[200:])
    return index, lines, vectors


def is_met(line: IndexedChip, conditions: Conditions) -> bool:
    """What `Conditions.sql` says, in Python."""
    if conditions.modality is not None and line.modality != conditions.modality:
        return False
    if (conditions.sensors and line.sensor not in conditions.sensors) or (conditions.known and not line.ship):
        return False
    if conditions.ships and line.ship not in conditions.ships:
        return False
    if (conditions.after or conditions.before) and line.time is None:
        return False
    if (conditions.after and line.time < conditions.after) or (conditions.before and line.time > conditions.before):
        return False
    if conditions.box:
        west, south, east, north = conditions.box
        if line.longitude is None or not south <= line.latitude <= north:
            return False
        inside = (line.longitude >= west, line.longitude <= east)
        return any(inside) if west > east else all(inside)
    return True


DAY = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(),
        Conditions(modality=Modality.SAR),
        Conditions(sensors=("GF-3", "it's none")),
        Conditions(after=DAY),
        Conditions(before=DAY),
        Conditions(modality=Modality.OPTICAL, after=DAY, before=datetime(2026, 1, 20, 12, tzinfo=UTC)),
        Conditions(box=(-30, -40, 100, 50)),
        Conditions(box=(150, -80, -150, 80)),
        Conditions(known=True),
        Conditions(ships=("ship 1",)),
        Conditions(sensors=("no such",)),
    ],
    ids=lambda conditions: conditions.sql()[:40] or "none",
)
@pytest.mark.parametrize("exact", [False, True])
def test_a_search_finds_the_nearest_of_the_chips_that_meet_its_conditions(filled, conditions, exact, monkeypatch):
    """By NumPy, and by an approximate index that is so small that it looks everywhere."""
    index, lines, vectors = filled
    if not exact:
        monkeypatch.setattr("processor.chip_index.MANY", 300)
        index.organise()
    queries = draw_lines(5, seed=1)[1]
    met = [number for number, line in enumerate(lines) if is_met(line, conditions)]
    assert index.count(conditions) == len(met)
    found = index.search(queries, conditions, 12, exact=exact)
    for query, own in zip(queries, found):
        distances = np.square(vectors[met] - query).sum(axis=1)
        order = np.argsort(distances)[:12]
        assert [chip for chip, _ in own] == [lines[met[place]] for place in order]
        np.testing.assert_allclose([distance for _, distance in own], distances[order], atol=1e-5)


def test_what_is_put_twice_is_there_once_and_facts_change_without_the_vector(filled, tmp_path):
    index, lines, vectors = filled
    index.put(lines[:50], vectors[50:100])
    again = ChipIndex.open(tmp_path / "index")
    assert len(again) == 300 and again.origin == ORIGIN and again.width == WIDTH
    assert again.search(vectors[50:51], Conditions(), 2, exact=True)[0][0][1] < 1e-6
    named = [IndexedChip(**vars(line) | {"ship": "Ever Given", "file": "not this", "thumbnail": b""}) for line in lines[:3]]
    again.amend(named)
    kept = again.listing()
    assert [kept[line.path].ship for line in lines[:4]] == ["Ever Given"] * 3 + [lines[3].ship]
    assert kept[lines[0].path].file == lines[0].file
    found = again.search(vectors[52:53], Conditions(ships=("Ever Given",)), 1, exact=True)[0][0]
    assert found[0].path == lines[2].path and found[0].thumbnail == b"jpeg" and found[1] < 1e-6
    again.remove([line.path for line in lines[:10]])
    again.organise()
    assert len(again) == 290 and set(again.listing()) == {line.path for line in lines[10:]}
    blocks = list(again.vectors(Conditions(known=True)))
    told = {chip.path: vector for chips, part in blocks for chip, vector in zip(chips, part)}
    assert set(told) == {line.path for line in lines[10:] if line.ship}
    np.testing.assert_array_equal(told[lines[201].path], vectors[201])


def test_the_approximate_index_misses_little(filled, monkeypatch):
    index, lines, vectors = filled
    monkeypatch.setattr("processor.chip_index.MANY", 300)
    index.organise()
    assert index._table.list_indices()
    found = index.search(vectors[:40], Conditions(modality=Modality.SAR), 1)
    exact = index.search(vectors[:40], Conditions(modality=Modality.SAR), 1, exact=True)
    assert np.mean([a[0][0] == b[0][0] for a, b in zip(found, exact)]) > 0.9
    index.put(lines[:1], -vectors[1:2])  # not in the approximate index yet
    assert index.search(-vectors[1:2], Conditions(), 1)[0][0][0].path == lines[0].path


def test_times_as_tables_write_them():
    assert write_time(read_time("2026:01:31 10:20:30")) == "2026-01-31T10:20:30Z"
    assert write_time(read_time("2026-01-31T10:20:30+08:00")) == "2026-01-31T02:20:30Z"
    assert write_time(read_time(" 2026-01-31 ")) == "2026-01-31T00:00:00Z"
    assert read_time("last week") is None and write_time(None) == ""


def test_another_network_is_refused(filled, tmp_path, caplog):
    index = filled[0]
    with pytest.raises(DataError, match=r"index was made with other weights \(SHA-256 wwwwwwwwwwww"):
        index.refuse_stale(ORIGIN | {"weights": "v" * 64})
    with pytest.raises(DataError, match=r"other settings \(INPUT\.SIZE_TEST, TEST\.FLIP\)"):
        index.refuse_stale(ORIGIN | {"settings": {"INPUT.SIZE_TEST": [64, 64], "TEST.FLIP": True}})
    index.refuse_stale(ORIGIN | {"settings": {"INPUT.SIZE_TEST": (64, 32)}})
    assert not caplog.records
    index.refuse_stale(ORIGIN | {"code": "d"})
    assert "another version" in caplog.text
    with pytest.raises(DataError, match=r"holds no index; python -m tools\.index makes one"):
        ChipIndex.open(tmp_path)
    assert not is_index(tmp_path) and is_index(tmp_path / "index")


# The commands


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A network, twelve chips of six ships with a table, and queries."""
    root = tmp_path_factory.mktemp("archive")
    lines = ["chip,time,longitude,latitude,sensor,ship"]
    for ship in range(1, 7):
        for kind in ("RGB", "SAR"):
            path = write_ship(root / "chips" / "day", ship, 0, kind)
            sensor = "GF-2" if kind == "RGB" else "Sentinel-1"
            lines.append(f"{path.name},2026-01-{ship:02d}T06:00,{ship}.5,51,{sensor},{'Alfa' if ship == 1 else ''}")
        write_ship(root / "query", ship, 1, "SAR")
    (root / "chips" / "day" / "chips.csv").write_text("\n".join(lines))
    torch.manual_seed(0)
    for name in ("w", "other"):
        save(root / f"{name}.pth", build_model(load_cfg(None, SETTINGS)).state_dict())
    return root


def make_index(archive: Path, where: Path, *words: str, chips: str = "chips", weights: str = "w") -> None:
    places = ["--weights", str(archive / f"{weights}.pth"), "--chips", str(archive / chips), "--index", str(where)]
    command.main([*places, *words, *SETTINGS])


def look(archive: Path, where: Path, output: Path, *words: str) -> list[dict[str, str]]:
    places = ["--weights", str(archive / "w.pth"), "--index", str(where), "--query", str(archive / "query")]
    search.main([*places, "--output", str(output), *words, *SETTINGS])
    with (output / "found.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_ships_of_an_archive_are_found_again(archive, tmp_path, capsys):
    make_index(archive, tmp_path / "index", "--batch", "5")
    assert "12 chips added, 0 amended, 0 as they were; 12 in all" in capsys.readouterr().out
    rows = look(archive, tmp_path / "index", tmp_path / "out", "--modality", "sar", "--top-k", "3")
    assert len(rows) == 18
    best = [row for row in rows if row["rank"] == "1"]
    assert np.mean([row["query"][:4] == Path(row["chip"]).name[:4] for row in best]) > 0.8
    first = next(row for row in rows if row["chip"] == "day/0001_v0_SAR.png")
    told = ("Alfa", "sar", "Sentinel-1", "2026-01-01T06:00:00Z", "1.5", "51.0")
    assert tuple(first[name] for name in ("ship", "modality", "sensor", "time", "longitude", "latitude")) == told
    page = (tmp_path / "out" / "found.html").read_text()
    assert page.count("data:image/jpeg") == 24 and "mlat=51&amp;mlon=1.5" in page
    words = ["--after", "2026-01-02", "--before", "2026-01-03", "--box", "2", "50", "3", "52", "--sensor", "GF-2"]
    assert {row["chip"] for row in look(archive, tmp_path / "index", tmp_path / "out", *words)} == {"day/0002_v0_RGB.png"}
    exact = look(archive, tmp_path / "index", tmp_path / "exact", "--modality", "sar", "--top-k", "3", "--exact")
    keys = ("query", "rank", "chip")
    assert [[row[key] for key in keys] for row in exact] == [[row[key] for key in keys] for row in rows]
    ends = look(archive, tmp_path / "index", tmp_path / "ends", "--modality", "sar", "--top-k", "3", "--both-ends")
    assert all(float(a["distance"]) <= float(b["distance"]) + 1e-5 for a, b in zip(ends, rows))
    assert look(archive, tmp_path / "index", tmp_path / "out", "--ship", "nobody") == []


def test_a_run_goes_on_where_another_was_ended_and_brings_facts_up_to_date(archive, tmp_path, capsys, monkeypatch):
    chips = tmp_path / "chips"
    for ship in range(1, 7):
        write_ship(chips, ship, 0, "SAR")
    put, calls = ChipIndex.put, []

    def put_twice(self, *words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(self, *words)

    monkeypatch.setattr(ChipIndex, "put", put_twice)
    with pytest.raises(KeyboardInterrupt):
        make_index(archive, tmp_path / "index", "--batch", "2", chips=chips)
    assert len(ChipIndex.open(tmp_path / "index")) == 4
    make_index(archive, tmp_path / "index", chips=chips)
    assert "2 chips added, 0 amended, 4 as they were; 6 in all" in capsys.readouterr().out
    (chips / "chips.csv").write_text("chip,ship,time\n0001_v0_SAR.png,Alfa,2026-01-01\n0002_v0_SAR.png,,yesterday\n")
    write_ship(chips, 3, 7, "SAR").replace(chips / "0003_v0_SAR.png")
    (chips / "0004_v0_SAR.png").unlink()
    make_index(archive, tmp_path / "index", chips=chips)
    told = capsys.readouterr().out
    assert (
        "1 chips added, 1 amended, 3 as they were, 1 of files that are gone left in (--forget takes them out); 6 in all" in told
    )
    assert "times that are no ISO 8601, left out: 0002_v0_SAR.png: yesterday" in told
    make_index(archive, tmp_path / "index", "--forget", "--known", chips=chips)
    assert "0 chips added, 4 amended, 1 as they were, 1 of files that are gone taken out; 5 in all" in capsys.readouterr().out
    ships = {chip.name: chip.ship for chip in ChipIndex.open(tmp_path / "index").listing().values()}
    assert ships == {f"000{n}_v0_SAR.png": "Alfa" if n == 1 else str(n) for n in (1, 2, 3, 5, 6)}


def test_broken_files_and_wrong_calls_end_in_a_sentence(archive, tmp_path, capsys):
    chips = tmp_path / "chips"
    write_ship(chips, 1, 0, "SAR")
    (chips / "0002_v0_SAR.png").write_bytes(b"no picture")
    (chips / "0003_v0_SAR.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 3 files cannot be used"):
        make_index(archive, tmp_path / "index", chips=chips)
    with pytest.raises(DataError, match="2 of 3 files were skipped"):
        make_index(archive, tmp_path / "index", "--skip-bad", chips=chips)
    assert "1 chips added" in capsys.readouterr().out
    with pytest.raises(DataError, match="was made with other weights"):
        make_index(archive, tmp_path / "index", "--skip-bad", chips=chips, weights="other")
    with pytest.raises(DataError, match="was made with other settings"):
        make_index(archive, tmp_path / "index", "TEST.FLIP", "True", chips=chips / "0001_v0_SAR.png")
    for words, sentence in (
        (["--after", "soon"], "--after soon is no time"),
        (["--box", "3", "9", "5", "1"], "--box is west"),
        (["--top-k", "0"], "--top-k is 0"),
    ):
        with pytest.raises(UsageError, match=sentence):
            look(archive, tmp_path / "index", tmp_path / "out", *words)
    (chips / "chips.csv").write_text("chip,longitude,latitude\n0001_v0_SAR.png,4,95\n")
    with pytest.raises(DataError, match=r"0001_v0_SAR\.png: latitude 95 is no number of degrees"):
        make_index(archive, tmp_path / "index", chips=chips)


def test_a_csv_of_chips_is_indexed(archive, tmp_path, capsys):
    lines = ["path;ship_id;modality;time;sensor"]
    lines += [f"chips/day/000{n}_v0_SAR.png;S{n};sar;2026-02-0{n};TSX" for n in range(1, 4)]
    (archive / "list.csv").write_text("\n".join(lines))
    make_index(archive, tmp_path / "index", chips="list.csv")
    found = ChipIndex.open(tmp_path / "index").listing().values()
    assert {(chip.ship, chip.sensor, write_time(chip.time)) for chip in found} == {
        (f"S{n}", "TSX", f"2026-02-0{n}T00:00:00Z") for n in range(1, 4)
    }


def test_ships_of_an_index_are_known(world, tmp_path):  # noqa: F811
    """The answers are those among the files that it was made from, and its pictures are there when the files are gone."""
    rows = ask(world, tmp_path / "files", "--false-alarms", "0.3")
    known = tmp_path / "known"
    shutil.copytree(world / "known", known)
    arguments = ["--weights", str(world / "w.pth"), "--chips", str(known), "--index", str(tmp_path / "index")]
    command.main([*arguments, "--known", *SETTINGS])
    shutil.rmtree(known)
    again = ask(world, tmp_path / "out", "--false-alarms", "0.3", known=tmp_path / "index")
    assert [{**row, "best": sorted(row["best"].split(" | "))} for row in again] == [
        {**row, "best": sorted(row["best"].split(" | "))} for row in rows
    ]
    page = (tmp_path / "out" / "answers.html").read_text()
    assert page.count("data:image/jpeg") == (tmp_path / "files" / "answers.html").read_text().count("data:image/jpeg")
    shutil.copytree(world / "known", known)
    ask(world, tmp_path / "self", known=tmp_path / "index", query=known)
    told = json.loads((tmp_path / "self" / "answers.json").read_text())
    assert len(told) == 24 and all(row["query"] not in row["best"] for row in told)
    confirmed = tmp_path / "confirmed.csv"
    stranger = next(row for row in rows if row["query"].startswith("0901"))
    confirmed.write_text(f'query,path,ship,decision\nx,"{stranger["path"]}",new ship,accept\n')
    more = ask(world, tmp_path / "more", "--confirmed", confirmed, known=tmp_path / "index")
    assert len(more) == 14
    command.main([*arguments[:2], "--chips", str(world / "query"), "--index", str(tmp_path / "unnamed"), *SETTINGS])
    with pytest.raises(DataError, match="unnamed knows no ship; name ships by"):
        ask(world, tmp_path / "out", known=tmp_path / "unnamed")


def test_without_lancedb_a_sentence_says_what_to_install(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(UsageError, match=r"an index needs LanceDB \(.*\); pip install -r requirements-search\.txt"):
        make_index(archive, tmp_path / "index")
