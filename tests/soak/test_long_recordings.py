"""A recording of hours takes as much memory as one of twenty minutes, and all of it is done."""

import json
from pathlib import Path

import pytest

from corpus_asr.units import MEBIBYTE
from tests.support.corpora import CLIPS
from tests.support.long_recordings import Found, measured, spoken, write_hours

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Allocators give back what they like; one part of ten minutes is 37 MiB of samples.
NOISE_BYTES = 48 * MEBIBYTE


def run(folder: Path, *, hours: float, sound: bytes) -> Found:
    folder.mkdir()
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "whisper"}')
    settings = {"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400}
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"chunk_length": 30}))
    recording = folder / "long.mp3"
    write_hours(recording, hours=hours, sound=sound)
    return measured(recording, folder)


def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path) -> None:
    sound = spoken([CLIPS / "longer.mp3", CLIPS / "english.wav"])
    short, long = (run(tmp_path / f"{hours}", hours=hours, sound=sound) for hours in (0.35, 2.0))
    for found, hours in ((short, 0.35), (long, 2.0)):
        assert found.audio_s == pytest.approx(hours * 3600, rel=0.02)
        assert found.parts >= hours * 6
    assert long.child_peak_bytes < short.child_peak_bytes + NOISE_BYTES
    assert long.driver_peak_bytes < short.driver_peak_bytes + NOISE_BYTES
