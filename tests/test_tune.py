"""tools.tune: the choice, what it is worth on ships that did not choose, and which split it was made on."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.catalogue import read_hoss
from datasets.records import Modality
from datasets.validation import hold_out
from model.build import build_model
from processor import extraction
from processor.fusion import SampleSet
from processor.ranking.comparison import compare_outcomes
from processor.ranking.evaluation import Ranking
from processor.ranking.intervals import Interval
from processor.ranking.results import Outcome, Score
from processor.ranking.tuning import Trial, choose, choose_on_other_ships, compare_choice, name_steps
from tests.chip_files import write_hoss
from tests.commands import call, chosen_on, settings, tiny_cfg
from tools import tune
from utils.checkpoint import load, save

# The choice


def score_of(precisions, ships=None) -> Score:
    ships = range(len(precisions)) if ships is None else ships
    outcomes = tuple(Outcome(f"{ship}_{n}", ship, value, 1) for n, (ship, value) in enumerate(zip(ships, precisions)))
    nothing = Interval(0, 0, 1, 0.95, 1, 1)
    return Score(0, 0, 0, 0, len(outcomes), len(outcomes), 9, 0, 0, *[nothing] * 4, outcomes)


def trial(name, precisions, ships=None) -> Trial:
    return Trial({"name": name}, {"ALL": score_of(precisions, ships)}, 1.0)


def test_the_best_is_chosen_over_the_ships_that_count():
    trials = [trial("a", [1.0, 0.0, None, 0.2]), trial("b", [0.0, 0.5, None, 0.5])]
    assert choose(trials, protocol="ALL", metric="mAP").setting["name"] == "a"
    assert choose(trials, protocol="ALL", metric="mAP", without={0}).setting["name"] == "b"
    assert choose([trials[0], trials[0]], protocol="ALL", metric="mAP") is trials[0]


def test_no_query_chooses_for_itself():
    """Setting i is right for ship i alone: a choice that looked at the ship would be right, and no other can be."""
    trials = [trial(ship, np.eye(6)[ship].tolist()) for ship in range(6)]
    found = choose_on_other_ships(trials, protocol="ALL", metric="mAP", folds=6)
    assert sorted(outcome.ship for outcome in found["ALL"]) == list(range(6))
    assert [outcome.AP for outcome in found["ALL"]] == [0.0] * 6


def test_many_settings_without_effect_are_not_shown_to_pay():
    draws = np.random.default_rng(0)
    plain = score_of(draws.random(40).tolist())
    trials = [trial(number, draws.random(40).tolist()) for number in range(60)]
    flattered = compare_outcomes(plain.per_query, choose(trials, protocol="ALL", metric="mAP").scores["ALL"].per_query, "mAP")
    honest = compare_choice({"ALL": plain}, trials, protocol="ALL", metric="mAP")["ALL"]
    assert honest.verdict == "no difference shown"
    assert honest.difference.mean < flattered.difference.mean


def test_a_setting_that_helps_every_ship_pays_and_queries_that_do_not_count_stay():
    plain = score_of([0.2] * 30 + [None])
    better = compare_choice({"ALL": plain}, [trial("a", [0.9] * 30 + [None])], protocol="ALL", metric="mAP")["ALL"]
    assert better.verdict == "better"
    assert better.difference.queries == 30


@pytest.mark.parametrize(
    ("steps", "named"), [((), None), ((None,), None), ((50,), 50), ((5, 50), "5 and 50"), ((5, None), "5 and unknown")]
)
def test_steps_of_two_runs_are_both_named(steps, named):
    assert name_steps(SampleSet((), (), (), 1, steps)) == named


@pytest.mark.parametrize(("better", "word"), [(True, "pays"), (False, "harms")])
def test_what_is_recommended_is_what_the_verdict_says(better, word, monkeypatch, capsys):
    """Re-ranking that harms is not recommended, although a setting of it is the best of those tried."""
    low, high = score_of([0.2] * 30), score_of([0.9] * 30)
    before, after = (low, high) if better else (high, low)
    monkeypatch.setattr(tune, "_score_aloud", lambda *_: {"ALL": before})
    setting = {"k1": 20, "k2": 6, "lambda": 0.3}
    monkeypatch.setattr(tune, "try_reranking", lambda *_: [Trial(setting, {"ALL": after}, 1.0)])
    args = tune.build_parser().parse_args(["--rerank"])
    data = read_nothing()
    sections, advice = tune.try_all(data, torch.zeros(1, 2), Ranking(), [], [], [(20, 6, 0.3)], args)
    keys = {"TEST.RE_RANKING": True, "TEST.RE_RANKING_K1": 20, "TEST.RE_RANKING_K2": 6, "TEST.RE_RANKING_LAMBDA": 0.3}
    assert advice == {"settings": [keys] if better else [], "not_recommended": [] if better else [keys]}
    assert f"re-ranking {word}" in capsys.readouterr().out
    assert sections["reranking"]["chosen"] == setting


def read_nothing():
    """Data of no images; what is scored is replaced."""
    return SimpleNamespace(protocols={}, images=[])


# The command


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, weights, samples of the test split and samples of a validation part of 0.4."""
    root = tmp_path_factory.mktemp("tune")
    write_hoss(root / "data", train_ships=10, test_ships=3)
    write_samples(root / "test", read_hoss(root / "data", train=False).images)
    write_samples(root / "val", hold_out(read_hoss(root / "data", test=False).train, fraction=0.4, seed=1234).images)
    torch.manual_seed(0)
    save(root / "weights.pth", build_model(tiny_cfg(), 6).state_dict())
    return root


