"""Clips hold the seconds asked for, and a recording that is not what it was is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.audio.decode import AudioDecoder
from corpus_asr.errors import DecodeError
from corpus_asr.stages.cutting import ClipCutter
from corpus_asr.stages.messages import Clip, ClipRange, CutRequest
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, describe
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import decode, encode, noise, tone
from tests.support.runs import seconds_heard, tone_hz, write_tones

SHORT = 20


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    write_tones(tmp_path / "tones.wav", seconds=SHORT)
    return tmp_path / "tones.wav"


def cut(
    path: Path, *seconds: tuple[float, float], seek: bool = False, **options: Any
) -> list[Clip]:
    ranges = tuple(
        ClipRange(channel=None, start_sample=round(start * SAMPLE_RATE_HZ),
                end_sample=round(end * SAMPLE_RATE_HZ))
        for start, end in seconds
    )  # fmt: skip
    request = CutRequest(uri=str(path), size_bytes=None, etag=None, ranges=ranges, seek=seek)
    usual: dict[str, Any] = {"store": DEFAULT_STORE, "channels": "mix", "audio_format": "flac"}
    return list(ClipCutter(**usual | options)(request))


def test_clips_hold_the_seconds_asked_for_in_any_order(tones: Path) -> None:
    for ranges, expected in (
        (((3, 5), (8, 13), (13, 14), (19, 20)), [[3, 4], [8, 9, 10, 11, 12], [13], [19]]),
        (((15, 16), (0, 12), (5, 6)), [[15], [*range(12)], [5]]),  # overlapping and unsorted
    ):
        clips = sorted(cut(tones, *ranges), key=lambda clip: clip.number)
        assert [seconds_heard(decode(clip.data)[0]) for clip in clips] == expected
    (clip,) = cut(tones, (18, 20.02))  # a last one may point a little behind the end
    assert clip.num_samples == 2 * SAMPLE_RATE_HZ


def test_clips_are_the_samples_that_were_transcribed(tmp_path: Path) -> None:
    path = tmp_path / "talk.mp3"
    path.write_bytes(encode(noise(25, rate_hz=44_100), rate_hz=44_100, container="mp3",
                            codec="libmp3lame"))  # fmt: skip
    whole = decode(path.read_bytes())[0]
    (clip,) = cut(path, (12.34, 17.89))
    expected = whole[round(12.34 * SAMPLE_RATE_HZ) : round(17.89 * SAMPLE_RATE_HZ)]
    assert np.abs(decode(clip.data)[0] - expected).max() < 1e-4


@pytest.mark.long
@pytest.mark.parametrize(
    ("container", "codec", "sample_format"),
    [("wav", "pcm_f32le", "flt"), ("mp3", "libmp3lame", "fltp"), ("ogg", "libopus", "flt")],
)
def test_a_clip_that_was_sought_holds_its_seconds(
    container: str,
    codec: str,
    sample_format: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"long.{container}"
    minutes = np.concatenate([tone(1.0, hz=tone_hz(at % 40)) for at in range(90)], axis=1)
    path.write_bytes(
        encode(minutes, rate_hz=SAMPLE_RATE_HZ, container=container, codec=codec,
               sample_format=sample_format)
    )  # fmt: skip
    reached: list[float | None] = []
    seek = AudioDecoder.seek

    def noted(decoder: AudioDecoder, to_s: float) -> float | None:
        reached.append(seek(decoder, to_s))
        return reached[-1]

    monkeypatch.setattr(AudioDecoder, "seek", noted)
    (clip,) = cut(path, (75, 78), seek=True)
    assert seconds_heard(decode(clip.data)[0]) == [35, 36, 37]
    assert [70 < (at_s or 0) <= 73 for at_s in reached] == [True]
    assert len(cut(path, (20, 21), seek=True)) == 1
    assert len(reached) == 1  # near the start is decoded
    # Where there is no seeking, all before it is decoded.
    monkeypatch.setattr(AudioDecoder, "seek", lambda self, to_s: None)
    (clip,) = cut(path, (75, 78), seek=True)
    assert seconds_heard(decode(clip.data)[0]) == [35, 36, 37]


def test_a_bit_rate_bounds_a_clip(tones: Path) -> None:
    (clip,) = cut(tones, (0, 10), audio_format="opus", bit_rate=16_000)
    assert 10_000 < len(clip.data) < 25_000
    assert decode(clip.data).shape[1] == pytest.approx(10 * SAMPLE_RATE_HZ, rel=0.01)


@pytest.mark.parametrize("seconds", [(18, 21), (20.0, 20.3)])
def test_a_recording_that_ends_earlier_is_refused_behind_what_is_there(
    tones: Path, seconds: tuple[float, float]
) -> None:
    with pytest.raises(DecodeError, match=r"it ends after 20\.00 s, expected 2") as raised:
        cut(tones, (0, 1), seconds)
    assert raised.value.kind == "cut_short"


def test_a_recording_that_was_changed_is_refused(tones: Path) -> None:
    version = describe(str(tones))
    known: dict[str, Any] = {"size_bytes": version.size_bytes, "etag": version.etag}
    ranges = (ClipRange(channel=None, start_sample=0, end_sample=SAMPLE_RATE_HZ),)
    cutter = ClipCutter(store=DEFAULT_STORE, channels="mix", audio_format="flac")
    assert list(cutter(CutRequest(uri=str(tones), ranges=ranges, **known)))
    for change in ({"etag": "other"}, {"size_bytes": 7}):
        with pytest.raises(DecodeError, match="which was transcribed") as raised:
            list(cutter(CutRequest(uri=str(tones), ranges=ranges, **known | change)))
        assert raised.value.kind == "source_changed"
