"""Settings of one `generate` call: arguments validated and merged with the checkpoint's.

`search_of` makes the search options of one text from them: rules on the text so far, and the
caller's functions.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.jobs import LogitsProcessor, Search, StoppingCriterion, TokenRules
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.generation_config import DEFAULTS, GenerationConfig
from corpus_asr.families.whisper.config import (
    GenerationConfig as WhisperGenerationConfig,
)
from corpus_asr.models.generation.rare_settings import KEPT, RARE
from corpus_asr.transcription.long_form import Clock

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=GenerationConfig)

# Performance settings of the reference, without effect on the text.
_WITHOUT_EFFECT = (
    "cache_config",
    "max_cache_len",
    "compile_config",
    "disable_compile",
    "prefill_chunk_size",
    "is_assistant",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "max_matching_ngram_size",
    # Prompt lookup drafts change no token, and speech rarely repeats the text before it.
    "prompt_lookup_num_tokens",
    "trust_remote_code",
    "cache_position",
    # Would be recomputed from all tokens.
    "past_key_values",
    "tokenizer",
    # Evaluation loops pass a whole batch.
    "labels",
)

# Keywords that are read but are not settings.
_FOR_THE_CALL = (
    "assistant_model",
    "decoder_input_ids",
    "encoder_outputs",
    "inputs",
)

_FORBIDDEN = float("-inf")

# Search calls a processor for one row at a time, with copies that it may modify.
Tokens = Int[Tensor, "1 token"]
Scores = Float[Tensor, "1 vocab"]


def prepare(
    kind: type[Config],
    model_settings: GenerationConfig | None,
    given: Any,
    keywords: dict[str, Any],
) -> tuple[Config, dict[str, Any]]:
    """Merge settings; precedence: keywords, `given`, `model_settings`, defaults.

    Returns the settings, and the other known keywords.
    """
    if given is not None and not hasattr(given, "to_dict"):
        raise TypeError(
            f"generating text: found a {type(given).__name__} as generation_config, expected a "
            "GenerationConfig; make one by GenerationConfig.from_dict(...)"
        )
    config = kind()
    # Later updates only set unset values: that is transformers' order of precedence.
    if given is not None:
        config.update(**_values_set(given), allow_custom_entries=True)
        if clash := sorted(name for name in keywords if hasattr(config, name)):
            logger.warning(
                "settings found in generation_config and by name (%s): the names are used; remove "
                "one of the two",
                ", ".join(clash),
            )
    if model_settings is not None:
        config.update(defaults_only=True, allow_custom_entries=True, **_values_set(model_settings))
    config.update(defaults_only=True, **DEFAULTS)
    rest = config.update(**keywords)
    return config, _for_the_call(config, rest)


def _values_set(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}


def _for_the_call(config: GenerationConfig, rest: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    unknown = []
    for name, value in rest.items():
        if value is None:
            continue
        if name in _FOR_THE_CALL:
            kept[name] = value
        elif name not in (*_WITHOUT_EFFECT, *RARE, *KEPT):
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"generating text: the following `model_kwargs` are not used by the model: {unknown} "
            "(note: typos in the generate arguments will also show up in this list)"
        )
    return kept


def one_tensor(given: Any, *, what: str, hint: str) -> Tensor:
    """Convert arrays, lists or a tensor to a tensor."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"generating text: found a {type(given).__name__} as {what}, expected one tensor; "
            f"{hint}"
        ) from error


def one_of(**given: Any) -> Any:
    """Return the only given argument; None if none was given."""
    values = {name: value for name, value in given.items() if value is not None}
    if len(values) > 1:
        raise ValueError(
            f"generating text: found {' and '.join(values)}, which are synonyms; pass one of them"
        )
    return next(iter(values.values()), None)


def features_of(given: Any, mel_bins: int, *, mel_axis: int = 1) -> Tensor:
    """Validate features, (batch, mel, frame), or (batch, frame, mel) if `mel_axis` is 2."""
    features = one_tensor(
        given,
        what="input_features",
        hint="pass inputs.input_features, or **inputs, of what the feature extractor returned",
    )
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[mel_axis] != mel_bins or 0 in shape:
        expected = f"{mel_bins}, frames" if mel_axis == 1 else f"frames, {mel_bins}"
        raise ValueError(
            f"generating text: input_features have shape {shape}, expected (batch, {expected}), "
            "one row or more; use this checkpoint's feature extractor"
        )
    # Synchronizes with a GPU once a call: later errors would be unclear.
    finite = features.isfinite()
    if not bool(finite.all()):
        rows = (~finite).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"generating text: found NaN or infinity in the input_features of rows {rows}, "
            "expected finite numbers; check the audio"
        )
    return features


