"""Importing chips by a table: what is read, how ships are split, what is written and what is refused."""

import csv
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.catalogue import find_modality, modality_of_name, read_hoss
from datasets.curation.checks import check_dataset
from datasets.curation.importing import ChipTable, number_ships, read_table, read_task
from datasets.curation.splitting import split_chips
from datasets.records import DISTRACTOR, Chip, Modality, Split
from tests.chip_files import optical_pixels, sar_values, write_chip
from tools import import_dataset as command
from utils.errors import DataError, UsageError

SHIPS = 12


@pytest.fixture
def chips(tmp_path) -> Path:
    """A folder of chips of 12 ships, two optical and two SAR views each, and two distractors."""
    folder = tmp_path / "chips"
    for ship in range(1, SHIPS + 1):
        for view in range(2):
            for kind in ("RGB", "SAR"):
                write_chip(folder / kind.lower() / f"s{ship}_{view}_{kind}.tif", seed=ship * 10 + view)
    for kind in ("RGB", "SAR"):
        write_chip(folder / kind.lower() / f"x_0_{kind}.tif", seed=7000)
    return folder


def rows_of(chips: Path) -> list[list[str]]:
    paths = sorted(path.relative_to(chips) for path in chips.rglob("*.tif"))
    ships = [path.name.split("_")[0].strip("s") for path in paths]
    return [[path.as_posix(), "" if ship == "x" else ship] for path, ship in zip(paths, ships)]


def write_csv(path: Path, rows, header=("path", "ship_id"), separator=",", encoding="utf-8") -> Path:
    lines = [separator.join(cells) for cells in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.fixture
def table(tmp_path, chips) -> Path:
    return write_csv(tmp_path / "ships.csv", rows_of(chips))


def run(*arguments) -> None:
    command.main([str(argument) for argument in arguments])


# Modality


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("0001_s01c1_RGB.tif", Modality.OPTICAL),
        ("ship-7.sar.png", Modality.SAR),
        ("optical 12.jpg", Modality.OPTICAL),
        ("OPT_4.tif", Modality.OPTICAL),
        ("sargasso.png", None),
        ("RGB_like_SAR.png", None),
        ("12.tif", None),
    ],
)
def test_modality_by_name(name, modality):
    assert modality_of_name(Path(name)) is modality


def test_modality_by_pixels(tmp_path):
    Image.fromarray(optical_pixels()).save(tmp_path / "a.png")
    Image.fromarray(sar_values()).save(tmp_path / "b.tif")
    Image.fromarray(optical_pixels()[..., 0]).save(tmp_path / "c.png")
    assert find_modality(tmp_path / "a.png") is Modality.OPTICAL
    assert find_modality(tmp_path / "b.tif") is Modality.SAR
    with pytest.raises(DataError, match=r"c\.png is grey and its name says neither"):
        find_modality(tmp_path / "c.png")


# Tables


def test_separators_encodings_and_order_of_columns_do_not_matter(tmp_path, chips, table):
    expected = read_table(table, chips)
    rows = [[ship, path, "SAR" if "SAR" in path else "Optical"] for path, ship in rows_of(chips)]
    for separator, encoding in ((";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-8-sig")):
        other = write_csv(tmp_path / "b.csv", rows, ("Ship_ID", "path", " modality"), separator, encoding)
        assert read_table(other, chips) == expected
    assert len(expected.chips) == 4 * SHIPS + 2
    assert sum(chip.modality is Modality.SAR for chip in expected.chips) == 2 * SHIPS + 1
    assert sum(chip.ship == DISTRACTOR for chip in expected.chips) == 2


@pytest.mark.parametrize(
    "written", [r"rgb\s1_0_RGB.tif", "rgb/s1_0_RGB.tif", r".\rgb\s1_0_RGB.tif", "rgb/s1_0_RGB", r"rgb\s1_0_RGB"]
)
@pytest.mark.parametrize("column", ["path", "image_id"])
def test_paths_of_windows_and_ids_without_suffix(tmp_path, chips, written, column):
    listed = read_table(write_csv(tmp_path / "t.csv", [[written, "7"]], (column, "ship_id")), chips)
    path = (chips / "rgb" / "s1_0_RGB.tif").absolute()
    assert listed.chips == (Chip(path, 7, Modality.OPTICAL, Split.TRAIN),)
    assert (listed.ids, listed.ships) == ({path: written}, {path: "7"})


