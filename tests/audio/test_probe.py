"""What kind of file it is, what its header claims, and which of several tracks is decoded."""

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from corpus_asr.audio.decode import AudioDecoder, open_audio
from corpus_asr.audio.probe import (
    AudioTrack,
    allowed_containers,
    audio_codecs,
    in_order,
    listed,
    read_header,
)
from corpus_asr.errors import DecodeError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import decode, encode, share_of_tone, tone, wav_bytes
from tests.support.films import Track, film

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


@pytest.mark.parametrize(
    ("data", "command"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "lfs pull"),
        (b"/annex/objects/SHA256E-s1234--4d7a.mp3\n", "annex get"),
    ],
)
@pytest.mark.parametrize("suffix", ["mp3", "wav", "txt"])
def test_a_pointer_is_to_be_fetched(data: bytes, command: str, suffix: str):
    error = refused(data, uri=f"s3://b/talk.{suffix}")
    assert error.kind == "pointer"
    assert f"run git {command}" in str(error)


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


DEFAULT, COMMENT = Disposition.default, Disposition.comment
BLIND = Disposition.visual_impaired
PITCHES_HZ = (440.0, 1_000.0, 2_500.0)


def tones(*said: dict[str, Any]) -> list[Track]:
    """Make a track of each, told by its pitch."""
    return [
        Track(samples=tone(1.0, hz=hz, rate_hz=SAMPLE_RATE_HZ)[0], **each)
        for hz, each in zip(PITCHES_HZ, said, strict=False)
    ]


def decoder(data: bytes, **asked: Any) -> AudioDecoder:
    return open_audio(io.BytesIO(data), uri="film.mkv", **asked)


def sounding(data: bytes, **asked: Any) -> int:
    """Return the number of the track that is decoded, by its sound."""
    with decoder(data, **asked) as opened:
        samples = np.concatenate(list(opened), axis=1)[0]
    shares = [share_of_tone(samples, hz) for hz in PITCHES_HZ]
    assert max(shares) > 0.5
    return int(np.argmax(shares)) + 1


@pytest.mark.parametrize("container", ["matroska", "mov", "mp4", "mpegts"])
def test_a_track_is_found_by_its_number_in_every_container(container: str):
    data = film(tones({"language": "eng"}, {"language": "ger"}, {"language": "fra"}), container)
    assert [sounding(data, track=number) for number in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
@pytest.mark.parametrize("asked", ["de", "deu", "ger", "German", "Deutsch", "de-AT"])
def test_a_track_is_found_by_its_language_however_it_is_written(container: str, asked: str):
    data = film(tones({"language": "eng"}, {"language": "ger"}), container)
    assert sounding(data, track=asked) == 2


def test_by_default_it_is_the_one_that_players_take():
    plain = tones({"language": "eng"}, {"language": "ger"})
    assert sounding(film(plain)) == 1
    marked = tones({"language": "eng"}, {"language": "ger", "disposition": DEFAULT})
    assert sounding(film(marked)) == 2
    # More channels, a higher rate or more packets are no reason.
    both = tones({"disposition": DEFAULT}, {"disposition": DEFAULT})
    assert sounding(film(both)) == 1
    # Nor are commentaries and descriptions, unless there is nothing else.
    described = tones({"disposition": DEFAULT | BLIND}, {"disposition": COMMENT}, {})
    assert sounding(film(described)) == 3
    assert sounding(film(described[:2])) == 1


def test_the_language_that_is_spoken_counts_before_the_default():
    data = film(tones({"language": "eng", "disposition": DEFAULT}, {"language": "ger"}))
    assert sounding(data, languages=("de",)) == 2
    assert sounding(data, languages=("fr", "de")) == 2
    assert sounding(data, languages=("fr",)) == 1
    # One that tells no language may hold any: better than one that tells another.
    data = film(tones({"language": "eng", "disposition": DEFAULT}, {}, {}), "mp4")
    assert sounding(data, languages=("de",)) == 2


@pytest.mark.parametrize("asked", [3, 99, "fr", "qtx"])
def test_a_track_that_is_not_there_is_refused_with_those_that_are(asked: str | int):
    data = film(tones({"language": "eng"}, {"language": "ger", "title": "Kommentar"}))
    with pytest.raises(
        DecodeError, match=r"found audio tracks 1 eng, 2 ger: Kommentar.*--audio-track"
    ) as found:
        decoder(data, track=asked)
    assert found.value.kind == "no_such_track"
    assert f"expected {asked}; set" in str(found.value)


def test_titles_cannot_upset_a_terminal_or_a_line():
    title = "\x1b[31mred\n\x07" + "long " * 100
    with decoder(film(tones({"title": title}, {}))) as opened:
        words = listed(opened.tracks)
    assert words.isprintable()
    assert len(words) < 100


def test_a_header_names_the_tracks_and_their_order():
    data = film(tones({"language": "eng"}, {"language": "ger", "disposition": DEFAULT}))
    found = read_header(io.BytesIO(data), uri="film.mkv")
    assert [each.language for each in found.tracks] == ["eng", "ger"]
    assert [each.number for each in found.wanted] == [2, 1]
    assert found.duration_s == pytest.approx(1.0, abs=0.1)


def test_a_track_that_cannot_be_decoded_comes_last():
    def track(number: int, *, is_readable: bool) -> AudioTrack:
        return AudioTrack(number=number, language=None, title=None, is_default=number == 1,
                          is_special=False, is_readable=is_readable)  # fmt: skip

    tracks = [track(1, is_readable=False), track(2, is_readable=True)]
    found = in_order(tracks, track="auto", languages=(), uri="film.mkv")
    assert [each.number for each in found] == [2, 1]
    assert in_order(tracks, track=1, languages=(), uri="film.mkv") == tracks[:1]


def test_recordings_of_one_track_are_as_they_were():
    data = film(tones({"language": "eng"}))
    for track in ("auto", "all", 1, "en"):
        with decoder(data, track=track) as opened:
            assert [each.number for each in opened.tracks] == [1]
            assert np.concatenate(list(opened), axis=1).shape == (1, SAMPLE_RATE_HZ)