def encoded_of(given: Any) -> Tensor:
    """Return the hidden states of an encoder's output."""
    states = getattr(given, "last_hidden_state", given)
    if isinstance(states, list | tuple) and states:
        states = states[0]
    if not isinstance(states, Tensor) or states.ndim != 3 or not states.numel():
        shown = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(
            f"generating text: encoder_outputs hold {shown}, expected a tensor (batch, position, "
            "width) or the encoder's output; pass what the encoder returned"
        )
    return states


def lengths_of(attention_mask: Any, batch_size: int) -> list[int]:
    """Return the number of frames of each row."""
    mask = one_tensor(
        attention_mask,
        what="attention_mask",
        hint="pass what the feature extractor returned with return_attention_mask=True",
    )
    if mask.ndim != 2 or len(mask) != batch_size:
        raise ValueError(
            f"generating text: attention_mask has shape {tuple(mask.shape)}, expected "
            f"({batch_size}, frames), one row per recording; call the feature extractor with "
            "return_attention_mask=True"
        )
    lengths: list[int] = mask.sum(-1).long().tolist()
    return lengths


def prompt_of(prompt_ids: Any) -> tuple[int, ...] | None:
    """Return a prompt's tokens."""
    if prompt_ids is None:
        return None
    hint = "pass what the processor's get_prompt_ids returns"
    ids = one_tensor(prompt_ids, what="prompt_ids", hint=hint)
    if ids.ndim != 1 or (ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool)):
        raise ValueError(
            f"generating text: prompt_ids have shape {tuple(ids.shape)} and type {ids.dtype}, "
            f"expected one dimension of token ids; {hint}"
        )
    return tuple(ids.tolist())


def temperatures_of(temperature: Any) -> tuple[float | None, ...]:
    """Return the temperatures in order; (None,) if not given."""
    several = isinstance(temperature, Sequence) and not isinstance(temperature, str)
    temperatures = tuple(temperature) if several else (temperature,)
    if not temperatures:
        raise ValueError(
            "generating text: temperature is an empty list, expected a number or several"
        )
    for value in temperatures:
        if value is not None and not isinstance(value, int | float):
            raise TypeError(
                f"generating text: found the temperature {value!r}, expected a number or several; "
                "correct it"
            )
        if value is not None and not value >= 0:  # NaN is rejected too
            raise ValueError(
                f"generating text: found the temperature {value!r}, expected 0 or more; correct it"
            )
    return temperatures


