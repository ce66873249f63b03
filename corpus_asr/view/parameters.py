"""The parameters of a request, read with care: anybody may have written them.

In: a query string. Out: text, numbers and choices. Knows nothing of what they are for.
"""

import math
import urllib.parse
from enum import StrEnum
from typing import TypeVar

from corpus_asr.errors import ConfigError

MAX_PARAMETERS = 20
MAX_CHARS = 2_000
_Choice = TypeVar("_Choice", bound=StrEnum)
_Default = TypeVar("_Default")


class Parameters:
    """What follows the question mark of an address.

    Raises:
        ConfigError: there is too much of it.
    """

    def __init__(self, query: str) -> None:
        try:
            pairs = urllib.parse.parse_qsl(query, max_num_fields=MAX_PARAMETERS)
        except ValueError as error:
            raise ConfigError(f"reading a request: {error}, expected fewer parameters") from error
        self._values = dict(pairs)

    def text(self, name: str) -> str:
        """Return a parameter; "" without it."""
        value = self._values.get(name, "")
        if len(value) > MAX_CHARS:
            raise ConfigError(f"reading {name}: found {len(value)} characters, expected fewer")
        return value

    def flag(self, name: str) -> bool:
        """Tell whether a parameter is set to 1."""
        return self.text(name) == "1"

    def number(self, name: str) -> float | None:
        """Return a finite number; None without it."""
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"reading {name}: found {text!r}, expected a number")
        return value

    def count(self, name: str) -> int:
        """Return a whole number from 0; 0 without it."""
        value = self.number(name) or 0.0
        if value < 0 or value != int(value) or value > 2**31:
            raise ConfigError(f"reading {name}: found {value:g}, expected a whole number from 0")
        return int(value)

    def page(self) -> int:
        """Return the number of a page, from 0."""
        return self.count("page")

    def channel(self) -> int | None:
        """Return the number of a channel; None for all of them."""
        return self.count("channel") if self.text("channel") else None

    def choice(self, name: str, choices: type[_Choice], default: _Default) -> _Choice | _Default:
        """Return one of some words; the default without it."""
        text = self.text(name)
        if not text:
            return default
        try:
            return choices(text)
        except ValueError:
            known = ", ".join(choice.value for choice in choices)
            raise ConfigError(f"reading {name}: found {text!r}, expected {known}") from None
