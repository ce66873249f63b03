"""What a pipeline may be called with, read as samples; its cutting against transformers' own."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pipelines.automatic_speech_recognition import chunk_iter

from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.models.speech_input import Chunking, Speech, chunks_of, load_speech
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor
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


class Decoder:
    """As torchcodec has it."""

    def get_all_samples(self) -> Any:
        return SimpleNamespace(data=torch.from_numpy(SAMPLES)[None], sample_rate=16_000)


def test_arrays_and_tensors_are_mixed_to_one_channel() -> None:
    two = np.stack([SAMPLES, -SAMPLES / 2])
    for inputs in (SAMPLES, SAMPLES.astype(np.float64), torch.from_numpy(SAMPLES), SAMPLES[None]):
        np.testing.assert_array_equal(load_speech(inputs).samples, SAMPLES)
    assert load_speech(Decoder()).samples.size == SAMPLES.size
    for stereo in (two, torch.from_numpy(two).bfloat16().float(), torch.from_numpy(two)):
        mixed = load_speech(stereo).samples
        assert mixed.dtype == np.float32
        np.testing.assert_allclose(mixed, SAMPLES / 4, atol=1e-3)


def test_dictionaries_name_the_rate_and_may_say_more() -> None:
    recording = {
        "raw": noise(1, rate_hz=8_000)[0],
        "sampling_rate": 8_000,
        "id": 7,
        "stride": (80, 40),
    }
    speech = load_speech(recording)
    assert (speech.stride, speech.extra) == ((160, 80), {"id": 7})
    assert abs(speech.samples.size - 16_000) <= 1
    assert "raw" in recording
    named = load_speech({"array": SAMPLES, "path": "x.wav", "sampling_rate": 16_000, "raw": None})
    np.testing.assert_array_equal(named.samples, SAMPLES)
    assert named.extra == {}


def test_sixteen_bits_are_scaled() -> None:
    whole = np.rint(SAMPLES * 32_768).clip(-32_768, 32_767).astype(np.int16)
    scaled = whole.astype(np.float32) / 32_768
    for one in (whole, torch.from_numpy(whole), {"raw": whole, "sampling_rate": 16_000}):
        np.testing.assert_array_equal(load_speech(one).samples, scaled)
    np.testing.assert_allclose(load_speech(np.stack([whole, whole])).samples, scaled)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ({"raw": SAMPLES}, ValueError, "sampling_rate"),
    ({"sampling_rate": 16_000}, ValueError, "expected raw"),
    ({}, ValueError, "nothing"),
    ({"raw": SAMPLES, "sampling_rate": 10}, ValueError, "10 Hz"),
    ({"raw": SAMPLES, "sampling_rate": 8000.5}, ValueError, "8000.5"),
    ({"raw": SAMPLES, "sampling_rate": 16_000, "stride": (8_000, 1)}, ValueError, "stride"),
    (np.zeros((4, 100)), ValueError, "2 channels"),
    (np.zeros((2, 2, 100)), ValueError, r"\(2, 2, 100\)"),
    (np.zeros(0, dtype=np.float32), ValueError, "no samples"),
    (np.array([0, 300], dtype=np.int32), ValueError, "int32"),
    ([0.0, 0.1], TypeError, "list"),
    (b"", DecodeError, "0 bytes"),
    ("./no such file.wav", FetchError, "no such file"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), REFUSED)
def test_anything_else_is_refused(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_speech(inputs)


@pytest.mark.long
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


RATE = 100  # keeps made recordings small


@given(
    num_samples=st.integers(1, 3_000),
    length=st.integers(1, 900),
    left=st.integers(0, 400),
    right=st.integers(0, 400),
)
@settings(max_examples=150)
def test_ranges_are_transformers(num_samples: int, length: int, left: int, right: int) -> None:
    if left + right >= length:
        with pytest.raises(ValueError, match="chunking audio"):
            Chunking(length_s=length / RATE, stride_s=(left / RATE, right / RATE))
        return
    seen: list[tuple[int, int]] = []

    def extractor(samples: np.ndarray, **_: Any) -> dict:
        seen.append((int(samples[0]), int(samples[-1]) + 1))
        return {}

    extractor.sampling_rate = RATE  # type: ignore[attr-defined]
    expected = [
        (*seen[-1], *chunk["stride"][1:])
        for chunk in chunk_iter(np.arange(num_samples), extractor, length, left, right)
    ]
    chunking = Chunking(length_s=length / RATE, stride_s=(left / RATE, right / RATE))
    assert list(chunking.ranges(num_samples, rate_hz=RATE)) == expected
    # Without their contexts the chunks are the recording, once.
    kept = [(start + a, end - b) for start, end, a, b in expected]
    assert kept[0][0] == 0
    assert kept[-1][1] == num_samples
    assert all(end == start for (_, end), (start, _) in pairwise(kept))


def test_a_sixth_is_context_where_nothing_is_said() -> None:
    assert Chunking(length_s=30.0).strides_s == (5.0, 5.0)
    assert Chunking(length_s=30.0, stride_s=2).strides_s == (2, 2)
    with pytest.raises(ValueError, match="none negative"):
        Chunking(length_s=30.0, stride_s=(-1, 2))
    with pytest.raises(ValueError, match="found chunk_length_s -3"):
        Chunking(length_s=-3.0)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.5])
def test_a_recording_that_is_not_cut_is_one_chunk(seconds: float) -> None:
    samples = np.random.default_rng(0).random(int(seconds * 16_000)).astype(np.float32)
    extractor = WhisperFeatureExtractor(chunk_length=1)
    speech = Speech(samples=samples, stride=(160, 320), extra={"id": 1})
    (chunk,) = chunks_of(speech, extractor, chunking=Chunking(), dtype=torch.bfloat16)
    frames = max(100, int(seconds * 100))
    assert chunk.features.shape == (1, 80, frames)
    assert chunk.features.dtype == torch.bfloat16
    assert int(chunk.mask.sum()) == int(seconds * 100)
    assert chunk.is_last
    assert (chunk.stride, chunk.extra) == ((samples.size, 160, 320), {"id": 1})


def test_chunks_hold_the_features_of_their_samples() -> None:
    samples = np.random.default_rng(0).random(40_000).astype(np.float32)
    extractor = WhisperFeatureExtractor(chunk_length=1)
    theirs = transformers.WhisperFeatureExtractor(chunk_length=1)
    expected = list(chunk_iter(samples, theirs, 16_000, 1_600, 800))
    chunking = Chunking(length_s=1.0, stride_s=(0.1, 0.05))
    speech = Speech(samples=samples)
    found = list(chunks_of(speech, extractor, chunking=chunking, dtype=None))
    assert [chunk.is_last for chunk in found] == [chunk["is_last"] for chunk in expected]
    for chunk, other in zip(found, expected, strict=True):
        assert chunk.stride == other["stride"]
        assert chunk.mask.tolist() == other["attention_mask"].tolist()
        torch.testing.assert_close(chunk.features, other["input_features"], atol=1e-4, rtol=0)
