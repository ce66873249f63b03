"""Whisper's config.json against transformers."""

import copy
import json
import pickle
from dataclasses import fields
from typing import Any

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.config import WhisperConfig


def own_fields() -> list[str]:
    return [f.name for f in fields(WhisperConfig) if f.metadata.get("in_file", True)]


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def settings_of(config: object, name: str) -> object:
    """Return a setting in the one form that both sides' can be brought into."""
    value = plain(getattr(config, name))
    return str(value).removeprefix("torch.") if name == "dtype" else value


def test_every_key_has_the_name_and_default_of_the_reference():
    reference = transformers.WhisperConfig()
    # What is left are settings that any model of the library has.
    general = set(transformers.PreTrainedConfig().to_dict()) - set(own_fields())
    assert set(reference.to_dict()) - general - {"model_type"} == set(own_fields())
    for name in own_fields():
        assert plain(getattr(WhisperConfig(), name)) == plain(getattr(reference, name)), name


def test_a_config_of_the_reference_loads_and_comes_back(tmp_path):
    theirs = transformers.WhisperConfig(d_model=66, suppress_tokens=[1, 2], num_mel_bins=128)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = WhisperConfig.from_pretrained(tmp_path / "theirs")
    assert (ours.d_model, ours.suppress_tokens, ours.num_mel_bins) == (66, (1, 2), 128)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.WhisperConfig.from_pretrained(tmp_path / "ours")
    assert again.to_dict() == theirs.to_dict()


def test_saving_keeps_unknown_keys(tmp_path):
    content = {"model_type": "whisper", "d_model": 12, "torch_dtype": "float16", "x": {"y": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = WhisperConfig.from_pretrained(tmp_path)
    assert config.extra == {"x": {"y": [1]}}
    assert config.x == {"y": [1]}
    assert config.dtype == "float16"
    config.save_pretrained(tmp_path / "copy")
    assert WhisperConfig.from_pretrained(str(tmp_path / "copy")) == config
    content["dtype"] = content.pop("torch_dtype")
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


def test_a_setting_can_be_changed_and_is_checked_again_when_asked():
    config = WhisperConfig()
    config.dropout = 0.1
    config.validate()
    config.hidden_size = 100
    assert config.d_model == 100
    with pytest.raises(ValueError, match="6 heads do not divide it"):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 0}, "d_model is 0, expected at least 1"),
        ({"d_model": 9, "encoder_attention_heads": 3, "decoder_attention_heads": 3}, "an even num"),
        ({"decoder_attention_heads": 5}, "decoder_attention_heads: 5 heads do not divide it"),
        ({"encoder_layers": -1}, "encoder_layers is -1, expected at least 0"),
        ({"median_filter_width": 6}, "median_filter_width is 6, expected an odd number"),
        ({"mask_time_prob": 1.5}, "mask_time_prob is 1.5, expected within 0 and 1"),
        ({"dropout": -0.1}, "dropout is -0.1, expected within 0 and 1"),
        ({"encoder_layerdrop": float("nan")}, "encoder_layerdrop is nan"),
        ({"problem_type": "classify"}, "problem_type is 'classify', expected one of"),
        ({"attn_implementation": "fast"}, "attn_implementation is 'fast', expected one of"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels is 3, but id2label names 1 classes"),
    ],
)
def test_settings_no_network_can_have_are_a_value_error(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        WhisperConfig(**settings)
    if "attn_implementation" in settings:
        return
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"reading {tmp_path}/config.json: .*{message}"):
        WhisperConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_modle": 64}, "found the keyword 'd_modle', expected 'd_model'"),
        ({"encoder_layer": 1}, "expected 'encoder_layers'"),
        ({"d_model": "64"}, r"d_model is '64' \(str\), expected int"),
        ({"use_cache": 1}, "use_cache is 1"),
        ({"id2label": {"x": "y"}}, "id2label is"),
    ],
)
def test_a_misspelt_name_and_a_wrong_type_are_a_type_error(settings, message):
    with pytest.raises(TypeError, match=message):
        WhisperConfig(**settings)


