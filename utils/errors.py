"""Errors that a user can mend; see docs/architecture.md, "Errors"."""

from collections.abc import Iterable


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


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names and how many more there are, for the text of an error."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
