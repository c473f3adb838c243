"""Configurations: what the released programs' files mean, what is refused, and that no key goes unread."""

import logging
import re
from pathlib import Path

import pytest
import yaml

from configs import load_cfg
from configs.defaults import KEYS, default_cfg
from configs.loading import get_value
from datasets.records import Split
from tests.commands import call, write_file
from tools import config_page
from utils.errors import UsageError

ROOT = Path(__file__).parent.parent
UNUSED = {name: key.unused for name, key in KEYS.items() if key.unused}
FLAGS = {"MODEL.IF_LABELSMOOTH": ("on", "off"), "MODEL.IF_WITH_CENTER": ("yes", "no"), "TEST.FEAT_NORM": ("yes", "no")}
"""Keys that the released programs spell with words: (word for true, word for false)."""

SHIPPED = sorted((ROOT / "configs").glob("*.yml"))

RELEASED_DEFAULTS = ROOT / "tests" / "released" / "defaults.yml"
"""Every key of the released MOS program with its default, as facts: not its file."""

CHANGED_DEFAULTS = {"MODEL.DEVICE": "auto", "SOLVER.BIAS_LR_FACTOR": 1.0, "SOLVER.COSINE_SCALE": 30.0}
"""Released keys whose default is another one here, or of another type: 1 and 30 there, which would refuse fractions."""

NEW_DEFAULTS = """
MODEL:
  PRETRAIN_PARTIAL: false
  POSITION_INIT: normal
  MODALITY_LOSS_TYPE: classwise
  MODALITY_LOSS_SQUARED: false
  DISENTANGLE: false
  ABLATION_MODE: sum
  ORTH_LOSS_WEIGHT: 0.1
  STRUCT_LOSS_WEIGHT: 0.0
  STRUCT_LAYER_INDEX: 6
DATALOADER: {CACHE_MB: 256}
INPUT:
  {COLOR_JITTER: 0.0, SAR_DENOISE: percentile, SAR_BAND: auto, SAR_LOW_PERCENT: 5.0, SAR_HIGH_PERCENT: 100.0,
   MAX_PIXELS: 2097152}
DATASETS: {VAL_FRACTION: 0.0, PAIR_JOIN: auto, QUERY_ADD_DIR: '', GALLERY_ADD_DIR: ''}
SOLVER: {SCHEDULER: cosine, LOCAL_LOSSES: false, SHARD: false, ACTIVATION_CHECKPOINTS: false,
         IMS_PER_PASS: 0, DETERMINISTIC: false, AMP: auto, COMPILE: 'off',
         RESUME: '', RESUME_ALLOW: [''], SAVE_MINUTES: 10.0, TRACKERS: []}
TEST:
  AMP: 'off'
  FEATURE_STORE: ''
  FLIP: false
  QUERY_EXPANSION: 0
  QUERY_EXPANSION_ALPHA: 0.0
  RE_RANKING_K1: 50
  RE_RANKING_K2: 15
  RE_RANKING_LAMBDA: 0.3
  RANKING_MEMORY: 1.0
  FUSION_SAMPLES: 0
  FUSION_TAU: 0.02
  GENERATED_SIZE: source
  COMMON_SPACE: 'off'
  COMMON_SPACE_SHRINKAGE: 0.01
  COMMON_SPACE_DIMENSIONS: 64
  COMMON_SPACE_DIR: ''
  SAME_MODALITY_GALLERY: true
  REPORT: true
BBDM:
  PAIRS: registered
  PAIRS_DIR: ''
  HOLD_OUT_EVERY: 0
  IMAGE_SIZE: [256, 256]
  CROP: false
  FLIP: true
  SPACE: pixel
  CONDITION: auto
  OBJECTIVE: grad
  SCHEDULE: linear
  NUM_TIMESTEPS: 1000
  MAX_VARIANCE: 1.0
  LOSS: l1
  WIDTH: 128
  MULTIPLIERS: [1, 4, 8]
  BLOCKS: 2
  ATTENTION_FACTORS: [8, 16, 32]
  HEAD_WIDTH: 64
  DROPOUT: 0.0
  ACTIVATION_CHECKPOINTS: false
  FIRST_STAGE: ''
  FIRST_STAGE_WIDTH: 128
  FIRST_STAGE_MULTIPLIERS: [1, 2, 4]
  FIRST_STAGE_BLOCKS: 2
  FIRST_STAGE_CODES: 8192
  FIRST_STAGE_CODE_WIDTH: 3
  FIRST_STAGE_ATTENTION: [0]
  LATENT_BEFORE_QUANT_CONV: false
  NORMALISE_LATENTS: false
  KEEP_LATENTS: true
  FEATURE_WEIGHT: 0.0
  FEATURE_NETWORK: ''
  FEATURE_UNTIL: 0.5
  PRETRAINED: ''
  ACCUMULATION: 2
  CLIP_GRADIENT: 0.0
  PLATEAU_FACTOR: 0.5
  PLATEAU_PATIENCE: 3000
  PLATEAU_COOLDOWN: 3000
  PLATEAU_THRESHOLD: 0.0001
  PLATEAU_MIN_LR: 0.0000005
  EMA_DECAY: 0.995
  EMA_PERIOD: 8
  EMA_START: 30000
  GRID_PERIOD: 10
  WEIGHT: ''
  SPLITS: [query, gallery, O2S/query, O2S/gallery, S2O/query, S2O/gallery]
  SAMPLE_NUM: 5
  SAMPLE_STEP: 200
  SAMPLER: released
  ETA: 1.0
  ORDER: 2
  CLIP: false
  GREY: false
  SAMPLE_BATCH: 16
  SAVED_SIZE: chip
  FID_WEIGHTS: ''
  LPIPS_WEIGHTS: ''
"""
"""Every key that the released programs lack, with its default."""

