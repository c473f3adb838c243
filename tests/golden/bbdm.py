"""The golden vectors of the bridge, its network, its first stage and its weight average: one check for each kind of file."""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bbdm.averaging import build_average, update_average
from bbdm.bridge import Bridge, Schedule, bridge_loss, make_schedule
from bbdm.first_stage import make_first_stage
from bbdm.sampler import released_steps, sample_released
from bbdm.unet import make_unet
from tests.formula_weights import fill_formula, fill_seeded
from tests.golden.compare import FORMULA, NETWORK, Comparison, tensor

Vectors = Mapping[str, np.ndarray]


def check_schedule(vectors: Vectors) -> Iterator[Comparison]:
    """Coefficients of every `mt_T_steps` in the file, and its step lists exactly."""
    worst = 0.0
    for name in {key.rsplit(".", 1)[0] for key in vectors}:
        kind, num_timesteps, sample_step = name.rsplit("_", 2)
        schedule = make_schedule(kind, num_timesteps=int(num_timesteps))
        t = np.arange(1, len(schedule))  # nothing lies before t = 0: its transition is its marginal, and leaves nothing to draw
        ours = {
            "m_t": schedule.m,
            "variance_t": schedule.variance,
            "variance_t_tminus": np.append(schedule.variance[0], schedule.transition_variance(t, t - 1)),
            "posterior_variance_t": np.append(0.0, schedule.posterior_variance(t, t - 1)),
        }
        worst = max([worst, *(_difference(ours[key], vectors[f"{name}.{key}"]) for key in ours)])
        if released_steps(int(num_timesteps), int(sample_step)) != vectors[f"{name}.steps"].tolist():
            worst = np.inf
    yield Comparison(worst, FORMULA)


def check_bridge(vectors: Vectors, *, objective: str | None = None) -> Iterator[Comparison]:
    """Forward sample, target, recovery, loss and the whole released reverse loop; the objective is found by its target."""
    x0, y, noise, t, x_t, target = (tensor(vectors[key]) for key in ("x0", "y", "noise", "t", "x_t", "target"))
    schedule = make_schedule(str(vectors.get("mt_type", "linear")), num_timesteps=int(vectors["num_timesteps"]))
    bridge = Bridge(schedule, objective=objective or _objective_of(vectors, schedule)).to(x0.device)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x + 0.05 * t.view(-1, 1, 1, 1) / 100

    def denoise(x: Tensor, step: int) -> Tensor:
        at = torch.full((len(x),), step)
        return bridge.predict_x0(x, y, at, network(x, at))

    loop_noise = tensor(vectors["loop_noise"])
    ours = {
        "x_t": bridge.forward_sample(x0, y, t, noise),
        "target": bridge.target(x0, y, t, noise),
        "x0_rec": bridge.predict_x0(x_t, y, t, target),
        "loss_l1": bridge_loss(network(x_t, t), target, "l1"),
        "loop_out": sample_released(
            denoise,
            y,
            schedule=schedule,
            steps=released_steps(int(vectors["num_timesteps"]), int(vectors["sample_step"])),
            noise=loop_noise.__getitem__,
            eta=float(vectors["eta"]),
            clip=True,
        ),
    }
    yield Comparison(max(_difference(ours[key], vectors[key]) for key in ours), FORMULA)


def _objective_of(vectors: Vectors, schedule: Schedule) -> str:
    """The objective is only in the file's name, which a check does not see; the target tells it as well."""
    x0, y, noise, t = (tensor(vectors[key]) for key in ("x0", "y", "noise", "t"))
    targets = {
        name: Bridge(schedule, objective=name).to(x0.device).target(x0, y, t, noise) for name in ("grad", "noise", "ysubx")
    }
    return min(targets, key=lambda name: _difference(targets[name], vectors["target"]))


def check_unet(vectors: Vectors) -> Iterator[Comparison]:
    """Output of the formula-filled network, its keys and shapes."""
    network = make_unet(**_unet_sizes(vectors)).eval()
    fill_formula(network, vectors["groupnorm_weights"].tolist())
    alone = json.loads(str(vectors["config"]))["condition_key"] == "nocond"
    context = None if alone else tensor(vectors["context"])
    with torch.no_grad():
        out = network(tensor(vectors["x"]), tensor(vectors["t"]), context)
    yield Comparison(max(_difference(out, vectors["out"]), _key_difference(network, vectors)), NETWORK)


