"""Opens a recording with allowed containers and codecs only, and selects its audio stream."""

import functools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
import av.codec.codec
import av.container
import av.error
import av.logging

from corpus_asr.audio.sample_length import corrected_length
from corpus_asr.audio.tracks import AudioTrack, audio_tracks, in_order, read_only
from corpus_asr.config.decoding import AUTO_TRACK
from corpus_asr.errors import DecodeError, FetchError

# Speech recordings are within these rates: a header with 1 Hz or 4 GHz is damaged. Ultrasonic and
# 1-bit recordings reach megahertz.
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 4_000_000

_DESCRIBED_BYTES = 4096


class BinarySource(Protocol):
    """Interface of a binary file object for decoding."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; empty at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Seek and return the position from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """Audio format of a recording, known after its first samples were decoded."""

    codec: str
    sample_rate_hz: int
    """Sample rate before resampling, in Hz."""
    channels: int
    header_duration_s: float | None
    """Duration in the header in seconds; wrong in damaged and in streamed files."""


class GuardedFile:
    """A file object for libav that stores read errors, which libav would treat as end of file.

    libav calls `read` from C, where exceptions cannot propagate: the recording would end early, and
    a failing store would look like a short recording. The error is stored, libav sees the end of
    the file, and `check` raises the error.
    """

    def __init__(self, file: BinarySource, *, uri: str) -> None:
        self._file = file
        self._uri = uri
        self._position = 0  # position assumed by libav
        self._file_position = 0  # updated only by reads: damaged headers seek anywhere
        self._failure: BaseException | None = None
        self._mended: tuple[int, bytes] | None = None
        try:
            self.num_bytes = file.seek(0, 2)
            file.seek(0)
        except OSError as error:
            raise self._fetch_error(f"found no size ({error})") from error
        # Headerless formats (g722, sbc, ...) are recognized by suffix. libav does not need the rest
        # of the name, which may be malicious. A query may follow it.
        suffix = re.search(r"(\.[A-Za-z0-9]{1,8})(\?\S*)?$", uri)
        self.name = f"recording{suffix.group(1) if suffix else ''}"

    def check(self) -> None:
        """Raise a stored read error; FetchError for an `OSError` or a premature end."""
        if self._failure is not None:
            raise self._failure

    def span(self, start: int, num_bytes: int) -> bytes:
        """Read bytes at any position; the current position is unchanged."""
        position = self._position
        self.seek(start)
        pieces = []
        while num_bytes and (data := self.read(num_bytes)):
            pieces.append(data)
            num_bytes -= len(data)
        self.seek(position)
        return b"".join(pieces)

    @property
    def is_mended(self) -> bool:
        """Whether its header was corrected."""
        return self._mended is not None

    def mend(self, at: int, data: bytes, *, end: int) -> None:
        """Replace bytes at a position and the end of the file in all later reads."""
        self._mended, self.num_bytes = (at, data), end

    def read(self, num_bytes: int) -> bytes:
        """Read up to `num_bytes`; empty at the end and after an error."""
        if self._failure is not None or self._position >= self.num_bytes:
            return b""
        try:
            if self._file_position != self._position:
                self._file.seek(self._position)
            data = self._file.read(num_bytes)
            if not 0 < len(data) <= num_bytes:  # more would overrun libav's buffer
                description = f"{len(data)} bytes came at {self._position} of {self.num_bytes}"
                raise self._fetch_error(f"{description}, expected 1 to {num_bytes}")
        except BaseException as error:  # stored, not swallowed: `check` raises it
            self._failure = error
            if isinstance(error, OSError):
                self._failure = self._fetch_error(f"{type(error).__name__}: {error}")
                self._failure.__cause__ = error
            return b""
        data = self._with_mended(bytes(data))
        self._position += len(data)
        self._file_position = self._position
        return data

    def _with_mended(self, data: bytes) -> bytes:
        if self._mended is None:
            return data
        at, mended = self._mended
        first, stop = max(at, self._position), min(at + len(mended), self._position + len(data))
        if first >= stop:
            return data
        patch = mended[first - at : stop - at]
        return data[: first - self._position] + patch + data[stop - self._position :]

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek to `offset` from the start (0), here (1) or the end (2); -1 before the start."""
        target = (0, self._position, self.num_bytes)[whence] + offset
        if target < 0:
            return -1
        self._position = target
        return target

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Return true: long files need range reads."""
        return True

    def _fetch_error(self, found: str) -> FetchError:
        return FetchError(
            f"reading {self._uri}: {found}; run again when the store responds", uri=self._uri
        )


def open_container(file: GuardedFile, *, uri: str) -> av.container.InputContainer:
    """Detect the container format and read its headers."""
    if file.num_bytes == 0:
        raise DecodeError(
            f"decoding {uri}: found an empty file (0 bytes), expected a media file; upload it "
            "again, or exclude it",
            uri=uri,
            kind="empty_file",
        )
    correction = corrected_length(file)
    file.check()
    if correction is not None:
        file.mend(correction.at, correction.length, end=correction.end)
    try:
        container = open_limited(file)
    except (av.error.FFmpegError, ValueError) as error:
        file.check()
        refused = refused_container(file) if isinstance(error, av.error.ArgumentError) else None
        file.check()
        if refused is not None:
            raise _refused(refused, file, uri=uri) from error
        raise DecodeError(
            f"decoding {uri}: not recognized as audio or video ({_reason(error)}; "
            f"{_describe(file)}), expected a media file; upload it again, or exclude it",
            uri=uri,
            kind="not_audio",
        ) from error
    try:
        file.check()
    except BaseException:
        container.close()
        raise
    return container


def select_stream(
    container: av.container.InputContainer,
    file: GuardedFile,
    *,
    uri: str,
    track: str | int = AUTO_TRACK,
    languages: Sequence[str] = (),
) -> tuple[av.AudioStream, list[AudioTrack]]:
    """Open the best audio track's decoder, make the demuxer skip all others.

    `track` and `languages` are as in `tracks.in_order`, whose result is the second value; its first
    track was opened.
    """
    tracks = audio_tracks(container)
    if not tracks:
        streams = ", ".join(f"{stream.type} stream" for stream in container.streams) or "no stream"
        raise DecodeError(
            f"decoding {uri}: found {streams} in {container.format.name}, expected an audio "
            "stream; exclude it",
            uri=uri,
            kind="no_audio_stream",
        )
    wanted = in_order(tracks, track=track, languages=languages, uri=uri)
    stream = container.streams.audio[wanted[0].number - 1]
    _open_decoder(stream, file, uri=uri)
    read_only(container, stream)
    return stream, wanted


def header_duration_s(
    container: av.container.InputContainer, stream: av.AudioStream
) -> float | None:
    """Return the duration in the header, of the stream or else of the container."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    return seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderInfo:
    """Header data of a recording."""

    duration_s: float | None
    channels: int
    """Number of channels of the transcribed track."""
    tracks: tuple[AudioTrack, ...]
    """All audio tracks."""
    wanted: tuple[AudioTrack, ...]
    """The tracks that may be transcribed, best first."""


