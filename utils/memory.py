"""When memory is short: how to tell, and what to say."""

import errno
import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from utils import distributed
from utils.errors import ResourceError

SHORT = re.compile("can't allocate memory|out of memory|not enough memory|insufficient memory|cublas_status_alloc_failed", re.I)
"""What the allocators of torch, CUDA and OpenCV say, each in an error of a type that means other things too."""

WORKER = re.compile(r"DataLoader worker .*(?:exited unexpectedly|is killed by signal: (Bus error)?)")
"""What torch says of a process that reads chips and is gone."""

ADVICE = (
    "lower SOLVER.IMS_PER_BATCH, SOLVER.IMS_PER_PASS (which leaves the batch whole), TEST.IMS_PER_BATCH or BBDM.SAMPLE_BATCH, "
    "or set BBDM.ACTIVATION_CHECKPOINTS True"
)


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is short, of the GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return type(error).__module__ in ("builtins", "torch", "cv2") and bool(SHORT.search(str(error)))


def explain(error: BaseException) -> str | None:
    """One sentence of an error that short memory, or a reading process that is gone, raised; None of any other."""
    if is_memory_error(error):
        return f"{_full(error)}; {ADVICE}"
    gone = WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if gone is None:
        return None
    if gone[1]:
        return "shared memory (/dev/shm) is full; set DATALOADER.NUM_WORKERS 0, or give it more (docker run --shm-size 2g)"
    return (
        "a process that reads chips was ended from outside, most likely because the machine's memory is full; lower "
        "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH"
    )


def _full(error: BaseException) -> str:
    asked = re.search(r"allocate ([\d.]+ [KMGT]iB|\d+ bytes)", str(error))
    whose = "the GPU's memory" if "CUDA" in str(error) else "memory"
    return f"{whose} is full{f' ({asked[1]} more were asked for)' if asked else ''}"


@contextmanager
def fitting(key: str, size: int, attempt: Callable[[int], object], *, unit: int = 1) -> Iterator[None]:
    """Where memory does not hold what a block does with `size` images at a time, say how many it holds.

    Args:
        key: of the configuration that sets `size`.
        size: images of a batch.
        attempt: does the same with fewer; what it changes is lost.
        unit: images that cannot be parted.

    Raises:
        ResourceError: in place of an error of memory.
    """
    try:
        yield
        return
    except Exception as error:
        if not is_memory_error(error):
            raise
        told = _full(error)
        traceback.clear_frames(error.__traceback__)  # they hold what filled it
    if distributed.world_size() > 1:  # the other processes do not try
        raise ResourceError(f"{told} with {size} images at a time on this process; lower {key}")
    fits = _try(attempt, size, unit)
    if not fits:
        raise ResourceError(f"{told}, and {unit} at a time do not fit either; take smaller pictures, or MODEL.DEVICE cpu")
    raise ResourceError(f"{told} with {size} images at a time; {fits} fit, so set {key} {fits}")


def find_fitting(attempt: Callable[[int], object], size: int, unit: int = 1) -> int:
    """The largest of `size`, half of it, a quarter, ... of which `attempt` finds memory; 0: none.

    Any other error of `attempt` is raised.
    """
    try:
        attempt(size)
        return size
    except Exception as error:
        if not is_memory_error(error):
            raise
        traceback.clear_frames(error.__traceback__)
    return _try(attempt, size, unit)


def _try(attempt: Callable[[int], object], size: int, unit: int) -> int:
    """The largest of half of `size`, a quarter, ... that fits; 0: none."""
    while size > unit:
        size = max(unit, size // 2 // unit * unit)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
            return size
        except Exception as error:
            if not is_memory_error(error):
                return 0
            traceback.clear_frames(error.__traceback__)
    return 0
