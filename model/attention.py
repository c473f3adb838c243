"""Where a Vision Transformer looked: attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

Legend: B images, N tokens, heads H.
"""

import torch
from torch import Tensor, nn

from model.transoss import TransOSS


@torch.inference_mode()
def attention_rollout(base: TransOSS, images: Tensor, modalities: Tensor, sizes: Tensor) -> Tensor:
    """How much of each patch reaches the class token: the product over blocks of (A + 1) / 2, A the mean over heads.

    Args:
        base: a backbone in evaluation mode.
        images, modalities, sizes: as for `TransOSS.embed`.

    Returns:
        (B, rows, columns) of the patch grid, float32 on the CPU; of each image the largest is 1.
    """
    tokens = base.embed(images, modalities, sizes)
    identity = joint = torch.eye(tokens.shape[1], device=tokens.device)
    for block in base.blocks:
        weights = _attention_of(block.attn, block.norm1(tokens))
        joint = (weights + identity) / 2 @ joint
        tokens = block(tokens)
    first = base.class_tokens
    patches = joint[:, 0, first : first + base.patch_embed.num_patches]
    patches = patches / patches.amax(1, keepdim=True)
    return patches.unflatten(1, base.grid_size).float().cpu()


def _attention_of(attention: nn.Module, tokens: Tensor) -> Tensor:
    """(B, N, N): how much each token takes from each other, the mean over heads of timm's attention of tokens (B, N, D)."""
    query, key, _ = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D / H)
    query, key = attention.q_norm(query), attention.k_norm(key)
    return (attention.scale * query @ key.transpose(-2, -1)).softmax(-1).mean(1)
