"""Starting a model from weights made elsewhere: other names, position grid, patch size, identities; one optical stem for both.

`model.contents` says what a file holds; here its tensors are fitted to a model, and what became of each is told in a table.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from model.contents import LACKING, RESNET, SPECIFIC_TOKENS, TRANSFORMER, Contents, read_contents
from model.resnet import ResNet50
from utils.errors import CheckpointError, UsageError, some
from utils.log import table

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.9
"""Of the backbone's parameters, the share that must find a value."""

STATES = ("loaded", "folded", "resized", "copied", "missing", "skipped")
"""What may become of a tensor. folded: loaded times its layer scale; copied: the SAR stem from the optical one."""


@dataclass(frozen=True)
class Entry:
    """What became of one tensor.

    Attributes:
        name: in the model; of a skipped tensor, in the file.
        state: one of `STATES`.
        size: number of values.
        why: the reason or the manner; empty for a tensor that was simply loaded.
    """

    name: str
    state: str
    size: int
    why: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and of a model."""

    entries: tuple[Entry, ...]

    def names(self, state: str) -> list[str]:
        """The tensors in one of `STATES`."""
        return [entry.name for entry in self.entries if entry.state == state]

    def table(self) -> str:
        """Counts of tensors and values by state and reason, as text."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in sorted(self.entries, key=lambda entry: STATES.index(entry.state)):
            groups.setdefault((entry.state, entry.why), []).append(entry)
        rows = []
        for (state, why), entries in groups.items():
            names = some([entry.name for entry in entries], 2)
            manner = f" ({why})" if why else ""
            rows.append((f"{state}: {names}{manner}", len(entries), f"{sum(entry.size for entry in entries):,}"))
        return table(["what became of the tensors", "tensors", "values"], rows)


def resize_position_embedding(embedding: Tensor, grid: tuple[int, int], old_grid: tuple[int, int] | None = None) -> Tensor:
    """Resample a position embedding to another patch grid, bilinearly (align_corners False, no antialiasing).

    Args:
        embedding: (1, 1 + rows * columns, D); the first entry belongs to the class token and stays.
        grid: rows and columns wanted.
        old_grid: rows and columns there; see `guess_grid` for the default.

    Returns:
        (1, 1 + grid[0] * grid[1], D).
    """
    old_grid = old_grid or guess_grid(embedding.shape[1] - 1, grid)
    return resample_abs_pos_embed(embedding, list(grid), list(old_grid), interpolation="bilinear", antialias=False)


