"""What kind of file it is, what its header claims, and failures that stay failures."""

import io
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.probe import GuardedFile, allowed_containers, audio_codecs
from corpus_asr.errors import DecodeError, FetchError
from tests.support.audio import BreakingFile, decode, encode, tone, wav_bytes

URI = "s3://bucket/talk.mp3"


def refused(data: bytes, *, uri: str = URI) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, uri=uri)
    assert caught.value.uri == uri
    assert str(caught.value).startswith(f"decoding {uri}: ")
    assert "expected" in str(caught.value)
    assert ";" in str(caught.value)  # and what to do
    return caught.value


def test_the_info_says_what_was_decoded_and_the_header_duration_is_not_believed():
    data = encode(tone(4, rate_hz=44100, num_channels=2), rate_hz=44100, container="mp3",
                  codec="libmp3lame")  # fmt: skip
    with open_audio(io.BytesIO(data[: len(data) // 2]), uri=URI) as decoder:
        assert decoder.info.codec == "mp3float"
        assert decoder.info.sample_rate_hz == 44100
        assert decoder.info.channels == 2
        assert decoder.num_channels == 1
        assert decoder.info.header_duration_s == pytest.approx(4, abs=0.2)
        assert sum(chunk.shape[1] for chunk in decoder) == pytest.approx(2 * 16000, abs=2000)


@pytest.mark.parametrize(
    ("data", "kind", "found"),
    [
        (b"", "empty_file", "0 bytes"),
        (b"<!DOCTYPE html><p>Access denied</p>" * 20, "not_audio", "b'<!DOCTYPE html><'"),
        (np.random.default_rng(0).bytes(20_000), "not_audio", "20000 bytes"),
        (wav_bytes(tone(1), rate_hz=0), "not_audio", " 0 Hz"),
        (wav_bytes(tone(1), rate_hz=4_000_000_000), "not_audio", "4000000000 Hz"),
        (wav_bytes(tone(1), rate_hz=16000, rate_hz_claimed=1), "bad_stream", " 1 Hz"),
        (wav_bytes(tone(1), rate_hz=16000, channels=65535), "bad_stream", "65535 channels"),
        (wav_bytes(tone(1), rate_hz=16000, channels=0), "bad_stream", " 0 channels"),
        (wav_bytes(tone(1), rate_hz=16000, tag=0x7777), "unsupported_codec", "format 30583"),
        (wav_bytes(tone(1), rate_hz=16000, bits=0), "unsupported_codec", " 0 bits"),
        (wav_bytes(tone(0), rate_hz=16000), "empty_audio", "pcm_s16le in wav"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_decoded_says_what_was_found(data, kind, found):
    error = refused(data)
    assert error.kind == kind
    assert found in str(error)
    assert not error.retryable


def test_a_video_without_sound_says_so():
    out = io.BytesIO()
    with av.open(out, mode="w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in [av.VideoFrame(64, 64, "yuv420p") for _ in range(5)]:
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    error = refused(out.getvalue())
    assert error.kind == "no_audio_stream"
    assert "found video stream" in str(error)


def test_the_name_may_be_anything():
    data = wav_bytes(tone(1), rate_hz=16000)
    for suffix in (".mp3", ".wav", "", ".m3u8", ".ünïcode", ".a\nb", ".%d.png"):
        assert decode(data, uri=f"s3://b/x{suffix}").shape == (1, 16000), suffix


def test_the_suffix_is_kept_as_a_hint_whether_or_not_a_query_follows():
    for uri, name in (
        ("s3://b/x.g722", "recording.g722"),
        ("https://host/x.g722?sig=a.b", "recording.g722"),
        ("https://host.org/x", "recording"),
        ("/a.d/what?.wav", "recording.wav"),
    ):
        assert GuardedFile(io.BytesIO(b""), uri=uri).name == name


STORE_FAILURE = FetchError("reading s3://b/talk.mp3: 503 from the store", uri=URI, kind="timeout")


def test_a_failing_store_is_a_fetch_error_at_any_point():
    data = wav_bytes(tone(30), rate_hz=16000)
    for error, offset, message in (
        (STORE_FAILURE, 0, "503 from the store"),
        (STORE_FAILURE, 100, "503 from the store"),
        (STORE_FAILURE, 200_000, "503 from the store"),
        (None, 500_000, r"0 bytes came at \d+ of 960044"),
        (OSError(5, "Input/output error"), 500_000, f"reading {re.escape(URI)}: OSError.*Input/"),
    ):
        with (
            pytest.raises(FetchError, match=message) as caught,
            open_audio(BreakingFile(data, error=error, offset=offset), uri=URI) as decoder,
        ):
            list(decoder)
        assert error is None or error in (caught.value, caught.value.__cause__)


@pytest.mark.long
@pytest.mark.parametrize(
    ("container", "codec", "sample_format"),
    [
        ("mp3", "libmp3lame", "fltp"),
        ("ogg", "libopus", "flt"),
        ("ipod", "aac", "fltp"),
        ("matroska", "libopus", "flt"),
    ],
)
def test_a_failing_store_never_looks_like_a_short_recording(container, codec, sample_format):
    data = encode(tone(60, rate_hz=48000), rate_hz=48000, container=container, codec=codec,
                  sample_format=sample_format)  # fmt: skip
    for share in (0.2, 0.5, 0.9, 0.999):
        file = BreakingFile(data, error=STORE_FAILURE, offset=int(share * len(data)))
        with pytest.raises(FetchError, match="503"), open_audio(file, uri=URI) as decoder:
            list(decoder)


def test_an_interrupt_while_reading_is_not_swallowed():
    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_audio(Interrupted(b"RIFF" * 1000), uri=URI)


def test_the_guard_never_gives_libav_more_than_it_asked_for():
    class Generous(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read()

    file = GuardedFile(Generous(b"x" * 100), uri=URI)
    assert file.read(10) == b""
    with pytest.raises(FetchError, match="100 bytes came at 0 of 100, expected 1 to 10"):
        file.check()


def test_the_guard_moves_like_a_file():
    file = GuardedFile(io.BytesIO(bytes(range(100))), uri=URI)
    assert file.seek(-10, 2) == 90
    assert file.seek(5, 1) == 95
    assert file.seek(-1) == -1
    assert file.tell() == 95
    assert file.read(10) == bytes(range(95, 100))
    assert file.read(10) == b""
    assert file.span(0, 3) == bytes(range(3))
    assert file.tell() == 100
    # A header that points far beyond the end is no failure of the store.
    assert file.seek(1 << 62) == 1 << 62
    assert file.read(10) == b""
    assert file.seek(-100, 2) == 0
    assert file.read(10) == bytes(range(10))
    file.check()


M3U8 = (
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:9.0,\n{target}\n#EXT-X-ENDLIST\n"
)
DASH = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>'
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
SDP += "m=audio 5004 RTP/AVP 0\r\n"
SUBTITLES = "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:00:03,000 --> 00:00:04,000\nthere\n"
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 9, 9, 8, 2, 0, 0, 0)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.wav"
    path.write_bytes(wav_bytes(tone(1), rate_hz=16000))
    return path


@pytest.mark.parametrize("suffix", ["mp3", "m3u8", "wav", "mp4", "ffconcat", "bin"])
@pytest.mark.parametrize(
    "script", [M3U8, "ffconcat version 1.0\nfile '{target}'\n", SDP, DASH, SUBTITLES]
)
def test_what_leads_elsewhere_is_refused_under_any_name(script: str, suffix: str, secret: Path):
    for target in (str(secret), f"file:{secret}", "http://127.0.0.1:9/a.ts"):
        data = script.replace("{target}", target).encode()
        error = refused(data, uri=f"s3://b/talk.{suffix}")
        assert error.kind in ("refused_format", "not_audio")
        assert "expected" in str(error)


@pytest.mark.parametrize(
    ("data", "name", "container"),
    [
        (M3U8.replace("{target}", "http://127.0.0.1:9/a.ts").encode(), "a.m3u8", "hls"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "a.mp3", "concat"),
        (SDP.encode(), "a.wav", "sdp"),
        (SUBTITLES.encode(), "a.mp3", "srt"),
        (b"hello world\n" * 50, "a.ans", "tty"),
        (PNG + bytes(500), "cover.png", "png_pipe"),
    ],
)
def test_the_refusal_names_what_was_found(data: bytes, name: str, container: str):
    error = refused(data, uri=f"s3://b/{name}")
    assert error.kind == "refused_format"
    assert f"found the format {container} (" in str(error)
    assert f"{len(data)} bytes" in str(error)
    assert av.logging.get_level() is None  # as it was


def test_an_mp4_that_refers_to_another_file_does_not_open_it(secret: Path):
    silent = tone(1, amplitude=0.0)
    data = encode(silent, rate_hz=16000, container="mov", codec="pcm_s16le", sample_format="s16")
    assert not decode(data, uri="a.mov").any()
    try:
        transcribed = decode(_with_reference(data, secret.as_uri()), uri="a.mov")
    except DecodeError:
        return
    assert not transcribed.any()  # its own samples, not the tone of the other file


def _with_reference(data: bytes, target: str) -> bytes:
    """Make the `dref` of a mov file point to another file; the boxes around it grow."""
    start = data.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", data, start)
    name = target.encode() + b"\0"
    entry = struct.pack(">I4sI", 12 + len(name), b"url ", 0) + name
    reference = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    changed = bytearray(data)
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = data.index(parent) - 4
        (before,) = struct.unpack_from(">I", data, at)
        struct.pack_into(">I", changed, at, before + len(reference) - size)
    return bytes(changed[:start] + reference + changed[start + size :])


def test_pictures_are_not_decoded():
    names = audio_codecs()
    assert {"mp3float", "aac", "flac", "opus", "pcm_s16le"} <= set(names)
    assert not {"png", "mjpeg", "h264", "hevc", "srt", "ass"} & set(names)


def test_what_holds_sound_stays_allowed():
    names = set(allowed_containers())
    for wanted in ("wav", "mp3", "flac", "ogg", "matroska,webm", "asf", "avi", "mpegts", "amr"):
        assert wanted in names
    assert "mov,mp4,m4a,3gp,3g2,mj2" in names
    for leading in ("hls", "dash", "concat", "image2", "lavfi", "sdp", "rtsp", "tty", "png_pipe"):
        assert leading not in names
