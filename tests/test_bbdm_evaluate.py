"""Measures of generated pictures on pictures whose answer is known, and the two programs around them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import evaluate, measures, train, train_first_stage
from bbdm.embedding import train_embedding
from bbdm.evaluate import compare, verdict
from bbdm.first_stage import make_first_stage
from bbdm.train_first_stage import reconstruct, revive_codes
from configs import load_cfg
from processor.ranking.intervals import Interval, measure_interval
from utils.device import Precision
from utils.errors import DataError, UsageError


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_equal_pictures_are_at_distance_0():
    pictures = noise(2, 24, 20)
    for distance in (
        measures.l1,
        measures.histogram_distance,
        measures.contrast_distance,
        measures.spectrum_distance,
    ):
        assert distance(pictures, pictures).tolist() == [0.0, 0.0]
    torch.testing.assert_close(measures.ssim(pictures, pictures), torch.ones(2))
    torch.testing.assert_close(measures.feature_distance(pictures[:, 0], pictures[:, 0]), torch.zeros(2), atol=1e-6, rtol=0)


def test_distances_have_the_values_of_hand():
    black, white = torch.zeros(1, 16, 16), torch.ones(1, 16, 16)
    assert measures.l1(black, white).item() == 1.0
    assert measures.histogram_distance(black, white).item() == 1.0
    assert measures.ssim(black, white).item() == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-3)
    assert measures.speckle_contrast(white).item() == 0.0
    assert measures.speckle_contrast(black).item() == 0.0
    assert measures.feature_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])).item() == 2.0


def test_speckle_moves_pixels_but_not_what_single_samples_are_judged_by():
    scene = 0.2 + 0.1 * (torch.arange(64) > 31).float().expand(4, 64, 64)
    first, second = (scene * (1 + 0.3 * (noise(4, 64, 64, seed=seed) - 0.5)) for seed in (1, 2))
    assert measures.l1(first, second).min() > 5 * measures.histogram_distance(first, second).max()
    assert measures.contrast_distance(first, second).max() < 0.02
    assert measures.contrast_distance(first, scene).min() > 0.05
    assert (measures.spectrum_distance(first, second) < 0.2 * measures.spectrum_distance(first, scene)).all()


def test_spectrum_finds_a_wave_at_its_frequency():
    wave = 0.5 + 0.5 * torch.sin(2 * torch.pi * 8 * torch.arange(64) / 64).expand(1, 64, 64)
    assert measures.spectrum(wave).shape == (1, 32)
    assert measures.spectrum(wave).argmax().item() == 7  # rings count from 1


def test_diversity_is_the_mean_over_pairs():
    samples = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert measures.diversity(samples).item() == pytest.approx(2 / 3)
    assert measures.diversity(samples[:, :1]).tolist() == [0.0]


def test_ranks_count_the_wrong_places_before_the_first_right_one():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    ranks = measures.match_ranks(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), gallery, torch.tensor([7, 9]), torch.tensor([7, 8, 9]))
    assert ranks.tolist() == [1, 3]


def test_features_that_are_all_alike_rank_as_chance_does():
    number = torch.arange(9)
    for features in (torch.ones(9, 4), torch.zeros(9, 4)):
        ranks = measures.match_ranks(features, features, number, number)
        assert ranks.float().mean() == 5
        assert (ranks == 1).float().mean() <= 1 / 9
    scenes = noise(9, 16, 16)
    figures = compare(
        scenes[:, None], scenes, [str(place) for place in range(9)], lambda pictures: torch.ones(len(pictures), 4)
    )
    assert figures["rank"].mean == 5
    assert figures["top1"].mean == pytest.approx(1 / 9)


def test_intervals_count_places_and_keep_to_the_limits_of_a_measure():
    scenes = noise(12, 16, 16)
    samples = (scenes + 0.2 * noise(12, 16, 16, seed=1)).clamp(0, 1)[:, None]
    by_picture, by_place = (
        compare(samples, scenes, places, lambda pictures: pictures.flatten(1))
        for places in ([str(i) for i in range(12)], [str(i // 6) for i in range(12)])
    )
    assert (by_picture["L1"].ships, by_place["L1"].ships) == (12, 2)
    assert by_picture["L1"].mean == by_place["L1"].mean
    assert by_picture["rank"].low >= 1
    assert 0 < by_picture["top1"].low < by_picture["top1"].mean <= 1
    for name, interval in by_picture.items():
        assert interval.low <= interval.mean <= interval.high, name
    expected = measure_interval(measures.l1(samples[:, 0], scenes), np.arange(12), lowest=0)
    assert by_picture["L1"] == expected


def test_the_table_and_the_file_hold_the_intervals(tmp_path, caplog):
    caplog.set_level("INFO")
    figures = {key: Interval(0.5, 0.25, 0.75, 0.95, 4, 2) for key in (*evaluate.LOWER_IS_BETTER, *evaluate.HIGHER_IS_BETTER)}
    figures["L1"] = Interval(0.5, 0.0, float("inf"), 0.95, 4, 1)
    cfg = load_cfg(None, ["BBDM.WEIGHT", str(tmp_path / "w.pth")])
    (tmp_path / "w.pth").write_bytes(b"weights")
    evaluate.publish(evaluate.build_report(cfg, {"generated": figures}, features="none"), tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["figures"]["generated"]
    assert written["SSIM"] == {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert written["L1"] == {"mean": 0.5, "low": 0.0, "high": None}
    assert "0.5000 (0.2500-0.7500)" in caplog.text
    assert "0.5000 (0.0000-?)" in caplog.text


def test_comparison_prefers_pictures_with_speckle_over_smooth_ones():
    scenes = torch.nn.functional.interpolate(noise(6, 1, 4, 4), size=(32, 32), mode="bilinear")[:, 0]
    real, *samples = (scenes * (1 + 0.5 * (noise(6, 32, 32, seed=seed) - 0.5)) for seed in range(4))
    embed = train_embedding(real, seed=0, steps=5)
    places = ["a", "a", "b", "b", "c", "c"]
    figures = {
        "generated": compare(torch.stack(samples, 1).clamp(0, 1), real.clamp(0, 1), places, embed),
        "mean SAR": compare(real.mean(0).expand(6, 1, 32, 32), real.clamp(0, 1), places, embed),
    }
    assert figures["generated"]["L1"].mean < figures["mean SAR"]["L1"].mean
    assert figures["generated"]["contrast"].mean < figures["mean SAR"]["contrast"].mean
    assert figures["generated"]["diversity"].mean > 0
    assert figures["generated"]["L1"].low <= figures["generated"]["L1"].mean <= figures["generated"]["L1"].high


def test_a_model_that_does_not_beat_the_baselines_is_told_so():
    def row(value):
        return {
            name: Interval(value, value, value, 0.95, 4, 2) for name in (*evaluate.LOWER_IS_BETTER, *evaluate.HIGHER_IS_BETTER)
        }

    told = verdict({"generated": row(0.5), "grey optical": row(0.4), "mean SAR": row(0.6)})
    assert "L1: generated pictures do not beat grey optical" in told
    assert "SSIM: generated pictures do not beat mean SAR" in told
    best = {**row(0.1), "SSIM": Interval(0.9, 0.9, 0.9, 0.95, 4, 2), "top1": Interval(0.9, 0.9, 0.9, 0.95, 4, 2)}
    assert verdict({"generated": best, "grey optical": row(0.4)}) == ["generated pictures beat both baselines in every measure"]


def test_feature_space_tells_places_apart():
    scenes = torch.nn.functional.interpolate(noise(8, 1, 4, 4), size=(32, 32), mode="bilinear")[:, 0]
    embed = train_embedding(scenes, seed=0, steps=60)
    views = (scenes * (1 + 0.3 * (noise(8, 32, 32, seed=4) - 0.5))).clamp(0, 1)
    ranks = measures.match_ranks(embed(views), embed(scenes), torch.arange(8), torch.arange(8))
    assert (ranks == 1).float().mean() > 0.8
    again = train_embedding(scenes, seed=0, steps=60)
    assert torch.equal(again(scenes), embed(scenes))


TINY = {
    "BBDM.IMAGE_SIZE": "[16, 16]",
    "BBDM.CROP": "True",
    "BBDM.HOLD_OUT_EVERY": "3",
    "BBDM.WIDTH": "32",
    "BBDM.MULTIPLIERS": "[1, 1]",
    "BBDM.BLOCKS": "1",
    "BBDM.HEAD_WIDTH": "32",
    "BBDM.ACCUMULATION": "1",
    "BBDM.GRID_PERIOD": "0",
    "BBDM.SAMPLE_NUM": "2",
    "BBDM.SAMPLE_STEP": "3",
    "BBDM.SAMPLER": "few_step",
    "BBDM.FIRST_STAGE_WIDTH": "32",
    "BBDM.FIRST_STAGE_MULTIPLIERS": "[1, 1]",
    "BBDM.FIRST_STAGE_BLOCKS": "1",
    "BBDM.FIRST_STAGE_CODES": "32",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_EPOCHS": "2",
    "SOLVER.LOG_PERIOD": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "MODEL.DEVICE": "cpu",
}


def arguments(data, output, **settings):
    settings = {**TINY, "BBDM.PAIRS_DIR": str(data), "OUTPUT_DIR": str(output), **settings}
    return [word for key, value in settings.items() for word in (key, str(value))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for place in range(6):
        pixels = np.random.default_rng(place).integers(0, 255, (24, 24, 3)).astype(np.uint8)
        for folder, picture in (("opt", pixels), ("sar", pixels[..., 0])):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(picture).save(root / folder / f"{place}_0.png")
    return root


def test_evaluation_writes_every_figure(data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "train_embedding", lambda pictures, seed: train_embedding(pictures, seed=seed, steps=3))
    train.main(arguments(data, tmp_path))
    evaluate.main(arguments(data, tmp_path / "out", **{"BBDM.WEIGHT": tmp_path / "bridge_2.pth"}))
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert set(content["figures"]) == {"generated", "grey optical", "mean SAR"}
    assert set(content["figures"]["generated"]) == {*evaluate.LOWER_IS_BETTER, *evaluate.HIGHER_IS_BETTER}
    assert content["figures"]["grey optical"]["diversity"]["mean"] == 0.0
    assert content["verdict"]


def test_evaluation_needs_weights_and_held_out_pairs(data, tmp_path):
    with pytest.raises(UsageError, match=r"BBDM.WEIGHT is empty"):
        evaluate.main(arguments(data, tmp_path))
    with pytest.raises(DataError, match=r"set BBDM.HOLD_OUT_EVERY"):
        evaluate.main(arguments(data, tmp_path, **{"BBDM.WEIGHT": "w.pth", "BBDM.HOLD_OUT_EVERY": 0}))


def test_a_first_stage_learns_to_reconstruct(data, tmp_path):
    train_first_stage.main(arguments(data, tmp_path, **{"SOLVER.MAX_EPOCHS": 6, "SOLVER.BASE_LR": 2e-3}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["validation_l1"] is not None
    stage = make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=32)
    stage.load_state_dict(torch.load(tmp_path / "first_stage_6.pth", weights_only=True))


def test_gradients_pass_the_quantisation_to_the_encoder():
    torch.manual_seed(0)
    stage = make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=8)
    result = reconstruct(stage, torch.randn(1, 3, 8, 8), Precision("cpu"))
    result.picture.sum().backward()
    assert stage.quant_conv.weight.grad.abs().sum() > 0
    assert stage.quantize.embedding.weight.grad is None


def test_unused_codes_move_onto_latents():
    stage = make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=4)
    before = stage.quantize.embedding.weight.clone()
    latent = torch.full((1, 3, 2, 2), 5.0)
    revive_codes(stage, torch.tensor([True, False, True, False]), latent)
    after = stage.quantize.embedding.weight
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[[1, 3]].tolist() == [[5.0] * 3] * 2
