"""How a pipeline cuts recordings, against transformers' own cutting."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pipelines.automatic_speech_recognition import chunk_iter

from corpus_asr.models.speech_chunks import Chunking, chunks_of
from corpus_asr.models.speech_input import Speech
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor

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
