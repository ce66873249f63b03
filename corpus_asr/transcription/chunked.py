"""Speech-aligned ranges of at most one window, all independent of one another.

In: stretches of a part. Out: frame ranges for the seek loop. Cuts lie in silence; where speech goes
on for longer than a window, at the quietest moment of the last seconds that fit.
"""

from collections.abc import Sequence
from itertools import pairwise

from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# How far before a window's end a cut through speech may lie.
_SEARCH_FRAMES = 5 * FRAMES_PER_SECOND


def chunk_ranges(part: PartRequest, clips: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut stretches of a part into ranges; without speech detection they cover all of them.

    Args:
        part: whose speech and loudness decide.
        clips: frame ranges, in order.

    Source: the merging of speech spans is WhisperX's "cut and merge" (Bain et al. 2023, section 3).
    """
    return [chunk for start, end in clips for chunk in _chunks(part, start, end)]


def _chunks(part: PartRequest, first: int, last: int) -> list[tuple[int, int]]:
    if part.speech is None:
        return _split(part, first, last)
    chunks: list[tuple[int, int]] = []
    for span in part.speech:
        start = max(first, part.frame(span.start_s))
        end = min(last, part.frame(span.end_s))
        if end <= start:
            continue
        if chunks and end - chunks[-1][0] <= WINDOW_FRAMES:
            chunks[-1] = (chunks[-1][0], end)
        else:
            chunks.append((start, end))
    return [piece for start, end in chunks for piece in _split(part, start, end)]


def _split(part: PartRequest, start: int, end: int) -> list[tuple[int, int]]:
    """Cut a range until every piece fits a window."""
    edges = [start]
    while end - edges[-1] > WINDOW_FRAMES:
        latest = edges[-1] + WINDOW_FRAMES
        # The mean log-mel of a frame follows its loudness.
        loudness = part.features[latest - _SEARCH_FRAMES : latest].mean(axis=1, dtype="float32")
        edges.append(latest - _SEARCH_FRAMES + int(loudness.argmin()))
    edges.append(end)
    return list(pairwise(edges)) if end > start else []
