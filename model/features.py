"""What a backbone tells of a batch, and what SDF-Net makes of it: a descriptor of structure, one feature of two.

SDF-Net (arXiv 2603.12588) is TransOSS with a second class token that depends on the modality, so that the network gives a
feature that the modalities share and one that is specific to them; and with a descriptor of each picture's structure.

Legend: B images, N patches in rows x columns, D embedding width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Features:
    """What a backbone tells of a batch.

    Attributes:
        shared: (B, D) that the modalities share: of the class token, or of the whole picture in a network without one.
        specific: (B, D) of the class token of the image's modality; None in a network without such tokens.
        structure: (B, D) from `structure_descriptor`; None where no block is asked for it.
    """

    shared: Tensor
    specific: Tensor | None = None
    structure: Tensor | None = None


def gradient_energy(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean absolute difference of patches one below the other plus that of patches side by side, (B, D) float32.

    Args:
        patches: (B, N, D), row by row.
        grid: rows and columns. Of one row alone nothing lies below, and that mean is 0; likewise of one column.
    """
    rows, columns = grid
    if patches.shape[1] != rows * columns:
        raise ValueError(f"{patches.shape[1]} patches are no grid of {rows} x {columns}")
    cells = patches.float().unflatten(1, grid)  # (B, rows, columns, D)
    below, beside = cells.diff(dim=1).abs(), cells.diff(dim=2).abs()
    return below.sum((1, 2)) / max(1, (rows - 1) * columns) + beside.sum((1, 2)) / max(1, rows * (columns - 1))


def structure_descriptor(energy: Tensor) -> Tensor:
    """Each image's energy (B, D) less its mean over D, by its deviation there; a flat picture gives 0."""
    return functional.layer_norm(energy, energy.shape[1:], eps=1e-5)


def fused_width(width: int, fusion: str | None) -> int:
    """Width of what `fuse_tokens` makes of features of `width`; None: of nothing but the shared one."""
    return 2 * width if fusion == "concat" else width


def fuse_tokens(shared: Tensor, specific: Tensor, fusion: str) -> Tensor:
    """The feature that is classified, ranked and compared.

    Args:
        shared, specific: (B, D) before the neck.
        fusion: 'sum', 'shared' (the first alone), 'specific' (the second alone) or 'concat'.

    Returns:
        (B, D), or (B, 2 D) of 'concat'.
    """
    if fusion == "concat":
        return torch.cat([shared, specific], dim=1)
    return {"sum": shared + specific, "shared": shared, "specific": specific}[fusion]
