"""Training and sampling from end to end, on a few small pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import sample, train
from bbdm.data import build_bridge_pairs
from bbdm.latents import SAR
from bbdm.model import BridgeModel, build_bridge_model, build_empty_first_stage
from bbdm.unet import make_unet
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.chips import read_chip
from datasets.generated import read_samples
from datasets.records import Modality, Split
from datasets.sar import render_percentile
from datasets.validation import hold_out
from processor.fusion import find_samples
from tests.chip_files import write_hoss
from utils.device import Precision
from utils.errors import CheckpointError, DataError, TrainingError, UsageError

ROOT = Path(__file__).parent.parent
TINY = {
    "BBDM.PAIRS": "hoss",
    "BBDM.IMAGE_SIZE": "[16, 8]",
    "BBDM.WIDTH": "32",
    "BBDM.MULTIPLIERS": "[1, 1]",
    "BBDM.BLOCKS": "1",
    "BBDM.HEAD_WIDTH": "32",
    "BBDM.ACCUMULATION": "2",
    "BBDM.EMA_PERIOD": "1",
    "BBDM.EMA_START": "3",
    "BBDM.GRID_PERIOD": "2",
    "BBDM.HOLD_OUT_EVERY": "3",
    "BBDM.SAMPLE_NUM": "2",
    "BBDM.SAMPLE_STEP": "4",
    "BBDM.SAMPLER": "few_step",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_EPOCHS": "2",
    "SOLVER.EVAL_PERIOD": "1",
    "SOLVER.LOG_PERIOD": "2",
    "SOLVER.CHECKPOINT_PERIOD": "1",
    "DATALOADER.NUM_WORKERS": "0",
    "MODEL.DEVICE": "cpu",
}
TEST_CHIPS = {
    "query/0009_a_RGB.tif": (9, 20),
    "query/0009_a_SAR.tif": (8, 18),
    "bounding_box_test/0009_b_RGB.tif": (10, 22),
    "bounding_box_test/0009_b_SAR.tif": (8, 18),
    "bounding_box_test/-1_0001_RGB.tif": (7, 30),
}


def write_chip(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shape = (size[1], size[0])
    if path.stem.endswith("SAR"):
        Image.fromarray(generator.gamma(1.0, size=shape).astype(np.float32)).save(path)
    else:
        Image.fromarray(generator.integers(0, 255, (*shape, 3)).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    train_chips = {f"bounding_box_train/{pid:04d}_a_{kind}.tif": (8, 16) for pid in range(1, 7) for kind in ("RGB", "SAR")}
    for seed, (name, size) in enumerate({**train_chips, **TEST_CHIPS}.items()):
        write_chip(root / "HOSS" / name, size, seed)
    return root


def arguments(data, output, **settings):
    settings = {**TINY, "DATASETS.ROOT_DIR": str(data), "OUTPUT_DIR": str(output), **settings}
    return [word for key, value in settings.items() for word in (key, str(value))]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train.main(arguments(data, output))
    return output


def test_training_leaves_what_was_promised(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"bridge_1.pth", "bridge_2.pth", "bridge_best.pth", "last.pth", "config.yml", "environment.json"} <= names
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [(line["epoch"], line["step"]) for line in steps] == [(1, 2), (2, 2)]
    assert {"loss", "lr"} <= steps[0].keys()
    assert all(np.isfinite(line["validation_loss"]) for line in lines if "validation_loss" in line)
    with Image.open(trained / "grids" / "epoch_0002.png") as grid:
        assert grid.size == (12 * 3 * 8, 16 + 12 * 2 * 16)  # labels; optical | SAR | generated, two held-out pairs, enlarged


def test_a_resumed_run_ends_as_an_uninterrupted_one(data, trained, tmp_path):
    train.main(arguments(data, tmp_path, **{"SOLVER.MAX_EPOCHS": 1}))
    train.main(arguments(data, tmp_path, **{"SOLVER.RESUME": tmp_path / "last.pth"}))
    whole, parts = (torch.load(folder / "last.pth", weights_only=True) for folder in (trained, tmp_path))
    assert whole["update"]["steps"] == parts["update"]["steps"] == 2
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])


def test_a_step_that_the_end_of_an_epoch_cuts_is_finished_in_the_next(data, tmp_path):
    cut = {"SOLVER.IMS_PER_BATCH": 1, "BBDM.ACCUMULATION": 3, "SOLVER.AMP": "off"}
    train.main(arguments(data, tmp_path / "whole", **cut))
    train.main(arguments(data, tmp_path / "parts", **cut, **{"SOLVER.MAX_EPOCHS": 1}))
    half = torch.load(tmp_path / "parts" / "last.pth", weights_only=True)
    assert half["update"]["waiting"] == 1
    assert half["update"]["gradients"]
    train.main(arguments(data, tmp_path / "parts", **cut, **{"SOLVER.RESUME": tmp_path / "parts" / "last.pth"}))
    whole, parts = (torch.load(tmp_path / folder / "last.pth", weights_only=True) for folder in ("whole", "parts"))
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert set(epochs) == {1, 2}


def test_the_average_copies_before_its_start_and_lags_after(data, trained):
    first = torch.load(trained / "bridge_1.pth", weights_only=True)
    last = torch.load(trained / "last.pth", weights_only=True)
    assert not torch.equal(last["ema"]["out.2.weight"], last["model"]["out.2.weight"])
    assert torch.equal(last["ema"]["out.2.weight"], torch.lerp(first["out.2.weight"], last["model"]["out.2.weight"], 0.005))


@pytest.mark.parametrize(
    ("file", "start", "told", "steps"),
    [
        # 2 steps of 2 batches have made the file, and 2 more follow; without a count of them EMA_START is taken as reached.
        ("last.pth", 4, "raw and averaged weights after 4 batches: training goes on from it, and averages at once", 2 + 2),
        ("last.pth", 6, "after 4 batches: training goes on from it, and averages from batch 6 on", 2 + 2),
        ("bridge_2.pth", 30000, "one set of weights, or no count of batches: training goes on from it, and averages at once",
         15000 + 2),
    ],
)  # fmt: skip
def test_fine_tuning_goes_on_with_both_sets_or_averages_at_once(data, trained, tmp_path, file, start, told, steps):
    settings = {"BBDM.PRETRAINED": trained / file, "BBDM.EMA_START": start}
    train.main(arguments(data, tmp_path, **settings))
    after = torch.load(tmp_path / "last.pth", weights_only=True)
    assert told in (tmp_path / "train_log.txt").read_text(encoding="utf-8")
    assert after["update"]["steps"] == steps
    assert not torch.equal(after["ema"]["out.2.weight"], after["model"]["out.2.weight"])
    average = torch.load(tmp_path / "bridge_1.pth", weights_only=True)["out.2.weight"]
    torch.testing.assert_close(after["ema"]["out.2.weight"], torch.lerp(average, after["model"]["out.2.weight"], 0.005))


def test_fine_tuning_starts_from_the_raw_weights_and_their_average(data, trained, tmp_path):
    still = {"BBDM.PRETRAINED": trained / "last.pth", "BBDM.EMA_DECAY": 1.0, "BBDM.EMA_START": 0, "SOLVER.BASE_LR": 0.0}
    train.main(arguments(data, tmp_path, **still))
    before, after = (torch.load(folder / "last.pth", weights_only=True) for folder in (trained, tmp_path))
    for part in ("model", "ema"):
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])


def test_a_resumed_fine_tuning_counts_on(data, trained, tmp_path):
    settings = {"BBDM.PRETRAINED": trained / "last.pth", "BBDM.EMA_START": 4}
    train.main(arguments(data, tmp_path / "whole", **settings))
    train.main(arguments(data, tmp_path / "parts", **settings, **{"SOLVER.MAX_EPOCHS": 1}))
    train.main(arguments(data, tmp_path / "parts", **settings, **{"SOLVER.RESUME": tmp_path / "parts" / "last.pth"}))
    whole, parts = (torch.load(tmp_path / folder / "last.pth", weights_only=True) for folder in ("whole", "parts"))
    assert whole["update"]["steps"] == parts["update"]["steps"] == 4
    assert all(torch.equal(whole["ema"][name], parts["ema"][name]) for name in whole["ema"])


def test_a_loss_that_is_not_finite_stops_with_the_names(data, trained, tmp_path):
    weights = torch.load(trained / "bridge_1.pth", weights_only=True)
    weights["out.2.bias"] += float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(
        TrainingError,
        match=r"epoch 1, step 1 \(loss nan\), for 000\d_a_RGB.tif, .*, 000\d_a_SAR.tif;",
    ):
        train.main(arguments(data, tmp_path / "out", **{"BBDM.PRETRAINED": tmp_path / "nan.pth"}))
    assert not (tmp_path / "out" / "last.pth").exists()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("BBDM.IMAGE_SIZE", "[16, 9]", UsageError),
        ("BBDM.WIDTH", "48", UsageError),
        ("BBDM.HEAD_WIDTH", "24", UsageError),
        ("BBDM.HEAD_WIDTH", "0", UsageError),
        ("BBDM.ACCUMULATION", "0", UsageError),
        ("BBDM.EMA_DECAY", "1.5", UsageError),
        ("BBDM.PLATEAU_FACTOR", "1", UsageError),
        ("BBDM.BLOCKS", "-1", UsageError),
        ("BBDM.FIRST_STAGE_CODES", "0", UsageError),
        ("BBDM.HOLD_OUT_EVERY", "1", UsageError),
        ("BBDM.PAIRS", "registered", UsageError),
        ("BBDM.SPACE", "latent", CheckpointError),
        ("BBDM.PRETRAINED", "nowhere.pth", CheckpointError),
        ("SOLVER.RESUME", "nowhere.pth", CheckpointError),
        ("SOLVER.IMS_PER_BATCH", "64", DataError),
    ],
)
def test_settings_that_cannot_be_met_name_their_key(data, tmp_path, key, value, error):
    with pytest.raises(error) as caught:
        train.main(arguments(data, tmp_path, **{key: value}))
    shown = {"SOLVER.RESUME": "nowhere.pth", "BBDM.PRETRAINED": "nowhere.pth", "BBDM.SPACE": "BBDM.FIRST_STAGE"}
    shown |= {"BBDM.HEAD_WIDTH": "HEAD_WIDTH", "BBDM.PAIRS": "BBDM.PAIRS_DIR"}
    assert shown.get(key, key) in str(caught.value)


def sample_into(folder, data, trained, **settings):
    sample.main(arguments(data, folder, **{"BBDM.WEIGHT": trained / "bridge_2.pth", **settings}))
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def sampled(data, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    sample_into(folder, data, trained)
    return folder


def pixels(content):
    return {name: np.asarray(Image.open(path)) for name, path in content.items()}


def test_every_optical_chip_has_samples_of_its_own_size(data, sampled):
    images = read_hoss(data, train=False).images
    for split in (Split.QUERY, Split.GALLERY):
        sources = [chip for chip in images if chip.split is split and chip.modality is Modality.OPTICAL]
        samples, _ = read_samples(sampled, split=split, sources=sources)
        assert {len(own) for own in samples.values()} == {2}
        for source in sources:
            first, second = (read_chip(sample, render_percentile) for sample in samples[source.path])
            folder = source.path.parent.name
            assert first.shape == (*TEST_CHIPS[f"{folder}/{source.path.name}"][::-1], 3)
            assert not np.array_equal(first, second)
    assert len(list(sampled.glob("*.png"))) == 2 * 3


def test_a_sample_is_the_same_alone_in_a_batch_and_after_an_interruption(data, trained, sampled, tmp_path):
    whole = {path.name: path for path in sampled.glob("*.png")}
    sample_into(tmp_path / "one", data, trained, **{"BBDM.SAMPLE_NUM": 1, "BBDM.SAMPLE_BATCH": 3, "BBDM.SPLITS": "['query']"})
    one = {path.name: path for path in (tmp_path / "one").glob("*.png")}
    assert set(one) == {"0009_a_RGB_0.png"}
    np.testing.assert_array_equal(*(pixels(content)["0009_a_RGB_0.png"] for content in (whole, one)))

    sample_into(tmp_path / "two", data, trained)
    (tmp_path / "two" / "0009_b_RGB_1.png").unlink()
    kept = (tmp_path / "two" / "0009_b_RGB_0.png").stat().st_mtime_ns
    again = sample_into(tmp_path / "two", data, trained)
    assert again == {name: path.read_bytes() for name, path in whole.items()}
    assert (tmp_path / "two" / "0009_b_RGB_0.png").stat().st_mtime_ns == kept


def test_seed_and_sampler_decide_the_picture(data, trained, sampled, tmp_path):
    whole = pixels({path.name: path for path in sampled.glob("*.png")})
    for number, settings in enumerate(
        [{"SOLVER.SEED": 5}, {"BBDM.SAMPLER": "released"}, {"BBDM.ORDER": 1}, {"BBDM.GREY": True}]
    ):
        folder = tmp_path / str(number)
        sample_into(folder, data, trained, **settings)
        other = pixels({path.name: path for path in folder.glob("*.png")})
        assert not np.array_equal(other["0009_a_RGB_0.png"], whole["0009_a_RGB_0.png"])


def test_validation_chips_are_sampled_for_the_ships_that_a_training_holds_out(trained, tmp_path):
    root = write_hoss(tmp_path / "data", train_ships=6, test_ships=1)
    splits = {"BBDM.SPLITS": "['validation/query','validation/gallery']", "BBDM.SAMPLE_NUM": 1}
    with pytest.raises(UsageError, match=r"DATASETS\.VAL_FRACTION"):
        sample_into(tmp_path / "none", root, trained, **splits)
    sample_into(tmp_path / "out", root, trained, **splits, **{"DATASETS.VAL_FRACTION": 0.3, "SOLVER.SEED": 3})
    held_out = hold_out(read_hoss(root, test=False).train, fraction=0.3, seed=3)
    samples = find_samples(held_out.images, query_dir=str(tmp_path / "out"), gallery_dir=str(tmp_path / "out"))
    assert len(samples.sources) == 4


def test_grey_samples_have_equal_bands(data, trained, tmp_path):
    sample_into(tmp_path, data, trained, **{"BBDM.GREY": True, "BBDM.SPLITS": "['query']"})
    picture = np.asarray(Image.open(tmp_path / "0009_a_RGB_0.png")).astype(int)
    assert np.ptp(picture, axis=2).max() == 0
    assert np.ptp(picture) > 0


def test_samples_are_saved_in_the_size_of_the_network_s_picture_where_asked(data, trained, tmp_path):
    settings = {"BBDM.SAVED_SIZE": "picture", "BBDM.SPLITS": "['query']", "BBDM.SAMPLE_NUM": 1}
    sample_into(tmp_path, data, trained, **settings)
    again = sample_into(tmp_path, data, trained, **settings)
    assert {name: Image.open(tmp_path / name).size for name in again} == {"0009_a_RGB_0.png": (8, 16)}
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["SAVED_SIZE"] == [8, 16]
    assert (manifest["sources"][0]["width"], manifest["sources"][0]["height"]) == (9, 20)


def test_a_store_does_not_mix_weights(data, trained, sampled):
    with pytest.raises(DataError, match=r"another run: weights_sha256 .* name a new folder with OUTPUT_DIR"):
        sample_into(sampled, data, trained, **{"BBDM.WEIGHT": trained / "bridge_1.pth"})


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("BBDM.SPLITS", "['train']", UsageError),
        ("BBDM.SPLITS", "['O2S/query']", DataError),
        ("BBDM.WEIGHT", "", UsageError),
        ("BBDM.SAMPLE_NUM", "0", UsageError),
        ("BBDM.SAMPLE_STEP", "1001", UsageError),
        ("BBDM.SAMPLE_BATCH", "0", UsageError),
        ("BBDM.ETA", "1.5", UsageError),
        ("BBDM.ORDER", "4", UsageError),
    ],
)
def test_samples_that_cannot_be_made_name_their_key(data, trained, tmp_path, key, value, error):
    with pytest.raises(error, match=key):
        sample_into(tmp_path, data, trained, **{key: value})


def test_weights_of_another_network_are_refused(data, tmp_path):
    torch.save(make_unet(in_channels=3, width=32, multipliers=(1, 2), blocks=1, head_width=32).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth does not fit the model: .* of another shape"):
        sample_into(tmp_path / "out", data, tmp_path, **{"BBDM.WEIGHT": tmp_path / "a.pth"})


def test_two_processes_make_the_samples_of_one(data, trained, sampled, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "bbdm.sample"]
    settings = arguments(data, tmp_path, **{"BBDM.WEIGHT": trained / "bridge_2.pth"})
    result = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == {
        path.name: path.read_bytes() for path in sampled.glob("*.png")
    }


def test_weights_that_give_no_picture_are_refused(data, trained, tmp_path):
    weights = torch.load(trained / "bridge_1.pth", weights_only=True)
    weights["out.2.bias"] += float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"not finite for 0009_a_RGB\.tif"):
        sample_into(tmp_path / "out", data, tmp_path, **{"BBDM.WEIGHT": tmp_path / "nan.pth", "BBDM.SPLITS": "['query']"})
    assert not list((tmp_path / "out").glob("*.png"))


def test_two_processes_train_together(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "bbdm.train"]
    settings = arguments(data, tmp_path, **{"BBDM.CLIP_GRADIENT": 1.0, "SOLVER.MAX_EPOCHS": 1})
    result = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert torch.load(tmp_path / "last.pth", weights_only=True)["update"]["steps"] == 1


def test_the_latent_model_lives_between_latents(data, tmp_path):
    settings = {
        "BBDM.SPACE": "latent",
        "BBDM.FIRST_STAGE": tmp_path / "stage.pth",
        "BBDM.FIRST_STAGE_WIDTH": 32,
        "BBDM.FIRST_STAGE_MULTIPLIERS": "[1, 1]",
        "BBDM.FIRST_STAGE_BLOCKS": 1,
        "BBDM.FIRST_STAGE_CODES": 16,
    }
    cfg = load_cfg(None, arguments(data, tmp_path, **settings))
    torch.save(build_empty_first_stage(cfg).state_dict(), tmp_path / "stage.pth")
    model = build_bridge_model(cfg, torch.device("cpu"), Precision("cpu"))
    pictures = torch.zeros(1, 3, 16, 8)
    assert model.encode(pictures, SAR).shape == model.state_shape(pictures) == (1, 3, 8, 4)
    assert not any(weight.requires_grad for weight in model.first_stage.parameters())
    train.main(arguments(data, tmp_path / "out", **settings, **{"SOLVER.MAX_EPOCHS": 1}))
    sample_into(tmp_path / "samples", data, tmp_path, **settings, **{"BBDM.WEIGHT": tmp_path / "out" / "bridge_1.pth"})
    assert len(list((tmp_path / "samples").glob("*.png"))) == 6

    torch.save(build_empty_first_stage(load_cfg(None, arguments(data, tmp_path))).state_dict(), tmp_path / "stage.pth")
    with pytest.raises(CheckpointError, match=r"stage\.pth does not fit the model: .*see BBDM.FIRST_STAGE_\*"):
        train.main(arguments(data, tmp_path / "other", **settings))


def test_latents_that_are_kept_train_as_those_that_are_made_at_every_step(data, tmp_path, monkeypatch):
    settings = {
        "BBDM.SPACE": "latent",
        "BBDM.FIRST_STAGE": tmp_path / "stage.pth",
        "BBDM.FIRST_STAGE_WIDTH": 32,
        "BBDM.FIRST_STAGE_MULTIPLIERS": "[1, 1]",
        "BBDM.FIRST_STAGE_BLOCKS": 1,
        "BBDM.FIRST_STAGE_CODES": 16,
        "BBDM.FLIP": True,
        "BBDM.HOLD_OUT_EVERY": 0,
        "BBDM.GRID_PERIOD": 0,
    }
    stage = build_empty_first_stage(load_cfg(None, arguments(data, tmp_path, **settings)))
    torch.save(stage.state_dict(), tmp_path / "stage.pth")
    seen, encode = [], BridgeModel.encode
    monkeypatch.setattr(BridgeModel, "encode", lambda self, *given: seen.append(self.first_stage) or encode(self, *given))
    weights, calls = {}, {}
    for keep in (True, False):
        seen.clear()
        train.main(arguments(data, tmp_path / str(keep), **settings, **{"BBDM.KEEP_LATENTS": keep}))
        weights[keep] = torch.load(tmp_path / str(keep) / "last.pth", weights_only=True)["model"]
        calls[keep] = sum(stage is not None for stage in seen)
    for name, value in weights[True].items():
        torch.testing.assert_close(value, weights[False][name], rtol=1e-3, atol=1e-4)
    pairs = len(build_bridge_pairs(load_cfg(None, arguments(data, tmp_path, **settings))).train)
    assert calls == {True: 4 * -(-pairs // 2), False: 2 * 2 * (pairs // 2)}, (
        "of both modalities and mirrors once; at every step"
    )


@pytest.mark.parametrize(
    ("name", "multipliers", "width", "attention", "factors", "condition"),
    [("f8", [1, 1, 1, 1], 4, [32], [32, 16, 8], "rescaler"), ("f16", [1, 1, 1, 1, 1], 8, [16], [16, 8, 4], "first_stage")],
)
def test_f8_and_f16_train_sample_and_are_read_again(data, tmp_path, name, multipliers, width, attention, factors, condition):
    settings = {
        "BBDM.SPACE": "latent",
        "BBDM.CONDITION": condition,
        "BBDM.NORMALISE_LATENTS": True,
        "BBDM.LATENT_BEFORE_QUANT_CONV": True,
        "BBDM.IMAGE_SIZE": "[32, 32]",
        "BBDM.ATTENTION_FACTORS": factors,
        "BBDM.FIRST_STAGE": tmp_path / "stage.pth",
        "BBDM.FIRST_STAGE_WIDTH": 32,
        "BBDM.FIRST_STAGE_MULTIPLIERS": multipliers,
        "BBDM.FIRST_STAGE_BLOCKS": 1,
        "BBDM.FIRST_STAGE_CODES": 16,
        "BBDM.FIRST_STAGE_CODE_WIDTH": width,
        "BBDM.FIRST_STAGE_ATTENTION": attention,
        "BBDM.SPLITS": "['query']",
        "BBDM.EMA_START": 0,
        "SOLVER.MAX_EPOCHS": 1,
    }
    if name == "f16":
        settings |= {"BBDM.IMAGE_SIZE": "[64, 64]", "BBDM.ATTENTION_FACTORS": "[1]"}
    torch.manual_seed(0)
    stage = build_empty_first_stage(load_cfg(None, arguments(data, tmp_path, **settings)))
    assert any("attn.0" in key for key in stage.state_dict())
    torch.save(stage.state_dict(), tmp_path / "stage.pth")
    train.main(arguments(data, tmp_path / "out", **settings))
    last = torch.load(tmp_path / "out" / "last.pth", weights_only=True)
    bridge = torch.load(tmp_path / "out" / "bridge_1.pth", weights_only=True)
    for kept in (last["model"], last["ema"], bridge):
        assert kept["ori_latent_std"].shape == kept["cond_latent_mean"].shape == (1, width, 1, 1)
        assert not torch.equal(kept["ori_latent_std"], torch.ones(1, width, 1, 1))
        assert ("cond_stage_model.channel_mapper.weight" in kept) == (condition == "rescaler")
    if condition == "rescaler":
        mapper = "cond_stage_model.channel_mapper.weight"
        assert not torch.equal(last["model"][mapper], last["ema"][mapper]), "it is trained and averaged"
    weights = {"BBDM.WEIGHT": tmp_path / "out" / "bridge_1.pth"}
    assert len(sample_into(tmp_path / "samples", data, tmp_path, **settings, **weights)) == 2
    train.main(arguments(data, tmp_path / "fine", **settings, **{"BBDM.PRETRAINED": tmp_path / "out" / "last.pth"}))
    fine = torch.load(tmp_path / "fine" / "bridge_1.pth", weights_only=True)
    assert torch.equal(fine["ori_latent_mean"], bridge["ori_latent_mean"]), "statistics stay those of the first training"
    with pytest.raises(CheckpointError, match=r"unknown \(cond_latent_mean.*NORMALISE_LATENTS"):
        other = {**settings, **weights, "BBDM.NORMALISE_LATENTS": False}
        sample_into(tmp_path / "other", data, tmp_path, **other)
