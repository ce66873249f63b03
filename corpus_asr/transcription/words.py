"""Word timestamps of a window, by dynamic time warping of the decoder's cross-attention."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float
from corpus_asr.decoding.jobs import AlignJob, AlignResult, TokenTiming
from corpus_asr.segments import Word
from corpus_asr.text.line_breaks import dictionary_breaks
from corpus_asr.text.words import (
    SENTENCE_ENDS,
    WITHOUT_BLANKS,
    Spelled,
    ends_sentence,
    join_between,
    join_to_words,
    merge_punctuation,
    split_characters,
)
from corpus_asr.transcription.windows import Window
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_S


def split_words(
    tokens: Sequence[int], text: Callable[[Sequence[int]], str], language: str | None
) -> list[Spelled]:
    """Split text tokens into words.

    A word starts with a space or is punctuation; in Thai, Lao, Khmer and Burmese it is one of ICU's
    dictionaries, if installed. In other languages without spaces it is the shortest run of tokens
    that spells whole characters.

    Source: openai-whisper `Tokenizer.split_to_word_tokens`. Differs for ICU's words, and for
    invalid UTF-8, where the original loses tokens or raises an error.
    """
    pieces = split_characters(tokens, text)
    breaks = dictionary_breaks("".join(spelling for spelling, _ in pieces), language)
    if breaks is not None:
        return join_between(pieces, breaks)
    return pieces if language in WITHOUT_BLANKS else join_to_words(pieces)


# Pauses longer than this end a segment.
_PAUSE_S = 1.5


def sentences(words: Sequence[Word]) -> Iterator[slice]:
    """Split words at sentence ends, at pauses, and before a segment exceeds one window.

    A segment that would exceed it is cut at the longest pause of its second half.
    """
    first = 0
    for at in range(1, len(words)):
        previous, word = words[at - 1], words[at]
        stop = first
        if ends_sentence(previous.word, word.word) or word.start_s - previous.end_s > _PAUSE_S:
            stop = at
        elif word.end_s - words[first].start_s > WINDOW_S:
            stop = _longest_pause(words, first, at)
        if stop > first:
            yield slice(first, stop)
            first = stop
    if words:
        yield slice(first, len(words))


def _longest_pause(words: Sequence[Word], first: int, last: int) -> int:
    """Return the index up to `last` after the longest pause, half a window or more from `first`."""
    half_s = words[first].start_s + WINDOW_S / 2
    places = [at for at in range(first + 1, last + 1) if words[at].start_s >= half_s] or [last]
    return max(places, key=lambda at: (words[at].start_s - words[at - 1].end_s, at))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentSpec:
    """Decoder input around a text in one language, and the attention heads that time its words."""

    prompt: tuple[int, ...]
    """Tokens before the text."""
    end: int
    """Token after the text."""
    room: int
    """Maximum number of tokens of the decoder."""
    heads: tuple[tuple[int, int], ...]
    """Decoder layers and heads whose cross-attention follows the audio in time."""
    filter_width: int
    """Width of the median filter over that cross-attention, in positions."""
    frames_per_position: int
    """Feature frames per encoder position."""
    choices: int | None
    """Probabilities are normalized over the IDs below this; None for the whole vocabulary."""
    spell: Callable[[Sequence[int]], list[Spelled]]
    """Splits text tokens into words with their tokens, lossless."""


def upper_half(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Return all heads of the decoder's upper half, for checkpoints without known alignment heads.

    Source: openai-whisper's `Whisper.alignment_heads`.
    """
    return tuple((at, head) for at in range(layers // 2, layers) for head in range(heads))


# Upper limit of the median word duration of a window. Source: openai-whisper.
_LONGEST_USUAL_WORD_S = 0.7
# The segment's own time is used where an edge word deviates from it by more than this.
_SEGMENT_EDGE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSegment:
    """Text tokens between two times of the recording: an unfinished segment."""

    tokens: tuple[int, ...]
    """Text tokens only; may be empty."""
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()


@dataclass(slots=True)
class _TimedWord:
    text: str
    start_s: float
    end_s: float
    probability: float


def time_words(
    drafts: Sequence[DraftSegment],
    window: Window,
    *,
    start_s: float,
    last_speech_s: float,
    alignment: AlignmentSpec,
) -> Generator[AlignJob, AlignResult, list[DraftSegment]]:
    """Split the segments of one window into timed words, and set segment times from them.

    All times are seconds of the recording. `drafts` are all segments of the window; `last_speech_s`
    is the end of the last word before it, 0.0 if none (`last_word_end` of the previous result). No
    job is yielded for a window without text.

    Source: openai-whisper `timing.py`, `add_word_timestamps`. Differs where a word would cross a
    segment's edge: each segment keeps its text, and its words lie within it.
    """
    tokens = [token for draft in drafts for token in draft.tokens]
    if not tokens:
        return list(drafts)
    prompt = alignment.prompt
    read = (*prompt, *tokens, alignment.end)[: alignment.room]
    assert len(read) >= len(prompt) + len(tokens), "what was decoded fits the decoder"
    first = len(prompt) - 1  # position that predicts the first text token
    result = yield AlignJob(
        features=window.features,
        window=window.name,
        tokens=read,
        heads=alignment.heads,
        choices=alignment.choices,
        num_frames=window.num_frames,
        timing=TokenTiming(
            first=first,
            count=len(tokens) + 1,
            positions=max(1, window.content_frames // alignment.frames_per_position),
            filter_width=alignment.filter_width,
        ),
    )
    per_second = FRAMES_PER_SECOND / alignment.frames_per_position
    times_s = [position / per_second for position in result.begins]
    probabilities = np.exp(result.logprobs[first : first + len(tokens)])
    at = 0
    words: list[list[_TimedWord]] = []
    for draft in drafts:
        stop = at + len(draft.tokens)
        spelled = alignment.spell(draft.tokens)
        words.append(list(_timed(spelled, times_s[at : stop + 1], probabilities[at:stop])))
        at = stop
    every_word = [word for draft_words in words for word in draft_words]
    lengths_s = [word.end_s - word.start_s for word in every_word if word.end_s != word.start_s]
    usual_s = min(_LONGEST_USUAL_WORD_S, float(np.median(lengths_s))) if lengths_s else 0.0
    if lengths_s:
        _shorten_at_sentence_ends(every_word, 2 * usual_s)
    settled = []
    for draft, draft_words in zip(drafts, words, strict=True):
        settled.append(_settle(draft, draft_words, start_s, last_speech_s, usual_s))
        last_speech_s = settled[-1].end_s if settled[-1].words else last_speech_s
    return settled


def last_word_end(drafts: Sequence[DraftSegment]) -> float | None:
    """Return the end of the last word, or of the last draft without words; None without drafts."""
    without_words = drafts[-1].end_s if drafts else None
    return next((draft.words[-1].end_s for draft in reversed(drafts) if draft.words), without_words)


def _timed(
    spelled: Sequence[Spelled],
    times_s: Sequence[float],
    probabilities: Float[np.ndarray, " token"],
) -> Iterator[_TimedWord]:
    edges = np.cumsum([0] + [len(tokens) for _, tokens in spelled]).tolist()
    for (text, _), (first, stop) in zip(spelled, pairwise(edges), strict=True):
        mean = float(np.mean(probabilities[first:stop]))
        yield _TimedWord(text, times_s[first], times_s[stop], mean)


def _shorten_at_sentence_ends(words: Sequence[_TimedWord], longest_s: float) -> None:
    # Alignment assigns a pause between sentences to the adjacent punctuation or word.
    for previous, word in pairwise(words):
        if word.end_s - word.start_s > longest_s:
            if word.text in SENTENCE_ENDS:
                word.end_s = word.start_s + longest_s
            elif previous.text in SENTENCE_ENDS:
                word.start_s = word.end_s - longest_s


def _settle(
    draft: DraftSegment,
    words: Sequence[_TimedWord],
    begin_s: float,
    last_speech_s: float,
    usual_s: float,
) -> DraftSegment:
    # Reconcile the segment's times with those of its first and last word.
    merged = merge_punctuation([(word.text, ()) for word in words])
    for word, (text, _) in zip(words, merged, strict=True):
        word.text = text
        # Round to 10 ms as openai-whisper does: edges are compared with the rounded times.
        word.start_s = round(begin_s + word.start_s, 2)
        word.end_s = round(begin_s + word.end_s, 2)
    # Punctuation merged into a word leaves an empty text.
    words = [word for word in words if word.text]
    if not words:
        return draft
    _shorten_after_a_pause(words, begin_s, last_speech_s, usual_s)
    first, last = words[0], words[-1]
    start_s, end_s = first.start_s, last.end_s
    if draft.start_s < first.end_s and draft.start_s - _SEGMENT_EDGE_S > first.start_s:
        start_s = first.start_s = draft.start_s
    if draft.end_s > last.start_s and draft.end_s + _SEGMENT_EDGE_S < last.end_s:
        end_s = last.end_s = draft.end_s
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
    words: Sequence[_TimedWord], audio_start_s: float, last_speech_s: float, usual_s: float
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
        # openai-whisper halves the time; relevant only in a recording's first seconds.
        first.end_s = second.start_s = max(second.end_s / 2, second.end_s - longest_s)
    first.start_s = max(audio_start_s, first.end_s - longest_s)
