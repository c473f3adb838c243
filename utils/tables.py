"""Tables for spreadsheets: the one writer of CSV.

A spreadsheet runs a cell that starts with =, +, - or @ as a formula, and file names and ship ids come from strangers. Such
text is written with an apostrophe before it, which spreadsheets take for "this is text"; `read_cell` takes it off again.
Numbers stay as they are.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from utils.files import write_text

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def write_csv(path, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file (UTF-8), whole or not at all; see `csv_text`."""
    write_text(path, csv_text(headers, rows))


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV as text: a line of headers and one for each row. Text that a spreadsheet would run is marked as text.

    Args:
        headers: of the columns.
        rows: their cells; numbers are not text.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows([_as_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return stream.getvalue()


def _as_text(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def read_cell(cell: str) -> str:
    """The text that a cell which `csv_text` wrote stands for."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
