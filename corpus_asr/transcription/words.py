"""When each word of a window was said, from the decoder's cross-attention by alignment."""

import string
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import AlignJob, AlignResult
from corpus_asr.segments import Word
from corpus_asr.transcription.windows import Window
from corpus_asr.units import FRAMES_PER_SECOND

# Steps of a path, as the trace keeps them.
_BOTH, _TEXT, _TIME = 0, 1, 2

# Values filtered at once: their working copies stay within a core's cache.
_BLOCK = 1 << 16


def median_filter(
    weights: Float[np.ndarray, "*rows pos"], width: int
) -> Float[np.ndarray, "*rows pos"]:
    """Replace every value by the median of the `width` values around it along the last axis.

    The ends are reflected, without their outermost value. A last axis too short to reflect (at
    most half the width) comes back as it is. NaN counts as larger than any number.

    Source: openai-whisper `timing.py`, `median_filter`.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"filtering weights by a median: found width {width}, expected an odd one")
    half = width // 2
    length = weights.shape[-1]
    if length <= half or half == 0:
        return weights
    rows = weights.reshape(-1, length)
    filtered = np.empty_like(rows)
    per_block = max(1, _BLOCK // length)
    for first in range(0, len(rows), per_block):
        block = np.pad(rows[first : first + per_block], ((0, 0), (half, half)), mode="reflect")
        filtered[first : first + per_block] = _medians(block, width, length)
    return filtered.reshape(weights.shape)


def _medians(padded: Float[np.ndarray, "row _"], width: int, length: int) -> np.ndarray:
    """Take the median of `width` neighbors by selection: few passes, each over whole rows.

    Sorting every window of 7 takes five times as long.
    """
    neighbors = [padded[:, at : at + length].copy() for at in range(width)]
    for rank in range(width // 2 + 1):
        smallest = neighbors[rank]
        for other in neighbors[rank + 1 :]:
            larger = np.maximum(smallest, other)
            np.fmin(smallest, other, out=smallest)
            other[...] = larger
    return neighbors[width // 2]


def dynamic_time_warping(
    cost: Float[np.ndarray, "token pos"],
) -> tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]:
    """Find the cheapest way from the first to the last corner, moving on by one in either or both.

    Where ways cost the same, the one that moves along `pos` is taken. Sums are kept in float32,
    as in the references, so that the path is theirs even where the sums are close.

    Returns the token indices and the position indices along the way, both from 0.

    Source: Sakoe and Chiba 1978; equal to `_dynamic_time_warping` in transformers'
    generation_whisper.py and `dtw_cpu` in openai-whisper's timing.py, which go cell by cell.
    Here a whole anti-diagonal is done at a time: its cells do not depend on one another.
    """
    if cost.size == 0:
        raise ValueError(
            f"aligning tokens and positions: found a matrix of shape {cost.shape}, expected at "
            "least one of each"
        )
    return _backtrace(_trace(np.ascontiguousarray(cost, dtype=np.float64)))


def _trace(cost: Float[np.ndarray, "token pos"]) -> Int[np.ndarray, "_ _"]:
    """Tell for every cell (1-based) by which step the cheapest way reaches it."""
    tokens, positions = cost.shape
    trace = np.full((tokens + 1, positions + 1), _TIME, dtype=np.int8)
    trace[1:, 0] = _TEXT
    costs, steps = cost.reshape(-1), trace.reshape(-1)
    # Sums along the last two anti-diagonals and this one, by token; outside the matrix infinite.
    before, last, now = (np.full(tokens + 1, np.inf, dtype=np.float32) for _ in range(3))
    before[0] = 0.0
    for diagonal in range(2, tokens + positions + 1):  # token + position, both from 1
        low, high = max(1, diagonal - positions), min(tokens, diagonal - 1)
        both, text, time = before[low - 1 : high], last[low - 1 : high], last[low : high + 1]
        by_both = (both < text) & (both < time)
        by_text = (text < both) & (text < time)
        best = np.where(by_both, both, np.where(by_text, text, time))
        first = (low - 1) * positions + diagonal - low - 1
        here = costs[first :: max(1, positions - 1)][: high - low + 1]
        now[low : high + 1] = here + best
        cells = steps[low * positions + diagonal :: positions][: high - low + 1]
        cells[by_both] = _BOTH
        cells[by_text] = _TEXT
        before, last, now = last, now, before
        now[0] = np.inf
    return trace


def _backtrace(trace: Int[np.ndarray, "_ _"]) -> tuple[np.ndarray, np.ndarray]:
    steps = trace.tolist()
    token, position = len(steps) - 1, len(steps[0]) - 1
    tokens, positions = [], []
    while token > 0 or position > 0:
        tokens.append(token - 1)
        positions.append(position - 1)
        step = steps[token][position]
        token -= step != _TIME
        position -= step != _TEXT
    return np.array(tokens[::-1]), np.array(positions[::-1])


# Source: openai-whisper, the defaults of `add_word_timestamps`.
BEFORE_A_WORD = "\"'“¿([{-"
AFTER_A_WORD = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
SENTENCE_ENDS = ".。!！?？"  # noqa: RUF001

# Written without blanks between words: every character counts as a word.
_WITHOUT_BLANKS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

_BROKEN = "\ufffd"  # what bytes that are no whole character decode to

Spelled = tuple[str, tuple[int, ...]]
"""A piece of text and the tokens that spell it."""


def split_words(
    tokens: Sequence[int], text: Callable[[Sequence[int]], str], language: str | None
) -> list[Spelled]:
    """Split text tokens into words.

    A word begins with a blank, or is punctuation; in languages written without blanks it is the
    shortest run of tokens that spells whole characters.

    Source: openai-whisper `Tokenizer.split_to_word_tokens`. Differs where bytes are no UTF-8: there
    it loses tokens, or stops with an error.
    """
    pieces = _split_characters(tokens, text)
    return pieces if language in _WITHOUT_BLANKS else _join_to_words(pieces)


def merge_punctuation(words: Sequence[str]) -> list[str]:
    """Move marks to the words they are written beside; where they stood is an empty text.

    Source: openai-whisper `merge_punctuations`.
    """
    merged = list(words)
    host = len(merged) - 1
    for at in range(len(merged) - 2, -1, -1):
        if merged[at].startswith(" ") and merged[at].strip() in BEFORE_A_WORD:
            merged[host] = merged[at] + merged[host]
            merged[at] = ""
        else:
            host = at
    host = 0
    for at in range(1, len(merged)):
        if not merged[host].endswith(" ") and merged[at] in AFTER_A_WORD:
            merged[host] += merged[at]
            merged[at] = ""
        else:
            host = at
    return merged


def _split_characters(tokens: Sequence[int], text: Callable[[Sequence[int]], str]) -> list[Spelled]:
    # Cut wherever the tokens before and after decode by themselves as they do together.
    rest = text(tokens)
    pieces: list[Spelled] = []
    first = 0
    for stop in range(1, len(tokens) + 1):
        own = text(tokens[first:stop])
        if not rest.startswith(own):
            continue
        # The bytes may go on: those of a whole character, or of another broken one.
        if own.endswith(_BROKEN) and text(tokens[stop:]) != rest[len(own) :]:
            continue
        pieces.append((own, tuple(tokens[first:stop])))
        rest = rest[len(own) :]
        first = stop
    return pieces


def _join_to_words(pieces: Sequence[Spelled]) -> list[Spelled]:
    words: list[Spelled] = []
    for text, tokens in pieces:
        punctuation = text.strip() in string.punctuation
        if text.startswith(" ") or punctuation or not words:
            words.append((text, tokens))
        else:
            before, earlier = words[-1]
            words[-1] = (before + text, earlier + tokens)
    return words


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentSpec:
    """What a checkpoint reads around text in one language, and by what its words are timed."""

    prompt: tuple[int, ...]
    """Before the text."""
    end: int
    """The token after it."""
    room: int
    """Tokens that the decoder holds."""
    heads: tuple[tuple[int, int], ...]
    """Decoder layers and heads whose cross-attention follows the words in time."""
    filter_width: int
    """Positions of the median filter over that cross-attention."""
    frames_per_position: int
    """Feature frames that one position of the encoder stands for."""
    choices: int | None
    """Words' probabilities are among the ids below this; None for the whole vocabulary."""
    spell: Callable[[Sequence[int]], list[Spelled]]
    """Text tokens to words with their tokens, nothing lost."""