def check_unet_keys(vectors: Vectors) -> Iterator[Comparison]:
    """Keys and shapes of the published latent network."""
    with torch.device("meta"):
        yield Comparison(_key_difference(make_unet(**_unet_sizes(vectors)), vectors), 0.0)


def check_first_stage(vectors: Vectors) -> Iterator[Comparison]:
    """Latent, codes, quantised latent and reconstruction of the seed-filled first stage, its keys and shapes."""
    stage = make_first_stage(**_first_stage_sizes(vectors)).eval()
    fill_seeded(stage, int(vectors["seed"]), vectors["groupnorm_weights"].tolist())
    with torch.no_grad():
        latent = stage.encode(tensor(vectors["x"]))
        quantized, codes = stage.quantise(tensor(vectors["latent"]))
        reconstruction = stage.decode(tensor(vectors["latent"]))
    exact = np.array_equal(codes.flatten().cpu().numpy(), vectors["codes"].ravel())
    errors = [
        _difference(latent, vectors["latent"]),
        _difference(quantized, vectors["quantized"]),
        _difference(reconstruction, vectors["recon"]),
        _key_difference(stage, vectors),
        0.0 if exact else np.inf,
    ]
    yield Comparison(max(errors), NETWORK)


def check_first_stage_keys(vectors: Vectors) -> Iterator[Comparison]:
    """Keys and shapes of the published first stage."""
    with torch.device("meta"):
        yield Comparison(_key_difference(make_first_stage(**_first_stage_sizes(vectors)), vectors), 0.0)


def check_ema(vectors: Vectors) -> Iterator[Comparison]:
    """The average after all weights but the first (the start), of which the first `copy_until` are copied."""
    weights = tensor(vectors["weights"])
    network = nn.ParameterList([nn.Parameter(weights[0].clone())])
    average = build_average(network, float(vectors["decay"]))
    for step, weight in enumerate(weights[1:]):
        network[0].data.copy_(weight)
        update_average(average, network, copying=step < int(vectors["copy_until"]))
    yield Comparison(_difference(average.module[0], vectors["shadow"]), FORMULA)


CHECKS: dict[str, Callable[[Vectors], Iterator[Comparison]]] = {
    "bb_schedule": check_schedule,
    "bb_bridge_": check_bridge,
    "bb_unet_small": check_unet,
    "bb_unet_f4_keys": check_unet_keys,
    "vqgan_small": check_first_stage,
    "vqgan_f4_keys": check_first_stage_keys,
    "ema": check_ema,
}
"""Prefix of a file's name -> its check."""


def _difference(ours: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; infinite for another shape or a NaN."""
    ours = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else ours
    if ours.shape != expected.shape:
        return np.inf
    difference = float(np.abs(ours.astype(np.float64) - expected).max(initial=0.0))
    return np.inf if np.isnan(difference) else difference


def _key_difference(module: nn.Module, vectors: Vectors) -> float:
    """0 if the state dict has exactly the file's keys and shapes, else infinite."""
    ours = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
    expected = {str(key): json.loads(str(shape)) for key, shape in zip(vectors["keys"], vectors["key_shapes"], strict=True)}
    return 0.0 if ours == expected else np.inf


def _unet_sizes(vectors: Vectors) -> dict:
    """The file's sizes under our names; the rest of its `config` is fixed in our network."""
    config = json.loads(str(vectors["config"]))
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "width": config["model_channels"],
        "multipliers": config["channel_mult"],
        "blocks": config["num_res_blocks"],
        "attention_factors": config["attention_resolutions"],
        "head_width": config["num_head_channels"],
    }


def _first_stage_sizes(vectors: Vectors) -> dict:
    """The file's sizes under our names."""
    config = json.loads(str(vectors["config"]))
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_ch"],
        "width": config["ch"],
        "multipliers": config["ch_mult"],
        "blocks": config["num_res_blocks"],
        "latent_channels": config["z_channels"],
        "codes": config["n_embed"],
        "code_width": config["embed_dim"],
        "attention_sizes": config["attn_resolutions"],
        "picture_size": config["resolution"],
    }
