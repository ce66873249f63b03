"""Decoded frames on the clock that players show: silence where nothing is presented.

Containers for video give each packet a time. A track may begin later than the others, packets may
be lost, recordings cut and joined: counting samples alone, all that follows would be early.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import av.container
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame

# Formats that store times, as libav names them. Of others libav counts samples or guesses from
# bytes, and what was decoded is the better clock.
_TIMED = frozenset(
    {"asf", "flv", "live_flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts", "mxf",
     "nut", "ogg", "rm", "wtv"}
)  # fmt: skip
_EDITED = "mov,mp4,m4a,3gp,3g2,mj2"
# Its pages are sent once: a clock that goes back is that of the next link of a chain.
_CHAINED = "ogg"
_MATROSKA = "matroska,webm"
# Times are rounded to milliseconds, and encoders' delays are written or not: less means nothing.
_TOLERANCE_S = 0.1
_START_TOLERANCE_S = 0.03  # nothing was rounded or lost before the first frame
# Of packets sent twice. What goes back further is a clock that began again, and new sound.
_MAX_OVERLAP_S = 1.0
# A gap that is longer is a damaged time. So are gaps behind the end that the header claims, once
# they are longer in all: live recordings claim none or a guess, and damage shall not make days.
_MAX_GAP_S = 3600.0
# An edit list delays a track by less.
_MAX_DELAY_S = 60.0
_SILENT_SAMPLES = 1 << 16  # of a silent frame: memory does not depend on the length of a gap


class PresentationClock:
    """Tells when frames are presented, from the start of their container."""

    def __init__(
        self,
        container: av.container.InputContainer,
        first: AudioFrame,
        *,
        start_s: float | None = None,
    ) -> None:
        """Start a clock.

        Args:
            container: open.
            first: its first frame of sound.
            start_s: when the first packet of all streams is presented; None: the header knows.
        """
        self.corrections = 0
        """Gaps filled, overlaps cut and times not believed so far, behind the first frame."""
        self.restarts = 0
        """Of these, clocks that began again: no jump behind them lands where it should."""
        name = container.format.name
        start: int | None = container.start_time
        if start is not None and start_s is not None:
            start = min(start, round(start_s * av.time_base))
        self.is_stored = name in _TIMED and _stored_s(first) is not None
        """Whether the container stores times; otherwise samples are counted."""
        first_s = _stored_s(first) or 0.0
        origin_s = first_s if not self.is_stored or start is None else start / av.time_base
        # Without fragments, which begin at any time, its presentation begins at 0.
        is_edited = name == _EDITED and any(stream.frames for stream in container.streams.audio)
        if is_edited and 0 < origin_s <= _MAX_DELAY_S:
            origin_s = 0.0
        self._origin_s = origin_s
        ends = None if container.duration is None else (start or 0) + container.duration
        self._end_s = 0.0 if ends is None else ends / av.time_base - origin_s
        self._unclaimed_s = 0.0
        self._max_overlap_s = 0.0 if name == _CHAINED else _MAX_OVERLAP_S
        self._now_s = 0.0
        self._began = False
        self._is_cutting = False

    @property
    def origin_s(self) -> float:
        """The stored time at which the recording begins."""
        return self._origin_s

    def time_s(self, frame: AudioFrame) -> float | None:
        """Return when a frame is presented, in seconds of the recording."""
        stored_s = _stored_s(frame)
        return None if stored_s is None else stored_s - self._origin_s

    def begin_at(self, start_s: float) -> None:
        """Go on from a moment, after a jump to it."""
        self._now_s, self._began = start_s, True

    def placed(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Yield frames one right after the other, silent ones where there is a gap."""
        if not self.is_stored:
            yield from frames
            return
        frame: AudioFrame | None = next(frames, None)
        for following in chain(frames, [None]):
            if frame is not None:
                yield from self._place(frame, following)
            frame = following

    def _place(self, frame: AudioFrame, following: AudioFrame | None) -> Iterator[AudioFrame]:
        ahead_s = self._ahead_s(frame, following)
        self.corrections += self._began and ahead_s != 0.0 and not self._is_cutting
        self._began, self._is_cutting = True, ahead_s < 0
        if ahead_s > 0:
            for silent in _silence(frame, round(ahead_s * frame.sample_rate)):
                self._now_s += silent.samples / silent.sample_rate
                yield silent
        elif ahead_s and round(-ahead_s * frame.sample_rate) >= frame.samples:
            return
        elif ahead_s < 0:
            frame = _without_first(frame, round(-ahead_s * frame.sample_rate))
        self._now_s += frame.samples / frame.sample_rate
        yield frame

    def _ahead_s(self, frame: AudioFrame, following: AudioFrame | None) -> float:
        """Return the seconds between what was yielded and a frame; 0 where they follow."""
        stored_s = _stored_s(frame)
        if stored_s is None:
            return 0.0
        ahead_s = stored_s - self._origin_s - self._now_s
        # What was sent twice is cut to its end.
        most_s = _TOLERANCE_S if self._began else _START_TOLERANCE_S
        if -_TOLERANCE_S * (not self._is_cutting) <= ahead_s <= most_s:
            return 0.0
        next_s = None if following is None else _stored_s(following)
        if next_s is not None and (self._began or ahead_s > _TOLERANCE_S):
            next_ahead_s = next_s - self._origin_s - self._now_s
            if abs(next_ahead_s - frame.samples / frame.sample_rate) <= _TOLERANCE_S:
                self.corrections += 1  # this one time is damaged
                return 0.0
        if -self._max_overlap_s <= ahead_s < 0 or self._is_gap(ahead_s):
            return ahead_s
        self._origin_s += ahead_s  # another clock from here on
        self.corrections += 1
        self.restarts += 1
        return 0.0

    def _is_gap(self, ahead_s: float) -> bool:
        if not 0 < ahead_s <= _MAX_GAP_S:
            return False
        if self._now_s + ahead_s > self._end_s + _TOLERANCE_S:
            if self._unclaimed_s + ahead_s > _MAX_GAP_S:
                return False
            self._unclaimed_s += ahead_s
        return True


def first_packet(container: av.container.InputContainer) -> "av.Packet[Any] | None":
    """Read the first packet of Matroska, of whatever stream; None of other containers.

    libav tells when its streams begin once it has decoded some: a picture that it may not decode
    seems to begin with the sound.

    Raises:
        av.error.FFmpegError: it is damaged; what follows may be whole.
    """
    if container.format.name != _MATROSKA or len(container.streams) < 2:
        return None
    return next(iter(container.demux()), None)


def _stored_s(frame: AudioFrame) -> float | None:
    # What comes when the decoder is emptied may have a time that is no number.
    return None if frame.time is None or math.isnan(frame.time) else frame.time


def _silence(like: AudioFrame, num_samples: int) -> Iterator[AudioFrame]:
    middle = b"\x80" if like.format.name in ("u8", "u8p") else b"\0"
    for start in range(0, num_samples, _SILENT_SAMPLES):
        samples = min(_SILENT_SAMPLES, num_samples - start)
        frame = AudioFrame(format=like.format.name, layout=like.layout, samples=samples)
        frame.sample_rate = like.sample_rate
        for plane in frame.planes:
            plane.update(middle * plane.buffer_size)
        yield frame


def _without_first(frame: AudioFrame, num_samples: int) -> AudioFrame:
    # Not through an array: libav's planes of eight channels and more lie elsewhere.
    frame.pts = None
    queue = AudioFifo()
    queue.write(frame)
    queue.read(num_samples)
    rest = queue.read()
    assert rest is not None, "a part of the frame is left"
    return rest
