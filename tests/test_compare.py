"""tools.compare: paired differences by hand, by name, and the files that cannot be compared."""

import csv
import io
import json

import pytest

from processor.ranking.comparison import compare_outcomes, compare_repeats
from processor.ranking.results import Outcome
from tests.commands import call
from tools import compare
from utils.errors import DataError


def outcomes(*values, first=0):
    """One query a ship: AP, first match."""
    return [
        {"query": f"{ship}_a_RGB.tif", "ship": ship, "AP": precision, "first_match": rank}
        for ship, (precision, rank) in enumerate(values, start=first)
    ]


A = outcomes((0.5, 2), (1.0, 1), (0.2, 5), (None, 0))
B = outcomes((1.0, 1), (1.0, 1), (0.1, 9), (None, 0))


INTERVALS = {f"{rate}_interval": [0.1, 0.9] for rate in ("mAP", "R1", "R5", "R10")}
FIGURES = {"mAP": 0.5, "R1": 0.5, "R5": 0.5, "R10": 0.5, "queries": 4, "queries_counted": 3, "distractors": 0, "chance": 0.1}
RERANKED = {"k1": 20, "k2": 6, "lambda_value": 0.3}


def content(plain, fused=None, *, gallery=20, split=None, protocol="ALL", images="d", **rules):
    def figures(per_query):
        return None if per_query is None else {**FIGURES, **INTERVALS, "per_query": per_query, "gallery": gallery}

    chosen = {"sha256": "w", "epoch": 1, "metric": "mAP", "score": 0.5, "split": split, "fraction": 0.0, "seed": 1}
    counting = {"same_modality_gallery": True, "queries_without_match": "left out", "query_expansion": None, "reranking": None}
    return {
        "weights": {"path": "w.pth", "sha256": "w"},
        "selection": chosen if split else None,
        "tuning": [],
        "data": {"root": "data", "images": 9, "sha256": images},
        "counting": {**counting, "interval_level": 0.95, **rules},
        "tau": 0.02,
        "samples_per_image": 0,
        "protocols": {protocol: {"plain": figures(plain), "fused": figures(fused)}},
        "environment": {},
    }


def write(path, *args, **changes):
    path.write_text(json.dumps(content(*args, **changes)))
    return path


def test_a_difference_by_hand():
    first, second = ([Outcome(**value) for value in values] for values in (A, B))
    found = compare_outcomes(first, second[::-1], "mAP")
    assert found.first == pytest.approx(1.7 / 3)
    assert found.second == pytest.approx(2.1 / 3)
    assert found.difference.mean == pytest.approx(0.4 / 3)
    assert found.difference.low < 0 < found.difference.high
    assert found.verdict == "no difference shown"
    assert (found.won, found.lost) == (("0_a_RGB.tif",), ("2_a_RGB.tif",))
    hits = compare_outcomes(first, second, "R1")
    assert (hits.won, hits.lost) == (("0_a_RGB.tif",), ())
    turned = compare_outcomes(second, first, "mAP")
    assert (turned.difference.low, turned.difference.high) == pytest.approx((-found.difference.high, -found.difference.low))


def test_many_queries_won_are_a_difference():
    first = [Outcome(**value) for value in outcomes(*[(0.2, 5)] * 60)]
    second = [Outcome(**value) for value in outcomes(*[(0.9, 1)] * 60)]
    assert compare_outcomes(first, second, "mAP").verdict == "better"
    assert compare_outcomes(second, first, "R1").verdict == "worse"
    assert compare_outcomes(first, first, "mAP").verdict == "no difference shown"


def test_the_largest_change_is_named_first():
    first = [Outcome(**value) for value in outcomes((0.1, 5), (0.1, 5))]
    second = [Outcome(**value) for value in outcomes((0.2, 4), (0.9, 1))]
    assert compare_outcomes(first, second, "mAP").won == ("1_a_RGB.tif", "0_a_RGB.tif")


def test_repeated_queries_cannot_be_paired():
    twice = [Outcome("a", 1, 0.5, 2)] * 2
    with pytest.raises(DataError, match="twice"):
        compare_outcomes(twice, twice, "mAP")