RELEASED_RUN = """
MODEL:
  PRETRAIN_CHOICE: 'imagenet'
  PRETRAIN_PATH: 'vit_b512_pre.pth'
  METRIC_LOSS_TYPE: 'triplet'
  IF_LABELSMOOTH: 'off'
  IF_WITH_CENTER: 'no'
  NAME: 'transformer'
  NO_MARGIN: True
  DEVICE_ID: ('0')
  TRANSFORMER_TYPE: 'vit_base_patch16_224_TransOSS'
  STRIDE_SIZE: [16, 16]
  MIE: True
  MIE_COE: 3.0
  MODALITY_LOSS_WEIGHT: 2.0
  SSE: True
  PAIR: False
INPUT:
  SIZE_TRAIN: [256, 128]
  SIZE_TEST: [256, 128]
  PROB: 0.5
  RE_PROB: 0.5
  PADDING: 10
  PIXEL_MEAN: [0.485, 0.456, 0.406]
  PIXEL_STD: [0.229, 0.224, 0.225]
DATASETS:
  NAMES: ('HOSS')
  ROOT_DIR: ('data')
DATALOADER:
  SAMPLER: 'softmax_triplet'
  NUM_INSTANCE: 4
  NUM_WORKERS: 8
SOLVER:
  OPTIMIZER_NAME: 'SGD'
  MAX_EPOCHS: 100
  BASE_LR: 0.0005
  IMS_PER_BATCH: 32
  WARMUP_METHOD: 'linear'
  LARGE_FC_LR: False
  CHECKPOINT_PERIOD: 1
  LOG_PERIOD: 80
  EVAL_PERIOD: 1
  WEIGHT_DECAY:  1e-4
  WEIGHT_DECAY_BIAS: 1e-4
  BIAS_LR_FACTOR: 2
TEST:
  EVAL: True
  IMS_PER_BATCH: 1
  RE_RANKING: False
  WEIGHT: ''
  NECK_FEAT: 'before'
  FEAT_NORM: 'yes'
OUTPUT_DIR: './logs/hoss_transoss'
"""
"""The settings of the released MOS run, spelt as there."""


