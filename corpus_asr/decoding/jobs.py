"""Jobs for the decoder's slots, their results, and the tasks that yield and receive them.

A task is a generator. It yields one job at a time, or a `Gather` of other tasks; an `ItemError` is
raised in it.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.device import Encodings
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.decoding.protocols import SlotModel, check_assistant
from corpus_asr.errors import ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Constraints on a window's tokens, by IDs and positions.

    Sampling positions are counted from the first token after the prompt.
    """

    end: int
    """The token that ends a sequence; under the grammar, the first non-text token."""
    is_endless: bool = False
    """Whether `end` is an ordinary token: only the length limit ends a sequence."""
    suppress: tuple[int, ...] = ()
    """Tokens never sampled."""
    suppress_first: tuple[int, ...] = ()
    """Tokens not sampled at the first position."""
    only: tuple[int, ...] = ()
    """If not empty, the only tokens allowed (language detection)."""
    timestamp_begin: int | None = None
    """First timestamp token; None disables the timestamp grammar."""
    no_timestamps: int | None = None
    """The token that requests text without timestamps; never sampled under the grammar."""
    max_initial_timestamp: int | None = None
    """Largest first timestamp, in steps after `timestamp_begin`."""
    resumes: bool = False
    """Whether the prompt ends with an unfinished text, so that `end` may not come first."""

    @property
    def last(self) -> int:
        """The token that ends a sequence; -1 if there is none."""
        return -1 if self.is_endless else self.end


LogitsProcessor = Callable[[Int[Tensor, "1 token"], Float[Tensor, "1 vocab"]], Tensor]
"""Changes the scores of the next token, given prompt and text so far; as in `transformers`."""