def test_absolute_paths_and_quoted_cells(tmp_path, chips):
    path = write_chip(tmp_path / "far, away" / "1.tif", seed=1)
    listed = read_table(
        write_csv(tmp_path / "t.csv", [[f'"{path}"', '"Ever ""G"""', "SAR"]], ("path", "ship_id", "modality")), chips
    )
    assert listed.ships == {path: 'Ever "G"'}
    assert [(chip.path, chip.ship) for chip in listed.chips] == [(path, 1)]


@pytest.mark.parametrize("word", ["", "-1", "NaN", "None"])
def test_unknown_ships_are_distractors(tmp_path, chips, word):
    listed = read_table(write_csv(tmp_path / "t.csv", [["rgb/s1_0_RGB.tif", word]]), chips)
    assert set(listed.ships.values()) == {""}
    assert [chip.ship for chip in listed.chips] == [DISTRACTOR]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([["rgb/nowhere_RGB.tif", "1"]], ("path", "ship_id"), r"line 2: there is no image rgb/nowhere_RGB\.tif .*--images"),
        ([[r"C:\chips\a_RGB.tif", "1"]], ("path", "ship_id"), r"line 2: there is no image C:\\chips\\a_RGB\.tif"),
        ([["", "1"]], ("path", "ship_id"), "line 2: neither image_id nor path"),
        ([["rgb/s1_0_RGB.tif", "1", "infrared"]], ("path", "ship_id", "modality"), "line 2: modality 'infrared' is unknown"),
        ([["rgb/s1_0_RGB.tif"]], ("path",), "columns image_id or path, ship_id.*--column"),
        ([["1"]], ("ship_id",), "columns image_id or path, ship_id"),
        ([], ("path", "ship_id"), "lists no image"),
        ([["rgb/s1_0_RGB.tif", "1"], [], ["rgb/s1_0_RGB.tif", "2"]], ("path", "ship_id"), "several times"),
        ([["a", "rgb/s1_0_RGB.tif", "1"], ["b", r"rgb\s1_0_RGB.tif", "1"]], ("image_id", "path", "ship_id"), "one file sev"),
        ([["rgb/s1_0_RGB.tif", "1"], [], ["notes.txt", "2"]], ("path", "ship_id"), r"line 4: .*notes\.txt has none of"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, chips, rows, header, message):
    (chips / "notes.txt").touch()
    with pytest.raises(DataError, match=message) as caught:
        read_table(write_csv(tmp_path / "t.csv", rows, header), chips)
    assert "t.csv" in str(caught.value)


def test_other_encodings_and_missing_tables_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("path,ship_id\n船.tif,1\n".encode("gbk"))
    with pytest.raises(DataError, match=r"t\.csv is not in UTF-8"):
        read_table(tmp_path / "t.csv", tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*u\.csv"):
        read_table(tmp_path / "u.csv", tmp_path)


# Splits


def table_of(views: list[tuple[str, int, Modality]]) -> ChipTable:
    """A table of chips of (ship, view, sensor)."""
    names = [f"{ship or 'x'}-{view}-{modality.name}" for ship, view, modality in views]
    paths = [Path("/chips") / f"{name}.tif" for name in names]
    pids = number_ships(ship for ship, *_ in views)
    return ChipTable(
        chips=tuple(Chip(path, pids[ship], sensor, Split.TRAIN) for path, (ship, _, sensor) in zip(paths, views)),
        ids=dict(zip(paths, names)),
        ships={path: ship for path, (ship, *_) in zip(paths, views)},
    )


SIDES = ((Split.QUERY, Split.GALLERY), (Split.VALIDATION_QUERY, Split.VALIDATION_GALLERY))


counts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=12, max_size=30)


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 5), st.integers(0, 99), st.sampled_from([0.0, 0.2, 0.3]))
def test_parts_are_disjoint_by_ship_and_every_query_has_a_match(counts, strangers, seed, validation):
    views = [
        (str(number), view, modality)
        for number, pair in enumerate(counts)
        for modality in Modality
        for view in range(pair[modality])
    ]
    views += [("", number, Modality(number % 2)) for number in range(strangers)]
    try:
        parts = split_chips(table_of(views), validation=validation, test=0.3, seed=seed)
    except DataError as error:
        assert "few" in str(error) or "no ship is left" in str(error)
        return
    assert all(chip.split is split for split, chips in parts.items() for chip in chips)
    everything = [replace(chip, split=Split.TRAIN) for chips in parts.values() for chip in chips]
    assert sorted(everything, key=str) == sorted(table_of(views).chips, key=str)
    ships = [{chip.ship for split in splits for chip in parts[split]} - {DISTRACTOR} for splits in ((Split.TRAIN,), *SIDES)]
    assert sum(map(len, ships)) == len(set().union(*ships))
    assert bool(parts[Split.VALIDATION_QUERY]) == bool(validation)
    known = (Split.TRAIN, Split.QUERY, Split.VALIDATION_QUERY)
    assert all(chip.ship != DISTRACTOR for split in known for chip in parts[split])
    for query, gallery in SIDES:
        assert {chip.ship for chip in parts[query]} <= {chip.ship for chip in parts[gallery]}
    shuffled = [views[i] for i in np.random.default_rng(seed).permutation(len(views))]
    assert split_chips(table_of(shuffled), validation=validation, test=0.3, seed=seed) == parts


