"""What every command does first, and how commands end."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from configs.command import Command, open_command
from configs.parser import config_parser
from tests.commands import call, settings
from utils import cli
from utils.errors import DataError, PeerError

EXAMPLE = "python program.py SOLVER.SEED 1"


def opened(arguments, **keywords):
    """Call a command that opens as `keywords` say and writes one line to its log: how it ended, and what it was given."""
    found: list[Command] = []

    def main(words):
        parser = config_parser("program.py", "Do something.", EXAMPLE)
        parser.add_argument("--times", type=int, default=1)
        with open_command(parser, words, **keywords) as command:
            found.append(command)
            logging.getLogger("program").info("at work")

    return call(main, *arguments), found


def test_a_command_gets_what_was_asked_for(tmp_path):
    (tmp_path / "some.yml").write_text("SOLVER: {SEED: 5, MARGIN: 0.5}")
    call_of = [*settings(OUTPUT_DIR=tmp_path / "new" / "run"), "--config_file", tmp_path / "some.yml", "--times", 3]
    ended, (command,) = opened([*call_of, "SOLVER.SEED", "6"], log="some_log.txt")
    assert ended.status == 0
    assert (command.args.times, command.cfg.SOLVER.SEED, command.cfg.SOLVER.MARGIN) == (3, 6, 0.5)
    assert (command.device, command.folder) == (torch.device("cpu"), tmp_path / "new" / "run")
    assert command.cfg.is_frozen()
    assert (command.folder / "some_log.txt").read_text(encoding="utf-8").count("at work") == 1
    assert ended.err.count("at work") == 1


def test_a_command_without_log_writes_nothing(tmp_path):
    ended, (command,) = opened(settings(OUTPUT_DIR=tmp_path / "run"))
    assert (ended.status, command.folder, list(tmp_path.iterdir())) == (0, None, [])


@pytest.mark.parametrize(
    ("changes", "keywords", "status", "sentence"),
    [
        ({}, {"needs": {"TEST.WEIGHT": "the checkpoint to test"}}, 2, "TEST.WEIGHT is empty; name the checkpoint to test"),
        ({}, {"log": "log.txt"}, 2, "OUTPUT_DIR is empty; name a folder for the results"),
        ({"MODEL__DEVICE": "abacus"}, {}, 2, "MODEL.DEVICE 'abacus' is no device; it is 'auto', 'cpu' or 'cuda'"),
        ({"TEST__FLIP": "x"}, {}, 2, "command line: TEST.FLIP cannot be 'x'; it takes True or False"),
    ],
)
def test_a_command_that_cannot_open_says_why(changes, keywords, status, sentence):
    ended, found = opened(settings(**changes), **keywords)
    assert (ended.status, ended.sentence, found) == (status, sentence, [])


def test_a_need_that_is_met_and_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    changes = {"TEST__WEIGHT": "some.pth", "OUTPUT_DIR": tmp_path / "file"}
    ended, found = opened(settings(**changes), needs={"TEST.WEIGHT": "the checkpoint"})
    assert ended.status == 0 and len(found) == 1
    ended, found = opened(settings(**changes), needs={"TEST.WEIGHT": "the checkpoint"}, log="log.txt")
    assert (ended.status, found) == (1, [])
    assert ended.sentence.startswith(f"OUTPUT_DIR {tmp_path / 'file'} cannot be written to")


def test_help_shows_the_example_and_ends_well():
    ended, found = opened(["--help"])
    assert (ended.status, found) == (0, [])
    assert EXAMPLE in ended.out and "--config_file FILE" in ended.out and "--times" in ended.out


def test_an_unknown_option_is_a_wrong_call():
    ended, found = opened(["--weights", "x.pth"])
    assert (ended.status, found) == (2, [])


@pytest.fixture
def launched(monkeypatch):
    """Pretend that torchrun started two processes of which this is one."""

    def launch(rank: int) -> None:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))

    return launch


@pytest.fixture
def store(monkeypatch):
    """The store of a torchrun that started this process, as it was told of it."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    return store


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_processes_the_first_that_fails_says_why(launched, store, first):
    done = []
    launched(first)
    said = call(done.append)
    launched(1 - first)
    quiet = call(done.append)
    assert said.sentence == "this command works in one process; start it without torchrun"
    assert (quiet.out, quiet.err, quiet.status) == ("", "", said.status) == ("", "", 2)
    assert not done


def test_a_process_leaves_the_one_that_failed_to_speak(launched, store, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)

    def stumble(arguments):
        raise PeerError("the loss of another process is not finite")

    launched(0)
    ended = call(stumble, together=True)
    assert (ended.status, ended.sentence, waited) == (1, "the loss of another process is not finite", [cli.PEER_SECONDS])


def test_a_fault_after_that_of_another_process_shows_no_traceback(launched, store, monkeypatch, capsys):
    def stumble(arguments):
        raise RuntimeError("Connection closed by peer")

    launched(0)
    call([].append)
    launched(1)
    ended = call(stumble, together=True)
    assert (ended.status, ended.err) == (1, "")


def test_a_command_of_several_processes_does_not_refuse_torchrun(launched, monkeypatch):
    launched(1)
    done = []
    monkeypatch.setattr(sys, "argv", ["program", "word"])
    cli.run(done.append, together=True)
    assert done == [["word"]]


def test_a_fault_of_one_process_is_told_by_that_process(launched, monkeypatch, capsys):
    def fail(arguments):
        raise DataError("0001_RGB.tif is gone")

    launched(1)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        cli.run(fail, together=True)
    assert (ended.value.code, capsys.readouterr().err) == (1, "error: 0001_RGB.tif is gone\n")


def test_torchrun_shows_the_refusal_once():
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tools.config_page"]
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert ended.stderr.count("error: this command works in one process; start it without torchrun") == 1
