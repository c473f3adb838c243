"""What a weights file holds, whatever program wrote it and however its tensors are wrapped: one description for every reader.

Names of a Vision Transformer are timm's, which TransOSS, DeiT, MAE and DINOv2 share; those of a ResNet-50 are torchvision's.
The number of heads is the one size that no tensor shows. timm's own filter of checkpoints would not do: it knows neither our
wrappings nor SAR stems, takes every grid for a square and the tokens of the model for those of the file, and says nothing of
what it leaves out; its resampling of stems and positions is used (`model.pretrained`).

Legend: D embedding width, P patch size, N patches.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from model import resnet
from model.build import SIZES
from model.faults import backbone_fault, scaled_by
from model.naming import choose_set, plain_names, sets_of
from utils.checkpoint import description_of, load, require_tensors
from utils.errors import CheckpointError, UsageError

logger = logging.getLogger(__name__)

TRANSFORMER, RESNET, BRIDGE, FIRST_STAGE = "transformer", "resnet50", "bridge", "first stage"
"""Networks that a file may hold; the first two are values of MODEL.NAME."""

SPECIFIC_TOKENS = ("cls_token_spe_rgb", "cls_token_spe_sar")
"""The class tokens that SDF-Net adds to TransOSS's, by their names in a backbone."""

LACKING = {
    TRANSFORMER: "holds no Vision Transformer (no patch_embed.proj.weight, no blocks.0, under any prefix)",
    RESNET: "holds no ResNet-50 (no conv1.weight and layer4.2.conv3.weight under one prefix), which MODEL.NAME resnet50 needs; "
    "take torchvision's or timm's resnet50, or set MODEL.NAME transformer",
}
"""What is said of a file without the network that a model needs."""

BACKBONE_NAME = re.compile(r"((?:.*\.)?)(?:patch_embed\.proj\.weight$|pos_embed$|cls_token$|blocks\.\d)")
"""Matches tensors that every Vision Transformer has; the group is the prefix of its names."""

GENERATOR_NAMES = {"input_blocks.": BRIDGE, "quantize.": FIRST_STAGE}
"""Part of a tensor's name -> the network of generation that has it."""

MODEL_PARTS = ("bottleneck.", "bottleneck_fuse.", "classifier.", "logit_scale")
"""What a re-identification model holds beside its backbone, `base.*`."""

UNUSED = {
    r"(fc|head|head_dist|pre_logits)\.": "a classifier head",
    r"decoder|mask_token": "for masked pre-training only",
    r"dist_token": "distillation token, which the model lacks",
    r"reg_token": "register tokens, which the model lacks",
    r"sie_embed": "an embedding of cameras (TransReID), which the model lacks",
    r"norm_pre\.": "a norm before the blocks, which the model lacks",
    r"fc_norm\.": "the norm of a mean over patches; the feature here is the class token",
}
"""Start of a backbone tensor's name -> why it is skipped."""

BRANCH_NAME = re.compile(r"b([12])\.([01])\.(.+)")
"""Matches tensors of TransReID's two branches (JPM): the branch, 0 a block or 1 the norm behind it, and the name in that."""

TIMM = "timm:"
"""Before the name of a model whose weights timm downloads."""