def test_another_seed_draws_other_ships(chips, table):
    images = read_table(table, chips)
    drawn = {
        tuple(sorted({chip.ship for chip in split_chips(images, validation=0, test=0.3, seed=seed)[Split.QUERY]}))
        for seed in range(6)
    }
    assert len(drawn) > 1
    assert {len(ships) for ships in drawn} == {round(0.3 * SHIPS)}


def test_both_directions_have_queries_where_each_sensor_saw_a_ship_twice(chips, table):
    parts = split_chips(read_table(table, chips), validation=0.25, test=0.25, seed=0)
    for query, gallery in SIDES:
        for modality in Modality:
            own = {chip.ship for chip in parts[query] if chip.modality is modality}
            others = {chip.ship for chip in parts[gallery] if chip.modality is not modality}
            assert own == others - {DISTRACTOR}
            assert len(own) == 3


@pytest.mark.parametrize("counts", [(2, 1), (1, 3), (1, 1), (2, 2)])
def test_every_query_has_a_match_by_the_other_sensor(counts):
    views = [(str(ship), view, sensor) for ship in range(20) for sensor in Modality for view in range(counts[sensor])]
    parts = split_chips(table_of(views), validation=0.1, test=0.3, seed=3)
    for query, gallery in SIDES:
        assert {chip.modality for chip in parts[query]} == set(Modality)
        for chip in parts[query]:
            assert any(other.ship == chip.ship and other.modality is not chip.modality for other in parts[gallery])


def test_too_few_ships_are_said():
    images = table_of([(str(number), view, Modality.SAR) for number in range(3) for view in range(2)])
    with pytest.raises(DataError, match=r"3 ships are too few for a test share of 0\.1"):
        split_chips(images, validation=0, test=0.1, seed=0)
    with pytest.raises(DataError, match="no ship is left for training"):
        split_chips(images, validation=0, test=0.99, seed=0)


@pytest.mark.parametrize(
    ("ships", "pids"),
    [
        (["12", "0007", ""], {"12": 12, "0007": 7, "": -1}),
        (["12.0", "7.0"], {"12.0": 12, "7.0": 7, "": -1}),
        (["B", "A", "7"], {"7": 1, "A": 2, "B": 3, "": -1}),
        (["-2", "5"], {"-2": 1, "5": 2, "": -1}),
        (["٣"], {"٣": 1, "": -1}),
    ],
)
def test_numbers_of_ships(ships, pids):
    assert number_ships(ships) == pids


# Tasks


