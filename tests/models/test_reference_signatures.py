"""Names and defaults of the reference's classes, held against the installed transformers.

Every class, method and parameter that the reference's documents name is listed here; for each,
`inspect.signature` of ours is compared with theirs. What differs is listed with its reason, and
the list is held to be no longer than needed.
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer


def ours(owner: str) -> Any:
    package = speech2text if owner.startswith("Speech2Text") else whisper
    return getattr(package, owner)


TOKENIZER = (
    "get_special_tokens_mask", "save_vocabulary", "save_pretrained", "from_pretrained",
    "batch_decode", "decode", "encode", "pad", "tokenize", "convert_tokens_to_ids",
    "convert_ids_to_tokens", "convert_tokens_to_string", "num_special_tokens_to_add",
    "add_tokens", "add_special_tokens", "get_vocab", "get_added_vocab", "__call__", "__init__",
)  # fmt: skip
WHISPER_TOKENIZER = (
    *TOKENIZER, "set_prefix_tokens", "normalize", "basic_normalize", "get_decoder_prompt_ids",
    "get_prompt_ids", "_decode_asr", "build_inputs_with_special_tokens",
)  # fmt: skip
NETWORK = (
    "__init__", "forward", "from_pretrained", "save_pretrained", "get_input_embeddings",
    "set_input_embeddings", "num_parameters",
)  # fmt: skip
TRAINING = (
    "activation_checkpointing_enable", "activation_checkpointing_disable",
    "gradient_checkpointing_enable", "gradient_checkpointing_disable", "set_attn_implementation",
    "tie_weights",
)  # fmt: skip
WITH_TOKENS = ("get_decoder", "get_output_embeddings", "resize_token_embeddings")
EXTRACTOR = (
    "__init__", "__call__", "pad", "from_pretrained", "from_dict", "from_json_file",
    "save_pretrained", "to_dict",
    "to_json_string", "to_json_file",
)  # fmt: skip
PROCESSOR = (
    "__init__", "__call__", "from_pretrained", "save_pretrained", "batch_decode", "decode",
    "to_dict",
)  # fmt: skip
CONFIG = (
    "from_pretrained", "from_dict", "from_json_file", "save_pretrained", "to_dict",
    "to_diff_dict", "to_json_string", "to_json_file", "update",
)  # fmt: skip
NAMED: dict[str, tuple[str, ...]] = {
    "WhisperTokenizer": WHISPER_TOKENIZER,
    "WhisperTokenizerFast": WHISPER_TOKENIZER,
    "WhisperFeatureExtractor": (*EXTRACTOR, "zero_mean_unit_var_norm"),
    "WhisperProcessor": (*PROCESSOR, "get_decoder_prompt_ids", "get_prompt_ids"),
    "WhisperModel": (
        *NETWORK, *WITH_TOKENS, *TRAINING, "get_encoder", "freeze_encoder",
        "_mask_input_features",
    ),
    "WhisperForConditionalGeneration": (
        *NETWORK, *WITH_TOKENS, *TRAINING, "get_encoder", "freeze_encoder",
        "set_output_embeddings", "generate", "detect_language", "compute_transition_scores",
    ),
    "WhisperForCausalLM": (
        *NETWORK, *WITH_TOKENS, *TRAINING, "set_decoder", "set_output_embeddings", "generate",
        "compute_transition_scores",
    ),
    "WhisperForAudioClassification": (
        *NETWORK, *TRAINING, "get_encoder", "freeze_encoder",
    ),
    "WhisperConfig": (*CONFIG,),
    "GenerationConfig": (
        "from_pretrained", "from_dict", "from_model_config", "save_pretrained", "to_dict",
        "update", "validate",
    ),
    "AutoConfig": ("from_pretrained", "for_model"),
    "AutoTokenizer": ("from_pretrained",),
    "AutoFeatureExtractor": ("from_pretrained",),
    "AutoProcessor": ("from_pretrained",),
    "AutoModelForSpeechSeq2Seq": ("from_pretrained", "from_config"),
    "Speech2TextConfig": (*CONFIG,),
    "Speech2TextTokenizer": (
        *TOKENIZER, "build_inputs_with_special_tokens", "create_token_type_ids_from_sequences",
        "set_tgt_lang_special_tokens", "truncate_sequences",
    ),
    "Speech2TextFeatureExtractor": (*EXTRACTOR, "normalize", "utterance_cmvn"),
    "Speech2TextProcessor": (*PROCESSOR,),
    "Speech2TextModel": (*NETWORK, "get_encoder", "get_decoder", "resize_token_embeddings"),
    "Speech2TextForConditionalGeneration": (
        *NETWORK, *WITH_TOKENS, "get_encoder", "generate", "compute_transition_scores",
    ),
}  # fmt: skip

STRICT = "an unknown option is an error here instead of being ignored"
BY_KEYWORD = "taken by keyword: see test_every_loader_takes_where_to_look"
BY_POSITION = "nothing more is said by position"
RENAMED = "the documents call them vocab_file and merges_file, as here"
TYPED = "taken by keyword and handed on to a call"
LAYOUTS = "one layout is written, that of today"
STORES = "stores that are not supported: adapters, distributed files"
LOADING = "how its loader works inside"
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision")

# By class and method, or by method for all classes: what theirs has and ours has not, and why.
MISSING: dict[str, tuple[tuple[str, ...], str]] = {
    ".forward": (("**kwargs",), STRICT),
    ".set_attn_implementation": (("allow_all_kernels",), "kernels are torch's own"),
    ".tie_weights": (("missing_keys", "recompute_mapping"), LOADING),
    ".get_encoder": (("modality",), "there is one encoder"),
    ".decode": (("**kwargs",), STRICT),
    ".tokenize": (("**kwargs",), STRICT),
    ".encode": (
        ("padding", "truncation", "max_length", "stride", "padding_side", "return_tensors"),
        TYPED,
    ),
    "WhisperTokenizer.__init__": (("vocab", "merges", "**kwargs"), RENAMED),
    "WhisperTokenizer.save_pretrained": (("legacy_format", "save_format"), LAYOUTS),
    "GenerationConfig.from_pretrained": (_WHERE, BY_KEYWORD),
    "GenerationConfig.validate": (("user_set_attributes",), "of the inner workings of its loading"),
    "AutoConfig.for_model": (("*args",), BY_POSITION),
    "AutoTokenizer.from_pretrained": (("*inputs",), BY_POSITION),
    "AutoModelForSpeechSeq2Seq.from_pretrained": (("*model_args",), BY_POSITION),
    "Speech2TextTokenizer.__init__": (("**kwargs",), STRICT),
    "Speech2TextTokenizer.save_pretrained": (("legacy_format",), LAYOUTS),
    "Speech2TextForConditionalGeneration.generate": (
        ("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"),
        "of text models, and code of others",
    ),
    "pipeline": (("image_processor", "video_processor", "pipeline_class"), "of other tasks"),
}
for _name in ("Whisper", "Speech2Text"):
    MISSING[f"{_name}Tokenizer.__call__"] = (("tokenizer_kwargs", "**kwargs"), STRICT)
    MISSING[f"{_name}Config.from_pretrained"] = (_WHERE, BY_KEYWORD)
    _code = ("*init_inputs", "trust_remote_code", *_WHERE)
    _reason = f"no code of a checkpoint is ever run; the others are {BY_KEYWORD}"
    MISSING[f"{_name}Tokenizer.from_pretrained"] = (_code, _reason)
_NETWORKS = tuple(name for name, methods in NAMED.items() if "forward" in methods)
for _name in _NETWORKS:
    _inside = ("*model_args", *_WHERE, "weights_only", "fusion_config", "disable_mmap")
    MISSING[f"{_name}.from_pretrained"] = (_inside, f"{BY_KEYWORD}; else {LOADING}")
    _stores = ("token", "save_peft_format", "save_original_format")
    MISSING[f"{_name}.save_pretrained"] = ((*_stores, "distributed_checkpoint"), STORES)
for _name in tuple(MISSING):
    if _name.startswith("WhisperTokenizer."):
        MISSING[_name.replace(".", "Fast.")] = MISSING[_name]

_OUTPUTS = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")
_DECODER = ("decoder_inputs_embeds", "decoder_position_ids")
_INPUTS = (
    "input_features", "attention_mask", "decoder_input_ids", "decoder_attention_mask",
    "encoder_outputs", "past_key_values",
)  # fmt: skip
_SPEECH2TEXT = (
    "input_features", "attention_mask", "decoder_input_ids", "decoder_attention_mask",
    "head_mask", "decoder_head_mask", "cross_attn_head_mask", "encoder_outputs",
    "past_key_values", "decoder_inputs_embeds",
)  # fmt: skip
# In the documents' order, with defaults of None; version 5 moved some to its **kwargs.
FORWARD: dict[str, tuple[str, ...]] = {
    "WhisperModel": (*_INPUTS, *_DECODER, *_OUTPUTS, "cache_position"),
    "WhisperForConditionalGeneration": (
        *_INPUTS, *_DECODER, "labels", *_OUTPUTS, "cache_position",
    ),
    "WhisperForCausalLM": (
        "input_ids", "attention_mask", "encoder_outputs", "past_key_values", "inputs_embeds",
        "labels", *_OUTPUTS, "cache_position",
    ),
    "WhisperForAudioClassification": (
        "input_features", "encoder_outputs", "labels", "output_attentions",
        "output_hidden_states", "return_dict",
    ),
    "Speech2TextModel": (*_SPEECH2TEXT, *_OUTPUTS),
    "Speech2TextForConditionalGeneration": (*_SPEECH2TEXT, "labels", *_OUTPUTS),
}  # fmt: skip

NEEDED = inspect.Parameter.empty
# What the documents of version 4 name, and version 5 no longer has.
OLDER: dict[str, dict[str, Any]] = {
    "WhisperTokenizer.create_token_type_ids_from_sequences": {
        "token_ids_0": NEEDED,
        "token_ids_1": None,
    },
    "WhisperTokenizer.__init__": {
        **dict.fromkeys(("vocab_file", "merges_file", "tokenizer_file", "pad_token")),
        "errors": "replace",
    },
}
HEAD_MASKS: dict[str, tuple[str, ...]] = {
    "WhisperModel": ("head_mask", "decoder_head_mask", "cross_attn_head_mask"),
    "WhisperForConditionalGeneration": ("head_mask", "decoder_head_mask", "cross_attn_head_mask"),
    "WhisperForCausalLM": ("head_mask", "cross_attn_head_mask"),
    "WhisperForAudioClassification": ("head_mask",),
}

Parameters = Mapping[str, inspect.Parameter]
_SPREAD = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def parameters(owner: Any, method: str = "") -> Parameters:
    """Those of a callable, or of a class's method without the object itself."""
    named = getattr(owner, method) if method else owner
    found = dict(inspect.signature(named).parameters)
    if method and inspect.isfunction(named):
        found.pop(next(iter(found)))
    return found