def test_two_files_are_compared_by_kind_and_each_with_itself(tmp_path):
    ours, theirs = write(tmp_path / "a.json", A, B, split="test"), write(tmp_path / "b.json", B, A)
    ended = call(compare.main, ours, theirs, "--json", tmp_path / "out.json")
    assert ended.status == 0, ended.err
    lines = json.loads((tmp_path / "out.json").read_text())
    found = {(line["sides"], line["metric"]): line for line in lines}
    assert found["plain: A to B", "mAP"]["difference"] == pytest.approx(0.4 / 3)
    assert found["fused: A to B", "mAP"]["difference"] == pytest.approx(-0.4 / 3)
    assert found["A: plain to fused", "R1"]["won"] == ["0_a_RGB.tif"]
    assert found["B: plain to fused", "R1"]["lost"] == ["0_a_RGB.tif"]
    assert "ALL, plain: A to B, R1 won: 0_a_RGB.tif" in ended.out
    assert "A's weights were chosen on the test split" in ended.out
    assert "+13.3" in ended.out


def test_one_file_compares_plain_with_fused(tmp_path):
    ended = call(compare.main, write(tmp_path / "a.json", A, B))
    assert ended.status == 0, ended.err
    assert "A: plain to fused" in ended.out
    ended = call(compare.main, write(tmp_path / "b.json", A))
    assert ended.status == 1
    assert "b.json has no fused figures" in ended.sentence


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (content(B[:3]), ["same queries", "3_a_RGB.tif"]),
        (content(outcomes(*[(0.5, 1)] * 4, first=7)), ["same queries", "0_a_RGB.tif", "10_a_RGB.tif"]),
        (content(B, same_modality_gallery=False), ["TEST.SAME_MODALITY_GALLERY"]),
        (content(B, gallery=21), ["20 gallery images", "21"]),
        (content(B, protocol="O2S"), ["no protocol in common"]),
        (content(outcomes(*[(None, 0)] * 4)), ["no query counts in both"]),
        ({"protocols": {"ALL": {"plain": {"mAP": 0.5}, "fused": None}}}, ["outcome of each query", "b.json"]),
        ([], ["results.json of this test.py", "b.json"]),
        (content([vars(Outcome("0_a_RGB.tif", 0, "0.5", 1))]), ["outcome of each query", "b.json"]),
        (content([vars(Outcome("0_a_RGB.tif", 0, 5.0, 1))]), ["outcome of each query", "b.json"]),
        (content([vars(Outcome("0_a_RGB.tif", 0, 0.5, "1"))]), ["outcome of each query", "b.json"]),
        (content([vars(Outcome(["a"], 0, 0.5, 1))]), ["outcome of each query", "b.json"]),
        (content(B, queries_without_match="count as lost"), ["queries_without_match"]),
        (content(B) | {"selection": "best"}, ["selection", "b.json"]),
        (content(B, interval_level="0.95"), ["level", "b.json"]),
        (content(B) | {"protocols": {"ALL": {"plain": {"mAP": 0.5}, "fused": None}}}, ["outcome of each query", "b.json"]),
    ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path, second, words):
    other = tmp_path / "b.json"
    other.write_text(json.dumps(second))
    ended = call(compare.main, write(tmp_path / "a.json", A), other)
    assert ended.status == 1
    assert all(word in ended.sentence for word in words), ended.sentence


def test_counting_rules_that_differ_are_refused_or_named(tmp_path):
    """A re-ranked result may be compared with a plain one, but not in silence."""
    plain = write(tmp_path / "a.json", A)
    ended = call(compare.main, plain, write(tmp_path / "b.json", B, reranking=RERANKED))
    assert ended.status == 0, ended.err
    assert "figures differ by re-ranking too: A's without and B's with k1 20, k2 6, lambda_value 0.3" in ended.out
    ended = call(compare.main, write(tmp_path / "c.json", B, query_expansion={"count": 4, "alpha": 2.0}), plain)
    assert "figures differ by query expansion too: A's with count 4, alpha 2 and B's without" in ended.out
    assert "differ" not in call(compare.main, plain, write(tmp_path / "d.json", B)).out.replace("difference", "")


def test_other_test_images_are_told(tmp_path):
    ended = call(compare.main, write(tmp_path / "a.json", A), write(tmp_path / "b.json", B, images="e"))
    assert "not the same files" in ended.out


def test_wrong_calls(tmp_path):
    assert "no.json" in call(compare.main, tmp_path / "no.json").sentence
    assert call(compare.main).status == 2
    assert call(compare.main, *["a"] * 27).status == 2
    assert call(compare.main, "a", "--names", "0").status == 2
    (tmp_path / "metrics.jsonl").touch()
    assert "has no results.json; test its weights" in call(compare.main, tmp_path).sentence
    assert "example" in call(compare.main, "--help").out


def test_another_space_is_said(tmp_path):
    first, second = write(tmp_path / "a.json", A), tmp_path / "b.json"
    space = {"kind": "cca", "shrinkage": 0.05, "dimensions": 48, "ships": 9}
    second.write_text(json.dumps(content(B) | {"common_space": space}))
    ended = call(compare.main, first, second)
    assert "the space too: A's features are compared as they are and B's features are compared in the common" in ended.out
    assert "the space too" not in call(compare.main, second, second).out


