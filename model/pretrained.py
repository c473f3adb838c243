"""Fitting weights from elsewhere to a model: names, position grid, SAR stem, other identities.

A tensor is loaded, resized (position grid), copied (SAR stem from the optical one), skipped (with the reason) or missing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.checkpoint import load_state_dict, strip_prefix
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.9
"""Of the backbone's parameters, the share that must find a value."""


@dataclass
class LoadReport:
    """What became of each tensor, by name.

    Attributes:
        loaded: tensors of the model that got a value as it is.
        resized: names of position embeddings that were resampled to the model's grid.
        copied: model tensor -> source tensor that stood in for it.
        missing: tensors of the model that keep their initial value.
        skipped: source tensor -> why it was not used.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line of counts, with the names of what was not simply loaded."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.resized:
            parts.append(f"{', '.join(self.resized)} resized")
        if self.copied:
            parts.append(f"{len(self.copied)} copied from the optical stem")
        if self.missing:
            parts.append(f"not in the file: {_shorten(self.missing)}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        parts += [f"skipped {_shorten(names)} ({reason})" for reason, names in reasons.items()]
        return "; ".join(parts)


def _shorten(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def resize_position_embedding(embedding: Tensor, grid: tuple[int, int], old_grid: tuple[int, int] | None = None) -> Tensor:
    """Resample a position embedding to another patch grid, bilinearly (align_corners False, no antialiasing).

    Args:
        embedding: (1, 1 + rows * columns, D); the first entry belongs to the class token and stays.
        grid: rows and columns wanted.
        old_grid: rows and columns there; by default a square if the count allows, else the shape nearest to `grid`'s.

    Returns:
        (1, 1 + grid[0] * grid[1], D).
    """
    class_token, patches = embedding[:, :1], embedding[:, 1:]
    rows, columns = old_grid or guess_grid(patches.shape[1], grid)
    image = patches.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    image = functional.interpolate(image, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([class_token, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def guess_grid(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of `count` patches: those of `grid` or a square if they fit, else the shape nearest to `grid`'s."""
    if count == grid[0] * grid[1]:
        return grid
    side = round(count**0.5)
    if side * side == count:
        return side, side
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(shapes, key=lambda shape: abs(shape[0] / shape[1] - grid[0] / grid[1]))


def fit_backbone(source: Mapping[str, Tensor], backbone: nn.Module) -> LoadReport:
    """Load the tensors of a ViT (ImageNet or TransOSS, backbone names) into a TransOSS backbone, in place.

    A classifier head is dropped, the position grid resized, and a missing SAR stem copied from the optical one.

    Raises:
        CheckpointError: a tensor has another shape than the backbone's: another architecture.
    """
    report = LoadReport()
    target = backbone.state_dict()
    fitted: dict[str, Tensor] = {}
    for name, value in source.items():
        if name not in target:
            report.skipped[name] = _why_unknown(name)
            continue
        if name == "pos_embed" and value.shape != target[name].shape and value.shape[-1] == target[name].shape[-1]:
            value = resize_position_embedding(value.float(), backbone.grid_size)
            report.resized.append(name)
        if value.shape != target[name].shape:
            raise CheckpointError(
                f"{name} is {list(value.shape)} in the checkpoint and {list(target[name].shape)} in the model: "
                "it is for another architecture; see MODEL.TRANSFORMER_TYPE and MODEL.STRIDE_SIZE"
            )
        fitted[name] = value
    for name in target:
        twin = name.replace("patch_embed_SAR.", "patch_embed.")
        if name not in fitted and twin in fitted:
            fitted[name] = fitted[twin]
            report.copied[name] = twin
    report.loaded = [name for name in fitted if name not in report.copied and name not in report.resized]
    report.missing = [name for name in target if name not in fitted]
    backbone.load_state_dict(fitted, strict=False)
    return report


def _why_unknown(name: str) -> str:
    return (
        "a classifier head"
        if name.startswith(("fc.", "head.", "head_dist.", "pre_logits."))
        else "the model has no such tensor"
    )


