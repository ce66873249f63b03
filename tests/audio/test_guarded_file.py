"""What libav reads: files of recorders that were killed, and stores that fail in between."""

import io
import re
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.guarded_file import GuardedFile
from corpus_asr.errors import FetchError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import BreakingFile, encode, tone, wav_bytes

SECOND_BYTES = 2 * SAMPLE_RATE_HZ
HEADER_BYTES = 44


def noise(seconds: float, seed: int = 0) -> bytes:
    # As speech has it, with more of the low than of the high.
    draw = np.random.default_rng(seed)
    values = draw.integers(-4000, 4000, int(seconds * SAMPLE_RATE_HZ) + 1)
    return (values[1:] + values[:-1]).astype("<i2").tobytes()


def header(length: int, *, extra: bytes = b"") -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE_HZ, SECOND_BYTES, 2, 16)
    riff = b"WAVEfmt " + form + extra + b"data" + struct.pack("<I", length)
    return b"RIFF" + struct.pack("<I", (length + len(riff)) % 2**32) + riff


def seconds_of(data: bytes) -> float:
    decoder = open_audio(io.BytesIO(data), uri="memo.wav")
    return sum(rows.shape[1] for rows in decoder) / SAMPLE_RATE_HZ


@pytest.mark.parametrize(
    "claimed_s", [1, 0, None, 4, 9], ids=["stale", "zero", "unknown", "right", "too much"]
)
@pytest.mark.parametrize(
    "extra",
    [
        b"",
        b"LIST" + struct.pack("<I", 4) + b"INFO",
        b"iXML" + struct.pack("<I", 9001) + b"x" * 9002,
    ],
    ids=["no other chunk", "a list", "a long chunk of an odd length"],
)
def test_all_samples_are_read(claimed_s: int | None, extra: bytes) -> None:
    length = 0xFFFF_FFFF if claimed_s is None else claimed_s * SECOND_BYTES
    assert seconds_of(header(length, extra=extra) + noise(4)) == 4.0


def test_chunks_behind_the_samples_are_no_sound() -> None:
    listed = b"LIST" + struct.pack("<I", 2000) + b"INFO" + b"x" * 1996
    assert seconds_of(header(2 * SECOND_BYTES) + noise(2) + listed) == 2.0
    odd = noise(2)[:-1]  # of a broken recorder; a byte of padding follows
    found = seconds_of(header(len(odd)) + odd + b"\0" + listed)
    assert found == pytest.approx(2.0, abs=1e-3)
    cut = listed[:500]
    assert seconds_of(header(2 * SECOND_BYTES) + noise(2) + cut) == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize(
    "behind",
    [
        b"ID3\x04" + np.random.default_rng(4).bytes(100_000),
        b"id3 " + struct.pack("<I", 10**8) + np.random.default_rng(5).bytes(100_000),
    ],
    ids=["ID3v2", "a chunk of a wrong length"],
)
def test_less_than_the_samples_behind_them_is_left_out(behind: bytes) -> None:
    assert seconds_of(header(4 * SECOND_BYTES) + noise(4) + behind) == 4.0


def test_a_length_that_32_bits_do_not_hold(tmp_path: Path) -> None:
    begin, end = noise(1), noise(1, seed=1)
    total = 2**32 + 60 * SECOND_BYTES
    path = tmp_path / "day.wav"
    with path.open("wb") as file:
        file.write(header(total % 2**32) + begin)
        file.seek(HEADER_BYTES + total - len(end))
        file.write(end)
    with path.open("rb") as file:
        decoder = open_audio(file, uri="day.wav")
        assert decoder.time_corrections == 1
        assert decoder.info.header_duration_s == pytest.approx(total / SECOND_BYTES, rel=1e-3)


def test_silence_of_digital_zeros_at_the_end_of_a_recording_stays() -> None:
    silent = bytes(20 * SECOND_BYTES)
    assert seconds_of(header(21 * SECOND_BYTES) + noise(1) + silent) == 21.0


# Where the length stands: behind which word, how far, and as what.
LAYOUTS = {"rf64": (b"ds64", 16, "<Q"), "wav": (b"data", 4, "<I")}


def written(layout: str, codec: str, seconds: float = 3.0) -> tuple[bytearray, int]:
    """Write speech-like noise; returns the file and the length of its samples."""
    options = {"rf64": "always"} if layout == "rf64" else {}
    values = np.frombuffer(noise(seconds), "<i2")
    file = io.BytesIO()
    with av.open(file, "w", format="wav", container_options=options) as output:
        stream: Any = output.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        kind = {"s24": "s32", "f32": "flt"}.get(codec[4:7], codec[4:7])
        scaled = {"s16": values, "s32": values.astype("<i4") << 16,
                  "flt": (values / 32768).astype("<f4")}[kind]  # fmt: skip
        frame = av.AudioFrame.from_ndarray(scaled[np.newaxis], format=kind, layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return bytearray(file.getvalue()), len(values) * int(codec[5:7]) // 8


def claiming(data: bytearray, layout: str, num_bytes: int) -> bytes:
    """Return a file whose header claims so many bytes of samples; -1: it does not know."""
    word, offset, kind = LAYOUTS[layout]
    claim = num_bytes if num_bytes >= 0 else 2 ** (8 * struct.calcsize(kind)) - 1
    changed = bytearray(data)
    struct.pack_into(kind, changed, changed.find(word) + offset, claim)
    return bytes(changed)


def read(data: bytes) -> tuple[float, int]:
    decoder = open_audio(io.BytesIO(data), uri="a.wav")
    seconds = sum(rows.shape[1] for rows in decoder) / SAMPLE_RATE_HZ
    return seconds, decoder.time_corrections


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_format_of_plain_samples_is_read_to_its_end(layout: str, codec: str) -> None:
    data, length = written(layout, codec)
    assert read(bytes(data)) == (3.0, 0)
    assert read(claiming(data, layout, length // 3 // 12 * 12)) == (3.0, 1)
    seconds, _ = read(claiming(data, layout, 0))  # libav takes it for unknown in some
    assert seconds == 3.0
    # In these all that a length can hold is a word for an unknown one, or more than there is.
    assert read(claiming(data, layout, -1)) == (3.0, 0 if layout == "wav" else 1)


@pytest.mark.parametrize("claimed_s", [0, 1, 3, None])
@pytest.mark.parametrize("layout", ["wav", "rf64"])
def test_chunks_behind_samples_of_a_wrong_length_are_no_sound(
    layout: str, claimed_s: int | None
) -> None:
    data, _ = written(layout, "pcm_s16le")
    at = data.find(LAYOUTS[layout][0])
    del data[len(data) - (len(data) - at) % 2 :]
    said = b"INFOISFT" + struct.pack("<I", 2000) + b"recorder" * 250
    data += b"LIST" + struct.pack("<I", len(said)) + said
    claim = -1 if claimed_s is None else claimed_s * SECOND_BYTES
    seconds, _ = read(claiming(data, layout, claim))
    assert seconds == pytest.approx(3.0, abs=0.001)


URI = "s3://bucket/talk.mp3"


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
