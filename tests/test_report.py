"""tools.report and the page that train.py and test.py leave: what it holds, against results.json, and what it survives."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_command
import train as train_command
from model.build import build_model
from processor.report import page
from processor.report.listing import read_lists
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from tools import report
from utils.checkpoint import save


def write_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save(path, build_model(tiny_cfg(), 5).state_dict())
    return path


def run_test(data: Path, weights: Path, output: Path, **changes) -> None:
    values = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": output, "TEST__WEIGHT": weights, "TEST__REPORT": True}
    ended = call(test_command.main, *settings(**values | changes))
    assert ended.status == 0, ended.err


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, test_ships=6, views=2)


@pytest.fixture(scope="module")
def samples(data, tmp_path_factory) -> Path:
    """Two generated pictures of each optical query, in BBDM's layout."""
    folder = tmp_path_factory.mktemp("samples")
    for chip in sorted((data / "HOSS" / "query").glob("*_RGB*")):
        with Image.open(chip) as image:
            size = image.size
        (folder / chip.stem).mkdir()
        for k in range(2):
            Image.new("RGB", size, (40 * k, 40, 40)).save(folder / chip.stem / f"output_{k}.png")
    return folder


@pytest.fixture(scope="module")
def runs(data, samples, tmp_path_factory) -> list[Path]:
    """Two tests, by different weights; the first one fused, and in the folder of a training with a name that is no HTML."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = folder / "a <b>&", folder / "second"
    values = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": first, "TEST__REPORT": True, "SOLVER__MAX_EPOCHS": 2}
    ended = call(train_command.main, *settings(**values, SOLVER__EVAL_PERIOD=1))
    assert ended.status == 0, ended.err
    run_test(data, first / "best_model_mAP.pth", first, DATASETS__QUERY_ADD_DIR=samples)
    run_test(data, write_weights(folder / "second.pth", 2), second)
    return [first, second]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def data_of(path: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text_of(path), re.DOTALL)[1])


def test_a_training_leaves_a_page_with_its_curves(data, tmp_path):
    values = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": tmp_path, "TEST__REPORT": True, "SOLVER__MAX_EPOCHS": 1}
    ended = call(train_command.main, *settings(**values))
    assert ended.status == 0, ended.err
    text = text_of(tmp_path / "report.html")
    for title in ("Loss", "Accuracy on training batches", "Learning rate", "mAP of each protocol", "R1 of each protocol"):
        assert f">{title}<" in text.replace("\n", "")
    assert 'id="data"' not in text  # nothing was ranked


def test_the_page_asks_nothing_of_any_network(runs):
    text = text_of(runs[0] / "report.html")
    assert not re.search(r"""(src|href|srcset)\s*=\s*["'](?!data:|#)""", text.replace('xlink:href="#', ""))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "&lt;b&gt;" in text
    assert "<b>&" not in text


def test_sheets_hold_what_results_tell(runs):
    found = data_of(runs[0] / "report.html")
    protocols = json.loads(text_of(runs[0] / "results.json"))["protocols"]
    keys = {(name, kind) for name, kinds in protocols.items() for kind, score in kinds.items() if score}
    assert {(one["protocol"], one["kind"]) for one in found["sets"]} == keys
    assert ("O2S", "fused") in keys
    for one in found["sets"]:
        score = protocols[one["protocol"]][one["kind"]]
        outcomes = {outcome["query"]: outcome for outcome in score["per_query"]}
        assert len(one["queries"]) == len(outcomes)
        for query in one["queries"]:
            image = found["images"][query["q"]]
            outcome = outcomes[image["n"]]
            assert (query["first"], query["ap"]) == (outcome["first_match"], outcome["AP"])
            ranks = [rank for rank, place in enumerate(query["near"], 1) if found["images"][place]["s"] == image["s"]]
            assert ranks[:1] == ([query["first"]] if 0 < query["first"] <= len(query["near"]) else [])
            assert found["images"][query["match"]]["s"] == image["s"]


def test_the_worst_query_comes_first(runs):
    queries = data_of(runs[0] / "report.html")["sets"][0]["queries"]
    assert [(-query["first"], query["ap"]) for query in queries] == sorted((-query["first"], query["ap"]) for query in queries)
    assert queries[0]["first"] > 1


def test_pictures_are_small_jpegs_of_the_chips_and_their_samples(runs):
    found = data_of(runs[0] / "report.html")
    asking = [found["images"][query["q"]] for query in found["sets"][0]["queries"]]
    assert {len(image["g"]) for image in asking if image["m"] == "optical"} == {2}
    for key in [key for image in found["images"] for key in (image["p"], *image["g"])]:
        kind, content = found["pictures"][key].split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.width <= 96
            assert picture.height <= 120
    strips = text_of(runs[0] / "report.html").count('<div class="strip">')
    assert strips == sum(bool(image["g"]) for image in asking)


def test_attention_is_shown_of_queries_and_their_nearest_pictures(runs):
    found = data_of(runs[0] / "report.html")
    grids = found["rollouts"][runs[0].name]
    for query in found["sets"][0]["queries"]:
        for place in (query["q"], query["near"][0]):
            grid = grids[str(place)]
            values = base64.b64decode(grid["bytes"])
            assert (grid["rows"], grid["columns"], len(values)) == (2, 2, 4)
            assert (min(values), max(values)) == (0, 255)


