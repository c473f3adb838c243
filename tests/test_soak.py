"""The trials of `make soak` in short form: a few kills of quick jobs, and a few mutated files for each reader."""

import random
import signal

import pytest
import torch

from tests.soak import jobs
from tests.soak.contents import contents_of, faults_of
from tests.soak.kills import Moment, Survived, fresh, measure, start, survive
from tests.soak.readers import READERS, Reader
from tests.soak.trying import try_reader
from utils.checkpoint import load, save
from utils.errors import DataError


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_mutated_files_end_in_a_value_or_a_sentence(reader, tmp_path):
    tried = try_reader(reader, 60, seed=1)
    assert tried.faults == {}
    assert tried.count == tried.read + tried.refused == 60


def test_what_a_reader_does_not_survive_is_told(tmp_path):
    def prepare(folder):
        path = folder / "a.txt"
        path.write_text("0")

        def read(path):
            number = int(path.read_text())
            if number == 1:
                raise DataError("a sentence")
            if number == 2:
                raise ValueError("a fault")
            if number == 3:
                bytearray(600 * 2**20)
            if number == 4:
                signal.raise_signal(signal.SIGKILL)
            while number == 5:
                pass

        return [path], read

    reader = Reader("numbers", ".txt", lambda draws, content, others: str(draws.randrange(6)).encode(), prepare)
    tried = try_reader(reader, 8, seed=8)  # all six come, the endless one once
    assert tried.count == 8
    told = " ".join(tried.faults.values())
    assert tried.read and tried.refused
    for word in ("ValueError: a fault", "MemoryError", "died, status 9", "no end within 5 s"):
        assert word in told


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Two quick jobs, and what they leave unkilled."""
    base = tmp_path_factory.mktemp("soak")
    data, threads = jobs.write_data(base), torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = {"bbdm.train", "tools.import_dataset"}
    found = [job for job in (*jobs.trainings(data), *jobs.makers(data, base)) if job.name in wanted]
    yield {job.name: (job, measure(job, base / "run")) for job in found}, base
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["bbdm.train", "tools.import_dataset"])
def test_what_is_killed_goes_on_to_what_an_unkilled_run_leaves(quick, name):
    known, base = quick
    job, reference = known[name]
    survived = Survived(name)
    for number in range(3):
        survive(job, reference, base / "run", random.Random(f"{name} {number}"), survived)
    assert survived.faults == []
    assert survived.kills + survived.ended_first >= 3


def test_kills_at_events_of_writing_happen(quick):
    known, base = quick
    job, reference = known["bbdm.train"]
    fresh(job, base / "run")
    ended = start(job, base / "run", Moment(event=reference.events // 2, place="within"))
    assert ended.status == -signal.SIGKILL
    assert faults_of(base / "run") == []
    assert contents_of(base / "run") != reference.contents


def test_damaged_files_and_other_contents_are_seen(tmp_path):
    save(tmp_path / "a.pth", {"a": torch.zeros(3)})
    before = contents_of(tmp_path)
    save(tmp_path / "a.pth", {"a": torch.ones(3)})
    assert faults_of(tmp_path) == []
    assert contents_of(tmp_path) != before
    assert load(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-9])
    (tmp_path / "b.json").write_text('{"a": ')
    assert [fault.split(":")[0] for fault in faults_of(tmp_path)] == ["a.pth", "b.json"]
