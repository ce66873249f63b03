"""Recognizers as users write them, right ones and wrong ones."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from corpus_asr.decoding.recognizer import Recognized, RecognizedWord, Recognizer
from corpus_asr.units import SAMPLE_RATE_HZ

WORDS = ("one", "two,", "three.", "Four")
PLANTED = ("red", "green", "blue", "white")


def timed(text: Sequence[str], duration_s: float, *, probability: float = 0.8) -> Recognized:
    """Spread words evenly over a window."""
    step_s = duration_s / len(text)
    words = tuple(
        RecognizedWord(
            word=f" {word}", start_s=at * step_s, end_s=(at + 0.9) * step_s,
            probability=probability, tokens=(at,),
        )
        for at, word in enumerate(text)
    )  # fmt: skip
    return Recognized(text="".join(word.word for word in words), logprob=-0.2, words=words)


class Counting(Recognizer):
    """Says how long each window is, and remembers what it was given."""

    languages = frozenset({"en", "de"})
    longest_window_s = 20.0

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint
        self.calls: list[list[int]] = []

    @classmethod
    def load(cls, checkpoint: str | None, *, device: str, compute_type: str) -> "Counting":
        return cls(checkpoint)

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> Sequence[Recognized]:
        self.calls.append([len(window) for window in windows])
        return [timed(WORDS, len(window) / SAMPLE_RATE_HZ) for window in windows]


class Untimed(Counting):
    """Says a text without words."""

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> Sequence[Recognized]:
        return [
            Recognized(text=f"{len(window) // SAMPLE_RATE_HZ} s", logprob=-0.1)
            for window in windows
        ]


class Planted(Counting):
    """Says four words, of which the fewer are right the less sure it is; it claims too little."""

    longest_window_s = 1.0

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> Sequence[Recognized]:
        return [self.said(random.Random(float(np.abs(window).sum()))) for window in windows]

    def said(self, draw: random.Random) -> Recognized:
        surprise = draw.uniform(0.02, 2.0)
        words = [word if draw.random() > surprise / 2.5 else "x" for word in PLANTED]
        return Recognized(text=" ".join(words), logprob=-surprise)


class Scripted(Counting):
    """Does with windows what a function does."""

    act: Callable[[Sequence[np.ndarray]], Any]

    def transcribe(self, windows: Sequence[np.ndarray], *, language: str | None) -> Any:
        self.calls.append([len(window) for window in windows])
        return type(self).act(windows)


class FailingOnShort(Counting):
    """Raises whenever a window shorter than 2.5 s is among those given."""

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> Sequence[Recognized]:
        if any(len(window) < 2.5 * SAMPLE_RATE_HZ for window in windows):
            raise ValueError("too short for me")
        return super().transcribe(windows, language=language)


class WithoutLoad(Recognizer):
    """Lacks a method."""

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> Sequence[Recognized]:
        return []


class Unloadable(Counting):
    """Cannot be loaded."""

    @classmethod
    def load(cls, checkpoint: str | None, *, device: str, compute_type: str) -> "Unloadable":
        raise FileNotFoundError(f"no network in {checkpoint}")


LEVELS_PER_ONE = 1024  # float16 keeps them as they are


class Levels(Recognizer):
    """Says the level of each second of one level, but of those only that it is given whole."""

    longest_window_s = 20.0
    overlap_s = 1.0

    @classmethod
    def load(cls, checkpoint: str | None, *, device: str, compute_type: str) -> "Levels":
        return cls()

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> Sequence[Recognized]:
        return [self._said(np.rint(window * LEVELS_PER_ONE).astype(int)) for window in windows]

    def _said(self, levels: np.ndarray) -> Recognized:
        edges = [0, *(np.flatnonzero(np.diff(levels)) + 1), len(levels)]
        words = tuple(
            RecognizedWord(
                word=f" {levels[start]}", probability=0.9,
                start_s=start / SAMPLE_RATE_HZ, end_s=stop / SAMPLE_RATE_HZ,
            )
            for start, stop in pairwise(edges) if stop - start == SAMPLE_RATE_HZ
        )  # fmt: skip
        return Recognized(text="".join(word.word for word in words), logprob=-0.1, words=words)


class WithoutOverlap(Levels):
    """Is given every sample once."""

    overlap_s = 0.0