def test_several_runs_stand_side_by_side_with_the_settings_that_differ(runs, tmp_path):
    ended = call(report.main, *runs, "--output", tmp_path / "both.html", "--attention", 0)
    assert ended.status == 0, ended.err
    found, text = data_of(tmp_path / "both.html"), text_of(tmp_path / "both.html")
    assert [one["run"] for one in found["sets"] if (one["protocol"], one["kind"]) == ("ALL", "plain")] == ["a <b>&", "second"]
    assert found["rollouts"] == {}
    differences = re.search(r'id="differences".*?</section>', text, re.DOTALL)[0]
    assert "SOLVER.EVAL_PERIOD" in differences
    assert "TEST.NECK_FEAT" not in differences
    assert len({image["n"] for image in found["images"]}) == len(found["images"])  # each once for both


def test_many_queries_go_on_on_further_pages(runs, tmp_path):
    ended = call(report.main, runs[1], "--output", tmp_path / "r.html", "--page-queries", 5, "--attention", 0)
    assert "3 pages" in ended.out
    pages = [tmp_path / name for name in ("r.html", "r-2.html", "r-3.html")]
    names = [[one["images"][query["q"]]["n"] for query in one["sets"][0]["queries"]] for one in map(data_of, pages)]
    assert [len(own) for own in names] == [5, 5, 2]
    assert len({name for own in names for name in own}) == 12
    assert 'href="r-3.html"' in text_of(pages[0])


def test_a_page_of_moved_data_says_so_or_is_told_where(runs, data, tmp_path):
    shutil.copytree(runs[1], tmp_path / "run")
    lists = read_lists(tmp_path / "run" / "ranking.npz")
    content = dict(np.load(tmp_path / "run" / "ranking.npz"))
    facts = json.loads(content["facts"].item())
    content["facts"] = np.array(json.dumps(facts | {"root": "/gone", "weights": "/gone.pth"}))
    np.savez(tmp_path / "run" / "ranking.npz", **content)
    ended = call(report.main, tmp_path / "run")
    assert ended.status == 0, ended.err
    assert f"{len(lists.images)} of {len(lists.images)} pictures of the page cannot be read" in ended.err
    assert "its weights are not at hand" in text_of(tmp_path / "run" / "report.html")
    call(report.main, tmp_path / "run", "--data", data)
    assert len(data_of(tmp_path / "run" / "report.html")["pictures"]) == len(lists.images)


def test_a_test_of_other_weights_in_the_folder_has_a_page_of_its_own(runs, data, tmp_path):
    shutil.copytree(runs[1], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".txt"}
    run_test(data, write_weights(tmp_path / "third.pth", 3), tmp_path / "run")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    found = [path.name.split("_")[0] for path in (tmp_path / "run").glob("*third*")]
    assert sorted(found) == ["ranking", "report", "results"]
    assert "third" in text_of(next((tmp_path / "run").glob("report_third*")))


def test_lists_of_an_earlier_test_are_not_shown(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    shutil.copy(runs[1] / "results.json", tmp_path / "run")
    assert call(report.main, tmp_path / "run").status == 0
    assert 'id="data"' not in text_of(tmp_path / "run" / "report.html")


def test_a_page_that_cannot_be_made_stops_no_run(data, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("no such colour")

    monkeypatch.setattr(page, "draw_charts", fail)
    values = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": tmp_path / "run", "TEST__REPORT": True}
    ended = call(test_command.main, *settings(**values, TEST__WEIGHT=write_weights(tmp_path / "w.pth", 1)))
    assert ended.status == 0
    assert "no report.html was written: 'no such colour'" in ended.err
    assert (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds neither metrics.jsonl nor results.json"),
        ({"results.json": "{}"}, "is no results.json"),
        ({"metrics.jsonl": '{"kind": "epoch", "epoch": 1, "loss": 1.0}\n{"kind": "ep'}, ""),
    ],
)
def test_folders_that_are_no_runs_are_refused_by_name(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ended = call(report.main, tmp_path)
    assert ended.status == (1 if said else 0), ended.err
    if said:
        assert said in ended.sentence
        assert str(tmp_path) in ended.sentence


def test_tuned_settings_have_a_curve(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    figures = {"mAP": 0.4, "mAP_interval": [0.3, 0.5]}
    trials = [{"store": "s", "steps": 5, "K": k, "tau": tau, "ALL": figures} for k in (1, 2) for tau in (0.01, 0.1)]
    digest = json.loads(text_of(runs[0] / "results.json"))["weights"]["sha256"]
    content = {"sha256": digest, "split": "test", "settings": [], "trials": trials}
    (tmp_path / "run" / "best_model_mAP.tuning.json").write_text(json.dumps(content))
    assert call(report.main, tmp_path / "run", "--attention", 0).status == 0
    assert "mAP of ALL against tau" in text_of(tmp_path / "run" / "report.html")
