"""test.py: what results.json holds, that images go through the network once, and how wrong calls end."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test as command
from datasets.catalogue import read_hoss
from model.build import build_model
from processor import extraction
from processor.extraction import build_extractor
from processor.ranking.results import read_results
from tests.chip_files import write_hoss
from tests.commands import Ended, call, chosen_on, settings, tiny_cfg
from utils.checkpoint import load, save

FIGURES = {"mAP", "R1", "R5", "R10", "queries", "queries_counted", "gallery"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=1, test_ships=3, views=2, subset=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network for five ships, not trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "transformer_1.pth"
    save(path, build_model(tiny_cfg(), 5).state_dict())
    return path


def run_test(data: Path, weights: object, output: Path, *options: str, **changes) -> Ended:
    values = {"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": output, "TEST__WEIGHT": weights}
    return call(command.main, *options, *settings(**values | changes))


def results_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def figures_of(output: Path) -> dict[str, dict]:
    return {name: scores["plain"] for name, scores in results_of(output)["protocols"].items()}


@pytest.fixture(scope="module")
def done(data, weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    ended = run_test(data, weights, output)
    assert ended.status == 0, ended.err
    return output, ended


def test_results_follow_the_interface(done, weights):
    results = results_of(done[0])
    assert results["weights"] == {"path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert (results["tau"], results["samples_per_image"]) == (0.02, 0)
    assert list(results["protocols"]) == ["ALL", "O2S", "S2O"]
    for scores in results["protocols"].values():
        assert scores["fused"] is None
        assert scores["plain"].keys() >= FIGURES
        assert all(0 <= scores["plain"][rate] <= 1 for rate in ("mAP", "R1", "R5", "R10"))
    counts = {
        name: (plain["queries"], plain["queries_counted"], plain["gallery"]) for name, plain in figures_of(done[0]).items()
    }
    assert counts == {"ALL": (6, 6, 14), "O2S": (3, 3, 7), "S2O": (3, 3, 7)}


def test_half_precision_is_near_and_is_said(data, weights, done, tmp_path):
    ended = run_test(data, weights, tmp_path, TEST__AMP="bf16")
    assert ended.status == 0, ended.err
    half, exact = results_of(tmp_path), results_of(done[0])
    assert half["precision"] == "bf16" and "precision" not in exact
    assert read_results(tmp_path / "results.json").precision == "bf16"
    gaps = [abs(half["protocols"][name]["plain"]["mAP"] - plain["mAP"]) for name, plain in figures_of(done[0]).items()]
    assert max(gaps) < 0.1
    images, device = read_hoss(data, train=False).images, torch.device("cpu")
    extractors = [build_extractor(tiny_cfg(TEST__AMP=amp), device, weights=str(weights)) for amp in ("off", "bf16")]
    off, bf16 = (torch.nn.functional.normalize(extractor.features(images)) for extractor in extractors)
    assert off.dtype is bf16.dtype is torch.float32
    assert 0 < (off - bf16).abs().max() < 1e-2


def test_the_outcome_of_each_query_adds_up_to_the_figures(done):
    for plain in figures_of(done[0]).values():
        outcomes = plain["per_query"]
        assert len({outcome["query"] for outcome in outcomes}) == plain["queries"]
        assert all(outcome["query"].startswith(f"{outcome['ship']:04d}_") for outcome in outcomes)
        counted = [outcome for outcome in outcomes if outcome["AP"] is not None]
        assert np.mean([outcome["AP"] for outcome in counted]) == pytest.approx(plain["mAP"])
        assert np.mean([outcome["first_match"] == 1 for outcome in counted]) == pytest.approx(plain["R1"])


def test_what_was_counted_and_how_weights_were_chosen_is_said(data, weights, done, tmp_path):
    results, ended = results_of(done[0]), done[1]
    assert results["counting"]["same_modality_gallery"] is True
    assert results["counting"]["interval"]
    assert results["selection"] is None
    assert "stay in" not in ended.out and "Wilson" not in ended.out
    assert "the weights do not say" in ended.out
    copy = tmp_path / "best_model_mAP.pth"
    save(copy, load(weights), chosen_on("test", epoch=7))
    ended = run_test(data, copy, tmp_path / "run", TEST__SAME_MODALITY_GALLERY=False)
    assert "chosen on the test split (epoch 7" in ended.out
    assert "without the gallery images of the query's own modality" in ended.out
    ended = run_test(data, copy, tmp_path / "run", "--verbose", TEST__SAME_MODALITY_GALLERY=False)
    assert "are left out of the gallery; distractors match nothing" in ended.out
    assert "95 %: Wilson score interval" in ended.out
    assert results_of(tmp_path / "run")["selection"]["epoch"] == 7
    assert results_of(tmp_path / "run")["data"]["sha256"] == results["data"]["sha256"]


def test_the_table_is_printed_and_the_log_kept(done):
    output, ended = done
    assert {path.name for path in output.iterdir()} == {"results.json", "test_log.txt"}
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[0] for line in lines if line[1:2] == ["plain"]] == ["ALL", "O2S", "S2O"] * 2
    assert f"{100 * figures_of(output)['S2O']['mAP']:.1f}" in next(line for line in lines if line[0] == "S2O")


def test_the_same_call_gives_the_same_results_whatever_the_batches(data, weights, done, tmp_path):
    assert run_test(data, weights, tmp_path, TEST__IMS_PER_BATCH=3).status == 0
    assert figures_of(tmp_path) == figures_of(done[0])


def test_protocols_are_the_same_without_subset_folders(data, weights, done, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "HOSS" / "subset")
    assert run_test(tmp_path / "data", weights, tmp_path / "run").status == 0
    assert figures_of(tmp_path / "run") == figures_of(done[0])


def test_every_image_goes_through_the_network_once(data, weights, tmp_path, monkeypatch):
    seen = []
    build = extraction.build_model

    def counted(cfg):
        model = build(cfg)
        model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        return model

    monkeypatch.setattr(extraction, "build_model", counted)
    assert run_test(data, weights, tmp_path).status == 0
    assert sum(seen) == 20


def test_training_chips_are_not_needed(data, weights, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "HOSS" / "bounding_box_train")
    assert run_test(tmp_path / "data", weights, tmp_path / "run").status == 0


def test_images_of_the_same_sensor_can_leave_the_gallery(data, weights, done, tmp_path):
    ended = run_test(data, weights, tmp_path, TEST__SAME_MODALITY_GALLERY=False)
    assert ended.status == 0, ended.err
    assert figures_of(tmp_path)["ALL"]["mAP"] != figures_of(done[0])["ALL"]["mAP"]


@pytest.mark.parametrize("wrap", [lambda w: {f"module.{k}": v for k, v in w.items()}, lambda w: {"model": w, "epoch": 3}])
def test_weights_in_other_wrappings_give_the_same_results(data, weights, done, tmp_path, wrap):
    save(tmp_path / "other.pth", wrap(load(weights)))
    ended = run_test(data, tmp_path / "other.pth", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert figures_of(tmp_path / "run") == figures_of(done[0])


def test_the_released_layer_that_nothing_uses_is_passed_over(data, weights, done, tmp_path):
    save(tmp_path / "other.pth", load(weights) | {"base.fc.weight": torch.zeros(1000, 192), "base.fc.bias": torch.zeros(1000)})
    assert run_test(data, tmp_path / "other.pth", tmp_path / "run").status == 0
    assert figures_of(tmp_path / "run") == figures_of(done[0])


def write_samples(folder: Path, chips: Path) -> Path:
    """Two generated pictures of every optical chip of `chips`, as BBDM lays them out."""
    for number, chip in enumerate(sorted(chips.glob("*_RGB.tif"))):
        (folder / chip.stem).mkdir(parents=True)
        for k in range(2):
            pixels = np.random.default_rng([number, k]).integers(0, 256, (60, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / chip.stem / f"output_{k}.png")
    return folder


def test_generated_samples_are_fused_where_a_protocol_uses_their_images(data, weights, done, tmp_path):
    samples = write_samples(tmp_path / "samples", data / "HOSS" / "query")
    ended = run_test(data, weights, tmp_path / "run", DATASETS__QUERY_ADD_DIR=samples, TEST__FUSION_TAU=0.5)
    assert ended.status == 0, ended.err
    results = results_of(tmp_path / "run")
    assert (results["tau"], results["samples_per_image"]) == (0.5, 2)
    assert {name: scores["fused"] is not None for name, scores in results["protocols"].items()} == {
        "ALL": True, "O2S": True, "S2O": False,
    }  # fmt: skip
    assert results["protocols"]["O2S"]["fused"]["mAP"] != results["protocols"]["O2S"]["plain"]["mAP"]
    assert figures_of(tmp_path / "run") == figures_of(done[0])


def test_a_weight_of_zero_leaves_results_as_they_are(data, weights, tmp_path):
    samples = write_samples(tmp_path / "samples", data / "HOSS" / "query")
    run_test(data, weights, tmp_path / "run", DATASETS__QUERY_ADD_DIR=samples, TEST__FUSION_TAU=0)
    scores = results_of(tmp_path / "run")["protocols"]["ALL"]
    assert scores["fused"] == scores["plain"]


def test_a_missing_sample_is_named(data, weights, tmp_path):
    samples = write_samples(tmp_path / "samples", data / "HOSS" / "query")
    (samples / "0102_s01c0_RGB" / "output_1.png").unlink()
    ended = run_test(data, weights, tmp_path / "run", DATASETS__QUERY_ADD_DIR=samples)
    assert ended.status == 1
    assert "0102_s01c0_RGB" in ended.sentence
    assert not (tmp_path / "run" / "results.json").exists()


# Queries that do not count


def remove_matches(root: Path, *pids: int) -> None:
    for path in (root / "HOSS").rglob("bounding_box_test/*"):
        if path.name.startswith(tuple(f"{pid:04d}_" for pid in pids)):
            path.unlink()


def test_queries_without_match_are_not_counted_and_said(data, weights, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    remove_matches(tmp_path / "data", 101)
    ended = run_test(tmp_path / "data", weights, tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "ALL: 2 of 6 queries have no match in the gallery and do not count" in ended.err
    assert {plain["queries"] - plain["queries_counted"] for plain in figures_of(tmp_path / "run").values()} == {1, 2}


def test_no_query_with_a_match_is_no_result(data, weights, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    remove_matches(tmp_path / "data", 101, 102, 103)
    ended = run_test(tmp_path / "data", weights, tmp_path / "run")
    assert ended.status == 1
    assert "none of the 6 queries has a match" in ended.sentence
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_collapsed_network_is_told(data, weights, tmp_path):
    """All features are equal, so the order of files decides."""
    state = load(weights)
    for name in ("base.norm.weight", "base.norm.bias"):
        state[name] = torch.zeros_like(state[name])
    save(tmp_path / "collapsed.pth", state)
    ended = run_test(data, tmp_path / "collapsed.pth", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "ALL: for 6 of 6 queries most of the gallery lies at one distance" in ended.err


def test_a_network_that_tells_chips_apart_is_not(done):
    assert "at one distance" not in done[1].err


# Wrong calls


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"TEST__WEIGHT": ""}, 2, "TEST.WEIGHT is empty"),
        ({"TEST__WEIGHT": "missing.pth"}, 1, "missing.pth"),
        ({"TEST__FUSION_TAU": 2}, 2, "TEST.FUSION_TAU cannot be '2'"),
        ({"MODEL__TRANSFORMER_TYPE": "vit_small_patch16_224_TransOSS"}, 1, "transformer_1.pth"),
        ({"INPUT__SIZE_TEST": "[32,16]"}, 2, "INPUT.SIZE_TRAIN and INPUT.SIZE_TEST differ"),
        ({"DATASETS__ROOT_DIR": "nowhere"}, 1, "nowhere"),
        ({"DATASETS__QUERY_ADD_DIR": "nowhere"}, 1, "nowhere"),
        ({"OUTPUT_DIR": ""}, 2, "OUTPUT_DIR is empty"),
    ],
)
def test_wrong_calls_end_in_one_sentence(data, weights, tmp_path, changes, status, said):
    ended = run_test(data, weights, tmp_path / "run", **changes)
    assert ended.status == status
    assert said in ended.sentence
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize("lost", ["base.wh_embed.linear_layer.weight", "bottleneck.running_mean", "base.blocks.7.norm1.bias"])
def test_weights_that_lack_a_tensor_are_refused_by_its_name(data, weights, tmp_path, lost):
    save(tmp_path / "other.pth", {name: value for name, value in load(weights).items() if name != lost})
    ended = run_test(data, tmp_path / "other.pth", tmp_path / "run")
    assert ended.status == 1
    assert lost.removeprefix("base.") in ended.sentence
    assert "other.pth" in ended.sentence


def test_a_truncated_checkpoint_is_refused_by_name(data, weights, tmp_path):
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:100_000])
    ended = run_test(data, tmp_path / "cut.pth", tmp_path / "run")
    assert ended.status == 1
    assert "cut.pth" in ended.sentence


def test_handlers_of_the_log_are_put_back():
    before = logging.getLogger().handlers[:]
    call(command.main, "TEST.WEIGHT", "x.pth", "OUTPUT_DIR", "")
    assert logging.getLogger().handlers == before
