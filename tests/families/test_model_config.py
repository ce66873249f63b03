"""config.json of both families against transformers, and typed values out of JSON files."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet.config import ParakeetCTCConfig
from corpus_asr.families.qwen3_asr.config import Qwen3ASRConfig
from corpus_asr.families.saved_files import read_json_object, typed_values
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.whisper.config import WhisperConfig

CLASSES: dict[Any, Any] = {
    WhisperConfig: transformers.WhisperConfig,
    Speech2TextConfig: transformers.Speech2TextConfig,
}


def own_fields(cls: Any) -> list[str]:
    return [f.name for f in fields(cls) if f.metadata.get("in_file", True)]


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("cls", CLASSES)
def test_every_key_has_the_name_and_default_of_the_reference(cls):
    reference, own = CLASSES[cls](), own_fields(cls)
    # What is left are settings that any model of the library has.
    general = set(transformers.PreTrainedConfig().to_dict()) - set(own)
    assert set(reference.to_dict()) - general - {"model_type"} == set(own)
    for name in own:
        assert plain(getattr(cls(), name)) == plain(getattr(reference, name)), name


def test_a_config_of_the_reference_loads_and_comes_back(tmp_path):
    whisper = transformers.WhisperConfig(d_model=66, suppress_tokens=[1, 2], num_mel_bins=128)
    speech2text = transformers.Speech2TextConfig(
        d_model=66, num_attention_heads=2, conv_channels=12
    )
    speech2text.decoder_attention_heads = 3
    for (cls, reference), theirs in zip(CLASSES.items(), (whisper, speech2text), strict=True):
        theirs.save_pretrained(tmp_path / "theirs")
        ours = cls.from_pretrained(tmp_path / "theirs")
        for name in own_fields(cls):
            same = plain(getattr(ours, name)) == plain(getattr(theirs, name))
            assert same or name == "dtype", name
        assert ours.hidden_size == 66
        ours.save_pretrained(tmp_path / "ours")
        assert reference.from_pretrained(tmp_path / "ours").to_dict() == theirs.to_dict()


@pytest.mark.parametrize(
    ("cls", "key"), [(ParakeetCTCConfig, "encoder_config"), (Qwen3ASRConfig, "audio_config")]
)
def test_configs_inside_are_read_alike_in_all_families(cls, key):
    assert getattr(cls(**{key: None}), key) == getattr(cls(), key)
    assert cls().to_diff_dict() == {"model_type": cls.model_type}
    with pytest.raises(ValueError, match=f"{key} has the model_type 'other', expected "):
        cls(**{key: {"model_type": "other"}})
    with pytest.raises(TypeError, match=f"{key} is 5 .int., expected an object"):
        cls(**{key: 5})


def test_saving_keeps_unknown_keys(tmp_path):
    content = {"model_type": "whisper", "d_model": 12, "torch_dtype": "float16", "x": {"y": [1]}}
    content["encoder_layer"] = 1  # looks misspelt
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = WhisperConfig.from_pretrained(tmp_path)
    assert config.extra == {"x": {"y": [1]}, "encoder_layer": 1}
    assert config.x == {"y": [1]}
    assert config.dtype == "float16"
    config.save_pretrained(tmp_path / "copy")
    assert WhisperConfig.from_pretrained(str(tmp_path / "copy")) == config
    content["dtype"] = content.pop("torch_dtype")
    assert json.loads((tmp_path / "copy/config.json").read_text()).items() >= content.items()
    # As in published checkpoints of Speech2Text: decoding's settings beside the network's.
    older = {"model_type": "speech_to_text", "num_beams": 5, "max_length": 200, "d_model": 8}
    (tmp_path / "config.json").write_text(json.dumps(older))
    ours = Speech2TextConfig.from_pretrained(tmp_path)
    assert ours.extra == {"num_beams": 5, "max_length": 200}
    assert ours.to_diff_dict() == older
    with pytest.raises(AttributeError, match="a Speech2TextConfig has no 'num_mel_bins'"):
        _ = ours.num_mel_bins


def test_a_wrong_value_is_a_checkpoint_error(tmp_path):
    for content, message in (
        ({"d_model": "384"}, r"config.json: .*d_model is '384' \(str\), expected int"),
        ({"suppress_tokens": [1.5]}, r"suppress_tokens\[0\] is 1.5"),
        ({"eos_token_id": [1]}, "eos_token_id is .*expected int"),
        ({"model_type": "bert"}, "found model_type 'bert', expected 'whisper'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            WhisperConfig.from_pretrained(tmp_path)


HEADS = ("encoder_attention_heads", "decoder_attention_heads")
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (WhisperConfig, {"d_model": 0}, "d_model is 0, expected within 1 and 1,000,000"),
    (WhisperConfig, {"d_model": 9} | dict.fromkeys(HEADS, 3), "an even num"),
    (WhisperConfig, {"decoder_attention_heads": 5}, "decoder_attention_heads"),
    (WhisperConfig, {"median_filter_width": 6}, "median_filter_width"),
    (WhisperConfig, {"dropout": -0.1}, "dropout"),
    (WhisperConfig, {"encoder_layerdrop": float("nan")}, "encoder_layerdrop"),
    (WhisperConfig, {"problem_type": "classify"}, "problem_type"),
    (WhisperConfig, {"num_labels": 3, "id2label": {0: "a"}}, "id2label"),
    (Speech2TextConfig, {"conv_kernel_sizes": [5]}, "num_conv_"),
    (Speech2TextConfig, {"conv_kernel_sizes": [5, 4]}, "odd numbers"),
    (Speech2TextConfig, {"conv_channels": 9}, "conv_channels"),
    (Speech2TextConfig, {"d_model": 3} | dict.fromkeys(HEADS, 1), "at least 4"),
]


def test_settings_no_network_can_have_are_refused(tmp_path):
    for cls, settings, message in WRONG:
        with pytest.raises(ValueError, match=message):
            cls(**settings)
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError, match=f"reading {tmp_path}/config.json: .*{message}"):
            cls.from_pretrained(tmp_path)


def test_a_misspelt_name_and_a_wrong_type_are_a_type_error():
    for settings, message in (
        ({"d_modle": 64}, "found the keyword 'd_modle', expected 'd_model'"),
        ({"encoder_layer": 1}, "expected 'encoder_layers'"),
        ({"d_model": "64"}, r"making WhisperConfig.*d_model is '64' \(str\), expected"),
        ({"use_cache": 1}, "use_cache is 1"),
        ({"id2label": {"x": "y"}}, "id2label"),
    ):
        with pytest.raises(TypeError, match=message):
            WhisperConfig(**settings)
    with pytest.raises(ValueError, match="attn_implementation is 'fast', expected one of"):
        WhisperConfig(attn_implementation="fast")


PATH = Path("folder/config.json")


@dataclass(frozen=True)
class Sample:
    count: int = 0
    share: float = 0.0
    switch: bool = False
    name: str | None = None
    ids: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int | None], ...] = ()
    by_name: dict[str, int] | None = None
    aside: dict[str, Any] = field(default_factory=dict, metadata={"in_file": False})


def values(**content: object) -> dict[str, Any]:
    known, unknown = typed_values(Sample, {**content, "other": [1], "aside": 2}, path=PATH)
    assert unknown == {"other": [1], "aside": 2}
    return known


def test_values_of_the_right_types_are_taken_and_lists_become_tuples():
    content = {"count": 3, "share": 1, "switch": True, "name": None, "ids": [1, 2]}
    known = values(**content, pairs=[[1, None], [2, 3]], by_name={"a": 1})
    tuples = {"ids": (1, 2), "pairs": ((1, None), (2, 3))}
    assert known == content | tuples | {"share": 1.0, "by_name": {"a": 1}}
    assert type(known["share"]) is float


WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "count": ("80", 80.0, True, None, [*range(1000)]),
    "share": ("0.1", False, 10**400),
    "switch": (1,),
    "name": (1,),
    "ids": (1, [1, "2"]),
    "pairs": ([[1]], [[1, 2, 3]]),
    "by_name": ({"a": "1"}, {"a" * 500: 1.5}, [1]),
}


@pytest.mark.parametrize("key", WRONG_TYPES)
def test_another_type_is_a_checkpoint_error_with_file_and_key(key):
    for value in WRONG_TYPES[key]:
        with pytest.raises(
            CheckpointError, match=rf"reading {PATH}: {key}\S* is .*expected"
        ) as caught:
            values(**{key: value})
        assert len(str(caught.value)) < 250, value  # shown in part


def test_a_file_that_is_no_object_is_a_checkpoint_error(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="found no such file"):
        read_json_object(path)
    with pytest.raises(CheckpointError, match="no readable JSON"):
        read_json_object(tmp_path)
    for content, message in ((b"[1]", "expected an object"), (b"\xff", "no readable JSON")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_json_object(path)
