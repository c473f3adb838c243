"""How samples are drawn: what the network is given, and that nothing else decides a picture."""

import pytest
import torch
from torch import nn

from bbdm.drawing import build_batch_size, build_sampling_model, draw
from bbdm.model import BridgeModel, SamplerSettings, build_bridge, build_network, build_sampler_settings
from bbdm.noise import sample_seed, seeded_normal
from configs import load_cfg
from utils.checkpoint import save
from utils.device import Precision
from utils.errors import CheckpointError

CPU = torch.device("cpu")
STEPS = SamplerSettings("released", 3)
SMALL = ["BBDM.WIDTH", 32, "BBDM.MULTIPLIERS", "[1, 1]", "BBDM.BLOCKS", 1, "BBDM.HEAD_WIDTH", 32, "BBDM.IMAGE_SIZE", "[8, 8]"]
JOBS = [("a.tif", 0), ("a.tif", 1), ("b.tif", 0)]


def small_cfg(*settings):
    return load_cfg(None, [str(word) for word in (*SMALL, *settings)])


class Recorder:
    """Stands for a bridge: keeps what `sample` was called with and gives the optical pictures back."""

    def __init__(self):
        self.network, self.precision = nn.Linear(1, 1), Precision("cpu")
        self.batches, self.noises = [], []

    def state_shape(self, pictures):
        return tuple(pictures.shape)

    def sample(self, optical, settings, noise, *, on_call):
        self.batches.append(optical.clone())
        self.noises.append([noise(step) for step in range(3)])
        return optical + 1


def picture(place):
    return torch.full((3, 4, 5), float(place))


def test_noise_follows_from_seed_name_k_and_step():
    model = Recorder()
    list(draw(model, JOBS, picture, STEPS, seed=7, batch_size=2))
    seeds = torch.tensor([sample_seed(7, *job) for job in [*JOBS, JOBS[-1]]])
    for batch, noises in enumerate(model.noises):
        for step, noise in enumerate(noises):
            assert torch.equal(noise, seeded_normal(seeds[2 * batch : 2 * batch + 2], step, (3, 4, 5)))
    first = [noise for noises in model.noises for noise in torch.stack(noises).transpose(0, 1).flatten(0, 1)][:9]
    different = {tuple(noise.flatten().tolist()) for noise in first}
    assert len(different) == 9  # three samples of three steps each


def test_the_last_batch_is_filled_up_and_its_filling_left_out():
    model, read = Recorder(), []
    drawn = list(
        draw(
            model,
            JOBS,
            lambda place: read.append(place) or picture(place),
            SamplerSettings("released", 3),
            seed=7,
            batch_size=2,
        )
    )
    assert read == [0, 1, 2]
    assert [batch[:, 0, 0, 0].tolist() for batch in model.batches] == [[0, 1], [2, 2]]
    assert [sample[0, 0, 0].item() for sample in drawn] == [1, 2, 3]
    assert all(sample.shape == (3, 4, 5) for sample in drawn)


def test_pictures_go_to_the_network_in_the_layout_of_its_device(monkeypatch):
    model = Recorder()
    monkeypatch.setattr("bbdm.drawing.layout_of", lambda precision: torch.channels_last)
    list(draw(model, JOBS[:1], picture, STEPS, seed=7, batch_size=2))
    assert model.batches[0].is_contiguous(memory_format=torch.channels_last)


def test_pictures_that_are_not_finite_are_refused_with_their_names():
    drawn = draw(Recorder(), JOBS, lambda place: picture(place) / (place != 2), STEPS, seed=7, batch_size=2)
    assert len([next(drawn), next(drawn)]) == 2
    with pytest.raises(CheckpointError, match=r"not finite for b\.tif; set SOLVER\.AMP off"):
        next(drawn)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save(tmp_path / "bridge.pth", build_network(small_cfg()).state_dict())
    return tmp_path / "bridge.pth"


