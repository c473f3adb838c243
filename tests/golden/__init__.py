"""Golden vectors: numbers of the released programs, and the checks that hold the project to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.golden import bbdm, reid, sdf
from tests.golden.compare import Skip

FOLDER = Path(__file__).parent

CHECKS = {**reid.CHECKS, **sdf.CHECKS, **bbdm.CHECKS}
"""Prefix of a file's name -> its check; the longest prefix that fits decides."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        verdict: 'ok', 'FAIL' or 'skip'.
        name: of the file, without suffix.
        error: largest absolute difference.
        reason: of a skip or a failure that has no difference.
    """

    verdict: str
    name: str
    error: float = float("nan")
    reason: str = ""

    def __str__(self) -> str:
        """One line: verdict, name, largest difference."""
        return f"{self.verdict} {self.name} {self.reason or format(self.error, '.2e')}"


def check_folder(folder: Path = FOLDER) -> Iterator[Outcome]:
    """Check every vector file of `folder`, in order of names."""
    for path in sorted(folder.glob("*.npz")):
        yield check_file(path)


def check_file(path: Path) -> Outcome:
    """Check one vector file; whatever goes wrong in doing so is its failure."""
    kind = max((prefix for prefix in CHECKS if path.stem.startswith(prefix)), key=len, default=None)
    if kind is None:
        return Outcome("skip", path.stem, reason="unknown kind")
    try:
        with np.load(path, allow_pickle=False) as file:
            vectors = {key: file[key] for key in file.files}
        torch.manual_seed(0)
        comparisons = list(_without_gradients(CHECKS[kind], vectors))
    except Skip as skip:
        return Outcome("skip", path.stem, reason=str(skip))
    except Exception as error:
        return Outcome("FAIL", path.stem, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    ok = bool(comparisons) and all(comparison.ok for comparison in comparisons)
    return Outcome(
        "ok" if ok else "FAIL", path.stem, max((comparison.error for comparison in comparisons), default=float("nan"))
    )


def _without_gradients(check, vectors):
    """Most networks need no gradients; the losses ask for theirs, and so does training."""
    with torch.set_grad_enabled(check in (reid.check_losses, sdf.check_losses, sdf.check_model)):
        yield from check(vectors)
