"""What a weights file holds: a Vision Transformer's tensors, whatever program wrote them and however they are wrapped.

Names are timm's, which TransOSS, DeiT, MAE and DINOv2 share. The number of heads is the one size that no tensor shows.

Legend: D embedding width, P patch size, N patches.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from utils.checkpoint import load_state_dict
from utils.errors import CheckpointError, UsageError

BACKBONE_NAME = re.compile(r"((?:.*\.)?)(?:patch_embed\.proj\.weight$|pos_embed$|cls_token$|blocks\.\d)")
"""Matches tensors that every Vision Transformer has; the group is the prefix of its names."""

MODEL_PARTS = ("bottleneck.", "classifier.", "logit_scale")
"""What a re-identification model holds beside its backbone, `base.*`."""

UNUSED = {
    r"(fc|head|head_dist|pre_logits)\.": "a classifier head",
    r"decoder|mask_token": "for masked pre-training only",
    r"dist_token": "distillation token, which the model lacks",
    r"reg_token": "register tokens, which the model lacks",
    r"norm_pre\.": "a norm before the blocks, which the model lacks",
    r"fc_norm\.": "the norm of a mean over patches; the feature here is the class token",
}
"""Start of a backbone tensor's name -> why it is skipped."""

OTHER_ATTENTION = re.compile(r"blocks\.\d+\.attn\.(q_norm|k_norm|relative_position|rel_pos)")
"""Tensors of an attention that computes something else than TransOSS's."""

SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
"""Layer scale of a block -> the linear map whose output it multiplies."""

TIMM = "timm:"
"""Before the name of a model whose weights timm downloads."""


@dataclass(frozen=True)
class Source:
    """The tensors of a file, sorted.

    Attributes:
        backbone: of the Vision Transformer, by TransOSS's names without `base.`.
        rest: of the re-identification model around it (`MODEL_PARTS`), by released name; empty for a bare backbone.
        skipped: name in the file -> why it has no use here.
        folded: backbone tensors that were multiplied by a layer scale.
        prefix: of the backbone's names in the file.
        extra_tokens: tokens beside the class token that the file's network had: distillation, registers.
    """

    backbone: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    skipped: Mapping[str, str]
    folded: frozenset[str]
    prefix: str
    extra_tokens: tuple[int, ...]

    @property
    def width(self) -> int:
        """D."""
        return self.backbone["patch_embed.proj.weight"].shape[0]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len({name.split(".")[1] for name in self.backbone if name.startswith("blocks.")})

    @property
    def patch(self) -> tuple[int, ...]:
        """Height and width of a patch in pixels; empty for a stem that is no convolution."""
        return tuple(self.backbone["patch_embed.proj.weight"].shape[2:])

    @property
    def is_transoss(self) -> bool:
        """Whether the file is of TransOSS's family: a SAR stem, a modality embedding, or a model around the backbone."""
        return bool(self.rest) or any(name.startswith(("patch_embed_SAR.", "mie_embed", "wh_embed.")) for name in self.backbone)

    @property
    def identities(self) -> int | None:
        """Number of identities of the classifier; None without one."""
        weight = self.rest.get("classifier.weight")
        if weight is None or weight.dim() != 2:
            return None
        return weight.shape[1] if weight.shape[0] == self.width else weight.shape[0]  # amsoftmax: (D, C)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of timm's model NAME for `timm:NAME`.

    Raises:
        CheckpointError: see `utils.checkpoint.load_state_dict`; also weights that cannot be downloaded.
        UsageError: timm has no weights of that name.
    """
    if not str(path).startswith(TIMM):
        return load_state_dict(path)
    name = str(path).removeprefix(TIMM)
    if not timm.models.is_model_pretrained(name):
        raise UsageError(
            f"MODEL.PRETRAIN_PATH is {path}, and timm has no pretrained model of that name; see timm.list_pretrained()"
        )
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # each layer below (hub, sockets, disk) has exceptions of its own
        raise CheckpointError(
            f"{path} cannot be downloaded ({type(error).__name__}); go online, or save the model's weights where you are "
            "online and name the file"
        ) from error


def sort_tensors(tensors: Mapping[str, Tensor]) -> Source:
    """Find the Vision Transformer among `tensors`, bring its names to TransOSS's and fold its layer scale.

    Raises:
        CheckpointError: there is no Vision Transformer, or one of another kind; the sentence wants the file's name before it.
    """
    prefix = _find_prefix(tensors)
    outer = re.sub(r"[^.]+\.$", "", prefix)
    backbone: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    extra: dict[str, int] = {}
    for name, value in tensors.items():
        short = name.removeprefix(outer)
        if name.startswith(outer) and short.startswith(MODEL_PARTS):
            rest[short] = value
            continue
        if not name.startswith(prefix):
            skipped[name] = "not of the backbone"
            continue
        short = _modern_name(name.removeprefix(prefix))
        if short in ("dist_token", "reg_token"):
            extra[short] = value.shape[1]
        if reason := _why_unused(short):
            skipped[name] = reason
        else:
            backbone[short] = value
    _check_kind(backbone)
    folded = _fold_layer_scale(backbone)
    return Source(backbone, rest, skipped, folded, prefix, tuple(extra.values()))


def _find_prefix(tensors: Mapping[str, Tensor]) -> str:
    matches = (BACKBONE_NAME.match(name) for name in tensors)
    prefixes = Counter(match[1] for match in matches if match and not match[1].endswith("decoder_"))
    if not prefixes:
        raise CheckpointError("holds no Vision Transformer (no patch_embed.proj.weight, no blocks.0, under any prefix)")
    return prefixes.most_common(1)[0][0]


def _modern_name(name: str) -> str:
    """timm's present name of a tensor: older ones of layer scale and registers, blocks in chunks (`blocks.<chunk>.<block>`)."""
    name = re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)
    name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)
    return "reg_token" if name == "register_tokens" else name