@pytest.mark.parametrize(("name", "dtype"), [("auto", None), ("off", None), ("bf16", torch.bfloat16)])
def test_sampling_is_in_float32_unless_the_call_names_less(weights, monkeypatch, name, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    model = build_sampling_model(small_cfg("BBDM.WEIGHT", weights, "SOLVER.AMP", name), CPU)
    assert model.precision == Precision("cpu", dtype)


def test_auto_is_float32_on_a_gpu_too(weights, monkeypatch):
    """With a device that says it is one, since `auto` means float32 on a CPU anyway."""
    asked = []
    monkeypatch.setattr("bbdm.drawing.find_precision", lambda name, device: asked.append(name) or Precision("cpu"))
    build_sampling_model(small_cfg("BBDM.WEIGHT", weights, "SOLVER.AMP", "auto"), CPU)
    build_sampling_model(small_cfg("BBDM.WEIGHT", weights, "SOLVER.AMP", "bf16"), CPU)
    assert asked == ["off", "bf16"]


def test_the_batch_size_is_that_of_the_key_on_a_gpu_alone():
    cfg = small_cfg("BBDM.SAMPLE_BATCH", 9)
    assert build_batch_size(cfg, CPU) == 1
    assert build_batch_size(cfg, torch.device("cuda", 0)) == 9


def test_dropout_is_still_while_sampling(weights):
    samples = []
    for rate in (0.0, 0.9):
        cfg = small_cfg("BBDM.WEIGHT", weights, "BBDM.DROPOUT", rate, "BBDM.SAMPLE_STEP", 3)
        model = build_sampling_model(cfg, CPU)
        assert not model.network.training
        assert not any(weight.requires_grad for weight in model.network.parameters())
        read = lambda place: torch.linspace(-1, 1, 192).view(3, 8, 8)  # noqa: E731
        samples += draw(model, JOBS[:1], read, build_sampler_settings(cfg), seed=1, batch_size=1)
    assert torch.equal(*samples)


def test_settings_of_the_sampler_come_from_their_keys():
    words = ["BBDM.SAMPLER", "few_step", "BBDM.SAMPLE_STEP", 7, "BBDM.ETA", 0.25, "BBDM.ORDER", 3]
    settings = build_sampler_settings(small_cfg(*words, "BBDM.CLIP", True, "BBDM.GREY", True))
    assert settings == SamplerSettings("few_step", 7, eta=0.25, order=3, clip=True, grey=True)
    settings = build_sampler_settings(small_cfg(*words, "BBDM.CLIP", False, "BBDM.GREY", False))
    assert settings == SamplerSettings("few_step", 7, eta=0.25, order=3, clip=False, grey=False)


def test_defaults_are_those_of_the_paper_and_its_release():
    cfg = load_cfg(None, [])
    assert build_sampler_settings(cfg) == SamplerSettings("released", 200, eta=1.0, order=2, clip=False, grey=False)
    assert (cfg.BBDM.HEAD_WIDTH, cfg.BBDM.SAMPLE_NUM, cfg.BBDM.NUM_TIMESTEPS) == (64, 5, 1000)
    assert (cfg.BBDM.EMA_DECAY, cfg.BBDM.EMA_PERIOD, cfg.BBDM.EMA_START, cfg.BBDM.PLATEAU_PATIENCE) == (0.995, 8, 30000, 3000)


def test_dropout_of_the_network_is_that_of_its_key():
    network = build_network(small_cfg("BBDM.DROPOUT", 0.3))
    rates = {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)}
    assert rates == {0.3}


class Constant(nn.Module):
    """A network that predicts `value` everywhere and keeps the time steps that it is asked for."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value, self.steps = value, []

    def forward(self, x, t, condition=None):
        self.steps += t.tolist()
        return torch.full_like(x, self.value)


def sample_of(network, noise_seed, **settings):
    bridge = build_bridge(small_cfg("BBDM.NUM_TIMESTEPS", 50))
    model = BridgeModel(bridge, network, None, Precision("cpu"), "y")
    optical = torch.linspace(-1, 1, 96).view(1, 3, 4, 8)
    seeds = torch.tensor([noise_seed])
    return model.sample(optical, SamplerSettings(**settings), lambda step: seeded_normal(seeds, step, (3, 4, 8)))


@pytest.mark.parametrize("name", ["released", "few_step"])
@pytest.mark.parametrize("value", [-40.0, 40.0])
def test_clip_bounds_a_sample(name, value):
    assert sample_of(Constant(value), 1, name=name, steps=5, clip=True).abs().max() <= 1
    assert sample_of(Constant(value), 1, name=name, steps=5, clip=False).abs().max() > 2


def test_eta_scales_the_noise_of_the_released_sampler():
    def spread(eta):
        samples = torch.cat([sample_of(Constant(), seed, name="released", steps=5, eta=eta) for seed in range(4)])
        return samples.std(dim=0).mean().item()

    assert spread(0.0) == 0
    assert 0 < spread(0.5) < spread(1.0)


@pytest.mark.parametrize("name", ["released", "few_step"])
@pytest.mark.parametrize("steps", [3, 6])
def test_a_sample_takes_the_calls_that_were_asked_for(name, steps):
    network = Constant()
    sample_of(network, 1, name=name, steps=steps)
    assert len(network.steps) == steps
    assert (network.steps[0], network.steps[-1]) == (49, 0)


def test_grey_is_the_mean_of_the_bands():
    colour, grey = (sample_of(Constant(), 1, name="few_step", steps=3, grey=grey) for grey in (False, True))
    assert colour.std(dim=1).max() > 0.1
    assert torch.equal(grey, colour.mean(dim=1, keepdim=True).expand_as(colour))


def test_training_draws_every_time_step():
    network = Constant()
    model = BridgeModel(build_bridge(small_cfg("BBDM.NUM_TIMESTEPS", 4)), network, None, Precision("cpu"), "y")
    pictures = torch.zeros(400, 3, 2, 2)
    model.random_loss(pictures, pictures, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor(network.steps).bincount()
    assert len(counts) == 4
    assert counts.min() > 60
    noise = [model.random_loss(pictures, pictures, generator=torch.Generator().manual_seed(seed)).item() for seed in (1, 2, 1)]
    assert noise[0] == noise[2] != noise[1]
