"""Decoded frames to rows at 16 kHz: on the container's clock, mixed, resampled.

Video containers have a timestamp per packet. A track may start later than others, packets may be
lost, recordings cut and joined: with sample counts alone, all later audio would be early. So gaps
are filled with silence; then runs of frames of equal rate, format and channels are converted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import av
import av.container
import av.error
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.filter.graph import Graph

from corpus_asr.array_types import Float32
from corpus_asr.units import SAMPLE_RATE_HZ

Channels = Literal["mix", "each"] | int
"""`mix`: one row for all channels; `each`: one row per channel; a number: that channel, from 0."""

Samples = Float32[np.ndarray, " sample"]
Shares = Float32[np.ndarray, " channel"]
Resampled = Float32[np.ndarray, " resampled"]
Block = Float32[np.ndarray, "channel sample"]
Rows = Float32[np.ndarray, "row sample"]
RowMaker = Callable[[Block], Rows]

# Formats with stored times, by libav name. For others libav counts samples or estimates from bytes,
# and the number of decoded samples is more accurate.
_TIMED = frozenset(
    {"asf", "flv", "live_flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts", "mxf",
     "nut", "ogg", "rm", "wtv"}
)  # fmt: skip
_EDITED = "mov,mp4,m4a,3gp,3g2,mj2"
# Its pages are never repeated: a clock that goes back belongs to the next link of a chain.
_CHAINED = "ogg"
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


# Weight of a loudspeaker in mono, as in libswresample. Dialogue is in the center.
_FRONT = 0.5**0.5
_MONO_SHARES = {
    "FC": 1.0,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), _FRONT),
    **dict.fromkeys(("BL", "BR", "BC", "SL", "SR"), 0.5),
    "LFE": 0.0,
    "LFE2": 0.0,
}

# The mix counts as cancelled if it is 30 dB below the sum of unrelated channels, and as valid again
# at 20 dB: two thresholds, so that a borderline recording does not alternate.
_CANCELLED = 10.0 ** (-30 / 10)
_HEALTHY = 10.0 ** (-20 / 10)
# While cancelled, keep the chosen channel unless another is 6 dB louder: antiphase channels differ
# in sign, so each switch is a click.
_STAY = 10.0 ** (-6 / 10)


def mono_shares(names: Sequence[str]) -> Shares:
    """Return each channel's weight in the mono mix; the sum is one, so nothing clips.

    Names are the loudspeakers' of libav's channel layouts; unknown names have equal weights.

    Source: `build_matrix` of FFmpeg's libswresample/rematrix.c, mono output, normalized.
    """
    has_shares = all(name in _MONO_SHARES for name in names)
    shares = np.array(
        [_MONO_SHARES[name] if has_shares else 1.0 for name in names], dtype=np.float32
    )
    if not shares.any():  # a single subwoofer is the only channel
        shares[:] = 1.0
    total: np.float32 = shares.sum()
    normalized: Shares = shares / total
    return normalized


# The choice depends on block boundaries, which depend on sample counts only, not on how the bytes
# arrived.
class MonoMixer:
    """Mixes blocks to one row; if the channels cancel each other, uses the loudest instead."""

    def __init__(self, names: Sequence[str]) -> None:
        self._shares = mono_shares(names)
        self._chosen: int | None = None  # channel used in place of a cancelled mix

    def __call__(self, block: Block) -> Rows:
        """Mix one block, in order."""
        if len(block) == 1:
            return block
        mix: Samples = self._shares @ block  # (sample,)
        powers = np.array([_power(row) for row in block]) * self._shares.astype(np.float64) ** 2
        limit = _CANCELLED if self._chosen is None else _HEALTHY
        if not _power(mix) < limit * powers.sum():
            self._chosen = None
            return mix[np.newaxis]
        if self._chosen is None or powers[self._chosen] < _STAY * powers.max():
            self._chosen = int(powers.argmax())
        return block[self._chosen : self._chosen + 1]


class EachChannel:
    """Keeps every channel in its row, with as many rows as the recording had initially.

    A later span may have other channels: missing ones are silent, and additional ones are mixed
    into the last row.
    """

    def __init__(self, num_rows: int, names: Sequence[str]) -> None:
        self._num_rows = num_rows
        self._rest = MonoMixer(names[num_rows - 1 :]) if len(names) > num_rows else None

    def __call__(self, block: Block) -> Rows:
        """Arrange one block's channels in rows."""
        if len(block) == self._num_rows:
            return block
        if self._rest is not None:
            kept = block[: self._num_rows - 1]
            return np.concatenate([kept, self._rest(block[self._num_rows - 1 :])])
        missing = np.zeros((self._num_rows - len(block), block.shape[1]), dtype=np.float32)
        return np.concatenate([block, missing])


