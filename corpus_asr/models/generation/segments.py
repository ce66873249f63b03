"""Cutting a window's tokens into segments, at the timestamps the model said.

In: the tokens of one window and where it lies. Out: segments with times in seconds, and how far to
move on. The arithmetic, down to its number types, is that of transformers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A segment of one window."""

    start: Float[Tensor, ""]
    """Seconds from the start of the recording, in float64."""
    end: Float[Tensor, ""]
    first: int
    """Its first token among the window's."""
    last: int
    """One past its last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How tokens and frames are turned into seconds."""

    timestamp_begin: int
    """The token of 0.00 s."""
    input_stride: int
    """Feature frames of a timestamp step."""
    time_precision: float
    """Seconds of a timestamp step."""
    time_precision_features: float
    """Seconds of a feature frame."""


def cut(
    tokens: tuple[int, ...], *, seek: int, frames: int, clock: Clock
) -> tuple[list[Piece], int]:
    """Return the segments and the number of frames to move on.

    Where two timestamps follow each other a segment ends and the next begins. What comes after the
    last such pair is thrown away and decoded again from there, unless a single timestamp ends the
    window: then nobody spoke after it. Without a pair the whole window is one segment. A pair at
    0.00 s moves on by the whole window, which the reference would decode again for ever.

    Args:
        tokens: what was said, without prompt and end token.
        seek: the window's first frame.
        frames: frames of sound in the window.
        clock: the units.
    """
    begin = clock.timestamp_begin
    offset = torch.tensor(seek).to(torch.float64) * clock.time_precision / clock.input_stride
    is_time = [token >= begin for token in tokens]
    single_ending = is_time[-2:] == [False, True]
    ends = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    if not ends:
        end = offset + _last_step(tokens, frames, clock) * clock.time_precision
        return [Piece(start=offset, end=end, first=0, last=len(tokens))], frames

    if single_ending:
        ends.append(len(tokens))
    else:
        ends[-1] += 1  # the pair's second timestamp tells later readers that it was a pair
    pieces = []
    first = 0
    for last in ends:
        closing = last - 2 if last == ends[-1] and not single_ending else last - 1
        times = [
            offset + torch.tensor(token - begin).to(torch.float64) * clock.time_precision
            for token in (tokens[first], tokens[closing])
        ]
        pieces.append(Piece(start=times[0], end=times[1], first=first, last=last))
        first = last
    heard = (tokens[first - 2] - begin) * clock.input_stride
    return pieces, frames if single_ending or heard == 0 else heard


def _last_step(tokens: tuple[int, ...], frames: int, clock: Clock) -> int | Tensor:
    """The step at which a window without a pair of timestamps ends."""
    times = [token for token in tokens if token >= clock.timestamp_begin]
    if times and times[-1] != clock.timestamp_begin:
        return torch.tensor(times[-1] - clock.timestamp_begin).to(torch.float64)
    # A whole number times a fraction is a float32 there, which decides what it is rounded to.
    return int(torch.tensor(frames) * clock.time_precision_features / clock.time_precision)
