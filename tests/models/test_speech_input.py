"""What a pipeline may be called with, read as samples."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.models.speech_input import load_speech
from tests.support.audio import noise, wav_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = noise(0.5)[0]


def test_files_bytes_and_addresses_are_decoded(tmp_path: Path) -> None:
    data = wav_bytes(SAMPLES[np.newaxis], rate_hz=16_000, sample_type="flt")
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    for inputs in (str(path), path, f"file://{path}", data, bytearray(data)):
        speech = load_speech(inputs)
        np.testing.assert_allclose(speech.samples, SAMPLES, atol=1e-6)
        assert (speech.stride, speech.extra) == (None, {})


def test_arrays_and_tensors_are_mixed_to_one_channel() -> None:
    two = np.stack([SAMPLES, -SAMPLES / 2])
    for inputs in (SAMPLES, SAMPLES.astype(np.float64), torch.from_numpy(SAMPLES), SAMPLES[None]):
        np.testing.assert_array_equal(load_speech(inputs).samples, SAMPLES)
    for stereo in (two, torch.from_numpy(two).bfloat16().float(), torch.from_numpy(two)):
        mixed = load_speech(stereo).samples
        assert mixed.dtype == np.float32
        np.testing.assert_allclose(mixed, SAMPLES / 4, atol=1e-3)


def test_dictionaries_name_the_rate_and_may_say_more() -> None:
    given = {"raw": noise(1, rate_hz=8_000)[0], "sampling_rate": 8_000, "id": 7, "stride": (80, 40)}
    speech = load_speech(given)
    assert (speech.stride, speech.extra) == ((160, 80), {"id": 7})
    assert abs(speech.samples.size - 16_000) <= 1
    assert "raw" in given
    named = load_speech({"array": SAMPLES, "path": "x.wav", "sampling_rate": 16_000, "raw": None})
    np.testing.assert_array_equal(named.samples, SAMPLES)
    assert named.extra == {}


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"raw": SAMPLES}, ValueError, "found raw, expected raw .*sampling_rate"),
        ({"sampling_rate": 16_000}, ValueError, "found sampling_rate, expected raw"),
        ({}, ValueError, "found nothing"),
        ({"raw": SAMPLES, "sampling_rate": 10}, ValueError, "sample rate of 10 Hz"),
        ({"raw": SAMPLES, "sampling_rate": 8000.5}, ValueError, "8000.5, expected a whole number"),
        (
            {"raw": SAMPLES, "sampling_rate": 16_000, "stride": (8_000, 1)},
            ValueError,
            "stride .* with 8000 samples",
        ),
        (np.zeros((4, 100)), ValueError, "at most 2 channels"),
        (np.zeros((2, 2, 100)), ValueError, r"shape \(2, 2, 100\)"),
        (np.zeros(0, dtype=np.float32), ValueError, "found no samples"),
        (np.array([0, 300], dtype=np.int16), ValueError, "int16 samples"),
        ([0.0, 0.1], TypeError, "found a list"),
        (None, TypeError, "found a NoneType"),
        (b"", DecodeError, "0 bytes"),
        ("./no such file.wav", FetchError, "no such file"),
    ],
)
def test_anything_else_is_refused(inputs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_speech(inputs)


def test_a_machine_without_decoders_and_tables_takes_arrays() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("av", "pyarrow", "ray")))  # importing these fails
import numpy as np
from corpus_asr.models.whisper import pipeline
from corpus_asr.models.speech_input import load_speech
print(pipeline.__name__, load_speech(np.ones(3, dtype=np.float32)).samples.size)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "pipeline 3", done.stderr