def row_maker(channels: Channels, names: Sequence[str], *, num_rows: int) -> RowMaker:
    """Return the conversion of blocks with these channels to the requested rows."""
    if channels == "each":
        return EachChannel(num_rows, names)
    # A span without the requested channel is mixed, so that nothing is lost.
    if channels == "mix" or channels >= len(names):
        return MonoMixer(names)
    return lambda block: block[channels : channels + 1]


def _power(row: Samples) -> float:
    # Relative to the mean: a constant offset is inaudible.
    if not row.size:
        return 0.0
    mean = float(row.mean(dtype=np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        return max(0.0, float(row @ row) / row.size - mean * mean)


# One block is mixed and resampled at a time: long enough for negligible Python overhead, short
# enough for the channel chosen on cancellation to follow the recording.
_BLOCK_S = 1
_MAX_BLOCK_VALUES = 1 << 22  # 16 MiB over all channels, for any rate and channels in a header

# Twice the taps of libswresample's filter, at the lower of the two rates.
_SHORT_SAMPLES = 2 * 32

# libav's packed sample formats; planar ones have the suffix "p". Integers are scaled to [-1, 1).
_SAMPLE_TYPES: dict[str, tuple[type[np.generic], float]] = {
    "u8": (np.uint8, 2.0**-7),
    "s16": (np.int16, 2.0**-15),
    "s32": (np.int32, 2.0**-31),
    "s64": (np.int64, 2.0**-63),
    "flt": (np.float32, 1.0),
    "dbl": (np.float64, 1.0),
}


class FrameSpan:
    """A span of frames with equal rate, sample format and channels, converted to rows.

    The first frame, which later ones must match, is not fed yet. `num_rows` is the number of rows
    of the whole recording.
    """

    def __init__(self, frame: AudioFrame, *, channels: Channels, num_rows: int) -> None:
        self._rate_hz = frame.sample_rate
        self._format = frame.format.name
        self._layout = frame.layout
        names = [channel.name for channel in frame.layout.channels]
        self._num_channels = len(names)
        self._rows = row_maker(channels, names, num_rows=num_rows)
        self._resamplers = [_Resampler(self._rate_hz) for _ in range(num_rows)]
        self._block = max(1, min(_BLOCK_S * self._rate_hz, _MAX_BLOCK_VALUES // len(names)))
        self._fifo = AudioFifo()

    def fits(self, frame: AudioFrame) -> bool:
        """Whether the frame may be fed; if not, finish this run and start another."""
        same_format = frame.format.name == self._format and frame.layout == self._layout
        return same_format and frame.sample_rate == self._rate_hz

    def feed(self, frame: AudioFrame) -> None:
        """Queue a matching frame; other frames would cause invalid memory reads."""
        frame.pts = None  # the queue would require gapless timestamps
        self._fifo.write(frame)

    def full_blocks(self) -> Iterator[Rows]:
        """Convert the queued frames, in whole blocks."""
        while self._fifo.samples >= self._block:
            yield from self._convert(self._fifo.read(self._block))

    def finish(self) -> Iterator[Rows]:
        """Convert the remaining frames, with the samples buffered by resamplers."""
        yield from self.full_blocks()
        yield from self._convert(self._fifo.read())
        tails = [resampler.finish() for resampler in self._resamplers]
        if tails[0].size:
            yield np.stack(tails)

    def _convert(self, block: AudioFrame | None) -> Iterator[Rows]:
        if block is None:
            return
        rows = self._rows(_to_array(block, num_channels=self._num_channels))
        pairs = zip(self._resamplers, rows, strict=True)
        resampled = [resampler.feed(row) for resampler, row in pairs]
        if resampled[0].size:
            yield np.stack(resampled)


class _Resampler:
    # `finish` returns the samples buffered in libswresample's filter.
    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._num_fed = 0
        self._num_made = 0
        self._graph: Graph | None = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._graph = _resampling_graph(rate_hz)

    def feed(self, row: Samples) -> Resampled:
        if self._graph is None:
            return row
        self._push(self._graph, row)
        self._num_fed += len(row)
        made = self._pull(self._graph)
        self._num_made += len(made)
        return made

    def finish(self) -> Resampled:
        if self._graph is None:
            return np.zeros(0, dtype=np.float32)
        short = math.ceil(_SHORT_SAMPLES * max(1.0, self._rate_hz / SAMPLE_RATE_HZ))
        if self._num_fed >= short:
            self._graph.push(None)
            return self._pull(self._graph)
        # The filter has no output for inputs shorter than itself: pad with silence, then cut.
        self._push(self._graph, np.zeros(short, dtype=np.float32))
        self._graph.push(None)
        expected = math.ceil(self._num_fed * SAMPLE_RATE_HZ / self._rate_hz)
        return self._pull(self._graph)[: expected - self._num_made]

    def _push(self, graph: Graph, row: Samples) -> None:
        frame = AudioFrame.from_ndarray(row[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = self._rate_hz
        graph.push(frame)

    def _pull(self, graph: Graph) -> Resampled:
        pieces = [np.zeros(0, dtype=np.float32)]
        while True:
            try:
                frame = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(pieces)
            assert isinstance(frame, AudioFrame)
            pieces.append(_plane(frame, 0, np.float32, frame.samples))


def _resampling_graph(rate_hz: int) -> Graph:
    # av.AudioResampler builds the same graph, but with a thread pool for all cores.
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add("abuffer", sample_rate=str(rate_hz), sample_fmt="flt", channel_layout="mono"),
        graph.add("aresample", str(SAMPLE_RATE_HZ)),
        graph.add("aformat", sample_fmts="flt", channel_layouts="mono"),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _to_array(frame: AudioFrame, *, num_channels: int) -> Block:
    # `AudioFrame.to_ndarray` reads past the planes of 8-channel planar frames and crashes the
    # process (PyAV 18.1): it expects a terminating null pointer, which is missing.
    packed = frame.format.name.removesuffix("p")
    sample_type, scale = _SAMPLE_TYPES[packed]
    if packed != frame.format.name:
        count = frame.samples
        planes = [_plane(frame, index, sample_type, count) for index in range(num_channels)]
        raw = np.stack(planes)  # (channel, sample)
    else:
        values = _plane(frame, 0, sample_type, frame.samples * num_channels)
        raw = values.reshape(frame.samples, num_channels).T  # (channel, sample)
    with np.errstate(over="ignore", invalid="ignore"):
        samples = np.ascontiguousarray(raw, dtype=np.float32)
        if packed in ("flt", "dbl"):
            return _finite(samples)
    if packed == "u8":
        samples -= 128.0  # silence is the middle of the unsigned range
    samples *= np.float32(scale)
    return samples


def _plane(frame: AudioFrame, index: int, sample_type: type[np.generic], count: int) -> np.ndarray:
    plane: Any = AudioPlane(frame, index)  # a buffer, which its type stubs omit
    return np.frombuffer(plane, sample_type, count)


def _finite(samples: Block) -> Block:
    # One NaN would spread over the whole recording through the filter.
    if np.isfinite(samples.sum()):  # also false if finite samples overflow, which only costs a copy
        return samples
    return np.where(np.isfinite(samples), samples, np.float32(0.0))
