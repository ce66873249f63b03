"""Word times of Qwen3-ForcedAligner beside transformers, on random checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen3_asr.processing_qwen3_asr import _fix_timestamps

from corpus_asr.errors import AlignmentError, CheckpointError
from corpus_asr.families.qwen3_asr.alignment import Qwen3Aligner, ascending
from corpus_asr.families.registry import FAMILIES, resolve
from tests.support.qwen3_asr import qwen3_asr_aligner, qwen3_asr_pair

ON_CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
WORDS = [" Der", " Nordwind", ",", " und", " die", " Sonne's", " 太陽", " \u2013", " 42."]


@pytest.mark.parametrize("seed", [1, 2])
def test_times_are_those_of_transformers(tmp_path: Path, seed: int) -> None:
    theirs, ids = qwen3_asr_aligner(tmp_path, seed=seed)
    aligner: Qwen3Aligner = resolve(FAMILIES["qwen3_asr"].word_aligner).from_folder(
        tmp_path, **ON_CPU
    )
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    sound = np.random.default_rng(0).standard_normal(16_000 * 6).astype(np.float32) * 0.1
    features = aligner._features(sound).values
    found = aligner.place(aligner.scores(features), WORDS)
    spoken = ["Der", "Nordwind", "und", "die", "Sonne's", "太陽", "42"]
    marked = "".join(f"{word}<timestamp><timestamp>" for word in spoken)
    inputs = processor(
        text=f"<|audio_start|><|audio_pad|><|audio_end|>{marked}", audio=sound, sampling_rate=16_000
    )
    with torch.inference_mode():
        logits = theirs(**inputs).logits
    expected = processor.decode_forced_alignment(
        logits, inputs["input_ids"], [spoken], ids["<timestamp>"]
    )[0]
    said = [word for word in found if word.word.strip() not in ",\u2013"]
    for word, other in zip(said, expected, strict=True):
        assert word.start_s == pytest.approx(other["start_time"], abs=1e-3)
        assert word.end_s == pytest.approx(other["end_time"], abs=1e-3)
        assert 0 < word.probability < 1
    comma = found[2]
    assert (comma.start_s, comma.end_s, comma.probability) == (found[1].end_s, found[1].end_s, 1.0)
    assert not aligner.knows([" ,", "\u2013"])
    with pytest.raises(AlignmentError, match="found too little audio for the text"):
        aligner.place(features[:30], WORDS * 90)
    (dash,) = aligner.place(features, [" \u2013"])
    assert (dash.start_s, dash.end_s, dash.probability) == (0.0, 0.0, 1.0)
    longest_s = aligner._model.vocab_size * 0.08
    too_long = np.zeros((round(100 * longest_s) + 1, 128), dtype=np.float16)
    with pytest.raises(AlignmentError, match=rf"more than the {longest_s:.1f} s that"):
        aligner.place(too_long, WORDS)


@pytest.mark.parametrize("seed", range(20))
def test_times_out_of_order_are_filled_in_as_by_transformers(seed: int) -> None:
    draw = np.random.default_rng(seed)
    times_ms = draw.integers(0, 40, draw.integers(1, 30)) * 80.0
    expected = np.array(_fix_timestamps(times_ms)) / 1000
    np.testing.assert_allclose(ascending(times_ms / 1000), expected, atol=1.01e-3)


def test_a_checkpoint_that_transcribes_is_no_aligner(tmp_path: Path) -> None:
    qwen3_asr_pair(tmp_path)
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        Qwen3Aligner.from_folder(tmp_path, **ON_CPU)
