"""Audio as callers of Python give it becomes the file whose samples it is, or is refused."""

import errno
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from corpus_asr.audio import inputs
from corpus_asr.audio.inputs import given_audio, several
from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import decode, noise, wav_bytes

MONO = noise(0.5)[0]  # (sample,)
STEREO = noise(0.5, num_channels=2)  # (channel, sample)
WHOLE = np.rint(np.clip(MONO, -1, 1) * 32767).astype(np.int16)
WAV = wav_bytes(MONO[np.newaxis], rate_hz=SAMPLE_RATE_HZ, sample_type="flt")


def samples_of(audio: Any, *, channels: Any = "each", **options: Any) -> np.ndarray:
    given = given_audio(audio, **({"sampling_rate": None} | options))
    with given.address() as address:
        data = Path(address).read_bytes()
    assert given.write is None or not Path(address).exists()
    return decode(data, channels=channels)


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (MONO, MONO[np.newaxis]),
        (STEREO, STEREO),
        (MONO[np.newaxis], MONO[np.newaxis]),
        (MONO.astype(np.float64), MONO[np.newaxis]),
        (np.asfortranarray(STEREO), STEREO),
        (STEREO[:, ::-1], STEREO[:, ::-1]),
        (WHOLE, WHOLE[np.newaxis] / np.float32(32768)),
        (WHOLE.astype(">i2"), WHOLE[np.newaxis] / np.float32(32768)),
        (torch.from_numpy(MONO).requires_grad_(), MONO[np.newaxis]),
        (torch.from_numpy(WHOLE), WHOLE[np.newaxis] / np.float32(32768)),
        (np.zeros((64, 99), np.float32), np.zeros((64, 99))),
    ],
)
def test_samples_arrive_as_they_are(audio: Any, expected: np.ndarray) -> None:
    assert np.array_equal(samples_of(audio, sampling_rate=SAMPLE_RATE_HZ), expected)
    in_dictionary = {"array": audio, "sampling_rate": SAMPLE_RATE_HZ, "path": "a.flac"}
    assert np.array_equal(samples_of(in_dictionary), expected)


def test_halves_are_widened_and_other_rates_resampled() -> None:
    half = torch.from_numpy(MONO).to(torch.bfloat16)
    expected = half.float().numpy()[np.newaxis]
    assert np.array_equal(samples_of(half, sampling_rate=SAMPLE_RATE_HZ), expected)
    # A rate with a fraction of zero is whole; what comes out is what the file would give.
    found = samples_of(STEREO, sampling_rate=44_100.0)
    file = decode(wav_bytes(STEREO, rate_hz=44_100, sample_type="flt"), channels="each")
    assert np.array_equal(found, file)


def test_files_arrive_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "some.wav"
    path.write_bytes(WAV)
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(STEREO), sample_rate=16_000)
    )
    with path.open("rb") as opened:
        named = given_audio(opened, sampling_rate=None)
        with named.address() as address:
            assert Path(address).read_bytes() == WAV
    assert named.name == str(path)
    for audio in (WAV, bytearray(WAV), memoryview(WAV), io.BytesIO(WAV), path, str(path),
                  {"bytes": WAV, "path": "x.wav"}, {"bytes": None, "path": str(path)}):  # fmt: skip
        assert np.array_equal(samples_of(audio), MONO[np.newaxis])
    assert np.array_equal(samples_of(decoder), STEREO)


def test_every_input_has_a_name() -> None:
    rate = {"sampling_rate": 16_000}
    for audio, options, name in (
        (Path("a/b.wav"), {}, "a/b.wav"),
        ("s3://a/b.wav", {}, "s3://a/b.wav"),
        (b"", {}, "input-7"),
        (MONO, rate, "input-7"),
        ({"array": MONO, "path": "talk.flac", **rate}, {}, "talk.flac"),
        ({"raw": MONO, **rate}, {}, "input-7"),
        ({"bytes": WAV, "path": None}, {}, "input-7"),
    ):
        rates: dict[str, Any] = {"sampling_rate": None} | options
        given = given_audio(audio, number=7, **rates)
        assert given.name == name


NAN = MONO.copy()
NAN[[3, 5]] = np.nan, np.inf


