"""One call of `generate`: its arguments, merged with the checkpoint's settings and validated.

`Call.search` makes the search options of one text from them: rules on the text so far, and the
caller's functions.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.jobs import LogitsProcessor, Search, TokenRules
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.rules import FORBIDDEN
from corpus_asr.families.generation_config import DEFAULTS, GenerationConfig
from corpus_asr.families.whisper.config import GenerationConfig as WhisperGenerationConfig
from corpus_asr.models.generation.rare_settings import KEPT, RARE
from corpus_asr.transcription.long_form import Clock

logger = logging.getLogger(__name__)

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

# Of the tensors of a call: what to do if one is wrong.
_HINTS = {
    "input_features": "pass input_features of this checkpoint's feature extractor",
    "attention_mask": "pass what the feature extractor returns with return_attention_mask=True",
    "encoder_outputs": "pass what the encoder returned",
    "prompt_ids": "pass what the processor's get_prompt_ids returns",
    "decoder_input_ids": "pass token ids (batch, token)",
}

# Search calls a processor for one row at a time, with copies that it may modify.
Tokens = Int[Tensor, "1 token"]
Scores = Float[Tensor, "1 vocab"]


def refuse_if(is_wrong: bool, problem: str, *, error: type[Exception] = ValueError) -> None:
    """Raise an error about the call."""
    if is_wrong:
        raise error(f"generating text: {problem}")


def tensor_of(name: str, given: Any, *axes: int | str) -> Tensor:
    """Return an argument as a tensor with these axes: of this size, or named, of one or more.

    An axis of `tokens` may be empty, and its tensor holds whole numbers.
    """
    try:
        tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"generating text: found a {type(given).__name__} as {name}, expected one tensor; "
            f"{_HINTS[name]}"
        ) from error
    shape, is_text = tuple(tensor.shape), "tokens" in axes
    fits = len(shape) == len(axes) and all(
        size == axis if isinstance(axis, int) else size or axis == "tokens"
        for size, axis in zip(shape, axes, strict=True)
    )
    has_fractions = tensor.is_floating_point() or tensor.dtype == torch.bool
    refuse_if(
        not fits or (is_text and has_fractions and tensor.numel() > 0),
        f"{name} has shape {shape} and type {tensor.dtype}, expected "
        f"({', '.join(map(str, axes))}) in {'whole ' if is_text else ''}numbers; {_HINTS[name]}",
    )
    return tensor.long() if is_text else tensor


def functions_of(given: Any, *, what: str) -> tuple[Any, ...]:
    """Return a caller's list of functions."""
    if given is None:
        return ()
    wrong = given
    if isinstance(given, Sequence):
        wrong = next((item for item in given if not callable(item)), None)
    refuse_if(
        wrong is not None,
        f"found {str(wrong)[:40]!r} of type {type(wrong).__name__} as {what}, expected a list of "
        "functions; correct it",
        error=TypeError,
    )
    return tuple(given)


