"""Open a recording with allowed containers and codecs only, and find its audio stream."""

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

# Outside of these no recording of speech is meant: a header of 1 Hz or 4 GHz is damaged. Ultrasonic
# and 1-bit recordings reach megahertz.
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 4_000_000

_DESCRIBED_BYTES = 4096


class BinarySource(Protocol):
    """What decoding needs of a binary file object."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; nothing at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move, and return the position from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What a recording's audio is, once its first samples were decoded."""

    codec: str
    sample_rate_hz: int
    """Before resampling."""
    channels: int
    header_duration_s: float | None
    """What the header claims; wrong in damaged and in streamed files."""


class GuardedFile:
    """A file object for libav that remembers the failure libav would turn into an end of file.

    libav calls `read` from C, where an exception has no way out: it would end the recording early,
    and a broken store would look like a short recording. So a failure is kept, libav sees the end
    of the file, and `check` raises the failure.
    """

    def __init__(self, file: BinarySource, *, uri: str) -> None:
        self._file = file
        self._uri = uri
        self._position = 0  # where libav believes to be
        self._file_position = 0  # moves only to read: damaged headers point anywhere
        self._failure: BaseException | None = None
        self._mended: tuple[int, bytes] | None = None
        try:
            self.num_bytes = file.seek(0, 2)
            file.seek(0)
        except OSError as error:
            raise self._fetch_error(f"its size cannot be found ({error})") from error
        # Headerless formats (g722, sbc, ...) are known by their suffix only. The rest of a name is
        # of no use to libav, and hostile ones cannot hurt it this way. A query may follow it.
        suffix = re.search(r"(\.[A-Za-z0-9]{1,8})(\?\S*)?$", uri)
        self.name = f"recording{suffix.group(1) if suffix else ''}"

    def check(self) -> None:
        """Raise what reading raised; FetchError for an `OSError` or an end before the size."""
        if self._failure is not None:
            raise self._failure

    def head(self, num_bytes: int) -> bytes:
        """Read the first bytes, for messages, and return to the position."""
        return self.span(0, num_bytes)

    def span(self, start: int, num_bytes: int) -> bytes:
        """Read bytes from anywhere, and return to the position."""
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
        """Whether its header was wrong."""
        return self._mended is not None

    def mend(self, at: int, data: bytes, *, end: int) -> None:
        """Let `data` stand at a place of the file, and the file end, in all reads from now on."""
        self._mended, self.num_bytes = (at, data), end

    def read(self, num_bytes: int) -> bytes:
        """Read up to `num_bytes`; nothing at the end and after a failure."""
        if self._failure is not None or self._position >= self.num_bytes:
            return b""
        try:
            if self._file_position != self._position:
                self._file.seek(self._position)
            data = self._file.read(num_bytes)
            if not 0 < len(data) <= num_bytes:  # more than asked for would overrun libav's buffer
                description = f"{len(data)} bytes came at {self._position} of {self.num_bytes}"
                raise self._fetch_error(f"{description}, expected 1 to {num_bytes}")
        except BaseException as error:  # kept, not swallowed: `check` raises it
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
        """Move to `offset` from the start (0), here (1) or the end (2); -1 before the start."""
        target = (0, self._position, self.num_bytes)[whence] + offset
        if target < 0:
            return -1
        self._position = target
        return target

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Return true: range reads are what makes hour-long files bearable."""
        return True

    def _fetch_error(self, found: str) -> FetchError:
        return FetchError(
            f"reading {self._uri}: {found}; run again once the store answers", uri=self._uri
        )


def open_container(file: GuardedFile, *, uri: str) -> av.container.InputContainer:
    """Recognize the container and read its headers."""
    if file.num_bytes == 0:
        raise DecodeError(
            f"decoding {uri}: the file is empty (0 bytes), expected a media file; upload it again "
            "or leave it out",
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
            f"decoding {uri}: not recognized as audio or video "
            f"({_reason(error)}; {_describe(file)}), expected a media file that FFmpeg reads; "
            "upload it again or leave it out",
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
    """Open the best audio track's decoder, make the demuxer skip all else, and name its likes.

    `track` and `languages` are those of `tracks.in_order`, whose answer is the second value: the
    first of them was opened.
    """
    tracks = audio_tracks(container)
    if not tracks:
        streams = ", ".join(f"{stream.type} stream" for stream in container.streams) or "no stream"
        raise DecodeError(
            f"decoding {uri}: no audio stream (found {streams} in {container.format.name}), "
            "expected at least one; leave it out",
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
    """Read the duration the header claims, of the stream or else of the container."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    return seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderInfo:
    """What a recording's header claims."""

    duration_s: float | None
    channels: int
    """Of the track that is transcribed."""
    tracks: tuple[AudioTrack, ...]
    """All audio tracks."""
    wanted: tuple[AudioTrack, ...]
    """Those that may be transcribed, best first."""