@pytest.mark.parametrize(
    ("audio", "rate", "words"),
    [
        (MONO, None, r"float32 and shape \(8000,\) without a sampling rate, expected one in Hz"),
        (MONO, 16, "found sampling_rate=16, expected a number, whole Hz from 1000 to"),
        (MONO, 16_000.5, r"found sampling_rate=16000\.5, expected a number, whole Hz"),
        (MONO, "16000", r"found sampling_rate='16000', a str, expected a number, whole Hz"),
        (MONO, float("nan"), "found sampling_rate=nan, expected a number"),
        (WAV, "16000", "found sampling_rate='16000' with the bytes of a file"),
        (STEREO.T, 16_000, r"shape \(8000, 2\), expected .* \(channel, sample\).*; transpose it"),
        (MONO[None, None], 16_000, r"shape \(1, 1, 8000\), .*; pass one recording at a time"),
        (np.zeros(()), 16_000, r"shape \(\), expected"),
        (np.zeros((65, 99)), 16_000, "at most 64 channels"),
        (np.zeros((0, 99)), 16_000, "at most 64 channels"),
        (WHOLE.astype(np.int32), 16_000, r"array of int32 .*expected float in -1 to 1, or int16"),
        (WHOLE.astype(np.uint8), 16_000, "array of uint8"),
        (MONO.astype(complex), 16_000, "array of complex128"),
        (WHOLE.astype(np.float32), 16_000, r"up to \d+, expected -1 to 1; pass integers as int16"),
        ([0.0, 0.1], 16_000, "found a list, expected a path, a URL, bytes"),
        (None, None, "found a NoneType, expected a path"),
        ("a.wav", 16_000, "sampling_rate=16000 with a path or URL, expected it with an array only"),
        (WAV, 16_000, r"the bytes of a file, .*raw samples: np\.frombuffer"),
        (io.BytesIO(WAV), 16_000, "an open file, expected it"),
        (io.StringIO("x"), None, "opened for text, expected binary mode"),
        ({}, None, "found a dictionary with nothing, expected array and sampling_rate, bytes, or"),
        ({"audio": MONO}, None, "found a dictionary with audio, expected array"),
        ({"array": MONO}, None, "without a sampling rate"),
        ({"array": MONO, "sampling_rate": 8_000}, 16_000, "and a dictionary with 8000"),
        ({"bytes": WAV, "path": None}, 16_000, "the bytes of a file, expected it"),
    ],
)
def test_what_is_no_audio_is_refused_with_what_was_found(
    audio: Any, rate: float | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        given_audio(audio, sampling_rate=rate, number=3)
    assert "input-3" in str(caught.value)


def test_masked_samples_are_refused() -> None:
    plain = np.ma.masked_array(MONO)
    assert np.array_equal(samples_of(plain, sampling_rate=SAMPLE_RATE_HZ)[0], MONO)
    with pytest.raises(ValueError, match=r"found 3 masked ones, .*samples\.filled\(0\)"):
        given_audio(np.ma.masked_array(MONO, np.arange(len(MONO)) < 3), sampling_rate=16_000)


def test_one_recording_is_not_taken_for_several() -> None:
    for one, words in (
        ("talk.mp3", r"a single str \(talk\.mp3\)"), (MONO, "single ndarray"),
        (WAV, "single bytes"), (io.BytesIO(WAV), "single BytesIO"),
        ({"path": "a"}, "single dict"), (torch.zeros(9), "single Tensor"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words + ".*pass a list"):
            several(one)
    generated = (each for each in ("a", "b"))
    assert several(generated) is generated
    assert several([MONO]) == [MONO]


def test_samples_that_are_not_finite_are_the_recordings_failure() -> None:
    for audio in (NAN, torch.from_numpy(NAN)):
        with pytest.raises(DecodeError, match="found 2 of 8000 samples that are NaN") as caught:
            given_audio(audio, sampling_rate=16_000)
        assert (caught.value.kind, caught.value.uri) == ("bad_samples", "input-0")


def test_a_file_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inputs, "_write_wav", full)
    given = given_audio(MONO, sampling_rate=16_000)
    with (
        pytest.raises(FetchError, match=r"copying input-0 .*No space left.*TMPDIR") as caught,
        given.address(),
    ):
        raise AssertionError("unreachable")
    assert caught.value.kind == "no_space"


def test_sizes_beyond_32_bits_are_written_as_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libav reads on behind them: 18 hours of float samples have more than 4 GiB."""
    monkeypatch.setattr(inputs, "_LARGEST_SIZE", 1000)
    given = given_audio(MONO, sampling_rate=16_000)
    with given.address() as address:
        data = Path(address).read_bytes().replace((1000).to_bytes(4, "little"), b"\xff" * 4)
    assert data.count(b"\xff" * 4) == 2
    assert np.array_equal(decode(data), MONO[np.newaxis])