def absent(ours: Parameters, theirs: Parameters) -> Iterator[str]:
    """What theirs has and ours has not; where ours has both, defaults have to be the same."""
    kinds = {one.kind for one in ours.values()}
    for name, one in theirs.items():
        if one.kind in _SPREAD:
            if one.kind not in kinds:
                yield str(one).split(":")[0]
        elif name not in ours:
            if name != "self":  # a function that serves as a method may call it `model`
                yield name
        else:
            assert ours[name].default == one.default, name


def by_position(found: Parameters, other: Parameters) -> list[str]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, one in found.items() if one.kind == kind and name in other]


CASES = [
    (owner, method)
    for owner, methods in NAMED.items()
    for method in methods
    if (owner, method) != ("WhisperForCausalLM", "generate")  # hands everything on
]


@pytest.mark.parametrize(("owner", "method"), [*CASES, ("pipeline", "")])
def test_parameters_have_their_names_order_and_defaults(owner: str, method: str) -> None:
    here = parameters(ours(owner), method)
    theirs = parameters(getattr(transformers, owner), method)
    name = f"{owner}.{method}" if method else owner
    expected, _ = MISSING.get(name) or MISSING.get(f".{method}") or ((), "")
    if owner.endswith("Processor") and not owner.startswith("Auto"):
        expected = ()  # hands everything on
    assert set(absent(here, theirs)) == set(expected)
    taken = [key for key in by_position(here, theirs) if theirs[key].kind == here[key].kind]
    assert taken == [key for key in by_position(theirs, here) if key in taken]


