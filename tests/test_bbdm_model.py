"""The bridge as a whole: what its keys build, and in which space and precision it computes."""

import pytest
import torch
from torch import nn

from bbdm.bridge import Bridge, make_schedule
from bbdm.checkpoints import read_bridge
from bbdm.first_stage import make_first_stage
from bbdm.latents import OPTICAL, SAR, STATISTICS, measure_statistics
from bbdm.model import (
    BridgeModel,
    SamplerSettings,
    build_bridge,
    build_bridge_model,
    build_condition,
    build_empty_first_stage,
    build_first_stage,
    build_network,
    build_sampler_settings,
)
from bbdm.unet import PixelAttention
from configs import load_cfg
from utils.checkpoint import save
from utils.device import Precision
from utils.errors import CheckpointError, UsageError

CPU = torch.device("cpu")
SMALL = {
    "WIDTH": 32,
    "MULTIPLIERS": [1, 2],
    "BLOCKS": 1,
    "HEAD_WIDTH": 16,
    "IMAGE_SIZE": [16, 8],
    "FIRST_STAGE_WIDTH": 32,
    "FIRST_STAGE_MULTIPLIERS": [1, 1],
    "FIRST_STAGE_BLOCKS": 1,
    "FIRST_STAGE_CODES": 8,
}


def small_cfg(**changes):
    return load_cfg(None, [str(word) for key, value in (SMALL | changes).items() for word in (f"BBDM.{key}", value)])


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_the_equations_are_those_of_their_keys():
    bridge = build_bridge(small_cfg(SCHEDULE="sin", NUM_TIMESTEPS=9, MAX_VARIANCE=0.5, OBJECTIVE="ysubx"))
    assert bridge.objective == "ysubx"
    expected = make_schedule("sin", num_timesteps=9, max_variance=0.5)
    assert bridge.schedule.m.tolist() == expected.m.tolist()
    assert bridge.schedule.variance.tolist() == expected.variance.tolist()
    default = build_bridge(small_cfg())
    assert (len(default.schedule), default.objective) == (1000, "grad")
    assert default.schedule.variance.max() == pytest.approx(0.5, abs=1e-6)


