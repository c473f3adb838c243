"""When memory is short: how to tell, and what to say."""

import errno
import re

import torch

MEMORY_ADVICE = (
    "lower SOLVER.IMS_PER_BATCH, SOLVER.IMS_PER_PASS (pre-training), TEST.IMS_PER_BATCH or BBDM.SAMPLE_BATCH, "
    "or set BBDM.ACTIVATION_CHECKPOINTS True"
)

SHORT = re.compile("can't allocate memory|out of memory|not enough memory|insufficient memory|cublas_status_alloc_failed", re.I)
"""What the allocators of torch, CUDA and OpenCV say, each in an error of a type that means other things too."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is short, of the GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return type(error).__module__ in ("builtins", "torch", "cv2") and bool(SHORT.search(str(error)))


def memory_sentence(error: BaseException, advice: str) -> str:
    """One sentence of a memory error and what to do."""
    asked = re.search(r"allocate ([\d.]+ (?:[KMGT]iB|bytes))", str(error)) or re.search(r"allocate (\d+ bytes)", str(error))
    whose = "the GPU's memory" if "CUDA" in str(error) else "memory"
    return f"{whose} is full{f' ({asked[1]} more were asked for)' if asked else ''}; {advice}"
