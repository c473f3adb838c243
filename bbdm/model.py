"""The bridge as a whole: equations, network and the space that it lives in (pixels, or latents of a first stage).

Legend: B batch, H x W pixels, (c, h, w) a state of the bridge: (3, H, W) in pixel space, a latent otherwise.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bbdm.bridge import Bridge, bridge_loss, make_schedule
from bbdm.checkpoints import BridgeFile, fill_network, read_first_stage
from bbdm.data import layout_of
from bbdm.feature_term import FeatureTerm
from bbdm.first_stage import FirstStage, make_first_stage
from bbdm.latents import OPTICAL, SAR, keep_statistics, statistics_of
from bbdm.sampler import Noise, every_step, few_steps, released_steps, sample_few_steps, sample_released
from bbdm.unet import Rescaler, UNet, make_unet
from utils.checkpoint import without_start_values
from utils.device import Precision
from utils.errors import CheckpointError, UsageError
from utils.global_batch import draw_rows

logger = logging.getLogger(__name__)

NETWORK_KEYS = "BBDM.WIDTH, MULTIPLIERS, BLOCKS, SPACE, CONDITION and NORMALISE_LATENTS"
"""Keys that decide the network's tensors, for messages."""


@dataclass(frozen=True)
class SamplerSettings:
    """How samples are drawn.

    Attributes:
        name: 'released' or 'few_step'.
        steps: network calls.
        every_step: the released sampler takes all time steps, one by one, instead of the released list.
        eta: noise of the released sampler, 1 as trained.
        order: of the few-step sampler, 1, 2 or 3.
        clip: clamp estimates of the SAR picture; in pixel space only.
        grey: give all three bands of a sample their mean.
    """

    name: str
    steps: int
    eta: float = 1.0
    order: int = 2
    clip: bool = False
    grey: bool = False
    every_step: bool = False


