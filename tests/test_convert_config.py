"""Templates of the released BBDM program become configurations of ours, and nothing in them is run."""

from pathlib import Path

import pytest
import yaml

from configs import load_cfg
from configs.loading import get_value
from tests.commands import call
from tools import convert_config

TEMPLATE = """
runner: "BBDMRunner"
training: {n_epochs: 200, n_steps: 400000, save_interval: 50, sample_interval: 40, validation_interval: 30,
           accumulate_grad_batches: 4}
testing: {clip_denoised: False, sample_num: 7}
data:
  dataset_name: 'ships'
  dataset_type: 'custom_aligned'
  dataset_config: {dataset_path: 'some/pairs', image_size: 256, channels: 3, to_normal: True, flip: True}
  train: {batch_size: 6, shuffle: True}
  val: {batch_size: 8, shuffle: True}
  test: {batch_size: 8}
model:
  model_name: 'LBBDM-f8'
  model_type: "LBBDM"
  latent_before_quant_conv: True
  normalize_latent: True
  only_load_latent_mean_std: False
  EMA: {use_ema: True, ema_decay: 0.99, update_ema_interval: 4, start_ema_step: 20000}
  CondStageParams: {n_stages: 3, in_channels: 3, out_channels: 4}
  VQGAN:
    params:
      ckpt_path: 'results/vq-f8.ckpt'
      embed_dim: 4
      n_embed: 16384
      ddconfig:
        double_z: false
        z_channels: 4
        resolution: 256
        in_channels: 3
        out_ch: 3
        ch: 64
        ch_mult: !!python/tuple
        - 1
        - 2
        - 2
        - 4
        num_res_blocks: 3
        attn_resolutions: [32]
        dropout: 0.0
      lossconfig: {target: torch.nn.Identity}
  BB:
    optimizer: {weight_decay: 0.000, optimizer: 'Adam', lr: 2.e-4, beta1: 0.9}
    lr_scheduler: {factor: 0.4, patience: 2000, threshold: 0.001, cooldown: 1000, min_lr: 5.e-6}
    params:
      mt_type: 'sin'
      objective: 'noise'
      loss_type: 'l2'
      skip_sample: True
      sample_type: 'linear'
      sample_step: 150
      num_timesteps: 900
      eta: 0.5
      max_var: 0.7
      UNetParams:
        image_size: 64
        in_channels: 8
        model_channels: 64
        out_channels: 4
        num_res_blocks: 1
        attention_resolutions: !!python/tuple
        - 32
        - 16
        channel_mult: !!python/tuple
        - 1
        - 2
        conv_resample: True
        dims: 2
        num_heads: 8
        num_head_channels: 32
        use_scale_shift_norm: True
        resblock_updown: True
        use_spatial_transformer: False
        context_dim:
        condition_key: "SpatialRescaler"
"""

OURS = {
    "SOLVER.MAX_EPOCHS": 200, "SOLVER.CHECKPOINT_PERIOD": 50, "SOLVER.EVAL_PERIOD": 30, "BBDM.ACCUMULATION": 4,
    "BBDM.CLIP": False, "BBDM.SAMPLE_NUM": 7, "BBDM.PAIRS": "registered", "BBDM.PAIRS_DIR": "some/pairs", "BBDM.FLIP": True,
    "BBDM.IMAGE_SIZE": [256, 256], "SOLVER.IMS_PER_BATCH": 6, "SOLVER.AMP": "off", "BBDM.SPACE": "latent",
    "BBDM.LATENT_BEFORE_QUANT_CONV": True, "BBDM.NORMALISE_LATENTS": True, "BBDM.EMA_DECAY": 0.99, "BBDM.EMA_PERIOD": 4,
    "BBDM.EMA_START": 20000, "BBDM.CONDITION": "rescaler", "BBDM.FIRST_STAGE": "results/vq-f8.ckpt",
    "BBDM.FIRST_STAGE_CODE_WIDTH": 4, "BBDM.FIRST_STAGE_CODES": 16384, "BBDM.FIRST_STAGE_WIDTH": 64,
    "BBDM.FIRST_STAGE_MULTIPLIERS": [1, 2, 2, 4], "BBDM.FIRST_STAGE_BLOCKS": 3, "BBDM.FIRST_STAGE_ATTENTION": [32],
    "SOLVER.BASE_LR": 2e-4, "BBDM.PLATEAU_FACTOR": 0.4, "BBDM.PLATEAU_PATIENCE": 2000, "BBDM.PLATEAU_THRESHOLD": 0.001,
    "BBDM.PLATEAU_COOLDOWN": 1000, "BBDM.PLATEAU_MIN_LR": 5e-6, "BBDM.SCHEDULE": "sin", "BBDM.OBJECTIVE": "noise",
    "BBDM.LOSS": "l2", "BBDM.SAMPLE_STEP": 150, "BBDM.NUM_TIMESTEPS": 900, "BBDM.ETA": 0.5, "BBDM.MAX_VARIANCE": 0.7,
    "BBDM.WIDTH": 64, "BBDM.BLOCKS": 1, "BBDM.ATTENTION_FACTORS": [32, 16], "BBDM.MULTIPLIERS": [1, 2], "BBDM.HEAD_WIDTH": 32,
}  # fmt: skip