def read_header(
    file: BinarySource, *, uri: str, track: str | int = AUTO_TRACK, languages: Sequence[str] = ()
) -> HeaderInfo:
    """Read a recording's header without decoding.

    Raises:
        DecodeError: it has no audio that can be decoded, or lacks the track.
        FetchError: reading failed.
    """
    guarded = GuardedFile(file, uri=uri)
    with open_container(guarded, uri=uri) as container:
        tracks = audio_tracks(container)
        stream, wanted = select_stream(
            container, guarded, uri=uri, track=track, languages=languages
        )
        guarded.check()
        return HeaderInfo(
            duration_s=header_duration_s(container, stream),
            channels=stream.codec_context.layout.nb_channels,
            tracks=tracks,
            wanted=tuple(wanted),
        )


def _open_decoder(stream: av.AudioStream, file: GuardedFile, *, uri: str) -> None:
    context = stream.codec_context
    if context is None:
        raise DecodeError(
            f"decoding {uri}: found no decoder for its audio codec ({_describe(file)}), expected "
            "one in this build of FFmpeg; convert it, or exclude it",
            uri=uri,
            kind="unsupported_codec",
        )
    rate_hz = context.sample_rate
    reason = ""
    if not rate_hz or MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        context.thread_count = 1
        try:
            context.open(strict=False)
            return
        except (av.error.FFmpegError, ValueError) as error:
            reason = f"; {_reason(error)}"
    raise DecodeError(
        f"decoding {uri}: found {context.name}, {rate_hz} Hz, {context.layout.nb_channels} "
        f"channels in its header ({_describe(file)}{reason}), expected {MIN_SAMPLE_RATE_HZ} to "
        f"{MAX_SAMPLE_RATE_HZ} Hz and fitting channels; upload it again, or exclude it",
        uri=uri,
        kind="bad_stream",
    )


