"""Qwen3-ASR's prompts, answers and features beside transformers' processor; files it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.loading import load_slot_model
from corpus_asr.families.qwen3_asr.config import Qwen3ASRConfig
from corpus_asr.families.qwen3_asr.features import Qwen3ASRPartFeatures
from corpus_asr.families.qwen3_asr.tokenizer import Qwen3ASRPrompts
from corpus_asr.families.registry import part_features
from tests.support.qwen3_asr import qwen3_asr_pair
from tests.support.slots import needs_int8

# float16 of values of about one.
HALF = 1e-3


def sound(samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_asr_pair(tmp_path_factory.mktemp("checkpoint")).folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return transformers.AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Qwen3ASRPrompts:
    return Qwen3ASRPrompts.from_folder(folder)


@pytest.mark.parametrize("samples", [16_000, 24_321, 7_000, 200_000])
@pytest.mark.parametrize(
    ("language", "context"),
    [(None, ""), ("de", ""), ("tl", "Nordwind, 太陽\nand more"), (None, "the sun")],
)
def test_prompts_and_features_are_the_processor_s(
    folder: Path,
    processor: Any,
    prompts: Qwen3ASRPrompts,
    samples: int,
    language: str | None,
    context: str,
) -> None:
    audio = sound(samples)
    name = None if language is None else prompts.languages[language]
    found = processor.apply_transcription_request(
        audio=audio, language=name, prompt=context or None
    )
    features = Qwen3ASRPartFeatures.from_folder(folder)
    window = features.window(features(audio).values, 0, samples // 160)
    theirs = found["input_features"][0].numpy()[:, : int(found["input_features_mask"].sum())].T
    assert window.shape == theirs.shape
    # Where silence is added, the last frame of the sound reaches into it there.
    inner = slice(1, min(samples // 160, len(window)) - 2)
    np.testing.assert_allclose(window[inner], theirs[inner], atol=HALF)
    ours = prompts.prompt(prompts.positions(len(window)), language=language, context=context)
    assert list(ours) == found["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("language English<asr_text>The wind.<|im_end|>", "en"),
        ("language Filipino<asr_text> Ang hangin", "tl"),
        ("language None<asr_text>", None),
        ("language Klingon<asr_text>wo", None),
        ("Text alone", None),
        ("language German<asr_text>", "de"),
        ("language Japanese<asr_text>北風と太陽", "ja"),
        ("", None),
    ],
)
def test_answers_are_read_as_by_the_processor(
    processor: Any, prompts: Qwen3ASRPrompts, text: str, language: str | None
) -> None:
    tokens = processor.tokenizer(text)["input_ids"]
    answer = prompts.answer(tokens, language=None)
    assert answer.language == language
    found = processor.decode(tokens, return_format="parsed")
    assert prompts.decode([tokens[at] for at in answer.text]).strip() == found["transcription"]
    if language is not None:
        assert found["language"] == prompts.languages[language]


def test_every_language_of_the_processor_is_known(prompts: Qwen3ASRPrompts) -> None:
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    assert sorted(prompts.languages.values()) == sorted(LANGUAGE_CODE_TO_NAME.values())
    for code, name in prompts.languages.items():
        assert LANGUAGE_CODE_TO_NAME[{"tl": "fil"}.get(code, code)] == name


def test_quiet_windows_keep_their_range_and_short_ones_are_padded(folder: Path) -> None:
    features = part_features(folder)
    samples = np.concatenate([sound(16_000), sound(16_000) * np.float32(1e-4)])
    values = features(samples).values
    assert np.ptp(features.window(values, 100, 200)) <= 2.0
    # A loud second elsewhere in the part does not take what is quiet.
    assert len(np.unique(features.window(values, 102, 198))) > 100
    assert len(features.window(values, 0, 10)) == 50
    assert len(features.window(values, 5, 5)) == 0
    assert features(np.zeros(100, np.float32)).values.shape == (0, 128)


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(folder, target)
    path = target / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return target


def test_a_config_is_written_as_read(folder: Path, tmp_path: Path) -> None:
    config = Qwen3ASRConfig.from_json_file(folder / "config.json")
    assert config.text_config.rope_theta == 1e6
    config.save_pretrained(tmp_path)
    assert Qwen3ASRConfig.from_json_file(tmp_path / "config.json") == config
    assert Qwen3ASRConfig().audio_config.positions(3000) == 390


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        lambda c: c["audio_config"].update(model_type="whisper"),
        "audio_config has the model_type 'whisper', expected 'qwen3_asr_encoder'",
    ),
    (lambda c: c["text_config"].update(model_type="qwen3_moe"), "expected 'qwen3'"),
    (lambda c: c["audio_config"].update(output_dim=48), "output_dim 48, expected 40"),
    (lambda c: c["audio_config"].update(n_window_infer=250), "n_window_infer is 250, expected a m"),
    (lambda c: c["text_config"].update(num_key_value_heads=3), "multiple of 3 num_key_value"),
    (
        lambda c: c["text_config"].update(rope_parameters={"rope_type": "yarn"}),
        "rope_type is 'yarn', expected 'default'",
    ),
    (lambda c: c["text_config"].update(use_sliding_window=True), "use_sliding_window is True"),
    (lambda c: c.update(audio_token_id=9999), "audio_token_id is 9999"),
    (
        lambda c: (c.update(thinker_config=c.pop("audio_config")), c.pop("text_config")),
        "found thinker_config, .* choose the checkpoint of the same name that ends in -hf",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_other_networks_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    other = changed(folder, tmp_path / "other", change)
    for read in (part_features, Qwen3ASRPrompts.from_folder):
        with pytest.raises(CheckpointError, match=message):
            read(other)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other", lambda c: None)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<asr_text>", "<text>"))
    with pytest.raises(CheckpointError, match=r"found no <asr_text>, expected the control tokens"):
        Qwen3ASRPrompts.from_folder(other)
    small = changed(folder, tmp_path / "small", lambda c: c["text_config"].update(vocab_size=363))
    with pytest.raises(CheckpointError, match=r"found 364 tokens, expected .* at most 363"):
        Qwen3ASRPrompts.from_folder(small)
    settings = other / "processor_config.json"
    settings.write_text(settings.read_text().replace('"hop_length": 160', '"hop_length": 320'))
    with pytest.raises(CheckpointError, match="found hop_length 320"):
        part_features(other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)])
def test_a_folder_is_loaded_in_every_type_of_a_cpu(folder: Path, dtype: str) -> None:
    model: Any = load_slot_model(folder, device="cpu", dtype=dtype)
    assert model.window_shape == (390, 40)
    assert model.max_target_positions == 390 + 512 + 32 + 2 * 390
    exact: Any = load_slot_model(folder, device="cpu", dtype="float32")
    features = torch.randn(1, 128, 3000, generator=torch.Generator().manual_seed(0))
    found, expected = (
        one.encode(features.to(one.dtype), num_frames=[300])[0, :39].float()
        for one in (model, exact)
    )
    error = float((found - expected).norm() / expected.norm())
    assert error < {"float32": 1e-6, "bfloat16": 0.05, "int8": 0.1}[dtype]
