"""What keeps a backbone that was found in a weights file from being any model's, told from names, shapes and values alone."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model import resnet

OTHER_ATTENTION = re.compile(r"blocks\.\d+\.attn\.(q_norm|k_norm|relative_position|rel_pos)")
"""Tensors of an attention that computes something else than TransOSS's."""

BLOCK_PART = re.compile(r"blocks\.\d+\.(?:(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias)|ls[12]\.gamma)")
"""What a block of TransOSS has, and layer scale, which is folded in."""

SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
"""Layer scale of a block -> the linear map whose output it multiplies."""

DIMENSIONS = {"patch_embed.proj.weight": (2, 4), "pos_embed": (3,), "cls_token": (3,), "dist_token": (3,), "reg_token": (3,)}
"""Tensor whose shape is looked at -> how many dimensions it may have."""


def backbone_fault(backbone: Mapping[str, Tensor], *, resnet50: bool) -> str:
    """Why no model can take a backbone, as a sentence that wants the file's name before it; empty if one can.

    Args:
        backbone: of a Vision Transformer or ResNet-50, by the model's names; with the distillation and register tokens.
        resnet50: whether it is one.
    """
    fault = _resnet_fault(backbone) if resnet50 else _transformer_fault(backbone) or _shape_fault(backbone)
    for name, value in backbone.items():
        if not fault and value.is_floating_point() and not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            fault = f"holds values in {name} that are no finite numbers; get the file again, or an earlier one"
    return fault


def _resnet_fault(backbone: Mapping[str, Tensor]) -> str:
    with torch.device("meta"):
        own = resnet.ResNet50().state_dict()
    unknown = next((name for name in backbone if name not in own), None)
    return f"has {unknown}, which ResNet-50 lacks: it is for another architecture; take a resnet50" if unknown else ""


def _transformer_fault(backbone: Mapping[str, Tensor]) -> str:
    stem = backbone.get("patch_embed.proj.weight")
    if stem is None:
        return "holds a Vision Transformer without patch_embed.proj.weight; a linear patch stem is needed"
    if stem.dim() == 4 and stem.shape[1] != 3:
        return f"holds a Vision Transformer for pictures of {stem.shape[1]} bands; one for 3 bands is needed"
    if "pos_embed" not in backbone:
        return "holds a Vision Transformer without pos_embed (relative or rotary positions?); take a plain one"
    if other := next((name for name in backbone if OTHER_ATTENTION.match(name)), None):
        return f"holds a Vision Transformer of another kind ({other} changes its attention); take a plain one"
    if other := next((name for name in backbone if name.startswith("blocks.") and not BLOCK_PART.fullmatch(name)), None):
        return f"holds a Vision Transformer of another kind ({other}, which the model's blocks lack); take a plain one"
    return ""


def _shape_fault(backbone: Mapping[str, Tensor]) -> str:
    """Why the shapes that tell the sizes of a Vision Transformer tell none; empty if they do."""
    for name, value in backbone.items():
        wanted = DIMENSIONS.get(name, (value.dim(),))
        if value.dim() not in wanted or (name in DIMENSIONS and not value.numel()):
            return f"has {name} of {list(value.shape)}, which is the shape of no Vision Transformer's; get the file again"
        if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name):
            targets = [backbone.get(f"{target}.{part}") for target in [scaled_by(name)] for part in ("weight", "bias")]
            rows = {target.shape[:1] for target in targets if target is not None}
            if value.dim() != 1 or not value.is_floating_point() or rows - {value.shape}:
                return f"has {name} of {list(value.shape)}, which scales no layer of its block; get the file again"
    return ""


def scaled_by(gamma: str) -> str:
    """The name of the linear map whose output the layer scale `gamma` (`blocks.3.ls1.gamma`) multiplies."""
    block, scale, _ = gamma.rsplit(".", 2)
    return f"{block}.{SCALED[scale]}"
