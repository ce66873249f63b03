"""Whole recordings, whatever their format, channels and damage."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.audio import decode as decode_module
from corpus_asr.audio.decode import AudioFormat, encode_audio, open_audio
from corpus_asr.audio.probe import open_container
from corpus_asr.audio.sound_digest import sound_digest
from corpus_asr.errors import DecodeError
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import (
    DamagedContainer,
    EndlessNoise,
    decode,
    encode,
    level,
    noise,
    read_manifest,
    share_of_tone,
    tone,
    wav_bytes,
)
from tests.support.films import Track, film

# Lossy codecs pad to whole frames and may keep their delay: at most two frames of 1,152 at 16 kHz.
CODEC_DELAY_S = 0.15
# ... and ogg timestamps end with a page.
# The sound of fmt_wma.wma begins 0.09 s after its container, as players show it.
REAL_FILE_S = 0.1
AUDIBLE = 1e-5  # the quietest file was made 60 dB too quiet

FORMATS = {  # container, codec, sample format, rate, options
    "mp3": ("mp3", "libmp3lame", "fltp", 44100, {}),
    "mp3 at 16 kHz": ("mp3", "libmp3lame", "fltp", 16000, {}),
    "mp2": ("mp2", "mp2", "s16", 48000, {}),
    "m4a": ("ipod", "aac", "fltp", 44100, {}),
    "fragmented mp4": ("mp4", "aac", "fltp", 48000, {}),
    "adts": ("adts", "aac", "fltp", 22050, {}),
    "alac": ("ipod", "alac", "s16p", 44100, {}),
    "ogg opus": ("ogg", "libopus", "flt", 48000, {}),
    "webm opus": ("webm", "libopus", "flt", 48000, {}),
    "ogg vorbis": ("ogg", "vorbis", "fltp", 44100, {"strict": "experimental"}),
    "flac": ("flac", "flac", "s16", 44100, {}),
    "flac of 24 bits": ("flac", "flac", "s32", 96000, {}),
    "ogg flac": ("ogg", "flac", "s16", 16000, {}),
    "ac3": ("ac3", "ac3", "fltp", 48000, {}),
    "aiff": ("aiff", "pcm_s16be", "s16", 44100, {}),
    "wav of 24 bits": ("wav", "pcm_s24le", "s32", 44100, {}),
    "mu-law wav": ("wav", "pcm_mulaw", "s16", 8000, {}),
    "mpeg ts": ("mpegts", "aac", "fltp", 48000, {}),
    "g722": ("g722", "g722", "s16", 16000, {}),
}
MONO = ("mu-law wav", "g722", "mp3 at 16 kHz")


def encoded(samples: np.ndarray, name: str) -> bytes:
    container, codec, sample_format, rate_hz, options = FORMATS[name]
    return encode(samples, rate_hz=rate_hz, container=container, codec=codec,
                  sample_format=sample_format, **options)  # fmt: skip


def mp3(seconds: float, *, hz: float = 440, rate_hz: int = 44100, num_channels: int = 2) -> bytes:
    samples = tone(seconds, hz=hz, rate_hz=rate_hz, num_channels=num_channels)
    return encode(samples, rate_hz=rate_hz, container="mp3", codec="libmp3lame")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_sound_it_holds(name):
    channels = 1 if name in MONO else 2
    original = tone(2, rate_hz=FORMATS[name][3], num_channels=channels)
    found = decode(encoded(original, name), uri=f"s3://bucket/talk.{name}")
    assert found.dtype == np.float32
    assert found.shape[0] == 1
    assert found.shape[1] / SAMPLE_RATE_HZ == pytest.approx(2, abs=CODEC_DELAY_S)
    middle = found[0, 8000:24000]
    assert share_of_tone(middle, 440) > 0.99
    assert level(middle) == pytest.approx(level(original), rel=0.1)


@pytest.mark.parametrize("name", [*FORMATS, "film"])
def test_the_digest_is_that_of_reading_alone(name):
    tracks = [Track(samples=noise(3)[0]), Track(samples=noise(4)[0])]
    if name == "film":
        data = film(tracks)
    else:
        channels = 1 if name in MONO else 2
        data = encoded(tone(2, rate_hz=FORMATS[name][3], num_channels=channels), name)
    uri = f"s3://bucket/talk.{name}"
    with open_audio(io.BytesIO(data), uri=uri) as decoder:
        assert decoder.sound_digest is None
        for _ in decoder:
            pass
        digest = decoder.sound_digest
    assert digest == sound_digest(io.BytesIO(data), uri=uri) is not None


@pytest.mark.parametrize("num_samples", [1, 2, 33, 64, 65, 500, 16001])
@pytest.mark.parametrize("rate_hz", [1000, 8000, 16000, 44100, 192_000])
def test_the_shortest_recordings_yield_what_they_have(num_samples, rate_hz):
    samples = np.full((1, num_samples), 0.5, dtype=np.float32)
    found = decode(wav_bytes(samples, rate_hz=rate_hz))
    assert found.shape[1] == pytest.approx(num_samples * 16000 / rate_hz, abs=1)
    assert found.shape[1] >= 1


# Channels.


@pytest.mark.parametrize("num_channels", [2, 3, 8, 64, 255])
def test_many_channels_are_averaged(num_channels):
    samples = noise(0.5, num_channels=num_channels)
    found = decode(wav_bytes(samples, rate_hz=16000))
    assert found.shape == (1, 8000)
    if num_channels != 8:  # which has a layout, and shares by loudspeaker
        np.testing.assert_allclose(found[0], samples.mean(axis=0), atol=1e-4)


def test_eight_planar_channels_do_not_kill_the_process():
    rows = [tone(1, hz=200 + 100 * index, rate_hz=48000) for index in range(8)]
    data = encode(np.concatenate(rows), rate_hz=48000, container="ipod", codec="aac", layout="7.1",
                  b="512k")  # fmt: skip
    found = decode(data, channels="each")
    assert found.shape[0] == 8
    assert level(decode(data)) > 0.01


@pytest.mark.parametrize("num_channels", [2, 6, 20])
def test_each_channel_comes_in_its_row(num_channels):
    samples = np.concatenate(
        [tone(12, hz=200 + 100 * i, rate_hz=8000) for i in range(num_channels)]
    )
    data = wav_bytes(samples, rate_hz=8000)
    with open_audio(io.BytesIO(data), uri="memory", channels="each") as decoder:
        assert decoder.num_channels == num_channels
        chunks = list(decoder)
    found = np.concatenate(chunks, axis=1)
    assert found.shape == (num_channels, 12 * 16000)
    for index, row in enumerate(found):
        assert share_of_tone(row, 200 + 100 * index) > 0.999
    one = decode(data, channels=num_channels - 1)
    np.testing.assert_array_equal(one[0], found[-1])


def test_a_channel_that_is_not_there_is_refused_with_what_is():
    with pytest.raises(DecodeError, match=r"found 2 channels .*, expected channel 2") as caught:
        decode(wav_bytes(noise(1, num_channels=2), rate_hz=16000), channels=2)
    assert caught.value.kind == "no_such_channel"
    wrong: tuple[Any, ...] = (-1, "left")
    for channels in wrong:
        with pytest.raises((ValueError, TypeError), match="channels"):
            decode(wav_bytes(noise(1), rate_hz=16000), channels=channels)


# Damage and changes in mid-stream.


def test_a_damaged_stretch_in_the_middle_costs_only_itself():
    with open_audio(io.BytesIO(mp3(3)), uri="memory") as decoder:
        list(decoder)
        assert decoder.decode_errors == 0
    data = bytearray(mp3(20))
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    with open_audio(io.BytesIO(bytes(data)), uri="memory") as decoder:
        found = np.concatenate(list(decoder), axis=1)
        assert decoder.decode_errors >= 1
    assert found.shape[1] / SAMPLE_RATE_HZ == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("name", ["mp3", "adts", "ogg opus", "flac", "webm opus", "mpeg ts"])
def test_no_damage_makes_decoding_fail_in_other_ways_than_said(name):
    whole = encoded(noise(4, rate_hz=FORMATS[name][3], num_channels=2), name)
    random = np.random.default_rng(1)
    for _ in range(6):
        data = bytearray(whole)
        for place in random.integers(0, len(data), size=40):
            data[place] = random.integers(256)
        del data[random.integers(len(data) // 2, len(data)) :]
        try:
            found = decode(bytes(data))
        except DecodeError:
            continue  # that is the one way to fail
        assert np.isfinite(found).all()


def test_garbage_before_the_first_frame_is_skipped():
    junk = np.random.default_rng(0).integers(0, 255, 5000, dtype=np.uint8).tobytes()
    found = decode(junk + mp3(5), uri="s3://bucket/talk.mp3")
    assert found.shape[1] / SAMPLE_RATE_HZ == pytest.approx(5, abs=CODEC_DELAY_S)


@pytest.mark.parametrize("channels", ["mix", "each", 1])
def test_rate_and_channels_may_change_in_mid_stream(channels):
    data = mp3(3) + mp3(3, hz=880, rate_hz=22050, num_channels=1) + mp3(3, rate_hz=48000)
    found = decode(data, channels=channels)
    assert found.shape[1] / SAMPLE_RATE_HZ == pytest.approx(9, abs=3 * CODEC_DELAY_S)
    assert share_of_tone(found[0, 5000:40000], 440) > 0.99
    assert share_of_tone(found[0, 60000:85000], 880) > 0.99
    assert share_of_tone(found[0, -40000:-5000], 440) > 0.99


@pytest.mark.parametrize("name", ["ogg opus", "ogg vorbis", "ogg flac"])
def test_chained_ogg_streams_decode_to_the_last(name):
    rate_hz = FORMATS[name][3]
    links = [encoded(tone(3, hz=hz, rate_hz=rate_hz, num_channels=2), name) for hz in (440, 880)]
    found = decode(b"".join(links))
    assert found.shape[1] / SAMPLE_RATE_HZ == pytest.approx(6, abs=2 * CODEC_DELAY_S)
    assert share_of_tone(found[0, 5000:40000], 440) > 0.99
    assert share_of_tone(found[0, -40000:-5000], 880) > 0.99


# Streams.


def test_an_hour_is_read_as_it_is_decoded_and_never_held():
    file = EndlessNoise(3600)
    num_samples = 0
    with open_audio(file, uri="s3://bucket/long.wav") as decoder:
        for chunk in decoder:
            assert chunk.shape[1] <= 30 * SAMPLE_RATE_HZ
            num_samples += chunk.shape[1]
            assert file.position <= 44 + 2 * num_samples + 40 * SAMPLE_RATE_HZ
            if num_samples >= 600 * SAMPLE_RATE_HZ:
                break
    assert file.position < 650 * 2 * SAMPLE_RATE_HZ


def test_a_decoder_is_iterated_once_and_the_file_stays_open():
    file = io.BytesIO(wav_bytes(noise(1), rate_hz=16000))
    for _ in range(2):
        with open_audio(file, uri="memory") as decoder:
            assert sum(chunk.shape[1] for chunk in decoder) == 16000
            with pytest.raises(RuntimeError, match="iterated twice"):
                iter(decoder)


# Real files, many of them broken, each in the child process the product decodes in.

# The manifest's durations are ffmpeg's; where ours differs, why.
EXPLAINED: dict[str, tuple[str, float | None]] = {
    "ch_64.wav": ("ffmpeg refuses to mix 64 channels; averaged here", 1.0),
    "bad_bitflips.opus": ("no page passes its checksum, so ffmpeg finds no audio either", None),
    "bad_bitflips.flac": ("ffmpeg's resampler drops 0.5 s of damaged frames", 2.763),
}


@pytest.fixture(scope="module")
def child() -> Iterator[IsolatedGenerator]:
    generator = IsolatedGenerator(
        "tests.support.audio:make_measuring_decoder", init_kwargs={}, timeout_s=20
    )
    yield generator
    generator.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one real file; an error, or samples."""

    path: str
    expect: str
    expected_s: float | None
    duration_s: float
    level: float
    error: Exception | None


