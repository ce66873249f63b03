"""Files that look like media and lead elsewhere, or hold pictures and texts, open nothing."""

import struct
from pathlib import Path

import av
import pytest

from corpus_asr.audio.containers import allowed_containers, audio_codecs
from corpus_asr.errors import DecodeError
from tests.support.audio import decode, encode, tone, wav_bytes

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


def refused(data: bytes, uri: str) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, uri=uri)
    return caught.value


@pytest.mark.parametrize("suffix", ["mp3", "m3u8", "wav", "mp4", "ffconcat", "bin"])
@pytest.mark.parametrize(
    "script", [M3U8, "ffconcat version 1.0\nfile '{target}'\n", SDP, DASH, SUBTITLES]
)
def test_what_leads_elsewhere_is_refused_under_any_name(script: str, suffix: str, secret: Path):
    for target in (str(secret), f"file:{secret}", "http://127.0.0.1:9/a.ts"):
        data = script.replace("{target}", target).encode()
        error = refused(data, f"s3://b/talk.{suffix}")
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
    error = refused(data, f"s3://b/{name}")
    assert error.kind == "refused_format"
    assert f"what FFmpeg calls {container} (" in str(error)
    assert f"{len(data)} bytes" in str(error)
    assert av.logging.get_level() is None  # as it was


def test_an_mp4_that_refers_to_another_file_does_not_open_it(secret: Path):
    silent = tone(1, amplitude=0.0)
    data = encode(silent, rate_hz=16000, container="mov", codec="pcm_s16le", sample_format="s16")
    assert not decode(data, uri="a.mov").any()
    try:
        heard = decode(_with_reference(data, secret.as_uri()), uri="a.mov")
    except DecodeError:
        return
    assert not heard.any()  # its own samples, not the tone of the other file


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