def upper_half(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Return all heads of the upper half of the decoder's layers, where none are known to follow.

    Source: openai-whisper's `Whisper.alignment_heads`.
    """
    return tuple((at, head) for at in range(layers // 2, layers) for head in range(heads))


# The median length of a window's words counts as at most this much. Source: openai-whisper.
_LONGEST_USUAL_WORD_S = 0.7
# A segment's own time is believed where a word at its edge goes further beyond it than this.
_SEGMENT_EDGE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSegment:
    """Text tokens between two times of the recording: a segment on its way."""

    tokens: tuple[int, ...]
    """Of text alone; may be empty."""
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()


@dataclass(slots=True)
class _Timed:
    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class _Audio:
    # In recording time; no word lies outside.
    start_s: float
    end_s: float


def time_words(
    drafts: Sequence[DraftSegment],
    window: Window,
    *,
    start_s: float,
    last_speech_s: float,
    alignment: AlignmentSpec,
) -> Generator[AlignJob, AlignResult, list[DraftSegment]]:
    """Split the segments of one window into words with times, and set their own times by them.

    All times are of the recording. `drafts` are all of the window's, `last_speech_s` is where the
    last word before it ended, 0.0 if there was none; `last_word_end` of the result is the next.
    Nothing is asked for when the window says nothing.

    Source: openai-whisper `timing.py`, `add_word_timestamps`. Differs where a word would reach over
    the edge of a segment: here each segment keeps its text; and where one would be stretched beyond
    the window's audio, which a clip may have before and after it.
    """
    tokens = [token for draft in drafts for token in draft.tokens]
    if not tokens:
        return list(drafts)
    prompt = alignment.prompt
    read = (*prompt, *tokens, alignment.end)[: alignment.room]
    assert len(read) >= len(prompt) + len(tokens), "what was decoded fits the decoder"
    result = yield AlignJob(
        features=window.features,
        window=window.name,
        tokens=read,
        heads=alignment.heads,
        choices=alignment.choices,
        num_frames=window.num_frames,
    )

    first = len(prompt) - 1  # where the first text token is foretold
    times_s = _token_times(
        result.weights,
        rows=slice(first, first + len(tokens) + 1),
        frames=window.content_frames,
        alignment=alignment,
    )
    probabilities = np.exp(result.logprobs[first : first + len(tokens)])
    at = 0
    words: list[list[_Timed]] = []
    for draft in drafts:
        stop = at + len(draft.tokens)
        spelled = alignment.spell(draft.tokens)
        words.append(list(_timed(spelled, times_s[at : stop + 1], probabilities[at:stop])))
        at = stop
    every_word = [word for own in words for word in own]
    usual_s = _usual_length(every_word)
    if usual_s is not None:
        _shorten_at_sentence_ends(every_word, 2 * usual_s)
    settled = []
    audio = _Audio(start_s, start_s + window.content_frames / FRAMES_PER_SECOND)
    for draft, own in zip(drafts, words, strict=True):
        settled.append(_settle(draft, own, audio, last_speech_s, usual_s or 0.0))
        last_speech_s = settled[-1].end_s if settled[-1].words else last_speech_s
    return settled


def last_word_end(drafts: Sequence[DraftSegment]) -> float | None:
    """Where the last word ends, or the last draft if none has words; None without drafts."""
    without_words = drafts[-1].end_s if drafts else None
    return next((one.words[-1].end_s for one in reversed(drafts) if one.words), without_words)


def _token_times(
    weights: Float[np.ndarray, "head token pos"],
    *,
    rows: slice,
    frames: int,
    alignment: AlignmentSpec,
) -> list[float]:
    """Seconds into the window at which each of some tokens begins.

    Attention to the padding is left out. What counts is where a token is attended to more than
    other tokens are, so each position is normalized over the tokens, prompt included.
    """
    positions = max(1, frames // alignment.frames_per_position)
    weights = weights[:, :, :positions].astype(np.float32)
    weights /= _not_zero(weights.sum(axis=-1, keepdims=True))
    spread = weights.std(axis=-2, keepdims=True)
    weights -= weights.mean(axis=-2, keepdims=True)
    weights /= _not_zero(spread)
    matrix = median_filter(weights, alignment.filter_width).mean(axis=0)[rows]
    tokens, places = dynamic_time_warping(-matrix)
    begins = np.diff(tokens, prepend=-1) > 0
    per_second = FRAMES_PER_SECOND / alignment.frames_per_position
    return [place / per_second for place in places[begins].tolist()]


def _not_zero(divisors: Float[np.ndarray, "*_"]) -> Float[np.ndarray, "*_"]:
    # A sum is 0 only where everything it divides is 0 too, and stays 0.
    return np.where(divisors == 0, np.float32(1), divisors)


def _timed(
    spelled: Sequence[tuple[str, tuple[int, ...]]],
    times_s: Sequence[float],
    probabilities: Float[np.ndarray, " token"],
) -> Iterator[_Timed]:
    edges = np.cumsum([0] + [len(tokens) for _, tokens in spelled]).tolist()
    for (text, _), (first, stop) in zip(spelled, pairwise(edges), strict=True):
        mean = float(np.mean(probabilities[first:stop]))
        yield _Timed(text, times_s[first], times_s[stop], mean)


def _usual_length(words: Sequence[_Timed]) -> float | None:
    lengths = [word.end_s - word.start_s for word in words if word.end_s != word.start_s]
    return min(_LONGEST_USUAL_WORD_S, float(np.median(lengths))) if lengths else None


def _shorten_at_sentence_ends(words: Sequence[_Timed], longest_s: float) -> None:
    # Alignment gives a pause between sentences to the mark before it or the word after it.
    for before, word in pairwise(words):
        if word.end_s - word.start_s > longest_s:
            if word.text in SENTENCE_ENDS:
                word.end_s = word.start_s + longest_s
            elif before.text in SENTENCE_ENDS:
                word.start_s = word.end_s - longest_s


def _settle(
    draft: DraftSegment,
    words: Sequence[_Timed],
    audio: _Audio,
    last_speech_s: float,
    usual_s: float,
) -> DraftSegment:
    # The times of the segment and of its first and last word are made to agree.
    for word, text in zip(words, merge_punctuation([word.text for word in words]), strict=True):
        word.text = text
        # To 10 ms, as openai-whisper rounds: edges are compared with the rounded times.
        word.start_s = round(audio.start_s + word.start_s, 2)
        word.end_s = round(audio.start_s + word.end_s, 2)
    # Marks that were merged into a word have left an empty text.
    words = [word for word in words if word.text]
    if not words:
        return draft
    _shorten_after_a_pause(words, audio, last_speech_s, usual_s)
    first, last = words[0], words[-1]
    start_s, end_s = first.start_s, last.end_s
    if draft.start_s < first.end_s and draft.start_s - _SEGMENT_EDGE_S > first.start_s:
        start_s = draft.start_s
        first.start_s = max(audio.start_s, min(first.end_s - usual_s, start_s))
    if draft.end_s > last.start_s and draft.end_s + _SEGMENT_EDGE_S < last.end_s:
        end_s = draft.end_s
        last.end_s = min(audio.end_s, max(last.start_s + usual_s, end_s))
    return replace(
        draft,
        start_s=start_s,
        end_s=end_s,
        words=tuple(
            Word(word=w.text, start_s=w.start_s, end_s=w.end_s, probability=w.probability)
            for w in words
        ),
    )


def _shorten_after_a_pause(
    words: Sequence[_Timed], audio: _Audio, last_speech_s: float, usual_s: float
) -> None:
    longest_s = 2 * usual_s
    first = words[0]
    second = words[1] if len(words) > 1 else None
    if first.end_s - last_speech_s <= 4 * usual_s:
        return
    both_long = second is not None and second.end_s - first.start_s > 2 * longest_s
    if first.end_s - first.start_s <= longest_s and not both_long:
        return
    if second is not None and second.end_s - second.start_s > longest_s:
        # Half the time is openai-whisper's; it matters only in a recording's first seconds.
        first.end_s = second.start_s = max(second.end_s / 2, second.end_s - longest_s)
    first.start_s = max(audio.start_s, first.end_s - longest_s)
