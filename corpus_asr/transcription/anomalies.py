"""Segments whose words look like hallucinations and that silence surrounds: Whisper's own rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus_asr.segments import Word
from corpus_asr.text.words import AFTER_A_WORD, BEFORE_A_WORD
from corpus_asr.transcription.words import DraftSegment, last_word_end
from corpus_asr.units import WINDOW_S

_PUNCTUATION = BEFORE_A_WORD + AFTER_A_WORD
# These six are openai-whisper's, of `word_anomaly_score` and what calls it.
_IMPROBABLE = 0.15
_SHORT_S = 0.133
_LONG_S = 2.0
_WORDS_LOOKED_AT = 8
_ANOMALOUS_SCORE = 3.0
# This near to a window's edge there need be no silence for a word to be invented.
_EDGE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTimes:
    """Times that decide whether silence surrounds a segment, in seconds of the recording."""

    start_s: float
    content_end_s: float
    """End of its audio; the window may be longer."""
    audio_end_s: float
    """End of the part."""
    closed: bool
    """Whether the text ended with a timestamp and nothing after it."""
    silence_s: float
    """The shortest silence that counts."""

    @property
    def end_s(self) -> float:
        """Return the end of the window in seconds, padding included."""
        return self.start_s + WINDOW_S


def without_hallucinations(
    drafts: Sequence[DraftSegment], place: WindowTimes, last_speech_s: float
) -> tuple[list[DraftSegment] | None, float | None]:
    """Drop segments that look like hallucinations and are surrounded by silence.

    Returns the drafts to keep, or None if the whole window must be decoded again from after its
    leading silence; and the recording time to continue at, None if the text determines it.

    Source: openai-whisper `transcribe`, `hallucination_silence_threshold`.
    """
    seek_s = None
    end_s = last_word_end(drafts)
    if not place.closed and end_s is not None and end_s > place.start_s:
        seek_s = end_s if place.end_s - end_s > place.silence_s else place.content_end_s

    first = next((draft for draft in drafts if draft.words), None)
    if first is not None and _is_anomalous(first):
        gap_s = first.start_s - place.start_s
        if gap_s > place.silence_s:
            return None, place.start_s + gap_s

    for number, draft in enumerate(drafts):
        if not draft.words:
            continue
        following = next((later for later in drafts[number + 1 :] if later.words), None)
        if _is_anomalous(draft) and _is_surrounded(draft, following, place, last_speech_s):
            # At least one second further, as in openai-whisper, to guarantee progress.
            seek_s = max(place.start_s + 1.0, draft.start_s)
            if place.audio_end_s - draft.end_s < place.silence_s:
                seek_s = place.audio_end_s
            return list(drafts[:number]), seek_s
        last_speech_s = draft.end_s
    return list(drafts), seek_s


def _is_surrounded(
    draft: DraftSegment, after: DraftSegment | None, place: WindowTimes, last_speech_s: float
) -> bool:
    # Silence, another anomalous segment or the window's edge must be on both sides.
    is_bounded_before = (
        draft.start_s - last_speech_s > place.silence_s
        or draft.start_s < place.silence_s
        or draft.start_s - place.start_s < _EDGE_S
    )
    next_s = place.content_end_s if after is None else after.words[0].start_s
    return is_bounded_before and (
        next_s - draft.end_s > place.silence_s
        or (after is not None and _is_anomalous(after))
        or place.end_s - draft.end_s < _EDGE_S
    )


def _is_anomalous(draft: DraftSegment) -> bool:
    words = [word for word in draft.words if word.word not in _PUNCTUATION][:_WORDS_LOOKED_AT]
    score = sum(_anomaly(word) for word in words)
    # With few words, all must be anomalous; 0.01 is for rounding.
    return score >= _ANOMALOUS_SCORE or score + 0.01 >= len(words)


def _anomaly(word: Word) -> float:
    duration_s = word.end_s - word.start_s
    score = 1.0 if word.probability < _IMPROBABLE else 0.0
    if duration_s < _SHORT_S:
        score += (_SHORT_S - duration_s) * 15
    if duration_s > _LONG_S:
        score += duration_s - _LONG_S
    return score
