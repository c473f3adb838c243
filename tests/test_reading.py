"""Files that strangers made: each ends in a value or in one short sentence, soon and in little memory."""

import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load_cfg
from datasets.catalogue import list_pictures
from datasets.curation.importing import read_table, read_task
from datasets.generated import read_samples
from processor.ranking.results import read_results, results_path
from processor.report.listing import read_lists
from processor.report.runs import read_runs
from tests.commands import call
from tools import fuse_results, inspect_weights
from utils import archives
from utils.checkpoint import load, load_state_dict
from utils.errors import CheckpointError, DataError, UsageError, shorten, shown, some
from utils.reading import TEXT_LIMIT, open_regular, parse_json, parse_yaml, read_text
from utils.tables import csv_text, read_cell

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "\n".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join(['*' + chr(97 + level)] * 9)}]" for level in range(12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "10,000 values"),
        ("a: &x [*x]", "holds itself"),
        ("[" * 5000, "too deep"),
        ("- " * 5000, "too deep"),
        ("a: 2020-13-45", "month"),
        ("a: !!timestamp x", "group"),
        ("a: !!bool x", "x"),
        ("a: [", "line 1"),
        ('a: "\\UFFFFFFFF"', "too large"),
        ("a: " + "9" * 5000, "digits"),
        ("? [a]\n: 1", "unhashable"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        (" " * 200_000, "longer than"),
    ],
)
def test_yaml_that_would_grow_hang_or_break_is_refused_in_a_few_words(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_yaml_with_a_few_aliases_and_merged_keys_is_read():
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 1}")[0]["d"] == {"b": [1, 2], "e": 1}
    assert parse_yaml("") == (None, None)


def test_json_nested_too_deep_is_refused():
    with pytest.raises(ValueError, match="too deep"):
        parse_json("[" * 200_000)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