def test_every_exception_is_needed() -> None:
    names = {f"{owner}.{method}" for owner, method in CASES} | {"pipeline"}
    methods = {f".{method}" for _, method in CASES}
    assert MISSING.keys() <= names | methods
    assert all(reason for _, reason in MISSING.values())


@pytest.mark.parametrize("owner", FORWARD)
def test_networks_take_what_the_documents_name(owner: str) -> None:
    found = parameters(ours(owner), "forward")
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert [n for n, one in found.items() if one.kind == kind] == list(FORWARD[owner])
    for name in (*FORWARD[owner], *HEAD_MASKS.get(owner, ())):
        assert found[name].default is None


def test_classes_take_what_the_older_documents_name() -> None:
    for name, defaults in OLDER.items():
        owner, method = name.split(".")
        found = parameters(ours(owner), method)
        for parameter, default in defaults.items():
            assert found[parameter].default == default, (name, parameter)


def test_the_configuration_has_every_setting_with_its_default() -> None:
    inside = {"transformers_version", "chunk_size_feed_forward", "id2label", "label2id"}
    for name in ("WhisperConfig", "Speech2TextConfig"):
        theirs = parameters(getattr(transformers, name))
        config = ours(name)()
        for key in theirs.keys() - inside:
            assert getattr(config, key) == theirs[key].default, (name, key)


def test_every_loader_takes_where_to_look(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "whisper")
    tiny_whisper(
        tmp_path / "whisper", tokenizer=tmp_path / "whisper", d_model=16, layers=1, heads=2
    )
    tokens = tiny_speech2text_tokenizer(tmp_path / "tokens")
    tiny_speech2text(tmp_path / "speech2text", tokenizer=tokens, layers=1)
    speech2text.Speech2TextFeatureExtractor().save_pretrained(tmp_path / "speech2text")
    where: dict[str, Any] = {"cache_dir": tmp_path, "force_download": False, "token": None}
    where |= {"local_files_only": True, "revision": "main", "subfolder": ""}
    for owner, methods in NAMED.items():
        if "from_pretrained" in methods and owner != "WhisperForAudioClassification":
            family = "speech2text" if owner.startswith("Speech2Text") else "whisper"
            loaded = ours(owner).from_pretrained(tmp_path / family, **where)
            settings = loaded.to_dict() if hasattr(loaded, "to_dict") else {}
            assert not set(where) & set(settings), owner