@pytest.fixture(scope="module")
def outcomes(speech, child) -> list[Outcome]:
    return [outcome_of(row, speech / "awkward" / row["path"], child)
            for row in read_manifest(speech / "awkward")]  # fmt: skip


def outcome_of(row: dict, path: Path, child: IsolatedGenerator) -> Outcome:
    chunks: list[tuple[int, float]] = []
    error: Exception | None = None
    try:
        chunks = list(child.run(str(path)))
    except (DecodeError, OSError) as caught:
        error = caught
    num_samples = sum(count for count, _ in chunks)
    return Outcome(
        path=row["path"],
        expect=row["expect"],
        expected_s=EXPLAINED.get(row["path"], ("", row["duration_s"]))[1],
        duration_s=num_samples / SAMPLE_RATE_HZ,
        level=(sum(squares for _, squares in chunks) / max(1, num_samples)) ** 0.5,
        error=error,
    )


def test_no_real_file_crashes_or_hangs_the_decoder(outcomes):
    assert len(outcomes) > 50
    errors = [outcome.error for outcome in outcomes if isinstance(outcome.error, DecodeError)]
    assert not [error for error in errors if error.kind.startswith("decoder_")]


def test_real_recordings_come_out_in_full(outcomes):
    levels = {outcome.path: outcome.level for outcome in outcomes}
    assert levels["ch_stereo_antiphase.wav"] == pytest.approx(levels["fmt_pcm16_16k.wav"], rel=0.01)
    for outcome in outcomes:
        if (
            not outcome.expect.startswith(("speech", "no_speech", "silence"))
            or outcome.expected_s is None
        ):
            continue
        assert outcome.error is None, outcome
        assert outcome.duration_s == pytest.approx(outcome.expected_s, abs=REAL_FILE_S), outcome
        assert outcome.level >= AUDIBLE or not outcome.expect.startswith("speech"), outcome