def leaves(node: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def released_defaults() -> dict:
    return leaves(yaml.safe_load(RELEASED_DEFAULTS.read_text(encoding="utf-8")))


def load_text(tmp_path: Path, text: str, overrides=()):
    return load_cfg(write_file(tmp_path / "some.yml", text), overrides)


def test_every_key_has_the_default_that_is_written_here():
    released, new = released_defaults(), leaves(yaml.safe_load(NEW_DEFAULTS))
    assert {name for name, key in KEYS.items() if key.released} == released.keys()
    assert {name: released[name] for name in CHANGED_DEFAULTS} == {
        "MODEL.DEVICE": "cuda", "SOLVER.BIAS_LR_FACTOR": 1, "SOLVER.COSINE_SCALE": 30,
    }  # fmt: skip
    cfg = default_cfg()
    for name, value in (released | new | CHANGED_DEFAULTS).items():
        found = get_value(cfg, name)
        assert (found, type(found)) == (value, type(value)), name
        if isinstance(value, list):
            assert [type(item) for item in found] == [type(item) for item in value], name
    assert leaves(cfg).keys() == KEYS.keys() == {*released, *new}


def test_defaults_hold_together():
    assert load_cfg() == default_cfg()
    assert all(key.convert(key.default) == key.default for key in KEYS.values())


def test_released_run_means_what_it_meant(tmp_path):
    cfg = load_text(tmp_path, RELEASED_RUN)
    assert cfg.MODEL.DEVICE_ID == "0"
    assert (cfg.DATASETS.NAMES, cfg.DATASETS.ROOT_DIR) == ("HOSS", "data")
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_BIAS == 1e-4
    assert (cfg.MODEL.IF_LABELSMOOTH, cfg.MODEL.IF_WITH_CENTER, cfg.TEST.FEAT_NORM) == ("off", "no", "yes")
    assert cfg.MODEL.STRIDE_SIZE == [16, 16]
    spelt = leaves(yaml.safe_load(RELEASED_RUN))
    same = {key for key in spelt if get_value(cfg, key) == spelt[key]}
    assert spelt.keys() - same == {
        "MODEL.DEVICE_ID", "DATASETS.NAMES", "DATASETS.ROOT_DIR", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_BIAS",
    }  # fmt: skip
    untouched = KEYS.keys() - spelt.keys()
    assert all(get_value(cfg, key) == get_value(default_cfg(), key) for key in untouched)


def test_shipped_mos_config_is_the_released_run_but_for_paths_and_batch_of_the_test(tmp_path):
    released, ours = load_text(tmp_path, RELEASED_RUN), load_cfg(ROOT / "configs" / "hoss_transoss.yml")
    different = {key for key in KEYS if get_value(released, key) != get_value(ours, key)}
    assert different == {"MODEL.PRETRAIN_PATH", "TEST.IMS_PER_BATCH", "TEST.EVAL"}


RELEASED_BRIDGE = {
    "BBDM.FLIP": False, "BBDM.SPACE": "pixel", "BBDM.CONDITION": "auto", "BBDM.IMAGE_SIZE": [256, 256], "BBDM.WIDTH": 128,
    "BBDM.MULTIPLIERS": [1, 4, 8], "BBDM.BLOCKS": 2, "BBDM.ATTENTION_FACTORS": [8, 16, 32], "BBDM.ACCUMULATION": 2,
    "BBDM.EMA_DECAY": 0.995, "BBDM.EMA_PERIOD": 8, "BBDM.EMA_START": 30000, "BBDM.NORMALISE_LATENTS": False,
    "BBDM.LATENT_BEFORE_QUANT_CONV": False, "SOLVER.AMP": "tf32", "SOLVER.BASE_LR": 1e-4, "SOLVER.IMS_PER_BATCH": 8,
}  # fmt: skip
LATENT = {"BBDM.SPACE": "latent", "BBDM.CONDITION": "none", "BBDM.ACCUMULATION": 4}
LATENT_MODELS = {
    "": {},
    "_f4": LATENT | {
        "BBDM.FIRST_STAGE_MULTIPLIERS": [1, 2, 4], "BBDM.FIRST_STAGE_CODE_WIDTH": 3, "BBDM.FIRST_STAGE_CODES": 8192,
        "BBDM.FIRST_STAGE_ATTENTION": [0], "BBDM.ATTENTION_FACTORS": [32, 16, 8],
    },
    "_f8": LATENT | {
        "BBDM.FIRST_STAGE_MULTIPLIERS": [1, 2, 2, 4], "BBDM.FIRST_STAGE_CODE_WIDTH": 4, "BBDM.FIRST_STAGE_CODES": 16384,
        "BBDM.FIRST_STAGE_ATTENTION": [32], "BBDM.ATTENTION_FACTORS": [32, 16, 8],
    },
    "_f16": LATENT | {
        "BBDM.FIRST_STAGE_MULTIPLIERS": [1, 1, 2, 2, 4], "BBDM.FIRST_STAGE_CODE_WIDTH": 8, "BBDM.FIRST_STAGE_CODES": 16384,
        "BBDM.FIRST_STAGE_ATTENTION": [16], "BBDM.ATTENTION_FACTORS": [16, 8, 4],
    },
}  # fmt: skip


@pytest.mark.parametrize("model", LATENT_MODELS)
def test_shipped_bridges_are_the_published_models_by_the_released_recipe(model):
    names = {"qxs": 100, "hoss": 250}
    cfgs = {name: load_cfg(ROOT / "configs" / f"bbdm_{name}{model}.yml") for name in names}
    for name, epochs in names.items():
        wanted = RELEASED_BRIDGE | LATENT_MODELS[model] | {"SOLVER.MAX_EPOCHS": epochs}
        assert {key: get_value(cfgs[name], key) for key in wanted} == wanted
    different = {key for key in KEYS if get_value(cfgs["qxs"], key) != get_value(cfgs["hoss"], key)}
    assert different == {
        "BBDM.PAIRS", "BBDM.HOLD_OUT_EVERY", "BBDM.PRETRAINED", "DATASETS.ROOT_DIR", "SOLVER.MAX_EPOCHS", "OUTPUT_DIR",
    }  # fmt: skip
    first, then = cfgs.values()
    assert first.OUTPUT_DIR.removeprefix("./") + "/last.pth" == then.BBDM.PRETRAINED


def test_shipped_baseline_is_transoss():
    mos, baseline = load_cfg(ROOT / "configs" / "hoss_transoss.yml"), load_cfg(ROOT / "configs" / "hoss_baseline.yml")
    different = {key: get_value(baseline, key) for key in KEYS if get_value(mos, key) != get_value(baseline, key)}
    assert different == {
        "MODEL.MODALITY_LOSS_WEIGHT": 0.0,
        "INPUT.SAR_DENOISE": "max",
        "SOLVER.MAX_EPOCHS": 200,
        "SOLVER.CHECKPOINT_PERIOD": 10,
        "SOLVER.EVAL_PERIOD": 10,
        "OUTPUT_DIR": "./logs/hoss_baseline",
    }


RELEASED_SDF_NET = """
MODEL: {PRETRAIN_PATH: vit_b512_pre.pth, METRIC_LOSS_TYPE: triplet, IF_LABELSMOOTH: 'off', IF_WITH_CENTER: 'no',
  NAME: transformer, NO_MARGIN: true, DEVICE_ID: ('0'), TRANSFORMER_TYPE: vit_base_patch16_224_TransOSS,
  STRIDE_SIZE: [16, 16], MIE: true, MIE_COE: 3.0, SSE: true, PAIR: false,
  DISENTANGLE: true, ABLATION_MODE: 'sum', ORTH_LOSS_WEIGHT: 10.0, STRUCT_LOSS_WEIGHT: 1.0, STRUCT_LAYER_INDEX: 6}
INPUT: {SIZE_TRAIN: [256, 128], SIZE_TEST: [256, 128], PROB: 0.5, RE_PROB: 0.2, PADDING: 10}
DATASETS: {NAMES: ('HOSS'), ROOT_DIR: data}
DATALOADER: {SAMPLER: softmax_triplet, NUM_INSTANCE: 4, NUM_WORKERS: 4}
SOLVER: {OPTIMIZER_NAME: SGD, MAX_EPOCHS: 100, BASE_LR: 0.0005, IMS_PER_BATCH: 32, WARMUP_METHOD: linear, LARGE_FC_LR: false,
  CHECKPOINT_PERIOD: -1, LOG_PERIOD: 25, EVAL_PERIOD: 5, WEIGHT_DECAY: 1e-4, WEIGHT_DECAY_BIAS: 1e-4, BIAS_LR_FACTOR: 2}
TEST: {EVAL: true, IMS_PER_BATCH: 1, RE_RANKING: false, WEIGHT: best.pth, NECK_FEAT: before, FEAT_NORM: 'yes'}
OUTPUT_DIR: ./logs/new/
"""
"""The settings of the released SDF-Net run."""


def test_a_released_sdf_net_file_runs_as_sdf_net_and_a_line_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cfg = load_text(tmp_path, RELEASED_SDF_NET)
    assert (cfg.MODEL.MODALITY_LOSS_WEIGHT, cfg.INPUT.SAR_DENOISE, cfg.INPUT.COLOR_JITTER) == (0.0, "max", 0.2)
    assert (cfg.MODEL.DISENTANGLE, cfg.SOLVER.CHECKPOINT_PERIOD) == (True, -1)
    assert caplog.text.count("it runs as SDF-Net, with MODEL.MODALITY_LOSS_WEIGHT 0.0, INPUT.SAR_DENOISE max") == 1
    assert "it runs as MOS" not in caplog.text
    assert "set it to after for its figures" in caplog.text  # the released program does not look at NECK_FEAT
    assert cfg.TEST.NECK_FEAT == "before"


def test_what_makes_a_file_sdf_net_is_a_name_in_the_file(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for more in ("MODEL.MODALITY_LOSS_WEIGHT: 2.0", "INPUT.SAR_DENOISE: percentile"):
        section, key = more.split(".", 1)
        lines = {"MODEL": ["STRUCT_LOSS_WEIGHT: 1.0"], "INPUT": []}
        lines[section].append(key)
        load_text(tmp_path, "\n".join(f"{name}: {{{', '.join(keys)}}}" for name, keys in lines.items()))
    load_text(tmp_path, "MODEL: {MIE: true}", ["MODEL.STRUCT_LOSS_WEIGHT", "1"])
    assert "it runs as SDF-Net" not in caplog.text
    cfg = load_text(tmp_path, "MODEL: {STRUCT_LOSS_WEIGHT: 1.0}\nINPUT: {COLOR_JITTER: 0.1}", ["INPUT.SAR_DENOISE", "lee"])
    assert (cfg.MODEL.MODALITY_LOSS_WEIGHT, cfg.INPUT.SAR_DENOISE, cfg.INPUT.COLOR_JITTER) == (0.0, "lee", 0.1)


def test_shipped_sdf_net_is_the_released_run_but_for_paths_and_seed_and_with_the_neck_that_it_uses(tmp_path):
    released, ours = load_text(tmp_path, RELEASED_SDF_NET), load_cfg(ROOT / "configs" / "sdf_net.yml")
    different = {key: get_value(ours, key) for key in KEYS if get_value(released, key) != get_value(ours, key)}
    assert different == {
        "MODEL.PRETRAIN_PATH": "weights/vit_b512_pre.pth",
        "SOLVER.SEED": 1949,
        "TEST.IMS_PER_BATCH": 128,
        "TEST.EVAL": False,
        "TEST.WEIGHT": "",
        "TEST.NECK_FEAT": "after",
        "OUTPUT_DIR": "./logs/sdf_net",
    }
    both = load_cfg(ROOT / "configs" / "mos_sdf.yml")
    different = {key: get_value(both, key) for key in KEYS if get_value(both, key) != get_value(ours, key)}
    mos = {"MODEL.MODALITY_LOSS_WEIGHT": 2.0, "INPUT.SAR_DENOISE": "percentile"}
    assert different == mos | {"OUTPUT_DIR": "./logs/mos_sdf"}


ABLATION = {
    "ablation_1_baseline": {"MODEL.MODALITY_LOSS_WEIGHT": 0.0, "INPUT.SAR_DENOISE": "max"},
    "ablation_2_denoising": {"INPUT.SAR_DENOISE": "percentile"},
    "ablation_3_alignment": {"MODEL.MODALITY_LOSS_WEIGHT": 2.0},
    "ablation_4_generation": {"DATASETS.QUERY_ADD_DIR": "data/pseudo_sar", "DATASETS.GALLERY_ADD_DIR": "data/pseudo_sar"},
}
"""Each row of the paper's ablation: what it changes of the row before, the first of the MOS run, beside its own folder."""


def test_rows_of_the_ablation_differ_in_what_they_say_and_end_at_mos():
    mos = before = load_cfg(ROOT / "configs" / "hoss_transoss.yml")
    for name, expected in ABLATION.items():
        row = load_cfg(ROOT / "configs" / f"{name}.yml")
        different = {key: get_value(row, key) for key in KEYS if get_value(before, key) != get_value(row, key)}
        assert different == expected | {"OUTPUT_DIR": f"./logs/{name}"}
        before = row
    last = {key for key in KEYS if get_value(mos, key) != get_value(before, key)}
    assert last == {"DATASETS.QUERY_ADD_DIR", "DATASETS.GALLERY_ADD_DIR", "OUTPUT_DIR"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"OUTPUT_DIR {before.DATASETS.QUERY_ADD_DIR}" in readme  # what its command of bbdm.sample leaves


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_name_no_key_in_vain(path, caplog):
    cfg = load_cfg(path)
    assert cfg.OUTPUT_DIR
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_config_that_was_dumped_reads_back_equal(tmp_path):
    cfg = load_cfg(ROOT / "configs" / "hoss_baseline.yml", ["MODEL.MODALITY_LOSS_SQUARED", "yes", "SOLVER.BASE_LR", "1e-5"])
    assert load_text(tmp_path, cfg.dump()) == cfg


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("MODEL.DEVICE_ID", "('0,1')", "0,1"),
        ("MODEL.DEVICE_ID", "0", "0"),
        ("DATASETS.ROOT_DIR", "data (copy)", "data (copy)"),
        ("DATASETS.ROOT_DIR", "(my data)/[1]", "(my data)/[1]"),
        ("MODEL.STRIDE_SIZE", "(12, 12)", [12, 12]),
        ("INPUT.PIXEL_MEAN", "[0, 0, 1]", [0.0, 0.0, 1.0]),
        ("INPUT.PADDING", "10.0", 10),
        ("SOLVER.MARGIN", "1", 1.0),
        ("SOLVER.LARGE_FC_LR", "yes", True),
        ("TEST.RE_RANKING", "off", False),
        ("TEST.FEAT_NORM", "no", "no"),
        ("TEST.FEAT_NORM", "False", "no"),
        ("MODEL.IF_LABELSMOOTH", "True", "on"),
        ("MODEL.PRETRAIN_CHOICE", "False", "none"),
        ("MODEL.PRETRAIN_CHOICE", "None", "none"),
        ("MODEL.NECK", "no", "no"),  # which YAML reads as False
        ("SOLVER.AMP", "off", "off"),
        ("SOLVER.BIAS_LR_FACTOR", "1.5", 1.5),
        ("SOLVER.BIAS_LR_FACTOR", "2", 2.0),
        ("SOLVER.COSINE_SCALE", "22.6", 22.6),
        ("SOLVER.WEIGHT_DECAY", "1e-4", 0.0001),
        ("SOLVER.MAX_EPOCHS", "1e2", 100),
        ("SOLVER.SEED", "9007199254740993", 2**53 + 1),  # no float has this value
        ("SOLVER.STEPS", "[30, 60.0]", [30, 60]),
        ("TEST.RANKING_MEMORY", "0.001", 0.001),
        ("BBDM.MULTIPLIERS", "(1, 2)", [1, 2]),
        ("BBDM.SPLITS", "[query, O2S/gallery]", ["query", "O2S/gallery"]),
    ],
)
def test_spellings(tmp_path, key, text, value):
    section, name = key.split(".")
    from_file = get_value(load_text(tmp_path, f"{section}:\n  {name}: {text}\n"), key) if " (" not in text else value
    from_line = get_value(load_cfg(None, [key, str(value) if key == "BBDM.SPLITS" else text]), key)
    assert from_line == value
    assert from_file == value
    assert type(from_line) is type(value)


@pytest.mark.parametrize("key", FLAGS)
def test_flags_are_never_truthy_by_accident(tmp_path, key):
    """'no' is a true string: whatever false is spelt like must come out as the word for false."""
    section, name = key.split(".")
    for word in ("no", "off", "false", "'no'", "'off'", "0"):
        assert get_value(load_text(tmp_path, f"{section}: {{{name}: {word}}}"), key) == FLAGS[key][1]


def test_the_command_line_outweighs_the_file(tmp_path):
    assert load_text(tmp_path, "SOLVER: {SEED: 1}", ["SOLVER.SEED", "2", "SOLVER.SEED", "3"]).SOLVER.SEED == 3


def test_a_base_is_outweighed_by_the_file_that_names_it(tmp_path):
    (tmp_path / "more").mkdir()
    write_file(tmp_path / "base.yml", "SOLVER: {SEED: 1, MAX_EPOCHS: 7}")
    path = write_file(tmp_path / "more" / "some.yml", "_BASE_: ../base.yml\nSOLVER: {SEED: 2}")
    cfg = load_cfg(path)
    assert (cfg.SOLVER.SEED, cfg.SOLVER.MAX_EPOCHS) == (2, 7)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SOLVER:\n  SEED: 1\n  MARGIN: 0.3\n  SEED: 2\n", "SOLVER.SEED stands on line 2 and again on line 4"),
        ("MODEL: {MIE: true, SSE: true, MIE: true}\n", "MODEL.MIE stands on line 1 and again on line 1"),
        ("SOLVER:\n  SEED: 1\nTEST: {FLIP: true}\nSOLVER:\n  MARGIN: 1\n", "SOLVER stands on line 1 and again on line 4"),
        ("OUTPUT_DIR: a\n\nOUTPUT_DIR: b\n", "OUTPUT_DIR stands on line 1 and again on line 3"),
        ("_BASE_: a.yml\n_BASE_: b.yml\n", "_BASE_ stands on line 1 and again on line 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, text, told):
    with pytest.raises(UsageError, match=re.escape(f"some.yml: {told}; keep one of them")):
        load_text(tmp_path, text)


def test_one_name_in_two_sections_is_not_twice(tmp_path):
    cfg = load_text(tmp_path, "SOLVER: {IMS_PER_BATCH: 8}\nTEST: {IMS_PER_BATCH: 9, FLIP: &yes true}\nBBDM: {FLIP: *yes}")
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.TEST.IMS_PER_BATCH) == (8, 9)


def test_a_base_that_leads_back_is_refused(tmp_path):
    write_file(tmp_path / "a.yml", "_BASE_: b.yml")
    with pytest.raises(UsageError, match=r"\.yml: _BASE_ leads back"):
        load_cfg(write_file(tmp_path / "b.yml", "_BASE_: a.yml"))


def test_a_config_is_frozen_and_fresh():
    cfg = load_cfg(None, ["INPUT.PIXEL_MEAN", "[0, 0, 0]"])
    with pytest.raises(AttributeError):
        cfg.SOLVER.SEED = 1
    cfg.INPUT.PIXEL_STD.append(1.0)  # lists stay lists; no other configuration may see it
    assert load_cfg().INPUT.PIXEL_STD == [0.229, 0.224, 0.225]
    assert load_cfg().INPUT.PIXEL_MEAN == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("SOLVER.BASE_RL", "SOLVER.BASE_LR"),
        ("MODEL.IMS_PER_BATCH", "SOLVER.IMS_PER_BATCH"),
        ("solver.seed", "SOLVER.SEED"),
        ("SEED", "SOLVER.SEED"),
        ("MODEL.MODALITY_LOSS_WIEGHT", "MODEL.MODALITY_LOSS_WEIGHT"),
        ("OUTPUT_DIRECTORY", "OUTPUT_DIR"),
        ("MODEL.NAME.FIRST", "MODEL.NAME"),
        ("--config_file", None),
        ("SOLVER", None),
        ("", None),
    ],
)
def test_an_unknown_key_names_the_nearest_one(key, nearest):
    with pytest.raises(UsageError, match=f"there is no key {re.escape(key)}; the nearest is ") as raised:
        load_cfg(None, [key, "1"])
    assert raised.value.exit_status == 2
    if nearest:
        assert str(raised.value).endswith(f"the nearest is {nearest}")


