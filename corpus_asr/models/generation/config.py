"""Which settings hold for one call of `generate`, and what is not offered.

In: the settings of the model, those of the call, and loose keywords. Out: one `GenerationConfig`,
and the keywords that are no settings. The order of precedence is transformers'.
"""

import logging
from typing import Any, TypeVar

from corpus_asr.families.generation_config import GenerationConfig

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=GenerationConfig)

DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "use_cache": True,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
}
"""What holds where neither call nor checkpoint says anything."""

# Settings of transformers that cannot be had here, and the values at which they do nothing.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "min_p": (None,),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None,),
    "token_healing": (None, False),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0.0),
    "constraints": (None,),
    "force_words_ids": (None,),
    "prompt_lookup_num_tokens": (None,),
    "use_mtp": (None, False),
    "custom_generate": (None,),
    "negative_prompt_ids": (None,),
    "negative_prompt_attention_mask": (None,),
    "past_key_values": (None,),
    "decoder_inputs_embeds": (None,),
}

# They say how the reference computes, or change its text in no way.
_WITHOUT_EFFECT = (
    "cache_config",
    "max_cache_len",
    "compile_config",
    "disable_compile",
    "prefill_chunk_size",
    "low_memory",
    "is_assistant",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "max_matching_ngram_size",
    "trust_remote_code",
    "decoder_attention_mask",
    "cache_position",
)

_CACHES = (
    "static",
    "dynamic",
    "dynamic_full",
    "offloaded",
    "offloaded_static",
    "quantized",
    "hybrid",
    "offloaded_hybrid",
    "sliding_window",
)

FOR_THE_CALL = (
    "assistant_model",
    "decoder_input_ids",
    "encoder_outputs",
    "inputs",
    "streamer",
    "tokenizer",
)
"""Keywords that are no settings and are read."""


def prepare(
    kind: type[Config], own: GenerationConfig | None, given: Any, keywords: dict[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """Merge settings: keywords come before `given`, that before `own`, that before the defaults.

    Args:
        kind: the family's class.
        own: the model's.
        given: the call's; of this package or of transformers.
        keywords: settings and other arguments by name.

    Returns:
        The settings, and those of `FOR_THE_CALL` among the keywords.

    Raises:
        ValueError: a keyword is unknown or not offered here, or settings contradict each other.
        TypeError: `given` holds no settings.
    """
    if given is not None and not hasattr(given, "to_dict"):
        raise TypeError(
            f"generating text: found a {type(given).__name__} as generation_config, expected a "
            "GenerationConfig; make one by GenerationConfig.from_dict(...)"
        )
    config = kind()
    if given is not None:
        config.update(**_said(given), allow_custom_entries=True)
        if clash := sorted(name for name in keywords if hasattr(config, name)):
            logger.warning(
                "settings were given both as generation_config and by name (%s): the names win; "
                "give one of the two",
                ", ".join(clash),
            )
    if own is not None:
        config.update(defaults_only=True, allow_custom_entries=True, **_said(own))
    config.update(defaults_only=True, **DEFAULTS)
    rest = config.update(**keywords)
    _check_cache(config.cache_implementation)
    return config, _for_the_call(config, rest)


def _said(config: Any) -> dict[str, Any]:
    """What `config` sets; None says nothing."""
    return {name: value for name, value in config.to_dict().items() if value is not None}


def _for_the_call(config: GenerationConfig, rest: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    unknown = []
    for name, value in {**config.extra, **rest}.items():
        if name in _NOT_OFFERED:
            if not any(value is idle or value == idle for idle in _NOT_OFFERED[name]):
                raise ValueError(
                    f"generating text: {name} is {value!r}, which is not offered here; leave it "
                    f"out or set it to {_NOT_OFFERED[name][-1]}"
                )
        elif name in rest and value is not None:
            if name in FOR_THE_CALL:
                kept[name] = value
            elif name not in _WITHOUT_EFFECT:
                unknown.append(name)
    if unknown:
        raise ValueError(
            f"generating text: the following `model_kwargs` are not used by the model: {unknown} "
            "(note: typos in the generate arguments will also show up in this list)"
        )
    return kept


def _check_cache(name: str | None) -> None:
    if name is not None and name not in _CACHES:
        raise ValueError(
            f"generating text: cache_implementation is {name!r}, expected one of "
            f"{', '.join(_CACHES)}; all mean the same here, so leave it out"
        )