def write_task(path: Path, content) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_forms_of_a_task(tmp_path, chips, table):
    images = read_table(table, chips)
    names = {"query": ["rgb/s1_0_RGB.tif"], "candidates": ["sar/s1_0_SAR.tif", "s2_0_SAR.tif"]}
    query, gallery = read_task(write_task(tmp_path / "task.json", names), images)
    assert [image.path.name for image in query] == ["s1_0_RGB.tif"]
    assert [image.path.name for image in gallery] == ["s1_0_SAR.tif", "s2_0_SAR.tif"]
    others = [
        {"queries": names["query"], "gallery": names["candidates"]},
        [{"query": names["query"][0], "candidates": [name]} for name in names["candidates"]],
    ]
    for other in others:
        assert read_task(write_task(tmp_path / "task.json", other), images) == (query, gallery)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"query": ["s1_0_RGB.tif"]}, "needs 'candidates'"),
        ({"query": ["s1_0_RGB.tif"], "candidates": []}, "no image under 'candidates'"),
        ({"query": [1], "candidates": ["s1_0_SAR.tif"]}, "needs 'query'"),
        ([["s1_0_RGB.tif"]], "needs 'query'"),
        ({"query": ["s1_0_RGB.tif"], "candidates": ["nowhere.tif"]}, r"does not list, such as nowhere\.tif"),
        ({"query": ["s1_0_RGB.tif"], "candidates": ["s1_0_RGB.tif", "s1_0_SAR.tif"]}, "both as query and as candidate"),
        ({"query": ["x_0_RGB.tif"], "candidates": ["s1_0_SAR.tif"]}, r"ship of the query .* is not known; .*tools\.rank"),
    ],
)
def test_faults_of_a_task_are_named(tmp_path, chips, table, content, message):
    with pytest.raises(DataError, match=rf"task\.json.*{message}"):
        read_task(write_task(tmp_path / "task.json", content), read_table(table, chips))


def test_a_task_that_is_no_json(tmp_path):
    (tmp_path / "task.json").write_text("{")
    with pytest.raises(DataError, match=r"task\.json is no JSON"):
        read_task(tmp_path / "task.json", ChipTable((), {}, {}))


# The command


@pytest.mark.parametrize("way", ["copy", "hardlink", "symlink"])
def test_the_written_data_set_is_whole(tmp_path, chips, table, way, capsys):
    if way == "symlink" and sys.platform == "win32":
        pytest.skip("links need a privilege there")
    output = tmp_path / "new" / "data"
    output.parent.mkdir()
    run("--csv", table, "--images", chips, "--output", output, "--validation", 0.25, "--test", 0.25, "--files", way)
    assert not list(output.parent.glob(".data*"))
    for root in (output, output / "validation"):
        report = check_dataset(root)
        assert report.count("error") == 0 and not [f for f in report.findings if f.kind == "no match"]
        assert report.splits["train"].ships == 6 and report.splits["query"].ships == 3
    main, validation = read_hoss(output), read_hoss(output / "validation")
    assert [record.path.name for record in main.train] == [record.path.name for record in validation.train]
    assert {r.ship for r in main.images} & {r.ship for r in validation.images} <= {-1}
    with (output / "images.csv").open(encoding="utf-8", newline="") as file:
        origins = list(csv.DictReader(file))
    assert len({row["source"] for row in origins}) == 4 * SHIPS + 2
    for row in origins:
        assert (output / row["file"]).read_bytes() == Path(row["source"]).read_bytes()
        assert row["ship_id"] == (row["pid"] if row["pid"] != "-1" else "")
        assert row["source"].endswith("SAR.tif") == (row["modality"] == "sar") == row["file"].endswith("_SAR.tif")
    sample = output / origins[0]["file"]
    assert sample.is_symlink() == (way == "symlink")
    assert (sample.stat().st_nlink > 1) == (way == "hardlink")
    assert "check_dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seed", "validation", "count", "expected"),
    [
        (0, 0.2, 87, "0ba1c7d4561e4b94"),
        (3, 0.0, 60, "1de7306bbc03cfa3"),
        (11, 0.25, 79, "4d130cbea484bf41"),
    ],
)
def test_a_seed_writes_the_data_set_that_it_wrote_before(tmp_path, seed, validation, count, expected):
    chips, rows = tmp_path / "chips", []
    for ship in range(1, 15):
        for view in range(1 + ship % 3):
            for kind in ("RGB", "SAR"):
                if (ship, kind) not in ((3, "RGB"), (8, "SAR")):
                    path = write_chip(chips / kind.lower() / f"s{ship}_{view}_{kind}.tif", seed=ship * 10 + view)
                    rows.append([path.relative_to(chips).as_posix(), f"ship {ship}"])
    for kind in ("RGB", "SAR"):
        for number in range(3):
            path = write_chip(chips / kind.lower() / f"x{number}_{kind}.tif", seed=7000 + number)
            rows.append([path.relative_to(chips).as_posix(), ""])
    table, output = write_csv(tmp_path / "t.csv", rows), tmp_path / "out"
    run("--csv", table, "--images", chips, "--output", output, "--seed", seed, "--validation", validation)
    written = (output / "images.csv").read_text().replace(str(chips), "CHIPS")
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == expected
    assert len(list(output.rglob("*.tif"))) == count