def write_samples(folder, images):
    folder.mkdir()
    for number, record in enumerate(images):
        if record.modality is Modality.OPTICAL:
            for k in range(3):
                pixels = np.random.default_rng([number, k]).integers(0, 256, (60, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{record.path.stem}_{k}.png")


def tuned(root, *options, **changes):
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "TEST__FEATURE_STORE": root / "kept"}
    return call(tune.main, *options, *settings(**values | changes))


RERANK = ("--rerank", "--k1", "3,5", "--k2", "1", "--lambdas", "0.3")


def test_settings_are_tried_with_one_extraction_on_the_test_split(root, tmp_path, monkeypatch):
    seen = []
    extract = extraction.extract_features
    monkeypatch.setattr(extraction, "extract_features", lambda *args, **options: seen.append(1) or extract(*args, **options))
    options = ("--store", root / "test", "--taus", "0.1,0.5", "--samples", "1,3", *RERANK)
    ended = tuned(root, *options, "--json", tmp_path / "out.json", TEST__FEATURE_STORE=tmp_path / "kept")
    assert ended.status == 0, ended.err
    assert len(seen) == 2
    report = json.loads((tmp_path / "out.json").read_text())
    assert [(t["K"], t["tau"]) for t in report["fusion"]["trials"]] == [(1, 0.1), (1, 0.5), (3, 0.1), (3, 0.5)]
    best = max(report["fusion"]["trials"], key=lambda t: t["ALL"]["mAP"])
    assert report["fusion"]["chosen"] == {key: best[key] for key in ("store", "steps", "K", "tau")}
    assert [(t["k1"], t["k2"]) for t in report["reranking"]["trials"]] == [(3, 1), (5, 1)]
    assert set(report["fusion"]["gain"]) == {"ALL", "O2S", "S2O"}
    assert "chosen on the test split" in report["chosen_on"]
    assert "* chosen" in ended.out
    assert "verdict, mAP" in ended.out
    assert tuned(root, *options, TEST__FEATURE_STORE=tmp_path / "kept").status == 0
    assert len(seen) == 2  # the store has them


def test_figures_are_those_of_test_py(root, tmp_path):
    import test as command

    assert tuned(root, "--store", root / "test", "--taus", "0.3", "--json", tmp_path / "out.json").status == 0
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "OUTPUT_DIR": tmp_path}
    samples = {"DATASETS__QUERY_ADD_DIR": root / "test", "DATASETS__GALLERY_ADD_DIR": root / "test", "TEST__FUSION_TAU": 0.3}
    assert call(command.main, *settings(**values | samples)).status == 0
    tested = json.loads((tmp_path / "results.json").read_text())["protocols"]
    trial = next(t for t in json.loads((tmp_path / "out.json").read_text())["fusion"]["trials"] if t["K"] == 3)
    assert {name: trial[name]["mAP"] for name in tested} == {name: scores["fused"]["mAP"] for name, scores in tested.items()}


