"""A folder belongs to one run: by a lock that the system holds, and by what lies in it."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import train
from tests.chip_files import write_hoss
from tests.commands import call, settings
from utils import lock
from utils.errors import UsageError
from utils.files import LOCK, replacing, sweep, sweep_old
from utils.lock import own_folder, replacing_folder

HOLDING = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.3)


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds, and that process."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path / LOCK)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    yield tmp_path, holder
    holder.kill()
    holder.wait()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_held_folder_is_refused_with_the_way_out(held):
    with pytest.raises(UsageError, match=r"another run is at work in .*; name another OUTPUT_DIR"), own_folder(held[0]):
        pytest.fail("two runs in one folder")


def test_a_lock_ends_with_its_process_however_that_ends(held, monkeypatch):
    folder, holder = held
    monkeypatch.setattr(lock, "PATIENCE", 20.0)
    threading.Timer(0.3, lambda: os.kill(holder.pid, signal.SIGKILL)).start()  # waited for
    with own_folder(folder):
        assert names(folder) == {LOCK}
    assert not names(folder)


def test_a_lock_file_of_no_process_locks_nothing(tmp_path):
    (tmp_path / LOCK).write_text("1\n")
    with own_folder(tmp_path), pytest.raises(UsageError), own_folder(tmp_path):
        pytest.fail("two runs in one folder")


def test_who_waits_for_a_lock_does_not_get_a_deleted_one(tmp_path):
    with (tmp_path / LOCK).open("a") as late:  # opened before the lock is given back, which deletes the file
        with own_folder(tmp_path):
            pass
        fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with own_folder(tmp_path), pytest.raises(UsageError), own_folder(tmp_path):
            pytest.fail("two runs in one folder")


def test_a_disk_that_cannot_lock_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with own_folder(tmp_path):
        assert "cannot lock ([Errno 37] No locks available)" in caplog.text


def test_leftovers_of_killed_runs_are_swept_and_nothing_else(tmp_path):
    inner, other = tmp_path / "grids", tmp_path / "seed_0"
    for folder in (inner, other):
        folder.mkdir()
    (other / LOCK).touch()
    kept = [tmp_path / ".hidden", tmp_path / "a.tmp.pth", tmp_path / ".a.0123456789abcdef.pth"]
    for folder in (tmp_path, inner, other):
        with replacing(folder / "last.pth") as temporary:
            temporary.touch()
            os.link(temporary, folder / "copy")  # put back below, as if the process had been killed
        (folder / "copy").rename(temporary)
    for path in kept:
        path.touch()
    sweep(tmp_path)
    assert names(tmp_path) == {"grids", "seed_0", "last.pth", *(path.name for path in kept)}
    assert names(inner) == {"last.pth"}
    assert len(names(other)) == 3  # another run is at work there


def test_temporary_names_of_processes_of_one_number_differ(tmp_path):
    with replacing(tmp_path / "x.pth") as first, replacing(tmp_path / "x.pth") as second:
        assert first != second
        first.write_text("1"), second.write_text("2")
    assert names(tmp_path) == {"x.pth"}


# The commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Words of a run that is done, and its folder."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    write_hoss(data, train_ships=4, views=2)
    words = settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=folder, SOLVER__MAX_EPOCHS=1, SOLVER__CHECKPOINT_PERIOD=1)
    assert call(train.main, *words, "SOLVER.RESUME", "auto").status == 0  # there is nothing to go on from yet
    return words, folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_fresh_run_into_the_folder_of_another_is_refused_with_both_ways_out(run):
    words, folder = run
    before = content(folder)
    ended = call(train.main, *words, "SOLVER.BASE_LR", "0.5")
    assert ended.status == 2
    assert "holds a run already" in ended.sentence
    assert "another OUTPUT_DIR, or go on with that run by SOLVER.RESUME auto" in ended.sentence
    assert content(folder) == before


@pytest.mark.parametrize("trace", ["metrics.jsonl", "best_model_mAP.pth", "results.json"])
def test_whatever_a_run_leaves_marks_its_folder(run, tmp_path, trace):
    (tmp_path / trace).touch()
    ended = call(train.main, *run[0], "OUTPUT_DIR", tmp_path)
    assert (ended.status, trace in ended.sentence) == (2, True)


def test_going_on_with_a_run_of_another_folder_does_not_write_over_this_one(run, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    ended = call(train.main, *run[0], "OUTPUT_DIR", tmp_path, "SOLVER.RESUME", run[1] / "last.pth")
    assert (ended.status, "holds a run already" in ended.sentence) == (2, True)


def test_a_finished_run_that_goes_on_says_so_and_keeps_its_files(run):
    words, folder = run
    weights = {name: text for name, text in content(folder).items() if name.endswith((".pth", ".jsonl"))}
    ended = call(train.main, *words, "SOLVER.RESUME", "auto")
    assert ended.status == 0
    assert f"going on from {folder / 'last.pth'}" in ended.err
    assert weights.items() <= content(folder).items()


def test_a_command_in_a_held_folder_ends_in_one_sentence(run, held):
    for program in (train.main,):
        ended = call(program, *run[0], "OUTPUT_DIR", held[0])
        assert (ended.status, "another run is at work in" in ended.sentence) == (2, True)
    assert names(held[0]) == {LOCK}


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="within"), replacing_folder(output) as temporary:
        (temporary / "a").write_text("a")
        assert not output.exists()
        raise ValueError("within")
    assert list(tmp_path.iterdir()) == []
    output.mkdir()
    with replacing_folder(output) as temporary:
        (temporary / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UsageError, match="is not an empty folder"), replacing_folder(output):
        pass
    assert (output / "a").read_text() == "a"


def test_what_a_killed_run_left_of_a_folder_is_swept_and_a_run_at_work_is_not(tmp_path):
    (tmp_path / ".out.0123456789abcdef.tmp" / "HOSS").mkdir(parents=True)
    (tmp_path / ".outer.0123456789abcdef.tmp").mkdir()
    with replacing_folder(tmp_path / "out") as temporary:
        assert temporary.is_dir()
        with pytest.raises(UsageError, match="another run is at work"), replacing_folder(tmp_path / "out"):
            pass
        assert temporary.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".outer.0123456789abcdef.tmp", "out"]


def test_what_is_left_in_a_shared_folder_goes_after_a_day(tmp_path):
    old, young, other = (tmp_path / f".{name}.0123456789abcdef.tmp.pth" for name in ("old", "young", "other"))
    for path in (old, young, other.with_name("other.pth")):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    os.utime(other.with_name("other.pth"), (0, 0))
    sweep_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "other.pth"]
