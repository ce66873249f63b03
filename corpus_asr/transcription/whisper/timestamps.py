"""From a window's tokens to stretches of text with times, and how far to seek.

In: tokens with timestamp tokens among them. Out: pieces in window time, and the frames to advance.
Knows ids and steps of 20 ms only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus_asr.units import FRAMES_PER_POSITION, FRAMES_PER_SECOND, TIMESTAMP_STEP_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a window's tokens, by position, with times from the window's start."""

    first: int
    stop: int
    start_s: float
    end_s: float


def split_at_timestamps(
    tokens: Sequence[int], *, timestamp_begin: int, content_frames: int, cut_short: bool = False
) -> tuple[list[Piece], int]:
    """Cut a window's tokens where one timestamp follows another.

    Args:
        tokens: what was decoded, end token left out.
        timestamp_begin: the first timestamp token.
        content_frames: frames of audio in the window, padding left out.
        cut_short: whether the text was ended before the model closed it, so that its last
            timestamp tells nothing of its end.

    Returns:
        The pieces, and the frames to advance: to the last timestamp if text follows it unfinished,
        else past the window.

    Source: openai-whisper `transcribe.py`, the part after `decode_with_fallback`.
    """
    is_timestamp = [token >= timestamp_begin for token in tokens]
    cuts = [at for at in range(1, len(tokens)) if is_timestamp[at - 1] and is_timestamp[at]]
    closed = ends_closed(tokens, timestamp_begin=timestamp_begin)
    if not cuts:
        stamps = [] if cut_short else [token for token in tokens if token >= timestamp_begin]
        return [_whole(tokens, stamps, timestamp_begin, content_frames)], content_frames

    if closed:
        cuts.append(len(tokens))
    pieces = []
    for first, stop in zip([0, *cuts], cuts, strict=False):
        pieces.append(
            Piece(
                first=first,
                stop=stop,
                start_s=(tokens[first] - timestamp_begin) * TIMESTAMP_STEP_S,
                end_s=(tokens[stop - 1] - timestamp_begin) * TIMESTAMP_STEP_S,
            )
        )
    if closed:
        return pieces, content_frames
    return pieces, (tokens[cuts[-1] - 1] - timestamp_begin) * FRAMES_PER_POSITION


def ends_closed(tokens: Sequence[int], *, timestamp_begin: int) -> bool:
    """Whether text and then one timestamp end the window: nothing is said after it."""
    return [token >= timestamp_begin for token in tokens[-2:]] == [False, True]


def _whole(
    tokens: Sequence[int], stamps: Sequence[int], timestamp_begin: int, content_frames: int
) -> Piece:
    """One piece for the whole window, ending at its last timestamp if that says anything."""
    end_s = content_frames / FRAMES_PER_SECOND
    if stamps and stamps[-1] != timestamp_begin:
        end_s = (stamps[-1] - timestamp_begin) * TIMESTAMP_STEP_S
    return Piece(first=0, stop=len(tokens), start_s=0.0, end_s=end_s)
