"""Word alignment of a known text with a CTC checkpoint: tokenization, scores and word times.

A long part is scored in overlapping windows, of which only the inner positions, with context on
both sides, are used.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import torch

from corpus_asr.array_types import Float16, Float32
from corpus_asr.decoding.device import free_cached_memory, out_of_memory_by_name
from corpus_asr.decoding.emissions import WILDCARD, align_tokens
from corpus_asr.decoding.recognizer import RecognizedWord
from corpus_asr.families.parakeet.features import ParakeetPartFeatures
from corpus_asr.families.parakeet.model import ParakeetCTC
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from corpus_asr.units import FRAMES_PER_SECOND

# Same as the recognizer's windows.
_WINDOW_S, _SHORT_WINDOW_S = 120.0, 30.0
# Positions at the ends of a window that its neighbors provide: 5 s, at most a quarter of it.
_MARGIN = 62

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# SentencePiece's symbol for the space before a word.
_BLANK = "\u2581"
# Punctuation in Unicode, but spoken as words.
_SPOKEN_MARKS = "%‰&@#§"
_APOSTROPHE = "\u2019"


class WordAligner:
    """A CTC checkpoint that aligns the words of a text with audio."""

    def __init__(
        self, network: ParakeetCTC, tokenizer: ParakeetTokenizer, features: ParakeetPartFeatures
    ) -> None:
        self._network = network.eval()
        self._features = features
        self._speller = Speller(tokenizer)
        self.feature_kind = features.kind
        self.position_s = network.config.encoder_config.subsampling_factor / FRAMES_PER_SECOND
        """Duration of a position in seconds."""

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a checkpoint folder in transformers' layout."""
        return cls(
            ParakeetCTC.from_pretrained(folder, dtype=dtype, device=device),
            ParakeetTokenizer(folder),
            ParakeetPartFeatures.from_folder(folder),
        )

    def scores(
        self, part: Float16[np.ndarray, "frame mel"], *, window_s: float = _WINDOW_S
    ) -> Float32[np.ndarray, "pos vocab"]:
        """Return scores of every token and position; uses shorter windows if memory runs out."""
        try:
            with out_of_memory_by_name():
                return part_logprobs(self._network, self._features, part, window_s=window_s)
        except torch.OutOfMemoryError:
            free_cached_memory(self._network.device)
            if window_s <= _SHORT_WINDOW_S:
                raise
        return self.scores(part, window_s=_SHORT_WINDOW_S)

    def knows(self, words: Sequence[str]) -> bool:
        """Whether any part of these words can be spelled in the vocabulary."""
        return any(token != WILDCARD for tokens in self._speller.spell(words) for token in tokens)

    def place(
        self, scores: Float32[np.ndarray, "pos vocab"], words: Sequence[str]
    ) -> list[RecognizedWord]:
        """Align words with positions that contain only these; times in seconds from the first.

        Words include adjacent spaces. A word without spoken characters, such as a dash, has zero
        duration at the end of the previous word, with a probability of 1.

        Raises:
            AlignmentError: there are too few positions for the text.
            ItemError: the scores are not finite numbers.
        """
        spelled = self._speller.spell(words)
        row = align_tokens(
            scores, [token for tokens in spelled for token in tokens], blank=self._network.blank
        )
        placed_words: list[RecognizedWord] = []
        first, end_s = 0, 0.0
        for word, tokens in zip(words, spelled, strict=True):
            start_s, probability, stop = end_s, 1.0, first + len(tokens)
            if tokens:
                start_s = row.frames[first] * self.position_s
                end_s = (row.frames[stop - 1] + row.durations[stop - 1]) * self.position_s
                probability = math.fsum(map(math.exp, row.logprobs[first:stop])) / len(tokens)
            placed_words.append(
                RecognizedWord(word=word, start_s=start_s, end_s=end_s, probability=probability)
            )
            first = stop
        return placed_words


