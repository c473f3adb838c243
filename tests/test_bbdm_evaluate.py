"""Measures of generated pictures on pictures whose answer is known, and the two programs around them."""

import hashlib
import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import evaluate, measures, train, train_first_stage
from bbdm.data import to_tensor
from bbdm.embedding import train_embedding
from bbdm.evaluate import compare, verdict
from bbdm.first_stage import make_first_stage
from bbdm.model import build_network
from bbdm.train_first_stage import revive_codes
from configs import load_cfg
from datasets.transforms import resize
from processor.ranking.intervals import Interval, measure_interval
from utils.errors import DataError, UsageError

PINNED = [[-0.16604, -0.02484, -0.30902, -0.05609], [-0.16764, 0.08257, -0.39116, 0.04746]]
"""The first four features of two pictures."""


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


def test_pictures_become_grey_values_from_0_to_1():
    bands = torch.tensor([[-1.0, -1.0, 0.5], [3.0, 0.0, 0.0], [-4.0, 0.0, 0.0]])[..., None, None]
    torch.testing.assert_close(measures.to_grey(bands).flatten(), torch.tensor([0.25, 1.0, 0.0]))


def test_speckle_contrast_is_the_median_of_deviation_by_mean():
    board = ((torch.arange(14)[:, None] + torch.arange(14)) % 2).float()  # 24 or 25 white pixels of a window's 49
    mean = 0.5 + 0.5 / 49
    expected = (mean * (1 - mean)) ** 0.5 / mean
    assert measures.speckle_contrast(board[None]).item() == pytest.approx(expected, abs=0.03)
    dark = torch.cat([board, torch.zeros(60, 14)])
    assert measures.speckle_contrast(dark[None]).item() == pytest.approx(expected, abs=0.6)
    windows = [board[i : i + 7, j : j + 7] for i in range(8) for j in range(8)]
    ratios = sorted((window.std(unbiased=False) / window.mean()).item() for window in windows)
    assert measures.speckle_contrast(board[None]).item() == pytest.approx(ratios[31], abs=1e-4)
    assert measures.contrast_distance(board[None], torch.ones(1, 14, 14)).item() == pytest.approx(ratios[31], abs=1e-4)


def test_spectrum_is_that_of_each_ring():
    pictures = noise(2, 8, 6)
    found = measures.spectrum(pictures)
    assert found.shape == (2, 3)
    power = np.abs(np.fft.fft2(pictures[1] - pictures[1].mean())) ** 2 / 48
    radius = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(6)[None])
    ring = np.minimum(np.rint(radius * 6), 3)
    expected = [np.log10(power[ring == number].mean()) for number in (1, 2, 3)]
    np.testing.assert_allclose(found[1], expected, rtol=1e-4)
    assert measures.spectrum(torch.ones(1, 8, 8)).tolist() == [[-8.0] * 4]


def test_similarity_of_many_pictures_is_that_of_each():
    first, second = noise(70, 12, 13), noise(70, 12, 13, seed=1)
    found = measures.ssim(first, second)
    assert found.shape == (70,)
    for place in (0, 63, 64, 69):
        torch.testing.assert_close(found[place : place + 1], measures.ssim(first[place : place + 1], second[place : place + 1]))


def test_similarity_leaves_out_windows_over_the_border():
    """A window of Gaussian weights: 11 pixels, sigma 1.5; of 11 x 12 pixels, two lie inside."""
    first, second = noise(1, 11, 12), noise(1, 11, 12, seed=1)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    values = []
    for left in (0, 1):
        x, y = (picture[0, :, left : left + 11].double().numpy() for picture in (first, second))
        mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
        variances = (weight * x * x).sum() - mean_x**2 + (weight * y * y).sum() - mean_y**2
        covariance = (weight * x * y).sum() - mean_x * mean_y
        light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        values.append(light * (2 * covariance + 0.03**2) / (variances + 0.03**2))
    assert measures.ssim(first, second).item() == pytest.approx(np.mean(values), rel=1e-5)


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