def guess_grid(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of `count` patches, which no file tells.

    Those of `grid` or a square if they fit, else the shape nearest to `grid`'s; of two equally near ones the taller, as
    released models are for tall pictures.
    """
    if count == grid[0] * grid[1]:
        return grid
    side = round(count**0.5)
    if side * side == count:
        return side, side
    shapes = [(rows, count // rows) for rows in range(count, 0, -1) if count % rows == 0]
    wanted = grid[0] / grid[1]
    return min(shapes, key=lambda shape: max(shape[0] / shape[1] / wanted, wanted * shape[1] / shape[0]))


def fit_backbone(contents: Contents, backbone: nn.Module) -> LoadReport:
    """Load a network's tensors into a backbone of its kind, in place; a model around it in the file is left out.

    Args:
        contents: of a file with a Vision Transformer or ResNet-50.
        backbone: a `TransOSS` or a `ResNet50`.

    Raises:
        CheckpointError: another kind of network, or other sizes. The sentence wants the file's name before it.
    """
    left = [Entry(name, "skipped", value.numel(), "not of the backbone") for name, value in contents.rest.items()]
    return LoadReport((*_fit_backbone(contents, backbone), *left))


def fit_model(contents: Contents, model: nn.Module, *, classifier: bool) -> LoadReport:
    """Load a whole re-identification model's tensors (`base.*`, `bottleneck.*`, `classifier.*`, `logit_scale`), in place.

    Args:
        contents: as for `fit_backbone`; a bare backbone will do.
        model: a `ReIDModel`.
        classifier: whether to take the classifier too; one for another number of identities is skipped.

    Raises:
        CheckpointError: see `fit_backbone`.
    """
    entries = _fit_backbone(contents, model.base)
    target = {name: value for name, value in model.state_dict().items() if not name.startswith("base.")}
    fitted: dict[str, Tensor] = {}
    for name, value in contents.rest.items():
        reason = _why_not(name, value, target, classifier)
        entries.append(Entry(name, "skipped" if reason else "loaded", value.numel(), reason))
        fitted |= {} if reason else {name: value}
    entries += _missing(target, fitted)
    model.load_state_dict(fitted, strict=False)
    return LoadReport(tuple(entries))


def _why_not(name: str, value: Tensor, target: Mapping[str, Tensor], classifier: bool) -> str:
    """Why a tensor beside the backbone is skipped; empty if it is not."""
    if name.startswith("classifier.") and not classifier:
        return "the classifier is not asked for"
    if name not in target:
        return "the model has no such tensor"
    if value.is_floating_point() != target[name].is_floating_point():
        return f"{value.dtype} in the file, {target[name].dtype} in the model"
    if value.shape != target[name].shape:
        return f"{list(value.shape)} in the file, {list(target[name].shape)} in the model"
    return ""


def _missing(target: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> list[Entry]:
    """Entries of what the file lacks. A BatchNorm's count of batches is none: only one without momentum would read it."""
    count = "num_batches_tracked"
    names = [name for name in target if name not in fitted and name.replace(count, "running_mean") not in fitted]
    return [Entry(name, "missing", target[name].numel(), "not in the file, keeps its initial value") for name in names]


def _fit_backbone(contents: Contents, backbone: nn.Module) -> list[Entry]:
    """Load `contents.backbone`; returns what became of its tensors and of those that sorting left out."""
    _check_network(contents, backbone)
    target = backbone.state_dict()
    entries = [Entry(name, "skipped", contents.tensors[name].numel(), why) for name, why in contents.skipped.items()]
    fitted: dict[str, Tensor] = {}
    for name, value in contents.backbone.items():
        if name not in target:
            entries.append(Entry(name, "skipped", value.numel(), "the model has no such tensor"))
            continue
        fitted[name], state, manner = _fit_tensor(name, value, contents, target[name], backbone)
        entries.append(Entry(name, state, target[name].numel(), manner))
    for name in target:
        twin = name.replace("patch_embed_SAR.", "patch_embed.")
        if name not in fitted and twin in fitted:
            fitted[name] = fitted[twin]
            entries.append(Entry(name, "copied", target[name].numel(), "from the optical stem"))
        elif name not in fitted and not contents.is_transoss and name.endswith(".bias") and f"{name[:-5]}.weight" in fitted:
            fitted[name] = torch.zeros_like(target[name])
            entries.append(Entry(name, "loaded", target[name].numel(), "zero, as the file's layer has no bias"))
    entries += _missing(target, fitted)
    backbone.load_state_dict(fitted, strict=False)
    return entries


def _fit_tensor(name: str, value: Tensor, contents: Contents, target: Tensor, backbone: nn.Module) -> tuple[Tensor, str, str]:
    """A tensor in the shape of `target`, one of `STATES`, and in which manner it got there."""
    state, manner = "loaded", ""
    if name in contents.folded:
        state, manner = "folded", "times its layer scale: the same function"
    elif name == "pos_embed":
        value, manner = _fit_positions(contents, backbone)
    elif name.startswith("patch_embed") and name.endswith("proj.weight"):
        value, manner = _fit_stem(value, target)
    if target.is_floating_point() and not value.is_floating_point():
        raise CheckpointError(f"has {name} of {value.dtype}, no floating-point numbers; save the weights as float32")
    if value.shape != target.shape:
        raise CheckpointError(
            f"has {name} of {list(value.shape)} where the model has {list(target.shape)}: it is for another architecture; "
            "see MODEL.NAME and MODEL.TRANSFORMER_TYPE"
        )
    return value, state if not manner or state == "folded" else "resized", manner


def _fit_positions(contents: Contents, backbone: nn.Module) -> tuple[Tensor, str]:
    """The position embedding for a backbone's class tokens and grid, (1, C + rows * columns, D), and the manner."""
    embedding, grid = contents.backbone["pos_embed"], backbone.grid_size
    if embedding.dim() != 3 or embedding.shape[2] != contents.width:
        return embedding, ""
    number, wanted = contents.position_prefix(grid), backbone.class_tokens
    old_grid = guess_grid(embedding.shape[1] - number, grid)
    if number == wanted and old_grid == grid:
        return embedding, ""
    # Where the class token has no position of its own, its position is zero: the same sum.
    first = embedding[:, :1] if number and "cls_token" in contents.backbone else torch.zeros_like(embedding[:, :1])
    # The specific class token of SDF-Net begins where the shared one is.
    second = (embedding[:, 1:2] if contents.is_disentangled else first)[:, : wanted - 1]
    resized = torch.cat([first, embedding[:, number:]], dim=1)
    if old_grid != grid:
        resized = resize_position_embedding(resized, grid, old_grid)
    manner = f"positions of {old_grid[0]} x {old_grid[1]} patches -> {grid[0]} x {grid[1]}, bilinear"
    if (wanted == 2) != contents.is_disentangled:
        manner += ", the class token's twice" if wanted == 2 else ", without the specific class token's"
    return torch.cat([resized[:, :1], second, resized[:, 1:]], dim=1), manner


def _fit_stem(weight: Tensor, target: Tensor) -> tuple[Tensor, str]:
    """A patch stem for patches of `target`'s size, and the manner.

    Patches of another size are resampled by the pseudo-inverse of the bicubic resizing of pictures (Beyer et al. 2023,
    "FlexiViT", section 3.4), so that a resized patch has nearly the embedding that it had.
    """
    if weight.dim() == 2 and weight.shape[1] == target[0].numel():  # a linear map of flattened patches
        weight = weight.view(-1, *target.shape[1:])
    if weight.dim() != 4 or weight.shape[2:] == target.shape[2:]:
        return weight, ""
    resized = resample_patch_embed(weight.float(), list(target.shape[2:]))
    return resized, f"patches of {weight.shape[2]} pixels -> {target.shape[2]}"


def _check_network(contents: Contents, backbone: nn.Module) -> None:
    """Another network, another width, or more blocks: nothing to load. Fewer blocks are a matter of the share."""
    wanted = RESNET if isinstance(backbone, ResNet50) else TRANSFORMER
    if contents.network != wanted:
        raise CheckpointError(LACKING[wanted])
    if contents.fault:
        raise CheckpointError(contents.fault)
    width, depth = backbone.num_features, 0 if wanted == RESNET else len(backbone.blocks)
    if wanted == TRANSFORMER and (contents.width != width or contents.depth > depth):
        name = contents.transformer_type
        advice = f"set MODEL.TRANSFORMER_TYPE {name}" if name else "no MODEL.TRANSFORMER_TYPE has its sizes"
        raise CheckpointError(
            f"is of width {contents.width} and {contents.depth} blocks, the model of width {width} and {depth} blocks; {advice}"
        )


def _check_fusion(contents: Contents, model: nn.Module) -> None:
    """A model of the other kind, of TransOSS and SDF-Net, or one whose two features become one otherwise: nothing to test."""
    if contents.network != TRANSFORMER or contents.fault or not contents.rest or contents.fusion == model.fusion:
        return
    if contents.fusion is None:
        raise CheckpointError(
            f"lacks base.{SPECIFIC_TOKENS[0]}: it is a model of TransOSS or MOS, not of SDF-Net; set MODEL.DISENTANGLE False"
        )
    if model.fusion is None:
        raise CheckpointError(
            f"has base.{SPECIFIC_TOKENS[0]}: it is a model of SDF-Net, not of TransOSS or MOS; set MODEL.DISENTANGLE True"
            + (" and MODEL.ABLATION_MODE concat" if contents.fusion == "concat" else "")
        )
    if "concat" in (contents.fusion, model.fusion):
        wide, mode = ("twice the", "concat") if contents.fusion == "concat" else ("the", "sum, shared or specific")
        raise CheckpointError(f"has a bottleneck_fuse of {wide} backbone's width; set MODEL.ABLATION_MODE {mode}")


def build_start(cfg, model: nn.Module) -> LoadReport:
    """Start `model` as MODEL.PRETRAIN_* says; see `load_pretrained`.

    Raises:
        UsageError: something is to be taken of no file.
    """
    choice, path = cfg.MODEL.PRETRAIN_CHOICE, cfg.MODEL.PRETRAIN_PATH
    if choice != "none" and not path:
        raise UsageError("MODEL.PRETRAIN_PATH is empty; name the weights to start from, or set MODEL.PRETRAIN_CHOICE none")
    return load_pretrained(path, model, choice=choice, partial=cfg.MODEL.PRETRAIN_PARTIAL)


def load_pretrained(path: str | Path, model: nn.Module, *, choice: str, partial: bool = False) -> LoadReport:
    """Start `model` from the weights `path`, and log a table of what became of every tensor.

    Args:
        path: a weights file of any kind that `model.contents` knows, or `timm:` and the name of one of timm's models.
        model: a `ReIDModel`.
        choice: MODEL.PRETRAIN_CHOICE: 'imagenet' takes the backbone, 'clip' and 'finetune' the whole model less its
            classifier, 'self' everything, 'none' nothing (the file is not even read).
        partial: MODEL.PRETRAIN_PARTIAL: whether less than `LEAST_SHARE` of the backbone's parameters will do.

    Raises:
        CheckpointError: see `fit_backbone`; also a file that cannot be read, weights that cannot be downloaded, and too
            little of the backbone.
        UsageError: `choice` is none of these; timm has no weights of that name.
    """
    if choice == "none":
        return LoadReport(())
    if choice not in ("imagenet", "clip", "finetune", "self"):
        raise UsageError(f"MODEL.PRETRAIN_CHOICE cannot be {choice!r}; it is one of imagenet, clip, finetune, self, none")
    contents = read_contents(path)
    try:
        bare = choice == "imagenet"
        report = fit_backbone(contents, model.base) if bare else fit_model(contents, model, classifier=choice == "self")
        share = backbone_share(report, model.base)
        if share < LEAST_SHARE and not partial:
            missing = [name for name in report.names("missing") if name in model.base.state_dict()]
            raise CheckpointError(
                f"holds {share:.0%} of the backbone's parameters, less than {LEAST_SHARE:.0%} (it lacks {some(missing)}); "
                "take weights of this architecture, or set MODEL.PRETRAIN_PARTIAL True if that is meant"
            )
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    logger.info("%s: %.1f %% of the backbone's parameters\n%s", path, 100 * share, report.table())
    return report


def backbone_share(report: LoadReport, backbone: nn.Module) -> float:
    """The share (0..1) of a backbone's parameters that got a value."""
    sizes = {name: value.numel() for name, value in backbone.named_parameters()}
    missing = set(report.names("missing"))
    return sum(size for name, size in sizes.items() if name not in missing) / sum(sizes.values())


def load_weights(path: str | Path, model: nn.Module) -> LoadReport:
    """Load the weights that `model` is to be tested with: every tensor that features depend on, or an error.

    Args:
        path: weights of a re-identification model.
        model: a `ReIDModel` without classifier; the file's, for however many identities, is skipped.

    Raises:
        CheckpointError: see `fit_backbone`; also if a tensor of the model is not in the file.
    """
    contents = read_contents(path)
    try:
        _check_fusion(contents, model)
        report = fit_model(contents, model, classifier=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    unused = ("logit_scale", "bottleneck.") if model.fusion else "logit_scale"
    needed = [name for name in (*report.names("missing"), *report.names("copied")) if not name.startswith(unused)]
    if needed:
        raise CheckpointError(
            f"{path} lacks {some(needed)}: it is for another architecture or no trained re-identification model; "
            "see MODEL.TRANSFORMER_TYPE, MODEL.MIE and MODEL.SSE"
        )
    logger.info("%s\n%s", path, report.table())
    return report
