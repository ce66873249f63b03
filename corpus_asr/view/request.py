"""Parameters of a page's request, parsed from its URL."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.view.query import Query, parse_query
from corpus_asr.view.search import Filters, Order, RecordingOrder, State

MAX_CHARS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Filters):
    """Parameters of a request."""

    q: str = ""
    """A query, to search or to highlight."""
    whole_words: bool = False
    order: Order = Order.recording
    recording_order: RecordingOrder = RecordingOrder.name
    page: int = 0
    block: int = 0
    from_s: float = 0.0
    to_s: float | None = None
    count: int = 1_000
    """Number of peaks."""
    back: bool = False
    decode: bool = False
    """Decode audio even if browsers support it."""
    channel: int | None = None
    format: str = ""

    @property
    def query(self) -> Query:
        """The parsed query."""
        return parse_query(self.q, whole_words=self.whole_words)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 2**31:
        raise ValueError(text)
    return value


# Parsers of non-text parameters, and descriptions of valid values.
_READ: Mapping[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("whole_words", "back", "decode", "unchecked"), ("1".__eq__, "1")),
    **dict.fromkeys(("from_s", "to_s", "min_confidence", "max_confidence"), (_number, "a number")),
    **dict.fromkeys(("page", "block", "channel", "count"), (_count, "a whole number from 0")),
    "state": (State, ", ".join(State)),
    "order": (Order, ", ".join(Order)),
    "recording_order": (RecordingOrder, ", ".join(RecordingOrder)),
}


def parse_request(parameters: Mapping[str, str]) -> Request:
    """Parse the parameters of a request; unknown ones are ignored."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Request)):
        text = parameters.get(name.removesuffix("_s"), "")
        if len(text) > MAX_CHARS:
            raise ConfigError(f"reading {name}: found {len(text)} characters, expected fewer")
        read, expected = _READ.get(name, (str, "text"))
        try:
            if text:
                values[name] = read(text)
        except ValueError:
            raise ConfigError(f"reading {name}: found {text!r}, expected {expected}") from None
    return Request(**values)
