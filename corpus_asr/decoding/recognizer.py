"""Recognizers: networks that read a window once and say its text, with times and scores.

What a user's own model is given and returns; families such as Parakeet are made in the same way.
Free of torch. Guide: docs/how-to/recognizers.md.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from corpus_asr.array_types import Float
from corpus_asr.errors import ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER, RECOGNIZER

# Times may lie past a window's end by this: networks count in frames of 80 ms.
_PAST_END_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizedWord:
    """A word and its times, in seconds from the beginning of its window."""

    word: str
    """With its punctuation and the blanks beside it, so that a text's words joined are the text."""
    start_s: float
    end_s: float
    probability: float
    """In 0-1."""
    tokens: tuple[int, ...] = ()
    """Token ids, where the model has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """Recognized text of one window."""

    text: str
    """"" where nobody speaks."""
    logprob: float
    """Mean log-probability of its tokens or words; at most 0. `confidence` follows it."""
    words: tuple[RecognizedWord, ...] = ()
    """The text word by word; segments then begin and end with sentences and pauses."""


class Recognizer(ABC):
    """A model that recognizes windows of speech; used from one thread at a time.

    Subclass it, and name the class in `model.recognizer`, as `package.module:Class` or as an entry
    point of the group `corpus_asr.recognizers`.
    """

    longest_window_s: ClassVar[float] = 30.0
    """Parts of recordings are cut at silences into windows no longer than this."""
    overlap_s: ClassVar[float] = 0.0
    """Windows share this much on either side of a cut without a pause, where words may be cut: each
    word is taken from the window in whose part its middle lies. For models that time words."""
    languages: ClassVar[frozenset[str]] = frozenset()
    """Codes that `decoding.language` may name; empty: any, since the model is not told."""
    version: ClassVar[str] = "1"
    """Change it with the texts: results of two versions are not mixed in one output folder."""
    batch_s: float = 240.0
    """Windows of one call take at most so many seconds, each as long as the longest of them."""

    @classmethod
    def window_limit_s(cls, checkpoint: str | None) -> float:
        """Return `longest_window_s` for a checkpoint, before it is loaded."""
        return cls.longest_window_s

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: str | None, *, device: str, compute_type: str) -> Self:
        """Load the model in the process that uses it.

        `checkpoint` is `model.checkpoint` verbatim, or None; `device` is `cpu`, `cuda` or
        `cuda:N`; `compute_type` is `auto` or a data type.
        """

    @abstractmethod
    def transcribe(
        self, windows: Sequence[Float[np.ndarray, " sample"]], *, language: str | None
    ) -> Sequence[Recognized]:
        """Recognize windows of 16 kHz mono samples in float32, in [-1, 1]; one result per window.

        A result should not depend on the other windows of a call. `language` is a code, or None
        to detect it. An exception counts for one recording: after a call that raises, its windows
        are passed again one by one.
        """


def checked(found: Any, durations_s: Sequence[float]) -> list[Recognized | ItemError]:
    """Return a recognizer's results, with invalid ones replaced by their error.

    Raises:
        ItemError: the number of results differs from the number of windows.
    """
    results = list(found) if isinstance(found, Sequence) else None
    if results is None or len(results) != len(durations_s):
        description = type(found).__name__ if results is None else f"{len(results)} results"
        raise ItemError(
            f"recognizing {len(durations_s)} windows: the recognizer returned {description}, "
            "expected a list with one Recognized for each; correct its method transcribe",
            kind=RECOGNIZER,
        )
    pairs = zip(results, durations_s, strict=True)
    return [_checked(result, duration_s) for result, duration_s in pairs]


def _checked(result: Any, duration_s: float) -> Recognized | ItemError:
    if not isinstance(result, Recognized) or not isinstance(result.text, str):
        description = f"a text of type {type(result.text).__name__}" if isinstance(
            result, Recognized
        ) else f"a {type(result).__name__}"  # fmt: skip
        return _wrong(description, "a Recognized with a text")
    numbers = [result.logprob]
    for word in result.words:
        numbers += (word.start_s, word.end_s, word.probability)
    if not all(math.isfinite(number) for number in numbers):
        return ItemError(
            f"recognizing a window of {duration_s:.1f} s: the recognizer's times or scores are not "
            "numbers, expected finite ones; set model.compute_type to float32, or correct the "
            "recognizer",
            kind=NOT_A_NUMBER,
        )
    if not result.words:
        return result
    if "".join(word.word for word in result.words).split() != result.text.split():
        return _wrong("words that do not make up the text", "all of its words, with their blanks")
    times = [time_s for word in result.words for time_s in (word.start_s, word.end_s)]
    if times != sorted(times) or times[0] < 0 or times[-1] > duration_s + _PAST_END_S:
        return _wrong(
            f"words from {min(times):.2f} to {max(times):.2f} s",
            f"ascending times from 0 to {duration_s:.2f} s",
        )
    return result


def _wrong(found: str, expected: str) -> ItemError:
    return ItemError(
        f"recognizing a window: the recognizer returned {found}, expected {expected}; correct its "
        "method transcribe",
        kind=RECOGNIZER,
    )
