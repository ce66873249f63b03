"""Speech-aligned ranges of at most one window, all independent of one another.

In: stretches of a part. Out: frame ranges to decode. Cuts lie in silence; where speech goes
on for longer than a window, at the quietest moment of the last seconds that fit.
"""

from collections.abc import Sequence
from itertools import pairwise

from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# How far before a window's end a cut through speech may lie, if that is no third of it.
_SEARCH_FRAMES = 5 * FRAMES_PER_SECOND


def chunk_ranges(
    part: PartRequest,
    clips: Sequence[tuple[int, int]],
    *,
    window_frames: int = WINDOW_FRAMES,
    pause_frames: int = WINDOW_FRAMES,
) -> list[tuple[int, int]]:
    """Cut stretches of a part into ranges; without speech detection they cover all of them.

    Args:
        part: whose speech and loudness decide.
        clips: frame ranges, in order.
        window_frames: the longest range.
        pause_frames: the longest silence within a range.

    Source: the merging of speech spans is WhisperX's "cut and merge" (Bain et al. 2023, section 3).
    """
    merged = [
        chunk
        for first, last in clips
        for chunk in _merged(part, first, last, window_frames, pause_frames)
    ]
    return [piece for start, end in merged for piece in _split(part, start, end, window_frames)]


def _merged(
    part: PartRequest, first: int, last: int, window_frames: int, pause_frames: int
) -> list[tuple[int, int]]:
    """Join stretches of speech while they fit a window; one alone may be longer."""
    if part.speech is None:
        return [(first, last)]
    chunks: list[tuple[int, int]] = []
    for span in part.speech:
        start = max(first, part.frame(span.start_s))
        end = min(last, part.frame(span.end_s))
        if end <= start:
            continue
        before = chunks[-1] if chunks else None
        if before and end - before[0] <= window_frames and start - before[1] <= pause_frames:
            chunks[-1] = (chunks[-1][0], end)
        else:
            chunks.append((start, end))
    return chunks


def _split(part: PartRequest, start: int, end: int, window_frames: int) -> list[tuple[int, int]]:
    """Cut a range until every piece fits a window."""
    edges = [start]
    search_frames = min(_SEARCH_FRAMES, window_frames // 3)
    while end - edges[-1] > window_frames:
        latest = edges[-1] + window_frames
        # The mean log-mel of a frame follows its loudness.
        loudness = part.features[latest - search_frames : latest].mean(axis=1, dtype="float32")
        edges.append(latest - search_frames + int(loudness.argmin()))
    edges.append(end)
    return list(pairwise(edges)) if end > start else []
