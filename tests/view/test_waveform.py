"""Peaks and pauses: right where they are, at a bounded price, however long the recording."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.errors import ItemError
from corpus_asr.view import sound as sound_module
from corpus_asr.view import waveform
from corpus_asr.view.sound import Sounds
from corpus_asr.view.waveform import LONGEST_S, TILE_S, Pauses, Waveforms
from tests.support.audio import encode, tone, wav_bytes
from tests.support.runs import InThisProcess, run_of
from tests.view.test_sound import ROW

SECONDS = 100


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sounds]:
    monkeypatch.setattr(sound_module, "IsolatedGenerator", InThisProcess)
    with closing(Sounds(run_of(tmp_path / "output"))) as opened:
        yield opened


def steps() -> np.ndarray:
    """Return a tone whose loudness is that of its second, in hundredths."""
    loudness = np.repeat(np.arange(SECONDS) / SECONDS, 16_000).astype(np.float32)
    return tone(float(SECONDS), amplitude=1.0) * loudness


def row_of(path: Path, data: bytes, **values: Any) -> dict[str, Any]:
    path.write_bytes(data)
    return ROW | {"uri": str(path), "duration_s": float(SECONDS)} | values


def test_peaks_are_the_loudest_samples_of_their_parts(tmp_path: Path, sounds: Sounds) -> None:
    waveforms = Waveforms(sounds)
    wav = sounds.of(row_of(tmp_path / "a.wav", wav_bytes(steps(), rate_hz=16_000)))
    whole = waveforms.peaks(wav, 0.0, float(SECONDS), SECONDS)
    assert whole == pytest.approx([2.55 * at for at in range(SECONDS)], abs=1)
    # Any span, across tiles, also finer than a peak and beyond what was decoded.
    part = waveforms.peaks(wav, 55.5, 65.5, 10)
    assert part == pytest.approx([2.55 * at for at in range(56, 66)], abs=1)
    fine = waveforms.peaks(wav, 80.0, 80.1, 20)
    assert fine == pytest.approx([2.55 * 80] * 20, abs=1)
    longer = sounds.of(ROW | {"uri": wav.uri, "duration_s": 200.0})
    assert waveforms.peaks(longer, 150.0, 160.0, 4) == [0, 0, 0, 0]


def test_tiles_are_decoded_once_and_only_where_somebody_looks(
    tmp_path: Path, sounds: Sounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[float] = []
    real = sounds.peaks

    def counting(sound: Any, start_s: float, *arguments: Any, **named: Any) -> bytes | None:
        decoded.append(start_s)
        return real(sound, start_s, *arguments, **named)

    monkeypatch.setattr(sounds, "peaks", counting)
    waveforms = Waveforms(sounds)
    row = row_of(tmp_path / "a.wav", wav_bytes(steps(), rate_hz=16_000))
    sound = sounds.of(row | {"duration_s": 36_000.0})
    # Of ten hours nothing is decoded for an overview, and ten minutes at most at a time.
    assert waveforms.peaks(sound, 0.0, 36_000.0, 2000) is None
    assert waveforms.peaks(sound, 0.0, LONGEST_S + 1, 100) is None
    assert decoded == []
    for _ in range(2):
        assert waveforms.peaks(sound, 35.0, 70.0, 100) is not None
    assert decoded == [30, 60]
    monkeypatch.setattr(waveform, "KEPT_TILES", 2)
    waveforms.peaks(sound, 0.0, 5.0, 10)
    assert len(waveforms._tiles) == 2
    waveforms.peaks(sound, 35.0, 36.0, 10)
    assert decoded == [30, 60, 0, 30]  # the oldest was forgotten


def test_where_there_is_no_seeking_there_are_peaks_only_near_the_start(
    tmp_path: Path, sounds: Sounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_module, "_MAX_SKIPPED_S", TILE_S)
    wav = row_of(tmp_path / "a.wav", wav_bytes(steps(), rate_hz=16_000))
    damaged = sounds.of(wav | {"decode_errors": 3})
    assert Waveforms(sounds).peaks(damaged, 80.0, 90.0, 10) is None
    assert Waveforms(sounds).peaks(damaged, 20.0, 50.0, 10) is not None
    flac = {"container": "flac", "codec": "flac", "sample_format": "s16"}
    sound = sounds.of(row_of(tmp_path / "a.flac", encode(steps(), rate_hz=16_000, **flac)))
    peaks = Waveforms(sounds).peaks(sound, 90.0, 95.0, 5)
    assert peaks == pytest.approx([2.55 * at for at in range(90, 95)], abs=1)
    gone = sounds.of(ROW | {"uri": str(tmp_path / "gone.wav")})
    with pytest.raises(ItemError, match="not found"):
        Waveforms(sounds).peaks(gone, 0.0, 1.0, 10)


def test_pauses_are_where_no_word_is() -> None:
    # Two channels may speak at once, and words touch or nearly do.
    starts = np.array([1.0, 1.5, 2.2, 5.0])
    ends = np.array([1.5, 4.0, 2.4, 6.0])
    pauses = Pauses(starts, ends, duration_s=8.0)
    assert pauses.within(0.0, 8.0, at_least_s=0.0) == [[0.0, 1.0], [4.0, 5.0], [6.0, 8.0]]
    assert pauses.within(4.5, 7.0, at_least_s=0.6) == [[6.0, 7.0]]
    assert pauses.speech(0.0, 8.0, 8) == [0, 255, 255, 255, 0, 255, 0, 0]
    assert pauses.speech(3.5, 4.5, 1) == [128]
    silent = Pauses(np.empty(0), np.empty(0), duration_s=3.0)
    assert silent.within(0.0, 3.0, at_least_s=0.0) == [[0.0, 3.0]]
    busy = Pauses(np.array([0.0]), np.array([3.0]), duration_s=3.0)
    assert (busy.within(0.0, 3.0, at_least_s=0.0), busy.speech(0.0, 3.0, 2)) == ([], [255, 255])
