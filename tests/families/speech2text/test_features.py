"""A part's filter bank in float16, and the windows cut from it, beside transformers' extractor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.speech2text.features import Speech2TextPartFeatures
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ
from tests.support.audio import noise

# In standard deviations of a mel bin: float16 rounds logarithms to 1/256 at worst.
TOLERANCE = 5e-3


def theirs(samples: np.ndarray, **settings: Any) -> np.ndarray:
    extractor = transformers.Speech2TextFeatureExtractor(**settings)
    found: np.ndarray = extractor(samples, sampling_rate=SAMPLE_RATE_HZ).input_features[0]
    return found


def swelling(seconds: float, *, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, so that bins vary as those of speech do."""
    samples = noise(seconds, seed=seed)[0]
    loudness = np.exp(3 * np.sin(np.arange(samples.size) / 2000.0)) / 25
    return (samples * loudness).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [{}, {"normalize_vars": False}, {"normalize_means": False}, {"do_ceptral_normalize": False}],
    ids=lambda settings: next(iter(settings), "usual"),
)
def test_a_window_is_what_the_extractor_gives_for_the_same_samples(
    settings: dict[str, bool],
) -> None:
    samples = swelling(3.0)
    normalized = settings.get("do_ceptral_normalize", True)
    own = Speech2TextPartFeatures(
        means=normalized and settings.get("normalize_means", True),
        variances=normalized and settings.get("normalize_vars", True),
    )
    for start, end in ((0, 100), (37, 250), (120, 140), (199, 300)):
        window = own.window(own(samples).values, start, end)
        wanted = theirs(samples[start * HOP_SAMPLES : end * HOP_SAMPLES], **settings)
        assert window.shape == wanted.shape
        scale = 1.0 if settings.get("normalize_vars", normalized) else float(wanted.std() + 1)
        np.testing.assert_allclose(window, wanted, atol=TOLERANCE * scale)


def test_the_last_window_hears_the_part_to_its_last_whole_hop() -> None:
    own, whole = Speech2TextPartFeatures(), swelling(2.0)
    wanted = theirs(whole[40 * HOP_SAMPLES : 100 * HOP_SAMPLES])
    for extra in (0, 79, 80, 159):
        window = own.window(own(whole[: 100 * HOP_SAMPLES + extra]).values, 40, 100)
        np.testing.assert_allclose(window, wanted, atol=TOLERANCE)


def test_windows_of_silence_or_of_less_than_a_frame_are_no_trouble() -> None:
    own = Speech2TextPartFeatures()
    silent = own(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32))
    assert (silent.values == np.float16(silent.pad_value)).all()
    assert (own.window(silent.values, 0, 100) == 0).all()
    assert (own.window(silent.values, 10, 13) == np.zeros((1, 80))).all()
    assert own.window(silent.values, 10, 12).shape == (0, 80)
    assert own.window(silent.values, 99, 100).shape == (0, 80)
    assert own(np.zeros(399, dtype=np.float32)).values.shape == (0, 80)
    assert own.window(np.empty((0, 80), np.float16), 0, 2).shape == (0, 80)


def folder_with(path: Path, *, config: dict[str, Any] | None = None, **settings: Any) -> Path:
    given = {"model_type": "speech_to_text"} | (config or {})
    (path / "config.json").write_text(json.dumps(given))
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def test_what_the_checkpoint_says_is_done_in_either_file(tmp_path: Path) -> None:
    sizes = {"num_mel_bins": 40, "normalize_vars": False}
    folder = folder_with(tmp_path, config={"input_feat_per_channel": 40}, **sizes)
    own, samples = Speech2TextPartFeatures.from_folder(folder), swelling(1.0)
    found = own(samples)
    assert found.values.shape == (98, 40)
    wanted = theirs(samples, feature_size=40, **sizes)
    np.testing.assert_allclose(own.window(found.values, 0, 100), wanted, atol=0.01)
    (folder_with(tmp_path) / "preprocessor_config.json").unlink()
    message = r"expected preprocessor_config\.json or processor_config"
    with pytest.raises(CheckpointError, match=message):
        Speech2TextPartFeatures.from_folder(tmp_path)
    content = {"feature_extractor": {"normalize_means": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    own = Speech2TextPartFeatures.from_folder(tmp_path)
    wanted = theirs(samples, normalize_means=False)
    np.testing.assert_allclose(own.window(own(samples).values, 0, 100), wanted, atol=0.02)


def test_what_is_not_computed_here_is_refused(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sampling_rate": 8000}, "sampling_rate 8000 .expected 16000"),
        ({"num_mel_bins": 40}, "num_mel_bins 40 .expected 80"),
        ({"dither": 1.0}, "dither 1.0"),
        ({"normalize_means": "yes"}, "normalize_means 'yes' .expected true or false"),
    ]
    for settings, words in wrong:
        with pytest.raises(CheckpointError, match=words):
            Speech2TextPartFeatures.from_folder(folder_with(tmp_path, **settings))
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        Speech2TextPartFeatures.from_folder(tmp_path)
