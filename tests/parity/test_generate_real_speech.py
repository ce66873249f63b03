"""On real speech and a real checkpoint `generate` says what `transformers` says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.parity.test_seek_loop import named_language
from tests.support.references import Pair, read_audio, same

CLIPS = ("LJ002-0193.wav", "ls_1089-134686-0000.flac")


@pytest.fixture(scope="module")
def both(checkpoint: Path) -> Pair:
    ours = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    return Pair(ours.eval(), theirs.eval())


def features(checkpoint: Path, clips: list[np.ndarray], **options: Any) -> dict[str, Tensor]:
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
    return dict(
        extractor(clips, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **options),
    )


def test_short_clips_in_a_batch(both: Pair, checkpoint: Path, speech: Path) -> None:
    clips = [read_audio(speech / "english_short" / name) for name in CLIPS]
    inputs = features(checkpoint, clips, return_attention_mask=True)
    batch, mask = inputs["input_features"], inputs["attention_mask"]
    arguments = {"return_timestamps": True, "return_segments": True, "attention_mask": mask}
    language = named_language(checkpoint)
    same(*both.both(batch, max_new_tokens=40, **language, **arguments))


@pytest.mark.slow
def test_two_windows_with_times_of_tokens_and_text_before(
    both: Pair, checkpoint: Path, speech: Path
) -> None:
    samples = read_audio(speech / "longform" / "ls_777-126732.ogg")[: 40 * SAMPLE_RATE_HZ]
    inputs = features(
        checkpoint, [samples], truncation=False, padding="longest", return_attention_mask=True
    )
    ours, theirs = both.both(
        inputs["input_features"],
        attention_mask=inputs["attention_mask"],
        **named_language(checkpoint),
        return_timestamps=True,
        return_segments=True,
        return_token_timestamps=True,
        condition_on_prev_tokens=True,
    )
    same(ours["sequences"], theirs["sequences"])
    same(ours["token_timestamps"], theirs["token_timestamps"])
    for one, other in zip(ours["segments"][0], theirs["segments"][0], strict=True):
        for name in ("start", "end", "tokens", "idxs", "token_timestamps"):
            same(one[name], other[name])