def test_a_file_may_hold_a_key_that_looks_misspelt(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"encoder_layer": 1}))
    assert WhisperConfig.from_pretrained(tmp_path).extra == {"encoder_layer": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_labels": 4},
        {"id2label": {0: "no", 1: "yes", 2: "perhaps"}},
        {"id2label": {"0": "no"}, "label2id": {"no": 0}},
        {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3},
        {"output_attentions": True, "return_dict": False, "problem_type": "regression"},
    ],
)
def test_general_settings_mean_what_they_mean_in_the_reference(settings):
    ours = WhisperConfig(**settings)
    theirs = transformers.WhisperConfig(**settings)
    names = ["num_labels", "id2label", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    names += ["encoder_layers", "d_model", "output_attentions", "return_dict", "problem_type"]
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {number: label for label, number in ours.label2id.items()} == ours.id2label


def test_labels_survive_a_file_both_ways(tmp_path):
    ours = WhisperConfig(id2label={0: "no", 1: "yes", 2: "perhaps"})
    ours.save_pretrained(tmp_path)
    theirs = transformers.WhisperConfig.from_pretrained(tmp_path)
    assert theirs.id2label == ours.id2label
    assert theirs.label2id == ours.label2id
    theirs.save_pretrained(tmp_path)
    assert WhisperConfig.from_pretrained(tmp_path).id2label == ours.id2label


def test_a_key_of_no_field_can_be_set_and_is_saved(tmp_path):
    config: Any = WhisperConfig()
    config.forced_decoder_ids = None
    config.suppress_tokens = []
    config.save_pretrained(tmp_path)
    theirs = transformers.WhisperConfig.from_pretrained(tmp_path)
    assert theirs.suppress_tokens == []
    again = WhisperConfig.from_pretrained(tmp_path)
    assert (again.forced_decoder_ids, again.suppress_tokens) == (None, ())
    assert copy.deepcopy(again) == pickle.loads(pickle.dumps(again)) == again


def test_num_labels_can_be_set():
    config = WhisperConfig(id2label={0: "no", 1: "yes"})
    config.num_labels = 2
    assert config.id2label == {0: "no", 1: "yes"}
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_keywords_replace_what_the_file_says(tmp_path):
    WhisperConfig(d_model=36, dropout=0.2).save_pretrained(tmp_path)
    found = WhisperConfig.from_pretrained(tmp_path, dropout=0.3, num_hidden_layers=1)
    assert (found.d_model, found.dropout, found.encoder_layers) == (36, 0.3, 1)
    assert WhisperConfig.from_dict({"d_model": 36, "new": 1}, dropout=0.3).new == 1
    with pytest.raises(AttributeError, match="has no 'newer'"):
        _ = found.newer


def test_json_holds_what_differs_or_everything(tmp_path):
    config = WhisperConfig(d_model=36, dtype="float16", extra={"new": 1})
    differing = {"d_model": 36, "dtype": "float16", "model_type": "whisper", "new": 1}
    assert json.loads(config.to_json_string()) == differing
    assert WhisperConfig.from_dict(json.loads(config.to_json_string(use_diff=False))) == config
    config.to_json_file(tmp_path / "x.json")
    assert WhisperConfig.from_json_file(tmp_path / "x.json") == config
    config.update({"hidden_size": 48, "newer": 2})
    assert (config.d_model, config.newer, config.new) == (48, 2, 1)


def test_the_config_of_a_real_checkpoint_loads_as_in_the_reference(checkpoint):
    ours, theirs = (
        c.from_pretrained(checkpoint) for c in (WhisperConfig, transformers.WhisperConfig)
    )
    for name in own_fields():
        assert settings_of(ours, name) == settings_of(theirs, name), name


def test_older_names_of_general_settings_still_work() -> None:
    config = WhisperConfig(torch_dtype="float16", return_dict=False)
    assert config.torch_dtype == config.dtype == "float16"
    assert config.use_return_dict is False
    config.torch_dtype = "bfloat16"
    assert config.dtype == "bfloat16"
    assert "torch_dtype" not in config.to_dict()
