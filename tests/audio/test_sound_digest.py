"""Equal sound has one digest in each format, whatever is around it; other sound has another."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.audio.sound_digest import sound_digest
from tests.support.audio import encode, noise, remux, wav_bytes

RATE_HZ = 48_000
SOUND = noise(3.0, rate_hz=RATE_HZ)
FORMATS = {
    "wav": ("wav", "pcm_s16le", "s16"), "flac": ("flac", "flac", "s16"),
    "mp3": ("mp3", "libmp3lame", "fltp"), "m4a": ("ipod", "aac", "fltp"),
    "aac": ("adts", "aac", "fltp"), "opus": ("ogg", "libopus", "flt"),
    "ogg": ("ogg", "flac", "s16"), "mkv": ("matroska", "aac", "fltp"),
    "webm": ("webm", "libopus", "flt"),
}  # fmt: skip
OTHER_CONTAINERS = {
    "wav": ("matroska", "mov"), "flac": ("matroska", "ogg", "mp4"),
    "mp3": ("matroska", "mp4", "avi"), "m4a": ("matroska", "mov", "adts", "mpegts"),
    "aac": ("mp4", "matroska"), "opus": ("matroska", "webm", "mp4"), "ogg": ("flac", "matroska"),
    "mkv": ("mp4", "adts"), "webm": ("ogg", "matroska"),
}  # fmt: skip
TAGS = {"title": "An interview, part 1 " * 20, "artist": "Anna Meyer", "comment": "checked"}


def encoded(samples: np.ndarray, name: str) -> bytes:
    container, codec, sample_format = FORMATS[name]
    return encode(
        samples, rate_hz=RATE_HZ, container=container, codec=codec, sample_format=sample_format
    )


def digest(data: bytes, name: str = "a") -> str:
    found = sound_digest(io.BytesIO(data), uri=name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_name_time_tags_and_container_are_no_part_of_the_sound(name: str, tmp_path: Path) -> None:
    data = encoded(SOUND, name)
    assert digest(data, "other/address") == digest(data)
    path = tmp_path / f"renamed.{name}"
    path.write_bytes(data)
    os.utime(path, (7, 7))
    with path.open("rb") as file:
        assert sound_digest(file, uri=str(path)) == digest(data)
    assert digest(remux(data, FORMATS[name][0], **TAGS)) == digest(data)
    for container in OTHER_CONTAINERS[name]:
        assert digest(remux(data, container)) == digest(data), container


@pytest.mark.parametrize("name", FORMATS)
def test_any_other_sound_has_another_digest(name: str) -> None:
    bleeped = SOUND.copy()
    bleeped[:, RATE_HZ : RATE_HZ + RATE_HZ // 4] = 0.0
    others = [bleeped, SOUND[:, : -RATE_HZ // 2], SOUND[:, RATE_HZ // 2 :], -SOUND]
    digests = [digest(encoded(samples, name)) for samples in (SOUND, *others)]
    assert len(set(digests)) == len(digests)
    assert digest(encoded(SOUND, name)) == digests[0]


def test_one_sample_and_the_rate_make_another_sound() -> None:
    changed = SOUND.copy()
    changed[0, 100_000] += 0.01
    files = [
        wav_bytes(samples, rate_hz=rate_hz)
        for samples in (SOUND, changed)
        for rate_hz in (RATE_HZ, RATE_HZ // 2)
    ]
    assert len({*map(digest, files)}) == 4


def test_what_cannot_be_read_has_no_digest() -> None:
    for data in (b"", b"<html>", wav_bytes(SOUND, rate_hz=RATE_HZ)[:44]):
        assert sound_digest(io.BytesIO(data), uri="a") is None