def _why_unused(name: str) -> str | None:
    return next((reason for start, reason in UNUSED.items() if re.match(start, name)), None)


def _check_kind(backbone: Mapping[str, Tensor]) -> None:
    stem = backbone.get("patch_embed.proj.weight")
    if stem is None:
        raise CheckpointError("holds a Vision Transformer without patch_embed.proj.weight; a linear patch stem is needed")
    if stem.dim() == 4 and stem.shape[1] != 3:
        raise CheckpointError(f"holds a Vision Transformer for pictures of {stem.shape[1]} bands; one for 3 bands is needed")
    if "pos_embed" not in backbone:
        raise CheckpointError("holds a Vision Transformer without pos_embed (relative or rotary positions?); take a plain one")
    other = next((name for name in backbone if OTHER_ATTENTION.match(name)), None)
    if other:
        raise CheckpointError(f"holds a Vision Transformer of another kind ({other} changes its attention); take a plain one")
    check_finite(backbone)


def check_finite(backbone: Mapping[str, Tensor]) -> None:
    """Refuse tensors with a value that is NaN or infinite.

    Raises:
        CheckpointError: there is one; the sentence wants the file's name before it.
    """
    for name, value in backbone.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            raise CheckpointError(f"holds values in {name} that are no finite numbers; get the file again, or an earlier one")


def _fold_layer_scale(backbone: dict[str, Tensor]) -> frozenset[str]:
    """Multiply each linear map by the layer scale behind it and drop the scale, in place: the same function, exactly.

    x + g * (W a + b) = x + (g * W) a + g * b, g of (D,) times each row of W (Touvron et al. 2021, "Going deeper with image
    transformers", equation 5). The released models, and so ours, have no layer scale.

    Returns:
        The names that were multiplied.
    """
    folded = set()
    for name in [name for name in backbone if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)]:
        block, scale, _ = name.rsplit(".", 2)
        gamma = backbone.pop(name).float()
        for part in ("weight", "bias"):
            target = f"{block}.{SCALED[scale]}.{part}"
            if target in backbone:
                value = backbone[target].float()
                backbone[target] = value * gamma.view(-1, *[1] * (value.dim() - 1))
                folded.add(target)
    return frozenset(folded)


def position_prefix(source: Source, grid: tuple[int, int] | None = None) -> int:
    """How many entries of the file's position embedding belong to no patch.

    Programs differ in whether the class, distillation and register tokens have a position. TransOSS's class token does. For
    others: whichever leaves as many patches as `grid` has, or else a square.
    """
    count = source.backbone["pos_embed"].shape[1]
    class_tokens = int("cls_token" in source.backbone)
    if source.is_transoss:
        return class_tokens
    every = class_tokens + sum(source.extra_tokens)
    without_registers = class_tokens + sum(n for n in source.extra_tokens if n == 1)
    candidates = dict.fromkeys([every, without_registers, class_tokens, 0])
    patches = {number: count - number for number in candidates if count > number}
    wanted = grid[0] * grid[1] if grid else None
    if wanted and patches.get(every) == wanted:
        return every
    squares = [number for number, left in patches.items() if math.isqrt(left) ** 2 == left]
    fitting = [number for number, left in patches.items() if left == wanted]
    return next(iter(squares + fitting), every)
