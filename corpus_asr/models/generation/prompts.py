"""What a window's text begins with: language, task, and text from before.

In: settings and the segments so far. Out: token ids. Which tokens ask for what is transformers'
rule, to the letter; it differs from openai-whisper's where old files force tokens, and where
nothing is said of the task.
"""

from collections.abc import Sequence
from typing import Any

from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.languages import resolve_language

TASKS = ("translate", "transcribe")

DETECT = -1
"""Stands in a start for the language, where it is to be heard from the sound."""


def starts(
    config: GenerationConfig, model_config: Any, *, batch_size: int, timestamps: bool
) -> list[tuple[int, ...]]:
    """Return the tokens each row's text starts with; `DETECT` stands for its language.

    Raises:
        ValueError: an unknown language or task, not one language for each row, or forced tokens
            with gaps.
        TypeError: a language is no text.
    """
    if config.decoder_start_token_id is None:
        raise ValueError(
            "generating text: the generation settings have no decoder_start_token_id; set it to "
            "the token <|startoftranscript|>"
        )
    begin: list[int | None] = [config.decoder_start_token_id]
    language, task = config.language, config.task
    if task is None and language is None:
        begin += _forced(config, model_config)
    unknown = len(begin) <= 1 or begin[1] is None
    languages = _languages(language, batch_size)
    if languages is not None:
        spoken: list[int | None] = [_language_id(one, config) for one in languages]
    elif config.lang_to_id is not None and unknown:
        spoken = [DETECT] * batch_size
    else:
        spoken = [None] * batch_size
    return [_start(begin, token, config, timestamps) for token in spoken]


def _start(
    begin: list[int | None], language: int | None, config: GenerationConfig, timestamps: bool
) -> tuple[int, ...]:
    tokens = list(begin)
    if language is not None:
        tokens[1:2] = [language]
    if config.task is not None:
        tokens.append(_task_id(config.task, config))
    elif config.language is not None and config.task_to_id is not None:
        tokens.append(config.task_to_id["transcribe"])
    without_times = config.no_timestamps_token_id
    if without_times is not None:
        if timestamps and tokens[-1] == without_times:
            tokens.pop()
        elif not timestamps and tokens[-1] != without_times:
            tokens.append(without_times)
    return tuple(token for token in tokens if token is not None)


def _forced(config: GenerationConfig, model_config: Any) -> list[int | None]:
    """The tokens an old file forces after the first, without gaps from position 1 on."""
    forced = config.forced_decoder_ids
    if forced is None:
        forced = getattr(model_config, "forced_decoder_ids", None)
    if not forced or forced[0][0] != 1:
        return []
    for position, (index, _) in enumerate(forced, start=1):
        if index != position:
            raise ValueError(
                f"generating text: forced_decoder_ids are {list(forced)}, expected one token for "
                f"every position from 1 to {forced[-1][0]}; set language and task instead"
            )
    return [token for _, token in forced]


def _languages(language: Any, batch_size: int) -> Sequence[str] | None:
    if language is None or isinstance(language, str):
        return None if language is None else [language] * batch_size
    languages = list(language) if isinstance(language, Sequence) else [language]
    wrong = next((one for one in languages if not isinstance(one, str)), "")
    if wrong != "":
        raise TypeError(
            f"generating text: `language` is {language!r} with {wrong!r} in it, expected None, one "
            "language or a list of languages, one for each recording"
        )
    if len(languages) != batch_size:
        raise ValueError(
            f"generating text: `language` lists {len(languages)} languages, expected "
            f"{batch_size}, the batch size; pass one for each recording"
        )
    return languages


def _language_id(language: str, config: GenerationConfig) -> int:
    known = config.lang_to_id or {}
    name = language.lower()
    token = name if name in known else f"<|{resolve_language(name)}|>"
    if token not in known:
        raise ValueError(
            f"generating text: {token} is not among the {len(known)} languages of this checkpoint; "
            "choose one of `generation_config.lang_to_id`, or add it there"
        )
    return known[token]


def _task_id(task: str, config: GenerationConfig) -> int:
    if task not in TASKS:
        raise ValueError(
            f"generating text: task is {task!r}, expected one of {', '.join(TASKS)}; correct `task`"
        )
    return (config.task_to_id or {})[task]


def with_previous(
    start: Sequence[int],
    *,
    previous: Sequence[Sequence[int]],
    prompt: Sequence[int] | None,
    repeat_prompt: bool,
    start_of_previous: int | None,
    timestamp_begin: int,
    max_target_positions: int,
) -> tuple[int, ...]:
    """Put the end of the text so far before `start`.

    Args:
        start: the tokens that ask for language and task.
        previous: the segments so far; of their text the latest fits.
        prompt: text from the caller.
        repeat_prompt: whether `prompt` comes before the text so far, which then does not need the
            token that says so.
        start_of_previous: that token; None where the checkpoint has none.
        timestamp_begin: the token of 0.00 s.
        max_target_positions: the decoder's longest sequence; half of it is for previous text.
    """
    text: list[int] = []
    for tokens in previous:
        # Two timestamps at the end of a window only say that it was cut there.
        paired = len(tokens) > 2 and tokens[-2] >= timestamp_begin
        text += tokens[:-1] if paired else tokens
    kept = text[-(max_target_positions // 2 - 1) :]
    if prompt is not None and repeat_prompt:
        return (*prompt, *kept, *start)
    marker = () if start_of_previous is None else (start_of_previous,)
    return (*marker, *kept, *start)