StoppingCriterion = Callable[..., Any]
"""Returns, given prompt and text so far and None, whether to stop; as in `transformers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Search settings of one window; the default is greedy."""

    temperature: float = 0.0
    """Tokens are sampled if above 0."""
    top_k: int | None = None
    """Sample from this many most likely tokens."""
    top_p: float | None = None
    """Sample from the most likely tokens with this total probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative scores of tokens that occurred, prompt included."""
    no_repeat_ngram_size: int = 0
    """Size of n-grams that may not repeat, prompt included; 0 for no such rule."""
    phrases: PhraseTrie | None = None
    """Preferred phrases; their bonus does not count in log-probabilities."""
    stop_loops: bool = False
    """End a window early in a repetition loop; sets `WindowResult.looped`."""
    stops_at_repeat: bool = False
    """With `stop_loops`, a phrase said twice is a loop; not with beams."""
    num_beams: int = 1
    """Number of parallel beams at temperature 0."""
    length_penalty: float = 1.0
    """Finished beams are ranked by the sum of log-probabilities over length to this power."""
    early_stopping: bool | Literal["never"] = False
    """As in `transformers`: stop at `num_beams` finished beams, or when none can improve."""
    assistant: SlotModel | None = None
    """A smaller model that drafts tokens for the large one to check; the text is the same."""
    num_draft_tokens: int = 5
    """Tokens the assistant drafts before each check."""
    early_processors: tuple[LogitsProcessor, ...] = ()
    """Applied in order after the two rules against repetition, before the `TokenRules`."""
    processors: tuple[LogitsProcessor, ...] = ()
    """Applied in order after every other rule."""
    stopping: tuple[StoppingCriterion, ...] = ()
    """Criteria of which any ends the window."""
    keep_scores: bool = False
    """Keep the scores of every step in the result: (token, vocab) in float32."""

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "a number of 0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or None"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 or more"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("num_draft_tokens", self.num_draft_tokens >= 1, "at least 1"),
            ("early_stopping", self.early_stopping in (True, False, "never"), "a bool or 'never'"),
        ):
            if not holds:
                raise ValueError(
                    f"setting up a search: found {name} {getattr(self, name)!r}, expected "
                    f"{expected}; correct it"
                )
        if self.num_beams > 1 and self.assistant is not None:
            raise ValueError(
                f"setting up a search: {self.num_beams} beams with an assistant, expected 1; set "
                "num_beams to 1, or omit the assistant"
            )
        if self.num_beams > 1 and (self.temperature > 0 or self.keep_scores):
            raise ValueError(
                f"setting up a search: {self.num_beams} beams with sampling or kept scores, "
                "expected 1; set num_beams to 1, or temperature to 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _WindowInput:
    features: Float[np.ndarray, "mel frame"]
    """A whole window, padded; any float type."""
    window: tuple[int, ...]
    """Key of the window among its task's jobs; successive equal keys share an encoding."""
    num_frames: int | None = None
    """Number of encoded frames, a multiple of `SlotModel.frame_step`; None for all."""
    encoded: Float[Tensor, "pos width"] | None = None
    """The encoder output, if the caller has it; `features` are then read only by an assistant with
    an encoder of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowJob(_WindowInput):
    """One window to decode."""

    prompt: tuple[int, ...]
    rules: TokenRules
    max_new_tokens: int
    search: Search = Search()
    seed: int = 0
    """Seed of the sampling noise; must be derived from recording, window and temperature."""
    score_token: int | None = None
    """A token (no-speech) whose raw probability after `score_position` is returned."""
    score_position: int = 0
    num_prefix: int = 0
    """Number of last prompt tokens that count as the text's first; results exclude them."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """The prompt's last `num_prefix` tokens."""
        return self.prompt[len(self.prompt) - self.num_prefix :]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTiming:
    """Selection of an alignment's tokens whose start positions are computed."""

    first: int
    """Index of the first selected token among the job's tokens."""
    count: int
    positions: int
    """Encoder positions with audio: attention to later ones is excluded."""
    filter_width: int
    """Width of the median filter over attention in positions; odd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignJob(_WindowInput):
    """Align the tokens of a window in time by cross-attention."""

    tokens: tuple[int, ...]
    """Prompt and text."""
    heads: tuple[tuple[int, int], ...]
    """(decoder layer, head) pairs."""
    choices: int | None = None
    """Log-probabilities are over the IDs below this (text); None for the whole vocabulary."""
    timing: TokenTiming | None = None
    """Requests start positions of tokens in place of weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResult:
    """Result of a `WindowJob`."""

    tokens: tuple[int, ...]
    """New tokens, without end token."""
    logprobs: tuple[float, ...]
    """Log-probability of each new token under the rules, before temperature.

    With `top_k` or `top_p`, it is normalized over the tokens they keep."""
    end_logprob: float | None
    """Log-probability of the end token; None if the length limit came first."""
    score: float | None
    """Probability of `score_token`, if requested."""
    looped: bool = False
    """Whether a repetition loop ended it."""
    scores: Float[Tensor, "token vocab"] | None = None
    """Scores that each token was chosen from, end token included, if `keep_scores` is set.

    After the rules and, if sampled, divided by the temperature and masked by `top_k` and `top_p`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignResult:
    """Result of an `AlignJob`."""

    logprobs: tuple[float, ...]
    """Log-probability of each token but the first, given those before it, over the raw logits of
    the job's `choices`; minus infinity for a token outside of them."""
    weights: Float[np.ndarray, "head token pos"] | None = None
    """Cross-attention weights in float32; None if the job has a `timing`."""
    begins: tuple[int, ...] = ()
    """Start position of each token of the job's `timing`."""


Job = WindowJob | AlignJob
Result = WindowResult | AlignResult
Outcome = Result | ItemError
"""Result of a job; windows decoded in parallel fail independently."""


def check_job(job: Job, model: SlotModel) -> None:
    """Raise ValueError for a job that the model does not support."""
    if job.encoded is not None and tuple(job.encoded.shape) != model.window_shape:
        raise ValueError(
            f"decoding an encoded window: found shape {tuple(job.encoded.shape)}, expected "
            f"{model.window_shape} (positions, width); encode it with this model"
        )
    frames, whole, step = job.num_frames, job.features.shape[1], model.frame_step
    if frames is not None and (not 0 < frames <= whole or frames % step):
        raise ValueError(
            f"encoding {frames} frames of a window: expected a multiple of "
            f"{step}, at most {whole}; correct num_frames"
        )
    if isinstance(job, WindowJob):
        _check_window(job, model)
    else:
        _check_align(job, model)


def no_numbers(logprobs: Sequence[float], model: SlotModel) -> ItemError | None:
    """Return the error of a window with NaN model output; None if there is none."""
    # Minus infinity is valid: it is the log-probability of masked tokens.
    if not any(math.isnan(logprob) for logprob in logprobs):
        return None
    return ItemError(
        f"decoding a window in {model.dtype}: found model output that is not a number, expected "
        "log-probabilities; set model.compute_type to bfloat16 or float32",
        kind=NOT_A_NUMBER,
    )


def _check_window(job: WindowJob, model: SlotModel) -> None:
    length, room = len(job.prompt), model.max_target_positions
    if length < 1 or length >= room or job.max_new_tokens < 1:
        raise ValueError(
            f"decoding {job.max_new_tokens} new tokens after a prompt of {length}: the decoder "
            f"holds {room}, expected at least one of each; shorten the prompt"
        )
    if job.score_token is not None and not 0 <= job.score_position < length:
        raise ValueError(
            f"scoring token {job.score_token} after position {job.score_position}: the prompt has "
            f"positions 0 to {length - 1}; correct score_position"
        )
    if not 0 <= job.num_prefix <= length:
        raise ValueError(
            f"decoding after a prefix of {job.num_prefix} tokens: the prompt has {length}, "
            "expected at most these; correct num_prefix"
        )
    _check_ids(job.prompt, model, what="prompt")
    if job.search.assistant is not None:
        check_assistant(model, job.search.assistant)
    # The first step takes twice `num_beams` candidates, all from one beam.
    if job.search.num_beams > model.vocab_size // 2:
        raise ValueError(
            f"searching with {job.search.num_beams} beams: a vocabulary of {model.vocab_size} "
            f"gives at most {model.vocab_size // 2} continuations; correct num_beams"
        )


def _check_align(job: AlignJob, model: SlotModel) -> None:
    if not 1 <= len(job.tokens) <= model.max_target_positions:
        raise ValueError(
            f"aligning {len(job.tokens)} tokens: expected 1 to {model.max_target_positions} for "
            "the decoder; align fewer at once"
        )
    if not job.heads:
        raise ValueError(
            "aligning tokens by no attention heads: expected (layer, head) pairs; name some"
        )
    timing = job.timing
    if timing is not None and not (
        0 <= timing.first < timing.first + timing.count <= len(job.tokens) and timing.positions >= 1
    ):
        raise ValueError(
            f"timing {timing.count} of {len(job.tokens)} tokens from number {timing.first} on, in "
            f"{timing.positions} positions: expected one or more of each; correct the timing"
        )
    _check_ids(job.tokens, model, what="text to align")


def _check_ids(tokens: Sequence[int], model: SlotModel, *, what: str) -> None:
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= model.vocab_size:
        raise ValueError(
            f"reading a {what}: found token {low if low < 0 else high}, expected 0 to "
            f"{model.vocab_size - 1}; use the tokenizer of this checkpoint"
        )


Steps = Generator["Job | Gather[Any]", Any, T]
"""Yields jobs, receives the result of each, and finally returns a value."""
Task = Steps[Any]
Done = Callable[[Any, Exception | None], None]


@dataclass(frozen=True, slots=True)
class Gather(Generic[T]):
    """Tasks to run in parallel; the yielding task receives their return values in order.

    The first task continues in the slot of the yielding one, so that a window of both is encoded
    once. The first error of a task ends the yielding task with it.
    """

    tasks: Iterable[Steps[T]]


@dataclass(slots=True)
class Running:
    """A task, the job it waits for, and its completion callback."""

    task: Task
    ended: "Ended"
    """Called with the task's return value or exception; returns the tasks to run next."""
    job: Job
    filled: bool = False
    """Whether its place already has the job's window."""
    encoded: tuple[Encodings, int] | None = None
    """Encoding of the job's window, if encoded ahead of time or for a following search."""
    owner: object = None
    """Owner passed to `add`, also for gathered tasks."""
    cancelled: Exception | None = None
    """Exception that ends the task in place of its job's result."""

    @property
    def is_encoded(self) -> bool:
        """Whether the job needs no encoder."""
        return self.encoded is not None or self.job.encoded is not None

    @property
    def waits_for_encoder(self) -> bool:
        """Whether the job's window is still being encoded by a thread."""
        return self.encoded is not None and not self.encoded[0].is_there

    def resume(self, result: Outcome, model: SlotModel) -> "list[Running]":
        """Send a result; return the tasks to run next, the first of which may take its place."""
        if self.cancelled is not None:
            self.task.close()
            return self.ended(None, self.cancelled)
        following = start(self.task, self.ended, model, result, self.owner)
        if following and _window_of(following[0]) == _window_of(self):
            following[0].filled, following[0].encoded = self.filled, self.encoded
        return following

    def fail(self, error: Exception) -> None:
        """End the task with `error`."""
        self.task.close()
        self.ended(None, error)


Ended = Callable[[Any, Exception | None], list[Running]]


def _window_of(running: Running) -> tuple[object, ...]:
    return running.job.window, running.job.num_frames


def start(
    task: Task, ended: Ended, model: SlotModel, answer: Any = None, owner: object = None
) -> list[Running]:
    """Send a value to a task; return the tasks to run next."""
    try:
        request = task.throw(answer) if isinstance(answer, ItemError) else task.send(answer)
        if isinstance(request, Gather):
            tasks = list(request.tasks)
        else:
            check_job(request, model)
    except StopIteration as stop:
        return ended(stop.value, None)
    except Exception as error:  # a task's failure is handled by its owner
        task.close()
        return ended(None, error)
    if isinstance(request, Gather):
        return _gather(task, ended, model, tasks, owner)
    return [Running(task, ended, request, owner=owner)]


def _gather(
    task: Task, ended: Ended, model: SlotModel, gathered: Sequence[Task], owner: object
) -> list[Running]:
    if not gathered:
        return start(task, ended, model, [], owner)
    results: list[Any] = [None] * len(gathered)
    waiting = set(range(len(gathered)))  # emptied by the first error

    def collect(index: int, result: Any, error: Exception | None) -> list[Running]:
        if not waiting:
            return []
        if error is not None:
            waiting.clear()
            task.close()
            return ended(None, error)
        results[index] = result
        waiting.remove(index)
        return [] if waiting else start(task, ended, model, results, owner)

    running: list[Running] = []
    for index, subtask in enumerate(gathered):
        if waiting:
            running += start(subtask, partial(collect, index), model, None, owner)
        else:
            subtask.close()
    return running