def test_real_files_without_audio_say_what_is_wrong(outcomes):
    for outcome in outcomes:
        if outcome.path == "directory.wav":  # of the larger set
            assert isinstance(outcome.error, IsADirectoryError)
        elif outcome.expect == "error":
            assert isinstance(outcome.error, DecodeError), outcome
            assert re.search(r"^decoding .*expected.*;", str(outcome.error), re.DOTALL), outcome


def damage_after(packets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        decode_module,
        "open_container",
        lambda *args, **names: DamagedContainer(open_container(*args, **names), packets=packets),
    )


def test_a_file_that_cannot_be_read_on_ends_with_an_error_after_what_was_good(monkeypatch):
    data = mp3(20)
    whole = decode(data)
    for packets in (1, 100, 400):
        damage_after(packets, monkeypatch)
        chunks: list[np.ndarray] = []
        with open_audio(io.BytesIO(data), uri="s3://b/a.mp3") as decoder:
            with pytest.raises(DecodeError) as caught:
                chunks.extend(decoder)
            assert decoder.decode_errors == 100
        found = np.concatenate(chunks, axis=1)
        found_s = found.shape[1] / SAMPLE_RATE_HZ
        assert found_s == pytest.approx(packets * 1152 / 44100, abs=0.1)
        intact = max(0, found.shape[1] - 2000)
        np.testing.assert_array_equal(found[:, :intact], whole[:, :intact])
        assert caught.value.kind == "damaged"
        assert f"after {found_s:.1f} s" in str(caught.value)
        assert "the header's 20.0 s" in str(caught.value)
    damage_after(0, monkeypatch)
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.kind == "empty_audio"


