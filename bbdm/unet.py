"""The denoising network: the UNet of ADM (arXiv 2105.05233) as latent diffusion and BBDM use it, under their tensor names.

Legend: B batch, C channels, H x W pixels, E width of the time embedding. Residual blocks change the resolution and take the
time as scale and shift; attention is multi-head self-attention over pixels.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GROUPS = 32
"""Of every normalisation."""


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t at width / 2 frequencies from 1 down to 1/10000: (B,) -> (B, width) float32; width even."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimedBlock(nn.Module):
    """(B, C, H, W), (B, E) -> (B, C', H', W'), with H' = H, H / 2 (`resample` 'down') or 2 H ('up')."""

    def __init__(self, channels: int, out_channels: int, *, time_width: int, resample: str | None = None, dropout: float = 0.0):
        super().__init__()
        self.resample = {"down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2.0), None: nn.Identity()}[resample]
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the block; resampling sits between the first activation and the first convolution, and on the skip."""
        norm, activation, convolution = self.in_layers
        h = convolution(self.resample(activation(norm(x))))
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resample(x)) + h


class PixelAttention(nn.Module):
    """Self-attention over pixels, (B, C, H, W) -> the same; C is heads x (C / heads), split before queries, keys and values."""

    def __init__(self, channels: int, *, head_width: int):
        super().__init__()
        if channels % head_width:
            raise ValueError(f"{channels} channels do not divide into attention heads of width {head_width}")
        self.heads = channels // head_width
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and add."""
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        qkv = self.qkv(self.norm(flat)).view(batch, self.heads, 3, channels // self.heads, height * width)
        # Fused kernels want the last dimension dense; without them the scores of all pairs of pixels are held.
        query, key, value = qkv.transpose(-1, -2).contiguous().unbind(dim=2)  # each (B, heads, HW, C / heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return (flat + self.proj_out(attended.transpose(-1, -2).reshape_as(flat))).view_as(x)


class TimedSequential(nn.Sequential):
    """Layers in a row; residual blocks also get the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H', W')."""
        for layer in self:
            x = layer(x, time) if isinstance(layer, TimedBlock) else layer(x)
        return x


class Rescaler(nn.Module):
    """Make a picture as small as a latent: halved `halvings` times by bilinear interpolation, then its channels mixed.

    (B, 3, H, W) -> (B, C, H / 2^halvings, W / 2^halvings).
    """

    def __init__(self, halvings: int, out_channels: int):
        super().__init__()
        self.halvings = halvings
        self.channel_mapper = nn.Conv2d(3, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve and mix."""
        for _ in range(self.halvings):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(x)


