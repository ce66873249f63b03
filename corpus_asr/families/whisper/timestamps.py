"""Timestamp tokens: as text, as segment boundaries, and in merged chunks of a recording."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from corpus_asr.array_types import Float64, Int64
from corpus_asr.families.tensors import as_lists
from corpus_asr.languages import LANGUAGES, resolve_language
from corpus_asr.text.words import WITHOUT_BLANKS, Spelled, join_to_words, merge_punctuation
from corpus_asr.units import WINDOW_POSITIONS

# Bonus of a longer overlap per token, so that long matches win.
_EPSILON = 1e-4

_WRITTEN = re.compile(r"<\|(\d+\.\d+)\|>")
# Decoded form of incomplete character bytes.
_CUT_CHARACTER = "\ufffd"
# With the inverted exclamation mark, which openai-whisper lacks.
_OPENING = "\"'“¡¿([{-"

Times = tuple[float, float]


def without_timestamps(text: str) -> str:
    """Remove written timestamps from decoded text."""
    return _WRITTEN.sub("", text)


def written_timestamps(
    token_ids: list[int], *, timestamp_begin: int, time_precision: float
) -> list[str | list[int]]:
    """Split IDs into timestamps, as text, and the runs between them.

    Times of a later window continue from the end of the earlier one.

    Source: transformers 5.23, `WhisperTokenizer._decode_with_timestamps`.
    """
    run: list[int] = []
    pieces: list[str | list[int]] = [run]
    windows = _WindowOffsets(token_ids, timestamp_begin, time_precision)
    for position, token in enumerate(token_ids):
        if token < timestamp_begin:
            run.append(token)
            continue
        earlier_s = windows.before(position)
        if windows.left_at_pair:
            # The next window repeats the second of the pair.
            pieces = pieces[:-2]
        run = []
        time_s = (token - timestamp_begin) * time_precision
        pieces += [f"<|{time_s + earlier_s:.2f}|>", run]
    return pieces


def timed_segments(
    token_ids: Sequence[int], *, timestamp_begin: int, time_precision: float
) -> Iterator[tuple[Sequence[int], tuple[float, float]]]:
    """Yield the segments closed by a pair of timestamps, timestamps included, with their times.

    Text before the first and after the last timestamp is dropped. Times of a later window continue
    from the end of the earlier one.

    Source: transformers 5.23, `WhisperTokenizer._compute_offsets`.
    """
    # Two consecutive timestamps close a segment and open the next.
    stamps = [k for k, token in enumerate(token_ids) if token >= timestamp_begin]
    ends = [k + 1 for k, following in pairwise(stamps) if following == k + 1]
    if len(stamps) < 2:
        return
    # The last timestamp closes a segment even without a following one.
    if stamps[-1] + 1 not in ends:
        ends.append(stamps[-1] + 1)
    start, latest, windows = stamps[0], 0, 0
    for end in ends:
        segment = token_ids[start:end]
        if len(segment) > 1:
            first, last = segment[0] - timestamp_begin, segment[-1] - timestamp_begin
            if first < latest:
                # Times restart in the next window, which starts at the pair of timestamps that
                # ended this one, or at this one's end.
                single = start >= 2 and min(token_ids[start - 2 : start]) < timestamp_begin
                windows += WINDOW_POSITIONS if single else latest
            latest = last
            offset_s = windows * time_precision
            yield segment, (first * time_precision + offset_s, last * time_precision + offset_s)
        start = end


class _WindowOffsets:
    """Sums up the seconds of earlier windows before each timestamp of one long sequence."""

    def __init__(self, ids: list[int], begin: int, precision_s: float) -> None:
        self._ids = ids
        self._begin = begin
        self._precision_s = precision_s
        self._latest_s = self._before_latest_s = self._passed_s = 0.0
        self.left_at_pair = False

    def before(self, position: int) -> float:
        time_s = (self._ids[position] - self._begin) * self._precision_s
        self.left_at_pair = False
        if time_s < self._latest_s:
            # Times restart. After a window that ended with a pair, the next starts at the first.
            two = self._ids[max(position - 2, 0) : position]
            self.left_at_pair = all(i >= self._begin for i in two)
            if self.left_at_pair:
                self._latest_s = self._before_latest_s
                self._passed_s += self._before_latest_s
            else:
                self._passed_s += self._precision_s * WINDOW_POSITIONS
        self._before_latest_s, self._latest_s = self._latest_s, time_s
        return self._passed_s


# Chunks of a recording


@dataclass(slots=True)
class _Chunk:
    language: str | None
    start_s: float | None = None
    end_s: float | None = None
    text: str = ""
    words: tuple[dict[str, Any], ...] = ()


def merged_chunks(
    tokenizer: Any,
    model_outputs: Iterable[Mapping[str, Any]],
    *,
    return_timestamps: bool | str | None,
    return_language: bool | None,
    time_precision: float,
) -> tuple[str, dict[str, Any]]:
    """Merge the transcripts of overlapping chunks, joined where their tokens agree best.

    Each of `model_outputs` has `tokens`, of shape `(1, token)`; `stride`, the length of the chunk
    and its overlaps with the previous and the next one, in seconds; and for words
    `token_timestamps`, the end of each token in seconds, of shape `(1, token)`. Returns the text,
    and `{"chunks": [...]}` if segments (`return_timestamps=True`), words (`"word"`) or languages
    are requested; `time_precision` is in seconds per timestamp step.

    Source: transformers 5.23, tokenization_whisper.py, `_decode_asr`.
    """
    merger = _Merger(
        tokenizer=tokenizer,
        timestamps=bool(return_timestamps),
        words=return_timestamps == "word",
        name_language=bool(return_language),
        precision_s=time_precision,
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


@dataclass(slots=True, kw_only=True)
class _Merger:
    # Reads tokens from the first chunk to the last, and closes a segment at every end time.
    tokenizer: Any  # a WhisperTokenizer, whose module imports this one
    timestamps: bool
    words: bool
    name_language: bool
    precision_s: float
    special: set[int] = field(init=False)
    language: str | None = None
    chunks: list[_Chunk] = field(default_factory=list)
    chunk: _Chunk = field(default_factory=lambda: _Chunk(None))
    offset_s: float = 0.0
    # A segment may span several chunks: the tokens of earlier ones, then of this one.
    earlier: list[list[int]] = field(default_factory=list)
    earlier_times: list[list[Times]] = field(default_factory=list)
    current: list[int] = field(default_factory=list)
    current_times: list[Times] = field(default_factory=list)
    skip: bool = False

    def __post_init__(self) -> None:
        self.special = set(self.tokenizer.all_special_ids)

    def add(self, output: Mapping[str, Any]) -> None:
        # The prompt with earlier text is not part of the chunk.
        ids = self.tokenizer.without_previous(as_lists(output["tokens"][0]))
        ends_s = as_lists(output["token_timestamps"][0]) if self.words else []
        length_s, left_s, right_s = output.get("stride", (0.0, 0.0, 0.0))
        # Chunks overlap: this one starts before the previous one's exclusive range ends.
        self.offset_s -= left_s
        begin = self.tokenizer.timestamp_begin
        first = left_s / self.precision_s + begin if left_s else begin
        last = self._last_timestamp(ids, length_s - right_s) if right_s else None
        windows = _WindowOffsets(ids, begin, self.precision_s)
        self.current, self.current_times = [], []
        for position, token in enumerate(ids):
            if token in self.special:
                self._read_special(token)
            elif token >= begin:
                time_s = (token - begin) * self.precision_s + self.offset_s
                self._read_timestamp(
                    token, round(time_s + windows.before(position), 2), first, last
                )
            else:
                self.current.append(token)
                if self.words:
                    start_s = ends_s[position - 1] if position else 0.0
                    times = (start_s + self.offset_s, ends_s[position] + self.offset_s)
                    self.current_times.append((round(times[0], 2), round(times[1], 2)))
        self.offset_s += length_s - right_s
        if self.current:
            self._keep_current()
        elif not any(self.earlier):
            self._start_chunk()

    def finish(self) -> list[_Chunk]:
        if self.earlier:
            self._close_chunk()
        return self.chunks

    def shown(self, chunk: _Chunk) -> dict[str, Any]:
        return {
            **({"language": chunk.language} if self.name_language else {}),
            **({"timestamp": (chunk.start_s, chunk.end_s)} if self.timestamps else {}),
            "text": chunk.text,
        }

    def _last_timestamp(self, ids: list[int], right_start_s: float) -> int | None:
        # The first timestamp that belongs to the next chunk, at least the last one.
        begin, last = self.tokenizer.timestamp_begin, None
        for token in reversed(ids):
            if token >= begin:
                if last is not None and (token - begin) * self.precision_s < right_start_s:
                    break
                last = token
        return last

    def _read_special(self, token: int) -> None:
        language = LANGUAGES.get(self.tokenizer.decode([token])[2:-2])
        if language is None:
            return
        # Without timestamps only this separates texts of different languages.
        if self.language and language != self.language and not self.timestamps:
            self._keep_current()
            self._close_chunk()
        self.chunk.language = language
        self.language = language

    def _read_timestamp(self, token: int, time_s: float, first: float, last: int | None) -> None:
        if last and token >= last:
            # It lies where the next chunk is more reliable, as does its pair, which would start
            # another segment.
            self.skip = True
        elif self.skip or (self.earlier and token < first):
            self.skip = False
        elif self.chunk.start_s is None:
            self.chunk.start_s = time_s
        elif time_s != self.chunk.start_s:
            self.chunk.end_s = time_s
            self._keep_current()
            self._close_chunk()

    def _keep_current(self) -> None:
        self.earlier.append(self.current)
        if self.words:
            self.earlier_times.append(self.current_times)

    def _close_chunk(self) -> None:
        tokens, times = joined_sequences(self.earlier, self.earlier_times)
        self.chunk.text = self.tokenizer.decode(tokens)
        if self.words:
            self.chunk.words = tuple(self._timed_words(tokens, times))
        self.chunks.append(self.chunk)
        self._start_chunk()

    def _start_chunk(self) -> None:
        self.chunk = _Chunk(self.language)
        self.earlier, self.earlier_times = [], []
        self.current, self.current_times = [], []

    def _timed_words(self, tokens: list[int], times: list[Times]) -> Iterable[dict[str, Any]]:
        language = self.language
        if language is None and self.tokenizer.language is not None:
            language = LANGUAGES[resolve_language(self.tokenizer.language)]
        named = {"language": self.language} if self.name_language else {}
        for text, positions in grouped_words(tokens, language or "english", self.tokenizer.decode):
            span = (times[positions[0]][0], times[positions[-1]][1])
            yield {"text": text, "timestamp": span, **named}


def joined_sequences(
    sequences: Sequence[list[int]], times: Sequence[list[Times]] = ()
) -> tuple[list[int], list[Times]]:
    """Join token sequences with overlapping ends.

    The first half of an overlap is taken from the left sequence and the second half from the right
    one, as each is more reliable away from its end.
    """
    tokens, spans = list(sequences[0]), list(times[0]) if times else []
    start = 0  # of the part of `tokens` that may overlap the next sequence
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
    lefts, rights = np.array(left, np.int64), np.array(right, np.int64)
    # Without overlap both are kept completely.
    best, cut = 0.0, (len(left), 0)
    # The right sequence is shifted over the left one, starting with an overlap of one token.
    for shift in range(1, len(left) + len(right)):
        from_left = max(0, len(left) - shift)
        to_left = min(len(left), len(left) + len(right) - shift)
        from_right = max(0, shift - len(left))
        to_right = min(len(right), shift)
        a, b = slice(from_left, to_left), slice(from_right, to_right)
        matches = _matches(lefts[a], rights[b], left_times[a], right_times[b])
        score = matches / shift + shift * _EPSILON
        # A single equal token is chance: many words occur in both.
        if matches > 1 and score > best:
            best, cut = score, ((from_left + to_left) // 2, (from_right + to_right) // 2)
    return cut


def _matches(
    left: Int64[np.ndarray, " token"],
    right: Int64[np.ndarray, " token"],
    left_times: list[Times],
    right_times: list[Times],
) -> int:
    equal = left == right
    if left_times and equal.any():
        left_bounds: Float64[np.ndarray, "token 2"] = np.array(left_times, np.float64)
        right_bounds: Float64[np.ndarray, "token 2"] = np.array(right_times, np.float64)
        same_start = left_bounds[:, 0] == right_bounds[:, 0]
        in_order = (left_bounds[:, 0] < right_bounds[:, 0]) | (
            same_start & (left_bounds[:, 1] <= right_bounds[:, 1])
        )
        equal &= in_order
    return int(equal.sum())


def grouped_words(
    tokens: Sequence[int], language: str, decode: Callable[[list[int]], str]
) -> list[Spelled]:
    """Group text tokens into words, with adjacent punctuation.

    Returns each with the indices of its tokens; `language` is a name such as `english`.

    Source: transformers 5.23, tokenization_whisper.py, `_combine_tokens_into_words`.
    """
    words = _characters(tokens, decode)
    if language not in {LANGUAGES[code] for code in WITHOUT_BLANKS}:
        words = join_to_words(words)
    return [word for word in merge_punctuation(words, before=_OPENING) if word[0]]


def _characters(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[Spelled]:
    whole = decode(list(tokens))
    words: list[Spelled] = []
    length = 0
    positions: list[int] = []
    for position in range(len(tokens)):
        positions.append(position)
        text = decode([tokens[k] for k in positions])
        cut = text.find(_CUT_CHARACTER)
        # The replacement character may also be part of the text.
        if cut < 0 or length + cut >= len(whole) or whole[length + cut] == _CUT_CHARACTER:
            words.append((text, tuple(positions)))
            length += len(text)
            positions = []
    return words
