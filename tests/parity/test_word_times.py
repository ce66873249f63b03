"""Word for word and to the hundredth of a second, what openai-whisper's `transcribe` says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whisper
import whisper.timing
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.parity.test_seek_loop import expected, request
from tests.support.references import align_with, openai_whisper, read_audio

NO_THRESHOLDS: dict[str, Any] = {
    "language": "en",
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> whisper.Whisper:
    model = openai_whisper(checkpoint)
    align_with(model, PromptFormat.from_folder(checkpoint).alignment_heads)
    return model


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine.from_folder(
        checkpoint, decoding=DecodingSettings(), device="cpu", dtype="float32", slots=2
    ) as engine:
        yield engine


@pytest.mark.parametrize(
    ("path", "seconds"),
    [
        pytest.param("longform/ls_777-126732.ogg", 33, marks=pytest.mark.slow),
        ("timings/LJ002-0092.flac", 30),
    ],
)
def test_words_of_real_speech_are_those_of_openai_whisper(
    speech: Path,
    checkpoint: Path,
    engine: Engine,
    oracle: whisper.Whisper,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    seconds: int,
) -> None:
    # The same path without waiting for a compiler.
    monkeypatch.setattr(
        whisper.timing, "dtw_cpu", lambda cost: np.array(_dynamic_time_warping(cost))
    )
    samples = read_audio(speech / path)[: seconds * SAMPLE_RATE_HZ]
    part = request(checkpoint, samples)
    settings = DecodingSettings(
        temperature=(0.0,), word_timestamps=True, stop_loops=False, **NO_THRESHOLDS
    )
    found = engine.submit(part, decoding=settings).result()
    wanted = expected(
        oracle,
        part,
        samples,
        monkeypatch,
        temperature=0.0,
        condition_on_previous_text=False,
        word_timestamps=True,
        **NO_THRESHOLDS,
    )
    spoken = [segment for segment in wanted["segments"] if segment["text"].strip()]
    assert [segment.text for segment in found.segments] == [one["text"] for one in spoken]
    for segment, one in zip(found.segments, spoken, strict=True):
        assert (segment.start_s, segment.end_s) == pytest.approx((one["start"], one["end"]))
        assert segment.words
        assert "".join(word.word for word in segment.words) == segment.text
        assert [word.word for word in segment.words] == [word["word"] for word in one["words"]]
        for word, other in zip(segment.words, one["words"], strict=True):
            assert (word.start_s, word.end_s) == pytest.approx((other["start"], other["end"]))
            assert word.probability == pytest.approx(other["probability"], rel=2e-3, abs=1e-6)