def converted(folder: Path, text: str = TEMPLATE):
    (folder / "theirs.yaml").write_text(text, encoding="utf-8")
    ended = call(convert_config.main, folder / "theirs.yaml", folder / "ours.yml")
    return ended, folder / "ours.yml"


def test_every_setting_of_a_template_has_its_counterpart(tmp_path):
    ended, path = converted(tmp_path)
    assert ended.status == 0, ended.err
    cfg = load_cfg(path)
    assert {key: get_value(cfg, key) for key in OURS} == OURS
    named = {f"{section}.{key}" for section, keys in yaml.safe_load(path.read_text()).items() for key in keys}
    assert named == OURS.keys()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({'"SpatialRescaler"': '"nocond"', "in_channels: 8": "in_channels: 4"}, {"BBDM.CONDITION": "none"}),
        ({'"SpatialRescaler"': '"first_stage"'}, {"BBDM.CONDITION": "first_stage"}),
        ({"skip_sample: True": "skip_sample: False"}, {"BBDM.SAMPLE_STEP": 0}),
        ({"attn_resolutions: [32]": "attn_resolutions: []"}, {"BBDM.FIRST_STAGE_ATTENTION": [0]}),
        (
            {'"LBBDM"': '"BBDM"', "in_channels: 8": "in_channels: 6", "out_channels: 4\n ": "out_channels: 3\n ",
             "latent_before_quant_conv: True": "latent_before_quant_conv: False", "normalize_latent: True": ""},
            {"BBDM.SPACE": "pixel", "BBDM.CONDITION": "y"},
        ),
    ],
)  # fmt: skip
def test_what_follows_from_several_keys(tmp_path, changes, expected):
    text = TEMPLATE
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    ended, path = converted(tmp_path, text)
    assert ended.status == 0, ended.err
    cfg = load_cfg(path)
    assert {key: get_value(cfg, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "n_epochs: 200",
            "n_epochs: !!python/object/apply:os.system ['touch RAN']",
            "tuples: could not determine a constructor",
        ),
        ("n_epochs: 200", "n_epochs: !!python/name:os.system ''", "could not determine a constructor"),
        ("n_epochs: 200", "n_epochs: 0", "theirs.yaml: SOLVER.MAX_EPOCHS cannot be 0"),
        ("n_epochs: 200", "n_epohcs: 200", "names training.n_epohcs, which has no counterpart here"),
        ("use_ema: True", "use_ema: False", "sets model.EMA.use_ema to False; here it can only be True"),
        ("'custom_aligned'", "'colorization'", "sets data.dataset_type to colorization"),
        ("sample_type: 'linear'", "sample_type: 'cosine'", "steps are fractions"),
        ("in_channels: 8", "in_channels: 4", "UNetParams.in_channels to 4, which does not fit its other sizes: they make it 8"),
        ("n_stages: 3", "n_stages: 2", "CondStageParams.n_stages to 2, which does not fit its other sizes: they make it 3"),
        ('"SpatialRescaler"', '"magic"', "condition_key to magic; here it is one of nocond, SpatialRescaler, first_stage"),
        ("training:", "training: [", "is no template of plain values and tuples"),
    ],
)
def test_what_cannot_be_said_here_is_refused_in_one_sentence(tmp_path, monkeypatch, old, new, told):
    monkeypatch.chdir(tmp_path)
    assert old in TEMPLATE
    ended, path = converted(tmp_path, TEMPLATE.replace(old, new))
    assert ended.status == 2
    assert told in ended.sentence
    assert not path.exists()
    assert not (tmp_path / "RAN").exists()


def test_a_file_that_is_no_template(tmp_path):
    assert "it should hold training, data and model" in converted(tmp_path, "- 1\n")[0].sentence
    ended = call(convert_config.main, tmp_path / "nowhere.yaml", tmp_path / "ours.yml")
    assert (ended.status, "cannot be read" in ended.sentence) == (2, True)
