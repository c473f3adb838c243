"""results.json: the file is the same to the byte as ever, and comes back as the records that it was written from."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from processor.ranking.evaluation import Ranking, counting_rules
from processor.ranking.intervals import Interval
from processor.ranking.results import Evaluation, Outcome, Results, Score, read_results, write_results
from processor.selection import Selection
from utils.errors import DataError

WRITTEN = Path(__file__).parent / "golden" / "results.json"
"""Written by the program before the records had a module of their own, and weights said themselves how they were chosen."""


def interval(mean, low, high):
    return Interval(mean, low, high, 0.95, 2, 2)


def score(mean, ends, precision, rank):
    rates = interval(0.5, 0.0945, 0.9055), interval(1.0, 0.3424, 1.0), interval(1.0, 0.3424, 1.0)
    outcomes = (
        Outcome("0101_s01c0_RGB.tif", 101, 1.0, 1),
        Outcome("0102_船_SAR.tif", 102, precision, rank),
        Outcome("0103_s01c0_SAR.tif", 103, None, 0),
    )
    return Score(mean, 0.5, 1.0, 1.0, 3, 2, 14, 1, 1 / 7, interval(mean, *ends), *rates, outcomes)


PLAIN, FUSED = score(2 / 3, (0.1234567890123, 0.9), 1 / 3, 3), score(0.75, (0.2, 0.97), 0.5, 2)
RANKING = Ranking(expansion={"count": 4, "alpha": 2.0}, reranking={"k1": 20, "k2": 6, "lambda_value": 0.3})
RESULTS = Results(
    weights={"path": "logs/best_model_mAP.pth", "sha256": "ab" * 32},
    selection=Selection(7, "mAP", 0.25, "test", 0.0, 1),
    tuning=["TEST.FUSION_TAU 0.3 chosen on validation ships"],
    data={"root": "data", "images": 20, "sha256": "cd" * 32},
    counting=counting_rules(RANKING),
    tau=0.02,
    samples_per_image=2,
    protocols={"ALL": Evaluation(PLAIN, FUSED), "S2O": Evaluation(FUSED)},
    environment={
        **{"command": ["python", "test.py"], "seed": 1234, "commit": None, "device": "cpu", "processes": 1},
        "packages": {"torch": "2.15.0"},
    },
)


def test_the_file_is_the_same_to_the_byte(tmp_path):
    write_results(tmp_path / "results.json", RESULTS)
    expected = json.loads(WRITTEN.read_text(encoding="utf-8"))
    chosen = expected["selection"]
    assert chosen.pop("sha256") == "ab" * 32, "of the weights, which now hold the rest"
    chosen |= {"root": "", "images": ""}
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == json.dumps(expected, indent=2, ensure_ascii=False) + "\n"


def test_what_is_read_is_what_was_written():
    found = read_results(WRITTEN)
    assert found == RESULTS
    assert list(found.scores) == [("ALL", "plain"), ("ALL", "fused"), ("S2O", "plain")]
    assert found.scores["ALL", "fused"] == FUSED


def test_results_without_a_selection_come_back_too(tmp_path):
    write_results(tmp_path / "results.json", replace(RESULTS, selection=None))
    assert read_results(tmp_path / "results.json").selection is None


def damaged(change) -> str:
    content = json.loads(WRITTEN.read_text(encoding="utf-8"))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *[
            (lambda content, name=field.name: content.pop(name), field.name)
            for field in fields(Results)
            if field.default is MISSING
        ],
        *[
            (lambda content, name=field.name: content["protocols"]["ALL"]["fused"].pop(name), field.name)
            for field in fields(Score)
        ],
        (lambda content: content["protocols"]["S2O"].pop("fused"), "fused"),
        (lambda content: content.update(tau="0.02"), "tau"),
        (lambda content: content["protocols"]["ALL"]["plain"].update(mAP=1.5), "protocols.ALL.plain.mAP"),
        (lambda content: content["protocols"]["ALL"]["plain"].update(R1_interval=[0.1]), "R1_interval|unpack"),
        (lambda content: content["protocols"]["ALL"]["plain"].update(R1_interval=["0", 1]), "R1_interval.low"),
        (lambda content: content["protocols"]["S2O"]["plain"]["per_query"][0].update(ship="5"), "per_query.0.ship"),
        (lambda content: content["selection"].update(score=None), "selection.score"),
    ],
)
def test_what_is_damaged_is_refused_by_the_field(tmp_path, change, field):
    path = tmp_path / "results.json"
    path.write_text(damaged(change), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert any(word in str(caught.value) for word in field.split("|")), caught.value


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_what_is_no_results_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json is no results\.json of this test\.py"):
        read_results(tmp_path / "a.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "no.json")
