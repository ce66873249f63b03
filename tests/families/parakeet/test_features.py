"""A part's features against transformers' extractor on the same samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ParakeetFeatureExtractor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet.features import (
    NemoAnalysis,
    ParakeetPartFeatures,
    log_mel,
    normalized,
)
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ
from tests.support.audio import made_sounds, read_clip

CLIPS = Path(__file__).parents[2] / "data" / "clips"
# The reference transforms in float32, whose rounding shows in quiet bins next to loud ones.
CLOSE = 2e-3
# float16 has 11 bits: half a step of 4e-3 around 8, divided by deviations of 2 or so.
FLOAT16 = 0.01


def expected_features(samples: np.ndarray, *, num_mel_bins: int, **options: Any) -> np.ndarray:
    extract = ParakeetFeatureExtractor(feature_size=num_mel_bins, **options)
    batch = extract(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
    frames: np.ndarray = batch["input_features"][0][batch["attention_mask"][0] == 1]
    return frames


@pytest.mark.long
@given(num_samples=st.integers(2 * HOP_SAMPLES, 60_000), name=st.sampled_from(["noise", "speech"]))
@settings(max_examples=30, deadline=None)
def test_features_are_those_of_transformers(num_samples: int, name: str) -> None:
    clip = read_clip(sorted(CLIPS.iterdir())[0])
    sounds = {"speech": clip, "noise": made_sounds(60_000)["noise"]}
    samples = sounds[name][:num_samples]
    for num_mel_bins in (80, 128):
        found = normalized(log_mel(samples, NemoAnalysis(num_mel_bins=num_mel_bins)))
        expected = expected_features(samples, num_mel_bins=num_mel_bins)
        np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)


def test_blocks_do_not_show() -> None:
    samples = made_sounds(80_000)["noise"]  # 500 frames, in two blocks
    whole = log_mel(samples, NemoAnalysis())
    middle = log_mel(samples[200 * HOP_SAMPLES : 300 * HOP_SAMPLES], NemoAnalysis())
    np.testing.assert_allclose(whole[203:297], middle[3:-3], atol=1e-4)


def test_short_and_silent_recordings_stay_finite() -> None:
    for num_samples in (0, 1, HOP_SAMPLES - 1, HOP_SAMPLES, 2 * HOP_SAMPLES):
        values = normalized(log_mel(np.zeros(num_samples, dtype=np.float32), NemoAnalysis()))
        assert values.shape == (num_samples // HOP_SAMPLES, 80)
        assert (values == 0).all()
    single = normalized(log_mel(made_sounds(HOP_SAMPLES)["noise"], NemoAnalysis()))
    assert (single == 0).all()


def test_a_window_of_a_part_is_nearly_what_its_samples_give() -> None:
    samples = read_clip(sorted(CLIPS.iterdir())[0])
    part = ParakeetPartFeatures(num_mel_bins=128)
    stored = part(samples)
    assert stored.values.dtype == np.float16
    whole = part.window(stored.values, 0, len(stored.values))
    expected = expected_features(samples, num_mel_bins=128)
    assert np.abs(whole - expected).max() < FLOAT16
    start, end = 50, 220
    window = part.window(stored.values, start, end)
    cut = samples[start * HOP_SAMPLES : end * HOP_SAMPLES]
    expected = expected_features(cut, num_mel_bins=128)
    # The audio around the window is in its outermost frames, and a little in the mean of all.
    assert window.shape == expected.shape
    assert np.abs(window - expected)[2:-2].mean() < 0.02


def written(folder: Path, *, bins: Any = 80, **extractor: Any) -> Path:
    config = {"model_type": "parakeet_ctc", "encoder_config": {"num_mel_bins": bins}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    return folder


def test_what_a_checkpoint_was_trained_on_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path, bins=128, feature_size=128, preemphasis=None)
    part = ParakeetPartFeatures.from_folder(folder)
    samples = made_sounds(8_000)["noise"]
    expected = expected_features(samples, num_mel_bins=128, preemphasis=None)
    stored = part(samples).values
    assert part.num_mel_bins == 128
    assert np.abs(part.window(stored, 0, len(stored)) - expected).max() < FLOAT16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": "80"}, "encoder_config.num_mel_bins is '80'"),
        ({"bins": 128}, "found feature_size 80 (expected 128)"),
        ({"hop_length": 256}, "found hop_length 256 (expected 160)"),
        ({"preemphasis": "much"}, "preemphasis is 'much'"),
    ],
)
def test_other_features_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        ParakeetPartFeatures.from_folder(written(tmp_path, **settings))
    assert message in str(refused.value)