def test_the_network_has_the_sizes_of_its_keys():
    network = build_network(small_cfg())
    assert shapes(network)["input_blocks.0.0.weight"] == (32, 6, 3, 3)
    assert shapes(network)["out.2.weight"] == (3, 32, 3, 3)
    assert len(network.input_blocks) == 4
    assert [layer.heads for layer in network.modules() if isinstance(layer, PixelAttention)] == [4]
    assert not network.activation_checkpoints
    other = build_network(small_cfg(BLOCKS=3, ATTENTION_FACTORS=[2], HEAD_WIDTH=32, ACTIVATION_CHECKPOINTS=True))
    assert len(other.input_blocks) == 8
    assert [layer.heads for layer in other.modules() if isinstance(layer, PixelAttention)] == [2] * 8
    assert other.activation_checkpoints
    latent = build_network(small_cfg(SPACE="latent", FIRST_STAGE_CODE_WIDTH=5))
    assert shapes(latent)["input_blocks.0.0.weight"] == (32, 5, 3, 3)
    assert shapes(latent)["out.2.weight"] == (5, 32, 3, 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"IMAGE_SIZE": [16, 9]}, "a height and a width that 2 divides"),
        ({"IMAGE_SIZE": [15, 8]}, "a height and a width that 2 divides"),
        ({"IMAGE_SIZE": [16, 6], "SPACE": "latent"}, "a height and a width that 4 divides"),
        ({"MULTIPLIERS": [1, 1, 2], "IMAGE_SIZE": [6, 8]}, "a height and a width that 4 divides"),
        ({"WIDTH": 48}, "BBDM.WIDTH is 48; it is a multiple of 32"),
        ({"HEAD_WIDTH": 24}, "do not divide into attention heads of width 24"),
        ({"MULTIPLIERS": [2, 2]}, "the first width multiplier must be 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        build_network(small_cfg(**changes))


def test_sizes_at_the_limit_make_a_network():
    build_network(small_cfg(IMAGE_SIZE=[2, 2]))
    build_network(small_cfg(IMAGE_SIZE=[4, 4], SPACE="latent"))


def test_the_first_stage_has_the_sizes_of_its_keys():
    stage = build_empty_first_stage(small_cfg(FIRST_STAGE_CODE_WIDTH=4, FIRST_STAGE_BLOCKS=2, FIRST_STAGE_MULTIPLIERS=[1, 2]))
    assert shapes(stage)["quantize.embedding.weight"] == (8, 4)
    assert shapes(stage)["encoder.conv_in.weight"] == (32, 3, 3, 3)
    assert shapes(stage)["encoder.conv_out.weight"] == (4, 64, 3, 3)
    assert [len(level.block) for level in stage.encoder.down] == [2, 2]
    assert (stage.factor, stage.code_width) == (2, 4)
    with pytest.raises(UsageError, match="FIRST_STAGE_WIDTH is 40"):
        build_empty_first_stage(small_cfg(FIRST_STAGE_WIDTH=40))


def write_stage(path, value):
    stage = build_empty_first_stage(small_cfg())
    nn.init.constant_(stage.quant_conv.bias, value)
    save(path, stage.state_dict())
    return path


def test_the_first_stage_is_frozen_and_its_own_file_comes_first(tmp_path):
    own, other = write_stage(tmp_path / "own.pth", 1.0), write_stage(tmp_path / "other.pth", 2.0)
    stage = build_first_stage(small_cfg(SPACE="latent", FIRST_STAGE=own), weights=str(other))
    assert stage.quant_conv.bias.tolist() == [1.0] * 3
    assert not stage.training
    assert not any(weight.requires_grad for weight in stage.parameters())
    assert build_first_stage(small_cfg(SPACE="latent"), weights=str(other)).quant_conv.bias.tolist() == [2.0] * 3
    assert build_first_stage(small_cfg(FIRST_STAGE=own)) is None
    with pytest.raises(CheckpointError, match=r"set BBDM\.FIRST_STAGE"):
        build_first_stage(small_cfg(SPACE="latent"))


def test_a_model_has_the_weights_and_the_layout_that_were_asked_for(tmp_path, monkeypatch):
    torch.manual_seed(1)
    network = build_network(small_cfg())
    save(tmp_path / "bridge.pth", network.state_dict())
    monkeypatch.setattr("bbdm.model.layout_of", lambda precision: torch.channels_last)
    precision = Precision("cpu", torch.bfloat16)
    model = build_bridge_model(small_cfg(OBJECTIVE="noise"), CPU, precision, weights=read_bridge(tmp_path / "bridge.pth"))
    assert torch.equal(model.network.out[2].weight, network.out[2].weight)
    assert model.network.out[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert (model.precision, model.first_stage, model.bridge.objective) == (precision, None, "noise")
    stage = write_stage(tmp_path / "stage.pth", 0.0)
    latent = build_bridge_model(small_cfg(SPACE="latent", FIRST_STAGE=stage), CPU, precision)
    assert latent.first_stage.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    average = latent.with_network(network)
    assert (average.network, average.first_stage) == (network, latent.first_stage)
    assert (average.bridge, average.precision) == (latent.bridge, latent.precision)


class Watcher(nn.Module):
    """A network that keeps what it is called with, and predicts 1."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, condition=None):
        self.calls.append((x, t, condition, torch.is_autocast_enabled("cpu")))
        return torch.ones_like(x, dtype=torch.bfloat16)


def model_of(stage=None, dtype=None, condition=None):
    bridge = Bridge(make_schedule(num_timesteps=10))
    return BridgeModel(bridge, Watcher(), stage, Precision("cpu", dtype), condition or ("none" if stage else "y"))


@pytest.fixture
def stage():
    torch.manual_seed(0)
    return make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=8).eval()


PICTURES = torch.rand(2, 2, 3, 8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_pixel_model_is_shown_the_optical_picture():
    model = model_of()
    optical, sar = PICTURES
    t, noise = torch.tensor([3, 7]), torch.randn(optical.shape, generator=torch.Generator().manual_seed(1))
    loss = model.loss(optical, sar, t, noise)
    ((x_t, seen, condition, autocast),) = model.network.calls
    assert torch.equal(condition, optical)
    assert torch.equal(x_t, model.bridge.forward_sample(sar, optical, t, noise))
    assert torch.equal(seen, t)
    assert not autocast
    target = model.bridge.target(sar, optical, t, noise)
    assert loss.item() == pytest.approx((1 - target).abs().mean().item(), rel=1e-6)
    assert loss.dtype == torch.float32
    assert model.loss(optical, sar, t, noise, "l2").item() == pytest.approx((1 - target).square().mean().item(), rel=1e-6)
    assert model.encode(optical, OPTICAL) is optical
    assert model.decode(optical) is optical
    assert model.state_shape(optical) == (2, 3, 8, 4)


def test_the_latent_model_goes_from_latent_to_latent_and_is_shown_nothing_else(stage):
    model = model_of(stage)
    optical, sar = PICTURES
    y, x0 = stage.encode(optical), stage.encode(sar)
    torch.testing.assert_close(model.encode(optical, OPTICAL), y)
    torch.testing.assert_close(model.decode(x0), stage.decode(x0))
    assert not model.encode(optical, OPTICAL).requires_grad
    t = torch.tensor([3, 7])
    noise = torch.randn(model.state_shape(optical), generator=torch.Generator().manual_seed(1))
    model.loss(optical, sar, t, noise)
    ((x_t, _, condition, _),) = model.network.calls
    assert condition is None
    torch.testing.assert_close(x_t, model.bridge.forward_sample(x0, y, t, noise))
    assert model.state_shape(optical) == (2, 3, 4, 2)


@pytest.mark.parametrize("condition", ["none", "first_stage", "rescaler"])
def test_the_latent_model_is_shown_what_its_condition_says(stage, condition):
    model = model_of(stage, condition=condition)
    optical, sar = PICTURES
    expected = {"none": None, "first_stage": stage.encode(optical), "rescaler": optical}[condition]
    model.loss(optical, sar, torch.tensor([3, 7]), torch.zeros(model.state_shape(optical)))
    settings = SamplerSettings("few_step", 2)
    model.with_network(model.network).sample(optical, settings, lambda step: torch.zeros(model.state_shape(optical)))
    assert len(model.network.calls) == 3
    for _, _, seen, _ in model.network.calls:
        if expected is None:
            assert seen is None
        else:
            torch.testing.assert_close(seen, expected)
            assert not seen.requires_grad


@pytest.mark.parametrize(
    ("changes", "condition", "channels"),
    [
        ({}, "y", 6),
        ({"CONDITION": "none"}, "none", 3),
        ({"SPACE": "latent"}, "none", 5),
        ({"SPACE": "latent", "CONDITION": "first_stage"}, "first_stage", 10),
        ({"SPACE": "latent", "CONDITION": "rescaler"}, "rescaler", 10),
    ],
)
def test_the_condition_widens_the_input_of_the_network(changes, condition, channels):
    cfg = small_cfg(FIRST_STAGE_CODE_WIDTH=5, **changes)
    assert build_condition(cfg) == condition
    found = shapes(build_network(cfg))
    assert found["input_blocks.0.0.weight"] == (32, channels, 3, 3)
    mapper = {name: shape for name, shape in found.items() if name.startswith("cond_stage_model")}
    assert mapper == ({"cond_stage_model.channel_mapper.weight": (5, 3, 1, 1)} if condition == "rescaler" else {})


@pytest.mark.parametrize(("space", "condition"), [("pixel", "first_stage"), ("pixel", "rescaler"), ("latent", "y")])
def test_conditions_of_the_other_space_are_refused(space, condition):
    with pytest.raises(UsageError, match=f"BBDM.CONDITION is {condition}; with BBDM.SPACE {space} it is auto or one of"):
        build_network(small_cfg(SPACE=space, CONDITION=condition))


def test_the_rescaler_halves_the_picture_and_starts_and_learns_like_a_convolution():
    torch.manual_seed(0)
    cfg = small_cfg(SPACE="latent", CONDITION="rescaler", FIRST_STAGE_MULTIPLIERS=[1, 1, 1], IMAGE_SIZE=[16, 8])
    network = build_network(cfg)
    rescaler = network.cond_stage_model
    assert rescaler.halvings == 2
    assert 0 < rescaler.channel_mapper.weight.abs().max() < 0.1, "N(0, 0.02), as every convolution"
    x, picture = torch.randn(2, 3, 4, 2), torch.randn(2, 3, 16, 8)
    means = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(picture, 2), 2)
    expected = torch.einsum("oc,bchw->bohw", rescaler.channel_mapper.weight[:, :, 0, 0], means)
    torch.testing.assert_close(rescaler(picture), expected)
    shown = []
    network.input_blocks[0].register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    network(x, torch.tensor([3, 7]), picture).square().mean().backward()
    torch.testing.assert_close(shown[0], torch.cat([x, expected], dim=1))
    assert rescaler.channel_mapper.weight.grad.abs().sum() > 0


def test_latents_before_quant_conv_are_convolved_where_they_are_decoded(stage):
    optical = PICTURES[0]
    after = stage.encode(optical)
    stage.before_quant_conv = True
    before = stage.encode(optical)
    torch.testing.assert_close(stage.quant_conv(before), after)
    decoded = stage.decode(before)
    stage.before_quant_conv = False
    torch.testing.assert_close(decoded, stage.decode(after))


def test_the_first_stage_follows_its_keys(tmp_path):
    path = write_stage(tmp_path / "stage.pth", 1.0)
    assert not build_first_stage(small_cfg(SPACE="latent", FIRST_STAGE=path)).before_quant_conv
    assert build_first_stage(small_cfg(SPACE="latent", FIRST_STAGE=path, LATENT_BEFORE_QUANT_CONV=True)).before_quant_conv
    attentive = build_empty_first_stage(small_cfg(FIRST_STAGE_ATTENTION=[128]))
    assert [len(level.attn) for level in attentive.encoder.down] == [0, 1]
    assert [len(level.attn) for level in build_empty_first_stage(small_cfg()).encoder.down] == [0, 0]


def test_latents_are_normalised_by_the_statistics_of_their_kind(stage):
    model = model_of(stage)
    latents = [model.encode(pictures, SAR) for pictures in PICTURES]
    network = build_network(small_cfg(SPACE="latent", NORMALISE_LATENTS=True))
    assert {name: tuple(network.get_buffer(name).shape) for name in STATISTICS} == dict.fromkeys(STATISTICS, (1, 3, 1, 1))
    untouched = model.with_network(network)
    assert torch.equal(untouched.encode(PICTURES[0], OPTICAL), latents[0])
    measure_statistics(network, [(latents[1][:1], latents[0][:1]), (latents[1][1:], latents[0][1:])])
    mean, deviation = (latents[1].mean((0, 2, 3)), latents[1].std((0, 2, 3), correction=0))
    torch.testing.assert_close(network.ori_latent_mean.flatten(), mean)
    torch.testing.assert_close(network.ori_latent_std.flatten(), deviation)
    torch.testing.assert_close(network.cond_latent_mean.flatten(), latents[0].mean((0, 2, 3)))
    for kind, pictures in ((OPTICAL, PICTURES[0]), (SAR, PICTURES[1])):
        normalised = untouched.encode(pictures, kind)
        torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(normalised.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    decoded = untouched.decode(untouched.encode(PICTURES[1], SAR))
    torch.testing.assert_close(decoded, model.decode(latents[1]), atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match=r"BBDM\.NORMALISE_LATENTS is True and BBDM.SPACE pixel"):
        build_network(small_cfg(NORMALISE_LATENTS=True))


def test_all_time_steps_are_taken_one_by_one_where_no_number_is_named():
    settings = build_sampler_settings(small_cfg(SAMPLE_STEP=0, NUM_TIMESTEPS=10))
    assert (settings.steps, settings.every_step) == (10, True)
    model = model_of()
    model.sample(PICTURES[0], settings, lambda step: torch.zeros(2, 3, 8, 4))
    assert [int(t[0]) for _, t, _, _ in model.network.calls] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert not build_sampler_settings(small_cfg(SAMPLE_STEP=10, NUM_TIMESTEPS=10)).every_step


def published(multipliers, width, attention, codes, factors):
    return {
        "SPACE": "latent", "WIDTH": 128, "MULTIPLIERS": [1, 4, 8], "BLOCKS": 2, "HEAD_WIDTH": 64, "IMAGE_SIZE": [256, 256],
        "ATTENTION_FACTORS": factors, "FIRST_STAGE_WIDTH": 128, "FIRST_STAGE_MULTIPLIERS": multipliers,
        "FIRST_STAGE_BLOCKS": 2, "FIRST_STAGE_CODES": codes, "FIRST_STAGE_CODE_WIDTH": width,
        "FIRST_STAGE_ATTENTION": attention,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "factor", "encoder_attention", "network_attention"),
    [
        (published([1, 2, 4], 3, [0], 8192, [32, 16, 8]), 4, [0, 0, 0], 1),
        (published([1, 2, 2, 4], 4, [32], 16384, [32, 16, 8]), 8, [0, 0, 0, 2], 1),
        (published([1, 1, 2, 2, 4], 8, [16], 16384, [16, 8, 4]), 16, [0, 0, 0, 0, 2], 1 + 2 + 3),
    ],
)
def test_the_published_latent_models_can_be_built(sizes, factor, encoder_attention, network_attention):
    with torch.device("meta"):
        stage, network = build_empty_first_stage(small_cfg(**sizes)), build_network(small_cfg(**sizes))
    width = sizes["FIRST_STAGE_CODE_WIDTH"]
    assert (stage.factor, stage.code_width) == (factor, width)
    found = shapes(stage)
    assert found["quantize.embedding.weight"] == (sizes["FIRST_STAGE_CODES"], width)
    assert found["encoder.conv_out.weight"] == (width, 512, 3, 3)
    assert found["quant_conv.weight"] == (width, width, 1, 1)
    assert [len(level.attn) for level in stage.encoder.down] == encoder_attention
    attending = [
        f"encoder.down.{level}.attn.{block}.q.weight" for level, n in enumerate(encoder_attention) for block in range(n)
    ]
    assert [name for name in found if name.startswith("encoder.down") and name.endswith(".q.weight")] == attending
    assert shapes(network)["input_blocks.0.0.weight"] == (128, width, 3, 3)
    assert shapes(network)["out.2.weight"] == (width, 128, 3, 3)
    assert sum(isinstance(layer, PixelAttention) for layer in network.modules()) == network_attention


def test_network_and_first_stage_compute_in_the_precision_and_give_float32(stage, monkeypatch):
    model = model_of(stage, torch.bfloat16)
    modes = []
    for name in ("encode", "decode"):
        real = getattr(stage, name)
        monkeypatch.setattr(stage, name, lambda x, real=real: modes.append(torch.is_autocast_enabled("cpu")) or real(x))
    y = model.encode(PICTURES[0], OPTICAL)
    assert y.dtype == model.decode(y).dtype == torch.float32
    assert modes == [True, True]
    assert model.predict(y, torch.tensor([1, 2]), y).dtype == torch.float32
    assert model.network.calls[0][3]


def test_only_pictures_are_clamped_and_never_latents(stage):
    settings = SamplerSettings("released", 3, clip=True)
    for model in (model_of(), model_of(stage)):
        model.bridge.m.fill_(0.5)
        shape = model.state_shape(PICTURES[0])
        states = []
        decode = model.decode
        model.decode = lambda state, decode=decode, states=states: states.append(state) or decode(state)
        model.network.forward = lambda x, t, condition=None: torch.full_like(x, 30.0)
        model.sample(PICTURES[0], settings, lambda step, shape=shape: torch.zeros(shape))
        assert (states[0].abs().max() <= 1) == (model.first_stage is None)


def test_sampling_tells_of_each_call_and_its_defaults_are_the_release():
    model, calls = model_of(), []
    model.sample(
        PICTURES[0], SamplerSettings("few_step", 4), lambda step: torch.zeros(2, 3, 8, 4), on_call=lambda: calls.append(1)
    )
    assert len(calls) == len(model.network.calls) == 4
    assert all(torch.equal(condition, PICTURES[0]) for _, _, condition, _ in model.network.calls)
    assert [t.tolist() for _, t, _, _ in model.network.calls][::3] == [[9, 9], [0, 0]]
    assert SamplerSettings("released", 5) == SamplerSettings("released", 5, eta=1.0, order=2, clip=False, grey=False)


def test_the_order_of_the_few_step_sampler_is_that_of_its_settings():
    samples = []
    for order in (1, 2, 3):
        model = model_of()
        model.network.forward = lambda x, t, condition=None: 0.5 * x + t.view(-1, 1, 1, 1) / 10
        settings = SamplerSettings("few_step", 5, order=order)
        samples.append(model.sample(PICTURES[0], settings, lambda step: torch.ones(2, 3, 8, 4)))
    assert not torch.allclose(samples[0], samples[1])
    assert not torch.allclose(samples[1], samples[2])


def test_random_losses_draw_time_and_noise_from_their_generator():
    def drawn(generator):
        model = model_of()
        model.random_loss(*PICTURES, generator=generator)
        return model.network.calls[0][:2]

    first, again, other = (drawn(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(first[1], torch.randint(10, (2,), generator=generator))
    noise = torch.randn(2, 3, 8, 4, generator=generator)
    optical, sar = PICTURES
    assert torch.equal(first[0], model_of().bridge.forward_sample(sar, optical, first[1], noise))
    torch.manual_seed(5)
    free = drawn(None)[0]
    assert not torch.equal(free, drawn(None)[0])


@pytest.mark.parametrize(("name", "steps"), [("released", 3), ("released", 10), ("few_step", 2), ("few_step", 10)])
def test_step_counts_at_the_limits_are_taken(name, steps):
    cfg = small_cfg(SAMPLER=name, SAMPLE_STEP=steps, NUM_TIMESTEPS=10)
    assert build_sampler_settings(cfg).steps == steps


@pytest.mark.parametrize(("name", "steps"), [("released", 2), ("released", 11), ("few_step", 1), ("few_step", 11)])
def test_step_counts_beyond_the_limits_are_refused(name, steps):
    with pytest.raises(UsageError, match=f"BBDM.SAMPLE_STEP is {steps}; it is [23] to BBDM.NUM_TIMESTEPS 10"):
        build_sampler_settings(small_cfg(SAMPLER=name, SAMPLE_STEP=steps, NUM_TIMESTEPS=10))
