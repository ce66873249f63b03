"""demo-en is a Whisper checkpoint like any other: other engines load it and hear the same."""

import importlib
from pathlib import Path

import faster_whisper
import pytest
import torch
import transformers

from corpus_asr.units import SAMPLE_RATE_HZ
from tests.demo.conftest import Heard
from tests.support.signals import read_clip
from tests.support.spoken import NAMES, error_rate, spoken

pytestmark = pytest.mark.slow

SPOKEN = spoken()
# Windows differ a little: without speech detection there, silence is transcribed too.
MOST_DIFFERENT = 0.05


def test_transformers_hears_the_same(demo_model: Path, heard: Heard) -> None:
    processor = transformers.WhisperProcessor.from_pretrained(demo_model)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        demo_model, dtype=torch.float32
    ).eval()
    for name in NAMES:
        inputs = processor(
            read_clip(SPOKEN[name].path), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt",
            truncation=False, padding="longest", return_attention_mask=True,
        )  # fmt: skip
        ids = model.generate(**inputs, return_timestamps=True, do_sample=False)
        [theirs] = processor.batch_decode(ids, skip_special_tokens=True)
        ours = "".join(segment.text for segment in heard[name])
        assert error_rate([theirs], [ours]) <= MOST_DIFFERENT, name


def test_faster_whisper_hears_the_same(demo_model: Path, heard: Heard, tmp_path: Path) -> None:
    converter = importlib.import_module("ctranslate2.converters").TransformersConverter(
        str(demo_model), copy_files=["tokenizer.json", "preprocessor_config.json"]
    )
    converter.convert(str(tmp_path / "converted"))
    model = faster_whisper.WhisperModel(
        str(tmp_path / "converted"), device="cpu", compute_type="float32"
    )
    for name in NAMES:
        segments, _ = model.transcribe(str(SPOKEN[name].path), beam_size=1, language="en")
        theirs = "".join(segment.text for segment in segments)
        ours = "".join(segment.text for segment in heard[name])
        assert error_rate([theirs], [ours]) <= MOST_DIFFERENT, name