@dataclass(frozen=True)
class Contents:
    """What a weights file holds; made by `contents_of`.

    Attributes:
        network: `TRANSFORMER`, `RESNET`, `BRIDGE`, `FIRST_STAGE`, or empty for none of them.
        tensors: all of the file, by its names less wrappers.
        epoch: after which a training state was written; None for bare weights.
        prefix: of the backbone's names in the file.
        backbone: of a Vision Transformer or ResNet-50, by the model's names without `base.`; layer scale is folded in.
        rest: of the re-identification model around it (`MODEL_PARTS`), by released name; empty for a bare backbone.
        skipped: name in the file -> why it has no use here.
        folded: backbone tensors that were multiplied by a layer scale.
        extra_tokens: tokens beside the class token that the file's network had: distillation, registers.
        fault: why no model can take the backbone, as a sentence that wants the file's name before it; empty if one can.
        note: which of two sets of weights was taken; empty where there is one.
        description: what the file says of itself (`utils.checkpoint.description_of`); empty if nothing.
    """

    network: str
    tensors: Mapping[str, Tensor]
    epoch: int | None = None
    prefix: str = ""
    backbone: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    folded: frozenset[str] = frozenset()
    extra_tokens: tuple[int, ...] = ()
    fault: str = ""
    note: str = ""
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """D of a Vision Transformer."""
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
    def transformer_type(self) -> str | None:
        """The MODEL.TRANSFORMER_TYPE of the file's sizes; None if there is none."""
        sizes = (self.width, self.depth)
        return next((name for name, size in SIZES.items() if (size["embed_dim"], size["depth"]) == sizes), None)

    @property
    def is_transoss(self) -> bool:
        """Whether the file is of TransOSS's family: a SAR stem, a modality embedding or a size token."""
        own = ("patch_embed_SAR.", "mie_embed", "wh_embed.", *SPECIFIC_TOKENS)
        return any(name.startswith(own) for name in self.backbone)

    @property
    def has_branches(self) -> bool:
        """Whether the last block stands in two branches, `b1` and `b2` (TransReID's JPM); `backbone` has that of `b1`."""
        outer = outer_prefix(self.prefix)
        return self.network == TRANSFORMER and any(BRANCH_NAME.match(name.removeprefix(outer)) for name in self.tensors)

    @property
    def is_transreid(self) -> bool:
        """Whether the file is of a re-identification model with one stem for all pictures, as TransReID's are."""
        if self.network != TRANSFORMER or self.is_transoss:
            return False
        return bool(self.rest) or self.has_branches or f"{self.prefix}sie_embed" in self.tensors

    @property
    def is_disentangled(self) -> bool:
        """Whether a class token of the image's modality follows the shared one: SDF-Net."""
        return SPECIFIC_TOKENS[0] in self.backbone

    @property
    def fusion(self) -> str | None:
        """'concat' if the two features of an SDF-Net stand side by side, else 'sum', which no tensor tells from one alone."""
        weight = self.rest.get("bottleneck_fuse.weight")
        if not self.is_disentangled:
            return None
        return "concat" if weight is not None and weight.shape == (2 * self.width,) else "sum"

    @property
    def is_whole(self) -> bool:
        """Whether features after the neck can be computed: a neck is there, and every stem."""
        neck = "bottleneck_fuse.weight" if self.is_disentangled else "bottleneck.weight"
        return neck in self.rest and (self.network == RESNET or "patch_embed_SAR.proj.weight" in self.backbone)

    @property
    def identities(self) -> int | None:
        """Number of identities of the classifier; None without one."""
        for name, side in (("classifier.W", 1), ("classifier.weight", 0)):  # the first of an AM-softmax head, (D, C)
            weight = self.rest.get(name)
            if weight is not None and weight.dim() == 2:
                return weight.shape[side]
        return None

    def position_prefix(self, grid: tuple[int, int] | None = None) -> int:
        """How many entries of the file's position embedding belong to no patch.

        Programs differ in whether the class, distillation and register tokens have a position. TransOSS's and TransReID's class
        token does, and both of SDF-Net's do. For others: whichever leaves as many patches as `grid` has, or else a square.
        """
        count = self.backbone["pos_embed"].shape[1]
        class_tokens = int("cls_token" in self.backbone)
        if self.is_transoss or self.is_transreid:
            return class_tokens + self.is_disentangled
        every = class_tokens + sum(self.extra_tokens)
        without_registers = class_tokens + sum(n for n in self.extra_tokens if n == 1)
        candidates = dict.fromkeys([every, without_registers, class_tokens, 0])
        patches = {number: count - number for number in candidates if count > number}
        wanted = grid[0] * grid[1] if grid else None
        if wanted and patches.get(every) == wanted:
            return every
        squares = [number for number, left in patches.items() if math.isqrt(left) ** 2 == left]
        fitting = [number for number, left in patches.items() if left == wanted]
        return next(iter(squares + fitting), every)


def read_contents(path: str | Path, prefix: str = "") -> Contents:
    """Read a weights file, or timm's model NAME for `timm:NAME`, and find out what it holds; see `contents_of`.

    Raises:
        CheckpointError: see `utils.checkpoint.load_state_dict`; also weights that cannot be downloaded.
        UsageError: timm has no weights of that name.
    """
    content = _download(str(path)) if str(path).startswith(TIMM) else load(path)
    require_tensors(content, path)
    try:
        contents = replace(contents_of(content, prefix), description=description_of(content))
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    if contents.note:
        logger.info("%s: %s", path, contents.note)
    return contents


def _download(path: str) -> dict[str, Tensor]:
    name = path.removeprefix(TIMM)
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