def _refused(container: str, file: GuardedFile, *, uri: str) -> DecodeError:
    return DecodeError(
        f"decoding {uri}: found the format {container} ({_describe(file)}), which is text, "
        "pictures or a list of files, expected audio in the file; list the recordings themselves",
        uri=uri,
        kind="refused_format",
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _describe(file: GuardedFile) -> str:
    # The first bytes, which identify an HTML error page.
    head = file.span(0, _DESCRIBED_BYTES)
    file.check()  # a read error takes precedence over the earlier one
    return f"{file.num_bytes} bytes, begins with {head[:16]!r}{_wav_claims(head)}"


def _wav_claims(head: bytes) -> str:
    # libav drops absurd values before they can be read.
    chunk = head.find(b"fmt ")
    if head[8:12] != b"WAVE" or not 0 < chunk <= len(head) - 24:
        return ""
    _, _, tag, channels, rate_hz, _, _, bits = struct.unpack_from("<4sIHHIIHH", head, chunk)
    return f", a WAV header of {rate_hz} Hz, {channels} channels, {bits} bits, format {tag}"


# A corpus file must never make a worker open another file, a host or a device, or render pictures
# or text, all of which libav does for suitable content, regardless of the name.
# These reference other files, hosts or devices.
_LEAD_ELSEWHERE = """
    concat hls hds dash smoothstreaming webm_dash_manifest imf image2 image2pipe lavfi avisynth
    vapoursynth sdp rtp rtp_mpegts rtsp sap whip fifo tee segment stream_segment,ssegment
    alsa fbdev kmsgrab oss pulse sndio jack openal v4l2 video4linux2,v4l2 x11grab xcbgrab
    iec61883 libcdio libdc1394 decklink dshow gdigrab vfwcap avfoundation android_camera
"""
# These are text, subtitles, pictures and other data: not audio, but a large attack surface.
_HOLD_NO_SOUND = """
    aqtitle ass jacosub lrc mcc microdvd mpl2 mpsub pjs realtext sami scc srt stl subviewer
    subviewer1 sup tedcaptions ttml vobsub vplayer webvtt dvbsub dvbtxt rcwt ffmetadata
    adf ansi bin idf tty xbin gif apng avif ico fits data rawvideo yuv4mpegpipe jpegxl_anim
    mjpeg mjpeg_2000 mpjpeg webp cdg
"""
_REFUSED = frozenset((_LEAD_ELSEWHERE + _HOLD_NO_SOUND).split())
_READ_BYTES = 1 << 16
# For decoders opened while probing; other cores are used by other processes.
_ONE_THREAD = {"threads": "1"}


@functools.cache
def allowed_containers() -> tuple[str, ...]:
    """Return the allowed containers that this build of libav supports."""
    return tuple(
        sorted(
            name
            for name in av.formats_available
            if name not in _REFUSED and not name.endswith("_pipe")
        )
    )


@functools.cache
def audio_codecs() -> tuple[str, ...]:
    """Return the codecs that decode audio."""
    return tuple(sorted(name for name in av.codecs_available if _decodes_audio(name)))


def _decodes_audio(name: str) -> bool:
    try:
        return av.Codec(name, "r").type == "audio"
    except av.codec.codec.UnknownCodecError:  # encoder only
        return False


@functools.cache
def _limits() -> dict[str, str]:
    return {
        # No protocol matches this name: playlists and references open nothing.
        "protocol_whitelist": "none",
        "format_whitelist": ",".join(allowed_containers()),
        # To probe a stream, libav decodes its beginning; cover art is decoded completely.
        "codec_whitelist": ",".join(audio_codecs()),
    }


def open_limited(file: Any) -> av.container.InputContainer:
    """Open a media file with allowed containers and audio codecs only."""
    container: av.container.InputContainer = av.open(
        file,
        mode="r",
        options=_ONE_THREAD,
        container_options=_limits(),
        metadata_errors="replace",  # tags in another encoding are no reason to reject the audio
        buffer_size=_READ_BYTES,
    )
    return container


def refused_container(file: Any) -> str | None:
    """Return the container for which `open_limited` rejected a file; None for other reasons.

    libav reports it in its log only, which is otherwise off: its threads must not call Python.
    """
    level, skipping = av.logging.get_level(), av.logging.get_skip_repeated()
    file.seek(0)
    try:
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # otherwise rejections of earlier files are logged here
        with av.logging.Capture(local=True) as messages:
            open_limited(file).close()
    except (av.error.FFmpegError, ValueError):
        pass  # expected; only the log messages matter
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skipping)
    refusals = (name for _, name, text in messages if text.startswith("Format not on whitelist"))
    return next(refusals, None)
