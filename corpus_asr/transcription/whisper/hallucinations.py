"""Words over silence that look invented: which to leave out, and where to listen again.

In: a window's segments with their words. Out: those to keep, and where to go on. Knows no model.

Source: openai-whisper `transcribe`, `hallucination_silence_threshold`; its numbers throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus_asr.segments import Word
from corpus_asr.transcription.punctuation import AFTER_A_WORD, BEFORE_A_WORD
from corpus_asr.transcription.words import Stretch, last_word_end
from corpus_asr.units import WINDOW_S

_PUNCTUATION = BEFORE_A_WORD + AFTER_A_WORD
_IMPROBABLE = 0.15
_SHORT_S = 0.133
_LONG_S = 2.0
_WORDS_LOOKED_AT = 8
_ANOMALOUS_SCORE = 3.0
# This near to a window's edge there need be no silence for a word to be invented.
_EDGE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a window lies, in recording time."""

    start_s: float
    content_end_s: float
    """Where its audio ends; the window itself may reach further."""
    audio_end_s: float
    """Where the part ends."""
    closed: bool
    """Whether the text ended with a timestamp and nothing after it."""

    @property
    def end_s(self) -> float:
        """Where the window ends, padding included."""
        return self.start_s + WINDOW_S


def without_hallucinations(
    stretches: Sequence[Stretch], *, place: Place, silence_s: float, last_speech_s: float
) -> tuple[list[Stretch] | None, float | None]:
    """Leave out what looks invented and is surrounded by silence.

    Args:
        stretches: the window's segments with their words.
        place: of the window.
        silence_s: the shortest silence that counts.
        last_speech_s: where the last word before this window ended.

    Returns:
        The segments to keep, or None where the whole window is to be heard again from after its
        silent beginning; and the recording time to go on at, None where the text decides that.
    """
    seek_s = None
    end_s = last_word_end(stretches)
    if not place.closed and end_s is not None and end_s > place.start_s:
        seek_s = end_s if place.end_s - end_s > silence_s else place.content_end_s

    first = next((one for one in stretches if one.words), None)
    if first is not None and _is_anomalous(first):
        gap_s = first.start_s - place.start_s
        if gap_s > silence_s:
            return None, place.start_s + gap_s

    for number, one in enumerate(stretches):
        if not one.words:
            continue
        after = next((later for later in stretches[number + 1 :] if later.words), None)
        if _is_anomalous(one) and _is_surrounded(one, after, place, silence_s, last_speech_s):
            seek_s = max(place.start_s + 1.0, one.start_s)
            if place.audio_end_s - one.end_s < silence_s:
                seek_s = place.audio_end_s
            return list(stretches[:number]), seek_s
        last_speech_s = one.end_s
    return list(stretches), seek_s


def _is_surrounded(
    one: Stretch, after: Stretch | None, place: Place, silence_s: float, last_speech_s: float
) -> bool:
    """Whether silence, more of the kind, or the window's edge lies on both sides."""
    before = (
        one.start_s - last_speech_s > silence_s
        or one.start_s < silence_s
        or one.start_s - place.start_s < _EDGE_S
    )
    next_s = place.content_end_s if after is None else after.words[0].start_s
    return before and (
        next_s - one.end_s > silence_s
        or (after is not None and _is_anomalous(after))
        or place.end_s - one.end_s < _EDGE_S
    )


def _is_anomalous(stretch: Stretch) -> bool:
    words = [word for word in stretch.words if word.word not in _PUNCTUATION][:_WORDS_LOOKED_AT]
    score = sum(_anomaly(word) for word in words)
    return score >= _ANOMALOUS_SCORE or score + 0.01 >= len(words)


def _anomaly(word: Word) -> float:
    """Score a word that is improbable, very short or very long."""
    duration_s = word.end_s - word.start_s
    score = 1.0 if word.probability < _IMPROBABLE else 0.0
    if duration_s < _SHORT_S:
        score += (_SHORT_S - duration_s) * 15
    if duration_s > _LONG_S:
        score += duration_s - _LONG_S
    return score
