"""Calling the commands in this process, on data and networks small enough for tests."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from configs import load_cfg
from utils.cli import run

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.TRANSFORMER_TYPE": "vit_tiny_patch16_224_TransOSS",
    "MODEL.PRETRAIN_CHOICE": "none",
    "MODEL.MIE": "True",
    "MODEL.SSE": "True",
    "MODEL.NO_MARGIN": "True",
    "MODEL.IF_LABELSMOOTH": "off",
    "MODEL.MODALITY_LOSS_WEIGHT": "2.0",
    "INPUT.SIZE_TRAIN": "[32,32]",
    "INPUT.SIZE_TEST": "[32,32]",
    "INPUT.PADDING": "2",
    "DATALOADER.SAMPLER": "softmax_triplet",
    "DATALOADER.NUM_INSTANCE": "4",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.OPTIMIZER_NAME": "AdamW",
    "SOLVER.BASE_LR": "0.001",
    "SOLVER.MAX_EPOCHS": "4",
    "SOLVER.WARMUP_EPOCHS": "1",
    "SOLVER.IMS_PER_BATCH": "8",
    "SOLVER.LOG_PERIOD": "1",
    "SOLVER.EVAL_PERIOD": "2",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.NECK_FEAT": "before",
    "TEST.REPORT": "False",
}
"""Settings of a run of seconds on two CPU cores; it trains on the chips of `chip_files.write_hoss`."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status.
        out, err: what it wrote to standard output and standard error.
    """

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line in which a command says why it failed."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


def settings(**changes: object) -> list[str]:
    """`TINY` as KEY VALUE KEY VALUE ...; `changes` are written with `__` for the dot."""
    values = TINY | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return [part for item in values.items() for part in item]


def tiny_cfg(**changes: object):
    """A configuration of `settings`."""
    return load_cfg(None, settings(**changes))


class Terminal(io.StringIO):
    """What a terminal is to a program; tests set COLUMNS."""

    def isatty(self) -> bool:
        return True


def call(
    main: Callable[[Sequence[str]], None], *arguments: object, together: bool = False, streams: type[io.StringIO] = io.StringIO
) -> Ended:
    """Run a command's `main` as its process would, and tell how it ended; random states and log handlers stay as they were."""
    out, err, status = streams(), streams(), 0
    words = [main.__module__, *map(str, arguments)]
    redirected = contextlib.ExitStack()
    redirected.enter_context(contextlib.redirect_stdout(out))
    redirected.enter_context(contextlib.redirect_stderr(err))
    with _own_logging(), torch.random.fork_rng(), mock.patch.object(sys, "argv", words), redirected:
        try:
            run(main, together=together)
        except SystemExit as end:
            status = end.code
    return Ended(status, out.getvalue(), err.getvalue())


def chosen_on(split: str, fraction: float = 0.0, seed: int = 1, epoch: int = 1) -> dict[str, dict]:
    """What a weights file says of itself that is the best of a run."""
    return {"selection": {"epoch": epoch, "metric": "mAP", "score": 0.5, "split": split, "fraction": fraction, "seed": seed}}


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Put back pytest's log handlers, which a command replaces by its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


def write_file(path: Path, text: str) -> Path:
    """Write `text` to `path` and return `path`."""
    path.write_text(text, encoding="utf-8")
    return path
