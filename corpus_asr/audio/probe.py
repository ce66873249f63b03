"""Opens a recording with allowed containers and codecs only, and selects its audio track.

Films and broadcasts have several tracks: languages, commentaries, audio descriptions, a camera's
second microphone. Players play one at a time, numbered from 1.
"""

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import av.codec.codec
import av.container
import av.error
import av.logging
from av.audio.codeccontext import AudioCodecContext
from av.stream import Discard, Disposition

from corpus_asr.audio.guarded_file import BinarySource, GuardedFile, correct_length
from corpus_asr.config.decoding import ALL_TRACKS, AUTO_TRACK
from corpus_asr.errors import DecodeError
from corpus_asr.languages import code_of

# Speech recordings are within these rates: a header with 1 Hz or 4 GHz is damaged. Ultrasonic and
# 1-bit recordings reach megahertz.
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 4_000_000

_DESCRIBED_BYTES = 4096

# For special audiences, or about the film: players only play them on request.
_SPECIAL = (
    Disposition.comment
    | Disposition.descriptions
    | Disposition.visual_impaired
    | Disposition.hearing_impaired
    | Disposition.clean_effects
    | Disposition.karaoke
)
_TITLE_CHARACTERS = 80
# ISO 639-2 codes: undetermined, several, none, and "other" as written by some muxers.
_UNKNOWN_LANGUAGES = ("", "und", "mul", "zxx", "qaa")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """Audio format of a recording, known after its first samples were decoded."""

    codec: str
    sample_rate_hz: int
    """Sample rate before resampling, in Hz."""
    channels: int
    header_duration_s: float | None
    """Duration in the header in seconds; wrong in damaged and in streamed files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioTrack:
    """One audio track of a recording, as its header describes it."""

    number: int
    """Number among the audio tracks, from 1."""
    language: str | None
    """Language code in the container, such as `eng`; None without one."""
    title: str | None
    is_default: bool
    is_special: bool
    """Whether it is a commentary, a description or for a special audience."""
    is_readable: bool
    """Whether libav supports its codec, rate and channels."""

    @property
    def name(self) -> str:
        """Language and title; empty if the container has neither."""
        return ": ".join(filter(None, (self.language, self.title)))


def open_container(file: GuardedFile, *, uri: str) -> av.container.InputContainer:
    """Detect the container format and read its headers."""
    if file.num_bytes == 0:
        raise DecodeError(
            f"decoding {uri}: found an empty file (0 bytes), expected a media file; upload it "
            "again, or exclude it",
            uri=uri,
            kind="empty_file",
        )
    correct_length(file)
    try:
        container = open_limited(file)
    except (av.error.FFmpegError, ValueError) as error:
        file.check()
        _check_pointer(file, uri=uri)
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


# What Git LFS and git-annex leave in place of contents that were not fetched.
_POINTERS = {
    b"version https://git-lfs.github.com/": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}


def _check_pointer(file: GuardedFile, *, uri: str) -> None:
    head = file.span(0, max(map(len, _POINTERS)))
    for start, (program, command) in _POINTERS.items():
        if head.startswith(start):
            raise DecodeError(
                f"decoding {uri}: found a pointer of {program}, expected the recording that it "
                f"stands for; run {command}",
                uri=uri,
                kind="pointer",
            )


def has_audio(file: BinarySource, *, uri: str) -> bool:
    """Return whether a file is a sound or film with an audio track.

    Raises:
        FetchError: reading failed.
    """
    guarded = GuardedFile(file, uri=uri)
    try:
        with open_limited(guarded) as container:
            found = bool(container.streams.audio)
    except (av.error.FFmpegError, ValueError):
        found = False
    guarded.check()
    return found


def audio_tracks(container: av.container.InputContainer) -> tuple[AudioTrack, ...]:
    """Return the audio tracks of an open container, in its order."""
    return tuple(
        _described(number, stream) for number, stream in enumerate(container.streams.audio, 1)
    )


def in_order(
    tracks: Sequence[AudioTrack], *, track: str | int, languages: Sequence[str], uri: str
) -> list[AudioTrack]:
    """Return the tracks that may be transcribed, best first; all of them for `all`.

    Args:
        tracks: at least one.
        track: `auto`, `all`, a number from 1, or a language by code, tag or name.
        languages: codes of the expected languages, most likely first; empty: any.
        uri: names the recording in messages.

    Raises:
        DecodeError: kind `no_such_track`.
    """
    if track == ALL_TRACKS:
        return list(tracks)
    matches = tracks
    if isinstance(track, int):
        matches = tracks[track - 1 : track] if track > 0 else ()
    elif track != AUTO_TRACK:
        matches = [
            audio_track
            for audio_track in tracks
            if _language(audio_track) == code_of(track).lower()
        ]
    if not matches:
        raise DecodeError(
            f"decoding {uri}: found audio tracks {listed(tracks)}, expected {track}; set "
            "extract.track (--audio-track) to one of these, auto or all",
            uri=uri,
            kind="no_such_track",
        )
    return sorted(matches, key=lambda match: _rank(match, languages))


def listed(tracks: Sequence[AudioTrack]) -> str:
    """Return a list of tracks for a message, such as `1 eng, 2 deu, 3`."""
    return ", ".join(f"{track.number} {track.name}".rstrip() for track in tracks)


def _rank(track: AudioTrack, languages: Sequence[str]) -> tuple[bool | int, ...]:
    # The language has precedence over the default: if another language is expected, a film's
    # default track is the wrong one. A track without a language may have any.
    language = _language(track)
    expected = len(languages)
    if language in languages:
        expected = languages.index(language)
    elif language is not None:
        expected += bool(languages)
    return (not track.is_readable, track.is_special, expected, not track.is_default, track.number)


def _language(track: AudioTrack) -> str | None:
    return None if track.language is None else code_of(track.language).lower()


def _described(number: int, stream: av.AudioStream) -> AudioTrack:
    context: AudioCodecContext | None = stream.codec_context
    is_known = context is not None and bool(context.sample_rate and context.layout.nb_channels)
    language = _printable(stream.language)
    title = _printable(stream.metadata.get("title"))[:_TITLE_CHARACTERS]
    return AudioTrack(
        number=number,
        language=None if language.lower() in _UNKNOWN_LANGUAGES else language,
        title=title or None,
        is_default=bool(stream.disposition & Disposition.default),
        is_special=bool(stream.disposition & _SPECIAL),
        is_readable=is_known,
    )


def _printable(text: str | None) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def select_stream(
    container: av.container.InputContainer,
    file: GuardedFile,
    *,
    uri: str,
    track: str | int = AUTO_TRACK,
    languages: Sequence[str] = (),
) -> tuple[av.AudioStream, list[AudioTrack]]:
    """Open the best audio track's decoder, make the demuxer skip what is not audio.

    `track` and `languages` are as in `in_order`, whose result is the second value; its first
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
    select_audio(container)
    return stream, wanted


def select_audio(container: av.container.InputContainer) -> None:
    """Make the demuxer skip all streams that are not audio."""
    for stream in container.streams:
        if stream.type != "audio":
            stream.discard = Discard.all


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
