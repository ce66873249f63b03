"""The seek loop says what openai-whisper's `transcribe` says, segment for segment.

Both run in float32 on the very same features, so texts, tokens and times are compared exactly and
scores within rounding. Two differences are evened out: openai-whisper stops a window after 224
tokens instead of 445, and pads the features of a recording of less than one window with 0.0, where
this package goes on with those of digital silence, as `transformers` does. Longer recordings are
compared with `transformers`' own long form, too, features and all.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import whisper

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.transcription.engine import Engine, PartTranscript
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_FRAMES, WINDOW_SAMPLES
from tests.support.references import openai_whisper, read_audio

GREEDY: dict[str, Any] = {
    "temperature": (0.0,),
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "stop_loops": False,
}
THEIR_GREEDY: dict[str, Any] = {
    "language": "en",
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "condition_on_previous_text": False,
}
TEXT_TOKENS = 50256  # of either vocabulary; timestamps and control tokens follow
# One ulp of a float32 sum over a few hundred log-probabilities.
SCORE_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> whisper.Whisper:
    model = openai_whisper(checkpoint)
    heads = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
    for layer, head in PromptFormat.from_folder(checkpoint).alignment_heads:
        heads[layer, head] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine.from_folder(
        checkpoint, decoding=DecodingSettings(), device="cpu", dtype="float32", slots=4
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def transformers_parts(checkpoint: Path) -> tuple[Any, Any]:
    """Its model and its processor."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    return model.eval(), transformers.WhisperProcessor.from_pretrained(checkpoint)


def named_language(checkpoint: Path) -> dict[str, str]:
    """Return what transformers is called with; it refuses a language for English-only models."""
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    return {"language": "en", "task": "transcribe"} if settings["is_multilingual"] else {}


