"""Speech2Text's networks and features by themselves: files, rows, positions, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.speech2text.encoder import shorter
from corpus_asr.families.speech2text.features import Speech2TextPartFeatures
from corpus_asr.models.auto import AutoModelForSpeechSeq2Seq
from corpus_asr.models.speech2text import (
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
)
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ
from tests.support.audio import noise
from tests.support.checkpoints import tiny_network

Ours = Speech2TextForConditionalGeneration
BOTH = (Speech2TextModel, Speech2TextForConditionalGeneration)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose projection is tied to the tokens' table, and not."""
    return {
        name: tiny_network(tmp_path_factory.mktemp(name), tie_word_embeddings=name == "tied")
        for name in ("tied", "untied")
    }


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def tied(folders: dict[str, Path]) -> Path:
    return folders["tied"]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_what_is_saved_loads_in_transformers_and_here(folder: Path, tmp_path: Path) -> None:
    Theirs = transformers.Speech2TextForConditionalGeneration  # noqa: N806
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    assert isinstance(model, Ours)
    same(model.state_dict(), dict(Theirs.from_pretrained(folder).state_dict()))
    shared = model.lm_head.weight is model.get_input_embeddings().weight
    assert shared == model.config.tie_word_embeddings
    for safe, saved in ((True, tmp_path / "safe"), (False, tmp_path / "pickled")):
        model.save_pretrained(saved, safe_serialization=safe, max_shard_size="60KB")
        assert len([p for p in saved.iterdir() if p.suffix in (".safetensors", ".bin")]) > 1
        same(Ours.from_pretrained(saved).state_dict(), model.state_dict())
        theirs = Theirs.from_pretrained(saved, use_safetensors=safe)
        same(dict(theirs.state_dict()), model.state_dict())


def test_the_base_model_and_the_whole_one_load_each_others_files(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = Speech2TextModel.from_pretrained(folders["untied"])
    base.save_pretrained(tmp_path)
    assert all(not name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    same(Speech2TextModel.from_pretrained(tmp_path).state_dict(), base.state_dict())
    Speech2TextModel.from_pretrained(folders["tied"]).save_pretrained(tmp_path / "tied")
    whole = Ours.from_pretrained(tmp_path / "tied")
    same(whole.state_dict(), Ours.from_pretrained(folders["tied"]).state_dict())


def test_what_old_files_store_of_positions_is_passed_over(tied: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tied, tmp_path / "old")
    state = Ours.from_pretrained(tied).state_dict()
    (folder / "model.safetensors").unlink()
    for tower in ("encoder", "decoder"):
        state[f"model.{tower}.embed_positions.weights"] = torch.zeros(9, 24)
        state[f"model.{tower}.version"] = torch.zeros(1)
    torch.save(state, folder / "pytorch_model.bin")
    for cls in BOTH:
        found = cls.from_pretrained(folder).state_dict()
        same(found, cls.from_pretrained(tied).state_dict())


def test_a_configuration_of_another_model_is_named(tied: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"conv_kernel_sizes": (3, 5)}, r"conv_layers.0.weight is .* not \(20, 80, 3\)"),
        ({"num_mel_bins": 40}, "unknown keyword num_mel_bins"),
        ({"pad_token_id": 500}, "pad_token_id is 500, but vocab_size is 120"),
    ]
    for changed, message in changes:
        with pytest.raises((CheckpointError, TypeError), match=message):
            Ours.from_pretrained(tied, **changed)


# Products of float32 in another order.
TOLERANCE = 1e-5
FEATURES = torch.randn(2, 21, 80, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[2, 5, 6], [2, 7, 8]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Speech2TextForConditionalGeneration:
    folder = tiny_network(tmp_path_factory.mktemp("checkpoint"))
    return Speech2TextForConditionalGeneration.from_pretrained(folder)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_row_gives_what_it_gives_alone(model: Speech2TextForConditionalGeneration) -> None:
    encoder = model.get_encoder()
    lengths = [1, 2, 3, 4, 5, 17, 30, 31]
    rows = torch.randn(len(lengths), 31, 80)  # what comes after a row's frames is not heard
    with torch.no_grad():
        found = encoder.encode(rows, num_frames=lengths)
        for row, length, states in zip(rows, lengths, found, strict=True):
            alone = encoder.encode(row[None, :length])[0]
            assert len(alone) == shorter(length, 2) == shorter(torch.tensor([length]), 2)[0]
            close(states[: len(alone)], alone)
            assert not states[len(alone) :].any()
        close(encoder.encode(rows), encoder(rows).last_hidden_state)


def test_a_mask_of_an_encoding_is_one_of_its_frames(
    model: Speech2TextForConditionalGeneration,
) -> None:
    encoded = model.get_encoder()(FEATURES)
    given: dict[str, Any] = {"encoder_outputs": encoded, "decoder_input_ids": TOKENS}
    assert model(**given, attention_mask=torch.ones(2, 21)).logits.isfinite().all()
    with pytest.raises(ValueError, match="for 6 positions: one value per frame"):
        model(**given, attention_mask=torch.ones(2, 30))
    with pytest.raises(ValueError, match=r"encoder_attention_mask of shape \(2, 5\)"):
        model.get_decoder()(
            TOKENS,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=torch.ones(2, 5),
        )


# In standard deviations of a mel bin: float16 rounds logarithms to 1/256 at worst.
WINDOW_TOLERANCE = 5e-3


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
        np.testing.assert_allclose(window, wanted, atol=WINDOW_TOLERANCE * scale)


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
        ({"normalize_means": "yes"}, "normalize_means is 'yes'"),
    ]
    for settings, words in wrong:
        with pytest.raises(CheckpointError, match=words):
            Speech2TextPartFeatures.from_folder(folder_with(tmp_path, **settings))
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        Speech2TextPartFeatures.from_folder(tmp_path)
