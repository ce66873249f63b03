"""One recording, window after window: the loop of transformers' `generate` as a task of search.

In: a row of the batch and the settings. Out: its segments and every window that was decoded for
them. A generator that asks the scheduler for one window at a time, so that the rows of a batch, and
the windows of rows that are further on, are decoded side by side. Knows no tensors of a batch.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import torch

from corpus_asr.decoding.protocols import Job, Result, Search, TokenRules, WindowJob, WindowResult
from corpus_asr.models.generation.call import search_of
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.processors import early_processors, late_processors
from corpus_asr.models.generation.prompts import DETECT, with_previous
from corpus_asr.models.generation.quality import judge
from corpus_asr.models.generation.segments import Piece, cut
from corpus_asr.models.generation.settings import Settings
from corpus_asr.models.generation.stopping import Stream, stopping_for

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

    piece: Piece
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