def test_an_unknown_key_of_a_file_names_the_file(tmp_path):
    with pytest.raises(UsageError, match=r"some\.yml: there is no key MODEL\.NAMES; the nearest is "):
        load_text(tmp_path, "MODEL: {NAMES: x}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_EPOCHS", "ten"),
        ("SOLVER.MAX_EPOCHS", "1.5"),
        ("SOLVER.MAX_EPOCHS", "inf"),
        ("SOLVER.MAX_EPOCHS", "nan"),
        ("SOLVER.MAX_EPOCHS", "[1, 2]"),
        ("SOLVER.BASE_LR", "fast"),
        ("SOLVER.BASE_LR", ""),
        ("MODEL.MIE", "perhaps"),
        ("MODEL.MIE", "2"),
        ("TEST.FEAT_NORM", "maybe"),
        ("INPUT.SIZE_TRAIN", "256"),
        ("INPUT.SIZE_TRAIN", "[a, b]"),
        ("INPUT.SIZE_TRAIN", "[256, 128"),
        ("INPUT.SIZE_TRAIN", "[]"),
    ],
)
def test_values_of_another_type_are_refused(key, value):
    with pytest.raises(UsageError, match=f"{key} cannot be .*; it takes "):
        load_cfg(None, [key, value])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("BBDM.MULTIPLIERS", "[1, 0, 8]", "its item 2 is 0"),
        ("BBDM.MULTIPLIERS", "[1, 1.5]", "its item 2 is 1.5"),
        ("BBDM.FIRST_STAGE_MULTIPLIERS", "[-1]", "its item 1 is -1"),
        ("BBDM.ATTENTION_FACTORS", "[8, 'x']", "its item 2 is 'x'"),
        ("BBDM.IMAGE_SIZE", "[256, -256]", "its item 2 is -256"),
        ("BBDM.IMAGE_SIZE", "[256]", "its length is 1"),
        ("BBDM.SPLITS", "['query', 'train']", "its item 2 is 'train'"),
        ("BBDM.SPLITS", "['query', ['gallery']]", "its item 2 is ['gallery']"),
        ("MODEL.STRIDE_SIZE", "[16, 0]", "its item 2 is 0"),
        ("INPUT.SIZE_TRAIN", "[256, 128, 3]", "its length is 3"),
        ("INPUT.PIXEL_MEAN", "[0.5, nan, 0.5]", None),  # no literal of Python
        ("INPUT.PIXEL_MEAN", "[0.5, 1e999, 0.5]", "its item 2 is inf"),
        ("INPUT.PIXEL_STD", "[1, 1, 0]", "its item 3 is 0"),
        ("SOLVER.STEPS", "[40, 0]", "its item 2 is 0"),
        ("SOLVER.STEPS", "[40, True]", "its item 2 is True"),
    ],
)
def test_each_item_of_a_list_is_checked(key, value, told):
    with pytest.raises(UsageError) as raised:
        load_cfg(None, [key, value])
    reason = f": {told}" if told else ""
    assert str(raised.value) == f"command line: {key} cannot be {value!r}{reason}; it takes {KEYS[key].takes}"


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("BBDM.MULTIPLIERS", "a list of one or more items, each a whole number of at least 1"),
        ("BBDM.IMAGE_SIZE", "a list of 2 items, each a whole number of at least 1"),
        ("INPUT.PROB", "a number from 0 to 1"),
        ("MODEL.MIE_COE", "a number"),
        ("MODEL.MIE", "True or False"),
        ("TEST.FEAT_NORM", "one of yes, no"),
        ("OUTPUT_DIR", "a word"),
    ],
)
def test_what_a_key_takes_is_said_in_words(key, takes):
    assert KEYS[key].takes == takes


