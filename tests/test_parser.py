"""What commands answer before they import what takes seconds: help, and which configurations there are."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import bbdm.train
import bbdm.train_first_stage
import train
import train_pair
from configs.parser import answer_help, config_parser, list_of, offer_configs
from datasets.curation.boxes import DEGREES, MAP, PIXELS
from datasets.curation.scenes import MARGINS
from datasets.folders import MODALITY_CHOICES
from datasets.ships.counts import SIZES
from processor.common_space import FITS
from processor.ranking.comparison import METRICS
from processor.report.page import PAGE_QUERIES
from tools import convert_weights, cut_chips, identify, make_dataset, oracle, rank, report, tune

ROOT = Path(__file__).parent.parent
COMMANDS = [
    name.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "bbdm/*.py", "tools/*.py")
    for name in sorted(ROOT.glob(pattern))
    if re.search(r"^ {4}(cli\.)?run\(main", name.read_text(encoding="utf-8"), re.MULTILINE)
]
TRAININGS = ("train.py", "train_pair.py", "bbdm/train.py", "bbdm/train_first_stage.py")
MODULES = (train, train_pair, bbdm.train, bbdm.train_first_stage)

ASK_ALL = """
import contextlib, io, json, runpy, sys
answers = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            runpy.run_path(name, run_name="__main__")
        except SystemExit as end:
            answers[name] = [end.code or 0, told.getvalue()]
print(json.dumps([answers, sorted({"torch", "timm", "cv2", "scipy", "numpy"} & sys.modules.keys())]))
"""


def ask(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in the checkout, 80 columns wide."""
    surroundings = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=120)


def test_every_command_answers_help_in_80_columns_and_without_torch():
    answers, heavy = json.loads(ask("-c", ASK_ALL, *COMMANDS).stdout)
    assert set(answers) == set(COMMANDS) and len(COMMANDS) > 25
    assert heavy == []
    for name, (status, told) in answers.items():
        assert (status, "usage: " in told, "example" in told) == (0, True, True), name
        assert max(map(len, told.splitlines())) <= 80, name


def test_help_takes_a_fraction_of_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ask("train.py", "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.2


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_without_arguments_says_which_configurations_there_are(name):
    ended = ask(*(["-m", name.removesuffix(".py").replace("/", ".")] if "/" in name else [name]))
    assert (ended.returncode, ended.stdout) == (2, "")
    lines = ended.stderr.splitlines()
    assert max(map(len, lines)) <= 80
    offered = [line.split()[0] for line in lines if line.startswith("configs/")]
    assert lines[-1] == f"error: name a configuration, such as --config_file {offered[0]}"
    assert all((ROOT / path).is_file() for path in offered) and len(set(offered)) == len(offered)


def test_every_configuration_is_offered_with_its_purpose():
    patterns = {pattern for module in MODULES for pattern in module.build_parser().get_default("offers")}
    told = " ".join(offer_configs(sorted(patterns)).split())
    paths = {path for path in ROOT.glob("configs/*.yml") if path.name != "ablation_4_generation.yml"}  # which trains nothing
    assert {f"configs/{path.name}" for path in paths} == set(re.findall(r"configs/\w+\.yml", told.split("error:")[0]))
    for path in paths:
        purpose = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert purpose.endswith(".") and purpose.replace("-", "") in told.replace("- ", "").replace("-", "")


def test_of_several_processes_one_answers():
    assert ask("train.py", "--help", RANK="1").stdout == ""
    ended = ask("train.py", RANK="1")
    assert (ended.returncode, ended.stdout + ended.stderr) == (2, "")


def test_other_calls_are_left_to_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "SOLVER.SEED", "1"])
    answer_help(lambda: config_parser("program", "Do.", "program", offers=("hoss_*.yml",)))
    monkeypatch.setattr(sys, "argv", ["program"])
    answer_help(lambda: config_parser("program", "Do.", "program"))


def test_lists_are_parsed_item_by_item():
    assert list_of(int)("1,2") == [1, 2]
    with pytest.raises(ValueError):
        list_of(float)("a")


def test_parsers_offer_what_the_code_knows():
    """Their words stand in the parsers, because where they come from takes seconds to import."""

    def of(tool, option: str):
        return next(action for action in tool.build_parser()._actions if option in action.option_strings)

    assert of(convert_weights, "--layout").choices == tuple(sorted(convert_weights.LAYOUTS))
    assert of(cut_chips, "--margins").default == MARGINS
    assert of(cut_chips, "--coordinates").choices == ("auto", PIXELS, DEGREES, MAP)
    for tool, option in ((cut_chips, "--sensor"), (rank, "--query-modality"), (identify, "--query-modality")):
        assert of(tool, option).choices == ("auto", *MODALITY_CHOICES)
    assert of(make_dataset, "--size").choices == tuple(SIZES)
    assert of(report, "--page-queries").default == PAGE_QUERIES
    for tool in (tune, oracle):
        assert of(tool, "--kinds").default == list(FITS)
        assert of(tool, "--metric").choices == tuple(METRICS)
