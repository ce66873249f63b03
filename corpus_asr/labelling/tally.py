"""How much each rule drops and how much is left: counts that add up.

In: decided rows. Out: numbers of segments and seconds of them. Knows no rule and no file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.labelling.rules import duration_s

SHOWN_EACH = 2


@dataclass(slots=True)
class Amount:
    """So many, so long together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Take more into account."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class RuleTally:
    """What one rule does."""

    dropped: Amount = field(default_factory=Amount)
    """Segments that count under it: no rule before it drops them."""
    matching: Amount = field(default_factory=Amount)
    """Segments that it would drop if it were the only rule."""
    alone: Amount = field(default_factory=Amount)
    """Segments that no other rule drops: what turning it off would win."""
    shown: list[tuple[str, str]] = field(default_factory=list)
    """Text and address of some that count under it."""


@dataclass(slots=True)
class SelectionTally:
    """What a selection does."""

    rules: dict[str, RuleTally]
    everything: Amount = field(default_factory=Amount)
    kept: Amount = field(default_factory=Amount)

    @classmethod
    def of(cls, names: Sequence[str]) -> "SelectionTally":
        """Begin to count for rules of these names."""
        return cls({name: RuleTally() for name in names})

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a decided row."""
        seconds = duration_s(row)
        self.everything.add(seconds)
        if row["dropped_by"] is None:
            self.kept.add(seconds)
            return
        first = self.rules[row["dropped_by"]]
        first.dropped.add(seconds)
        if len(first.shown) < SHOWN_EACH:
            first.shown.append((row["text"], row["uri"]))
        for name in row["rules"]:
            self.rules[name].matching.add(seconds)
        if len(row["rules"]) == 1:
            first.alone.add(seconds)
