"""The demo's commands and its table; what the commands do is tested with each of them."""

import json

import pytest

from configs import load_cfg
from datasets.ships.counts import SIZES
from tests.commands import call
from tools import demo


def results(r1: float, low: float, fused: bool) -> dict:
    plain = {"mAP": r1, "R1": r1, "R1_interval": [low, 1.0], "chance": 0.01, "queries_counted": 50}
    return {"protocols": {name: {"plain": plain, "fused": plain if fused else None} for name in ("ALL", "O2S", "S2O")}}


def gap() -> dict:
    """Pictures that pay in S2O alone, and no gap that is shown in ALL."""

    def row(name, mAP, low, closed):
        interval = None if closed is None else [closed - 0.1, closed + 0.1]
        return {
            "row": name,
            "mAP": mAP,
            "R1": mAP,
            "gain_interval": [low, 0.2],
            "gap_closed": closed,
            "gap_closed_interval": interval,
        }

    names = ("plain", "fused", "common space: lda", "oracle: a spare SAR view")
    return {
        protocol: [row(name, 0.1 * (1 + place), low, closed) for place, name in enumerate(names)]
        for protocol, low, closed in (("ALL", -0.1, None), ("O2S", 0.0, 0.0), ("S2O", 0.01, 0.25))
    }


@pytest.fixture
def commands(monkeypatch) -> list[tuple[str, ...]]:
    """Note the demo's commands instead of running them; weights and results are written where they would be."""
    run = []

    def record(*arguments: str) -> None:
        run.append(arguments)
        if arguments[0] == "train.py" or arguments[:2] == ("-m", "bbdm.train"):
            folder = demo.Path(arguments[arguments.index("OUTPUT_DIR") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("best_model_mAP.pth", "bridge_1.pth", "bridge_3.pth", "bridge_150.pth"):
                (folder / name).write_bytes(b"weights")
        if arguments[0] == "test.py":
            folder = demo.Path(arguments[arguments.index("OUTPUT_DIR") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            untrained = "untrained" in folder.name
            content = results(0.02 if untrained else 0.4, 0.0 if untrained else 0.3, fused=not untrained)
            (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")

        if arguments[:2] == ("-m", "tools.make_dataset"):
            (demo.Path(arguments[-1]) / "spare").mkdir(parents=True)
        if arguments[:2] == ("-m", "tools.oracle"):
            demo.Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps({"protocols": gap()}), encoding="utf-8")

    monkeypatch.setattr(demo, "_command", record)
    return run


def test_procedural_demo_draws_trains_generates_and_tests(commands, tmp_path):
    ended = call(demo.main, "--output", tmp_path)
    assert ended.status == 0, ended.err
    names = [arguments[1] if arguments[0] == "-m" else arguments[0] for arguments in commands]
    assert names == ["tools.make_dataset", "train.py", "bbdm.train", "bbdm.sample", "test.py", "test.py", "tools.oracle"]
    assert "fused, tau tuned  20.0 / 20.0" in ended.out
    assert "S2O: pictures 25 % [15, 35], the space 25 % [15, 35]" in ended.out
    assert "ALL: pictures - (no gap is shown)" in ended.out
    assert "verdict: this bridge's pictures pay in S2O\n" in ended.out
    assert ended.out.count("lies above the untrained network's R1") == 3
    assert "40.0 / 40.0" in ended.out
    fused, plain = commands[-3], commands[-2]
    assert "DATASETS.QUERY_ADD_DIR" in fused
    assert "DATASETS.QUERY_ADD_DIR" not in plain


def test_demo_on_given_chips_draws_nothing(commands, tmp_path):
    assert call(demo.main, "--data", tmp_path / "chips", "--output", tmp_path / "out").status == 0
    assert not any("tools.make_dataset" in arguments for arguments in commands)
    assert all(str(tmp_path / "chips") in arguments for arguments in commands)


def test_demo_stops_where_a_command_fails(tmp_path):
    ended = call(demo.main, "--data", tmp_path / "nothing", "--output", tmp_path / "out")
    assert ended.status == 1
    assert "ended with status 1" in ended.sentence


def test_the_table_says_where_nothing_was_learned(tmp_path):
    for name, content in (("a", results(0.1, 0.05, fused=False)), ("b", results(0.06, 0.0, fused=False))):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert demo._summary(tmp_path / "a", tmp_path / "b").count("does not lie above") == 3


def test_the_quick_demo_takes_the_same_path_with_less_of_everything(commands, tmp_path):
    ended = call(demo.main, "--quick", "--output", tmp_path)
    assert ended.status == 0, ended.err
    names = [arguments[1] if arguments[0] == "-m" else arguments[0] for arguments in commands]
    assert names == ["tools.make_dataset", "train.py", "bbdm.train", "bbdm.sample", "test.py", "test.py"]
    usual = {name: load_cfg(path) for name, path in (("train.py", demo.REID_CONFIG), ("bbdm.train", demo.BRIDGE_CONFIG))}
    for name, arguments in zip(names, commands):
        assert all("procedural_quick" in word for word in arguments if word.startswith(str(tmp_path)))
        if name in usual:
            overrides = arguments[arguments.index("DATASETS.ROOT_DIR") :]
            assert load_cfg(None, overrides).SOLVER.MAX_EPOCHS < usual[name].SOLVER.MAX_EPOCHS
    assert int(commands[0][commands[0].index("--train-ships") + 1]) < SIZES["tiny"].train.ships
