"""One recording, window after window: the loop of transformers' `generate` as a task of search.

Thresholds, segments and prompts are transformers' to the letter. They differ from openai-whisper's:
token ids are compressed where that compresses text, and averages count the tokens said alone.
"""

import math
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.decoding.protocols import Job, Result, Search, TokenRules, WindowJob, WindowResult
from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.languages import resolve_language
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.processors import (
    Stream,
    early_processors,
    late_processors,
    stopping_for,
)
from corpus_asr.models.generation.settings import Clock, Settings, search_of

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a window's text."""

    try_again: bool
    """It is likely wrong: decode the window again at the next temperature."""
    skip: bool
    """There is no speech: keep nothing and go on to the next window."""


def judge(said: tuple[int, ...], result: WindowResult, settings: Settings) -> Verdict:
    """Compare a window with the thresholds; None switches one off.

    Args:
        said: the window's tokens, its end token included.
        result: as search returned it.
        settings: hold the thresholds.
    """
    config = settings.config
    again = False
    if config.compression_ratio_threshold is not None:
        ratio = compression_ratio(said, vocab_size=settings.vocab_size)
        again = ratio > config.compression_ratio_threshold
    if config.logprob_threshold is None:
        return Verdict(again, skip=False)
    unlikely = average_logprob(said, result) < config.logprob_threshold
    silent = (
        config.no_speech_threshold is not None
        and result.score is not None
        and result.score > config.no_speech_threshold
    )
    if unlikely and silent:
        return Verdict(try_again=False, skip=True)
    return Verdict(again or unlikely, skip=False)


def compression_ratio(tokens: tuple[int, ...], *, vocab_size: int) -> float:
    """Bytes of the token ids over bytes of the same compressed; high when a text repeats itself."""
    width = int(math.log2(vocab_size) / 8) + 1
    raw = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(raw) / len(zlib.compress(raw))