class UNet(nn.Module):
    """Predict the bridge's target: x_t (B, C, H, W), t (B,), condition (B, C_y, H, W) or none -> (B, C_out, H, W).

    H and W must divide by 2^(levels - 1). Where there is a `Rescaler`, the condition is the picture that it makes smaller.
    Built by `make_unet`.
    """

    def __init__(
        self,
        *,
        width: int,
        input_blocks: Sequence[nn.Module],
        middle_block: nn.Module,
        output_blocks: Sequence[nn.Module],
        out_channels: int,
        activation_checkpoints: bool,
        rescaler: Rescaler | None,
    ):
        super().__init__()
        self.width = width
        self.cond_stage_model = rescaler  # the name of its tensors
        self.activation_checkpoints = activation_checkpoints
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.input_blocks = nn.ModuleList(input_blocks)
        self.middle_block = middle_block
        self.output_blocks = nn.ModuleList(output_blocks)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the network; the condition's channels follow those of x."""
        time = self.time_embed(timestep_embedding(t, self.width))
        if self.cond_stage_model is not None:
            condition = self.cond_stage_model(condition)
        h = x if condition is None else torch.cat([x, condition], dim=1)
        skips = []
        for block in self.input_blocks:
            h = self._run(block, h, time)
            skips.append(h)
        h = self._run(self.middle_block, h, time)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), time)
        return self.out(h)

    def units(self) -> list[nn.Module]:
        """Parts whose tensors are needed together, inner ones first, and at last the network itself."""
        return [*self.input_blocks, self.middle_block, *self.output_blocks, self]

    def _run(self, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        if self.activation_checkpoints and self.training:
            return checkpoint(block, x, time, use_reentrant=False)
        return block(x, time)


def make_unet(
    *,
    in_channels: int,
    out_channels: int = 3,
    width: int = 128,
    multipliers: Sequence[int] = (1, 4, 8),
    blocks: int = 2,
    attention_factors: Sequence[int] = (8, 16, 32),
    head_width: int = 64,
    dropout: float = 0.0,
    activation_checkpoints: bool = False,
    rescaler: Rescaler | None = None,
) -> UNet:
    """Build a UNet with the published names and start values.

    Args:
        in_channels: channels of x_t plus those of the condition.
        out_channels: channels of the target.
        width: channels at full resolution; a multiple of 32.
        multipliers: width factor of each level, the first 1; a level halves the resolution of the one above.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention_factors: downsampling factors at which blocks attend; the middle block always does.
        head_width: channels of an attention head.
        dropout: within residual blocks, 0..1.
        activation_checkpoints: compute activations again in the backward pass to save memory.
        rescaler: of the condition, which then is a picture; trained with the network and started like its convolutions.
    """
    if list(multipliers[:1]) != [1]:
        raise ValueError(f"the first width multiplier must be 1, not those of {list(multipliers)}")
    block = partial(TimedBlock, time_width=4 * width, dropout=dropout)
    attention = partial(PixelAttention, head_width=head_width)
    widths = [width * multiplier for multiplier in multipliers]
    attends = [2**level in attention_factors for level in range(len(widths))]
    down, middle, up = _make_ways(in_channels, widths, attends, blocks=blocks, block=block, attention=attention)
    network = UNet(
        width=width,
        input_blocks=down,
        middle_block=middle,
        output_blocks=up,
        out_channels=out_channels,
        activation_checkpoints=activation_checkpoints,
        rescaler=rescaler,
    )
    _set_start_values(network)
    return network


def _make_ways(
    in_channels: int,
    widths: Sequence[int],
    attends: Sequence[bool],
    *,
    blocks: int,
    block: Callable[..., TimedBlock],
    attention: Callable[[int], PixelAttention],
) -> tuple[list[TimedSequential], TimedSequential, list[TimedSequential]]:
    """The blocks on the way down, in the middle and on the way up; `widths` and `attends` are those of the levels."""

    def layers(channels: int, level: int) -> list[nn.Module]:
        return [block(channels, widths[level]), *([attention(widths[level])] if attends[level] else [])]

    down, skips, channels = [TimedSequential(nn.Conv2d(in_channels, widths[0], 3, padding=1))], [widths[0]], widths[0]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            down.append(TimedSequential(*layers(channels, level)))
            channels = width
        if level + 1 < len(widths):
            down.append(TimedSequential(block(width, width, resample="down")))
        skips += [width] * (len(down) - len(skips))
    middle = TimedSequential(block(channels, channels), attention(channels), block(channels, channels))
    up = []
    for level, width in reversed(list(enumerate(widths))):
        for place in range(blocks + 1):
            parts = layers(channels + skips.pop(), level)
            channels = width
            if level and place == blocks:
                parts.append(block(width, width, resample="up"))
            up.append(TimedSequential(*parts))
    return down, middle, up


def _set_start_values(network: UNet) -> None:
    """As released: N(0, 0.02) for each Conv2d and Linear weight; the last layer of a block starts with bias 0.

    Only the attention's output projection, a Conv1d, starts at zero altogether.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0.0, 0.02)
            elif isinstance(module, PixelAttention):
                module.proj_out.weight.zero_()
                module.proj_out.bias.zero_()
        blocks = [module for module in network.modules() if isinstance(module, TimedBlock)]
        for last in (network.out[-1], *(block.out_layers[-1] for block in blocks)):
            last.bias.zero_()
