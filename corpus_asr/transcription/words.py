"""When each word of a window was said.

In: the text tokens of a window's segments, and how the decoder's cross-attention lay while it read
them. Out: the same segments, word by word, with their times set by the words. Written as a
generator that yields one `AlignJob`; the seek loop runs it after it has decoded a window.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from corpus_asr.decoding.protocols import AlignJob, AlignResult
from corpus_asr.segments import Word
from corpus_asr.transcription.dtw import dynamic_time_warping, median_filter
from corpus_asr.transcription.punctuation import SENTENCE_ENDS, merge_punctuation
from corpus_asr.transcription.reading import Reading
from corpus_asr.units import FRAMES_PER_SECOND

# The median length of a window's words counts as at most this much. Source: openai-whisper.
_LONGEST_USUAL_WORD_S = 0.7
# A segment's own time is believed where a word at its edge goes further beyond it than this.
_EDGE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Text tokens between two times of the recording: a segment on its way."""

    tokens: tuple[int, ...]
    """Of text alone; may be empty."""
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()


@dataclass(slots=True)
class _Timed:
    """A word while its times are still being set."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class _Audio:
    """What is heard in a window, in recording time; no word lies outside."""

    start_s: float
    end_s: float


def time_words(
    stretches: Sequence[Stretch],
    *,
    features: Float[np.ndarray, "mel frame"],
    num_frames: int | None = None,
    window: tuple[int, ...],
    window_start_s: float,
    content_frames: int,
    last_speech_s: float,
    reading: Reading,
) -> Generator[AlignJob, AlignResult, list[Stretch]]:
    """Split the segments of one window into words with times, and set their own times by them.

    Nothing is asked for when the window says nothing.

    Args:
        stretches: the window's segments in order, in recording time, before any is dropped.
        features: the window, as it was decoded.
        num_frames: those that were heard; None for all.
        window: its name in the `WindowJob`; the same one spares encoding it again.
        window_start_s: where the window starts, in recording time.
        content_frames: frames of audio in the window, padding left out.
        last_speech_s: where the last word before this window ended; 0.0 if there was none.
        reading: how the checkpoint reads text of this language and task.

    Returns:
        The segments with their words; `last_word_end` of them is the next `last_speech_s`.

    Source: openai-whisper `timing.py`, `add_word_timestamps`. Differs where a word would reach over
    the edge of a segment: here each segment keeps its text; and where one would be stretched beyond
    the window's audio, which a clip may have before and after it.
    """
    tokens = [token for stretch in stretches for token in stretch.tokens]
    if not tokens:
        return list(stretches)
    prompt = reading.prompt
    read = (*prompt, *tokens, reading.end)[: reading.room]
    assert len(read) >= len(prompt) + len(tokens), "what was decoded fits the decoder"
    result = yield AlignJob(
        features=features,
        window=window,
        tokens=read,
        heads=reading.heads,
        choices=reading.choices,
        num_frames=num_frames,
    )

    first = len(prompt) - 1  # where the first text token is foretold
    times_s = _token_times(
        result.weights,
        rows=slice(first, first + len(tokens) + 1),
        frames=content_frames,
        reading=reading,
    )
    probabilities = np.exp(result.logprobs[first : first + len(tokens)])
    at = 0
    words: list[list[_Timed]] = []
    for stretch in stretches:
        stop = at + len(stretch.tokens)
        spelled = reading.spell(stretch.tokens)
        words.append(list(_timed(spelled, times_s[at : stop + 1], probabilities[at:stop])))
        at = stop
    usual_s = _usual_length([word for own in words for word in own])
    if usual_s is not None:
        _shorten_at_sentence_ends([word for own in words for word in own], 2 * usual_s)
    settled = []
    audio = _Audio(window_start_s, window_start_s + content_frames / FRAMES_PER_SECOND)
    for stretch, own in zip(stretches, words, strict=True):
        settled.append(_settle(stretch, own, audio, last_speech_s, usual_s or 0.0))
        last_speech_s = settled[-1].end_s if settled[-1].words else last_speech_s
    return settled


def last_word_end(stretches: Sequence[Stretch]) -> float | None:
    """Where the last word ends, in recording time; without words, where the last stretch does.

    None without stretches.
    """
    without_words = stretches[-1].end_s if stretches else None
    return next((one.words[-1].end_s for one in reversed(stretches) if one.words), without_words)


def _token_times(
    weights: Float[np.ndarray, "head token pos"], *, rows: slice, frames: int, reading: Reading
) -> list[float]:
    """Seconds into the window at which each of some tokens begins.

    Attention to the padding is left out. What counts is where a token is attended to more than
    other tokens are, so each position is normalised over the tokens, prompt included.
    """
    positions = max(1, frames // reading.frames_per_position)
    weights = weights[:, :, :positions].astype(np.float32)
    weights /= _not_zero(weights.sum(axis=-1, keepdims=True))
    spread = weights.std(axis=-2, keepdims=True)
    weights -= weights.mean(axis=-2, keepdims=True)
    weights /= _not_zero(spread)
    matrix = median_filter(weights, reading.filter_width).mean(axis=0)[rows]
    tokens, places = dynamic_time_warping(-matrix)
    begins = np.diff(tokens, prepend=-1) > 0
    per_second = FRAMES_PER_SECOND / reading.frames_per_position
    return [place / per_second for place in places[begins].tolist()]


def _not_zero(divisors: Float[np.ndarray, "*_"]) -> Float[np.ndarray, "*_"]:
    """Zero only where everything to be divided is zero too, and stays so."""
    return np.where(divisors == 0, np.float32(1), divisors)


def _timed(
    spelled: Sequence[tuple[str, tuple[int, ...]]],
    times_s: Sequence[float],
    probabilities: Float[np.ndarray, " token"],
) -> Iterator[_Timed]:
    """Give each word the time from its first token to the one after its last."""
    edges = np.cumsum([0] + [len(tokens) for _, tokens in spelled]).tolist()
    for (text, _), (first, stop) in zip(spelled, pairwise(edges), strict=True):
        mean = float(np.mean(probabilities[first:stop]))
        yield _Timed(text, times_s[first], times_s[stop], mean)


def _usual_length(words: Sequence[_Timed]) -> float | None:
    """The median length of words that take any time, within reason; None if none does."""
    lengths = [word.end_s - word.start_s for word in words if word.end_s != word.start_s]
    return min(_LONGEST_USUAL_WORD_S, float(np.median(lengths))) if lengths else None


def _shorten_at_sentence_ends(words: Sequence[_Timed], longest_s: float) -> None:
    """Take a pause between sentences from the marks and words that it was given to."""
    for before, word in pairwise(words):
        if word.end_s - word.start_s > longest_s:
            if word.text in SENTENCE_ENDS:
                word.end_s = word.start_s + longest_s
            elif before.text in SENTENCE_ENDS:
                word.start_s = word.end_s - longest_s


def _settle(
    stretch: Stretch,
    words: Sequence[_Timed],
    audio: _Audio,
    last_speech_s: float,
    usual_s: float,
) -> Stretch:
    """Merge marks into words, and agree on the segment's times between it and its words."""
    for word, text in zip(words, merge_punctuation([word.text for word in words]), strict=True):
        word.text = text
        word.start_s = round(audio.start_s + word.start_s, 2)
        word.end_s = round(audio.start_s + word.end_s, 2)
    words = [word for word in words if word.text]
    if not words:
        return stretch
    _shorten_after_a_pause(words, audio, last_speech_s, usual_s)
    first, last = words[0], words[-1]
    start_s, end_s = first.start_s, last.end_s
    if stretch.start_s < first.end_s and stretch.start_s - _EDGE_S > first.start_s:
        start_s = stretch.start_s
        first.start_s = max(audio.start_s, min(first.end_s - usual_s, start_s))
    if stretch.end_s > last.start_s and stretch.end_s + _EDGE_S < last.end_s:
        end_s = stretch.end_s
        last.end_s = min(audio.end_s, max(last.start_s + usual_s, end_s))
    return replace(
        stretch,
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
    """Take a pause before the segment from its first and second word."""
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
