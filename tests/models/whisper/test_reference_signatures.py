"""Names and defaults of the reference's classes, held against the installed transformers.

Every class, method and parameter that the reference's documents name is listed here; for each,
`inspect.signature` of ours is compared with theirs. What differs is listed with its reason, and
the list is held to be no longer than needed.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import transformers

import corpus_asr.models.whisper as package
from tests.support.checkpoints import tiny_whisper
from tests.support.references import absent, by_position, parameters
from tests.support.tokenizers import tiny_tokenizer

TOKENIZER = (
    "set_prefix_tokens",
    "get_special_tokens_mask",
    "save_vocabulary",
    "save_pretrained",
    "from_pretrained",
    "batch_decode",
    "decode",
    "encode",
    "normalize",
    "basic_normalize",
    "get_decoder_prompt_ids",
    "get_prompt_ids",
    "pad",
    "tokenize",
    "convert_tokens_to_ids",
    "convert_ids_to_tokens",
    "convert_tokens_to_string",
    "num_special_tokens_to_add",
    "add_tokens",
    "add_special_tokens",
    "get_vocab",
    "get_added_vocab",
    "_decode_asr",
    "__call__",
    "__init__",
)
NETWORK = (
    "__init__",
    "forward",
    "from_pretrained",
    "save_pretrained",
    "get_input_embeddings",
    "set_input_embeddings",
    "num_parameters",
    "gradient_checkpointing_enable",
    "gradient_checkpointing_disable",
    "set_attn_implementation",
    "tie_weights",
)
WITH_TOKENS = ("get_decoder", "get_output_embeddings", "resize_token_embeddings")
NAMED: dict[str, tuple[str, ...]] = {
    "WhisperTokenizer": TOKENIZER,
    "WhisperTokenizerFast": TOKENIZER,
    "WhisperFeatureExtractor": (
        "__init__",
        "__call__",
        "pad",
        "zero_mean_unit_var_norm",
        "from_pretrained",
        "from_dict",
        "save_pretrained",
        "to_dict",
        "to_json_string",
        "to_json_file",
    ),
    "WhisperProcessor": (
        "__init__",
        "__call__",
        "from_pretrained",
        "save_pretrained",
        "batch_decode",
        "decode",
        "get_decoder_prompt_ids",
        "get_prompt_ids",
        "to_dict",
    ),
    "WhisperModel": (
        *NETWORK,
        *WITH_TOKENS,
        "get_encoder",
        "freeze_encoder",
        "_mask_input_features",
    ),
    "WhisperForConditionalGeneration": (
        *NETWORK,
        *WITH_TOKENS,
        "get_encoder",
        "freeze_encoder",
        "set_output_embeddings",
        "generate",
        "detect_language",
    ),
    "WhisperForCausalLM": (*NETWORK, *WITH_TOKENS, "set_decoder", "set_output_embeddings"),
    "WhisperForAudioClassification": (*NETWORK, "get_encoder", "freeze_encoder"),
    "WhisperConfig": (
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
    "GenerationConfig": (
        "from_pretrained",
        "from_dict",
        "from_model_config",
        "save_pretrained",
        "to_dict",
        "update",
        "validate",
    ),
    "AutoConfig": ("from_pretrained", "for_model"),
    "AutoTokenizer": ("from_pretrained",),
    "AutoFeatureExtractor": ("from_pretrained",),
    "AutoProcessor": ("from_pretrained",),
    "AutoModelForSpeechSeq2Seq": ("from_pretrained", "from_config"),
}

STRICT = "an unknown option is an error here instead of being ignored"
BY_KEYWORD = "taken by keyword: see test_every_loader_takes_where_to_look"
BY_POSITION = "nothing more is said by position"
RENAMED = "the documents call them vocab_file and merges_file, as here"
TYPED = "taken by keyword and handed on to a call"
LAYOUTS = "one layout is written, that of today"
STORES = "stores that are not supported: variants of a name, adapters, distributed files"
LOADING = "how its loader works inside"
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision")

# By class and method, or by method for all classes: what theirs has and ours has not, and why.
MISSING: dict[str, tuple[tuple[str, ...], str]] = {
    ".forward": (("**kwargs",), STRICT),
    ".gradient_checkpointing_enable": (("**kwargs",), STRICT),
    ".set_attn_implementation": (("allow_all_kernels",), "kernels are torch's own"),
    ".tie_weights": (("missing_keys", "recompute_mapping"), LOADING),
    ".get_encoder": (("modality",), "there is one encoder"),
    ".decode": (("**kwargs",), STRICT),
    ".tokenize": (("**kwargs",), STRICT),
    ".encode": (
        ("padding", "truncation", "max_length", "stride", "padding_side", "return_tensors"),
        TYPED,
    ),
    ".add_special_tokens": (("replace_extra_special_tokens",), "tokens are never taken away"),
    "WhisperTokenizer.__call__": (("tokenizer_kwargs", "**kwargs"), STRICT),
    "WhisperTokenizer.__init__": (("vocab", "merges", "**kwargs"), RENAMED),
    "WhisperTokenizer.save_pretrained": (("legacy_format", "save_format"), LAYOUTS),
    "WhisperTokenizer.from_pretrained": (
        ("*init_inputs", "trust_remote_code"),
        "no code of a checkpoint is ever run",
    ),
    "WhisperConfig.from_pretrained": (_WHERE, BY_KEYWORD),
    "GenerationConfig.from_pretrained": (_WHERE, BY_KEYWORD),
    "GenerationConfig.validate": (("user_set_attributes",), "of the inner workings of its loading"),
    "AutoConfig.for_model": (("*args",), BY_POSITION),
    "AutoTokenizer.from_pretrained": (("*inputs",), BY_POSITION),
    "AutoModelForSpeechSeq2Seq.from_pretrained": (("*model_args",), BY_POSITION),
    "pipeline": (
        ("image_processor", "video_processor", "pipeline_class"),
        "of tasks other than speech",
    ),
}
_NETWORKS = tuple(name for name, methods in NAMED.items() if "forward" in methods)
for _name in _NETWORKS:
    _inside = ("*model_args", *_WHERE, "weights_only", "fusion_config", "disable_mmap")
    MISSING[f"{_name}.from_pretrained"] = (_inside, f"{BY_KEYWORD}; else {LOADING}")
    _stores = ("variant", "token", "save_peft_format", "save_original_format")
    MISSING[f"{_name}.save_pretrained"] = ((*_stores, "distributed_checkpoint"), STORES)
for _name in tuple(MISSING):
    if _name.startswith("WhisperTokenizer."):
        MISSING[_name.replace(".", "Fast.")] = MISSING[_name]

_OUTPUTS = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")
_DECODER = ("decoder_inputs_embeds", "decoder_position_ids")
_INPUTS = (
    "input_features",
    "attention_mask",
    "decoder_input_ids",
    "decoder_attention_mask",
    "encoder_outputs",
    "past_key_values",
)
# In the documents' order, with defaults of None; version 5 moved some to its **kwargs.
FORWARD: dict[str, tuple[str, ...]] = {
    "WhisperModel": (*_INPUTS, *_DECODER, *_OUTPUTS, "cache_position"),
    "WhisperForConditionalGeneration": (
        *_INPUTS,
        *_DECODER,
        "labels",
        *_OUTPUTS,
        "cache_position",
    ),
    "WhisperForCausalLM": (
        "input_ids",
        "attention_mask",
        "encoder_outputs",
        "past_key_values",
        "inputs_embeds",
        "labels",
        *_OUTPUTS,
        "cache_position",
    ),
    "WhisperForAudioClassification": (
        "input_features",
        "encoder_outputs",
        "labels",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    ),
}

END = "<|endoftext|>"
NEEDED = inspect.Parameter.empty
_PAIR = {"token_ids_0": NEEDED, "token_ids_1": None}
# What version 4.37 documents and version 5 no longer has.
OLDER: dict[str, dict[str, Any]] = {
    "build_inputs_with_special_tokens": _PAIR,
    "create_token_type_ids_from_sequences": _PAIR,
    "__init__": {
        "vocab_file": None,
        "merges_file": None,
        "normalizer_file": None,
        "tokenizer_file": None,
        "errors": "replace",
        "unk_token": END,
        "bos_token": END,
        "eos_token": END,
        "pad_token": None,
        "add_prefix_space": False,
        "language": None,
        "task": None,
        "predict_timestamps": False,
    },
}
HEAD_MASKS: dict[str, tuple[str, ...]] = {
    "WhisperModel": ("head_mask", "decoder_head_mask", "cross_attn_head_mask"),
    "WhisperForConditionalGeneration": ("head_mask", "decoder_head_mask", "cross_attn_head_mask"),
    "WhisperForCausalLM": ("head_mask", "cross_attn_head_mask"),
    "WhisperForAudioClassification": ("head_mask",),
}

CASES = [(owner, method) for owner, methods in NAMED.items() for method in methods]


@pytest.mark.parametrize(("owner", "method"), [*CASES, ("pipeline", "")])
def test_parameters_have_their_names_order_and_defaults(owner: str, method: str) -> None:
    ours = parameters(getattr(package, owner), method)
    theirs = parameters(getattr(transformers, owner), method)
    name = f"{owner}.{method}" if method else owner
    expected, _ = MISSING.get(name) or MISSING.get(f".{method}") or ((), "")
    if owner == "WhisperProcessor":
        expected = ()  # hands everything on
    assert set(absent(ours, theirs)) == set(expected)
    taken = [one for one in by_position(ours, theirs) if theirs[one].kind == ours[one].kind]
    assert taken == [one for one in by_position(theirs, ours) if one in taken]


def test_every_exception_is_needed() -> None:
    names = {f"{owner}.{method}" for owner, method in CASES} | {"pipeline"}
    methods = {f".{method}" for _, method in CASES}
    assert MISSING.keys() <= names | methods
    assert all(reason for _, reason in MISSING.values())


@pytest.mark.parametrize("owner", FORWARD)
def test_networks_take_what_the_documents_name(owner: str) -> None:
    found = parameters(getattr(package, owner), "forward")
    positional = [
        name for name, one in found.items() if one.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["self", *FORWARD[owner]]
    for name in (*FORWARD[owner], *HEAD_MASKS[owner]):
        assert found[name].default is None


@pytest.mark.parametrize("method", OLDER)
def test_tokenizers_take_what_older_documents_name(method: str) -> None:
    found = parameters(package.WhisperTokenizer, method)
    for name, default in OLDER[method].items():
        assert found[name].default == default, name


def test_the_configuration_has_every_setting_with_its_default() -> None:
    theirs = parameters(transformers.WhisperConfig)
    inside = {"transformers_version", "chunk_size_feed_forward", "id2label", "label2id"}
    ours = package.WhisperConfig()
    for name in theirs.keys() - inside:
        assert getattr(ours, name) == theirs[name].default, name


def test_every_loader_takes_where_to_look(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    tiny_whisper(tmp_path, tokenizer=tmp_path, d_model=16, layers=1, heads=2)
    where: dict[str, Any] = {"cache_dir": tmp_path, "force_download": False, "token": None}
    where |= {"local_files_only": True, "revision": "main", "subfolder": ""}
    for owner, methods in NAMED.items():
        if "from_pretrained" in methods and owner != "WhisperForAudioClassification":
            loaded = getattr(package, owner).from_pretrained(tmp_path, **where)
            settings = loaded.to_dict() if hasattr(loaded, "to_dict") else {}
            assert not set(where) & set(settings), owner