def request(checkpoint: Path, samples: np.ndarray, *, name: str = "r") -> PartRequest:
    features = WhisperPartFeatures.from_folder(checkpoint)(samples)
    features.values[len(samples) // HOP_SAMPLES :] = features.pad_value
    return PartRequest(
        recording_id=name,
        part=0,
        features=features.values,
        num_samples=len(samples),
        pad_value=features.pad_value,
        start_s=0.0,
        speech=None,
    )


def expected(
    oracle: whisper.Whisper,
    part: PartRequest,
    samples: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> dict[str, Any]:
    frames = len(samples) // HOP_SAMPLES + WINDOW_FRAMES
    mel = np.full((frames, part.features.shape[1]), part.pad_value, dtype=np.float32)
    mel[: len(part.features)] = part.features
    spectrogram = torch.from_numpy(mel.T.copy())
    # The package's function of the same name hides the module from attribute access.
    module = sys.modules["whisper.transcribe"]
    monkeypatch.setattr(module, "log_mel_spectrogram", lambda *_, **__: spectrogram)

    def pad_or_trim(window: torch.Tensor, length: int) -> torch.Tensor:
        missing = max(0, length - window.shape[1])
        return torch.nn.functional.pad(window[:, :length], (0, missing), value=part.pad_value)

    if len(samples) <= WINDOW_SAMPLES:
        monkeypatch.setattr(module, "pad_or_trim", pad_or_trim)
    options = {"sample_len": 445} | options
    return whisper.transcribe(oracle, samples, fp16=False, verbose=None, **options)


def compare(found: PartTranscript, wanted: dict[str, Any]) -> None:
    spoken = [segment for segment in wanted["segments"] if segment["text"].strip()]
    assert [segment.text for segment in found.segments] == [one["text"] for one in spoken]
    for segment, one in zip(found.segments, spoken, strict=True):
        assert segment.start_s == pytest.approx(one["start"], abs=1e-6)
        assert list(segment.tokens) == [token for token in one["tokens"] if token < TEXT_TOKENS]
        assert segment.avg_logprob == pytest.approx(one["avg_logprob"], abs=SCORE_TOLERANCE)
        assert segment.no_speech_prob == pytest.approx(one["no_speech_prob"], abs=SCORE_TOLERANCE)
        assert segment.temperature == one["temperature"]
        assert segment.compression_ratio == pytest.approx(one["compression_ratio"], abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "conditioned"),
    [(36, True), pytest.param(60, True, marks=pytest.mark.slow),
     pytest.param(60, False, marks=pytest.mark.slow)],
)  # fmt: skip
def test_long_recordings_match_segment_for_segment(
    speech: Path,
    checkpoint: Path,
    engine: Engine,
    oracle: whisper.Whisper,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
    conditioned: bool,
) -> None:
    path = speech / "longform" / "ls_777-126732.ogg"
    samples = read_audio(path)[: seconds * SAMPLE_RATE_HZ]
    part = request(checkpoint, samples)
    settings = DecodingSettings(language="en", condition_on_prev_tokens=conditioned, **GREEDY)
    found = engine.submit(part, decoding=settings).result()
    wanted = expected(
        oracle,
        part,
        samples,
        monkeypatch,
        **THEIR_GREEDY | {"condition_on_previous_text": conditioned},
    )
    assert len(wanted["segments"]) > 3
    compare(found, wanted)


def test_short_clips_match_with_the_language_detected_and_thresholds_on(
    speech: Path,
    checkpoint: Path,
    engine: Engine,
    oracle: whisper.Whisper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = sorted((speech / "english_short").glob("*.*"))[:1]
    paths += sorted((speech / "multilingual").glob("*_de*"))[:1]
    settings = DecodingSettings(language="auto", temperature=(0.0,), stop_loops=False)
    audio = [read_audio(path) for path in paths if path.suffix != ".jsonl"]
    parts = [request(checkpoint, samples, name=str(n)) for n, samples in enumerate(audio)]
    futures = [engine.submit(part, decoding=settings) for part in parts]
    for part, samples, future in zip(parts, audio, futures, strict=True):
        wanted = expected(oracle, part, samples, monkeypatch, temperature=0.0,
                          condition_on_previous_text=False)  # fmt: skip
        found = future.result()
        compare(found, wanted)
        assert found.language == wanted["language"]


@pytest.mark.parametrize(
    ("seconds", "ours", "theirs"),
    [
        pytest.param(
            45,
            {"initial_prompt": "A tale of knights."},
            {"initial_prompt": "A tale of knights."},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            45,
            {"initial_prompt": "A tale of knights.", "condition_on_prev_tokens": True},
            {"initial_prompt": "A tale of knights.", "condition_on_previous_text": True},
            marks=pytest.mark.slow,
        ),
        # A longer sample_len would leave openai-whisper no room for the prefix.
        (12, {"prefix": "He was the"}, {"prefix": "He was the", "sample_len": 224}),
        pytest.param(
            31,
            {"clip_timestamps": "3,8.5,20"},
            {"clip_timestamps": [3.0, 8.5, 20.0]},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            50,
            {"clip_timestamps": (3, 12.5, 20, 41)},
            {"clip_timestamps": "3,12.5,20,41"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_prompts_prefixes_and_clips_match(
    speech: Path,
    checkpoint: Path,
    engine: Engine,
    oracle: whisper.Whisper,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
    ours: dict[str, Any],
    theirs: dict[str, Any],
) -> None:
    path = speech / "longform" / "ls_777-126732.ogg"
    samples = read_audio(path)[: seconds * SAMPLE_RATE_HZ]
    part = request(checkpoint, samples)
    settings = DecodingSettings(language="en", **GREEDY | ours)
    found = engine.submit(part, decoding=settings).result()
    compare(found, expected(oracle, part, samples, monkeypatch, **THEIR_GREEDY | theirs))


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [None, 1.0])
def test_words_and_skipped_silences_match(
    speech: Path,
    checkpoint: Path,
    engine: Engine,
    oracle: whisper.Whisper,
    monkeypatch: pytest.MonkeyPatch,
    threshold: float | None,
) -> None:
    # Speech, hiss, a fragment of speech, silence, speech: what the threshold is there for.
    said = read_audio(speech / "longform" / "ls_777-126732.ogg")
    hiss = np.random.default_rng(0).normal(0, 1e-3, 8 * SAMPLE_RATE_HZ).astype(np.float32)
    samples = np.concatenate(
        [hiss[: 4 * SAMPLE_RATE_HZ], said[: 11 * SAMPLE_RATE_HZ], hiss,
         said[15 * SAMPLE_RATE_HZ : 16 * SAMPLE_RATE_HZ], np.zeros_like(hiss),
         said[20 * SAMPLE_RATE_HZ : 36 * SAMPLE_RATE_HZ]]
    )  # fmt: skip
    part = request(checkpoint, samples)
    settings = DecodingSettings(
        language="en", word_timestamps=True, hallucination_silence_threshold=threshold, **GREEDY
    )
    found = engine.submit(part, decoding=settings).result()
    wanted = expected(
        oracle, part, samples, monkeypatch, word_timestamps=True,
        hallucination_silence_threshold=threshold, **THEIR_GREEDY,
    )  # fmt: skip
    compare(found, wanted)
    words = [word for segment in found.segments for word in segment.words or ()]
    theirs = [word for segment in wanted["segments"] for word in segment["words"]]
    assert len(words) > 20
    for word, one in zip(words, theirs, strict=True):
        assert word.word == one["word"]
        assert word.start_s == pytest.approx(one["start"], abs=1e-6)
        assert word.end_s == pytest.approx(one["end"], abs=1e-6)
        assert word.probability == pytest.approx(one["probability"], abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_beams": 3, "length_penalty": 0.5}, marks=pytest.mark.slow),
        {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2},
    ],
)
def test_search_options_give_what_they_give_in_transformers(
    speech: Path,
    checkpoint: Path,
    engine: Engine,
    transformers_parts: tuple[Any, Any],
    options: dict[str, Any],
) -> None:
    model, processor = transformers_parts
    samples = read_audio(speech / "longform" / "ls_777-126732.ogg")[: 9 * SAMPLE_RATE_HZ]
    features = WhisperPartFeatures.from_folder(checkpoint)(samples)
    part = replace(request(checkpoint, samples), features=features.values)
    settings = DecodingSettings(language="en", **GREEDY | options)
    found = engine.submit(part, decoding=settings).result()
    inputs = processor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(
            inputs.input_features, return_timestamps=True, **named_language(checkpoint), **options,
        )  # fmt: skip
    wanted = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert "".join(segment.text for segment in found.segments) == wanted


@pytest.mark.slow
def test_long_recordings_say_what_transformers_long_form_says(
    speech: Path, checkpoint: Path, engine: Engine, transformers_parts: tuple[Any, Any]
) -> None:
    model, processor = transformers_parts
    extractor = WhisperPartFeatures.from_folder(checkpoint)
    settings = DecodingSettings(language="en", **GREEDY)
    for path in sorted((speech / "longform").glob("*_*.*")):
        samples = read_audio(path)
        features = extractor(samples)
        found = engine.submit(
            replace(request(checkpoint, samples), features=features.values), decoding=settings
        )
        inputs = processor(
            samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", truncation=False,
            padding="longest", return_attention_mask=True,
        )  # fmt: skip
        with torch.inference_mode():
            tokens = model.generate(
                inputs.input_features, attention_mask=inputs.attention_mask,
                return_timestamps=True, temperature=0.0, condition_on_prev_tokens=False,
                **named_language(checkpoint),
            )  # fmt: skip
        wanted = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        text = "".join(segment.text for segment in found.result().segments)
        assert text.split() == wanted.split(), path.name


@pytest.mark.slow
def test_results_do_not_depend_on_slots_neighbours_or_order(
    speech: Path, checkpoint: Path, engine: Engine
) -> None:
    paths = sorted((speech / "english_short").glob("*.wav"))[:2]
    parts = [request(checkpoint, read_audio(path), name=path.name) for path in paths]
    # Thresholds no text of this checkpoint passes, so that every window is sampled.
    settings = DecodingSettings(
        temperature=(0.0, 0.7), logprob_threshold=-0.01, no_speech_threshold=None
    )
    together = [engine.submit(part, decoding=settings) for part in parts]
    backwards = [engine.submit(part, decoding=settings) for part in reversed(parts)]
    alone = [engine.submit(part, decoding=settings).result() for part in parts]
    assert any(segment.temperature == 0.7 for one in alone for segment in one.segments)
    for first, second, third in zip(together, reversed(backwards), alone, strict=True):
        texts = [[segment.text for segment in one.segments] for one in
                 (first.result(), second.result(), third)]  # fmt: skip
        assert texts[0] == texts[1] == texts[2]
