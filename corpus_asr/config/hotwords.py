"""Parsing of hotwords: phrases to prefer, with weights.

In: text, lists or tables from settings, command lines and manifests. Out: `Hotword`s. Independent
of tokenizers: the checkpoint determines whether a phrase can be spelled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_WEIGHT = 10.0
_MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Hotword:
    """A phrase to prefer where it may be said."""

    phrase: str
    weight: float = 1.0
    """Factor of the default bonus of each of its tokens."""


def hotwords_from(value: object, *, files: bool = False) -> tuple[Hotword, ...]:
    """Parse phrases, without duplicates, in order.

    Text has phrases separated by commas or line ends, each optionally followed by a tab and a
    weight; with `files`, `@` and a path name a text file with one phrase per line. A list has
    phrases, or objects with `phrase` and `weight`; a table has weights by phrase.

    Raises:
        ValueError: an item is not a phrase or a weight.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        hotwords = (
            _of_file(value.strip()[1:]) if files and value.strip()[:1] == "@" else _of_text(value)
        )
    elif isinstance(value, Mapping):
        hotwords = [_hotword(phrase, weight) for phrase, weight in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        hotwords = [_of_entry(entry) for entry in value]
    else:
        raise ValueError(
            f"found {value!r}, expected text with commas between phrases, a list, or weights by "
            "phrase; quote it if it is text"
        )
    return tuple({hotword.phrase: hotword for hotword in hotwords}.values())


def _of_file(name: str) -> list[Hotword]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"found @{name}, which cannot be read ({error}), expected a text file of one phrase "
            "per line; correct its path"
        ) from error
    return _of_lines(text.splitlines())


def _of_text(text: str) -> list[Hotword]:
    return _of_lines(phrase for line in text.splitlines() for phrase in line.split(","))


def _of_lines(lines: Iterable[str]) -> list[Hotword]:
    parts = (line.rstrip().partition("\t") for line in lines if line.strip())
    return [_hotword(phrase, weight if tab else 1.0) for phrase, tab, weight in parts]


def _of_entry(entry: object) -> Hotword:
    if isinstance(entry, Hotword):
        return _hotword(entry.phrase, entry.weight)
    if not isinstance(entry, Mapping):
        return _hotword(entry, 1.0)
    unknown = sorted(map(str, set(entry) - {"phrase", "weight"}))
    if unknown:
        raise ValueError(
            f"found {', '.join(unknown)} in {dict(entry)!r}, expected phrase and weight"
        )
    return _hotword(entry.get("phrase"), entry.get("weight", 1.0))


def _hotword(phrase: object, weight: object) -> Hotword:
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"found the phrase {phrase!r}, expected text that is not blank")
    phrase = " ".join(phrase.split())
    if len(phrase) > _MAX_CHARACTERS:
        raise ValueError(
            f"found a phrase of {len(phrase)} characters ({phrase[:40]!r}...), expected at most "
            f"{_MAX_CHARACTERS}; name a file of phrases as @names.txt"
        )
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= MAX_WEIGHT:
        raise ValueError(
            f"found the weight {weight!r} of {phrase!r}, expected a number above 0, at most "
            f"{MAX_WEIGHT:g}"
        )
    return Hotword(phrase, number)