@torch.inference_mode()
def part_logprobs(
    network: ParakeetCTC,
    features: ParakeetPartFeatures,
    part: Float16[np.ndarray, "frame mel"],
    *,
    window_s: float = _WINDOW_S,
) -> Float32[np.ndarray, "pos vocab"]:
    """Return scores of every token at every position, in windows of at most `window_s`."""
    encoder = network.config.encoder_config
    step = encoder.subsampling_factor
    most = int(window_s * FRAMES_PER_SECOND) // step
    most = max(1, min(most, encoder.max_position_embeddings))
    margin = min(_MARGIN, most // 4)
    count = -(-len(part) // step)
    logprobs = np.empty((count, network.config.vocab_size), dtype=np.float32)
    done = 0
    while done < count:
        start = max(0, min(done - margin, count - most))
        end = min(start + most, count)
        stop = count if end == count else end - margin
        window = features.window(part, start * step, min(end * step, len(part)))
        inputs = torch.from_numpy(window)[None].to(network.device, network.dtype)
        scores, _ = network(inputs, num_frames=[len(window)])
        kept = scores[0, done - start : stop - start].float().log_softmax(dim=1)
        logprobs[done:stop] = kept.cpu().numpy()
        done = stop
    return logprobs


class Speller:
    """Converts words to tokens of a CTC checkpoint, in the form that it predicts."""

    def __init__(self, tokenizer: ParakeetTokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = tokenizer.vocabulary
        self._missing = tokenizer.control_ids | {
            token for name, token in self._vocabulary.items() if _BYTE.fullmatch(name)
        }
        self._blank = self._vocabulary.get(_BLANK)
        self._spellings: dict[str, str] = {}

    def spell(self, words: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each word.

        Punctuation around words is dropped, and within them if the vocabulary lacks it; dashes
        then become spaces. Other unknown characters are replaced by lower case or by their base
        character without accents if known; a run of others becomes one wildcard. A word without a
        preceding space starts with a token without a space, if there is one.
        """
        spelled: list[list[int]] = []
        after_blank = True
        for word in words:
            after_blank |= word[:1].isspace()
            piece = "".join(map(self._spelling, _without_marks(word)))
            tokens = self._tokenizer.encode(piece) if piece else []
            if tokens and not after_blank:
                bare = str(self._tokenizer.token(tokens[0])).removeprefix(_BLANK)
                tokens[:1] = [self._vocabulary.get(bare, tokens[0])] if bare else []
            spoken = (WILDCARD if token in self._missing else token for token in tokens)
            spelled.append(_joined(spoken, self._blank))
            after_blank = word[-1:].isspace() or (after_blank and not spelled[-1])
        return spelled

    def _spelling(self, character: str) -> str:
        if character not in self._spellings:
            self._spellings[character] = self._found_spelling(character)
        return self._spellings[character]

    def _found_spelling(self, character: str) -> str:
        if character.isspace():
            return " "
        bare = unicodedata.normalize("NFKD", character)[0]
        spellings = [character, character.lower(), bare, bare.lower()]
        if character == _APOSTROPHE:
            spellings.append("'")
        for spelling in spellings:
            tokens = self._tokenizer.encode(spelling)
            if self._missing.isdisjoint(tokens):
                return spelling
        if _is_mark(character):
            return " " if unicodedata.category(character) == "Pd" or character == "/" else ""
        return character


def _without_marks(word: str) -> str:
    kept = [number for number, character in enumerate(word) if not _is_mark(character)]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def _is_mark(character: str) -> bool:
    return character.isspace() or (
        unicodedata.category(character)[0] in "PCM" and character not in _SPOKEN_MARKS
    )


def _joined(tokens: Iterable[int], blank: int | None) -> list[int]:
    """Collapse runs of wildcards, including a separate space token before each."""
    joined_tokens: list[int] = []
    for token, run in groupby(tokens):
        if token == WILDCARD:
            if joined_tokens and joined_tokens[-1] == blank:
                joined_tokens.pop()
            joined_tokens.append(token)
        else:
            joined_tokens += run
    return joined_tokens