def test_each_measure_is_of_the_samples_or_of_their_mean():
    real = noise(3, 16, 16)
    samples = torch.stack([real + 0.1, real - 0.1, real + 0.3], dim=1)
    places = ["a", "b", "c"]
    figures = compare(samples, real, places, lambda pictures: pictures.flatten(1))
    assert figures["L1"].mean == pytest.approx(0.1, abs=1e-6)
    assert figures["histogram"].mean == pytest.approx(0.5 / 3, abs=1e-6)
    assert figures["diversity"].mean == pytest.approx((0.2 + 0.2 + 0.4) / 3, abs=1e-6)
    assert figures["SSIM"].mean == pytest.approx(measures.ssim(real + 0.1, real).mean().item(), abs=1e-5)
    assert figures["spectrum"].mean == pytest.approx(0, abs=1e-3)
    assert (figures["rank"].mean, figures["top1"].mean) == (1, 1)
    cosines = [
        1 - torch.cosine_similarity(real[i].flatten(), sample.flatten(), dim=0) for i in range(3) for sample in samples[i]
    ]
    assert figures["features"].mean == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-5)
    contrasts = [measures.contrast_distance(sample[None], real[i : i + 1]) for i in range(3) for sample in samples[i]]
    assert figures["contrast"].mean == pytest.approx(torch.cat(contrasts).mean().item(), abs=1e-5)
    swapped = compare(samples.roll(1, dims=0), real, places, lambda pictures: pictures.flatten(1))
    assert swapped["rank"].mean > 1.5
    assert swapped["top1"].mean == 0