def test_validation_ships_choose_where_they_have_samples(root, tmp_path):
    ended = tuned(root, "--store", root / "val", "--taus", "0.1", DATASETS__VAL_FRACTION=0.4)
    assert ended.status == 0, ended.err
    assert "chosen on validation ships, 0.4 of the training set, seed 1234" in ended.out
    assert "the weights do not say" in ended.out
    ended = tuned(root, "--store", root / "test", "--taus", "0.1", DATASETS__VAL_FRACTION=0.4)
    assert "chosen on the test split" in ended.out
    assert "hold no sample of a validation ship" in ended.out


def test_a_validation_sample_that_is_missing_is_named(root, tmp_path):
    shutil.copytree(root / "val", tmp_path / "val")
    missing = sorted((tmp_path / "val").iterdir())[0]
    missing.unlink()
    ended = tuned(root, "--store", tmp_path / "val", "--taus", "0.1", DATASETS__VAL_FRACTION=0.4)
    assert ended.status == 1
    assert missing.stem.rpartition("_")[0] in ended.sentence


def test_a_choice_on_the_test_split_is_printed_with_every_result_made_from_it(root, tmp_path):
    import test as command

    weights = tmp_path / "weights.pth"
    shutil.copy(root / "weights.pth", weights)
    ended = tuned(root, "--store", root / "test", "--taus", "0.3", "--samples", "2", *RERANK, TEST__WEIGHT=weights)
    recorded = json.loads((tmp_path / "weights.tuning.json").read_text())
    assert recorded["settings"] == []  # with three ships nothing is shown to pay
    assert {"TEST.FUSION_TAU": 0.3, "TEST.FUSION_SAMPLES": 2} in recorded["not_recommended"]
    assert "to test with what pays:\n  the plain test" in ended.out
    assert "TEST.FUSION_TAU 0.3 TEST.FUSION_SAMPLES 2" in ended.out
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": weights, "OUTPUT_DIR": tmp_path}
    samples = {"DATASETS__QUERY_ADD_DIR": root / "test", "DATASETS__GALLERY_ADD_DIR": root / "test"}
    chosen = {"TEST__FUSION_TAU": 0.3, "TEST__FUSION_SAMPLES": 2}
    ended = call(command.main, *settings(**values | samples | chosen))
    assert "TEST.FUSION_TAU 0.3, TEST.FUSION_SAMPLES 2 chosen on the test split" in ended.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["samples_per_image"] == 2
    assert len(results["tuning"]) == 1
    ended = call(command.main, *settings(**values | samples | {"TEST__FUSION_TAU": 0.4}))
    assert "TEST.FUSION_TAU" not in ended.out
    ended = call(command.main, *settings(**values | chosen))
    assert "TEST.FUSION_TAU" not in ended.out  # nothing is fused
    assert call(command.main, *settings(**values | samples | {"TEST__FUSION_SAMPLES": 4})).status == 1


def test_weights_that_learnt_from_the_validation_ships_are_refused(root, tmp_path):
    weights = tmp_path / "best_model_mAP.pth"
    for split, status in ((("validation", 0.4, 1234), 0), (("validation", 0.4, 7), 2), (("test", 0.0, 1234), 2)):
        save(weights, load(root / "weights.pth"), chosen_on(*split))
        ended = tuned(root, *RERANK, TEST__WEIGHT=weights, DATASETS__VAL_FRACTION=0.4)
        assert ended.status == status, ended.err
    assert "has learnt from ships" in ended.sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--store"),
        (("--store", "test", "--taus", "0.1,2"), "--taus"),
        (("--store", "test", "--samples", "4"), "--samples"),
        (("--rerank", "--k1", "0"), "--k1"),
        (("--space", "--shrinkages", "0"), "--shrinkages"),
        (
            (
                "--space",
                "--dimensions=-1",
            ),
            "--dimensions",
        ),
        (("--space", "--kinds", "pca"), "--kinds"),
        (("--rerank", "--protocol", "X2Y"), "X2Y"),
    ],
)
def test_wrong_calls(root, options, words, monkeypatch):
    monkeypatch.chdir(root)
    ended = tuned(root, *options)
    assert ended.status == 2
    assert words in ended.sentence


def test_missing_weights_and_samples_are_named(root):
    ended = tuned(root, *RERANK, TEST__WEIGHT=root / "no.pth")
    assert (ended.status, "no.pth" in ended.sentence) == (1, True)
    ended = tuned(root, "--store", root / "none")
    assert (ended.status, "none" in ended.sentence) == (1, True)
    assert "example" in call(tune.main, "--help").out


