"""What a run tells: log lines, metrics as JSON lines, a progress bar, its environment."""

import json
import logging
import math
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
from tabulate import tabulate
from tqdm import tqdm

from utils import distributed
from utils.errors import DataError, UsageError
from utils.files import naming, write_text
from utils.reading import parse_json

logger = logging.getLogger(__name__)

ONCE = "once"
"""Extra of a log call, `extra={ONCE: words}`: of the lines with the same words a run tells the first."""

TALKATIVE = ("timm", "matplotlib", "PIL", "rasterio")
"""Libraries whose log lines tell a user nothing; what goes wrong in them comes as an exception."""


def setup_logging(output_dir: Path | None = None, file_name: str = "log.txt") -> None:
    """Send log lines of rank 0 to the screen and, if given, to a file of `output_dir`; other ranks tell errors only."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
    logging.captureWarnings(True)
    for library in TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    screen = _ScreenHandler()
    screen.addFilter(_Once())
    screen.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(screen)
    if output_dir is not None and distributed.is_main():
        file = _FileHandler(output_dir / file_name, encoding="utf-8", errors="backslashreplace")
        file.addFilter(_Once())
        file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        root.addHandler(file)


class _ScreenHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(fold(self.format(record), sys.stderr), file=sys.stderr)


class _Once(logging.Filter):
    """Passes the first of the lines that are the same notice (`ONCE`)."""

    def __init__(self):
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        notice = getattr(record, ONCE, None)
        fresh = notice is None or notice not in self.told
        self.told |= {notice}
        return fresh


class _FileHandler(logging.FileHandler):
    """Ends the run where the disk takes no more lines, instead of printing a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        with naming(Path(self.baseFilename)):
            raise


def fold(text: str, stream: TextIO) -> str:
    """`text` with the lines that a terminal would break anywhere broken at blanks; as it is where `stream` is no terminal."""
    if not stream.isatty():
        return text
    width, lines = shutil.get_terminal_size().columns, []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        style = {"subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
        lines += textwrap.wrap(line, width, **style) if len(line) > width else [line]
    return "\n".join(lines)


def make_output_dir(path: str) -> Path:
    """Make the output folder of a run and see that it can be written to."""
    if not path:
        raise UsageError("OUTPUT_DIR is empty; name a folder for the results")
    folder = Path(path)
    probe = folder / ".write_test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if distributed.is_main():
            probe.write_bytes(b"")
            probe.unlink()
    except OSError as error:
        raise DataError(f"OUTPUT_DIR {folder} cannot be written to ({error.strerror}); name another folder") from error
    return folder


def progress(total: int, description: str, *, unit: str = "it", initial: int = 0, visible: bool = True) -> tqdm:
    """A progress bar with the time left, on rank 0; plain lines now and then where the output is no terminal."""
    terminal = sys.stderr.isatty()
    width = max(10, shutil.get_terminal_size().columns - 70 if terminal else 30)  # beside the loss, and the same throughout
    return tqdm(
        total=total,
        initial=initial,
        desc=textwrap.shorten(description, 36, placeholder=" ..."),
        bar_format=f"{{l_bar}}{{bar:{width}}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}{{postfix}}]",
        unit=unit,
        disable=not (visible and distributed.is_main()),
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.2 if terminal else 15.0,
        maxinterval=10.0 if terminal else 60.0,
        file=sys.stderr if terminal else _LineWriter(),
    )


class _LineWriter:
    """A file for tqdm that ends each state of the bar with a line break instead of overwriting the one before."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class MetricsWriter:
    """Appends one JSON object a line to a file, on rank 0. NaN and infinity, which JSON lacks, are written as null.

    Args:
        path: the file.
        keep: which of the lines that an earlier run left are this run's too; None: none of them.
        also: what else takes each new line.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: Callable[[dict[str, Any]], bool] | None = None,
        also: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.path, self.also = path, also
        if path.is_file() and distributed.is_main():
            lines = path.read_bytes().splitlines()
            read = [parse_metrics(line) for line in lines]
            if None in read:
                logger.warning("%s: damaged lines, such as a kill leaves, were cut out: %d", path, read.count(None))
            write_text(path, "".join(f"{json.dumps(values)}\n" for values in read if keep and values and keep(values)))

    def write(self, **values: Any) -> None:
        """Append one line."""
        if distributed.is_main():
            finite = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
            }
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")
            if self.also:
                self.also(finite)


def parse_metrics(line: str | bytes) -> dict[str, Any] | None:
    """A line of metrics; None if it is damaged."""
    try:
        values = parse_json(line)
        numbers = [values["epoch"], values["step"] if values["kind"] == "step" else 0]
        return values if all(isinstance(number, int) for number in numbers) and isinstance(values["kind"], str) else None
    except (ValueError, LookupError, TypeError):
        return None


def describe_environment(*, seed: int, device: torch.device) -> dict[str, Any]:
    """What a result depends on beside data and weights: command, seed, commit, device and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    packages = ("torch", "torchvision", "timm", "numpy", "scipy", "opencv-python-headless", "pillow", "yacs")
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "seed": seed,
        "commit": _commit(),
        "device": str(device),
        "device_name": name,
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in packages},
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with '+' if files differ from it; None where git or its folder is missing."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], style: str | None = None) -> str:
    """A table as text; columns that hold figures to the right, others and the first to the left.

    Args:
        headers: of the columns.
        rows: cells of each row, written with `str`.
        style: a format of `tabulate`, such as 'pipe' (Markdown) or 'latex'; None: for a terminal, as narrow as can be.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    figures = [any(re.match(r"[-+\[]?\d", row[column]) for row in cells) for column in range(1, len(headers))]
    layout = {"disable_numparse": True, "colalign": ["left", *("right" if holds else "left" for holds in figures)]}
    if style:
        return tabulate(cells, headers, style, **layout)
    # As a row, because tabulate pads headers by two more blanks.
    first, *rest = tabulate([headers, *cells], tablefmt="plain", **layout).splitlines()
    return "\n".join([first, "-" * max(map(len, (first, *rest))), *rest])
