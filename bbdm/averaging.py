"""The exponential moving average of the bridge's weights: average = decay * average + (1 - decay) * weight."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_average(network: nn.Module, decay: float = 0.995) -> AveragedModel:
    """A copy of `network` that will follow it, in eval mode and without gradients: `module` is the averaged network.

    `decay` is 0..1. The state to keep is that of `module`: `update_average` needs no count of what came before.
    """
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return average.eval().requires_grad_(False)


def update_average(average: AveragedModel, network: nn.Module, *, copying: bool = False) -> None:
    """Move the average towards `network`'s weights, or set it to them where `copying` (before the average begins).

    Buffers are copied either way.
    """
    average.n_averaged.fill_(0 if copying else 1)  # torch copies where this is 0 and asks nothing else of it
    average.update_parameters(network)
