"""The first stage of the latent model: the vector-quantised autoencoder of latent diffusion (vq-f4), under its tensor names.

Legend: B batch, C channels, H x W pixels, h x w latents (a quarter of the picture's sides with three levels), N codes.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and a shortcut."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SingleHeadAttention(nn.Module):
    """Single-head self-attention over pixels, (B, C, H, W) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and add."""
        h = self.norm(x)
        # Fused kernels want the last dimension dense.
        query, key, value = (
            layer(h).flatten(2).transpose(1, 2).contiguous().unsqueeze(1) for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, 1, HW, C)
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))


def make_resampler(channels: int, direction: str) -> nn.Sequential:
    """(B, C, H, W) -> (B, C, H / 2, W / 2) for 'down', padded at the right and the bottom only; (B, C, 2 H, 2 W) for 'up'."""
    if direction == "down":
        return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(channels, channels, 3, stride=2)))
    enlarge = nn.Upsample(scale_factor=2.0, mode="nearest")
    return nn.Sequential(OrderedDict(enlarge=enlarge, conv=nn.Conv2d(channels, channels, 3, padding=1)))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if asked, then a change of resolution or none."""

    def __init__(self, channels: int, out_channels: int, *, blocks: int, attention: bool, resample: str | None):
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(channels if i == 0 else out_channels, out_channels) for i in range(blocks))
        self.attn = nn.ModuleList(SingleHeadAttention(out_channels) for _ in range(blocks if attention else 0))
        self.downsample = make_resampler(out_channels, "down") if resample == "down" else nn.Identity()
        self.upsample = make_resampler(out_channels, "up") if resample == "up" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(self.downsample(x))


def make_middle(channels: int) -> nn.Sequential:
    """Block, attention, block at the lowest resolution, (B, C, h, w) -> the same."""
    return nn.Sequential(
        OrderedDict(
            block_1=ResidualBlock(channels, channels),
            attn_1=SingleHeadAttention(channels),
            block_2=ResidualBlock(channels, channels),
        )
    )


def make_encoder(
    in_channels: int, out_channels: int, *, widths: Sequence[int], blocks: int, attention: Sequence[bool]
) -> nn.Sequential:
    """Picture (B, C, H, W) -> features (B, C_z, h, w)."""
    before = [widths[0], *widths[:-1]]
    last = len(widths) - 1
    return nn.Sequential(
        OrderedDict(
            conv_in=nn.Conv2d(in_channels, widths[0], 3, padding=1),
            down=nn.Sequential(
                *(
                    Level(before[i], widths[i], blocks=blocks, attention=attention[i], resample="down" if i < last else None)
                    for i in range(len(widths))
                )
            ),
            mid=make_middle(widths[-1]),
            norm_out=group_norm(widths[-1]),
            activation=nn.SiLU(),
            conv_out=nn.Conv2d(widths[-1], out_channels, 3, padding=1),
        )
    )


def make_decoder(
    in_channels: int, out_channels: int, *, widths: Sequence[int], blocks: int, attention: Sequence[bool]
) -> nn.Sequential:
    """Features (B, C_z, h, w) -> picture (B, C, H, W)."""
    before = [*widths[1:], widths[-1]]
    layers = OrderedDict(conv_in=nn.Conv2d(in_channels, widths[-1], 3, padding=1), mid=make_middle(widths[-1]))
    levels = [
        Level(before[i], widths[i], blocks=blocks + 1, attention=attention[i], resample="up" if i else None)
        for i in range(len(widths))
    ]
    # Levels are numbered from full resolution on, and run from the lowest.
    layers["up"] = nn.Sequential(OrderedDict((str(i), levels[i]) for i in reversed(range(len(levels)))))
    layers["norm_out"], layers["activation"] = group_norm(widths[0]), nn.SiLU()
    layers["conv_out"] = nn.Conv2d(widths[0], out_channels, 3, padding=1)
    return nn.Sequential(layers)


