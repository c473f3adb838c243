"""Fusing rankings: the sum by hand, both formats, and files that are refused by name."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.records import DISTRACTOR, Chip, Modality
from tests.commands import call, write_file
from tools import fuse_results as command
from tools import rank
from tools.fuse_results import fuse_rankings, read_rankings


def names(fused) -> dict[str, list[str]]:
    return {query: [name for name, _ in places] for query, places in fused.items()}


def test_scores_worked_by_hand():
    fused = fuse_rankings([{"q": ["a", "b", "c"]}, {"q": ["c", "a"]}, {"q": ["d", "a"]}], constant=1)
    assert [name for name, _ in fused["q"]] == ["a", "c", "d", "b"]
    assert [score for _, score in fused["q"]] == pytest.approx([1 / 2 + 1 / 3 + 1 / 3, 1 / 4 + 1 / 2, 1 / 2, 1 / 3])


def test_the_constant_says_how_much_the_first_place_counts():
    sources = [{"q": ["x", "a", "b", "y"]}, {"q": ["c", "y", "d", "e", "x"]}]
    assert names(fuse_rankings(sources, constant=0))["q"][0] == "x"  # 1 + 1/5 against 1/4 + 1/2
    many = [{"q": ["a", "b"]}, {"q": ["c", "b"]}]
    assert names(fuse_rankings(many))["q"][0] == "b"  # twice second outweighs once first


@given(st.permutations(list("abcdef")), st.integers(2, 4))
def test_a_ranking_fused_with_itself_is_itself(order, copies):
    assert names(fuse_rankings([{"q": order}] * copies)) == {"q": list(order)}


@given(st.lists(st.permutations(list("abcdef")), min_size=2, max_size=4))
def test_every_picture_keeps_one_place_and_scores_do_not_depend_on_the_order_of_the_files(orders):
    sources = [{"q": order} for order in orders]
    forth, back = fuse_rankings(sources)["q"], fuse_rankings(sources[::-1])["q"]
    assert sorted(name for name, _ in forth) == list("abcdef")
    assert dict(back) == pytest.approx(dict(forth))


def test_of_equal_scores_the_first_file_decides():
    assert names(fuse_rankings([{"q": ["b", "a"]}, {"q": ["a", "b"]}])) == {"q": ["b", "a"]}


@pytest.fixture
def written(tmp_path) -> dict[str, Path]:
    """One ranking in both formats, as tools.rank writes them, and another one."""
    query = Chip(Path("who, exactly.png"), DISTRACTOR, Modality.SAR, "query")
    gallery = [Chip(Path(f"{name}.png"), DISTRACTOR, Modality.OPTICAL, "gallery") for name in "abcdefghijkl"]
    lists = [rank.RankedList(query, tuple(gallery), tuple(range(12)))]
    called = {chip.path: chip.path.name for chip in (query, *gallery)}
    return {
        "csv": write_file(tmp_path / "ranking.csv", rank.format_lists(lists, called, called)),
        "json": write_file(tmp_path / "prediction.json", json.dumps(rank.prediction(lists, called, called))),
        "other": write_file(tmp_path / "other.json", json.dumps({"who, exactly.png": ["b.png", "z.png"]})),
    }


def test_both_formats_hold_the_same_ranking(written):
    assert read_rankings(written["csv"]) == read_rankings(written["json"])
    assert read_rankings(written["csv"])["who, exactly.png"][9:] == ["j.png", "k.png", "l.png"]  # by number, not by letters


def test_the_command_writes_both_formats(written, tmp_path):
    ended = call(command.main, written["csv"], written["other"], "--output", tmp_path / "out", "--top-k", 3)
    assert ended.status == 0, ended.err
    assert "1 queries fused from 2 files" in ended.out
    fused = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert fused == {"who, exactly.png": ["b.png", "a.png", "z.png"]}
    with (tmp_path / "out" / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["gallery"]) for row in rows] == [("1", "b.png"), ("2", "a.png"), ("3", "z.png")]
    assert float(rows[0]["score"]) == pytest.approx(1 / 62 + 1 / 61)
    assert read_rankings(tmp_path / "out" / "ranking.csv") == fused  # can be fused again


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("bad.json", "{", "not valid JSON"),
        ("bad.json", "[1]", "no prediction.json"),
        ("bad.json", '{"q": "a"}', "no prediction.json"),
        ("bad.json", '{"q": [1]}', "no prediction.json"),
        ("bad.json", "{}", "holds no query"),
        ("bad.json", '{"q": ["a", "b", "a"]}', "ranks a twice for q"),
        ("bad.json", '{"other": ["a"]}', "does not rank"),
        ("bad.csv", "", "no ranking.csv"),
        ("bad.csv", "query,rank,gallery\n", "holds no query"),
        ("bad.csv", "query,rank,gallery\nq,first,a\n", "line 2: the rank is 'first'"),
        ("bad.csv", "query,rank,gallery\nq\n", "line 2: the rank is None"),
    ],
)
def test_wrong_files_are_refused_by_name(written, tmp_path, name, text, said):
    bad = write_file(tmp_path / name, text)
    ended = call(command.main, written["csv"], bad, "--output", tmp_path / "out")
    assert ended.status == 1
    assert said in ended.sentence and name in ended.sentence
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_refused_by_name(written, tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"query,caf\xe9")
    for name in ("missing.csv", "latin.csv"):
        ended = call(command.main, written["csv"], tmp_path / name)
        assert ended.status == 1 and name in ended.sentence


@pytest.mark.parametrize("wrong", [[], ["--constant", "-1"], ["--constant", "nan"], ["--top-k", "-2"]])
def test_wrong_calls_end_in_one_sentence(written, wrong):
    files = [written["csv"], written["json"]] if wrong else [written["csv"]]
    assert call(command.main, *files, *wrong).status == 2


def test_help_has_an_example():
    ended = call(command.main, "--help")
    assert ended.status == 0
    assert "example:\n  python -m tools.fuse_results " in ended.out
