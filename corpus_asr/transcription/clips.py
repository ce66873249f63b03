"""Which stretches of a part are asked for.

In: a part and clips in seconds of the recording. Out: frame ranges of the part, in order. Knows
nothing of windows or text.
"""

from collections.abc import Sequence
from itertools import pairwise

from corpus_asr.transcription.windows import PartRequest


def clip_ranges(part: PartRequest, clip_timestamps: Sequence[float]) -> list[tuple[int, int]]:
    """Cut the clips at the part's edges; without clips the part is all one range.

    Args:
        part: of any recording.
        clip_timestamps: start, end, start, end ... in seconds of the recording, ascending; without
            a last end the last clip goes on to the end.

    Source: openai-whisper `transcribe`, `clip_timestamps`.
    """
    edges = list(clip_timestamps) or [0.0]
    frames = [part.frame(edge_s) for edge_s in edges]
    if len(frames) % 2:
        frames.append(part.num_frames)
    return [(start, end) for start, end in list(pairwise(frames))[::2] if end > start]


def holds_the_beginning(part: PartRequest, clip_timestamps: Sequence[float]) -> bool:
    """Whether the first moment that is asked for lies in this part."""
    first_s = clip_timestamps[0] if clip_timestamps else 0.0
    return part.start_s <= first_s < part.end_s
