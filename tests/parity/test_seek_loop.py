"""The seek loop says what openai-whisper's `transcribe` says, segment for segment.

Both run in float32 on the very same features, so texts, tokens and times are compared exactly and
scores within rounding. Three differences are evened out: openai-whisper stops a window after 224
tokens instead of 445, pads the features of a recording of less than one window with 0.0, where
this package goes on with those of digital silence, as `transformers` does, and lets segments end
after their clip or recording. Longer recordings are compared with `transformers`' own long form,
too, features and all.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import whisper
import whisper.timing
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.segments import PartTranscript
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_FRAMES, WINDOW_SAMPLES
from tests.support.references import align_with, openai_whisper, read_audio

pytestmark = pytest.mark.long

STORY = "longform/ls_777-126732.ogg"
GREEDY: dict[str, Any] = {
    "strategy": "sequential",
    "beam_size": 1,
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


@dataclass(frozen=True)
class Loop:
    """This package's engine and openai-whisper's model, with the same weights."""

    checkpoint: Path
    engine: Engine
    oracle: whisper.Whisper

    def request(self, samples: np.ndarray, *, name: str = "r") -> PartRequest:
        features = WhisperPartFeatures.from_folder(self.checkpoint)(samples)
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

    def wanted(self, part: PartRequest, samples: np.ndarray, **options: Any) -> dict[str, Any]:
        """Run openai-whisper on the very features of the part."""
        frames = len(samples) // HOP_SAMPLES + WINDOW_FRAMES
        mel = np.full((frames, part.features.shape[1]), part.pad_value, dtype=np.float32)
        mel[: len(part.features)] = part.features
        spectrogram = torch.from_numpy(mel.T.copy())
        # The package's function of the same name hides the module from attribute access.
        module = sys.modules["whisper.transcribe"]
        trim = module.pad_or_trim

        def pad_or_trim(window: torch.Tensor, length: int) -> torch.Tensor:
            missing = max(0, length - window.shape[1])
            return torch.nn.functional.pad(window[:, :length], (0, missing), value=part.pad_value)

        # Its time warping, without waiting for a compiler.
        warping = mock.patch.object(
            whisper.timing, "dtw_cpu", lambda cost: np.array(_dynamic_time_warping(cost))
        )
        short = len(samples) <= WINDOW_SAMPLES
        with (
            mock.patch.object(module, "log_mel_spectrogram", return_value=spectrogram),
            mock.patch.object(module, "pad_or_trim", pad_or_trim if short else trim),
            warping,
        ):
            options = {"sample_len": 445} | options
            return whisper.transcribe(self.oracle, samples, fp16=False, verbose=None, **options)

    def compare(
        self, samples: np.ndarray, ours: dict[str, Any], theirs: dict[str, Any]
    ) -> PartTranscript:
        part = self.request(samples)
        settings = DecodingSettings(language="en", **GREEDY | ours)
        found = self.engine.submit(replace(part, decoding=settings)).result()
        wanted = self.wanted(part, samples, **THEIR_GREEDY | theirs)
        compare(part, found, wanted, stops=settings.clip_timestamps[1::2])
        return found


@pytest.fixture(scope="module")
def loop(checkpoint: Path) -> Iterator[Loop]:
    oracle = openai_whisper(checkpoint)
    align_with(oracle, PromptFormat.from_folder(checkpoint).alignment_heads)
    with Engine.from_folder(
        checkpoint, decoding=DecodingSettings(), device="cpu", dtype="float32", slots=4
    ) as engine:
        yield Loop(checkpoint, engine, oracle)


def compare(
    part: PartRequest,
    found: PartTranscript,
    wanted: dict[str, Any],
    *,
    stops: tuple[float, ...] = (),
) -> None:
    """Compare segments; those of clips end with their clips, which `stops` are the ends of."""
    stops += (part.num_samples / SAMPLE_RATE_HZ,)
    spoken = [segment for segment in wanted["segments"] if segment["text"].strip()]
    assert [segment.text for segment in found.segments] == [one["text"] for one in spoken]
    for segment, one in zip(found.segments, spoken, strict=True):
        stop_s = next(at_s for at_s in stops if at_s > one["start"])
        times = (one["start"], min(one["end"], stop_s))
        assert (segment.start_s, segment.end_s) == pytest.approx(times)
        assert list(segment.tokens) == [token for token in one["tokens"] if token < TEXT_TOKENS]
        assert segment.avg_logprob == pytest.approx(one["avg_logprob"], abs=SCORE_TOLERANCE)
        assert segment.no_speech_prob == pytest.approx(one["no_speech_prob"], abs=SCORE_TOLERANCE)
        assert segment.temperature == one["temperature"]
        assert segment.compression_ratio == pytest.approx(one["compression_ratio"], abs=1e-6)
        words = segment.words or ()
        assert [word.word for word in words] == [word["word"] for word in one.get("words", ())]
        for word, other in zip(words, one.get("words", ()), strict=True):
            assert (word.start_s, word.end_s) == pytest.approx((other["start"], other["end"]))
            assert word.probability == pytest.approx(other["probability"], rel=2e-3, abs=1e-3)


KNIGHTS = {"initial_prompt": "A tale of knights."}
EARLIER, THEIR_EARLIER = {"condition_on_prev_tokens": True}, {"condition_on_previous_text": True}
WORDS = {"word_timestamps": True}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("path", "seconds", "ours", "theirs"),
    [
        slow(STORY, 60, EARLIER, THEIR_EARLIER),
        slow(STORY, 60, {}, {}),
        slow(STORY, 45, KNIGHTS | EARLIER, KNIGHTS | THEIR_EARLIER),
        (STORY, 12, {}, {}),
        slow(
            STORY, 50, {"clip_timestamps": (3, 12.5, 20, 41)}, {"clip_timestamps": "3,12.5,20,41"}
        ),
        slow(STORY, 33, WORDS, WORDS),
        slow("timings/LJ002-0092.flac", 30, WORDS, WORDS),
    ],
)
def test_recordings_match_segment_for_segment_and_word_for_word(
    speech: Path,
    loop: Loop,
    path: str,
    seconds: int,
    ours: dict[str, Any],
    theirs: dict[str, Any],
) -> None:
    found = loop.compare(read_audio(speech / path)[: seconds * SAMPLE_RATE_HZ], ours, theirs)
    assert found.segments
    for segment in found.segments if "word_timestamps" in ours else ():
        assert segment.text == "".join(word.word for word in segment.words or ())
