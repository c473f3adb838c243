"""Errors that a user can mend; see docs/architecture.md, "Errors"."""

import re
from collections.abc import Iterable
from typing import Any

LONGEST_SENTENCE = 300
"""Characters of the sentence in which a command ends."""

FAR_FOLDERS = re.compile(r"(?<![^\s'\"(])(?:[^\s/]*/){3,}(?=[^\s/]+/[^\s/]+)")
"""Matches what stands in a path before the last folder."""

LONGEST_NAME = 60
"""Characters of one name or value in it."""


class DataError(Exception):
    """A file, folder or data set that cannot be used. The message names it and says what to do."""

    exit_status = 1


class CheckpointError(Exception):
    """A weights file that cannot be read, or does not fit the model. The message names it."""

    exit_status = 1


class UsageError(ValueError):
    """A value of a call or configuration that cannot be met here: a device that is not there, a model without that name."""

    exit_status = 2


class TrainingError(Exception):
    """A training run that cannot go on, such as one whose loss is no longer finite."""

    exit_status = 1


class ResourceError(Exception):
    """Something that the machine lacks: memory, above all. The message names the key to turn."""

    exit_status = 1


class PeerError(TrainingError):
    """Another process of the job has failed, and says itself why."""


def shorten(text: str, limit: int = LONGEST_SENTENCE) -> str:
    """One line of at most `limit` characters: folders far up are left out first, then the middle.

    What cannot be printed, such as a line break in a file's name, is spelt as an escape.
    """
    if len(text) > 8 * limit:  # no sentence of ours: something long stands in it
        text = f"{text[: 4 * limit]}{text[-4 * limit :]}"
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    if len(line) > limit:
        line = FAR_FOLDERS.sub(".../", line)
    if len(line) > limit:
        kept = limit - len(" ... ")
        line = f"{line[: kept - kept // 2]} ... {line[-(kept // 2) :]}"
    return line


def shown(value: Any) -> str:
    """A value of a file or of a call, as `repr` spells it, for the text of an error."""
    try:
        return shorten(repr(value), LONGEST_NAME)
    except (ValueError, RecursionError):  # a number of too many digits, a list too deep
        return f"a {type(value).__name__}"


def is_text(name: str) -> bool:
    """Whether a name, of a file or in one, can be written as UTF-8; bytes that are none come as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names and how many more there are, for the text of an error."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shorten(name, LONGEST_NAME) for name in names[:limit]) + more
