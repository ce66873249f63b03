"""A CTC aligner whose scores are planted: the features say which token each position says."""

import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from corpus_asr.families.parakeet.alignment import WordAligner
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from corpus_asr.families.registry import PartFeatures
from tests.support.tokenizers import tiny_parakeet_tokenizer

STEP = 8
"""Rows of features to a position of 80 ms."""
KIND = "planted"
SURE = 0.9
"""The probability of the token that a position says."""

Said = tuple[str, float, float]
"""A word, and when its sound begins and ends."""


@functools.cache
def tiny_tokenizer() -> ParakeetTokenizer:
    folder = Path(tempfile.mkdtemp())
    tiny_parakeet_tokenizer(folder, "CTC")
    return ParakeetTokenizer(folder)


class PlantedAligner(WordAligner):
    """Scores what `plant` wrote, and counts the rows that it was given."""

    def __init__(self) -> None:
        tokenizer = tiny_tokenizer()
        encoder = SimpleNamespace(subsampling_factor=STEP)
        network: Any = SimpleNamespace(
            eval=lambda: SimpleNamespace(
                blank=len(tokenizer.vocabulary) - 1, config=SimpleNamespace(encoder_config=encoder)
            ),
            config=SimpleNamespace(encoder_config=encoder),
        )
        super().__init__(network, tokenizer, SimpleNamespace(kind=KIND))  # type: ignore[arg-type]
        self.rows: list[int] = []

    def scores(self, part: np.ndarray, **_: Any) -> np.ndarray:
        self.rows.append(len(part))
        tokens = part[::STEP, 0].astype(np.int64)
        size = len(tiny_tokenizer().vocabulary)
        found = np.full((len(tokens), size), math.log((1 - SURE) / (size - 1)), np.float32)
        found[np.arange(len(tokens)), tokens] = math.log(SURE)
        return found


def plant(said: Sequence[Said], duration_s: float) -> PartFeatures:
    """Return features in which words are said; their tokens share their time."""
    tokenizer = tiny_tokenizer()
    rows = np.full(round(duration_s * 100), len(tokenizer.vocabulary) - 1, np.float16)
    for word, start_s, end_s in said:
        tokens = tokenizer.encode(word.strip(" ,.!").lower())
        edges = np.linspace(start_s, end_s, len(tokens) + 1)
        edges = np.round(edges * 100 / STEP).astype(int) * STEP
        for token, first, stop in zip(tokens, edges[:-1], edges[1:], strict=True):
            rows[first:stop] = token
    return PartFeatures(values=rows[:, np.newaxis], pad_value=0.0)
