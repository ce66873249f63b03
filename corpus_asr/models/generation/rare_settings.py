"""Rare settings of `generate` and changed modules, for which transformers' search is used.

It calls this package's modules. transformers is only imported in these cases.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from corpus_asr.array_types import Float, Int

# Values, besides None, for which the search here is equivalent, by name.
RARE: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ((), []),
    "constraints": (),
    "decoder_attention_mask": (),
    "decoder_inputs_embeds": (),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "low_memory": (False,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (),
    "negative_prompt_attention_mask": (),
    "negative_prompt_ids": (),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "stop_strings": (),
    "streamer": (),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1.0,),
    "use_mtp": (False,),
    "watermarking_config": (),
}
# Returned only by transformers' search, in named results.
KEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# Custom code is not executed; drafts and caches do not change the text.
_NOT_PASSED = (
    "trust_remote_code", "assistant_model", "prompt_lookup_num_tokens", "past_key_values",
    "cache_implementation", "cache_config",
)  # fmt: skip


def transformers_generate(model: Any, setting: str, /, **options: Any) -> Any:
    """Generate with transformers' search; errors name the setting or module that requires it."""
    if options.get("custom_generate") is not None:
        raise ValueError(
            "generating text: found custom_generate, expected none, since foreign code is not "
            "run; remove it"
        )
    view = transformers_view(model, setting)
    config = options.get("generation_config")
    if config is not None:
        options["generation_config"] = _converted(config)
    return view.generate(**{k: v for k, v in options.items() if k not in _NOT_PASSED})


def compute_transition_scores(
    self: Any,
    sequences: Int[Tensor, "batch token"],
    scores: Sequence[Float[Tensor, "row vocab"]],
    beam_indices: Int[Tensor, "batch step"] | None = None,
    normalize_logits: bool = False,
) -> Float[Tensor, "batch step"]:
    """Return the score of each generated token; 0 after the end of a beam.

    Args:
        sequences, scores, beam_indices: named results of `generate`.
        normalize_logits: whether to convert scores to log-probabilities first.
    """
    view = transformers_view(self, "compute_transition_scores")
    transition_scores: Tensor = view.compute_transition_scores(
        sequences, scores, beam_indices, normalize_logits=normalize_logits
    )
    return transition_scores


def rare_setting(model: Any, setting: Callable[[str], Any]) -> str | None:
    """Return the name of a setting that only transformers' search supports.

    `setting` returns a value of the call by its name.
    """
    for name, neutral in RARE.items():
        value = setting(name)
        if value is not None and value not in neutral:
            return name
    if setting("return_dict_in_generate"):
        for name in KEPT:
            if setting(name):
                return name
    ends = setting("eos_token_id")
    if isinstance(ends, list | tuple | Tensor) and len(ends) > 1:
        return "eos_token_id"
    # Whisper samples one text for any `num_beams`.
    if not _is_whisper(model) and setting("do_sample") and (setting("num_beams") or 1) > 1:
        return "do_sample"
    return None


def _is_whisper(model: Any) -> bool:
    return model.config.model_type == "whisper" and bool(model.config.is_encoder_decoder)


def transformers_view(model: Any, setting: str) -> Any:
    """Return an object with transformers' methods that shares the model's modules."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"generating text: {setting} needs transformers, found no such package; pip install "
            f"transformers, or remove {setting}"
        ) from error
    kind: Any = type(model)
    view: Any = object.__new__(_view_class(kind, _is_whisper(model)))
    config = transformers.AutoConfig.for_model(**model.config.to_dict())
    config._attn_implementation = "eager"  # required to return weights
    settings = _converted(model.generation_config)
    view.__dict__ = {**vars(model), "config": config, "generation_config": settings}
    return view


@functools.cache
def _view_class(kind: type, is_whisper: bool) -> type:
    transformers = importlib.import_module("transformers")
    mixin = transformers.GenerationMixin
    if is_whisper:
        whisper = importlib.import_module("transformers.models.whisper.generation_whisper")
        mixin = whisper.WhisperGenerationMixin
    return type(kind.__name__, (mixin, kind, transformers.PreTrainedModel), {})


def _converted(config: Any) -> Any:
    """Return settings as transformers' own, without a cache, which the modules bring along."""
    kind = importlib.import_module("transformers").GenerationConfig
    converted = kind.from_dict(config.to_dict())
    converted.cache_implementation = converted.cache_config = None
    return converted