class Codebook(nn.Module):
    """N vectors; a latent pixel becomes the nearest of them."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> the nearest code vectors (B, C, h, w) and their numbers (B, h, w) int64."""
        pixels = latent.permute(0, 2, 3, 1)
        flat = pixels.reshape(-1, pixels.shape[-1]).float()
        vectors = self.embedding.weight.float()
        with torch.autocast(latent.device.type, enabled=False):  # codes lie closer together than half precision tells apart
            # |z - e|^2 without |z|^2, which is the same for all codes
            distances = torch.addmm(vectors.square().sum(dim=1), flat, vectors.T, alpha=-2.0)
        numbers = distances.argmin(dim=1).view(pixels.shape[:-1])
        return self.embedding(numbers).permute(0, 3, 1, 2), numbers


class FirstStage(nn.Module):
    """Picture <-> latent. The bridge lives on `encode`'s latents, which are not quantised; `decode` quantises them first.

    Attributes:
        before_quant_conv: latents are those before `quant_conv`, which `decode` then applies; both have the same channels.
    """

    def __init__(self, *, encoder: nn.Sequential, decoder: nn.Sequential, latent_channels: int, codes: int, code_width: int):
        super().__init__()
        self.before_quant_conv = False
        self.encoder = encoder
        self.decoder = decoder
        self.quantize = Codebook(codes, code_width)
        self.quant_conv = nn.Conv2d(latent_channels, code_width, 1)
        self.post_quant_conv = nn.Conv2d(code_width, latent_channels, 1)

    @property
    def factor(self) -> int:
        """Side of a picture by side of its latent."""
        return 2 ** (len(self.encoder.down) - 1)

    @property
    def code_width(self) -> int:
        """Channels of a latent."""
        return self.quantize.embedding.embedding_dim

    def encode(self, x: Tensor) -> Tensor:
        """Picture (B, C, H, W) in [-1, 1] -> latent (B, code width, h, w)."""
        latent = self.encoder(x)
        return latent if self.before_quant_conv else self.quant_conv(latent)

    def quantise(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent (B, code width, h, w) -> nearest code vectors, same shape, and their numbers (B, h, w) int64."""
        return self.quantize(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, code width, h, w) -> picture (B, C, H, W), about [-1, 1], by way of the nearest codes."""
        return self.decode_codes(self.quantise(self.quant_conv(latent) if self.before_quant_conv else latent)[0])

    def decode_codes(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, code width, h, w) -> picture (B, C, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(vectors))


def make_first_stage(
    *,
    in_channels: int = 3,
    out_channels: int = 3,
    width: int = 128,
    multipliers: Sequence[int] = (1, 2, 4),
    blocks: int = 2,
    latent_channels: int = 3,
    codes: int = 8192,
    code_width: int = 3,
    attention_sizes: Sequence[int] = (),
    picture_size: int = 256,
) -> FirstStage:
    """Build a first stage; the defaults are vq-f4.

    Args:
        in_channels: of the picture.
        out_channels: of the reconstruction.
        width: channels at full resolution; a multiple of 32.
        multipliers: width factor of each level; a level halves the resolution of the one above.
        blocks: residual blocks of a level of the encoder; one more in the decoder.
        latent_channels: between encoder and codes.
        codes: number of code vectors.
        code_width: length of a code vector, the latent's channels.
        attention_sizes: side lengths, of a picture of `picture_size` pixels, at which levels attend.
        picture_size: side length that `attention_sizes` refer to.
    """
    widths = [width * multiplier for multiplier in multipliers]
    attention = [picture_size // 2**level in attention_sizes for level in range(len(widths))]
    return FirstStage(
        encoder=make_encoder(in_channels, latent_channels, widths=widths, blocks=blocks, attention=attention),
        decoder=make_decoder(latent_channels, out_channels, widths=widths, blocks=blocks, attention=attention),
        latent_channels=latent_channels,
        codes=codes,
        code_width=code_width,
    )
