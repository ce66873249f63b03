"""When each word of a window was said, from the decoder's cross-attention by alignment."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float
from corpus_asr.decoding.protocols import AlignJob, AlignResult, TokenTiming
from corpus_asr.segments import Word
from corpus_asr.text.words import (
    SENTENCE_ENDS,
    WITHOUT_BLANKS,
    Spelled,
    ends_sentence,
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

    A word begins with a blank, or is punctuation; in languages written without blanks it is the
    shortest run of tokens that spells whole characters.

    Source: openai-whisper `Tokenizer.split_to_word_tokens`. Differs where bytes are no UTF-8: there
    it loses tokens, or stops with an error.
    """
    pieces = split_characters(tokens, text)
    return pieces if language in WITHOUT_BLANKS else join_to_words(pieces)


# A segment ends at a pause longer than this.
_PAUSE_S = 1.5


def sentences(words: Sequence[Word]) -> Iterator[slice]:
    """Cut words at the ends of sentences, at pauses, and before they last longer than a window.

    Of what would last longer, the cut is the longest pause of its second half.
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
    """Return the word up to `last` after the longest pause, half a window or more from `first`."""
    half_s = words[first].start_s + WINDOW_S / 2
    places = [at for at in range(first + 1, last + 1) if words[at].start_s >= half_s] or [last]
    return max(places, key=lambda at: (words[at].start_s - words[at - 1].end_s, at))


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
    the edge of a segment: here each segment keeps its text, and its words lie within it.
    """
    tokens = [token for draft in drafts for token in draft.tokens]
    if not tokens:
        return list(drafts)
    prompt = alignment.prompt
    read = (*prompt, *tokens, alignment.end)[: alignment.room]
    assert len(read) >= len(prompt) + len(tokens), "what was decoded fits the decoder"
    first = len(prompt) - 1  # where the first text token is foretold
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
    words: list[list[_Timed]] = []
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
    """Where the last word ends, or the last draft if none has words; None without drafts."""
    without_words = drafts[-1].end_s if drafts else None
    return next((draft.words[-1].end_s for draft in reversed(drafts) if draft.words), without_words)


def _timed(
    spelled: Sequence[Spelled],
    times_s: Sequence[float],
    probabilities: Float[np.ndarray, " token"],
) -> Iterator[_Timed]:
    edges = np.cumsum([0] + [len(tokens) for _, tokens in spelled]).tolist()
    for (text, _), (first, stop) in zip(spelled, pairwise(edges), strict=True):
        mean = float(np.mean(probabilities[first:stop]))
        yield _Timed(text, times_s[first], times_s[stop], mean)


def _shorten_at_sentence_ends(words: Sequence[_Timed], longest_s: float) -> None:
    # Alignment gives a pause between sentences to the mark before it or the word after it.
    for previous, word in pairwise(words):
        if word.end_s - word.start_s > longest_s:
            if word.text in SENTENCE_ENDS:
                word.end_s = word.start_s + longest_s
            elif previous.text in SENTENCE_ENDS:
                word.start_s = word.end_s - longest_s


def _settle(
    draft: DraftSegment,
    words: Sequence[_Timed],
    begin_s: float,
    last_speech_s: float,
    usual_s: float,
) -> DraftSegment:
    # The times of the segment and of its first and last word are made to agree.
    merged = merge_punctuation([(word.text, ()) for word in words])
    for word, (text, _) in zip(words, merged, strict=True):
        word.text = text
        # To 10 ms, as openai-whisper rounds: edges are compared with the rounded times.
        word.start_s = round(begin_s + word.start_s, 2)
        word.end_s = round(begin_s + word.end_s, 2)
    # Marks that were merged into a word have left an empty text.
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
    words: Sequence[_Timed], audio_start_s: float, last_speech_s: float, usual_s: float
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
    first.start_s = max(audio_start_s, first.end_s - longest_s)