def contents_of(content: Any, prefix: str = "") -> Contents:
    """Say what the content of a file (as `utils.checkpoint.load` returns it) is, and sort its tensors.

    Args:
        content: of the file.
        prefix: start of the names of the tensors to take, of several sets; see `model.naming.choose_set`.
    """
    alpha = content.get("lora_alpha") if isinstance(content, Mapping) else None
    tensors, note = choose_set(sets_of(content), prefix)
    tensors, other = plain_names(tensors, alpha if isinstance(alpha, int | float) else None)
    is_state = isinstance(content, Mapping) and {"model", "optimizers", "epoch"} <= content.keys()
    epoch = content["epoch"] if is_state and isinstance(content["epoch"], int) else None
    network, prefix = _find_network(tensors)
    if network not in LACKING:
        return Contents(network, tensors, epoch, note=note)
    outer = outer_prefix(prefix)
    backbone: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    extra: dict[str, Tensor] = {}
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
            extra[short] = value
        reason = next((reason for start, reason in UNUSED.items() if re.match(start, short)), None)
        if reason:
            skipped[name] = reason
        else:
            backbone[short] = value
    _take_branch(tensors, prefix, backbone, skipped)
    fault = (network == TRANSFORMER and other) or backbone_fault({**backbone, **extra}, resnet50=network == RESNET)
    folded = frozenset() if fault else _fold_layer_scale(backbone)
    tokens = () if fault else tuple(value.shape[1] for value in extra.values())
    contents = Contents(network, tensors, epoch, prefix, backbone, rest, skipped, folded, tokens, fault, note)
    if network == TRANSFORMER and not fault and backbone["pos_embed"].shape[1] <= contents.position_prefix():
        return replace(contents, fault="holds positions of no patch; get the file again")
    return contents


def outer_prefix(prefix: str) -> str:
    """What stands before the names of a model around a backbone whose names begin with `prefix`."""
    return re.sub(r"[^.]+\.$", "", prefix)


def _take_branch(tensors: Mapping[str, Tensor], prefix: str, backbone: dict[str, Tensor], skipped: dict[str, str]) -> None:
    """Take the last block and the norm of TransReID's first branch into the backbone, in place.

    With JPM (He et al. 2021, "TransReID", section 3.2) the backbone's own last block and norm are never run: the feature of
    the class token is that of `b1`; `b2` sees shuffled groups of patches.
    """
    numbers = [int(name.split(".")[1]) for name in backbone if re.match(r"blocks\.\d+\.", name)]
    for name, value in tensors.items():
        match = BRANCH_NAME.fullmatch(name.removeprefix(outer_prefix(prefix)))
        if not match or not numbers:
            continue
        branch, place, part = match.groups()
        backbone.pop(name, None)  # where nothing stands before the backbone's names
        if branch == "2":
            skipped[name] = "a branch of patches (TransReID's JPM), which the model lacks"
            continue
        own = f"norm.{part}" if place == "1" else f"blocks.{max(numbers)}.{part}"
        backbone[own] = value
        skipped.pop(name, None)
        if prefix + own in tensors:
            skipped[prefix + own] = "never run: b1 stands in its place (TransReID's JPM)"


def _find_network(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Which network a file holds, and what stands before its names."""
    last = f"layer4.{resnet.LAYERS[3] - 1}.conv3.weight"  # a deeper ResNet has it too
    prefixes = [name.removesuffix(last) for name in tensors if name.endswith(last)]
    for prefix in prefixes:
        if f"{prefix}conv1.weight" in tensors:
            return RESNET, prefix
    matches = (BACKBONE_NAME.match(name) for name in tensors)
    counts = Counter(match[1] for match in matches if match and not match[1].endswith("decoder_"))
    if counts:
        return TRANSFORMER, counts.most_common(1)[0][0]
    return next((network for part, network in GENERATOR_NAMES.items() if any(part in name for name in tensors)), ""), ""


def _modern_name(name: str) -> str:
    """timm's present name of a tensor: older ones of layer scale and registers, blocks in chunks (`blocks.<chunk>.<block>`)."""
    name = re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)
    name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)
    return "reg_token" if name == "register_tokens" else name


def _fold_layer_scale(backbone: dict[str, Tensor]) -> frozenset[str]:
    """Multiply each linear map by the layer scale behind it and drop the scale, in place: the same function, exactly.

    x + g * (W a + b) = x + (g * W) a + g * b, g of (D,) times each row of W (Touvron et al. 2021, "Going deeper with image
    transformers", equation 5). The released models, and so ours, have no layer scale.

    Returns:
        The names that were multiplied.
    """
    folded = set()
    for name in [name for name in backbone if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)]:
        gamma = backbone.pop(name).float()
        for part in ("weight", "bias"):
            target = f"{scaled_by(name)}.{part}"
            if target in backbone:
                value = backbone[target].float()
                backbone[target] = value * gamma.view(-1, *[1] * (value.dim() - 1))
                folded.add(target)
    return frozenset(folded)