class BridgeModel:
    """Turns optical pictures into pseudo-SAR ones.

    Args:
        bridge: the equations, on the network's device.
        network: predicts the bridge's target; anything called as `UNet` is.
        first_stage: of the latent model, frozen; None for the pixel model.
        precision: in which network and first stage compute.
        condition: what the network sees beside x_t: 'none', 'y' or 'first_stage' (the optical picture's state), or 'rescaler'
            (the picture itself).
        term: joins the loss; None for the paper's loss alone.
    """

    def __init__(
        self,
        bridge: Bridge,
        network: nn.Module,
        first_stage: FirstStage | None,
        precision: Precision,
        condition: str,
        term: FeatureTerm | None = None,
    ):
        self.bridge = bridge
        self.network = network
        self.first_stage = first_stage
        self.precision = precision
        self.condition = condition
        self.term = term

    def with_network(self, network: nn.Module) -> "BridgeModel":
        """The same bridge with another network, such as the averaged one."""
        return BridgeModel(self.bridge, network, self.first_stage, self.precision, self.condition)

    def with_term(self, term: FeatureTerm | None) -> "BridgeModel":
        """The same bridge for training with another term in its loss."""
        return BridgeModel(self.bridge, self.network, self.first_stage, self.precision, self.condition, term)

    def between_latents(self) -> "BridgeModel":
        """The same bridge for training on latents that are made already: its pictures are states. No 'rescaler' condition."""
        return BridgeModel(self.bridge, self.network, None, self.precision, self.condition)

    @torch.no_grad()
    def encode(self, pictures: Tensor, kind: str) -> Tensor:
        """(B, 3, H, W) in [-1, 1], of kind `OPTICAL` or `SAR`, -> (B, c, h, w)."""
        if self.first_stage is None:
            return pictures
        with self.precision.autocast():
            latent = self.first_stage.encode(pictures).float()
        statistics = statistics_of(self.network, kind)
        return latent if statistics is None else (latent - statistics[0]) / statistics[1]

    @torch.no_grad()
    def decode(self, states: Tensor) -> Tensor:
        """SAR states (B, c, h, w) -> (B, 3, H, W), about [-1, 1]."""
        if self.first_stage is None:
            return states
        statistics = statistics_of(self.network, SAR)
        latent = states if statistics is None else states * statistics[1] + statistics[0]
        with self.precision.autocast():
            return self.first_stage.decode(latent).float()

    def context(self, optical: Tensor, y: Tensor) -> Tensor | None:
        """What the network sees beside x_t, of optical pictures (B, 3, H, W) and their states y (B, c, h, w)."""
        return {"none": None, "rescaler": optical}.get(self.condition, y)

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """The network's float32 prediction of the target."""
        with self.precision.autocast():
            return self.network(x_t, t, context).float()

    def loss(
        self, optical: Tensor, sar: Tensor, t: Tensor, noise: Tensor, kind: str = "l1", sizes: Tensor | None = None
    ) -> Tensor:
        """The training loss of a batch of pictures (B, 3, H, W) at t (B,) with noise (B, c, h, w): a float32 number.

        `sizes`, (2 B, 3), are the size triples of the optical, then of the SAR chips; only a term needs them.
        """
        y, x0 = self.encode(optical, OPTICAL), self.encode(sar, SAR)
        x_t = self.bridge.forward_sample(x0, y, t, noise)
        prediction = self.predict(x_t, t, self.context(optical, y))
        loss = bridge_loss(prediction, self.bridge.target(x0, y, t, noise), kind)
        if self.term is None:
            return loss
        return loss + self.term(self.bridge.predict_x0(x_t, y, t, prediction), sar, sizes, self.bridge.m[t])

    def random_loss(
        self,
        optical: Tensor,
        sar: Tensor,
        kind: str = "l1",
        *,
        sizes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`loss` at random t, uniform over 0..T-1, with random noise, drawn on the CPU if a generator is given."""
        device, shape = optical.device, self.state_shape(optical)
        if generator is None:
            t = draw_rows(partial(self.draw_times, device=device), len(optical), device)
            noise = draw_rows(
                lambda rows, own: torch.randn((rows, *shape[1:]), generator=own, device=device), len(optical), device
            )
        else:
            t, noise = (drawn.to(device) for drawn in self.draw(shape, generator))
        return self.loss(optical, sar, t, noise, kind, sizes)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (B,) and noise for states of `shape` (B, c, h, w), of a generator on the CPU."""
        return self.draw_times(shape[0], generator), torch.randn(shape, generator=generator)

    def draw_times(self, count: int, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Tensor:
        """(count,) uniform over 0..T-1."""
        return torch.randint(len(self.bridge.schedule), (count,), generator=generator, device=device)

    def state_shape(self, pictures: Tensor) -> tuple[int, ...]:
        """(B, c, h, w) of the states of pictures (B, 3, H, W)."""
        if self.first_stage is None:
            return tuple(pictures.shape)
        factor = self.first_stage.factor
        batch, _, height, width = pictures.shape
        return batch, self.first_stage.code_width, height // factor, width // factor

    @torch.no_grad()
    def sample(self, optical: Tensor, settings: SamplerSettings, noise: Noise, *, on_call=lambda: None) -> Tensor:
        """Draw one SAR picture for each optical one.

        Args:
            optical: (B, 3, H, W) in [-1, 1].
            settings: the sampler.
            noise: step -> (B, c, h, w).
            on_call: called after each call of the network.

        Returns:
            (B, 3, H, W), about [-1, 1].
        """
        y = self.encode(optical, OPTICAL)
        context = self.context(optical, y)
        schedule = self.bridge.schedule

        def denoise(x_t: Tensor, t: int) -> Tensor:
            at = torch.full((len(x_t),), t, device=x_t.device)
            x0 = self.bridge.predict_x0(x_t, y, at, self.predict(x_t, at, context))
            on_call()
            return x0

        clip = settings.clip and self.first_stage is None
        if settings.name == "released":
            steps = every_step(len(schedule)) if settings.every_step else released_steps(len(schedule), settings.steps)
            run = partial(sample_released, steps=steps, eta=settings.eta)
        else:
            run = partial(sample_few_steps, steps=few_steps(schedule, settings.steps), order=settings.order)
        pictures = self.decode(run(denoise, y, schedule=schedule, noise=noise, clip=clip))
        return pictures.mean(dim=1, keepdim=True).expand_as(pictures) if settings.grey else pictures


def build_sampler_settings(cfg) -> SamplerSettings:
    """BBDM.SAMPLER, SAMPLE_STEP, ETA, ORDER, CLIP and GREY, checked against the schedule."""
    settings = SamplerSettings(
        name=cfg.BBDM.SAMPLER,
        steps=cfg.BBDM.SAMPLE_STEP or cfg.BBDM.NUM_TIMESTEPS,
        every_step=not cfg.BBDM.SAMPLE_STEP,
        eta=cfg.BBDM.ETA,
        order=cfg.BBDM.ORDER,
        clip=cfg.BBDM.CLIP,
        grey=cfg.BBDM.GREY,
    )
    low = 3 if settings.name == "released" else 2
    if not low <= settings.steps <= cfg.BBDM.NUM_TIMESTEPS:
        raise UsageError(f"BBDM.SAMPLE_STEP is {settings.steps}; it is {low} to BBDM.NUM_TIMESTEPS {cfg.BBDM.NUM_TIMESTEPS}")
    return settings


def build_bridge(cfg) -> Bridge:
    """The equations of BBDM.SCHEDULE, NUM_TIMESTEPS, MAX_VARIANCE and OBJECTIVE."""
    schedule = make_schedule(cfg.BBDM.SCHEDULE, num_timesteps=cfg.BBDM.NUM_TIMESTEPS, max_variance=cfg.BBDM.MAX_VARIANCE)
    return Bridge(schedule, objective=cfg.BBDM.OBJECTIVE)


def build_network(cfg) -> UNet:
    """The UNet of BBDM.*, with start values: from and to the channels of a state, and those of its condition beside them."""
    pixel, condition = cfg.BBDM.SPACE == "pixel", build_condition(cfg)
    channels = 3 if pixel else cfg.BBDM.FIRST_STAGE_CODE_WIDTH
    halvings = 0 if pixel else len(cfg.BBDM.FIRST_STAGE_MULTIPLIERS) - 1
    factor = 2 ** (len(cfg.BBDM.MULTIPLIERS) - 1 + halvings)
    if len(cfg.BBDM.IMAGE_SIZE) != 2 or any(side <= 0 or side % factor for side in cfg.BBDM.IMAGE_SIZE):
        raise UsageError(f"BBDM.IMAGE_SIZE {list(cfg.BBDM.IMAGE_SIZE)} must be a height and a width that {factor} divides")
    if cfg.BBDM.WIDTH % 32 or cfg.BBDM.WIDTH <= 0:
        raise UsageError(f"BBDM.WIDTH is {cfg.BBDM.WIDTH}; it is a multiple of 32")
    try:
        network = make_unet(
            in_channels=channels if condition == "none" else 2 * channels,
            out_channels=channels,
            width=cfg.BBDM.WIDTH,
            multipliers=cfg.BBDM.MULTIPLIERS,
            blocks=cfg.BBDM.BLOCKS,
            attention_factors=cfg.BBDM.ATTENTION_FACTORS,
            head_width=cfg.BBDM.HEAD_WIDTH,
            dropout=cfg.BBDM.DROPOUT,
            activation_checkpoints=cfg.BBDM.ACTIVATION_CHECKPOINTS,
            rescaler=Rescaler(halvings, channels) if condition == "rescaler" else None,
        )
    except ValueError as error:
        raise UsageError(f"BBDM.WIDTH, MULTIPLIERS and HEAD_WIDTH make no network: {error}") from error
    if cfg.BBDM.NORMALISE_LATENTS and pixel:
        raise UsageError("BBDM.NORMALISE_LATENTS is True and BBDM.SPACE pixel, where there are no latents; set one of them")
    if cfg.BBDM.NORMALISE_LATENTS:
        keep_statistics(network, channels)
    return network


def build_condition(cfg) -> str:
    """BBDM.CONDITION, 'auto' resolved: 'y' in pixel space, 'none' between latents."""
    space, asked = cfg.BBDM.SPACE, cfg.BBDM.CONDITION
    known = ("y", "none") if space == "pixel" else ("none", "first_stage", "rescaler")
    if asked not in ("auto", *known):
        raise UsageError(f"BBDM.CONDITION is {asked}; with BBDM.SPACE {space} it is auto or one of {', '.join(known)}")
    return known[0] if asked == "auto" else asked


def build_empty_first_stage(cfg) -> FirstStage:
    """The first stage of BBDM.FIRST_STAGE_*, with random weights."""
    if cfg.BBDM.FIRST_STAGE_WIDTH % 32 or cfg.BBDM.FIRST_STAGE_WIDTH <= 0:
        raise UsageError(f"BBDM.FIRST_STAGE_WIDTH is {cfg.BBDM.FIRST_STAGE_WIDTH}; it is a multiple of 32")
    return make_first_stage(
        width=cfg.BBDM.FIRST_STAGE_WIDTH,
        multipliers=cfg.BBDM.FIRST_STAGE_MULTIPLIERS,
        blocks=cfg.BBDM.FIRST_STAGE_BLOCKS,
        latent_channels=cfg.BBDM.FIRST_STAGE_CODE_WIDTH,
        codes=cfg.BBDM.FIRST_STAGE_CODES,
        code_width=cfg.BBDM.FIRST_STAGE_CODE_WIDTH,
        attention_sizes=cfg.BBDM.FIRST_STAGE_ATTENTION,
    )


def build_first_stage(cfg, *, weights: str | Path = "") -> FirstStage | None:
    """The frozen first stage of the latent model, None for the pixel one.

    Args:
        cfg: the configuration.
        weights: a bridge's checkpoint, which may hold the first stage too; BBDM.FIRST_STAGE comes first.

    Raises:
        CheckpointError: no file holds the first stage, or one of another shape.
    """
    if cfg.BBDM.SPACE == "pixel":
        return None
    path = cfg.BBDM.FIRST_STAGE or weights
    if not path:
        raise CheckpointError(
            "the latent model needs a first stage; set BBDM.FIRST_STAGE to its checkpoint (vq-f4, or your own)"
        )
    stage = without_start_values(partial(build_empty_first_stage, cfg))
    fill_network(stage, read_first_stage(path), path, "BBDM.FIRST_STAGE_*")
    stage.before_quant_conv = cfg.BBDM.LATENT_BEFORE_QUANT_CONV
    return stage.eval().requires_grad_(False)


def build_bridge_model(
    cfg, device: torch.device, precision: Precision, *, weights: BridgeFile | None = None, averaged: bool = True
) -> BridgeModel:
    """The bridge of BBDM.*, on `device`, with start values or the averaged (or trained) weights of a file.

    Raises:
        UsageError: sizes that make no network.
        CheckpointError: weights of another shape, or no first stage.
    """
    network = build_network(cfg) if weights is None else without_start_values(partial(build_network, cfg))
    if weights is not None:
        fill_network(network, weights.averages if averaged else weights.weights, weights.path, NETWORK_KEYS)
    first_stage = build_first_stage(cfg, weights=weights.path if weights else "")
    layout = layout_of(precision)
    network.to(device, memory_format=layout)
    if first_stage is not None:
        first_stage.to(device, memory_format=layout)
    return BridgeModel(build_bridge(cfg).to(device), network, first_stage, precision, build_condition(cfg))
