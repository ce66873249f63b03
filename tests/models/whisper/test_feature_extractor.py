"""WhisperFeatureExtractor against transformers' own, on its numpy route."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.encoder import log_mel_on_device
from corpus_asr.features.mel import Analysis
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor
from tests.support.audio import made_sounds, read_clip, read_manifest

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
    ours = WhisperFeatureExtractor(**init)(speech, **options)
    theirs = transformers.WhisperFeatureExtractor(**init)(speech, **options)
    return ours, theirs


def assert_equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        assert type(ours[name]) is type(theirs[name])
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_allclose(ours[name], theirs[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("feature_size", [80, 128])
def test_made_sounds_equal_transformers(feature_size: int) -> None:
    for speech in made_sounds(20_000).values():
        assert_equal(*both(speech, {"feature_size": feature_size, "chunk_length": 2}))


def test_a_whole_window_of_speech_equals_transformers(speech: Path) -> None:
    folder = speech / "english_short"
    item = read_manifest(folder)[0]
    samples = read_clip(folder / item["path"])
    assert_equal(*both(samples, {"chunk_length": 30}, return_attention_mask=True))


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
    theirs_filters = transformers.WhisperFeatureExtractor(**init).mel_filters
    np.testing.assert_allclose(
        WhisperFeatureExtractor(**init).mel_filters, theirs_filters, atol=1e-7
    )


def test_dither_is_transformers_under_the_same_seed() -> None:
    speech = [noise(5_000), np.zeros(16_000, dtype=np.float32)]
    found: list[Any] = []
    for extractor in (WhisperFeatureExtractor, transformers.WhisperFeatureExtractor):
        np.random.seed(7)
        found.append(extractor(dither=1e-3, **SMALL)(speech, sampling_rate=16_000))
    assert_equal(*found)
    plain = WhisperFeatureExtractor(**SMALL)(speech, sampling_rate=16_000)
    assert np.abs(plain["input_features"] - found[0]["input_features"]).max() > 0.1


def test_every_form_of_speech_equals_transformers() -> None:
    long, short = noise(3_000), noise(200)
    rows: list[Any] = [[long, short], (long, short), [long.tolist(), short.tolist()]]
    single: list[Any] = [long, long.astype(np.float64), long.tolist(), [0] * 2_000]
    for speech in (*rows, *single, np.stack([long, noise(3_000, 1)]), [long.astype(np.float64)]):
        assert_equal(*both(speech, return_attention_mask=True))
    extractor, batch = WhisperFeatureExtractor(**SMALL), np.stack([noise(900), noise(900, 1)])
    expected = extractor(batch, sampling_rate=16_000)["input_features"]
    for speech in (torch.from_numpy(batch), list(torch.from_numpy(batch))):
        found = extractor(speech, sampling_rate=16_000, return_tensors="pt").input_features
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("padding", ["do_not_pad", False, None])
def test_without_padding_recordings_keep_their_lengths(padding: Any) -> None:
    extractor = WhisperFeatureExtractor(**SMALL)
    speech = [noise(3_200), noise(4_900)]
    options: dict[str, Any] = {"padding": padding, "sampling_rate": 16_000}
    batch = extractor(speech, return_attention_mask=True, **options)
    assert [row.shape for row in batch.input_features] == [(80, 20), (80, 30)]
    assert [mask.tolist() for mask in batch.attention_mask] == [[1] * 20, [1] * 30]
    alone = extractor(speech[1], **options)
    np.testing.assert_array_equal(alone.input_features[0], batch.input_features[1])
    word: Any = transformers.utils.generic.PaddingStrategy.DO_NOT_PAD
    assert_equal(*both(speech[1], padding=word))
    with pytest.raises(ValueError, match=r"converting 'input_features'.*padding=True"):
        extractor(speech, return_tensors="pt", **options)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found nothing, expected processor_config.json or preprocessor_config.json"),
        ('{"feature_size": "80"}', "feature_size is '80'"),
        ('{"hop_length": 0}', "preprocessor_config.json: .*hop_samples 0"),
    ],
)
def test_unusable_files_are_checkpoint_errors(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        WhisperFeatureExtractor.from_pretrained(tmp_path)


# Features that are there already.


def examples(lengths: list[int]) -> list[dict]:
    return [
        {"input_features": np.random.default_rng(n).random((n, 80)), "labels": n} for n in lengths
    ]


@pytest.mark.parametrize("return_tensors", ["np", "pt", None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 12},
        {"padding": "max_length", "max_length": 6, "truncation": True, "pad_to_multiple_of": 4},
        {"return_attention_mask": True},
    ],
)
def test_padding_equals_transformers(options: dict, return_tensors: str | None) -> None:
    extractors = WhisperFeatureExtractor(), transformers.WhisperFeatureExtractor()
    options = {**options, "return_tensors": return_tensors}
    assert_equal(*(it.pad(examples([5, 9, 3]), **options) for it in extractors))


# With torch, and without.


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_the_gpu_route_equals_transformers_torch_route(num_mel_bins: int) -> None:
    rows = np.stack([made_sounds(16_000)["noise"], made_sounds(16_000)["hum"]])
    ours = log_mel_on_device(rows, num_mel_bins=num_mel_bins, analysis=Analysis(), device="cpu")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mel_bins)
    theirs = extractor._torch_extract_fbank_features(rows, "cpu")
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    plain = WhisperFeatureExtractor(feature_size=num_mel_bins, **SMALL)(rows, sampling_rate=16_000)
    np.testing.assert_allclose(ours, plain["input_features"], atol=FLOAT32_TOLERANCE)


def test_a_device_is_used_where_one_is_named() -> None:
    extractor = WhisperFeatureExtractor(dither=1e-3, **SMALL)
    speech = [noise(3_200), noise(4_900)]
    with torch.random.fork_rng(devices=[]):
        # torch's own "cpu:0" stands in for a GPU: it is not the plain "cpu" of the numpy route.
        batch = extractor(speech, sampling_rate=16_000, device="cpu:0", return_tensors="pt")
        ragged = extractor(speech, sampling_rate=16_000, device="cpu:0", padding=False)
    assert batch.input_features.shape == (2, 80, 100)
    assert [row.shape for row in ragged.input_features] == [(80, 20), (80, 30)]