def test_an_error_of_a_file_names_the_file(tmp_path):
    with pytest.raises(UsageError, match=r"some\.yml: INPUT\.PROB cannot be 2; it takes a number from 0 to 1$"):
        load_text(tmp_path, "INPUT: {PROB: 2}")
    with pytest.raises(UsageError, match=r"some\.yml: MODEL\.NAME cannot be \{'FIRST': 1\}; it takes one of"):
        load_text(tmp_path, "MODEL: {NAME: {FIRST: 1}}")


def test_samples_are_made_of_every_split_of_test_and_validation():
    splits = [str(split) for split in Split if split is not Split.TRAIN]
    assert sorted(KEYS["BBDM.SPLITS"].choices) == sorted(splits)
    assert splits == load_cfg(None, ["BBDM.SPLITS", str(splits)]).BBDM.SPLITS


@pytest.mark.parametrize("value", ["true", "[1, 2]"])
def test_typed_values_of_another_type_are_refused(tmp_path, value):
    for key in ("MAX_EPOCHS", "BASE_LR"):
        with pytest.raises(UsageError, match=f"SOLVER.{key} cannot be"):
            load_text(tmp_path, f"SOLVER: {{{key}: {value}}}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "-1"),
        ("SOLVER.BASE_LR", "nan"),
        ("SOLVER.BASE_LR", "inf"),
        ("SOLVER.MAX_EPOCHS", "0"),
        ("SOLVER.EVAL_PERIOD", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "-2"),
        ("MODEL.ABLATION_MODE", "mean"),
        ("MODEL.STRUCT_LAYER_INDEX", "0"),
        ("INPUT.COLOR_JITTER", "1.5"),
        ("SOLVER.LOG_PERIOD", "0"),
        ("SOLVER.SEED", "-1"),
        ("DATALOADER.NUM_INSTANCE", "0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("INPUT.PROB", "1.5"),
        ("INPUT.SIZE_TEST", "[0, 16]"),
        ("INPUT.SIZE_TRAIN", "[16, 16, 16]"),
        ("INPUT.PIXEL_STD", "[1, 1, 0]"),
        ("INPUT.PIXEL_MEAN", "[1, 1]"),
        ("MODEL.STRIDE_SIZE", "[16]"),
        ("MODEL.STRIDE_SIZE", "[-1, 1]"),
        ("INPUT.SAR_LOW_PERCENT", "100"),
        ("INPUT.SAR_DENOISE", "median"),
        ("TEST.FUSION_TAU", "1.1"),
        ("TEST.QUERY_EXPANSION", "-1"),
        ("TEST.QUERY_EXPANSION_ALPHA", "-0.5"),
        ("TEST.NECK_FEAT", "behind"),
        ("SOLVER.OPTIMIZER_NAME", "sgd"),
        ("SOLVER.AMP", "yes"),
        ("SOLVER.GAMMA", "-1"),
        ("SOLVER.SCHEDULER", "step"),
        ("MODEL.METRIC_LOSS_TYPE", "none"),
        ("MODEL.NAME", "resnet18"),
        ("MODEL.LAST_STRIDE", "3"),
        ("MODEL.MODALITY_LOSS_WEIGHT", "nan"),
        ("MODEL.ID_LOSS_WEIGHT", "-1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(UsageError, match=re.escape(key)):
        load_cfg(None, [key, value])


def test_a_batch_that_the_images_of_an_identity_do_not_divide():
    call = ["SOLVER.IMS_PER_BATCH", "30", "DATALOADER.NUM_INSTANCE", "4", "DATALOADER.SAMPLER"]
    with pytest.raises(UsageError, match=r"SOLVER\.IMS_PER_BATCH 30 is not a multiple of DATALOADER\.NUM_INSTANCE 4"):
        load_cfg(None, [*call, "softmax_triplet"])
    assert load_cfg(None, [*call, "softmax"]).SOLVER.IMS_PER_BATCH == 30


def test_a_key_without_value_is_refused():
    with pytest.raises(UsageError, match="KEY VALUE pairs"):
        load_cfg(None, ["SOLVER.SEED", "1", "SOLVER.MARGIN"])


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words", "MODEL: {NAME: [", "MODEL:\n\tNAME: x", "\x00"])
def test_files_without_settings_are_refused_by_name(tmp_path, text):
    with pytest.raises(UsageError, match=r"some\.yml"):
        load_text(tmp_path, text)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.yml"):
        load_cfg(tmp_path / "missing.yml")
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        load_cfg(tmp_path)
    (tmp_path / "latin.yml").write_bytes(b"OUTPUT_DIR: caf\xe9")
    with pytest.raises(UsageError, match=r"latin\.yml is not valid YAML"):
        load_cfg(tmp_path / "latin.yml")


def test_a_section_whose_keys_are_all_commented_out_sets_nothing(tmp_path):
    assert load_text(tmp_path, "MODEL:\n  # NAME: x\nSOLVER: {SEED: 2}").SOLVER.SEED == 2


def test_keys_without_use_are_told_once(tmp_path, caplog):
    load_text(tmp_path, RELEASED_RUN, ["MODEL.COS_LAYER", "True"])
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    named = {"MODEL.COS_LAYER", "TEST.EVAL", "DATASETS.NAMES"}
    assert all(f"{key} ({UNUSED[key]})" in told[0] for key in named)
    assert not any(key in told[0] for key in UNUSED.keys() - named)


@pytest.mark.parametrize(
    ("text", "overrides", "is_told"),
    [
        ("MODEL: {MIE: true}", [], True),
        ("MODEL: {MIE: true, MODALITY_LOSS_WEIGHT: 0}", [], False),
        ("MODEL: {MIE: true}\nINPUT: {SAR_DENOISE: max}", [], False),
        ("MODEL: {MIE: true}", ["INPUT.SAR_DENOISE", "max"], False),
        ("MODEL: {MIE: true, PAIR: true}", [], True),
        ("BBDM: {WIDTH: 32}", [], False),
    ],
)
def test_a_file_that_runs_as_mos_unasked_is_told(tmp_path, caplog, text, overrides, is_told):
    caplog.set_level(logging.INFO)
    load_text(tmp_path, text, overrides)
    assert ("it runs as MOS" in caplog.text) == is_told


def test_every_key_has_a_reader_or_is_told_to_have_none():
    packages = ("bbdm", "datasets", "loss", "model", "processor", "solver", "utils")
    files = [path for name in packages for path in (ROOT / name).glob("**/*.py")] + list(ROOT.glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*files, ROOT / "configs" / "command.py"])
    read = set(re.findall(r"\bcfg\.([A-Z_]+(?:\.[A-Z0-9_]+)?)", text))
    read |= set(re.findall(r"get_value\(\w+, \"([A-Z_]+(?:\.[A-Z0-9_]+)?)\"", text))
    checked = {name for name, key in KEYS.items() if len(key.choices) == 1}  # anything else is refused: nothing to choose
    assert KEYS.keys() - read - checked == UNUSED.keys()
    assert not read - KEYS.keys() - {name.split(".")[0] for name in KEYS}


def test_every_key_that_the_differences_name_is_one():
    text = (ROOT / "docs" / "faithful.md").read_text(encoding="utf-8")
    named = re.findall(r"\b((?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|BBDM)\.[A-Z][A-Z0-9_]+)\b", text)
    assert len(named) > 30 and set(named) <= KEYS.keys()
    bare = {name.split(".")[-1] for name in KEYS}
    assert {word for word in re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b", text) if word not in bare} == set()


def test_keys_without_use_are_those_that_the_documentation_lists():
    text = (ROOT / "docs" / "faithful.md").read_text(encoding="utf-8").split("Keys that are accepted")[1].split("\n\n")[1]
    assert re.findall(r"^\| ([A-Z]+\.[A-Z_]+) \|", text, flags=re.MULTILINE) == sorted(UNUSED)
    assert all(KEYS[name].released for name in UNUSED)


def test_the_page_of_keys_is_fresh():
    ended = call(config_page.main)
    assert (ended.status, ended.err) == (0, "")
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert ended.out == written, "python -m tools.config_page > docs/config.md"
    assert re.findall(r"^\| `([A-Z0-9_.]+)` ", written, flags=re.MULTILINE) == list(KEYS)