def fit_model(source: Mapping[str, Tensor], model: nn.Module, *, classifier: bool) -> LoadReport:
    """Load a whole re-identification model's tensors (`base.*`, `bottleneck.*`, `classifier.*`, `logit_scale`), in place.

    Args:
        source: tensors by released name; names without `base.` are taken for a bare backbone's.
        model: a `ReIDModel`.
        classifier: whether to take the classifier too; one for another number of identities is skipped, and said.

    Raises:
        CheckpointError: see `fit_backbone`.
    """
    if not any(name.startswith("base.") for name in source):
        return fit_backbone(source, model.base)
    report = fit_backbone(
        {name.removeprefix("base."): value for name, value in source.items() if name.startswith("base.")}, model.base
    )
    target = model.state_dict()
    fitted: dict[str, Tensor] = {}
    for name, value in source.items():
        if name.startswith("base."):
            continue
        if name.startswith("classifier.") and not classifier:
            report.skipped[name] = "the classifier is not asked for"
        elif name not in target:
            report.skipped[name] = "the model has no such tensor"
        elif value.shape != target[name].shape and name.startswith("classifier."):
            report.skipped[name] = f"{value.shape[0]} identities there, {target[name].shape[0]} here"
        elif value.shape != target[name].shape:
            raise CheckpointError(
                f"{name} is {list(value.shape)} in the checkpoint and {list(target[name].shape)} in the model"
            )
        else:
            fitted[name] = value
    report.loaded += fitted
    report.missing += [name for name in target if not name.startswith("base.") and name not in fitted]
    model.load_state_dict(fitted, strict=False)
    return report


def load_pretrained(path: str | Path, model: nn.Module, *, choice: str) -> LoadReport:
    """Start `model` from the file `path`.

    Args:
        path: a checkpoint of a ViT, of TransOSS or of MOS.
        model: a `ReIDModel`.
        choice: MODEL.PRETRAIN_CHOICE: 'imagenet' takes the backbone, 'clip' and 'finetune' the whole model less its
            classifier, 'self' everything.

    Raises:
        CheckpointError: see `fit_backbone`; also if too little of the backbone finds a value.
    """
    source = load_state_dict(path)
    try:
        if choice == "imagenet":
            report = fit_backbone(_backbone_tensors(source), model.base)
        else:
            report = fit_model(source, model, classifier=choice == "self")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _check_share(path, report, model.base)
    logger.info("%s: %s", path, report.summary())
    return report


def load_weights(path: str | Path, model: nn.Module) -> LoadReport:
    """Load the weights that `model` is to be tested with: every tensor that features depend on, or an error.

    Args:
        path: a checkpoint in the released layout.
        model: a `ReIDModel` without classifier; the file's, for however many identities, is skipped.

    Raises:
        CheckpointError: see `fit_backbone`; also if a tensor of the model is not in the file.
    """
    try:
        report = fit_model(load_state_dict(path), model, classifier=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    needed = [name for name in report.missing if name != "logit_scale"]
    if needed:
        raise CheckpointError(
            f"{path} lacks {_shorten(needed)}: it is for another architecture or no trained re-identification model; "
            "see MODEL.TRANSFORMER_TYPE, MODEL.MIE and MODEL.SSE"
        )
    logger.info("%s: %s", path, report.summary())
    return report


def _backbone_tensors(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a checkpoint, by backbone names."""
    if any(name.startswith("base.") for name in source):
        source = {name: value for name, value in source.items() if name.startswith("base.")}
    return strip_prefix(source, "base.")


def _check_share(path: str | Path, report: LoadReport, backbone: nn.Module) -> None:
    sizes = {name: value.numel() for name, value in backbone.named_parameters()}
    found = sum(size for name, size in sizes.items() if name not in report.missing)
    share = found / sum(sizes.values())
    if share < LEAST_SHARE:
        raise CheckpointError(
            f"{path} holds {share:.0%} of the backbone's parameters, less than {LEAST_SHARE:.0%}: "
            f"it is for another architecture; not in the file: {_shorten(report.missing)}"
        )