def test_a_task_decides_the_test_and_keeps_its_ships_out_of_training(tmp_path, chips, table):
    content = {
        "query": ["s1_0_RGB.tif", "s2_0_SAR.tif"],
        "candidates": ["s1_0_SAR.tif", "s2_0_RGB.tif", "s3_0_RGB.tif", "x_0_RGB.tif"],
    }
    run("--csv", table, "--images", chips, "--output", tmp_path / "d", "--task", write_task(tmp_path / "task.json", content))
    data = read_hoss(tmp_path / "d")
    assert sorted(data.labels) == list(range(4, SHIPS + 1))
    assert [(r.ship, r.split) for r in data.images] == [
        (1, "query"),
        (2, "query"),
        (-1, "gallery"),
        (1, "gallery"),
        (2, "gallery"),
        (3, "gallery"),
    ]


def test_names_of_hoss_are_kept_and_no_two_files_share_one(tmp_path, chips):
    folder = tmp_path / "mixed"
    rows = []
    for place in "ab":
        for ship in (1, 2, 3, 4):
            for view in (0, 1):
                rows.append(
                    [
                        write_chip(folder / place / f"{ship:04d}_c{view}_RGB.tif", seed=ship).relative_to(folder).as_posix(),
                        str(ship),
                    ]
                )
    run("--csv", write_csv(tmp_path / "t.csv", rows), "--images", folder, "--output", tmp_path / "d")
    names = [path.name for path in (tmp_path / "d").rglob("*.tif")]
    assert len(set(names)) == len(names) == 16
    assert {"0001_c0_RGB.tif", "0001_c0_2_RGB.tif"} <= set(names)