def read_header(
    file: BinarySource, *, uri: str, track: str | int = AUTO_TRACK, languages: Sequence[str] = ()
) -> HeaderInfo:
    """Read what a recording's header claims; decodes nothing.

    Raises:
        DecodeError: it holds no audio that can be decoded, or not the track.
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
            f"decoding {uri}: no decoder for its audio codec ({_describe(file)}), expected one "
            "that this build of FFmpeg knows; convert it or leave it out",
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
        f"decoding {uri}: its header describes no audio that can be decoded (found {context.name}, "
        f"{rate_hz} Hz, {context.layout.nb_channels} channels{reason}; {_describe(file)}), "
        f"expected {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz and a channel count that the "
        "codec allows; upload it again or leave it out",
        uri=uri,
        kind="bad_stream",
    )


def _refused(container: str, file: GuardedFile, *, uri: str) -> DecodeError:
    return DecodeError(
        f"decoding {uri}: found what FFmpeg calls {container} ({_describe(file)}), which is text, "
        "pictures or a list of other files; expected a file that holds sound itself, as nothing "
        "else is opened for it; list the recordings themselves, or leave it out",
        uri=uri,
        kind="refused_format",
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _describe(file: GuardedFile) -> str:
    # How it begins: an HTML error page shows itself so.
    head = file.head(_DESCRIBED_BYTES)
    file.check()  # a store that fails now is the news, not what was found before
    return f"{file.num_bytes} bytes, begins with {head[:16]!r}{_wav_claims(head)}"


def _wav_claims(head: bytes) -> str:
    # libav forgets absurd values before anyone can ask for them.
    chunk = head.find(b"fmt ")
    if head[8:12] != b"WAVE" or not 0 < chunk <= len(head) - 24:
        return ""
    _, _, tag, channels, rate_hz, _, _, bits = struct.unpack_from("<4sIHHIIHH", head, chunk)
    return f", a WAV header of {rate_hz} Hz, {channels} channels, {bits} bits, format {tag}"


# An object of the corpus must never make a worker open another file, a host or a device, nor render
# pictures or text: libav does all of that for a file that looks the part, whatever its name.
# These name other files, hosts or devices.
_LEAD_ELSEWHERE = """
    concat hls hds dash smoothstreaming webm_dash_manifest imf image2 image2pipe lavfi avisynth
    vapoursynth sdp rtp rtp_mpegts rtsp sap whip fifo tee segment stream_segment,ssegment
    alsa fbdev kmsgrab oss pulse sndio jack openal v4l2 video4linux2,v4l2 x11grab xcbgrab
    iec61883 libcdio libdc1394 decklink dshow gdigrab vfwcap avfoundation android_camera
"""
# These are texts, subtitles, pictures and other data: no sound, but much code that bytes can upset.
_HOLD_NO_SOUND = """
    aqtitle ass jacosub lrc mcc microdvd mpl2 mpsub pjs realtext sami scc srt stl subviewer
    subviewer1 sup tedcaptions ttml vobsub vplayer webvtt dvbsub dvbtxt rcwt ffmetadata
    adf ansi bin idf tty xbin gif apng avif ico fits data rawvideo yuv4mpegpipe jpegxl_anim
    mjpeg mjpeg_2000 mpjpeg webp cdg
"""
_REFUSED = frozenset((_LEAD_ELSEWHERE + _HOLD_NO_SOUND).split())
_READ_BYTES = 1 << 16
# For the decoders libav opens while it looks at the streams; the machine's cores belong to others.
_ONE_THREAD = {"threads": "1"}


@functools.cache
def allowed_containers() -> tuple[str, ...]:
    """Name the containers that may be read, of those this build of libav knows."""
    return tuple(
        sorted(
            name
            for name in av.formats_available
            if name not in _REFUSED and not name.endswith("_pipe")
        )
    )


@functools.cache
def audio_codecs() -> tuple[str, ...]:
    """Name the codecs that decode audio."""
    return tuple(sorted(name for name in av.codecs_available if _decodes_audio(name)))


def _decodes_audio(name: str) -> bool:
    try:
        return av.Codec(name, "r").type == "audio"
    except av.codec.codec.UnknownCodecError:  # it only encodes
        return False


@functools.cache
def _limits() -> dict[str, str]:
    return {
        # No protocol, as the name matches none: a playlist or a reference opens nothing.
        "protocol_whitelist": "none",
        "format_whitelist": ",".join(allowed_containers()),
        # To find out what a stream is, libav decodes its beginning: of cover art all of it.
        "codec_whitelist": ",".join(audio_codecs()),
    }


def open_limited(file: Any) -> av.container.InputContainer:
    """Open a media file with allowed containers and audio codecs only."""
    container: av.container.InputContainer = av.open(
        file,
        mode="r",
        options=_ONE_THREAD,
        container_options=_limits(),
        metadata_errors="replace",  # a tag in another alphabet is no reason to lose the audio
        buffer_size=_READ_BYTES,
    )
    return container


def refused_container(file: Any) -> str | None:
    """Name the container for which `open_limited` refused a file; None if it had another reason.

    libav tells in its log only. That is off else, as Python must not be called from its threads.
    """
    level, skipping = av.logging.get_level(), av.logging.get_skip_repeated()
    file.seek(0)
    try:
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # else refusals of earlier files are logged here
        with av.logging.Capture(local=True) as messages:
            open_limited(file).close()
    except (av.error.FFmpegError, ValueError):
        pass  # as before; what matters is what it said
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skipping)
    refusals = (name for _, name, text in messages if text.startswith("Format not on whitelist"))
    return next(refusals, None)
