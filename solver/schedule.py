"""The learning rate over epochs."""

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer

LEAST_FACTOR = 0.002
"""The floor of the rate, of BASE_LR; the same absolute rate for every parameter group."""


def cosine_schedule(
    optimizer: Optimizer, *, base_lr: float, epochs: int, warmup_epochs: int = 5, warmup_factor: float = 0.01
) -> CosineLRScheduler:
    """Linear warm-up from `warmup_factor` x `base_lr`, then a cosine over all `epochs` to 0.002 x `base_lr`.

    Call `schedule.step(epoch)` before each epoch, counted from 1. The ends are absolute rates, the same for each group.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=LEAST_FACTOR * base_lr,
        warmup_t=warmup_epochs,
        warmup_lr_init=warmup_factor * base_lr,
    )


def build_schedule(cfg, optimizer: Optimizer) -> CosineLRScheduler:
    """The schedule of SOLVER.*."""
    return cosine_schedule(
        optimizer,
        base_lr=cfg.SOLVER.BASE_LR,
        epochs=cfg.SOLVER.MAX_EPOCHS,
        warmup_epochs=cfg.SOLVER.WARMUP_EPOCHS,
        warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
    )