def test_a_report_tells_what_the_figures_depend_on(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    words = [
        "BBDM.WEIGHT",
        str(tmp_path / "w.pth"),
        "BBDM.SAMPLE_NUM",
        "4",
        "BBDM.SAMPLER",
        "few_step",
        "BBDM.SAMPLE_STEP",
        "6",
    ]
    row = {name: Interval(0.5, 0.5, 0.5, 0.95, 4, 2) for name in (*evaluate.LOWER_IS_BETTER, *evaluate.HIGHER_IS_BETTER)}
    report = evaluate.build_report(load_cfg(None, words), {"generated": row, "mean SAR": row}, features="none")
    assert report["weights"] == {"path": str(tmp_path / "w.pth"), "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert (report["samples_per_image"], report["sampler"]["steps"], report["sampler"]["name"]) == (4, 6, "few_step")
    assert report["verdict"][0] == "L1: generated pictures do not beat mean SAR", "a draw is no victory"
    assert len(report["verdict"]) == 10
    assert report["networks"] == {"Frechet": "none", "LPIPS": "none; BBDM.LPIPS_WEIGHTS names one"}
    named = load_cfg(None, [*words, "BBDM.FID_WEIGHTS", "inception.pth", "BBDM.LPIPS_WEIGHTS", "alexnet.pth"])
    networks = evaluate.build_report(named, {"generated": row, "mean SAR": row}, features="none")["networks"]
    assert networks == {"Frechet": "FID, Inception v3 of inception.pth", "LPIPS": "alexnet.pth"}
    assert report["features"] == "none"


def test_what_is_better_high_and_what_low():
    assert evaluate.LOWER_IS_BETTER == ("L1", "histogram", "contrast", "spectrum", "features", "rank", "Frechet", "LPIPS")
    assert evaluate.HIGHER_IS_BETTER == ("SSIM", "diversity", "deviation", "top1")


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


def test_the_feature_space_of_a_seed_is_always_the_same():
    """Figures of two evaluations compare only in one space: numbers of two steps, by this very recipe."""
    embed = train_embedding(noise(60, 16, 16), seed=3, steps=2)
    features = embed(noise(2, 16, 16, seed=1))
    assert features.shape == (2, 64)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(features[:, :4], torch.tensor(PINNED), atol=2e-4, rtol=0)
    assert not features.requires_grad
    assert inspect.signature(train_embedding).parameters["steps"].default == 400


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
    assert set(content["figures"]["generated"]) == {*evaluate.LOWER_IS_BETTER, *evaluate.HIGHER_IS_BETTER} - {"LPIPS"}
    assert content["networks"]["Frechet"] == content["features"]
    assert content["figures"]["generated"]["Frechet"]["high"] is None
    assert content["figures"]["grey optical"]["diversity"]["mean"] == 0.0
    assert content["verdict"]


def test_what_is_compared_is_read_and_drawn_as_the_keys_say(data, tmp_path, monkeypatch):
    words = arguments(
        data, tmp_path, **{"BBDM.CROP": False, "SOLVER.SEED": 5, "BBDM.SAMPLE_NUM": 3, "BBDM.WEIGHT": tmp_path / "w.pth"}
    )
    cfg = load_cfg(None, words)
    torch.save(build_network(cfg).state_dict(), tmp_path / "w.pth")
    told, compared = {}, []

    def draw(model, jobs, read, settings, **drawing):
        told.update(jobs=jobs, first=read(0), last=read(5), steps=settings.steps, **drawing)
        return [torch.full((3, 16, 16), place / 10) for place in range(len(jobs))]

    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(
        evaluate, "compare", lambda samples, real, places, embed: compared.append((samples, real, places)) or {}
    )
    judged, embedded = [], []
    monkeypatch.setattr(evaluate, "build_quality", lambda *_: lambda *pictures: judged.append(pictures) or {})
    monkeypatch.setattr(evaluate, "train_embedding", lambda pictures, seed: embedded.append((pictures, seed)))
    figures = evaluate.build_comparison(cfg, torch.device("cpu"))
    assert told["jobs"] == [(f"{place}_0.png", k) for place in (2, 5) for k in range(3)]
    assert (told["seed"], told["batch_size"], told["steps"]) == (5, 1, 3)

    def picture(folder, place):
        with Image.open(data / folder / f"{place}_0.png") as image:
            return to_tensor(resize(np.array(image.convert("RGB")), (16, 16), Image.Resampling.BILINEAR))

    torch.testing.assert_close(told["first"], picture("opt", 2))
    torch.testing.assert_close(told["last"], picture("opt", 5))
    assert list(figures) == ["generated", "grey optical", "mean SAR"]
    (samples, *_), (optical, *_), (mean, real, places) = compared
    assert places == ["2", "5"]
    torch.testing.assert_close(samples[..., 0, 0], torch.tensor([[0.5, 0.55, 0.6], [0.65, 0.7, 0.75]]))
    grey = {folder: [measures.to_grey(picture(folder, place)) for place in range(6)] for folder in ("opt", "sar")}
    torch.testing.assert_close(real, torch.stack([grey["sar"][2], grey["sar"][5]]))
    torch.testing.assert_close(optical[:, 0], torch.stack([grey["opt"][2], grey["opt"][5]]))
    known = torch.stack([grey["sar"][place] for place in (0, 1, 3, 4)])
    torch.testing.assert_close(mean[:, 0], known.mean(dim=0).expand(2, 16, 16))
    saved = [[samples.shape, samples.flatten(1)[:, 0].tolist(), real.shape, names] for samples, real, names in judged]
    first = [round((value + 1) * 127.5) for value in (0.0, 0.3)]
    assert saved[0] == [(2, 3, 3, 16, 16), first, (2, 3, 16, 16), ["2", "5"]]
    assert [shape for shape, *_ in saved[1:]] == [(2, 1, 3, 16, 16)] * 2
    assert {samples.dtype for samples, *_ in judged} == {torch.uint8}
    torch.testing.assert_close(measures.to_grey(judged[1][0][:, 0] / 127.5 - 1), optical[:, 0], atol=3e-3, rtol=0)
    ((pictures, seed),) = embedded
    torch.testing.assert_close(pictures, known)
    assert seed == 5


def test_evaluation_needs_weights_and_held_out_pairs(data, tmp_path):
    with pytest.raises(UsageError, match=r"BBDM.WEIGHT is empty"):
        evaluate.main(arguments(data, tmp_path))
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"set BBDM.HOLD_OUT_EVERY"):
        evaluate.main(arguments(data, tmp_path, **{"BBDM.WEIGHT": tmp_path / "w.pth", "BBDM.HOLD_OUT_EVERY": 0}))


def test_a_first_stage_learns_to_reconstruct(data, tmp_path):
    train_first_stage.main(arguments(data, tmp_path, **{"SOLVER.MAX_EPOCHS": 6, "SOLVER.BASE_LR": 2e-3}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert 0 < epochs[-1]["codes_used"] <= 32
    held_out = [line["validation_l1"] for line in lines if line["kind"] == "validation"]
    assert len(held_out) == 1
    assert 0 < held_out[0] < 1
    stage = make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=32)
    stage.load_state_dict(torch.load(tmp_path / "first_stage_6.pth", weights_only=True))
    torch.manual_seed(5)
    train_first_stage.main(arguments(data, tmp_path / "again", **{"SOLVER.MAX_EPOCHS": 1, "SOLVER.BASE_LR": 2e-3}))
    again = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["loss"] for line in again if line["kind"] == "step"] == [
        line["loss"] for line in lines if line["kind"] == "step" and line["epoch"] == 1
    ]


def test_unused_codes_move_onto_latents():
    stage = make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=4)
    before = stage.quantize.embedding.weight.clone()
    latent = torch.full((1, 3, 2, 2), 5.0)
    revive_codes(stage, torch.tensor([True, False, True, False]), latent)
    after = stage.quantize.embedding.weight
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[[1, 3]].tolist() == [[5.0] * 3] * 2
