"""The optimiser of a configuration."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def group_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    bias_weight_decay: float | None = None,
    classifier_lr_factor: float = 1.0,
) -> list[dict]:
    """Parameter groups by (lr, weight decay): a handful instead of one a parameter, so that updates can be fused.

    Args:
        named_parameters: of a model; frozen ones are left out.
        lr, weight_decay: of most parameters.
        bias_lr_factor, bias_weight_decay: for those with 'bias' in their name.
        classifier_lr_factor: for those with 'classifier' in their name; it outweighs the bias factor.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        factor, decay = 1.0, weight_decay
        if "bias" in name:
            factor = bias_lr_factor
            decay = weight_decay if bias_weight_decay is None else bias_weight_decay
        if "classifier" in name and classifier_lr_factor != 1.0:
            factor = classifier_lr_factor
        groups[lr * factor, decay].append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def build_optimizer(cfg, model: nn.Module) -> Optimizer:
    """The optimiser of SOLVER.* for a model that is on its device already."""
    groups = group_parameters(
        model.named_parameters(),
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        bias_weight_decay=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        classifier_lr_factor=2.0 if cfg.SOLVER.LARGE_FC_LR else 1.0,
    )
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    fused = True if on_cuda else None
    if cfg.SOLVER.OPTIMIZER_NAME == "SGD":
        return SGD(groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, fused=fused)
    return {"Adam": Adam, "AdamW": AdamW}[cfg.SOLVER.OPTIMIZER_NAME](groups, lr=cfg.SOLVER.BASE_LR, fused=fused)


def build_center_optimizer(cfg, centers: torch.nn.Parameter) -> Optimizer:
    """Plain SGD of class centres at CENTER_LR.

    The total loss carries CENTER_LOSS_WEIGHT, which is meant for the features alone; the rate takes it out for the centres.
    """
    return SGD([centers], lr=cfg.SOLVER.CENTER_LR / cfg.SOLVER.CENTER_LOSS_WEIGHT)
