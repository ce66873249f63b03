"""Places decoded frames on the container's clock, with silence in gaps.

Video containers have a timestamp per packet. A track may start later than others, packets may be
lost, recordings cut and joined: with sample counts alone, all later audio would be early.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import av.container
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame

# Formats with stored times, by libav name. For others libav counts samples or estimates from bytes,
# and the number of decoded samples is more accurate.
_TIMED = frozenset(
    {"asf", "flv", "live_flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts", "mxf",
     "nut", "ogg", "rm", "wtv"}
)  # fmt: skip
_EDITED = "mov,mp4,m4a,3gp,3g2,mj2"
# Its pages are never repeated: a clock that goes back belongs to the next link of a chain.
_CHAINED = "ogg"
_MATROSKA = "matroska,webm"
# Times are rounded to milliseconds, and encoder delays may be missing: smaller gaps are ignored.
_TOLERANCE_S = 0.1
_START_TOLERANCE_S = 0.03  # no rounding or loss before the first frame
# For repeated packets. A larger step back is a clock restart with new audio.
_MAX_OVERLAP_S = 1.0
# A longer gap is a damaged time. So are gaps after the end in the header, once their sum exceeds
# this: live recordings have none or an estimate, and damage must not add days.
_MAX_GAP_S = 3600.0
# Maximum delay of a track by an edit list.
_MAX_DELAY_S = 60.0
_SILENT_SAMPLES = 1 << 16  # per silent frame, so that memory does not depend on the gap


class PresentationClock:
    """Computes presentation times of frames, from the start of their container."""

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
            first: its first audio frame.
            start_s: time of the first packet of all streams; None: from the header.
        """
        self.corrections = 0
        """Number of filled gaps, cut overlaps and rejected times so far, after the first frame."""
        self.restarts = 0
        """Number of clock restarts among these: seeking beyond one is unreliable."""
        name = container.format.name
        start: int | None = container.start_time
        if start is not None and start_s is not None:
            start = min(start, round(start_s * av.time_base))
        self.is_stored = name in _TIMED and _stored_s(first) is not None
        """Whether the container stores times; otherwise samples are counted."""
        first_s = _stored_s(first) or 0.0
        origin_s = first_s if not self.is_stored or start is None else start / av.time_base
        # Without fragments, which may start at any time, its presentation starts at 0.
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
        """Stored time of the recording's start."""
        return self._origin_s

    def time_s(self, frame: AudioFrame) -> float | None:
        """Return the presentation time of a frame, in seconds of the recording."""
        stored_s = _stored_s(frame)
        return None if stored_s is None else stored_s - self._origin_s

    def begin_at(self, start_s: float) -> None:
        """Continue from a time after seeking to it."""
        self._now_s, self._began = start_s, True

    def placed(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Yield consecutive frames, with silent ones in gaps."""
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
        """Return the seconds between the frames yielded so far and a frame; 0 if consecutive."""
        stored_s = _stored_s(frame)
        if stored_s is None:
            return 0.0
        ahead_s = stored_s - self._origin_s - self._now_s
        # A repeated packet is cut to its new part.
        most_s = _TOLERANCE_S if self._began else _START_TOLERANCE_S
        if -_TOLERANCE_S * (not self._is_cutting) <= ahead_s <= most_s:
            return 0.0
        next_s = None if following is None else _stored_s(following)
        if next_s is not None and (self._began or ahead_s > _TOLERANCE_S):
            next_ahead_s = next_s - self._origin_s - self._now_s
            if abs(next_ahead_s - frame.samples / frame.sample_rate) <= _TOLERANCE_S:
                self.corrections += 1  # a single damaged time
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
    """Read the first packet of a Matroska file, of any stream; None for other containers.

    libav determines the start of streams while decoding: the start of a picture it may not decode
    appears equal to that of the audio.

    Raises:
        av.error.FFmpegError: it is damaged; later packets may be intact.
    """
    if container.format.name != _MATROSKA or len(container.streams) < 2:
        return None
    return next(iter(container.demux()), None)


def _stored_s(frame: AudioFrame) -> float | None:
    # Frames flushed from the decoder may have invalid times.
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
    # Not through an array: libav's planes of eight and more channels are at other addresses.
    frame.pts = None
    queue = AudioFifo()
    queue.write(frame)
    queue.read(num_samples)
    rest = queue.read()
    assert rest is not None, "a part of the frame is left"
    return rest
