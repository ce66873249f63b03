"""Speech2Text's config.json against transformers; what all configs share is Whisper's test."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.speech2text.config import Speech2TextConfig


def own_fields() -> list[str]:
    return [f.name for f in fields(Speech2TextConfig) if f.metadata.get("in_file", True)]


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_every_key_has_the_name_and_default_of_the_reference() -> None:
    reference = transformers.Speech2TextConfig()
    # What is left are settings that any model of the library has.
    general = set(transformers.PreTrainedConfig().to_dict()) - set(own_fields())
    assert set(reference.to_dict()) - general - {"model_type"} == set(own_fields())
    for name in own_fields():
        assert plain(getattr(Speech2TextConfig(), name)) == plain(getattr(reference, name)), name


def test_a_config_of_the_reference_loads_and_comes_back(tmp_path: Path) -> None:
    theirs = transformers.Speech2TextConfig(d_model=66, num_attention_heads=2, conv_channels=12)
    theirs.decoder_attention_heads = 3
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Speech2TextConfig.from_pretrained(tmp_path / "theirs", dropout=0.5)
    assert (ours.d_model, ours.encoder_attention_heads, ours.conv_channels) == (66, 2, 12)
    assert (ours.hidden_size, ours.conv_kernel_sizes, ours.dropout) == (66, (5, 5), 0.5)
    ours.dropout = theirs.dropout
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.Speech2TextConfig.from_pretrained(tmp_path / "ours")
    assert again.to_dict() == theirs.to_dict()


def test_keys_of_older_files_are_kept(tmp_path: Path) -> None:
    # As in the published checkpoints: decoding's settings beside the network's.
    content = {"model_type": "speech_to_text", "num_beams": 5, "max_length": 200, "d_model": 8}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = Speech2TextConfig.from_pretrained(tmp_path)
    assert config.extra == {"num_beams": 5, "max_length": 200}
    assert config.num_beams == 5
    assert config.to_diff_dict() == content


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_kernel_sizes": [5]}, "conv_kernel_sizes is .5,., expected as many sizes as num_c"),
        ({"num_conv_layers": 3}, "expected as many sizes as num_conv_layers says: 3"),
        ({"conv_kernel_sizes": [5, 4]}, "expected odd numbers"),
        ({"conv_channels": 9}, "conv_channels is 9, expected an even number"),
        ({"d_model": 3, "encoder_attention_heads": 1, "decoder_attention_heads": 1}, "at least 4"),
        ({"input_feat_per_channel": 0}, "input_feat_per_channel is 0, expected at least 1"),
    ],
)
def test_settings_no_network_can_have_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Speech2TextConfig(**settings)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"reading {tmp_path}/config.json: .*{message}"):
        Speech2TextConfig.from_pretrained(tmp_path)


def test_misspelt_names_wrong_types_and_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="found the keyword 'conv_chanels', expected 'conv_ch"):
        Speech2TextConfig(conv_chanels=8)
    with pytest.raises(TypeError, match=r"making Speech2TextConfig.*vocab_size is 'many'"):
        Speech2TextConfig(vocab_size="many")
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="found model_type 'whisper', expected 'speech_to_te"):
        Speech2TextConfig.from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="a Speech2TextConfig has no 'num_mel_bins'"):
        _ = Speech2TextConfig().num_mel_bins
