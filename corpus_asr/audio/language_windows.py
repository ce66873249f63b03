"""Where in a stretch of audio its language is listened for.

In: detected speech and the stretch's start and end, in seconds of the recording. Out: starts of
windows. Used where features are cut and where they are decoded, so that both mean the same ones.
"""

from collections.abc import Sequence

from corpus_asr.units import LONG_SILENCE_S, WINDOW_S

# One window may hold a jingle, an advertisement or a quotation; with three the language wins that
# is spoken most of the time.
_MOST_WINDOWS = 3
# In a short stretch the first window is most of it.
_S_PER_WINDOW = 90.0


def language_window_starts(
    speech: Sequence[tuple[float, float]] | None, *, start_s: float, end_s: float
) -> list[float]:
    """Spread up to three windows over a stretch, the first one where its decoding starts.

    Args:
        speech: detected speech, in order; None without detection.
        start_s: of the stretch.
        end_s: of the stretch.

    Returns:
        One start at least. All windows but the first lie inside the stretch and do not overlap.
    """
    first_s = _next_speech(speech, start_s)
    starts = [start_s if first_s is None else first_s]
    count = min(_MOST_WINDOWS, 1 + int((end_s - starts[0]) // _S_PER_WINDOW))
    apart_s = (end_s - starts[0]) / count
    for number in range(1, count):
        wanted_s = max(starts[0] + number * apart_s, starts[-1] + WINDOW_S)
        found_s = _next_speech(speech, wanted_s)
        if found_s is None or found_s + WINDOW_S > end_s:
            break
        starts.append(found_s)
    return starts


def _next_speech(speech: Sequence[tuple[float, float]] | None, time_s: float) -> float | None:
    """Where speech comes next: at once if it does so within a short silence; None if none does."""
    if speech is None:
        return time_s
    for span_start_s, span_end_s in speech:
        if span_end_s > time_s:
            return time_s if span_start_s - time_s <= LONG_SILENCE_S else span_start_s
    return None