def allowed_tokens(tokens: Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """Return the tokens within the vocabulary; others need no rule."""
    return tuple(token for token in tokens or () if 0 <= token < vocab_size)


def end_rules(config: GenerationConfig) -> dict[str, Any]:
    """Return the fields of `TokenRules` for the end of a text."""
    end: Any = config.eos_token_id
    if isinstance(end, Tensor):
        end = end.flatten().tolist()
    if isinstance(end, list | tuple) and len(end) == 1:
        (end,) = end
    refuse_if(
        not isinstance(end, int | None),
        f"eos_token_id is {end!r}, expected a token id, several or None; set it to the "
        "tokenizer's end token",
    )
    # In programs for transformers, a negative one means that no token ends a text. Non-text tokens
    # then start where the start token is.
    is_endless = end is None or end < 0
    return {"end": (config.bos_token_id or 0) if is_endless else end, "is_endless": is_endless}


def _values_set(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}


class Call:
    """The settings and other arguments of a call, common to all rows of its batch."""

    settings_class: ClassVar[type[GenerationConfig]] = GenerationConfig
    keywords: ClassVar[tuple[str, ...]] = (
        "attention_mask", "decoder_input_ids", "encoder_outputs", "input_features", "input_ids",
    )  # fmt: skip
    """Keywords that are read but are not settings."""

    config: GenerationConfig
    """The settings, merged."""
    rules: TokenRules
    begin: Int[Tensor, "batch token"] | None = None
    """Complete prompts, if given by the caller."""
    suppressed_second: tuple[int, ...] = ()
    """Tokens suppressed directly after a forced first token."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Merge settings; precedence: keywords, `generation_config`, the model's, defaults.

        `arguments` has all of `generate`, by name.
        """
        self.model = arguments.pop("model")
        keywords = arguments.pop("kwargs")
        named = {name: value for name, value in arguments.items() if value is not None}
        self.options = named | keywords
        """All arguments as given, for transformers."""
        config, call_config = self.settings_class(), named.get("generation_config")
        refuse_if(
            call_config is not None and not hasattr(call_config, "to_dict"),
            f"found a {type(call_config).__name__} as generation_config, expected a "
            "GenerationConfig; make one by GenerationConfig.from_dict(...)",
            error=TypeError,
        )
        # Later updates only set unset values: that is transformers' order of precedence.
        if call_config is not None:
            config.update(**_values_set(call_config), allow_custom_entries=True)
            if clash := sorted(name for name in keywords if hasattr(config, name)):
                logger.warning(
                    "settings found in generation_config and by name (%s): the names are used; "
                    "remove one of the two",
                    ", ".join(clash),
                )
        model_settings = getattr(self.model, "generation_config", None)
        if model_settings is not None:
            config.update(
                defaults_only=True, allow_custom_entries=True, **_values_set(model_settings)
            )
        limits = keywords.get("max_length"), config.max_length
        self.has_length_limit = limits != (None, None)
        """Whether the length limit is other than the default."""
        config.update(defaults_only=True, **DEFAULTS)
        other_arguments = {
            name: v for name, v in config.update(**keywords).items() if v is not None
        }
        known_names = (*self.keywords, *_WITHOUT_EFFECT, *RARE, *KEPT)
        self._unknown_names = [name for name in other_arguments if name not in known_names]
        self._arguments = named | other_arguments
        self.config = config

    def __getitem__(self, name: str) -> Any:
        """Return an argument that is no setting; None if it was not given."""
        return self._arguments.get(name)

    def setting(self, name: str) -> Any:
        """Return an argument, or else the setting of this name; None if there is neither."""
        value = self[name]
        return getattr(self.config, name, None) if value is None else value

    def only_given(self, *names: str) -> Any:
        """Return the only given argument of several synonyms; None if none was given."""
        given_names = [name for name in names if self[name] is not None]
        refuse_if(
            len(given_names) > 1,
            f"found {' and '.join(given_names)}, which are synonyms; pass one of them",
        )
        return self[given_names[0]] if given_names else None

    def refuse_unknown(self) -> None:
        """Raise ValueError for arguments that neither this search nor transformers' has."""
        refuse_if(
            bool(self._unknown_names),
            f"the following `model_kwargs` are not used by the model: {self._unknown_names} (note: "
            "typos in the generate arguments will also show up in this list)",
        )

    def set_rules(self, *, temperatures: Sequence[float | None], **more: Any) -> None:
        """Set what a search reads; `more` are fields of `TokenRules`."""
        config, self.vocab_size = self.config, self.model.config.vocab_size
        self.max_target_positions: int = self.model.config.max_target_positions
        self.rules = TokenRules(
            **end_rules(config),
            suppress=allowed_tokens(config.suppress_tokens, self.vocab_size),
            **more,
        )
        own_end = 0 if self.rules.is_endless else self.rules.end
        self.pad = own_end if config.pad_token_id is None else config.pad_token_id
        # Drawn from torch's generator, so that `torch.manual_seed` makes sampling reproducible;
        # calls without sampling do not change the generator.
        self.seed = int(torch.randint(2**62, (1,))) if any(temperatures) else 0
        self._processors = functions_of(self["logits_processor"], what="logits_processor")
        self._stopping = functions_of(self["stopping_criteria"], what="stopping_criteria")

    @property
    def end(self) -> int:
        """End token of the search, excluded from its results."""
        return -1 if self.rules.is_endless else self.rules.end

    def search(
        self,
        prompt: Sequence[int],
        *,
        row: int,
        temperature: float | None,
        num_beams: int,
        **more: Any,
    ) -> Search:
        """Return the search settings of one text.

        `row` is its index among all texts; a temperature of None selects the most likely tokens.
        """
        config, begin, sampled = self.config, len(prompt), temperature is not None
        is_restricted = (
            self["prefix_allowed_tokens_fn"] is not None
            or config.forced_bos_token_id is not None
            or bool(self.suppressed_second)
        )
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
            early_processors=(partial(self._apply_settings, row, begin),) if is_restricted else (),
            processors=tuple(_with_begin(processor, begin) for processor in self._processors),
            stopping=self._stopping,
            **more,
        )

    def _apply_settings(self, row: int, begin: int, tokens: Tokens, scores: Scores) -> Scores:
        """Return scores under the settings that come before the token rules."""
        # Lengths are of the whole sequence, prompt included.
        length, start_token = tokens.shape[1], self.config.forced_bos_token_id
        if (choose := self["prefix_allowed_tokens_fn"]) is not None:
            allowed_ids = list(choose(row, tokens[0]))
            refuse_if(
                not allowed_ids,
                f"prefix_allowed_tokens_fn returned no token for batch row {row} after {length} "
                "tokens, expected at least one; correct it",
            )
            allowed_scores = scores[:, allowed_ids]
            scores = torch.full_like(scores, FORBIDDEN)
            scores[:, allowed_ids] = allowed_scores
        if start_token is not None and length == 1:
            # Only if a text starts with its start token alone, as in the reference.
            scores = torch.full_like(scores, FORBIDDEN)
            scores[:, start_token] = 0.0
        if length == begin + 1:
            scores[:, list(self.suppressed_second)] = FORBIDDEN
        return scores


