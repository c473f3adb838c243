"""tools.repeat: seeds are run once, go on where they stopped, and are summed up honestly."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

import test as test_command
import train as train_command
from processor.ranking.results import Evaluation, Outcome
from processor.reid import ReIDTask
from tests.chip_files import write_chip, write_hoss
from tests.commands import call, settings
from tests.test_results import PLAIN, RESULTS
from tools import repeat
from utils.errors import DataError, UsageError


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("1,5-6,9", [1, 5, 6, 9])])
def test_seeds(text, seeds):
    assert repeat.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-0", "1,1", "1-", "0-2,2"])
def test_seeds_that_are_none(text):
    with pytest.raises(UsageError, match="--seeds"):
        repeat.parse_seeds(text)


def results_of(name, *precisions, images="d"):
    outcomes = tuple(
        Outcome(f"q{ship}", ship, value, 0 if value is None else 1 if value > 0.5 else 2)
        for ship, value in enumerate(precisions)
    )
    weights, data = {"path": name, "sha256": "w"}, {"root": "data", "images": 9, "sha256": images}
    protocols = {"ALL": Evaluation(replace(PLAIN, per_query=outcomes))}
    return replace(RESULTS, weights=weights, data=data, protocols=protocols)


def test_a_summary_by_hand():
    mean, hits = repeat.summarise([results_of("a", 1.0, 0.5, None), results_of("b", 0.6, 0.7, None)])
    assert mean.values == pytest.approx((0.75, 0.65))
    assert mean.deviation == pytest.approx(0.1 / np.sqrt(2))
    assert mean.interval.mean == pytest.approx(0.7)
    assert (mean.interval.queries, mean.interval.ships) == (2, 2)
    assert hits.values == (0.5, 1.0)


def test_the_interval_does_not_shrink_by_repeating_the_same_result():
    one = results_of("a", *np.linspace(0, 1, 30))
    assert repeat.summarise([one])[0].interval == repeat.summarise([one] * 5)[0].interval
    assert repeat.summarise([one])[0].deviation is None


def test_seeds_of_different_test_images_are_refused():
    with pytest.raises(DataError, match="different test images"):
        repeat.summarise([results_of("a", 0.5), results_of("b", 0.5, images="other")])


# The command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, test_ships=3)


def start_here(program, arguments):
    """Run a program in this process, which saves the seconds that another one takes to start."""
    return call({"train.py": train_command, "test.py": test_command}[program].main, *arguments).status


@pytest.fixture
def started(monkeypatch):
    """The programs that were started, and their arguments."""
    calls = []
    monkeypatch.setattr(repeat, "start", lambda *what: calls.append(what) or start_here(*what))
    return calls


def repeated(data, output, *options, **changes):
    values = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": output, "SOLVER__MAX_EPOCHS": 2, "SOLVER__CHECKPOINT_PERIOD": 1}
    return call(repeat.main, *options, *settings(**values | changes))


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """Two seeds."""
    output = tmp_path_factory.mktemp("repeat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeat, "start", start_here)
        ended = repeated(data, output, "--seeds", "0-1")
    assert ended.status == 0, ended.err
    return output, ended


def test_programs_are_started_wherever_the_user_is(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert repeat.start("test.py", ["TEST.WEIGHTS", "none"]) == 2
    assert "the nearest is TEST.WEIGHT" in capfd.readouterr().err


def test_each_seed_is_trained_and_tested_and_reported(done):
    output, ended = done
    report = json.loads((output / "repeat.json").read_text())
    assert report["seeds"] == [0, 1]
    assert len(set(report["weights"])) == 2
    assert {"commit", "packages"} <= report["environment"].keys()
    figures = {(f["protocol"], f["kind"], f["metric"]): f for f in report["figures"]}
    for number in (0, 1):
        tested = json.loads((output / f"seed_{number}" / "results.json").read_text())
        assert tested["weights"]["path"].endswith("transformer_2.pth")  # not what the test split chose
        assert figures["S2O", "plain", "mAP"]["values"][number] == pytest.approx(tested["protocols"]["S2O"]["plain"]["mAP"])
    text = (output / "repeat.md").read_text()
    assert text.strip() == ended.out.strip()
    assert report["weights"][0] in text
    assert f"{100 * figures['ALL', 'plain', 'mAP']['mean']:.1f}" in text


def test_what_is_done_is_not_done_again(data, done, started, tmp_path):
    output = shutil.copytree(done[0], tmp_path / "runs")
    assert repeated(data, output, "--seeds", "0-1").status == 0
    assert started == []
    assert repeated(data, output, "--seeds", "1", TEST__RE_RANKING=True).status == 0
    assert [program for program, _ in started] == ["test.py"]


def test_other_test_images_are_tested_again(data, done, started, tmp_path):
    output = shutil.copytree(done[0], tmp_path / "runs")
    shutil.copytree(data, tmp_path / "data")
    config = output / "seed_0" / "config.yml"
    config.write_text(config.read_text().replace(str(data), str(tmp_path / "data")))
    tested = output / "seed_0" / "tested.json"
    tested.write_text(tested.read_text().replace(str(data), str(tmp_path / "data")))
    assert repeated(tmp_path / "data", output, "--seeds", "0").status == 0
    assert started == []
    write_chip(next((tmp_path / "data" / "HOSS" / "query").iterdir()), seed=77)
    assert repeated(tmp_path / "data", output, "--seeds", "0").status == 0
    assert [program for program, _ in started] == ["test.py"]


def test_a_training_that_stopped_goes_on(data, done, started, tmp_path, monkeypatch):
    step = ReIDTask.step

    def interrupt(task, batch):
        if task.update.steps == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(task, batch)

    monkeypatch.setattr(ReIDTask, "step", interrupt)
    ended = repeated(data, tmp_path, "--seeds", "1")
    assert ended.status == 1
    assert "train.py of seed 1 ended with status 143" in ended.sentence
    monkeypatch.setattr(ReIDTask, "step", step)
    assert repeated(data, tmp_path, "--seeds", "1").status == 0
    assert [program for program, _ in started] == ["train.py", "train.py", "test.py"]
    assert started[1][1][-2:] == ["SOLVER.RESUME", "auto"]
    once = json.loads((done[0] / "seed_1" / "results.json").read_text())["protocols"]
    assert json.loads((tmp_path / "seed_1" / "results.json").read_text())["protocols"] == once


def test_a_folder_of_other_settings_is_refused(data, done, started):
    ended = repeated(data, done[0], "--seeds", "0", SOLVER__BASE_LR=0.5)
    assert ended.status == 1
    assert "SOLVER.BASE_LR 0.001 instead of 0.5" in ended.sentence
    assert started == []


def test_with_validation_ships_the_best_weights_are_tested(data, started, tmp_path):
    assert repeated(data, tmp_path, "--seeds", "0", DATASETS__VAL_FRACTION=0.5, SOLVER__EVAL_PERIOD=1).status == 0
    assert started[1][1][-1].endswith("best_model_mAP.pth")
    assert "chosen on validation ships" in (tmp_path / "repeat.md").read_text()


def test_the_best_weights_by_r1_are_tested_as_published(data, started, tmp_path):
    assert repeated(data, tmp_path, "--seeds", "0", "--checkpoint", "best_rank1", SOLVER__EVAL_PERIOD=1).status == 0
    assert started[1][1][-1].endswith("best_model_rank1.pth")


def test_wrong_calls(data, tmp_path):
    assert repeated(data, tmp_path, "--seeds", "x").status == 2
    ended = call(repeat.main, "--seeds", "0", *settings(OUTPUT_DIR=tmp_path), "SOLVER.SEED", "3")
    assert (ended.status, "SOLVER.SEED" in ended.sentence) == (2, True)
    assert "example" in call(repeat.main, "--help").out


@pytest.mark.parametrize("line", ["SOLVER: {RESUME: last.pth}", "TEST: {WEIGHT: a.pth}"])
def test_a_config_that_goes_on_from_another_run_is_refused(tmp_path, line):
    (tmp_path / "run.yml").write_text(line)
    ended = call(repeat.main, "--seeds", "0", "--config_file", tmp_path / "run.yml", *settings(OUTPUT_DIR=tmp_path))
    assert (ended.status, line.split(":")[0] in ended.sentence) == (2, True)
    assert "every seed has its own" in ended.sentence