# Common spaces


SPACES = ("--space", "--kinds", "centre,cca", "--shrinkages", "0.1,0.5", "--dimensions", "4,8")


def test_spaces_are_tried_and_figures_are_those_of_test_py(root, tmp_path):
    import test as command

    ended = tuned(root, *SPACES, "--json", tmp_path / "out.json")
    assert ended.status == 0, ended.err
    report = json.loads((tmp_path / "out.json").read_text())
    tried = report["common_space"]["trials"]
    assert [(t["space"], t["shrinkage"], t["dimensions"]) for t in tried] == [
        ("centre", 0.1, 4), ("cca", 0.1, 4), ("cca", 0.1, 8), ("cca", 0.5, 4), ("cca", 0.5, 8),
    ]  # fmt: skip
    assert set(report["common_space"]["gain"]) == {"ALL", "O2S", "S2O"}
    (advice,) = report["settings"] + report["not_recommended"]
    chosen = report["common_space"]["chosen"]
    assert advice == {f"TEST.COMMON_SPACE{end}": chosen[name] for name, end in SPACE_KEYS.items()}
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "OUTPUT_DIR": tmp_path}
    space = {"TEST__COMMON_SPACE": "cca", "TEST__COMMON_SPACE_SHRINKAGE": 0.5, "TEST__COMMON_SPACE_DIMENSIONS": 4}
    assert call(command.main, *settings(**values | space)).status == 0
    tested = json.loads((tmp_path / "results.json").read_text())["protocols"]
    assert {name: tried[3][name]["mAP"] for name in tested} == {name: score["plain"]["mAP"] for name, score in tested.items()}


SPACE_KEYS = {"space": "", "shrinkage": "_SHRINKAGE", "dimensions": "_DIMENSIONS"}


def test_the_space_of_the_configuration_is_what_fusion_is_tried_in(root, tmp_path):
    """Without --space it is fixed, and the figures without fusion are those of the space."""
    plain, spaced = (tuned(root, "--store", root / "test", "--taus", "0.3", TEST__COMMON_SPACE=kind) for kind in ("off", "cca"))
    rows = [next(line for line in ended.out.splitlines() if "without " in line).split() for ended in (plain, spaced)]
    tried = tuned(root, "--space", "--kinds", "cca", "--shrinkages", "0.01", "--dimensions", "64").out.splitlines()
    figures = next(line for line in tried if " cca " in line).split()
    assert rows[0] != rows[1]
    assert [word for word in rows[1] if "/" in word] == [word for word in figures if "/" in word]


def test_a_space_that_pays_is_what_fusion_and_reranking_start_from(monkeypatch, root):
    low, high = score_of([0.2] * 30), score_of([0.9] * 30)
    seen = []
    monkeypatch.setattr(tune, "_score_aloud", lambda *_: {"ALL": low})
    for better in (True, False):
        best = {"ALL": high if better else low}
        space = SimpleNamespace(map_images=lambda features, _: features + 1, map_samples=lambda features: features + 2)
        trial = Trial({"space": "cca", "shrinkage": 0.1, "dimensions": 4}, best, 1.0)
        monkeypatch.setattr(tune, "try_spaces", lambda *_, found=trial, own=space: [(found, own)])

        def fusion(protocols, records, features, ranking, settings):
            seen.append((float(features[0, 0]), float(settings[0][0][2][0, 0, 0])))
            return [(Trial({"store": "a", "steps": 1, "K": 1, "tau": 0.3}, {"ALL": low}, 1.0), features)]

        monkeypatch.setattr(tune, "try_fusion", fusion)
        args = tune.build_parser().parse_args(["--space", "--taus", "0.3"])
        store = ("a", SampleSet((), (0,), (), 1), torch.zeros(1, 1, 2), 0.0)
        _, advice = tune.try_all(read_nothing(), torch.zeros(1, 2), Ranking(), [space], [store], [], args)
        keys = {"TEST.COMMON_SPACE": "cca", "TEST.COMMON_SPACE_SHRINKAGE": 0.1, "TEST.COMMON_SPACE_DIMENSIONS": 4}
        assert (keys in advice["settings"]) is better
    assert seen == [(1.0, 2.0), (0.0, 0.0)]
