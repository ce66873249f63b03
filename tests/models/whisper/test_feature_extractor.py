"""WhisperFeatureExtractor against transformers' own, on its numpy route."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.families.whisper.encoder import log_mel_on_device
from corpus_asr.features.mel import Analysis
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor
from tests.support.audio import made_sounds

# Both compute in float64; transformers rounds its spectrum to complex64 on the way.
TOLERANCE = 1e-5
# float32 on both sides, by different libraries.
FLOAT32_TOLERANCE = 1e-4

SMALL: dict[str, Any] = {"chunk_length": 1}  # windows of a second keep the tests quick


@pytest.fixture(autouse=True)
def numpy_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take transformers' numpy route, which it leaves where it finds torch."""
    module = "transformers.models.whisper.feature_extraction_whisper.is_torch_available"
    monkeypatch.setattr(module, lambda: False)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def both(speech: Any, init: dict[str, Any] | None = None, **options: Any) -> Any:
    init = {**SMALL, **(init or {})}
    options = {"sampling_rate": init.get("sampling_rate", 16_000), **options}
    found = []
    for extractor in (WhisperFeatureExtractor, transformers.WhisperFeatureExtractor):
        np.random.seed(7)  # of the dither
        found.append(extractor(**init)(speech, **options))
    return found


def assert_equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        assert type(ours[name]) is type(theirs[name])
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_allclose(ours[name], theirs[name], atol=TOLERANCE, rtol=0)


@pytest.mark.long
@given(
    lengths=st.lists(st.integers(200, 40_000), min_size=1, max_size=3),
    truncation=st.booleans(),
    padding=st.sampled_from(["max_length", "longest", True]),
    max_length=st.sampled_from([None, 7_000, 16_000, 30_001]),
    pad_to_multiple_of=st.sampled_from([None, 128, 160, 1_600]),
    return_attention_mask=st.sampled_from([True, False]),
    do_normalize=st.sampled_from([None, True]),
    return_tensors=st.sampled_from(["np", "pt"]),
    left=st.booleans(),
)
@settings(max_examples=40)
def test_any_call_equals_transformers(
    lengths: list[int], left: bool, padding: Any, truncation: bool, **options: object
) -> None:
    if not truncation:
        padding = "longest"  # shorter targets leave rows of several lengths, which it cannot stack
    speech = [noise(length, seed) for seed, length in enumerate(lengths)]
    init = {"padding_side": "left" if left else "right", "padding_value": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        module = "transformers.models.whisper.feature_extraction_whisper.is_torch_available"
        patch.setattr(module, lambda: False)
        ours, theirs = both(speech, init, padding=padding, truncation=truncation, **options)
    if not options["return_attention_mask"]:
        # It leaves the mask of samples behind that it normalized by: no mask of these features.
        theirs.pop("attention_mask", None)
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    "init",
    [
        {"n_fft": 512},
        {"dither": 1e-3},
        {"n_fft": 401, "hop_length": 100},
        {"hop_length": 80, "feature_size": 40},
        {"sampling_rate": 8_000, "n_fft": 200, "hop_length": 80, "feature_size": 20},
        {"sampling_rate": 22_050, "n_fft": 551, "hop_length": 220},
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_other_sizes_equal_transformers(init: dict) -> None:
    ours, theirs = both([noise(9_000), noise(30_000)], init, return_attention_mask=True)
    if init.get("n_fft", 400) % 2:
        # It counts a frame more in the mask than there are where the transform is odd.
        frames = theirs["input_features"].shape[2]
        theirs["attention_mask"] = theirs["attention_mask"][:, :frames]
    assert_equal(ours, theirs)


# Settings in files.


def test_published_files_are_read(tmp_path: Path) -> None:
    published = {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "mel_filters": [[0.0, 0.1]],
        "n_samples": 1,
        "nb_max_frames": 1,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path)
    assert (extractor.n_samples, extractor.nb_max_frames) == (480_000, 3_000)
    assert extractor.to_dict() == WhisperFeatureExtractor().to_dict()


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_the_gpu_route_equals_transformers_torch_route(num_mel_bins: int) -> None:
    rows = np.stack([made_sounds(16_000)["noise"], made_sounds(16_000)["hum"]])
    ours = log_mel_on_device(rows, num_mel_bins=num_mel_bins, analysis=Analysis(), device="cpu")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mel_bins)
    theirs = extractor._torch_extract_fbank_features(rows, "cpu")
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    plain = WhisperFeatureExtractor(feature_size=num_mel_bins, **SMALL)(rows, sampling_rate=16_000)
    np.testing.assert_allclose(ours, plain["input_features"], atol=FLOAT32_TOLERANCE)
