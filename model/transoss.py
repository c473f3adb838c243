"""TransOSS: a Vision Transformer for optical and SAR chips (TransOSS, ICCV 2025, section 4), and SDF-Net's additions to it.

Legend: B images, H x W pixels, N patches (tokens), D embedding width.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed, trunc_normal_
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.features import Features, gradient_energy, structure_descriptor
from utils.seed import redrawing

PATCH_SIZE = 16


def patch_stem(img_size: tuple[int, int], embed_dim: int, *, stride: tuple[int, int] = (16, 16), **_: object) -> PatchEmbed:
    """A module that cuts images into patches of 16 x 16 and embeds each linearly: (B, 3, H, W) -> (B, N, D), row by row.

    Args:
        img_size: H and W.
        embed_dim: D.
        stride: vertical and horizontal distance of neighbouring patches in pixels; below 16 they overlap.
        _: what timm's networks tell their stems besides.
    """
    rows, columns = ((size - PATCH_SIZE) // step + 1 for size, step in zip(img_size, stride, strict=True))
    if min(rows, columns) < 1:
        raise ValueError(f"an image of {img_size[0]} x {img_size[1]} pixels holds no patch of {PATCH_SIZE} x {PATCH_SIZE}")
    stem = PatchEmbed(None, PATCH_SIZE, embed_dim=embed_dim)  # given a size, timm wants whole patches without overlap
    stem.proj.stride = stride
    stem.grid_size, stem.num_patches = (rows, columns), rows * columns
    return stem


class TransOSS(VisionTransformer):
    """A pre-norm ViT with a patch stem, an embedding and a size token that know what took the picture.

    What differs from timm's ViT: a second stem for SAR (`patch_embed_SAR`), the modality information embedding (MIE) on the
    class and patch tokens, and the ship-size token (SSE) behind them. SDF-Net adds a second class token that depends on the
    modality, and looks at the patches behind one of the blocks. Tensor names are those of the released checkpoints.

    Args:
        img_size: height and width of the images in pixels.
        stride: distance of neighbouring patches; below 16 they overlap.
        embed_dim, depth, num_heads, mlp_ratio: as in ViT.
        modality_embedding: whether to add the MIE.
        modality_scale: its factor (MIE_COE).
        size_embedding: whether to append the size token.
        norm_eps: epsilon of every LayerNorm.
        drop_rate, attn_drop_rate: dropout after projections and of the tokens of `embed`, and on attention weights.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        position_init: 'normal' (deviation 0.02, as in ViT) or 'sincos' (sines and cosines of row and column, as in MAE).
            From scratch and in a few hundred steps, a network with 'normal' hardly learns where its patches are.
        specific_tokens: whether a class token of the image's modality follows the one that all images share (SDF-Net).
        structure_block: number, from 1, of the block whose patches are described by their structure (SDF-Net); 0: none.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        stride: tuple[int, int] = (16, 16),
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        modality_embedding: bool = True,
        modality_scale: float = 3.0,
        size_embedding: bool = True,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        position_init: str = "normal",
        specific_tokens: bool = False,
        structure_block: int = 0,
    ):
        stem = partial(patch_stem, stride=stride)
        super().__init__(
            img_size=img_size,
            patch_size=PATCH_SIZE,
            num_classes=0,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            embed_layer=stem,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            pos_drop_rate=drop_rate,
            proj_drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.patch_embed_SAR = stem(img_size, embed_dim)
        self.modality_scale, self.structure_block, self.products = modality_scale, structure_block, False
        self.mie_embed = nn.Parameter(torch.empty(2, 1, embed_dim)) if modality_embedding else None
        # A linear map of the size triple, under its released name.
        self.wh_embed = nn.Sequential(OrderedDict(linear_layer=nn.Linear(3, embed_dim))) if size_embedding else None
        self.cls_token_spe_rgb = self.cls_token_spe_sar = None
        if specific_tokens:
            self._add_specific_tokens()
        self._initialise_embeddings(position_init)

    def _add_specific_tokens(self) -> None:
        """A class token of each modality, and a place for it behind the shared one's."""
        self.cls_token_spe_rgb, self.cls_token_spe_sar = (nn.Parameter(torch.empty(1, 1, self.embed_dim)) for _ in range(2))
        self.pos_embed = nn.Parameter(torch.empty(1, 2 + self.patch_embed.num_patches, self.embed_dim))
        for embedding in (self.cls_token_spe_rgb, self.cls_token_spe_sar, self.pos_embed):
            trunc_normal_(embedding, std=0.02)

    def _initialise_embeddings(self, positions: str) -> None:
        for stem in (self.patch_embed, self.patch_embed_SAR):
            nn.init.kaiming_normal_(stem.proj.weight, mode="fan_out")  # deviation 0.0032 at the released size
        trunc_normal_(self.cls_token, std=0.02)
        if self.mie_embed is not None:
            trunc_normal_(self.mie_embed, std=0.02)
        if self.wh_embed is not None:
            trunc_normal_(self.wh_embed.linear_layer.weight, std=0.02)
            nn.init.zeros_(self.wh_embed.linear_layer.bias)
        if positions == "sincos":  # places of class tokens stay as they are
            grid = build_sincos2d_pos_embed(list(self.grid_size), self.embed_dim, interleave_sin_cos=True)
            self.pos_embed.data[:, self.class_tokens :] = grid

    def attend_by_products(self) -> None:
        """From now on, attention in training is two matrix products and a softmax, not torch's fused function.

        On a CPU in bfloat16 its backward pass takes five times as long as theirs at 130 tokens, and is no faster at 2,000. In
        float32, and on a GPU, it is the faster one. Products keep every matrix of scores in memory.
        """
        self.products = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "TransOSS":
        """As of any module; see `attend_by_products`."""
        for block in self.blocks if self.products else ():
            block.attn.fused_attn = not mode
        return super().train(mode)

    @property
    def class_tokens(self) -> int:
        """How many class tokens stand before the patches: the shared one, perhaps a specific one."""
        return 1 if self.cls_token_spe_rgb is None else 2

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.patch_embed.grid_size

    def embed(self, images: Tensor, modalities: Tensor, sizes: Tensor) -> Tensor:
        """Tokens before the first block: class (shared, perhaps specific), patches, size.

        Args:
            images: (B, 3, H, W).
            modalities: (B,) int64; 0 optical, 1 SAR.
            sizes: (B, 3).

        Returns:
            (B, C + N + 1, D), C class tokens, 1 or 2; or (B, C + N, D) without the size token.
        """
        # Both stems see every image: under 2 % of a base network's work, and no branch waits for the device to tell
        # which images are which.
        is_sar = modalities.view(-1, 1, 1) == 1
        patches = torch.where(is_sar, self.patch_embed_SAR(images), self.patch_embed(images))  # (B, N, D)
        tokens = [self.cls_token.expand(len(images), -1, -1), patches]
        if self.class_tokens == 2:
            tokens.insert(1, torch.where(is_sar, self.cls_token_spe_sar, self.cls_token_spe_rgb))
        tokens = torch.cat(tokens, dim=1) + self.pos_embed  # (B, C + N, D)
        if self.mie_embed is not None:
            tokens = tokens + self.modality_scale * self.mie_embed[modalities]
        if self.wh_embed is not None:
            tokens = torch.cat([tokens, self.wh_embed(sizes)[:, None]], dim=1)
        return self.pos_drop(tokens)

    def forward(self, images: Tensor, modalities: Tensor, sizes: Tensor) -> Features:
        """The features of each image: its class tokens after the final norm; arguments as for `embed`.

        After timm's `set_grad_checkpointing` the activations of a block are computed again in the backward pass, not kept.
        """
        tokens, structure = self.embed(images, modalities, sizes), None
        for number, block in enumerate(self.blocks, start=1):
            looked_at = number == self.structure_block
            last = number == len(self.blocks) and not looked_at
            run = partial(leading_tokens, block, count=self.class_tokens) if last else block
            tokens = recomputed(run, tokens) if self.grad_checkpointing and self.training else run(tokens)
            if looked_at:
                patches = tokens[:, self.class_tokens :][:, : self.patch_embed.num_patches]  # (B, N, D), without the size token
                structure = structure_descriptor(gradient_energy(patches, self.grid_size))
        tokens = self.norm(tokens)
        specific = tokens[:, 1] if self.class_tokens == 2 else None
        return Features(shared=tokens[:, 0], specific=specific, structure=structure)


def recomputed(run: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """`run(tokens)`, of which nothing is kept for the backward pass but `tokens`: it runs once more, with the same draws."""
    return checkpoint(run, tokens, use_reentrant=False, context_fn=redrawing)


def leading_tokens(block: Block, tokens: Tensor, count: int) -> Tensor:
    """The first `count` tokens (B, count, D) of what a ViT block makes of `tokens` (B, N, D), without the work for the others.

    They attend to all tokens. Of the last block nothing but the class tokens is used, a twelfth of a base network's work.
    """
    attention, kept = block.attn, tokens[:, :count]
    normed = block.norm1(tokens)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    width = len(weight) // 3
    query = functional.linear(normed[:, :count], weight[:width], bias[:width])
    key, value = functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    dropout = attention.attn_drop.p if block.training else 0.0
    attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    attended = attention.proj_drop(attention.proj(attended.transpose(1, 2).flatten(2)))
    kept = kept + block.drop_path1(block.ls1(attended))
    return kept + block.drop_path2(block.ls2(block.mlp(block.norm2(kept))))
