"""Names and defaults of the reference's classes, held against the installed transformers.

As for Whisper: every class, method and parameter that the reference's document names is listed
here; what differs is listed with its reason, and the list is held to be no longer than needed.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import transformers

import corpus_asr.models.speech2text as package
from tests.support.checkpoints import tiny_speech2text
from tests.support.references import absent, by_position, parameters
from tests.support.tokenizers import tiny_speech2text_tokenizer

NETWORK = (
    "__init__",
    "forward",
    "from_pretrained",
    "save_pretrained",
    "get_encoder",
    "get_decoder",
    "get_input_embeddings",
    "set_input_embeddings",
    "resize_token_embeddings",
    "num_parameters",
)
NAMED: dict[str, tuple[str, ...]] = {
    "Speech2TextConfig": (
        "from_pretrained",
        "from_dict",
        "from_json_file",
        "save_pretrained",
        "to_dict",
        "to_diff_dict",
        "to_json_string",
        "to_json_file",
        "update",
    ),
    "Speech2TextTokenizer": (
        "__init__",
        "__call__",
        "build_inputs_with_special_tokens",
        "get_special_tokens_mask",
        "create_token_type_ids_from_sequences",
        "save_vocabulary",
        "save_pretrained",
        "from_pretrained",
        "set_tgt_lang_special_tokens",
        "batch_decode",
        "decode",
        "encode",
        "pad",
        "tokenize",
        "convert_tokens_to_ids",
        "convert_ids_to_tokens",
        "convert_tokens_to_string",
        "num_special_tokens_to_add",
        "truncate_sequences",
        "add_tokens",
        "add_special_tokens",
        "get_vocab",
        "get_added_vocab",
    ),
    "Speech2TextFeatureExtractor": (
        "__init__",
        "__call__",
        "pad",
        "normalize",
        "utterance_cmvn",
        "from_pretrained",
        "from_dict",
        "save_pretrained",
        "to_dict",
        "to_json_string",
        "to_json_file",
    ),
    "Speech2TextProcessor": (
        "__init__",
        "__call__",
        "from_pretrained",
        "save_pretrained",
        "batch_decode",
        "decode",
        "to_dict",
    ),
    "Speech2TextModel": NETWORK,
    "Speech2TextForConditionalGeneration": (*NETWORK, "get_output_embeddings", "generate"),
}

STRICT = "an unknown option is an error here instead of being ignored"
BY_KEYWORD = "taken by keyword: see test_every_loader_takes_where_to_look"
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_LOADING = ("*model_args", *_WHERE, "weights_only", "fusion_config", "disable_mmap")
_STORES = ("variant", "token", "save_peft_format", "save_original_format", "distributed_checkpoint")

# By class and method, or by method for all classes: what theirs has and ours has not, and why.
MISSING: dict[str, tuple[tuple[str, ...], str]] = {
    ".forward": (("**kwargs",), STRICT),
    ".get_encoder": (("modality",), "there is one encoder"),
    ".decode": (("**kwargs",), STRICT),
    ".tokenize": (("**kwargs",), STRICT),
    ".encode": (
        ("padding", "truncation", "max_length", "stride", "padding_side", "return_tensors"),
        "taken by keyword and handed on to a call",
    ),
    ".add_special_tokens": (("replace_extra_special_tokens",), "tokens are never taken away"),
    "Speech2TextTokenizer.__call__": (("tokenizer_kwargs", "**kwargs"), STRICT),
    "Speech2TextTokenizer.__init__": (("**kwargs",), STRICT),
    "Speech2TextTokenizer.save_pretrained": (
        ("legacy_format",),
        "one layout is written, that of today",
    ),
    "Speech2TextForConditionalGeneration.generate": (
        ("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"),
        "of text models, and code of others",
    ),
    "Speech2TextTokenizer.from_pretrained": (
        ("*init_inputs", "trust_remote_code"),
        "no code of a checkpoint is ever run",
    ),
    "Speech2TextConfig.from_pretrained": (_WHERE, BY_KEYWORD),
    **{
        f"{name}.{method}": (expected, reason)
        for name in ("Speech2TextModel", "Speech2TextForConditionalGeneration")
        for method, expected, reason in (
            ("from_pretrained", _LOADING, f"{BY_KEYWORD}; else how its loader works inside"),
            ("save_pretrained", _STORES, "stores that are not supported"),
        )
    },
}

_INPUTS = (
    "input_features",
    "attention_mask",
    "decoder_input_ids",
    "decoder_attention_mask",
    "head_mask",
    "decoder_head_mask",
    "cross_attn_head_mask",
    "encoder_outputs",
    "past_key_values",
    "decoder_inputs_embeds",
)
_OUTPUTS = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")
# In the document's order, with defaults of None; version 5 moved some to its **kwargs.
FORWARD: dict[str, tuple[str, ...]] = {
    "Speech2TextModel": (*_INPUTS, *_OUTPUTS),
    "Speech2TextForConditionalGeneration": (*_INPUTS, "labels", *_OUTPUTS),
}

NEEDED = inspect.Parameter.empty
_PAIR = {"token_ids_0": NEEDED, "token_ids_1": None}
# What the document of version 4.34 names.
OLDER: dict[str, dict[str, Any]] = {
    "Speech2TextTokenizer.build_inputs_with_special_tokens": _PAIR,
    "Speech2TextTokenizer.create_token_type_ids_from_sequences": _PAIR,
    "Speech2TextTokenizer.get_special_tokens_mask": {**_PAIR, "already_has_special_tokens": False},
    "Speech2TextTokenizer.save_vocabulary": {"save_directory": NEEDED, "filename_prefix": None},
    "Speech2TextTokenizer.__init__": {
        "vocab_file": NEEDED,
        "spm_file": NEEDED,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "do_upper_case": False,
        "do_lower_case": False,
        "tgt_lang": None,
        "lang_codes": None,
        "additional_special_tokens": None,
        "sp_model_kwargs": None,
    },
    "Speech2TextFeatureExtractor.__init__": {
        "feature_size": 80,
        "sampling_rate": 16000,
        "num_mel_bins": 80,
        "padding_value": 0.0,
        "do_ceptral_normalize": True,
        "normalize_means": True,
        "normalize_vars": True,
    },
    "Speech2TextFeatureExtractor.__call__": {
        "raw_speech": NEEDED,
        "padding": False,
        "max_length": None,
        "truncation": False,
        "pad_to_multiple_of": None,
        "return_tensors": None,
        "sampling_rate": None,
        "return_attention_mask": None,
    },
    "Speech2TextProcessor.__init__": {"feature_extractor": NEEDED, "tokenizer": NEEDED},
    "Speech2TextProcessor.as_target_processor": {},
}

CASES = [(owner, method) for owner, methods in NAMED.items() for method in methods]


@pytest.mark.parametrize(("owner", "method"), CASES)
def test_parameters_have_their_names_order_and_defaults(owner: str, method: str) -> None:
    ours = parameters(getattr(package, owner), method)
    theirs = parameters(getattr(transformers, owner), method)
    expected, _ = MISSING.get(f"{owner}.{method}") or MISSING.get(f".{method}") or ((), "")
    if owner == "Speech2TextProcessor":
        expected = ()  # hands everything on
    assert set(absent(ours, theirs)) == set(expected)
    taken = [one for one in by_position(ours, theirs) if theirs[one].kind == ours[one].kind]
    assert taken == [one for one in by_position(theirs, ours) if one in taken]


def test_every_exception_is_needed() -> None:
    names = {f"{owner}.{method}" for owner, method in CASES}
    assert MISSING.keys() <= names | {f".{method}" for _, method in CASES}
    assert all(reason for _, reason in MISSING.values())


@pytest.mark.parametrize("owner", FORWARD)
def test_networks_take_what_the_document_names(owner: str) -> None:
    found = parameters(getattr(package, owner), "forward")
    positional = [
        name for name, one in found.items() if one.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["self", *FORWARD[owner]]
    assert {found[name].default for name in FORWARD[owner]} == {None}


@pytest.mark.parametrize("name", OLDER)
def test_classes_take_what_the_older_document_names(name: str) -> None:
    owner, method = name.split(".")
    found = parameters(getattr(package, owner), method)
    for parameter, default in OLDER[name].items():
        assert found[parameter].default == default, parameter


def test_the_configuration_has_every_setting_with_its_default() -> None:
    theirs = parameters(transformers.Speech2TextConfig)
    inside = {"transformers_version", "chunk_size_feed_forward", "id2label", "label2id"}
    ours = package.Speech2TextConfig()
    for name in theirs.keys() - inside:
        assert getattr(ours, name) == theirs[name].default, name


def test_every_loader_takes_where_to_look(tmp_path: Path) -> None:
    tokens = tiny_speech2text_tokenizer(tmp_path / "tokens")
    folder = tiny_speech2text(tmp_path / "model", tokenizer=tokens, layers=1)
    package.Speech2TextFeatureExtractor().save_pretrained(folder)
    where: dict[str, Any] = {"cache_dir": tmp_path, "force_download": False, "token": None}
    where |= {"local_files_only": True, "revision": "main", "subfolder": ""}
    for owner in NAMED:
        loaded = getattr(package, owner).from_pretrained(folder, **where)
        settings = loaded.to_dict() if hasattr(loaded, "to_dict") else {}
        assert not set(where) & set(settings), owner