def average_logprob(said: tuple[int, ...], result: WindowResult) -> float:
    """Mean log-probability of what was said."""
    total = sum(result.logprobs) + (result.end_logprob or 0.0)
    return total / len(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A segment of one window."""

    start: Float[Tensor, ""]
    """Seconds from the start of the recording, in float64."""
    end: Float[Tensor, ""]
    first: int
    """Its first token among the window's."""
    last: int
    """One past its last token."""


def cut(
    tokens: tuple[int, ...], *, seek: int, frames: int, clock: Clock
) -> tuple[list[TokenSpan], int]:
    """Return the segments and the number of frames to move on.

    Where two timestamps follow each other a segment ends and the next begins. What comes after the
    last such pair is thrown away and decoded again from there, unless a single timestamp ends the
    window: then nobody spoke after it. Without a pair the whole window is one segment. A pair at
    0.00 s moves on by the whole window, which the reference would decode again for ever.

    Args:
        tokens: what was said, without prompt and end token.
        seek: the window's first frame.
        frames: frames of sound in the window.
        clock: the units.
    """
    begin = clock.timestamp_begin
    offset = torch.tensor(seek).to(torch.float64) * clock.time_precision / clock.input_stride
    is_time = [token >= begin for token in tokens]
    single_ending = is_time[-2:] == [False, True]
    ends = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    if not ends:
        end = offset + _last_step(tokens, frames, clock) * clock.time_precision
        return [TokenSpan(start=offset, end=end, first=0, last=len(tokens))], frames

    if single_ending:
        ends.append(len(tokens))
    else:
        ends[-1] += 1  # the pair's second timestamp tells later readers that it was a pair
    pieces = []
    first = 0
    for last in ends:
        closing = last - 2 if last == ends[-1] and not single_ending else last - 1
        times = [
            offset + torch.tensor(token - begin).to(torch.float64) * clock.time_precision
            for token in (tokens[first], tokens[closing])
        ]
        pieces.append(TokenSpan(start=times[0], end=times[1], first=first, last=last))
        first = last
    heard = (tokens[first - 2] - begin) * clock.input_stride
    return pieces, frames if single_ending or heard == 0 else heard


def _last_step(tokens: tuple[int, ...], frames: int, clock: Clock) -> int | Tensor:
    """The step at which a window without a pair of timestamps ends."""
    times = [token for token in tokens if token >= clock.timestamp_begin]
    if times and times[-1] != clock.timestamp_begin:
        return torch.tensor(times[-1] - clock.timestamp_begin).to(torch.float64)
    # A whole number times a fraction is a float32 there, which decides what it is rounded to.
    return int(torch.tensor(frames) * clock.time_precision_features / clock.time_precision)


# The text of a window decoded at such a temperature or warmer is too doubtful to prompt the next.
_TOO_WARM_TO_CONDITION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A window decoded once."""

    round: int
    """Which window of its row it is."""
    attempt: int
    """How many temperatures were tried before."""
    seek: int
    """The window's first frame."""
    frames: int
    """Frames of sound in it."""
    prompt: tuple[int, ...]
    said: tuple[int, ...]
    """New tokens, the end token included where it was said."""
    result: WindowResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSegment:
    """A segment, and the window it is of."""

    piece: TokenSpan
    tokens: tuple[int, ...]
    attempt: Attempt


@dataclass(slots=True)
class RowResult:
    """All that came of a row."""

    row: Row
    segments: list[RowSegment] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    """Every window decoded, those thrown away included."""
    kept: list[Attempt] = field(default_factory=list)
    """The last attempt at each window, one of each round."""


@dataclass(slots=True)
class _Course:
    """What one window hands on to the next."""

    start: tuple[int, ...]
    previous: list[tuple[int, ...]]
    condition: bool
    num_beams: int
    max_length: int | None
    round: int = 0


def hear_language(row: Row, settings: Settings) -> Generator[Job, Result, int]:
    """Find the likeliest language token after the start token."""
    config = settings.config
    assert config.decoder_start_token_id is not None
    assert config.lang_to_id is not None
    count = min(_total(row, settings), settings.window_frames)
    among = tuple(sorted(set(config.lang_to_id.values())))
    result = yield WindowJob(
        features=row.window(0, count, settings.window_frames),
        window=(0, count),
        prompt=(config.decoder_start_token_id,),
        rules=TokenRules(end=settings.end, only=among),
        max_new_tokens=1,
        encoded=row.encoded,
    )
    assert isinstance(result, WindowResult)
    # Among the languages the end token may be one by mistake of the settings.
    return result.tokens[0] if result.tokens else settings.end


def transcribe(
    row: Row, start: tuple[int, ...], settings: Settings, report: Callable[[Row, int], None]
) -> Generator[Job, Result, RowResult]:
    """Decode a row to its end.

    Args:
        row: the sound.
        start: tokens its text starts with; `DETECT` stands for its language.
        settings: how.
        report: told the frame that is about to be decoded.

    Raises:
        ValueError: prompt and text together are longer than the decoder holds.
    """
    if DETECT in start:
        language = yield from hear_language(row, settings)
        start = tuple(language if token == DETECT else token for token in start)
    found = RowResult(row)
    course = _first_course(start, settings)
    seek = 0
    while seek < row.frames:
        report(row, seek)
        frames = min(row.frames - seek, settings.window_frames)
        attempt, skip = yield from _decode(row, seek, frames, course, settings, found.attempts)
        found.kept.append(attempt)
        course.round += 1
        if skip:
            seek += frames
        else:
            moved = _add_segments(attempt, course, found, settings)
            seek += moved
        if settings.once:
            break
    return found


def _total(row: Row, settings: Settings) -> int:
    return settings.window_frames if row.features is None else row.features.shape[1]


def _first_course(start: tuple[int, ...], settings: Settings) -> _Course:
    previous: list[tuple[int, ...]] = []
    if settings.prompt is not None and not settings.repeat_prompt:
        prompt = settings.prompt
        marked = bool(prompt) and prompt[0] == settings.config.prev_sot_token_id
        previous.append(prompt[1:] if marked else prompt)
    return _Course(
        start=start,
        previous=previous,
        condition=settings.condition_first,
        num_beams=settings.config.num_beams or 1,
        max_length=settings.config.max_length,
    )


def _add_segments(attempt: Attempt, course: _Course, found: RowResult, settings: Settings) -> int:
    """Cut the window's text into segments; returns the frames to move on."""
    tokens = _without_end(attempt.said, settings.end)
    pieces, moved = cut(tokens, seek=attempt.seek, frames=attempt.frames, clock=settings.clock)
    for piece in pieces:
        said = tokens[piece.first : piece.last]
        found.segments.append(RowSegment(piece=piece, tokens=said, attempt=attempt))
        course.previous.append(said)
    return moved


def _without_end(said: tuple[int, ...], end: int) -> tuple[int, ...]:
    return said[:-1] if said and said[-1] == end else said


def _decode(
    row: Row,
    seek: int,
    frames: int,
    course: _Course,
    settings: Settings,
    attempts: list[Attempt],
) -> Generator[Job, Result, tuple[Attempt, bool]]:
    """Decode a window at one temperature after the other until one is good enough.

    Returns:
        The last attempt, and whether the window holds no speech.
    """
    features = row.window(seek, frames, settings.window_frames)
    prompt = _prompt(row, course, settings)
    limit = _limit(len(prompt), course, settings)
    for number, temperature in enumerate(settings.temperatures):
        warm = temperature is not None and temperature > 0
        if warm:
            course.num_beams = 1
        stopping = stopping_for(settings, len(prompt))
        stream = None
        if settings.streamer is not None:
            stream = Stream(settings.streamer, torch.tensor([prompt]))
            stopping = (*stopping, stream)
        search = search_of(
            settings,
            temperature=temperature if warm else None,
            num_beams=course.num_beams,
            assistant=settings.assistant if course.num_beams == 1 else None,
            num_draft_tokens=settings.config.num_assistant_tokens or Search().num_draft_tokens,
        )
        seed = 0
        if warm and temperature:
            seed = row.seed(settings.seed, seek, temperature, features)
        result = yield WindowJob(
            features=features,
            window=(seek, frames),
            prompt=prompt,
            rules=settings.rules,
            max_new_tokens=limit,
            search=replace(
                search,
                early_processors=early_processors(settings, row.number, len(prompt), limit),
                processors=late_processors(settings, len(prompt)),
                stopping=stopping,
            ),
            seed=seed,
            score_token=settings.no_speech_token,
            # A caller's own prompt may be shorter: the reference then counts from its end.
            score_position=(len(prompt) - len(course.start)) % len(prompt),
            encoded=row.encoded,
        )
        assert isinstance(result, WindowResult)
        ending = () if result.end_logprob is None else (settings.end,)
        attempt = Attempt(
            round=course.round, attempt=number, seek=seek, frames=frames, prompt=prompt,
            said=(*result.tokens, *ending), result=result,
        )  # fmt: skip
        attempts.append(attempt)
        if stream is not None:
            stream.close(torch.tensor(attempt.said))
        verdict = judge(attempt.said, result, settings)
        course.condition = bool(settings.config.condition_on_prev_tokens) and (
            temperature is None or temperature < _TOO_WARM_TO_CONDITION
        )
        if not verdict.try_again:
            break
    return attempt, verdict.skip


def _prompt(row: Row, course: _Course, settings: Settings) -> tuple[int, ...]:
    if settings.begin is not None and course.round == 0:
        rows = settings.begin
        return tuple(rows[row.index if len(rows) > 1 else 0].tolist())
    if course.condition and course.previous:
        return with_previous(
            course.start,
            previous=course.previous,
            prompt=settings.prompt,
            repeat_prompt=settings.repeat_prompt,
            start_of_previous=_start_of_previous(settings),
            timestamp_begin=settings.clock.timestamp_begin,
            max_target_positions=settings.max_target_positions,
        )
    return (*(settings.prompt or ()), *course.start)


def _start_of_previous(settings: Settings) -> int | None:
    """The token before earlier text; old files name it only in their list of suppressed ones."""
    config = settings.config
    if config.prev_sot_token_id is None and len(config.suppress_tokens or ()) >= 2:
        assert config.suppress_tokens is not None
        return config.suppress_tokens[-2]
    return config.prev_sot_token_id


def _limit(length: int, course: _Course, settings: Settings) -> int:
    """How many new tokens a window may have after a prompt of `length`.

    Raises:
        ValueError: none, or more than the decoder holds.
    """
    room = settings.max_target_positions
    wanted = settings.config.max_new_tokens
    if (wanted or 0) + length > room:
        raise ValueError(
            f"generating text: the prompt, with the text before the window, has {length} tokens "
            f"and max_new_tokens is {wanted or 0}, together {(wanted or 0) + length}, expected at "
            f"most max_target_positions, which is {room}; shorten prompt_ids or lower "
            "max_new_tokens"
        )
    if wanted is not None:
        return wanted
    assert course.max_length is not None
    # The reference raises the limit window by window, by what each is prompted with.
    course.max_length = min(course.max_length + min(room // 2 - 1, length), room)
    if course.max_length <= length:
        raise ValueError(
            f"generating text: the prompt has {length} tokens, but max_length is "
            f"{course.max_length}; raise max_length or, better, set max_new_tokens"
        )
    return course.max_length - length
