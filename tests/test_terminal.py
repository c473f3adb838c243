"""What a user sees on a terminal of 80 columns: no line is wider, notices come once, and libraries are quiet."""

import io
import logging
import re
import sys
from pathlib import Path

import pytest

import test as test_command
import train
from tests.chip_files import write_hoss
from tests.commands import Ended, Terminal, call, settings
from tools import compare, oracle, rank, tune
from utils.log import ONCE, fold, progress, setup_logging


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path, Ended]:
    """The data, the folder of a training of two epochs, and how it ended on a terminal."""
    folder = tmp_path_factory.mktemp("terminal_of_a_user_who_has_long_names_of_folders")
    root = write_hoss(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        values = {"DATASETS__ROOT_DIR": root, "OUTPUT_DIR": folder / "run", "SOLVER__MAX_EPOCHS": 2, "SOLVER__EVAL_PERIOD": 1}
        ended = call(train.main, *settings(**values, SOLVER__CHECKPOINT_PERIOD=1), streams=Terminal)
    assert ended.status == 0, ended.err
    return root, folder / "run", ended


def lines_of(ended: Ended) -> list[str]:
    """The lines of both streams; of a bar that was drawn over and over, each state."""
    return re.split(r"[\n\r]", ended.out + "\n" + ended.err)


def wide(ended: Ended) -> list[str]:
    """The lines that do not fit, less those that a name alone makes too wide."""
    return [line for line in lines_of(ended) if len(line) > 80 and max(map(len, line.split())) < 78]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_a_training_fits_and_says_once_what_it_is(run):
    _, _, ended = run
    assert wide(ended) == []
    start = [line for line in lines_of(ended) if "M parameters" in line]
    assert len(start) == 1
    assert re.fullmatch(r"cpu, float32, \d\.\d M parameters, batch 8, \d identities, 2 x \d steps", start[0])
    for notice in re.findall(r".+ queries have no match .+", ended.err):
        assert ended.err.count(notice) == 1
    assert "annealing" not in ended.err
    assert "keys that are read and have no effect" not in ended.err
    bars = [line for line in lines_of(ended) if line.startswith("train:") and "loss=" in line]
    assert bars and len({line.index("| ") for line in bars}) == 1


def test_a_runs_own_configuration_warns_of_nothing(run, tmp_path):
    _, folder, _ = run
    values = ["OUTPUT_DIR", tmp_path / "again", "SOLVER.MAX_EPOCHS", 1]
    ended = call(train.main, "--config_file", folder / "config.yml", *values, streams=Terminal)
    assert ended.status == 0, ended.err
    assert not re.search("no effect|neither|annealing|warn", ended.err, re.IGNORECASE), ended.err


@pytest.mark.parametrize("verbose", [[], ["--verbose"]])
def test_commands_that_measure_fit(run, tmp_path, verbose):
    root, folder, _ = run
    weights = ["--weights", folder / "best_model_mAP.pth"]
    sheets = ["--query", root / "HOSS" / "query", "--gallery", root / "HOSS" / "bounding_box_test", "--output", tmp_path]
    calls = [
        (test_command.main, [*weights, *verbose]),
        (test_command.main, [*weights, *verbose, "TEST.RE_RANKING", "True", "TEST.QUERY_EXPANSION", "2"]),
        (tune.main, [*weights, "--rerank", "--space", "--k1", "2,3", "--k2", "1", *verbose]),
        (oracle.main, [*weights, *verbose]),
        (rank.main, [*weights, *sheets]),
        (compare.main, [folder, folder, folder, *verbose]),
    ]
    for main, arguments in calls:
        ended = call(main, *arguments, streams=Terminal)
        assert ended.status == 0, ended.err
        assert wide(ended) == [], main.__module__
        assert ("Kish" in ended.out) == (bool(verbose) and main is not rank.main), main.__module__


def test_long_lines_are_broken_at_blanks_on_a_terminal_alone(monkeypatch):
    text = "short\n  " + "word " * 30
    folded = fold(text, Terminal()).split("\n")
    assert folded[0] == "short" and max(map(len, folded)) <= 80
    assert " ".join(" ".join(folded).split()) == " ".join(text.split())
    assert [line[:5] for line in folded[1:]] == ["  wor", "    w"]
    assert fold(text, io.StringIO()) == text


def test_a_notice_is_told_once_and_libraries_are_quiet(tmp_path, capsys):
    def main(arguments):
        setup_logging(tmp_path, "log.txt")
        for name in ("one", "one", "two"):
            logging.getLogger("model").info("a notice of %s", name, extra={ONCE: name})
        for _ in range(2):
            logging.getLogger("model").info("a line")
            logging.getLogger("timm.scheduler.cosine_lr").warning("Cosine annealing will have no effect")

    ended = call(main)
    told = ["a notice of one", "a notice of two", "a line", "a line"]
    assert [line for line in ended.err.splitlines() if line] == told
    written = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert [line.split(": ", 1)[1] for line in written.splitlines()] == told


@pytest.mark.parametrize("steps", [4, 123_456])
def test_the_bar_keeps_its_width_and_the_loss(monkeypatch, steps):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(steps, "first stage", unit="step") as bar:
        for done in (1, steps - 2, 1):
            bar.set_postfix(epoch=250, loss="10.89", refresh=False)
            bar.update(done)
            bar.refresh()
    states = [state for state in terminal.getvalue().split("\r") if "loss=" in state]
    assert states and all(len(state.rstrip("\n")) <= 80 and "loss=10.89]" in state for state in states)
    assert {len(re.search(r"\|(.*)\|", state)[1]) for state in states} == {10}
