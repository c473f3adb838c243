"""Which device a run takes, and in which precision it computes there."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from utils import distributed
from utils.errors import UsageError


def build_device(cfg) -> torch.device:
    """The device of MODEL.DEVICE: 'auto' takes a GPU where there is one.

    Under torchrun each process takes the GPU of its local rank; a single one that of MODEL.DEVICE or MODEL.DEVICE_ID. Float32
    means float32 there: convolutions round to TF32, as torch lets them, with SOLVER.AMP 'tf32' alone. SOLVER.DETERMINISTIC
    takes effect here too.
    """
    device = find_device(cfg.MODEL.DEVICE, device_id=cfg.MODEL.DEVICE_ID)
    torch.backends.cudnn.allow_tf32 = cfg.SOLVER.AMP == "tf32"
    if cfg.SOLVER.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def find_device(name: str, *, device_id: str = "0") -> torch.device:
    """Check that the device `name` ('auto', 'cpu', 'cuda', 'cuda:1') is there, and give it its index."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"MODEL.DEVICE {name!r} is no device; it is 'auto', 'cpu' or 'cuda'") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UsageError(f"MODEL.DEVICE {name!r} is not supported; it is 'auto', 'cpu' or 'cuda'")
    if not available:
        raise UsageError(f"MODEL.DEVICE is {name!r} and this machine offers no CUDA device; set MODEL.DEVICE cpu")
    if distributed.is_launched():
        index = distributed.local_rank()
    elif device.index is not None:
        index = device.index
    else:
        first = device_id.split(",")[0].strip()
        if not first.isdigit():
            raise UsageError(f"MODEL.DEVICE_ID is {device_id!r}; it names GPUs by number, such as '0'")
        index = int(first)
    if index >= available:
        raise UsageError(
            f"CUDA device {index} was asked for and this machine has {available}; see MODEL.DEVICE and MODEL.DEVICE_ID"
        )
    return torch.device("cuda", index)


@dataclass(frozen=True)
class Precision:
    """How the network computes; losses are always float32.

    Attributes:
        device_type: 'cpu' or 'cuda'.
        dtype: float16, bfloat16, or None for float32 throughout.
    """

    device_type: str
    dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """What numbers the network computes with, such as 'bfloat16'."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager:
        """The context in which the network runs."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def cast(self, network: nn.Module) -> nn.Module:
        """Keep the weights of linear layers and convolutions in `dtype`, for a network that learns no more; returns it.

        Under `autocast` the same numbers as without, which would cast them at every call. Norms and embeddings stay float32.
        """
        for module in network.modules() if self.dtype else ():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                module.to(self.dtype)
        return network

    def scaler(self) -> torch.amp.GradScaler:
        """The gradient scaler; float16 alone needs one, for the others it passes everything through."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def build_test_precision(cfg, device: torch.device) -> Precision:
    """The precision of TEST.AMP."""
    return find_precision(cfg.TEST.AMP, device, key="TEST.AMP")


def build_precision(cfg, device: torch.device) -> Precision:
    """The precision of SOLVER.AMP: 'auto' is bfloat16 (else float16) on CUDA and float32 on a CPU."""
    return find_precision(cfg.SOLVER.AMP, device)


def build_compilation(cfg, network: nn.Module, *, learns: bool = False) -> None:
    """Have torch compile `network` at its next call, as SOLVER.COMPILE says; its parameters keep their names.

    Raises:
        UsageError: CUDA graphs for a network that learns. Its gradients live in the graphs' memory, and training came to NaN.
    """
    if learns and cfg.SOLVER.COMPILE == "graphs":
        raise UsageError("SOLVER.COMPILE graphs is for testing and sampling; set it to on for training")
    if cfg.SOLVER.COMPILE != "off":
        network.compile(mode="reduce-overhead" if cfg.SOLVER.COMPILE == "graphs" else None)


def find_precision(name: str, device: torch.device, *, key: str = "SOLVER.AMP") -> Precision:
    """Precision 'auto', 'off', 'tf32', 'fp16' or 'bf16' on `device`; 'tf32' is the device's own affair (`build_device`)."""
    if name in ("off", "tf32") or (name == "auto" and device.type == "cpu"):
        return Precision(device.type)
    if name == "fp16" and device.type == "cpu":
        raise UsageError(f"{key} fp16 needs a CUDA device; on a CPU take 'bf16' or 'off'")
    if name == "auto":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return Precision(device.type, {"fp16": torch.float16, "bf16": torch.bfloat16}[name])
