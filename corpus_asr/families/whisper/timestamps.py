"""Timestamp tokens among what the decoder wrote."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from corpus_asr.units import TIMESTAMP_STEP_S, WINDOW_POSITIONS

_WRITTEN = re.compile(r"<\|(\d+\.\d+)\|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedTokens:
    """Text tokens between two timestamps of one window."""

    start_s: float | None
    """Seconds from the start of the window; None without a timestamp before the tokens."""
    end_s: float | None
    """Likewise; None without a timestamp after them."""
    tokens: tuple[int, ...]


def split_timestamps(
    token_ids: Iterable[int], *, end: int, timestamp_begin: int
) -> tuple[TimedTokens, ...]:
    """Cut what the decoder wrote for one window at its timestamps.

    No text token is lost; control tokens are left out, and so are stretches without text.

    Args:
        token_ids: as the decoder wrote them.
        end: the first id that is no text.
        timestamp_begin: the id of 0.00 s.
    """
    found: list[TimedTokens] = []
    start_s: float | None = None
    tokens: list[int] = []
    for token in token_ids:
        if token >= timestamp_begin:
            end_s = (token - timestamp_begin) * TIMESTAMP_STEP_S
            if tokens:
                found.append(TimedTokens(start_s=start_s, end_s=end_s, tokens=tuple(tokens)))
            start_s, tokens = end_s, []
        elif token < end:
            tokens.append(token)
    if tokens:
        found.append(TimedTokens(start_s=start_s, end_s=None, tokens=tuple(tokens)))
    return tuple(found)


def written_timestamps(
    token_ids: list[int], *, timestamp_begin: int, time_precision: float
) -> list[str | list[int]]:
    """Cut ids into timestamps, written out, and the runs between them.

    Times of a later window go on from the earlier one's end.

    Source: transformers 5.23, `WhisperTokenizer._decode_with_timestamps`.
    """
    run: list[int] = []
    pieces: list[str | list[int]] = [run]
    latest = before_latest = windows_s = 0.0
    for position, token in enumerate(token_ids):
        if token < timestamp_begin:
            run.append(token)
            continue
        time_s = (token - timestamp_begin) * time_precision
        if time_s < latest:
            # Times start again: the next window. One that ended on a pair of timestamps was left
            # at the first of them, which the next window repeats.
            if all(i >= timestamp_begin for i in token_ids[max(position - 2, 0) : position]):
                latest = before_latest
                windows_s += before_latest
                pieces = pieces[:-2]
            else:
                windows_s += time_precision * WINDOW_POSITIONS
        before_latest, latest = latest, time_s
        run = []
        pieces += [f"<|{time_s + windows_s:.2f}|>", run]
    return pieces


def timed_stretches(
    token_ids: Sequence[int], *, timestamp_begin: int, time_precision: float
) -> Iterator[tuple[Sequence[int], tuple[float, float]]]:
    """Yield the stretches that a pair of timestamps closes, timestamps included, with their times.

    Text before the first timestamp is left out, and so is text after the last one. Times of a
    later window go on from the earlier one's end.

    Source: transformers 5.23, `WhisperTokenizer._compute_offsets`.
    """
    stamps = [k for k, token in enumerate(token_ids) if token >= timestamp_begin]
    ends = [k + 1 for k, following in pairwise(stamps) if following == k + 1]
    if len(stamps) < 2:
        return
    if stamps[-1] + 1 not in ends:
        ends.append(stamps[-1] + 1)
    start, latest, windows = stamps[0], 0, 0
    for end in ends:
        stretch = token_ids[start:end]
        if len(stretch) > 1:
            first, last = stretch[0] - timestamp_begin, stretch[-1] - timestamp_begin
            if first < latest:
                # Times start again: the next window. One that ended on a pair of timestamps was
                # left at that time, any other one at its end.
                single = start >= 2 and min(token_ids[start - 2 : start]) < timestamp_begin
                windows += WINDOW_POSITIONS if single else latest
            latest = last
            offset_s = windows * time_precision
            yield stretch, (first * time_precision + offset_s, last * time_precision + offset_s)
        start = end


def without_timestamps(text: str) -> str:
    """Remove written timestamps from decoded text."""
    return _WRITTEN.sub("", text)