C = outcomes((0.5, 2), (1.0, 1), (0.5, 2), (None, 0))


@pytest.fixture
def runs(tmp_path):
    """Three folders of runs that differ in two settings; the second and third were repeated with two seeds."""
    settings = {"a": "MODEL: {MIE: false}\nSOLVER: {BASE_LR: 0.1}\n", "b": "MODEL: {MIE: true}\nSOLVER: {BASE_LR: 0.1}\n"}
    settings["c"] = "MODEL: {MIE: true}\nSOLVER: {BASE_LR: 0.2}\n"
    folders = []
    for name, values in (("a", [A]), ("b", [A, B]), ("c", [C, C])):
        folder = tmp_path / name
        inner = [folder / f"seed_{seed}" for seed in range(len(values))] if len(values) > 1 else [folder]
        for own, value in zip(inner, values):
            own.mkdir(parents=True)
            write(own / "results.json", value)
            (own / "config.yml").write_text(f"OUTPUT_DIR: {own}\n{settings[name]}")
        if len(values) > 1:
            (folder / "repeat.json").write_text("{}")
        folders.append(folder)
    return folders


def test_runs_and_repeats_over_seeds_are_compared_with_the_first(runs, tmp_path):
    ended = call(compare.main, *runs, "--json", tmp_path / "out.json")
    assert ended.status == 0, ended.err
    found = {(line["sides"], line["metric"]): line for line in json.loads((tmp_path / "out.json").read_text())}
    assert found.keys() == {(f"plain: A to {other}", metric) for other in "BC" for metric in ("mAP", "R1")}
    assert found["plain: A to B", "mAP"]["difference"] == pytest.approx(0.4 / 3 / 2)  # one seed of two is A itself
    assert found["plain: A to C", "mAP"]["difference"] == pytest.approx(0.1)
    assert found["plain: A to B", "R1"]["second"] == pytest.approx(0.5)
    assert "MODEL.MIE: A False, B True, C True" in ended.out
    assert "SOLVER.BASE_LR: A 0.1, B 0.1, C 0.2" in ended.out
    assert "OUTPUT_DIR" not in ended.out
    assert f"B: {runs[1]}, 2 seeds" in ended.out
    lines = [line for line in ended.out.splitlines() if line.startswith(("plain: A to", "ALL   "))]
    assert len(lines) == 5 and all(len(line) <= 80 for line in lines)
    assert "Kish" not in ended.out and "Kish" in call(compare.main, *runs, "--verbose").out


def test_a_mean_over_seeds_is_their_outcomes_mean():
    first, second, third = ([Outcome(**value) for value in values] for values in (A, B, C))
    found = compare_repeats([first], [second, third], "R1")
    assert (found.first, found.second) == pytest.approx((1 / 3, 0.5))
    assert found.won == ("0_a_RGB.tif",)
    same = compare_repeats([second], [second, second], "mAP")
    assert same.difference.mean == 0
    with pytest.raises(DataError, match="same queries"):
        compare_repeats([first], [second, third[:2]], "mAP")


def test_tables_for_papers_and_spreadsheets(runs):
    markdown = call(compare.main, *runs, "--format", "markdown").out.splitlines()
    assert [cell.strip() for cell in markdown[0].strip("|").split("|")] == [
        "run",
        "MODEL.MIE",
        "SOLVER.BASE_LR",
        "ALL mAP",
        "ALL R1",
    ]
    assert [cell.strip() for cell in markdown[2].strip("|").split("|")] == ["a", "False", "0.1", "50.0", "50.0"]
    last = [cell.strip() for cell in markdown[4].strip("|").split("|")]
    assert last[:3] == ["c (2 seeds)", "True", "0.2"] and "(+10.0, " in last[3]
    latex = call(compare.main, *runs, "--format", "latex").out
    assert "MODEL.MIE" in latex and "BASE\\_LR" in latex and latex.startswith("\\begin{tabular}")
    lines = list(csv.DictReader(io.StringIO(call(compare.main, *runs, "--format", "csv").out)))
    assert [line["seeds"] for line in lines] == ["1", "1", "2", "2", "2", "2"]
    change = next(line for line in lines if line["run"].endswith("c") and line["figure"] == "mAP")
    assert float(change["change"]) == pytest.approx(0.1)
    assert float(change["low"]) < 0.1 < float(change["high"])
    assert (change["SOLVER.BASE_LR"], change["won"], lines[0]["change"]) == ("0.2", "1", "")
