"""Decodes any recording FFmpeg reads to a stream of 16 kHz samples; encodes clips as files.

Native decoders can crash and hang: run this in a child process to contain that.

    packets -> frames -> runs of equal rate, format and channels -> blocks of one second
            -> requested rows -> 16 kHz (frames.py) -> chunks
"""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import av
import av.container
import av.error
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.stream import Disposition

from corpus_asr.array_types import Float32
from corpus_asr.audio.frames import Channels, FrameSpan, PresentationClock, Rows
from corpus_asr.audio.guarded_file import BinarySource, GuardedFile
from corpus_asr.audio.probe import (
    MAX_SAMPLE_RATE_HZ,
    MIN_SAMPLE_RATE_HZ,
    AudioInfo,
    AudioTrack,
    audio_tracks,
    header_duration_s,
    open_container,
    select_stream,
)
from corpus_asr.audio.sound_digest import SoundDigest
from corpus_asr.config.decoding import AUTO_TRACK
from corpus_asr.errors import DecodeError
from corpus_asr.units import SAMPLE_RATE_HZ, counted

if TYPE_CHECKING:
    _Packet = av.Packet[av.AudioStream]
else:
    _Packet = av.Packet  # generic in its stubs only

# Failure kind of a partially decoded recording.
DAMAGED = "damaged"

_CHUNK_SAMPLES = 10 * SAMPLE_RATE_HZ
_MAX_CHUNK_VALUES = 1 << 22
# libav's demuxers usually resume after damage; after this many consecutive errors they never do.
_MAX_DEMUX_ERRORS = 100
# Bytes of a packet's header in its container, at most, but for padding.
_HEADER_BYTES = 64

AudioFormat = Literal["flac", "opus", "wav"]

_CONTAINERS = {"flac": "flac", "opus": "ogg", "wav": "wav"}
_CODECS = {"flac": "flac", "opus": "libopus", "wav": "pcm_s16le"}
_BIT_EXACT = {"fflags": "+bitexact"}  # no serial numbers or versions, which differ each time
_FRAME_SAMPLES = 4096  # for codecs that accept any number
_FULL_SCALE = 32_767
_MATROSKA = "matroska,webm"