@pytest.mark.parametrize("name", ["m4a", "fragmented mp4", "alac"])
def test_sound_of_which_most_packets_fail_is_damaged_and_the_rest_kept(name: str) -> None:
    """Noise and encrypted sound decode for a moment by chance: they were done, without speech."""
    data = encoded(noise(20, rate_hz=FORMATS[name][3]), name)
    start, length = len(data) // 10, len(data) * 3 // 4  # the index at either end stays
    for share, kind in ((1.0, "damaged"), (0.4, None)):
        damaged, end = bytearray(data), start + int(length * share)
        damaged[start:end] = np.random.default_rng(0).bytes(end - start)
        chunks: list[np.ndarray] = []
        with open_audio(io.BytesIO(bytes(damaged)), uri="s3://b/a") as decoder:
            if kind is None:
                chunks.extend(decoder)
            else:
                with pytest.raises(DecodeError, match=r"within .*\d+ of \d+ packets") as caught:
                    chunks.extend(decoder)
                assert caught.value.kind == kind
        assert sum(chunk.shape[1] for chunk in chunks) > 0


@pytest.mark.parametrize("name", ["mp3", "adts", "ac3", "flac", "ogg opus", "webm opus"])
def test_noise_that_is_passed_over_without_an_error_counts_by_time_and_bytes(name: str) -> None:
    data = encoded(noise(12, rate_hz=FORMATS[name][3]), name)
    random, length = np.random.default_rng(0), len(data)

    def fault(*noise_spans: tuple[int, int], num_bytes: int = length) -> str | None:
        damaged = bytearray(data)
        for start, stop in noise_spans:
            damaged[start:stop] = random.bytes(stop - start)
        with open_audio(io.BytesIO(bytes(damaged[:num_bytes])), uri="s3://b/a") as decoder:
            try:
                list(decoder)
            except DecodeError as error:
                return f"{error.kind}: {error}"
        return None

    damaged = re.compile(
        r"damaged: .* within .* s of audio, .* of \d+ packets failed[,)](?!.*None)"
    )
    blocks = range(length // 8, length - 8192, 8192)
    assert damaged.match(fault(*((block, block + 6000) for block in blocks)) or "")
    if name != "ogg opus":  # whose end says how long it is
        assert damaged.match(fault((length // 4, length)) or "")
    assert fault((length * 3 // 4, length)) is None
    assert fault(num_bytes=length // 4) is None  # ends early, as a transfer does


@pytest.mark.long
def test_a_stream_that_begins_in_mid_file_costs_nothing_of_the_first():
    """A video tag after the sound of a Flash file whose header announces sound only."""
    data = encode(tone(120), rate_hz=16000, container="flv", codec="aac")
    whole = decode(data)
    # An empty AVC frame: type 9, 5 bytes, time 0, stream 0; then the length of the tag.
    video = (
        b"\x09\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00" + b"\x17\x01\x00\x00\x00" + b"\0\0\0\x10"
    )
    tags, position = [], 13
    while position < len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big") + 15
        tags.append(data[position : position + size])
        position += size
    middle = len(tags) * 9 // 10  # behind what libav looks at to find the streams
    mixed = data[:13] + b"".join(tags[:middle]) + 3 * video + b"".join(tags[middle:])
    np.testing.assert_array_equal(decode(mixed, uri="a.flv"), whole)


# Clips written as files.

ONE_STEP = 2 / 32_767  # of 16 bits, written and read


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
@pytest.mark.parametrize("num_samples", [1, 4096, 4097, 50_001])
def test_lossless_formats_give_back_every_sample(audio_format: AudioFormat, num_samples: int):
    samples = noise(5.0)[0, :num_samples]
    found = decode(encode_audio(samples, audio_format))
    assert found.shape == (1, num_samples)
    assert np.abs(found[0] - samples).max() < ONE_STEP


@pytest.mark.parametrize("audio_format", ["flac", "opus", "wav"])
def test_every_format_sounds_the_same_is_as_long_and_always_the_same_bytes(
    audio_format: AudioFormat,
):
    samples = tone(2.0, hz=700)[0]
    data = encode_audio(samples, audio_format)
    assert data == encode_audio(samples, audio_format)
    found = decode(data)[0]
    assert len(found) == len(samples)
    assert share_of_tone(found, 700) > 0.95


def test_what_is_too_loud_is_clipped_and_no_samples_are_refused():
    found = decode(encode_audio(np.array([2.0, -2.0, 0.0], dtype=np.float32), "flac"))[0]
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0], atol=ONE_STEP)
    with pytest.raises(ValueError, match="no samples"):
        encode_audio(np.zeros(0, dtype=np.float32), "flac")
