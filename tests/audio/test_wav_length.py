"""WAV files of recorders that were killed, or that took their room beforehand."""

import io
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.audio.decode import open_audio
from corpus_asr.units import SAMPLE_RATE_HZ

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
    ("claimed_s", "expected_s"),
    [(1, 4.0), (0, 4.0), (None, 4.0), (4, 4.0), (9, 4.0)],
    ids=["stale", "zero", "unknown", "right", "too much"],
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
def test_all_samples_are_read(claimed_s: int | None, expected_s: float, extra: bytes) -> None:
    length = 0xFFFF_FFFF if claimed_s is None else claimed_s * SECOND_BYTES
    assert seconds_of(header(length, extra=extra) + noise(4)) == expected_s


def test_chunks_behind_the_samples_are_no_sound() -> None:
    listed = b"LIST" + struct.pack("<I", 2000) + b"INFO" + b"x" * 1996
    assert seconds_of(header(2 * SECOND_BYTES) + noise(2) + listed) == 2.0
    odd = noise(2)[:-1]  # of a broken recorder; a byte of padding follows
    found = seconds_of(header(len(odd)) + odd + b"\0" + listed)
    assert found == pytest.approx(2.0, abs=1e-3)
    cut = listed[:500]
    assert seconds_of(header(2 * SECOND_BYTES) + noise(2) + cut) == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("claimed_s", [3, 0, None, 5000], ids=["right", "zero", "unknown", "all"])
def test_zeros_that_were_never_recorded_over_take_no_time(
    tmp_path: Path, claimed_s: int | None
) -> None:
    length = 0xFFFF_FFFF if claimed_s is None else claimed_s * SECOND_BYTES
    path = tmp_path / "memo.wav"
    with path.open("wb") as file:
        file.write(header(length) + noise(3))
        file.truncate(HEADER_BYTES + 5000 * SECOND_BYTES)  # 153 MiB, of which the disk holds few
    began_s = time.process_time()
    with path.open("rb") as file:
        found = sum(rows.shape[1] for rows in open_audio(file, uri="memo.wav"))
    assert found == pytest.approx(3 * SAMPLE_RATE_HZ, abs=64)
    assert time.process_time() - began_s < 2  # with the zeros as sound: some 5 s


@pytest.mark.parametrize(
    "behind",
    [
        np.random.default_rng(3).bytes(500_000),
        bytes(1_000_000),
        b"ID3\x04" + np.random.default_rng(4).bytes(100_000),
        b"<html>  <body> not found </body></html>\n" * 1500,
        b"id3 " + struct.pack("<I", 10**8) + np.random.default_rng(5).bytes(200_000),
    ],
    ids=["random", "zeros", "ID3v2", "HTML", "a chunk of a wrong length"],
)
def test_what_is_no_sound_behind_the_samples_is_left_out(behind: bytes) -> None:
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