ZERO = Path("/dev/zero")
READERS = {
    "config": (lambda path: load_cfg(path), ".yml", UsageError),
    "table": (lambda path: read_table(path, path.parent), ".csv", DataError),
    "task": (lambda path: read_task(path, None), ".json", DataError),
    "results": (read_results, ".json", DataError),
    "rankings": (fuse_results.read_rankings, ".csv", DataError),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes by name")
@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_folders_and_endless_files_are_refused_at_once(tmp_path, name):
    read, suffix, error = READERS[name]
    huge = tmp_path / f"huge{suffix}"
    with huge.open("wb") as file:
        file.truncate(2**40)
    for path, told in ((pipe(tmp_path / f"p{suffix}"), "pipe or device"), (ZERO, "pipe or device"), (huge, "at most")):
        with pytest.raises(error, match=told):
            read(path)
    with pytest.raises(error, match="directory"):
        read(tmp_path)


def test_a_link_to_a_file_is_read_and_a_file_may_have_just_its_limit(tmp_path):
    (tmp_path / "a.txt").write_text("schön", encoding="utf-8")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert read_text(tmp_path / "b.txt", limit=6) == "schön"
    with pytest.raises(OSError, match="holds 6 bytes, and at most 5"):
        open_regular(tmp_path / "a.txt", limit=5)
    assert TEXT_LIMIT < 500e6


# Configurations


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SOLVER: {SEED: 1e999999999}", "SOLVER.SEED cannot be"),
        ("SOLVER: {SEED: 0x" + "f" * 100_000 + "}", "SOLVER.SEED cannot be a int"),
        ("? 0x" + "f" * 9000 + "\n: {a: 1}", "names a section or key a int, which is no word"),
        ("1: 2", "names a section or key 1, which is no word"),
        ("MODEL: {1: 2}", "names a section or key 1, which is no word"),
        ('OUTPUT_DIR: "a\\0b"', "bytes that are no text"),
        ('OUTPUT_DIR: "\\uD800"', "bytes that are no text"),
        ("OUTPUT_DIR: [" + "[" * 20 + "]" * 21, "OUTPUT_DIR cannot be"),
        ("_BASE_: [1]", "cannot read the config file"),
        ('_BASE_: "a\\0b"', "null"),
        ("SOLVER: {STEPS: '" + "(" * 5000 + "'}", "SOLVER.STEPS cannot be"),
        ("? " + "x" * 5000 + "\n: 1", "there is no key"),
    ],
)
def test_values_that_no_key_takes_are_refused_in_a_short_sentence(tmp_path, text, words):
    path = tmp_path / "a.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words) as caught:
        load_cfg(path)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_a_chain_of_bases_has_an_end(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.yml").write_text(f"_BASE_: {number + 1}.yml", encoding="utf-8")
    with pytest.raises(UsageError, match="the base of 20 files"):
        load_cfg(tmp_path / "0.yml")


# Weights


def saved(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


def itself() -> dict:
    found: dict = {}
    found["model"] = found
    return found


ODD = {
    "itself": (itself, "holds itself"),
    "deep": (lambda: {"a": nested(100)}, "32 containers deep"),
    "stride 0": (lambda: {"a": torch.zeros(1).expand(10**12)}, "claims more values"),
    "meta": (lambda: {"a": torch.zeros(10**12, device="meta")}, "no weights need"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "no weights need"),
    "sparse rows": (lambda: {"a": torch.eye(3).to_sparse_csr()}, "no weights need"),
    "float8": (lambda: {"a": torch.ones(3).to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
    "uint16": (lambda: {"a": torch.ones(3).to(torch.uint16)}, "uint16"),
    "bytes": (lambda: {"a": bytearray(3)}, "no weights need"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_weights_of_no_use_are_refused_before_anything_is_made_of_them(tmp_path, name):
    make, words = ODD[name]
    if name == "bytes":  # how Python 3.13 and before write it differs; what is looked for is the call
        path = tmp_path / "w.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    else:
        path = saved(tmp_path / "w.pth", make())
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_views_scalars_and_shared_containers_are_read(tmp_path):
    shared = [1, [2]]
    content = {"a": torch.ones(3, 4).t(), "b": torch.tensor(1.0), "c": [shared, shared], "d": torch.zeros(0, 10**6)}
    found = load(saved(tmp_path / "w.pth", content))
    assert found["a"].shape == (4, 3)
    assert found["c"] == content["c"]


def test_what_an_archive_declares_is_held_against_what_it_has(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\0" * 10**7)
    with pytest.raises(CheckpointError, match="compressed parts"):
        load(path)
    saved(path, {"a": torch.ones(3)})
    content = path.read_bytes()
    place = content.rindex(b"PK\1\2")
    path.write_bytes(content[: place + 20] + b"\xff\xff\xff\x7f" * 2 + content[place + 28 :])
    with pytest.raises(CheckpointError, match="declares 2,1"):
        load(path)


def test_what_stands_beside_the_values_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "PICKLE_LIMIT", 10)
    with pytest.raises(CheckpointError, match="beside its tensors' values"):
        load(saved(tmp_path / "w.pth", {"a": torch.ones(3)}))
    (tmp_path / "w.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{")
    with pytest.raises(CheckpointError, match="bytes of names"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_embed": torch.ones(3)}, "pos_embed of"),
        ({"patch_embed.proj.weight": torch.tensor(1.0)}, "patch_embed.proj.weight of"),
        ({"dist_token": torch.ones(3)}, "dist_token of"),
        ({"pos_embed": torch.zeros(1, 1, 192)}, "positions of no patch"),
        ({"blocks.0.ls1.gamma": torch.ones(5)}, "scales no layer"),
        ({"blocks.0.ls1.gamma": torch.ones(192, dtype=torch.int64)}, "scales no layer"),
        ({"blocks.0.attn.proj.weight": torch.ones(192, 192, dtype=torch.int64)}, "whole numbers in blocks.0.attn.proj.weight"),
    ],
)
def test_a_backbone_with_tensors_of_an_odd_shape_or_type_is_told(tmp_path, changes, words):
    from model.build import build_model
    from tests.commands import tiny_cfg

    state = {name.removeprefix("base."): value for name, value in build_model(tiny_cfg()).state_dict().items()}
    path = saved(tmp_path / "w.pth", {name: value for name, value in state.items() if "_SAR" not in name} | changes)
    ended = call(inspect_weights.main, path)
    assert words in (ended.sentence if ended.status else ended.out)


# Names and messages


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_name_that_is_no_text_is_told_before_any_work(tmp_path):
    (tmp_path / os.fsdecode(b"\xff_RGB.tif")).touch()
    with pytest.raises(DataError, match=r"no text in UTF-8: \\udcff_RGB\.tif"):
        list_pictures(tmp_path)
    ended = call(inspect_weights.main, os.fsdecode(b"\xff.pth"))
    assert (ended.status, ended.sentence) == (2, r"\udcff.pth is no text in UTF-8; rename the file or folder")


def test_messages_are_one_line_of_300_characters():
    path = "/home/somebody/some/where/far/below/folder/file.txt"
    assert shorten(f"{path} is short") == f"{path} is short"
    long = f"{path} is no file; {'and more ' * 30}take another"
    assert shorten(long).startswith(".../folder/file.txt is no file")
    assert len(shorten("x" * 10_000 + "the end")) == 300
    assert shorten("x" * 10_000 + "the end").endswith("the end")
    assert shorten("a\nb\x1b[0m\udcff") == r"a\nb\x1b[0m\udcff"
    assert len(some(["x" * 1000] * 2)) < 130
    assert shown(nested(2000)).startswith(("[[", "a list"))


def test_a_sentence_of_a_command_is_shortened(tmp_path):
    ended = call(fuse_results.main, tmp_path / ("x" * 200), tmp_path / ("y" * 200))
    assert len(ended.sentence) <= 300


# Spreadsheets


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-x", "@SUM(1)", "\t=1", "'=1", "''-x", "-1", "1e-5", "-0.5", "plain", "'", ""]
)
def test_no_text_is_run_by_a_spreadsheet_and_each_is_read_again(text):
    line = csv_text(["a"], [[text]]).splitlines()[1].strip('"')
    assert not line.startswith(("=", "+", "@", "\t", "-x"))
    assert read_cell(line) == text
    assert csv_text(["a"], [[-1, -0.5]]).splitlines()[1] == "-1,-0.5"


def test_samples_and_state_dicts_of_nothing_are_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="no manifest"):
        read_samples(tmp_path, split="query", sources=())
    with pytest.raises(CheckpointError, match="no tensors"):
        load_state_dict(saved(tmp_path / "w.pth", [1]))


def test_a_name_of_gigabytes_in_an_old_weights_file_takes_no_memory(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    place = content.index(b"X\x01\x00\x00\x00a")
    (tmp_path / "w.pth").write_bytes(content[: place + 1] + b"\xff\xff\xff\x7f" + content[place + 5 :])
    with pytest.raises(CheckpointError, match=r"w\.pth declares 2,147,483,647 bytes of one name"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("text", ["a: " + "{" * 3000, "[" * 100_000])
def test_deep_nesting_is_seen_before_anything_is_made_of_it(text):
    begun = time.process_time()
    with pytest.raises(ValueError, match="too deep"):
        parse_yaml(text)
    assert time.process_time() - begun < 0.5


def test_arrays_that_declare_more_than_they_hold_are_refused(tmp_path):
    content = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(tmp_path / "ranking.npz", "w") as archive:
        archive.writestr("facts.npy", content.ljust(127) + b"\n")
    with pytest.raises(DataError, match="no ranking of a test"):
        read_lists(tmp_path / "ranking.npz")


def test_a_results_file_nested_too_deep_does_not_stop_a_test(tmp_path):
    (tmp_path / "results.json").write_text("[" * 100_000)
    assert results_path(tmp_path, path="w.pth", sha256="ab").name == "results.json"


@pytest.mark.parametrize(
    ("name", "content"),
    [("environment.json", "[1"), ("environment.json", "[1]"), ("config.yml", "[a"), ("config.yml", BOMB)],
)
def test_a_run_whose_files_are_damaged_is_named(tmp_path, name, content):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "epoch": 1}\n{"kind": "epoch", "epoch": 1}\n[[')
    assert len(read_runs([tmp_path])[0].metrics) == 1
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        read_runs([tmp_path])


def test_a_text_of_numbers_that_are_no_letters_is_refused(tmp_path):
    letters = np.array([ord("{"), 0x7FFFFFFF], np.uint32).view("<U2").reshape(())
    np.savez(tmp_path / "ranking.npz", facts=letters)
    with pytest.raises(DataError, match="no letters"):
        read_lists(tmp_path / "ranking.npz")
    np.savez(tmp_path / "ranking.npz", facts=np.arange(3))
    with pytest.raises(DataError, match="no text"):
        read_lists(tmp_path / "ranking.npz")
