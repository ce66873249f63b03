"""What one call of `generate` shall do, checked and worked out once for all rows.

In: the arguments of the call. Out: a frozen `Settings`. Combinations that cannot be meant are
refused here, before anything is computed. Knows no audio.
"""

from dataclasses import dataclass
from typing import Any

from corpus_asr.decoding.protocols import SlotModel, TokenRules
from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.models.generation.call import CallSettings, allowed_tokens, end_token
from corpus_asr.models.generation.segments import Clock

_CONDITION_TYPES = ("first-segment", "all-segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(CallSettings):
    """Everything a row needs to know; `begin` holds the prompts of first windows."""

    config: GenerationConfig
    clock: Clock
    temperatures: tuple[float | None, ...]
    """Tried in turn; None and 0 search greedily or with beams."""
    prompt: tuple[int, ...] | None
    """Text from the caller that comes before that of the first window."""
    repeat_prompt: bool
    """Whether it comes before that of every window."""
    condition_first: bool
    """Whether the first window is prompted as the later ones are."""
    no_speech_token: int | None
    median_filter_width: int
    window_frames: int
    once: bool
    """Whether one window is decoded and no more."""
    assistant: SlotModel | None = None


def resolve_timestamps(
    config: GenerationConfig, wanted: bool | None, *, is_short: bool
) -> bool | None:
    """Whether timestamps are predicted: always for recordings longer than a window.

    Raises:
        ValueError: they were refused for a long recording, or the checkpoint has none.
    """
    if wanted is None:
        wanted = config.return_timestamps
    if not is_short:
        if wanted is False:
            raise ValueError(
                "generating text: the features are longer than a window of 30 s, which takes "
                "timestamps, but return_timestamps is False; set return_timestamps=True or cut the "
                "features to 3,000 frames"
            )
        wanted = True
    if wanted and config.no_timestamps_token_id is None:
        raise ValueError(
            "generating text: timestamps were asked for, but the generation settings have no "
            "no_timestamps_token_id; set it to the token <|notimestamps|>"
        )
    return wanted


def check_language_and_task(
    config: GenerationConfig, language: Any, task: str | None, is_multilingual: bool | None
) -> None:
    """Note what was asked for in `config`.

    Raises:
        ValueError: the checkpoint is English-only, or has no languages or tasks.
    """
    if is_multilingual is not None:
        if config.is_multilingual is None:
            raise _outdated("is_multilingual", "is_multilingual")
        config.is_multilingual = is_multilingual
    if config.is_multilingual is False and (task is not None or language is not None):
        raise ValueError(
            "generating text: task or language was given to an English-only model; leave them out, "
            "or pass is_multilingual=True if it is none"
        )
    if language is not None:
        if config.lang_to_id is None:
            raise _outdated("language", "lang_to_id")
        config.language = language
    if task is not None:
        if config.task_to_id is None:
            raise _outdated("task", "task_to_id")
        config.task = task


def note_thresholds(config: GenerationConfig, **given: Any) -> None:
    """Put the thresholds and conditions of the call into `config`, where it gave any.

    Raises:
        ValueError: silence is to be told without the threshold it is told by.
    """
    for name, value in given.items():
        if value is not None:
            setattr(config, name, value)
    if config.no_speech_threshold is not None and config.logprob_threshold is None:
        raise ValueError(
            f"generating text: no_speech_threshold is {config.no_speech_threshold} but "
            "logprob_threshold is None: a window is left out when both say so; set both"
        )


def check_condition_type(config: GenerationConfig, wanted: str | None) -> bool:
    """Whether the caller's prompt is repeated before every window.

    Raises:
        ValueError: an unknown type, or one that needs `condition_on_prev_tokens`.
    """
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
    config: GenerationConfig, *, vocab_size: int, timestamps: bool, drafted: bool
) -> TokenRules:
    """What windows may say.

    Args:
        config: names the tokens; those the model does not have need no rule.
        vocab_size: tokens of the model.
        timestamps: whether the timestamp grammar holds.
        drafted: whether a smaller model drafts; then text may end at once.
    """
    return TokenRules(
        end=end_token(config),
        suppress=allowed_tokens(config.suppress_tokens, vocab_size),
        suppress_first=(
            () if drafted else allowed_tokens(config.begin_suppress_tokens, vocab_size)
        ),
        timestamp_begin=(config.no_timestamps_token_id or 0) + 1 if timestamps else None,
        no_timestamps=config.no_timestamps_token_id,
        max_initial_timestamp=config.max_initial_timestamp_index,
    )


def _outdated(argument: str, setting: str) -> ValueError:
    return ValueError(
        f"generating text: {argument} was given, but the generation settings have no {setting}; "
        "load a generation_config.json that has it, or set it on model.generation_config"
    )
