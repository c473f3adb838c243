"""From a table and a test without labels to prediction.json."""

import csv
import importlib
import json
from pathlib import Path

import pytest

from processor.ranking.comparison import compare_outcomes
from processor.ranking.results import Outcome
from tests.commands import settings
from tests.test_identify import write_ship
from tests.test_results import PLAIN
from tools import contest
from utils.errors import DataError, UsageError


@pytest.fixture
def files(tmp_path) -> Path:
    """Sixteen ships with labels, and four others of which the test asks."""
    rows = []
    for ship in range(1, 17):
        for kind in ("RGB", "SAR"):
            for view in (0, 1):
                rows.append([write_ship(tmp_path / "chips", ship, view, kind).name, f"vessel {ship}"])
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "label"], *rows])
    for ship in range(101, 105):
        write_ship(tmp_path / "test" / "q", ship, 0, "SAR").rename(tmp_path / "test" / "q" / f"ask {ship} SAR.png")
        for view in (0, 1):
            name = f"found {ship} {view}.png"
            write_ship(tmp_path / "test" / "g", ship, view, "RGB").rename(tmp_path / "test" / "g" / name)
    words = settings()
    lines = [f"  {key.partition('.')[2]}: {value}" for key, value in zip(words[::2], words[1::2])]
    sections: dict[str, list[str]] = {}
    for key, line in zip(words[::2], lines):
        sections.setdefault(key.partition(".")[0], []).append(line)
    text = "\n".join(f"{section}:\n" + "\n".join(own) for section, own in sections.items())
    (tmp_path / "tiny.yml").write_text(text)
    return tmp_path


def in_this_process(monkeypatch) -> list[str]:
    """Let the contest call programs in this process; returns the list of what it calls."""
    called = []

    def start(program: str, *words: object, may_skip: bool = False) -> bool:
        called.append(program)
        importlib.import_module(program.removesuffix(".py")).main([str(word) for word in words])
        return True

    monkeypatch.setattr(contest, "start_program", start)
    return called


def run_contest(files: Path, *words: str) -> None:
    places = ["--csv", files / "train.csv", "--images", files / "chips", "--query", files / "test" / "q"]
    places += ["--gallery", files / "test" / "g", "--column", "image=filename", "--column", "ship=label"]
    places += ["--config", files / "tiny.yml", "--output", files / "out", "--validation", "0.3"]
    contest.main([*map(str, places), *words, "SOLVER.MAX_EPOCHS", "1", "SOLVER.EVAL_PERIOD", "1"])


def test_a_table_becomes_a_prediction_and_what_is_done_is_not_done_again(files, monkeypatch, capsys):
    called = in_this_process(monkeypatch)
    run_contest(files, "--seeds", "1,2", "--top-k", "5")
    each = ["train.py", "test.py", "test.py", "tools.rank"]
    assert called == ["tools.import_dataset", *each, *each]
    told = json.loads((files / "out" / "prediction.json").read_text())
    assert sorted(told) == [f"ask {ship} SAR.png" for ship in range(101, 105)]
    gallery = {f"found {ship} {view}.png" for ship in range(101, 105) for view in (0, 1)}
    assert all(len(set(found)) == 5 and set(found) <= gallery for found in told.values())
    rows = (files / "out" / "contest.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["tiny_1", "tiny_2"]
    del called[:]
    run_contest(files, "--seeds", "1,2")
    assert called == ["tools.rank", "tools.rank"]
    assert all(set(found) == gallery for found in json.loads((files / "out" / "prediction.json").read_text()).values())
    assert "4 queries, the rankings of 2 model(s) fused" in capsys.readouterr().out


def test_re_ranking_is_taken_only_where_it_is_shown_to_pay():
    plain = [Outcome(f"q{ship}", ship, 0.3, 3) for ship in range(40)]
    better = [Outcome(f"q{ship}", ship, 0.6 if ship % 4 else 0.3, 1) for ship in range(40)]
    unclear = [Outcome(f"q{ship}", ship, 0.9 if ship < 2 else 0.28, 1) for ship in range(40)]
    for outcomes, taken in ((better, "True"), (unclear, "False"), (plain, "False")):
        words, row = contest.choose_ranking("m", PLAIN, compare_outcomes(plain, outcomes, "mAP"))
        assert words == ["TEST.RE_RANKING", taken] and row[-1] == ("re-ranked" if taken == "True" else "plain")


def test_wrong_calls_end_before_any_work(files):
    with pytest.raises(UsageError, match="--validation a share"):
        run_contest(files, "--validation", "1.5")
    with pytest.raises(UsageError, match="two --config files are called tiny"):
        run_contest(files, "--config", str(files / "tiny.yml"))
    with pytest.raises(UsageError, match=r"no key SOLVER\.NO_SUCH"):
        run_contest(files, "SOLVER.NO_SUCH", "1")
    assert not (files / "out").exists()
    (files / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"tools\.import_dataset ended with status 1; see above"):
        run_contest(files)