def _with_begin(processor: LogitsProcessor, begin: int) -> LogitsProcessor:
    # transformers calls it for processors whose rule applies from the text, not the prompt.
    set_begin = getattr(processor, "set_begin_index", None)
    if set_begin is None:
        return processor

    def process(tokens: Tensor, scores: Tensor) -> Tensor:
        set_begin(begin)  # set at every step: windows of other rows are scored in between
        return processor(tokens, scores)

    return process


_CONDITION_TYPES = ("first-segment", "all-segments")
# Arguments that replace settings, which other rules read.
_STORED = (
    "language", "task", "is_multilingual", "logprob_threshold", "compression_ratio_threshold",
    "no_speech_threshold", "condition_on_prev_tokens", "force_unique_generate_call",
)  # fmt: skip
# What a checkpoint must have for an argument; old ones lack it.
_REQUIRED = {
    "is_multilingual": "is_multilingual",
    "language": "lang_to_id",
    "task": "task_to_id",
}


class WhisperCall(Call):
    """A call for windows; `begin` has the prompts of first ones."""

    settings_class = WhisperGenerationConfig
    keywords = ("assistant_model", "decoder_input_ids", "encoder_outputs", "inputs")

    config: WhisperGenerationConfig
    assistant: SlotModel | None = None

    def prepare(self, *, is_short: bool, input_stride: int, window_frames: int) -> None:
        """Validate all for windows of this many frames; whether all recordings fit in one."""
        config, model_config = self.config, self.model.config
        self._set_outputs()
        self.has_timestamps = self._whether_timestamps(is_short=is_short)
        self._store()
        no_times = config.no_timestamps_token_id
        self.temperatures = temperatures_of(self["temperature"])
        """Tried in order; None and 0 select greedy or beam search."""
        drafted = self["assistant_model"] is not None
        # The reference leaves the first token unrestricted with a draft model.
        first = () if drafted else config.begin_suppress_tokens
        self.set_rules(
            temperatures=self.temperatures,
            suppress_first=allowed_tokens(first, model_config.vocab_size),
            timestamp_begin=(no_times or 0) + 1 if self.has_timestamps else None,
            no_timestamps=no_times,
            max_initial_timestamp=config.max_initial_timestamp_index,
        )
        self.clock = Clock(
            # Without timestamps in the vocabulary, no token is one.
            timestamp_begin=self.vocab_size + 1 if no_times is None else no_times + 1,
            input_stride=input_stride,
            time_precision=self["time_precision"],
            time_precision_features=self["time_precision_features"],
        )
        prompt = self["prompt_ids"]
        self.prompt: tuple[int, ...] | None = None
        """The caller's text before that of the first window."""
        if prompt is not None:
            self.prompt = tuple(tensor_of("prompt_ids", prompt, "tokens").tolist())
        self.repeats_prompt = self._whether_prompt_repeats()
        """Whether it precedes the text of every window."""
        self.begin = self["decoder_input_ids"]
        # <|nospeech|> has the ID before <|notimestamps|> in every published vocabulary.
        self.no_speech_token = (
            None if config.no_speech_threshold is None or no_times is None else no_times - 1
        )
        self.window_frames = window_frames
        self.is_single = bool(config.force_unique_generate_call)
        """Whether only one window is decoded."""

    def _set_outputs(self) -> None:
        self.returns_names = bool(self.setting("return_dict_in_generate"))
        """Whether named results are returned."""
        # Windows with thresholds or times return more than tokens, as in the reference.
        needs_scores = self["return_token_timestamps"] or self["logprob_threshold"] is not None
        self.config.return_dict_in_generate = self.returns_names or bool(needs_scores)

    def _whether_timestamps(self, *, is_short: bool) -> bool:
        wanted = self.setting("return_timestamps")
        # The next window's start is derived from the timestamps of the last one.
        refuse_if(
            wanted is False and not is_short,
            "found more than 3,000 frames with return_timestamps False, expected True; set "
            "return_timestamps=True or cut the features",
        )
        wanted = bool(wanted) or not is_short
        refuse_if(
            wanted and self.config.no_timestamps_token_id is None,
            "found no no_timestamps_token_id for timestamps, expected one in the generation "
            "settings; set it to <|notimestamps|>",
        )
        return wanted

    def _store(self) -> None:
        """Store the call's values in the settings, if given, and reject contradictory ones."""
        config = self.config
        is_english = self.setting("is_multilingual") is False
        refuse_if(
            is_english and not (self["task"] is None and self["language"] is None),
            "found task or language for an English-only model, expected neither; remove them, or "
            "pass is_multilingual=True",
        )
        for name, setting in _REQUIRED.items():
            refuse_if(
                self[name] is not None and getattr(config, setting) is None,
                f"found {name} without {setting} in the generation settings, expected both; set it "
                "on model.generation_config",
            )
        for name in _STORED:
            if self[name] is not None:
                setattr(config, name, self[name])
        refuse_if(
            config.no_speech_threshold is not None and config.logprob_threshold is None,
            f"no_speech_threshold is {config.no_speech_threshold} but logprob_threshold is None, "
            "expected both; set both",
        )
        if self["return_token_timestamps"]:
            self._check_token_timestamps()

    def _check_token_timestamps(self) -> None:
        refuse_if(
            self.config.alignment_heads is None,
            "found return_token_timestamps without alignment_heads, expected both; set the (layer, "
            "head) pairs in the generation settings",
        )
        if self.config.task == "translate":
            logger.warning(
                "times of tokens may be wrong where text is translated: task is translate"
            )
        if self["attention_mask"] is None:
            logger.warning(
                "times of tokens are more precise with an attention_mask; call the feature "
                "extractor with return_attention_mask=True"
            )

    def _whether_prompt_repeats(self) -> bool:
        kind = self["prompt_condition_type"] or _CONDITION_TYPES[0]
        refuse_if(
            kind not in _CONDITION_TYPES,
            f"prompt_condition_type is {kind!r}, expected one of {', '.join(_CONDITION_TYPES)}",
        )
        repeats = kind == "all-segments"
        refuse_if(
            repeats and self.config.condition_on_prev_tokens is not True,
            "prompt_condition_type is 'all-segments', which takes condition_on_prev_tokens=True; "
            "set that too",
        )
        return bool(repeats)


def temperatures_of(temperature: Any) -> tuple[float | None, ...]:
    """Return the temperatures in order; (None,) if not given."""
    several = isinstance(temperature, Sequence) and not isinstance(temperature, str)
    temperatures = tuple(temperature) if several else (temperature,)
    refuse_if(not temperatures, "temperature is an empty list, expected a number or several")
    for value in temperatures:
        is_number = isinstance(value, int | float)
        # NaN is rejected too.
        refuse_if(
            value is not None and not (is_number and value >= 0),
            f"found the temperature {value!r}, expected a number of at least 0, or several; "
            "correct it",
            error=ValueError if is_number else TypeError,
        )
    return temperatures