class AudioDecoder:
    """One open recording: iterate once for its samples. Created by `open_audio`."""

    info: AudioInfo
    num_channels: int
    """Rows of every chunk: 1, or with `channels="each"` the channel count."""
    tracks: tuple[AudioTrack, ...]
    """All audio tracks of the container."""
    wanted: tuple[AudioTrack, ...]
    """The decoded track, followed by alternatives, best first."""

    def __init__(
        self,
        file: BinarySource,
        *,
        uri: str,
        channels: Channels,
        track: str | int,
        languages: Sequence[str],
    ) -> None:
        self.decode_errors = 0
        """Number of damaged packets and unreadable spans skipped so far."""
        self._uri = uri
        self._channels = channels
        self._last_error: Exception | None = None
        self._num_attempts = 0  # to read and decode a packet
        self._gave_up = self._at_end = False
        self._started = self._has_sought = False
        # Bytes of packets that are not damaged, and of the samples that come of them, and seconds.
        self._packet_bytes = self._sample_bytes = 0
        self._sound_s = 0.0
        self._file = GuardedFile(file, uri=uri)
        self._container = open_container(self._file, uri=uri)
        try:
            self._digest: SoundDigest | None = SoundDigest(self._container)
            self._peeked = self._peek()
            self.tracks = audio_tracks(self._container)
            self._stream, wanted = select_stream(
                self._container, self._file, uri=uri, track=track, languages=languages
            )
            self.wanted = tuple(wanted)
            start_s = None if self._peeked is None else _stored_s(self._peeked)
            self._frames = self._decode_frames()
            self._first = self._decode_first()
            self._clock = PresentationClock(self._container, self._first, start_s=start_s)
        except BaseException:
            self._container.close()
            raise

    def __iter__(self) -> Iterator[Rows]:
        """Yield the recording from its start, in chunks of about 10 s (shorter for many channels).

        Raises:
            DecodeError: kind `empty_audio`; less than one sample at 16 kHz was decoded.
                Kind `damaged`; the rest, or most of it, cannot be decoded, all else was yielded.
            FetchError: reading failed; the chunks yielded before are incomplete.
        """
        if self._started:
            raise RuntimeError(f"decoding {self._uri}: iterated twice; open it again")
        self._started = True
        return self._chunks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder. The caller closes the file object."""
        self._container.close()

    @property
    def sound_digest(self) -> str | None:
        """Digest of all tracks' sound after iterating; None if the end was not reached by reading.

        That of `audio.sound_digest`, from the same packets.
        """
        return self._digest.value() if self._at_end and self._digest is not None else None

    @property
    def time_corrections(self) -> int:
        """Number of filled gaps, cut overlaps, damaged times and wrong lengths so far."""
        return self._clock.corrections + self._file.is_mended

    @property
    def clock_restarts(self) -> int:
        """Number of clock restarts among these: seeking beyond one is unreliable."""
        return self._clock.restarts

    def seek(self, start_s: float) -> float | None:
        """Seek to a time before iterating; the first audio decoded after it may be damaged.

        Returns the time of the first sample, at `start_s` or before; None if the format has no
        index: this decoder is unusable then, open another one.
        """
        if self._clock.time_s(self._first) is None or self._stream.time_base is None:
            return None
        stored_s = self._clock.origin_s + start_s
        try:
            self._container.seek(round(stored_s / self._stream.time_base), stream=self._stream)
        except av.error.FFmpegError:
            self._file.check()
            return None
        self._digest, self._has_sought = None, True
        self._stream.codec_context.flush_buffers()
        self._frames = self._decode_frames()
        first = next(self._frames, None)
        first_s = None if first is None else self._clock.time_s(first)
        if first is None or first_s is None or not 0 <= first_s <= start_s:
            return None
        self._first = first
        self._clock.begin_at(first_s)
        return first_s

    def _chunks(self) -> Iterator[Rows]:
        limit = min(_CHUNK_SAMPLES, _MAX_CHUNK_VALUES // self.num_channels)
        pending: list[Rows] = []
        num_pending = num_samples = 0
        for piece in self._pieces():
            pending.append(piece)
            num_pending += piece.shape[1]
            if num_pending >= limit:
                num_samples += num_pending
                yield np.concatenate(pending, axis=1)
                pending, num_pending = [], 0
        if num_pending:
            num_samples += num_pending
            yield np.concatenate(pending, axis=1)
        if not num_samples:
            raise self._empty()
        # Noise and encrypted sound may decode for a moment by chance.
        if self._gave_up or self.decode_errors > self._num_attempts / 2 or self._is_mostly_noise:
            raise self._damaged(num_samples)

    @property
    def _is_mostly_noise(self) -> bool:
        """Whether most of the file and of the time in its header was passed over without an error.

        Demuxers search for the next packet after what is none. Either sign alone is common: a file
        that ends early has no bytes that are none, one with pictures has all of its sound, and the
        time of a stream without a header is a guess by its first packets.
        """
        claimed_s = self.info.header_duration_s
        has_film = any(
            not stream.disposition & Disposition.attached_pic
            for stream in self._container.streams.video
        )
        if claimed_s is None or self._has_sought or has_film:
            return False
        sound_bytes = min(self._packet_bytes, self._sample_bytes)  # a packet may have noise behind
        return self._sound_s < claimed_s / 2 and sound_bytes < self._file.num_bytes / 2

    def _pieces(self) -> Iterator[Rows]:
        frames = self._clock.placed(chain([self._first], self._frames))
        run = self._start_run(next(frames))
        for frame in frames:
            if not run.fits(frame):  # the rate or the channels changed within the stream
                yield from run.finish()
                run = self._start_run(frame)
            else:
                run.feed(frame)
                yield from run.full_blocks()
        yield from run.finish()

    def _start_run(self, frame: AudioFrame) -> FrameSpan:
        run = FrameSpan(frame, channels=self._channels, num_rows=self.num_channels)
        run.feed(frame)
        return run

    def _decode_first(self) -> AudioFrame:
        # The audio format is only known once samples arrive.
        frame = next(self._frames, None)
        if frame is None:
            raise self._empty()
        num_channels = frame.layout.nb_channels
        if isinstance(self._channels, int) and self._channels >= num_channels:
            raise DecodeError(
                f"decoding {self._uri}: found {counted(num_channels, 'channel')} (numbered "
                f"from 0), expected channel {self._channels}; correct extract.channels",
                uri=self._uri,
                kind="no_such_channel",
            )
        self.num_channels = num_channels if self._channels == "each" else 1
        self.info = AudioInfo(
            codec=self._stream.codec_context.name,
            sample_rate_hz=frame.sample_rate,
            channels=num_channels,
            header_duration_s=header_duration_s(self._container, self._stream),
        )
        return frame

    def _decode_frames(self) -> Iterator[AudioFrame]:
        for packet in self._packets():
            num_errors = self.decode_errors
            frames = self._decode(packet)
            if packet is not None and self.decode_errors == num_errors:
                self._packet_bytes += packet.size + _HEADER_BYTES
            for frame in frames:
                if not frame.samples:
                    continue
                self._sound_s += frame.samples / max(1, frame.sample_rate)
                self._sample_bytes += sum(plane.buffer_size for plane in frame.planes)
                if MIN_SAMPLE_RATE_HZ <= frame.sample_rate <= MAX_SAMPLE_RATE_HZ:
                    yield frame
                else:
                    self._count(ValueError(f"sample rate {frame.sample_rate} Hz"))
        self._file.check()

    def _peek(self) -> "av.Packet[Any] | None":
        """Read the first packet of a Matroska file, of any stream; None for other containers."""
        # libav determines the start of streams while decoding: the start of a picture it may not
        # decode appears equal to that of the audio.
        if self._container.format.name != _MATROSKA or len(self._container.streams) < 2:
            return None
        try:
            return next(iter(self._container.demux()), None)
        except IndexError:  # for a stream that starts within the file, as below
            self._digest = None
        except av.error.FFmpegError as error:
            self._digest = None
            self._count(error)
        return None

    def _packets(self) -> Iterator[_Packet | None]:
        # After damage the demuxer is called again; None at the end flushes the decoder.
        peeked, self._peeked = self._peeked, None
        tracks = list(self._container.streams.audio)
        if peeked is not None and any(peeked.stream_index == track.index for track in tracks):
            yield from self._note(peeked)
        failures = 0
        while failures < _MAX_DEMUX_ERRORS:
            try:
                for packet in self._container.demux(tracks):
                    for noted in self._note(packet):
                        failures = 0
                        yield noted
                break
            except IndexError:
                # A stream started within the file (broadcasts, Flash), which PyAV does not find
                # among the initial ones. It is not the selected one, and the next call skips it.
                self._file.check()
                failures += 1
                self._digest = None
            except av.error.FFmpegError as error:
                self._file.check()
                failures += 1
                self._digest = None
                self._num_attempts += 1
                self._count(error)
        else:
            self._gave_up = True
        self._file.check()
        self._at_end = True
        yield None

    def _note(self, packet: "av.Packet[Any]") -> Iterator[_Packet]:
        """Add a packet to the digest; yield it if it is of the decoded track."""
        if self._digest is not None:
            self._digest.add(packet)
        if packet.stream_index != self._stream.index:  # the decoded track may be a short one
            self._packet_bytes += packet.size + _HEADER_BYTES
            self._sample_bytes += packet.size + _HEADER_BYTES
        elif packet.size:  # empty packets would end the decoder's stream at any position
            yield cast("_Packet", packet)

    def _decode(self, packet: _Packet | None) -> Sequence[AudioFrame]:
        context = self._stream.codec_context
        self._num_attempts += 1
        try:
            return context.decode(packet)
        except (av.error.BlockingIOError, av.error.EOFError):
            # After some errors the decoder must be flushed, or considers its stream ended.
            context.flush_buffers()
        except av.error.FFmpegError as error:
            self._count(error)
            return []
        try:
            return context.decode(packet)
        except av.error.FFmpegError as error:
            self._count(error)
            return []

    def _count(self, error: Exception) -> None:
        self.decode_errors += 1
        self._last_error = error

    def _damaged(self, num_samples: int) -> DecodeError:
        claimed_s = self.info.header_duration_s
        after = "after " if self._gave_up else "within "
        promised = "the whole recording" if claimed_s is None else f"the header's {claimed_s:.1f} s"
        last = "" if self._last_error is None else f", the last: {self._last_error}"
        return DecodeError(
            f"decoding {self._uri}: damaged {after}{num_samples / SAMPLE_RATE_HZ:.1f} s of audio, "
            f"which are kept; expected {promised} ({self.decode_errors} of {self._num_attempts} "
            f"packets failed{last}); upload it again",
            uri=self._uri,
            kind=DAMAGED,
        )

    def _empty(self) -> DecodeError:
        reason = f", the last because of: {self._last_error}" if self._last_error else ""
        return DecodeError(
            f"decoding {self._uri}: no sample could be decoded (found "
            f"{self._stream.codec_context.name} in {self._container.format.name}, "
            f"{self.decode_errors} unusable packets{reason}), expected audio; upload it again, or "
            "exclude it",
            uri=self._uri,
            kind="empty_audio",
        )


def _stored_s(packet: "av.Packet[Any]") -> float | None:
    if packet.pts is None or packet.time_base is None:
        return None
    return float(packet.pts * packet.time_base)


def open_audio(
    file: BinarySource,
    *,
    uri: str,
    channels: Channels = "mix",
    track: str | int = AUTO_TRACK,
    languages: Sequence[str] = (),
) -> AudioDecoder:
    """Open a recording and decode until its first samples.

    Args:
        file: seekable; read in ranges, from the calling thread; not closed.
        uri: names the recording in messages; its suffix identifies headerless formats.
        channels: `mix` for one row, `each` for a row per channel, or one channel's number from 0.
        track: audio track: `auto`, a number from 1, or a language; `all` means the first one.
        languages: codes of the expected languages, for `auto`.

    Raises:
        DecodeError: kinds `empty_file`, `not_audio`, `refused_format`, `no_audio_stream`,
            `unsupported_codec`, `bad_stream`, `no_such_channel`, `no_such_track`, `empty_audio`.
        FetchError: reading failed.
    """
    if channels not in ("mix", "each") and not (isinstance(channels, int) and channels >= 0):
        raise ValueError(f"channels is {channels!r}; expected mix, each or a number from 0")
    return AudioDecoder(file, uri=uri, channels=channels, track=track, languages=languages)


def encode_audio(
    samples: Float32[np.ndarray, " sample"],
    audio_format: AudioFormat,
    *,
    bit_rate: int | None = None,
) -> bytes:
    """Return a clip as an audio file of 16 kHz, mono; FLAC and WAV with 16 bits.

    Samples are in [-1, 1]; louder ones are clipped. `bit_rate` is that of Opus, in bits per
    second; None is the encoder's default.
    """
    if not len(samples):
        raise ValueError("found no samples, expected those of a clip")
    values = np.rint(np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)
    file = io.BytesIO()
    with av.open(
        file, "w", format=_CONTAINERS[audio_format], container_options=_BIT_EXACT
    ) as container:
        stream = container.add_stream(_CODECS[audio_format], rate=SAMPLE_RATE_HZ, layout="mono")
        context = stream.codec_context
        assert isinstance(context, AudioCodecContext)
        context.format = "s16"
        if bit_rate is not None:
            # Constrained: pure tones would otherwise need nearly twice the rate.
            context.bit_rate, context.options = bit_rate, {"vbr": "constrained"}
        context.open()
        step = context.frame_size or _FRAME_SAMPLES
        for start in range(0, len(values), step):
            frame = AudioFrame.from_ndarray(
                values[np.newaxis, start : start + step], format="s16", layout="mono"
            )
            frame.sample_rate = SAMPLE_RATE_HZ
            frame.pts, frame.time_base = start, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(context.encode(frame))
        container.mux(context.encode(None))
    return file.getvalue()