def functions_of(given: Any, *, what: str) -> tuple[Any, ...]:
    """Return a caller's list of functions."""
    if given is None:
        return ()
    wrong = given
    if isinstance(given, Sequence):
        wrong = next((item for item in given if not callable(item)), None)
    if wrong is not None:
        raise TypeError(
            f"generating text: found {str(wrong)[:40]!r} of type {type(wrong).__name__} as "
            f"{what}, expected a list of functions; correct it"
        )
    return tuple(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Settings common to all rows."""

    config: GenerationConfig
    rules: TokenRules
    begin: Int[Tensor, "batch token"] | None
    """Complete prompts, if given by the caller."""
    pad: int
    vocab_size: int
    max_target_positions: int
    seed: int
    processors: tuple[LogitsProcessor, ...]
    stopping: tuple[StoppingCriterion, ...]
    allowed: Callable[[int, Tensor], Sequence[int]] | None
    """Returns the allowed next tokens for a row and its tokens so far."""
    suppressed_second: tuple[int, ...] = ()
    """Tokens suppressed directly after a forced first token."""

    @property
    def end(self) -> int:
        """End token of the search, excluded from its results."""
        return -1 if self.rules.is_endless else self.rules.end


def common_settings(
    model: Any,
    config: GenerationConfig,
    *,
    temperatures: Sequence[float | None],
    logits_processor: Sequence[Any] | None,
    stopping_criteria: Sequence[Any] | None,
) -> dict[str, Any]:
    """Return the fields of `CallSettings` that are equal for all families."""
    end = end_token(config)
    return {
        "config": config,
        "pad": (end or 0) if config.pad_token_id is None else config.pad_token_id,
        "vocab_size": model.config.vocab_size,
        "max_target_positions": model.config.max_target_positions,
        # Drawn from torch's generator, so that `torch.manual_seed` makes sampling reproducible;
        # calls without sampling do not change the generator.
        "seed": int(torch.randint(2**62, (1,))) if any(temperatures) else 0,
        "processors": functions_of(logits_processor, what="logits_processor"),
        "stopping": functions_of(stopping_criteria, what="stopping_criteria"),
    }


def allowed_tokens(tokens: Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """Return the tokens within the vocabulary; others need no rule."""
    return tuple(token for token in tokens or () if 0 <= token < vocab_size)


def end_token(config: GenerationConfig) -> int | None:
    """Return the end token of a text; None if only the length ends it."""
    end: Any = config.eos_token_id
    if isinstance(end, Tensor):
        end = end.flatten().tolist()
    if isinstance(end, list | tuple) and len(end) == 1:
        (end,) = end
    if not isinstance(end, int | None):
        raise ValueError(
            f"generating text: eos_token_id is {end!r}, expected a token id, several or None; set "
            "it to the tokenizer's end token"
        )
    # In programs for transformers, a negative one means that no token ends a text.
    return None if end is None or end < 0 else end


def end_rules(config: GenerationConfig) -> dict[str, Any]:
    """Return the fields of `TokenRules` for the end of a text."""
    end = end_token(config)
    # Non-text tokens start there, even if no token ends a text.
    start = config.bos_token_id or 0
    return {"end": start if end is None else end, "is_endless": end is None}


_CONDITION_TYPES = ("first-segment", "all-segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(CallSettings):
    """All settings of a row; `begin` has the prompts of first windows."""

    config: WhisperGenerationConfig
    clock: Clock
    temperatures: tuple[float | None, ...]
    """Tried in order; None and 0 select greedy or beam search."""
    prompt: tuple[int, ...] | None
    """The caller's text before that of the first window."""
    repeat_prompt: bool
    """Whether it precedes the text of every window."""
    condition_first: bool
    """Whether the first window is prompted like later ones."""
    no_speech_token: int | None
    median_filter_width: int
    window_frames: int
    once: bool
    """Whether only one window is decoded."""
    assistant: SlotModel | None = None


def resolve_timestamps(
    config: WhisperGenerationConfig, wanted: bool | None, *, is_short: bool
) -> bool | None:
    """Whether timestamps are predicted."""
    if wanted is None:
        wanted = config.return_timestamps
    if not is_short:
        # The next window's start is derived from the timestamps of the last one.
        if wanted is False:
            raise ValueError(
                "generating text: found more than 3,000 frames with return_timestamps False, "
                "expected True; set return_timestamps=True or cut the features"
            )
        wanted = True
    if wanted and config.no_timestamps_token_id is None:
        raise ValueError(
            "generating text: found no no_timestamps_token_id for timestamps, expected one in the "
            "generation settings; set it to <|notimestamps|>"
        )
    return wanted


def check_language_and_task(
    config: WhisperGenerationConfig, language: Any, task: str | None, is_multilingual: bool | None
) -> None:
    """Store the call's language and task in `config`."""
    if is_multilingual is not None:
        if config.is_multilingual is None:
            raise _outdated("is_multilingual", "is_multilingual")
        config.is_multilingual = is_multilingual
    if config.is_multilingual is False and (task is not None or language is not None):
        raise ValueError(
            "generating text: found task or language for an English-only model, expected neither; "
            "remove them, or pass is_multilingual=True"
        )
    if language is not None:
        if config.lang_to_id is None:
            raise _outdated("language", "lang_to_id")
        config.language = language
    if task is not None:
        if config.task_to_id is None:
            raise _outdated("task", "task_to_id")
        config.task = task


def note_thresholds(config: WhisperGenerationConfig, **given: Any) -> None:
    """Store the call's values in `config`, if given, and validate the thresholds."""
    for name, value in given.items():
        if value is not None:
            setattr(config, name, value)
    if config.no_speech_threshold is not None and config.logprob_threshold is None:
        raise ValueError(
            f"generating text: no_speech_threshold is {config.no_speech_threshold} but "
            "logprob_threshold is None, expected both; set both"
        )


def check_condition_type(config: WhisperGenerationConfig, wanted: str | None) -> bool:
    """Return whether the caller's prompt is repeated before every window."""
    kind = wanted or _CONDITION_TYPES[0]
    if kind not in _CONDITION_TYPES:
        raise ValueError(
            f"generating text: prompt_condition_type is {kind!r}, expected one of "
            f"{', '.join(_CONDITION_TYPES)}"
        )
    if kind == "all-segments" and config.condition_on_prev_tokens is not True:
        raise ValueError(
            "generating text: prompt_condition_type is 'all-segments', which takes "
            "condition_on_prev_tokens=True; set that too"
        )
    return kind == "all-segments"


def token_rules(
    config: WhisperGenerationConfig, *, vocab_size: int, timestamps: bool, drafted: bool
) -> TokenRules:
    """Return the token rules of windows."""
    return TokenRules(
        **end_rules(config),
        suppress=allowed_tokens(config.suppress_tokens, vocab_size),
        # The reference leaves the first token unrestricted with a draft model.
        suppress_first=(
            () if drafted else allowed_tokens(config.begin_suppress_tokens, vocab_size)
        ),
        timestamp_begin=(config.no_timestamps_token_id or 0) + 1 if timestamps else None,
        no_timestamps=config.no_timestamps_token_id,
        max_initial_timestamp=config.max_initial_timestamp_index,
    )


def _outdated(argument: str, setting: str) -> ValueError:
    return ValueError(
        f"generating text: found {argument} without {setting} in the generation settings, "
        "expected both; set it on model.generation_config"
    )


def search_of(
    settings: CallSettings,
    prompt: Sequence[int],
    *,
    row: int,
    temperature: float | None,
    num_beams: int,
    **more: Any,
) -> Search:
    """Return the search settings of one text of the call.

    `row` is its index among all texts; a temperature of None selects the most likely tokens.
    """
    config, begin = settings.config, len(prompt)
    sampled = temperature is not None
    return Search(
        temperature=temperature or 0.0,
        top_k=(config.top_k or None) if sampled else None,
        top_p=config.top_p if sampled and (config.top_p or 1) < 1 else None,
        repetition_penalty=config.repetition_penalty or 1.0,
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        num_beams=num_beams,
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        early_stopping=config.early_stopping or False,  # type: ignore[arg-type]
        # The order affects the text, and is that of transformers: processors of settings, then
        # Whisper's own rules, which search applies itself, then the caller's.
        early_processors=_early_processors(settings, row, begin),
        processors=tuple(_with_begin(processor, begin) for processor in settings.processors),
        stopping=settings.stopping,
        **more,
    )


def _early_processors(settings: CallSettings, row: int, begin: int) -> tuple[LogitsProcessor, ...]:
    forced = settings.config.forced_bos_token_id
    processors: list[LogitsProcessor] = []
    if settings.allowed is not None:
        processors.append(_allowed(settings.allowed, row))
    if forced is not None:
        # Only if a text starts with its start token alone, as in the reference.
        processors.append(_forced(forced))
    if settings.suppressed_second:
        processors.append(_forbidden(settings.suppressed_second, length=begin + 1))
    return tuple(processors)


def _with_begin(processor: LogitsProcessor, begin: int) -> LogitsProcessor:
    # transformers calls it for processors whose rule applies from the text, not the prompt.
    set_begin = getattr(processor, "set_begin_index", None)
    if set_begin is None:
        return processor

    def process(tokens: Tensor, scores: Tensor) -> Tensor:
        set_begin(begin)  # set at every step: windows of other rows are scored in between
        return processor(tokens, scores)

    return process


# Lengths are of the whole sequence, prompt included.
def _forbidden(ids: Sequence[int], *, length: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        if tokens.shape[1] == length:
            scores[:, list(ids)] = _FORBIDDEN
        return scores

    return process


def _forced(token: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        if tokens.shape[1] != 1:
            return scores
        forced = torch.full_like(scores, _FORBIDDEN)
        forced[:, token] = 0.0
        return forced

    return process


def _allowed(choose: Callable[[int, Tensor], Sequence[int]], row: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        allowed = list(choose(row, tokens[0]))
        if not allowed:
            raise ValueError(
                f"generating text: prefix_allowed_tokens_fn returned no token for batch row {row} "
                f"after {tokens.shape[1]} tokens, expected at least one; correct it"
            )
        masked = torch.full_like(scores, _FORBIDDEN)
        masked[:, allowed] = scores[:, allowed]
        return masked

    return process
