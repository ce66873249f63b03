"""A part's features against openai-whisper's padded recording; masks against transformers'."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import _compute_mask_indices

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.encoder import mask_spans
from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.units import HOP_SAMPLES, TAIL_FRAMES, WINDOW_FRAMES, WINDOW_SAMPLES
from tests.support.audio import made_sounds

# float16 has 11 bits: 1e-3 around 2, the largest value there is; the rest is float32 arithmetic.
FLOAT16_TOLERANCE = 1.1e-3


def rebuilt(samples: np.ndarray, num_mel_bins: int) -> np.ndarray:
    """Undo the shortening: content frames, then one window of what the pad value stands for."""
    part = WhisperPartFeatures(num_mel_bins=num_mel_bins)(samples)
    frames = samples.size // HOP_SAMPLES + WINDOW_FRAMES
    whole = np.full((frames, num_mel_bins), part.pad_value, dtype=np.float32)
    whole[: len(part.values)] = part.values
    return whole.T


def expected_features(samples: np.ndarray, num_mel_bins: int) -> np.ndarray:
    audio = torch.from_numpy(samples)
    return whisper.log_mel_spectrogram(audio, num_mel_bins, padding=WINDOW_SAMPLES).numpy()


def assert_rebuilt(samples: np.ndarray, num_mel_bins: int = 80) -> None:
    found, expected = rebuilt(samples, num_mel_bins), expected_features(samples, num_mel_bins)
    np.testing.assert_allclose(found, expected, atol=FLOAT16_TOLERANCE, rtol=0)


@pytest.mark.long
@given(num_samples=st.integers(0, 40_000), name=st.sampled_from(sorted(made_sounds(1))))
@settings(max_examples=60, deadline=None)
def test_a_rebuilt_part_equals_whispers_padded_recording(num_samples: int, name: str) -> None:
    assert_rebuilt(made_sounds(max(num_samples, 1))[name][:num_samples])


def test_loud_endings_keep_every_frame_they_reach() -> None:
    for num_samples in (16_000, 16_120, 16_121, 16_159, 1, 159, 160):
        assert_rebuilt(np.ones(num_samples, dtype=np.float32))
    part = WhisperPartFeatures(num_mel_bins=80)(np.zeros(16_000, dtype=np.float32))
    assert part.values.dtype == np.float16
    assert part.values.shape == (100 + TAIL_FRAMES, 80)
    assert part.pad_value == -1.5


def write_checkpoint(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_whispers_own_preprocessor_files_are_accepted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, {"num_mel_bins": 128})
    assert WhisperPartFeatures.from_folder(folder).num_mel_bins == 128
    extractor = WhisperFeatureExtractor(feature_size=128)
    extractor.save_pretrained(folder)
    nested = {"feature_extractor": extractor.to_dict()}
    (folder / "processor_config.json").write_text(json.dumps(nested, default=np.ndarray.tolist))
    assert WhisperPartFeatures.from_folder(folder).num_mel_bins == 128


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_another_front_end_is_refused_by_file_and_key(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, {"num_mel_bins": 80})
    for setting, value in (
        ("n_fft", 512),
        ("hop_length", 200),
        ("sampling_rate", 8000),
        ("feature_size", 128),
    ):
        content: object = {setting: value}
        if name == "processor_config.json":
            content = {"feature_extractor": content}
        (folder / name).write_text(json.dumps(content))
        message = rf"{name}: found {setting} {value} \(expected \d+\)"
        with pytest.raises(CheckpointError, match=message):
            WhisperPartFeatures.from_folder(folder)


def test_a_config_without_a_number_of_bins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: found no such file"):
        WhisperPartFeatures.from_folder(tmp_path)
    for bins in (0, -80, "80", 80.5, None):
        with pytest.raises(CheckpointError, match=r"config\.json: num_mel_bins is"):
            WhisperPartFeatures.from_folder(write_checkpoint(tmp_path, {"num_mel_bins": bins}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        WhisperPartFeatures.from_folder(write_checkpoint(tmp_path, []))


@given(
    rows=st.integers(1, 4),
    places=st.integers(1, 60),
    length=st.integers(1, 60),
    probability=st.floats(0.0, 1.0),
    min_spans=st.integers(0, 5),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_masks_are_those_of_transformers(
    rows: int,
    places: int,
    length: int,
    probability: float,
    min_spans: int,
    seed: int,
    data: st.DataObject,
) -> None:
    length = min(length, places)
    lengths = data.draw(
        st.none() | st.lists(st.integers(length, places), min_size=rows, max_size=rows)
    )
    mask: Any = None
    if lengths is not None:
        mask = (torch.arange(places) < torch.tensor(lengths)[:, None]).long()
    np.random.seed(seed)
    expected = _compute_mask_indices(
        (rows, places), probability, length, attention_mask=mask, min_masks=min_spans
    )
    next_draw = np.random.rand()
    np.random.seed(seed)
    found = mask_spans(
        (rows, places),
        probability=probability,
        length=length,
        min_spans=min_spans,
        lengths=lengths,
    )
    assert np.array_equal(found, expected)
    assert np.random.rand() == next_draw


def test_a_row_shorter_than_a_span_is_masked_in_its_padding_only() -> None:
    masked = mask_spans((2, 20), probability=0.5, length=5, min_spans=1, lengths=[3, 20])
    assert masked[0].nonzero()[0].tolist() == [19]
    for length in (0, 21):
        with pytest.raises(ValueError, match=f"spans of {length} in rows of 20, expected 1 to 20"):
            mask_spans((1, 20), probability=0.5, length=length, min_spans=1)
