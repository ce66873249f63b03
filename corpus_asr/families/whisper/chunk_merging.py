"""Transcripts of overlapping chunks into one: what the speech recognition pipeline returns.

Neighbours are joined where their tokens agree best; words are grouped from tokens.

Source: transformers 5.23, tokenization_whisper.py, `_decode_asr`.
"""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float64, Int64

from corpus_asr.families.tensors import as_lists
from corpus_asr.languages import LANGUAGES, resolve_language
from corpus_asr.units import WINDOW_POSITIONS

_EPSILON = 1e-4
"""What a longer overlap gains on a shorter one per token, so that long matches win."""

_CUT_CHARACTER = "\ufffd"
# Languages that put no blanks between words.
_WITHOUT_BLANKS = ("chinese", "japanese", "thai", "lao", "myanmar", "cantonese")
_OPENING = "\"'“¡¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  (full-width punctuation is meant)

Times = tuple[float, float]


class ChunkTokenizer(Protocol):
    """What merging asks of a tokenizer."""

    timestamp_begin: int

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens."""

    @property
    def language(self) -> str | None:
        """Language of labels."""

    def decode(self, token_ids: Any) -> Any:
        """Turn ids into text."""

    def without_previous(self, ids: list[int]) -> list[int]:
        """Drop the tokens before the start token."""


@dataclass(slots=True)
class _Chunk:
    language: str | None
    start_s: float | None = None
    end_s: float | None = None
    text: str = ""
    words: tuple[dict[str, Any], ...] = ()


def merged_chunks(
    tokenizer: ChunkTokenizer,
    model_outputs: Iterable[Mapping[str, Any]],
    *,
    return_timestamps: bool | str | None,
    return_language: bool | None,
    time_precision: float,
    segment_size: int = WINDOW_POSITIONS,
) -> tuple[str, dict[str, Any]]:
    """Merge the transcripts of chunks.

    Args:
        tokenizer: of the model that wrote them.
        model_outputs: per chunk its `tokens`, of shape `(1, token)`; its `stride`, which is its
            length and how much of it belongs to the chunk before and after it, in seconds; and for
            words `token_timestamps`, the end of each token in seconds, of shape `(1, token)`.
        return_timestamps: True for the stretches between timestamps, `word` for words.
        return_language: whether to name the language of each stretch.
        time_precision: seconds per timestamp step.
        segment_size: timestamp steps of a window.

    Returns:
        The text, and `{"chunks": [...]}` where stretches, words or languages were asked for.
    """
    merger = _Merger(
        tokenizer,
        timestamps=bool(return_timestamps),
        words=return_timestamps == "word",
        name_language=bool(return_language),
        precision_s=time_precision,
        window_s=time_precision * segment_size,
    )
    for output in model_outputs:
        merger.add(output)
    chunks = merger.finish()
    text = "".join(chunk.text for chunk in chunks)
    if not (return_timestamps or return_language):
        return text, {}
    if return_timestamps == "word":
        return text, {"chunks": [word for chunk in chunks for word in chunk.words]}
    return text, {"chunks": [merger.shown(chunk) for chunk in chunks]}


class _Merger:
    """Reads tokens from the first chunk to the last, closing a stretch at every end time."""

    def __init__(
        self,
        tokenizer: ChunkTokenizer,
        *,
        timestamps: bool,
        words: bool,
        name_language: bool,
        precision_s: float,
        window_s: float,
    ) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._timestamps = timestamps
        self._words = words
        self._name_language = name_language
        self._precision_s = precision_s
        self._window_s = window_s
        self._language: str | None = None
        self._chunks: list[_Chunk] = []
        self._chunk = _Chunk(None)
        self._offset_s = 0.0
        # A stretch may reach over several chunks: the tokens of the earlier ones, then of this one.
        self._earlier: list[list[int]] = []
        self._earlier_times: list[list[Times]] = []
        self._current: list[int] = []
        self._current_times: list[Times] = []
        self._skip = False

    def add(self, output: Mapping[str, Any]) -> None:
        ids = self._tokenizer.without_previous(as_lists(output["tokens"][0]))
        ends_s = as_lists(output["token_timestamps"][0]) if self._words else []
        length_s, left_s, right_s = output.get("stride", (0.0, 0.0, 0.0))
        self._offset_s -= left_s
        begin = self._tokenizer.timestamp_begin
        first = left_s / self._precision_s + begin if left_s else begin
        last = self._last_timestamp(ids, length_s - right_s) if right_s else None
        windows = _Windows(ids, begin, self._precision_s, self._window_s)
        self._current, self._current_times = [], []
        for position, token in enumerate(ids):
            if token in self._special:
                self._read_special(token)
            elif token >= begin:
                time_s = (token - begin) * self._precision_s + self._offset_s
                self._read_timestamp(
                    token, round(time_s + windows.before(position), 2), first, last
                )
            else:
                self._current.append(token)
                if self._words:
                    start_s = ends_s[position - 1] if position else 0.0
                    times = (start_s + self._offset_s, ends_s[position] + self._offset_s)
                    self._current_times.append((round(times[0], 2), round(times[1], 2)))
        self._offset_s += length_s - right_s
        if self._current:
            self._keep_current()
        elif not any(self._earlier):
            self._start_chunk()

    def finish(self) -> list[_Chunk]:
        """Close the last stretch, which has no end time, and return all."""
        if self._earlier:
            self._close_chunk()
        return self._chunks

    def shown(self, chunk: _Chunk) -> dict[str, Any]:
        """Return a stretch as the pipeline names its parts."""
        return {
            **({"language": chunk.language} if self._name_language else {}),
            **({"timestamp": (chunk.start_s, chunk.end_s)} if self._timestamps else {}),
            "text": chunk.text,
        }

    def _last_timestamp(self, ids: list[int], right_start_s: float) -> int | None:
        """Return the first timestamp that belongs to the next chunk, the last one at least."""
        begin, last = self._tokenizer.timestamp_begin, None
        for token in reversed(ids):
            if token >= begin:
                if last is not None and (token - begin) * self._precision_s < right_start_s:
                    break
                last = token
        return last

    def _read_special(self, token: int) -> None:
        language = LANGUAGES.get(self._tokenizer.decode([token])[2:-2])
        if language is None:
            return
        if self._language and language != self._language and not self._timestamps:
            self._keep_current()
            self._close_chunk()
        self._chunk.language = language
        self._language = language

    def _read_timestamp(self, token: int, time_s: float, first: float, last: int | None) -> None:
        if last and token >= last:
            # It lies where the next chunk knows better, and so does its twin, which would start
            # another stretch.
            self._skip = True
        elif self._skip or (self._earlier and token < first):
            self._skip = False
        elif self._chunk.start_s is None:
            self._chunk.start_s = time_s
        elif time_s != self._chunk.start_s:
            self._chunk.end_s = time_s
            self._keep_current()
            self._close_chunk()

    def _keep_current(self) -> None:
        self._earlier.append(self._current)
        if self._words:
            self._earlier_times.append(self._current_times)

    def _close_chunk(self) -> None:
        tokens, times = joined_sequences(self._earlier, self._earlier_times)
        self._chunk.text = self._tokenizer.decode(tokens)
        if self._words:
            self._chunk.words = tuple(self._timed_words(tokens, times))
        self._chunks.append(self._chunk)
        self._start_chunk()

    def _start_chunk(self) -> None:
        self._chunk = _Chunk(self._language)
        self._earlier, self._earlier_times = [], []
        self._current, self._current_times = [], []

    def _timed_words(self, tokens: list[int], times: list[Times]) -> Iterable[dict[str, Any]]:
        language = self._language
        if language is None and self._tokenizer.language is not None:
            language = LANGUAGES[resolve_language(self._tokenizer.language)]
        named = {"language": self._language} if self._name_language else {}
        for text, positions in grouped_words(tokens, language or "english", self._tokenizer.decode):
            span = (times[positions[0]][0], times[positions[-1]][1])
            yield {"text": text, "timestamp": span, **named}


class _Windows:
    """Tells how many seconds of earlier windows stand before a timestamp of one long sequence."""

    def __init__(self, ids: list[int], begin: int, precision_s: float, window_s: float) -> None:
        self._ids = ids
        self._begin = begin
        self._precision_s = precision_s
        self._window_s = window_s
        self._latest_s = self._before_latest_s = self._passed_s = 0.0

    def before(self, position: int) -> float:
        """Read the timestamp at `position`; those before it were read already."""
        time_s = (self._ids[position] - self._begin) * self._precision_s
        if time_s < self._latest_s:
            # Times start again. A window that ended on a pair of timestamps was left at the first.
            if all(i >= self._begin for i in self._ids[max(position - 2, 0) : position]):
                self._latest_s = self._before_latest_s
                self._passed_s += self._before_latest_s
            else:
                self._passed_s += self._window_s
        self._before_latest_s, self._latest_s = self._latest_s, time_s
        return self._passed_s


def joined_sequences(
    sequences: Sequence[list[int]], times: Sequence[list[Times]] = ()
) -> tuple[list[int], list[Times]]:
    """Join token sequences whose ends overlap.

    Of what two neighbours share, the first half is taken from the left one and the second half from
    the right one: each is surer away from its end.

    Args:
        sequences: one or more; each begins where the one before it has not ended yet.
        times: start and end of each token in seconds, or nothing.

    Returns:
        The tokens, and their times if there were any.
    """
    tokens, spans = list(sequences[0]), list(times[0]) if times else []
    start = 0  # of the part of `tokens` that the next sequence may overlap
    for number, right in enumerate(sequences[1:], start=1):
        right_times = times[number] if times else []
        left_mid, right_mid = _best_overlap(tokens[start:], right, spans[start:], right_times)
        start += left_mid
        tokens[start:] = right[right_mid:]
        spans[start:] = right_times[right_mid:]
    return tokens, spans


def _best_overlap(
    left: list[int], right: list[int], left_times: list[Times], right_times: list[Times]
) -> tuple[int, int]:
    """Return where to leave the left sequence and where to enter the right one."""
    lefts, rights = np.array(left, np.int64), np.array(right, np.int64)
    best, found = 0.0, (len(left), 0)
    for shift in range(1, len(left) + len(right)):
        from_left = max(0, len(left) - shift)
        to_left = min(len(left), len(left) + len(right) - shift)
        from_right = max(0, shift - len(left))
        to_right = min(len(right), shift)
        a, b = slice(from_left, to_left), slice(from_right, to_right)
        matches = _matches(lefts[a], rights[b], left_times[a], right_times[b])
        score = matches / shift + shift * _EPSILON
        if matches > 1 and score > best:
            best, found = score, ((from_left + to_left) // 2, (from_right + to_right) // 2)
    return found


def _matches(
    left: Int64[np.ndarray, " token"],
    right: Int64[np.ndarray, " token"],
    left_times: list[Times],
    right_times: list[Times],
) -> int:
    """Count equal tokens; with times, only those whose times are in order."""
    equal = left == right
    if left_times and equal.any():
        before: Float64[np.ndarray, "token 2"] = np.array(left_times, np.float64)
        after: Float64[np.ndarray, "token 2"] = np.array(right_times, np.float64)
        same_start = before[:, 0] == after[:, 0]
        in_order = (before[:, 0] < after[:, 0]) | (same_start & (before[:, 1] <= after[:, 1]))
        equal &= in_order
    return int(equal.sum())


class Word(NamedTuple):
    """A word of a text."""

    text: str
    positions: list[int]
    """Where its tokens stand among those of the text."""


def grouped_words(
    tokens: Sequence[int], language: str, decode: Callable[[list[int]], str]
) -> list[Word]:
    """Group tokens into words, punctuation with the word it belongs to.

    Args:
        tokens: text tokens, neither control tokens nor timestamps among them.
        language: name of the language, such as `english`.
        decode: tokens to text.

    Source: transformers 5.23, tokenization_whisper.py, `_combine_tokens_into_words`.
    """
    words = _characters(tokens, decode)
    if language not in _WITHOUT_BLANKS:
        words = _joined_at_blanks(words)
    return _with_closing(_with_opening(words))


def _characters(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[Word]:
    whole = decode(list(tokens))
    words: list[Word] = []
    length = 0
    positions: list[int] = []
    for position in range(len(tokens)):
        positions.append(position)
        text = decode([tokens[k] for k in positions])
        cut = text.find(_CUT_CHARACTER)
        # The mark of a cut character may also be what was written.
        if cut < 0 or length + cut >= len(whole) or whole[length + cut] == _CUT_CHARACTER:
            words.append(Word(text, positions))
            length += len(text)
            positions = []
    return words


def _joined_at_blanks(parts: list[Word]) -> list[Word]:
    """Start a word at every blank and every punctuation mark."""
    words: list[Word] = []
    for part in parts:
        # A run of marks is one where it stands in this order in the list of all.
        is_mark = part.text.strip() in string.punctuation
        if not words or is_mark or part.text.startswith(" "):
            words.append(part)
        else:
            words[-1] = _together(words[-1], part)
    return words


def _with_opening(words: list[Word]) -> list[Word]:
    """Put opening marks to the word after them."""
    merged: list[Word] = []
    for word in reversed(words):
        if merged and word.text.startswith(" ") and word.text.strip() in _OPENING:
            merged[-1] = _together(word, merged[-1])
        else:
            merged.append(word)
    return merged[::-1]


def _with_closing(words: list[Word]) -> list[Word]:
    """Put closing marks to the word before them."""
    merged: list[Word] = []
    for word in words:
        if merged and word.text in _CLOSING and not merged[-1].text.endswith(" "):
            merged[-1] = _together(merged[-1], word)
        else:
            merged.append(word)
    return [word for word in merged if word.text]


def _together(first: Word, second: Word) -> Word:
    return Word(first.text + second.text, first.positions + second.positions)
