"""Which chips are sampled, what the manifest says of the run, and what becomes of a drawn picture."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import sample
from bbdm.model import build_network, build_sampler_settings
from configs import load_cfg
from datasets.generated import SamplingRun
from tests.chip_files import write_hoss
from utils.device import Precision
from utils.errors import DataError, UsageError

CPU = torch.device("cpu")
SMALL = {"WIDTH": 32, "MULTIPLIERS": [1, 1], "BLOCKS": 1, "HEAD_WIDTH": 32, "IMAGE_SIZE": [8, 16], "SAMPLE_NUM": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_hoss(tmp_path_factory.mktemp("root"), train_ships=6, test_ships=2, subset=True)


@pytest.fixture
def cfg_of(root, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")

    def make(**changes):
        words = [str(word) for key, value in (SMALL | changes).items() for word in (f"BBDM.{key}", value)]
        paths = ["DATASETS.ROOT_DIR", str(root), "BBDM.WEIGHT", str(tmp_path / "w.pth"), "OUTPUT_DIR", str(tmp_path / "out")]
        return load_cfg(None, [*words, *paths, "SOLVER.SEED", "11", "MODEL.DEVICE", "cpu"])

    return make


def names_of(sources):
    return sorted((str(chip.split), chip.path.name) for chip in sources)


def test_optical_chips_of_the_named_splits_are_sources_with_their_size(cfg_of):
    queries = [("query", "0101_s01c0_RGB.tif"), ("query", "0102_s01c0_RGB.tif")]
    sources = sample.build_sources(cfg_of(SPLITS=["query"]))
    assert names_of(sources) == queries
    assert {chip.size for chip in sources} == {(24, 60)}
    gallery = [("gallery", f"{pid}_s01c{view}_RGB.tif") for pid in ("0101", "0102") for view in (1, 2)]
    gallery += [("gallery", "-1_0000_RGB.tif")]
    assert names_of(sample.build_sources(cfg_of(SPLITS=["query", "gallery"]))) == sorted(queries + gallery)
    assert names_of(sample.build_sources(cfg_of())) == sorted(queries + gallery), "each once, though the subset holds copies"


def test_splits_without_a_source_are_refused(cfg_of, tmp_path):
    with pytest.raises(UsageError, match=r"set DATASETS\.VAL_FRACTION"):
        sample.build_sources(cfg_of(SPLITS=["query", "validation/query"]))
    words = ["DATASETS.ROOT_DIR", str(write_hoss(tmp_path, train_ships=0, test_ships=1)), "BBDM.SPLITS"]
    assert len(sample.build_sources(load_cfg(None, [*words, "['query']"]))) == 1, "no training chip is needed"
    lone = load_cfg(None, [*words, "['O2S/query']"])
    with pytest.raises(DataError, match="holds no optical chip in O2S/query"):
        sample.build_sources(lone)


def test_validation_chips_are_sources_beside_the_others(cfg_of):
    cfg = cfg_of(SPLITS=["validation/query", "query"])
    cfg.defrost()
    cfg.DATASETS.VAL_FRACTION = 0.5
    splits = {str(chip.split) for chip in sample.build_sources(cfg)}
    assert splits == {"validation/query", "query"}
    cfg.BBDM.SPLITS = ["validation/gallery"]
    assert {str(chip.split) for chip in sample.build_sources(cfg)} == {"validation/gallery"}


def test_a_run_tells_all_that_decides_a_picture(cfg_of, tmp_path):
    def run_of(dtype=None, **changes):
        cfg = cfg_of(**changes)
        return sample.build_run(cfg, build_sampler_settings(cfg), Precision("cpu", dtype))

    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert run_of(SAMPLE_STEP=7, ETA=0.5) == SamplingRun(
        samples_per_image=2,
        sampler="released",
        steps=7,
        eta=0.5,
        seed=11,
        weights_sha256=sha256,
        model={
            "SPACE": "pixel",
            "OBJECTIVE": "grad",
            "SCHEDULE": "linear",
            "NUM_TIMESTEPS": 1000,
            "MAX_VARIANCE": 1.0,
            "IMAGE_SIZE": [8, 16],
            "CLIP": False,
            "GREY": False,
            "WIDTH": 32,
            "MULTIPLIERS": [1, 1],
            "BLOCKS": 1,
            "ATTENTION_FACTORS": [8, 16, 32],
            "HEAD_WIDTH": 32,
        },
    )
    assert run_of(SAMPLER="few_step", ORDER=3).sampler == "few_step (order 3)"
    assert run_of(SAMPLE_STEP=0).sampler == "released (every step)"
    assert run_of(SAMPLE_STEP=0).steps == 1000
    assert run_of(CONDITION="none").model["CONDITION"] == "none"
    latent_keys = {"NORMALISE_LATENTS": True, "LATENT_BEFORE_QUANT_CONV": True, "FIRST_STAGE_ATTENTION": [32]}
    assert latent_keys.items() <= run_of(SPACE="latent", **latent_keys).model.items()
    assert run_of(torch.bfloat16).model["PRECISION"] == "bfloat16"
    (tmp_path / "stage.pth").write_bytes(b"stage")
    latent = run_of(SPACE="latent", FIRST_STAGE=tmp_path / "stage.pth")
    assert latent.model["FIRST_STAGE_SHA256"] == hashlib.sha256(b"stage").hexdigest()
    assert "FIRST_STAGE_SHA256" not in run_of(FIRST_STAGE=tmp_path / "stage.pth").model
    assert "FIRST_STAGE_SHA256" not in run_of(SPACE="latent").model


def test_pictures_are_read_bilinear_and_written_bicubic_at_the_size_of_the_chip(root, cfg_of, tmp_path, monkeypatch):
    cfg = cfg_of(SPLITS=["query"], SAMPLE_STEP=5)
    torch.save(build_network(cfg).state_dict(), tmp_path / "w.pth")
    drawn = torch.rand(4, 3, 8, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    told = {}

    def draw(model, jobs, read, settings, **drawing):
        told.update(jobs=jobs, read=[read(place) for place in range(4)], steps=settings.steps, **drawing)
        return iter(drawn)

    monkeypatch.setattr(sample, "draw", draw)
    sample.build_and_sample(cfg, CPU, tmp_path / "out")
    ships = ("0101_s01c0_RGB", "0102_s01c0_RGB")
    assert told["jobs"] == [(f"{ship}.tif", k) for ship in ships for k in range(2)]
    assert (told["seed"], told["batch_size"], told["steps"]) == (11, 1, 5)
    for place, (ship, k) in enumerate((ship, k) for ship in ships for k in range(2)):
        with Image.open(root / "HOSS" / "query" / f"{ship}.tif") as image:
            small = np.asarray(image.resize((16, 8), Image.Resampling.BILINEAR), dtype=np.float32)
        torch.testing.assert_close(told["read"][place].permute(1, 2, 0), torch.from_numpy(small / 127.5 - 1), atol=1e-5, rtol=0)
        picture = ((drawn[place].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        with Image.open(tmp_path / "out" / f"{ship}_{k}.png") as written:
            expected = Image.fromarray(picture).resize((24, 60), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))


def test_two_processes_share_the_chips_in_turn(cfg_of, tmp_path, monkeypatch):
    cfg = cfg_of(SPLITS=["query"], SAMPLE_STEP=3)
    torch.save(build_network(cfg).state_dict(), tmp_path / "w.pth")
    seen = []
    monkeypatch.setattr(
        sample, "draw", lambda model, jobs, *_, **__: seen.append(jobs) or iter(torch.zeros(len(jobs), 3, 8, 16))
    )
    monkeypatch.setattr(sample.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(sample.distributed, "rank", lambda: 1)
    monkeypatch.setattr(sample.distributed, "is_main", lambda: True)
    monkeypatch.setattr(sample.distributed, "broadcast", lambda value: value)
    sample.build_and_sample(cfg, CPU, tmp_path / "out")
    assert seen == [[("0102_s01c0_RGB.tif", 0), ("0102_s01c0_RGB.tif", 1)]]
