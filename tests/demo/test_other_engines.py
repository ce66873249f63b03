"""Other engines write the same text of the demo's sentences, with the same weights.

Sentence by sentence: each fits into one window, so that nothing but the model decides. What others
write of the silence behind a recording is removed, as this engine removes it.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faster_whisper
import numpy as np
import pytest
import torch
import transformers

from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_FRAMES, WINDOW_SAMPLES
from tests.support.audio import read_clip
from tests.support.spoken import Clip, cut_out, error_rate

pytestmark = pytest.mark.slow

PROMPT = ["<|startoftranscript|>"]  # of a model of English alone
PLAIN: dict[str, Any] = {
    "language": "en",
    "beam_size": 1,
    "temperature": 0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "stop_loops": False,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return cut_out(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module")
def ours(float_model: Path) -> Iterator[Transcriber]:
    """Hears whole windows of 30 s, speech or none."""
    with Transcriber.from_pretrained(
        str(float_model),
        compute_type="float32",
        vad_filter=False,
        **PLAIN,
    ) as loaded:
        yield loaded


def test_transformers_hears_the_same(
    float_model: Path, clips: list[Clip], ours: Transcriber
) -> None:
    processor = transformers.WhisperProcessor.from_pretrained(float_model)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        float_model, dtype=torch.float32
    ).eval()
    theirs = []
    for clip in clips:
        inputs = processor(
            read_clip(clip.path), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt",
            return_attention_mask=True,
        )  # fmt: skip
        ids = model.generate(**inputs, return_timestamps=True, do_sample=False)
        theirs.append(heard_within(clip, ids[0].tolist(), processor.tokenizer))
    found = [ours.transcribe(str(clip.path), strategy="chunked").text for clip in clips]
    assert [text.strip() for text in found] == [text.strip() for text in theirs]


def test_faster_whisper_hears_the_same(
    float_model: Path, clips: list[Clip], ours: Transcriber, tmp_path: Path
) -> None:
    converter = importlib.import_module("ctranslate2.converters").TransformersConverter(
        str(float_model), copy_files=["tokenizer.json", "preprocessor_config.json"]
    )
    converter.convert(str(tmp_path / "converted"))
    model = faster_whisper.WhisperModel(
        str(tmp_path / "converted"), device="cpu", compute_type="float32"
    )
    tokenizer = transformers.WhisperTokenizer.from_pretrained(float_model)
    theirs = []
    for clip in clips:
        samples = read_clip(clip.path)
        # Of short recordings it pads features, not samples; then silence is no silence any more.
        padded = np.pad(samples, (0, WINDOW_SAMPLES - len(samples)))
        features = model.feature_extractor(padded)[:, :WINDOW_FRAMES]
        encoded = model.encode(features)
        [result] = model.model.generate(encoded, [PROMPT], beam_size=1, max_length=448)
        theirs.append(heard_within(clip, result.sequences_ids[0], tokenizer))
    found = [ours.transcribe(str(clip.path), strategy="chunked").text for clip in clips]
    assert error_rate(theirs, found) <= 0.02  # its features differ in the last digits


def heard_within(clip: Clip, ids: list[int], tokenizer: Any) -> str:
    """The text of what begins before the end of a recording."""
    end_s = len(read_clip(clip.path)) / SAMPLE_RATE_HZ
    passages = tokenizer.decode(ids, skip_special_tokens=True, output_offsets=True)["offsets"]
    return "".join(one["text"] for one in passages if one["timestamp"][0] < end_s)
