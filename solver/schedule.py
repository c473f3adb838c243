"""The learning rate over epochs. Call `schedule.step(epoch)` before each epoch, counted from 1."""

from collections.abc import Sequence

from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

LEAST_FACTOR = 0.002
"""The floor of the cosine, of BASE_LR; the same absolute rate for every parameter group."""


def cosine_schedule(
    optimizer: Optimizer, *, base_lr: float, epochs: int, warmup_epochs: int = 5, warmup_factor: float = 0.01
) -> CosineLRScheduler:
    """Linear warm-up from `warmup_factor` x `base_lr`, then a cosine over all `epochs` to 0.002 x `base_lr`.

    The ends are absolute rates, the same for each group.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=LEAST_FACTOR * base_lr,
        warmup_t=warmup_epochs,
        warmup_lr_init=warmup_factor * base_lr,
    )


class MultiStepSchedule(Scheduler):
    """Warm-up, then a rate that falls by a factor at given epochs. Factors are of each group's own rate.

    timm's own multi-step schedule is another one: its milestones come an epoch early and are counted from the end of the
    warm-up, which starts from one absolute rate.

    Args:
        optimizer: whose groups' rates are set.
        steps: epochs from which on the rate is `gamma` times what it was.
        gamma: that factor.
        warmup_epochs: the warm-up ends when this epoch begins.
        warmup_factor: of the rate at the start.
        warmup_method: 'linear' rises to the full rate, 'constant' stays at `warmup_factor` until the end of the warm-up.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        steps: Sequence[int],
        gamma: float = 0.1,
        warmup_epochs: int = 5,
        warmup_factor: float = 0.01,
        warmup_method: str = "linear",
    ):
        super().__init__(optimizer, param_group_field="lr")
        self.steps = tuple(steps)
        self.gamma = gamma
        self.warmup_epochs = warmup_epochs
        self.warmup_factor = warmup_factor
        self.warmup_method = warmup_method

    def factor(self, epoch: int) -> float:
        """What each group's rate is multiplied by in `epoch` (1, 2, ...)."""
        factor = self.gamma ** sum(epoch >= step for step in self.steps)
        if epoch >= self.warmup_epochs:
            return factor
        done = epoch / self.warmup_epochs if self.warmup_method == "linear" else 0.0
        return factor * (self.warmup_factor + (1 - self.warmup_factor) * done)

    def _get_lr(self, t: int) -> list[float]:
        return [rate * self.factor(t) for rate in self.base_values]


def build_schedule(cfg, optimizer: Optimizer) -> Scheduler:
    """The schedule of SOLVER.*."""
    warmup = {"warmup_epochs": cfg.SOLVER.WARMUP_EPOCHS, "warmup_factor": cfg.SOLVER.WARMUP_FACTOR}
    if cfg.SOLVER.SCHEDULER == "multistep":
        return MultiStepSchedule(
            optimizer, steps=cfg.SOLVER.STEPS, gamma=cfg.SOLVER.GAMMA, warmup_method=cfg.SOLVER.WARMUP_METHOD, **warmup
        )
    return cosine_schedule(optimizer, base_lr=cfg.SOLVER.BASE_LR, epochs=cfg.SOLVER.MAX_EPOCHS, **warmup)
