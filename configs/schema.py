"""What a key of the configuration is: which values it takes, and how they may be spelt."""

import ast
import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from utils.errors import is_text, shown

TRUE_WORDS = ("yes", "on", "true", "1")
FALSE_WORDS = ("no", "off", "false", "0")

LARGEST_EXPONENT = 400
"""Decimal digits of a number beyond which it is not even tried: float ends at 308."""

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
"""The types of values -> what a value of that type is called."""


@dataclass(frozen=True)
class Key:
    """The one declaration of a key; `configs.defaults` holds them all.

    Attributes:
        name: with its section, such as 'SOLVER.SEED'.
        default: also says which type the values have; of a list, which type its items have: words if it is empty, and then
            the values may be empty too.
        meaning: one line for people.
        released: whether the released programs have the key; it keeps its name, place and, but for MODEL.DEVICE, default.
        choices: the words that it takes; any word if empty.
        low, high: the least and the greatest number that it takes.
        length: how many items a list has; any number from one on if None.
        unused: of a released key that is accepted and has no effect: why, or what to use instead.

    `choices`, `low` and `high` bound each item of a list.
    """

    name: str
    default: Any
    meaning: str
    released: bool
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    length: int | None = None
    unused: str = ""

    @property
    def takes(self) -> str:
        """The values that the key takes, in words."""
        is_list = isinstance(self.default, list)
        kind = KINDS[type(self._like if is_list else self.default)]
        if self.choices:
            kind = f"one of {', '.join(self.choices)}"
        elif self.high < math.inf:
            kind += f" from {self.low} to {self.high}"
        elif self.low > -math.inf:
            kind += f" of at least {self.low}"
        return (
            f"a list of {self.length or ('one or more' if self.default else 'any number of')} items, each {kind}"
            if is_list
            else kind
        )

    @property
    def _like(self) -> Any:
        """A value in the type of a list's items."""
        return self.default[0] if self.default else ""

    def convert(self, value: Any) -> Any:
        """`value`, from a file or the command line, in the type of the default.

        Raises:
            ValueError: the key does not take it; the text says which item of a list is at fault, else nothing.
        """
        value = self._unpack(value)
        if not isinstance(self.default, list):
            return self._item(value, self.default)
        value = [value] if isinstance(value, str) and value in self.choices else value
        if not isinstance(value, tuple | list) or not (value or not self.default):
            raise ValueError
        if self.length and len(value) != self.length:
            raise ValueError(f"its length is {len(value)}")
        items = []
        for number, item in enumerate(value, 1):
            try:
                items.append(self._item(item, self._like))
            except ValueError as error:
                raise ValueError(f"its item {number} is {shown(item)}") from error
        return items

    def _unpack(self, value: Any) -> Any:
        """Read a list that is written as text, and take a single value out of brackets: the released files write ('0')."""
        if isinstance(value, str) and value[:1] in ("(", "["):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return value  # a word may begin so; nothing else takes it
        single = isinstance(value, tuple | list) and len(value) == 1 and not isinstance(self.default, list)
        return value[0] if single else value

    def _item(self, value: Any, like: Any) -> Any:
        """One value in the type of `like`."""
        if isinstance(value, tuple | list | dict):
            raise ValueError
        if isinstance(like, str):
            return self._word(value)
        if isinstance(like, bool):
            word = str(value).lower()
            if word not in TRUE_WORDS + FALSE_WORDS:
                raise ValueError
            return word in TRUE_WORDS
        return self._number(value, type(like))

    def _number(self, value: Any, kind: type) -> int | float:
        try:
            exact = Decimal(str(value))  # so that a long whole number keeps its last digits
        except InvalidOperation as error:
            raise ValueError from error
        if exact.adjusted() > LARGEST_EXPONENT:
            raise ValueError
        number = kind(exact) if math.isfinite(exact) else math.nan
        if not self.low <= number <= self.high or (kind is int and number != exact):  # the first is also false for NaN
            raise ValueError
        return number

    def _word(self, value: Any) -> str:
        """A word; where a choice means yes or no, whatever else means the same (YAML reads a bare `no` as False)."""
        word = "" if value is None and self.default == "" else str(value)
        if "\0" in word or not is_text(word):
            raise ValueError("it holds bytes that are no text; rename the file or folder")
        if not self.choices or word in self.choices:
            return word
        meanings = ((*FALSE_WORDS, "none", ""),) if "none" in self.choices else (TRUE_WORDS, FALSE_WORDS)
        same = [choice for words in meanings if word.lower() in words for choice in self.choices if choice in words]
        if not same:
            raise ValueError
        return same[0]
