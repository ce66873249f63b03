"""Which containers and codecs of libav may touch a recording, and opening one with no others.

In: a file object of unknown content. Out: an open libav container. An object of the corpus must
never make a worker open another file, a host or a device, nor render pictures or text: libav
can do all of that to a file that merely looks the part, whatever its name. Knows nothing of audio
streams and samples.
"""

import functools
from typing import Any

import av
import av.codec.codec
import av.container
import av.error
import av.logging

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
    """Open a media file with allowed containers and audio codecs only.

    Args:
        file: seekable, with a `name`; at its start.

    Raises:
        av.error.FFmpegError: libav does not recognise it, or may not read it.
        ValueError: its header is absurd.
    """
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
        av.logging.set_skip_repeated(False)  # else refusals of earlier files are told here
        with av.logging.Capture(local=True) as messages:
            open_limited(file).close()
    except (av.error.FFmpegError, ValueError):
        pass  # as before; what matters is what it said
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skipping)
    refusals = (name for _, name, text in messages if text.startswith("Format not on whitelist"))
    return next(refusals, None)
