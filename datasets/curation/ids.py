"""Ids of ships as tables write them, and what spreadsheets make of them."""

import logging
import re
from collections import Counter
from collections.abc import Sequence

from utils.errors import some

logger = logging.getLogger(__name__)

NO_SHIP = ("", "-1", "-1.0", "nan", "none", "null", "n/a", "#n/a", "na", "unknown", "unk", "?")
"""What a table says, in any case, where nobody knows the ship: a distractor."""

SILENT_NO_SHIP = ("", "-1", "-1.0", "nan")
"""Those of `NO_SHIP` that nobody would call a ship."""

_ROUNDED = re.compile(r"[0-9](?:[.,][0-9]+)?e\+?[0-9]+", re.IGNORECASE)
_WHOLE = re.compile(r"0*([0-9]{1,18})(?:\.0+)?", re.ASCII)


def unify_ships(written: Sequence[str]) -> dict[str, str]:
    """Every id of a column -> the ship that it stands for: '' for an unknown one, one spelling for equal numbers.

    Warns of ids that a spreadsheet rounded, of words that mean no ship, of one number in several spellings, and of ids that
    differ in case or spaces only, which stay different ships.
    """
    counts = Counter(written)
    unknown = [name for name in counts if name.lower() in NO_SHIP]
    names = sorted(set(counts) - set(unknown))
    if rounded := [name for name in names if _ROUNDED.fullmatch(name)]:
        _warn("%s were rounded by a spreadsheet, so that several ships may be one; export the column as text", rounded)
    if said := [name for name in unknown if name.lower() not in SILENT_NO_SHIP]:
        images = sum(counts[name] for name in said)
        _warn(f"%s, of {images} image(s), is taken as 'nobody knows the ship'; these images are distractors", said)
    numbers: dict[int, list[str]] = {}
    for name in names:
        if match := _WHOLE.fullmatch(name):
            numbers.setdefault(int(match[1]), []).append(name)
    one = {name: min(spellings, key=len) for spellings in numbers.values() for name in spellings}
    if several := [" = ".join(spellings) for spellings in numbers.values() if len(spellings) > 1]:
        _warn("%s are taken as one ship each; write each number in one way", several)
    alike: dict[str, list[str]] = {}
    for name in names:
        if name not in one:
            alike.setdefault(re.sub(r"[\s_-]+", "", name.casefold()), []).append(name)
    if doubtful := [" / ".join(spellings) for spellings in alike.values() if len(spellings) > 1]:
        _warn("%s are taken as different ships; write them alike where they are one", doubtful)
    return {name: "" if name in unknown else one.get(name, name) for name in counts}


def _warn(message: str, names: Sequence[str]) -> None:
    logger.warning("ids of ships: " + message, some(names))