def test_nothing_is_written_over_or_left_half_done(tmp_path, chips, table, monkeypatch):
    output = tmp_path / "data"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not an empty folder") as caught:
        run("--csv", table, "--images", chips, "--output", output)
    assert caught.value.exit_status == 2 and (output / "mine.txt").read_text() == "keep"

    def fail(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setitem(command.WAYS, "copy", fail)
    monkeypatch.setitem(command.WAYS, "hardlink", fail)
    with pytest.raises(OSError, match="No space left"):
        run("--csv", table, "--images", chips, "--output", tmp_path / "other")
    with pytest.raises(DataError, match="take --files copy"):
        run("--csv", table, "--images", chips, "--output", tmp_path / "other", "--files", "hardlink")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chips", "data", "ships.csv"]


@pytest.mark.parametrize(
    "shares", [("--test", 0), ("--test", 1), ("--validation", -0.1), ("--validation", 0.7), ("--seed", -1)]
)
def test_wrong_calls(tmp_path, table, shares):
    with pytest.raises(UsageError, match=r"--validation|--seed"):
        run("--csv", table, "--output", tmp_path / "d", *shares)


# Tables of other makes


def test_columns_are_mapped(tmp_path, chips, table):
    rows = [[path, ship] for path, ship in rows_of(chips)]
    other = write_csv(tmp_path / "b.csv", rows, ("FileName", "label"))
    columns = command.parse_columns(["image=filename", "ship=Label"])
    found, expected = read_table(other, chips, columns=columns), read_table(table, chips)
    assert (found.chips, found.ships) == (expected.chips, expected.ships)
    with pytest.raises(DataError, match=r"no column name, which --column names; it has .*filename"):
        read_table(other, chips, columns={"path": "name"})
    for words in (["image"], ["image="], ["size=big"]):
        with pytest.raises(UsageError, match="--column"):
            command.parse_columns(words)


def test_ids_that_spreadsheets_broke_are_said(tmp_path, chips, caplog):
    ids = ["2.01E+12", "unknown", "N/A", "12", "012", "12.0", "Ship1", "ship1"]
    rows = [[f"rgb/s{number}_0_RGB.tif", name] for number, name in enumerate(ids, 1)]
    listed = read_table(write_csv(tmp_path / "t.csv", rows), chips)
    assert [listed.ships[chip.path] for chip in listed.chips] == ["2.01E+12", "", "", "12", "12", "12", "Ship1", "ship1"]
    for words in (
        "2.01E+12 were rounded",
        "unknown, N/A, of 2 image(s)",
        "012 = 12 = 12.0 are taken as one",
        "Ship1 / ship1 are",
    ):
        assert words in caplog.text
    caplog.clear()
    read_table(write_csv(tmp_path / "t.csv", rows_of(chips)), chips)
    assert caplog.text == ""


def test_broken_files_of_a_table_are_listed_and_skipped(tmp_path, chips, table, capsys):
    (chips / "rgb" / "s1_0_RGB.tif").write_bytes(b"II*\0")
    (chips / "sar" / "s2_1_SAR.tif").unlink()
    with pytest.raises(DataError, match=f"2 of {4 * SHIPS + 2} lines cannot be used"):
        run("--csv", table, "--images", chips, "--output", tmp_path / "d")
    listed_faults = capsys.readouterr().err
    assert "s1_0_RGB.tif is damaged" in listed_faults and "no image sar/s2_1_SAR.tif" in listed_faults
    assert not (tmp_path / "d").exists()
    with pytest.raises(DataError, match=r"2 file\(s\) were skipped"):
        run("--csv", table, "--images", chips, "--output", tmp_path / "d", "--skip-bad")
    assert len(list((tmp_path / "d").rglob("*.tif"))) == 4 * SHIPS


def test_labelled_training_beside_a_test_without_labels(tmp_path, chips, table, capsys):
    query, gallery = tmp_path / "q", tmp_path / "g"
    write_chip(query / "a" / "1_RGB.tif", seed=1)
    write_chip(query / "b" / "1_RGB.tif", seed=2)
    for number in range(3):
        write_chip(gallery / f"{number}_SAR.tif", seed=number).rename(gallery / f"{number}.tif")
    listed = write_csv(tmp_path / "g.csv", [[f"{number}.tif", "sar"] for number in range(3)], ("filename", "modality"))
    listed.rename(gallery / "list.csv")
    labels = write_csv(tmp_path / "l.csv", rows_of(chips), ("filename", "ship_id"))
    words = ["--csv", labels, "--images", chips, "--column", "path=filename", "--validation", 0.25]
    run(*words, "--query", query, "--gallery", gallery / "list.csv", "--output", tmp_path / "d")
    files = {
        path.relative_to(tmp_path / "d" / "unlabelled").as_posix() for path in (tmp_path / "d" / "unlabelled").rglob("*.tif")
    }
    assert files == {"query/1_RGB.tif", "query/2_1_RGB.tif", *(f"gallery/{number}_SAR.tif" for number in range(3))}
    assert not (tmp_path / "d" / "HOSS" / "query").exists()
    data = read_hoss(tmp_path / "d" / "validation")
    assert data.num_identities == SHIPS - 3 and len({chip.ship for chip in data.images} - {DISTRACTOR}) == 3
    rows = list(csv.DictReader((tmp_path / "d" / "images.csv").open()))
    assert {row["image_id"] for row in rows if "unlabelled/query" in row["file"]} == {"a/1_RGB.tif", "b/1_RGB.tif"}
    told = capsys.readouterr().err
    assert "the validation part has 6 queries, too few to choose by" in told and "from 19 to 81 %" in told
    with pytest.raises(UsageError, match="together"):
        run(*words, "--query", query, "--output", tmp_path / "e")


def test_a_large_validation_part_is_enough():
    queries = [Chip(Path(f"{number}.tif"), number, Modality.SAR, Split.VALIDATION_QUERY) for number in range(100)]
    assert command.warn_of_small_validation({Split.VALIDATION_QUERY: queries}) is None
