"""Timestamp tokens: as text, as segment boundaries, and in chunks of a recording."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from corpus_asr.families.tensors import as_lists
from corpus_asr.languages import LANGUAGES, resolve_language
from corpus_asr.text.words import WITHOUT_BLANKS, Spelled, join_to_words, merge_punctuation
from corpus_asr.units import WINDOW_POSITIONS

_WRITTEN = re.compile(r"<\|(\d+\.\d+)\|>")
# Decoded form of incomplete character bytes.
_CUT_CHARACTER = "\ufffd"
# With the inverted exclamation mark, which openai-whisper lacks.
_OPENING = "\"'“¡¿([{-"


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
    language: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    positions: list[int] = field(default_factory=list)


def timed_chunks(
    tokenizer: Any,
    output: Mapping[str, Any],
    *,
    return_timestamps: bool | str | None,
    time_precision: float,
) -> tuple[str, dict[str, Any]]:
    """Split the transcript of a recording at its timestamps.

    `output` has `tokens`, of shape `(1, token)`, and for words `token_timestamps`, the end of each
    token in seconds, of the same shape. Returns the text, and `{"chunks": [...]}` if segments
    (`return_timestamps=True`) or words (`"word"`) are requested; `time_precision` is in seconds
    per timestamp step.

    Source: transformers 5.23, tokenization_whisper.py, `_decode_asr`.
    """
    ids = tokenizer._strip_prompt(as_lists(output["tokens"][0]))
    chunks = _read_chunks(tokenizer, ids, bool(return_timestamps), time_precision)
    texts = [tokenizer.decode([ids[k] for k in chunk.positions]) for chunk in chunks]
    timed: list[dict[str, Any]] = []
    if return_timestamps == "word":
        default = tokenizer.language and LANGUAGES[resolve_language(tokenizer.language)]
        bounds = [0.0, *as_lists(output["token_timestamps"][0])]
        for chunk in chunks:
            language = chunk.language or default or "english"
            tokens = [ids[k] for k in chunk.positions]
            for text, word in grouped_words(tokens, language, tokenizer.decode):
                first, last = chunk.positions[word[0]], chunk.positions[word[-1]]
                span = (round(bounds[first], 2), round(bounds[last + 1], 2))
                timed.append({"text": text, "timestamp": span})
    else:
        for chunk, text in zip(chunks, texts, strict=True):
            timed.append({"timestamp": (chunk.start_s, chunk.end_s), "text": text})
    return "".join(texts), {"chunks": timed} if return_timestamps else {}


def _read_chunks(
    tokenizer: Any, ids: list[int], timestamps: bool, precision_s: float
) -> list[_Chunk]:
    begin, special = tokenizer.timestamp_begin, set(tokenizer.all_special_ids)
    windows = _WindowOffsets(ids, begin, precision_s)
    chunk = _Chunk()
    chunks = [chunk]
    for position, token in enumerate(ids):
        following = None
        if token in special:
            language = LANGUAGES.get(tokenizer.decode([token])[2:-2], chunk.language)
            # Without timestamps only this separates texts of different languages.
            if chunk.language and language != chunk.language and not timestamps:
                following = _Chunk(language)
            chunk.language = language
        elif token >= begin:
            time_s = round((token - begin) * precision_s + windows.before(position), 2)
            if chunk.start_s is None:
                chunk.start_s = time_s
            elif time_s != chunk.start_s:
                chunk.end_s = time_s
                following = _Chunk(chunk.language)
        else:
            chunk.positions.append(position)
        if following:
            chunk = following
            chunks.append(chunk)
    return chunks if chunk.positions else chunks[:-1]


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
