"""Whisper's config.json against transformers."""

import json
from dataclasses import FrozenInstanceError, fields

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.models.whisper.config import WhisperConfig


def own_fields() -> list[str]:
    return [f.name for f in fields(WhisperConfig) if f.name != "extra"]


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_every_key_has_the_name_and_default_of_the_reference():
    reference = transformers.WhisperConfig()
    # What is left are settings that any model of the library has.
    general = set(transformers.PreTrainedConfig().to_dict()) - set(own_fields())
    assert set(reference.to_dict()) - general - {"model_type"} == set(own_fields())
    for name in own_fields():
        assert plain(getattr(WhisperConfig(), name)) == plain(getattr(reference, name)), name


def test_a_config_of_the_reference_loads_and_comes_back(tmp_path):
    theirs = transformers.WhisperConfig(d_model=64, suppress_tokens=[1, 2], num_mel_bins=128)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = WhisperConfig.from_pretrained(tmp_path / "theirs")
    assert (ours.d_model, ours.suppress_tokens, ours.num_mel_bins) == (64, (1, 2), 128)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.WhisperConfig.from_pretrained(tmp_path / "ours")
    assert again.to_dict() == theirs.to_dict()


def test_saving_keeps_unknown_keys(tmp_path):
    content = {"model_type": "whisper", "d_model": 8, "torch_dtype": "float16", "x": {"y": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = WhisperConfig.from_pretrained(tmp_path)
    assert config.extra == {"torch_dtype": "float16", "x": {"y": [1]}}
    config.save_pretrained(tmp_path / "copy")
    assert WhisperConfig.from_pretrained(str(tmp_path / "copy")) == config
    assert json.loads((tmp_path / "copy/config.json").read_text()).items() >= content.items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"d_model": "384"}, r"config.json: d_model is '384' \(str\), expected int"),
        ({"suppress_tokens": [1.5]}, "suppress_tokens is .*expected a list of int or null"),
        ({"eos_token_id": [1]}, "eos_token_id is .*expected int or null"),
        ({"model_type": "bert"}, "found model_type 'bert', expected 'whisper'"),
    ],
)
def test_a_wrong_value_is_a_checkpoint_error(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        WhisperConfig.from_pretrained(tmp_path)


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        WhisperConfig().d_model = 1  # type: ignore[misc]


def test_the_config_of_a_real_checkpoint_loads_as_in_the_reference(shared_data):
    folder = shared_data / "whisper-base-lab"
    ours, theirs = (c.from_pretrained(folder) for c in (WhisperConfig, transformers.WhisperConfig))
    for name in own_fields():
        assert plain(getattr(ours, name)) == plain(getattr(theirs, name)), name
