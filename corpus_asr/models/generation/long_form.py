"""Long-form decoding of one recording by transformers' rules, window by window."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from corpus_asr.array_types import Float
from corpus_asr.decoding.jobs import Search, Steps, TokenRules, WindowJob, WindowResult
from corpus_asr.families.whisper.config import GenerationConfig
from corpus_asr.families.whisper.tokenizer import TASKS
from corpus_asr.languages import resolve_language
from corpus_asr.models.generation.call import WhisperCall, end_rules, refuse_if
from corpus_asr.models.generation.inputs import Row
from corpus_asr.transcription.fallback import Attempt
from corpus_asr.transcription.long_form import LongFormRules, TokenSpan
from corpus_asr.transcription.windows import Language, Window

DETECT = -1
"""Placeholder for a language token to be detected."""


def starts(
    config: GenerationConfig, model_config: Any, batch_size: int, *, timestamps: bool
) -> list[tuple[int, ...]]:
    """Return the start tokens of each row's text; `DETECT` is the placeholder of its language."""
    refuse_if(
        config.decoder_start_token_id is None,
        "the generation settings have no decoder_start_token_id; set it to the token "
        "<|startoftranscript|>",
    )
    begin: list[int | None] = [config.decoder_start_token_id]
    language, task = config.language, config.task
    if task is None and language is None:
        begin += _forced(config, model_config)
    unknown = len(begin) <= 1 or begin[1] is None
    languages = _languages(language, batch_size)
    if languages is not None:
        spoken: list[int | None] = [_language_id(name, config) for name in languages]
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
    # Early versions of transformers wrote language and task to files in this form.
    forced = config.forced_decoder_ids
    if forced is None:
        forced = getattr(model_config, "forced_decoder_ids", None)
    if not forced or forced[0][0] != 1:
        return []
    for position, (index, _) in enumerate(forced, start=1):
        refuse_if(
            index != position,
            f"forced_decoder_ids are {list(forced)}, expected one token for every position from 1 "
            f"to {forced[-1][0]}; set language and task instead",
        )
    return [token for _, token in forced]


def _languages(language: Any, batch_size: int) -> Sequence[str] | None:
    if language is None or isinstance(language, str):
        return None if language is None else [language] * batch_size
    languages = list(language) if isinstance(language, Sequence) else [language]
    wrong = next((item for item in languages if not isinstance(item, str)), "")
    refuse_if(
        wrong != "",
        f"`language` is {language!r} with {wrong!r} in it, expected None, one language, or a list "
        "of one per recording",
        error=TypeError,
    )
    refuse_if(
        len(languages) != batch_size,
        f"`language` lists {len(languages)} languages, expected {batch_size}, the batch size; pass "
        "one for each recording",
    )
    return languages


def _language_id(language: str, config: GenerationConfig) -> int:
    language_ids = config.lang_to_id or {}
    name = language.lower()
    token = name if name in language_ids else f"<|{resolve_language(name)}|>"
    refuse_if(
        token not in language_ids,
        f"{token} is not among the {len(language_ids)} languages of this checkpoint; choose one of "
        "`generation_config.lang_to_id`, or add it there",
    )
    return language_ids[token]


def _task_id(task: str, config: GenerationConfig) -> int:
    refuse_if(
        task not in TASKS, f"task is {task!r}, expected one of {', '.join(TASKS)}; correct `task`"
    )
    return (config.task_to_id or {})[task]


def detect(row: Row, config: GenerationConfig, *, window_frames: int) -> Steps[int]:
    """Return the most likely language token after the start token."""
    assert config.decoder_start_token_id is not None
    assert config.lang_to_id is not None
    rules = TokenRules(**end_rules(config), only=tuple(sorted(set(config.lang_to_id.values()))))
    # Masked frames of the row are encoded too, as in the reference.
    frames = window_frames
    if row.features is not None:
        frames = min(row.features.shape[1], window_frames)
    result: WindowResult = yield WindowJob(
        features=row.window(0, frames, window_frames),
        window=(0, row.frames if frames == min(row.frames, window_frames) else -1),
        prompt=(config.decoder_start_token_id,),
        rules=rules,
        max_new_tokens=1,
        encoded=row.encoded,
    )
    # Incorrect settings may list the end token among the languages.
    return result.tokens[0] if result.tokens else rules.end


def with_end(result: WindowResult, end: int) -> tuple[int, ...]:
    """Return the new tokens, including the end token if it was chosen."""
    return result.tokens if result.end_logprob is None else (*result.tokens, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSegment:
    """A segment with its window."""

    span: TokenSpan
    """Its token range in the window, and its times from the start of the recording."""
    attempt: Attempt

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of text and timestamps."""
        return self.attempt.result.tokens[self.span.first : self.span.stop]


# Text decoded at this temperature or above is not used as a prompt; a constant of the reference.
_TOO_WARM_TO_CONDITION = 0.5


class TransformersLongForm(LongFormRules[RowSegment]):
    """Exactly transformers' rules for the windows of a row, with all attempts."""

    def __init__(
        self,
        row: Row,
        start: tuple[int, ...],
        call: WhisperCall,
        report: Callable[[Row, int], None],
    ) -> None:
        """Start before the first window; `report` is called with the next frame to decode."""
        config = call.config
        self.row = row
        self.attempts: list[Attempt] = []
        """All attempts at windows, rejected ones included."""
        self.kept: list[Attempt] = []
        """The last attempt at each window."""
        self.segments = []
        self.temperatures = call.temperatures
        self.thresholds = config
        self.token_rules = call.rules
        self.no_speech = call.no_speech_token
        self.encoded = row.encoded
        self.clock = call.clock
        self.window_frames = call.window_frames
        self._start = start
        self._call = call
        self._report = report
        self._num_beams = config.num_beams or 1
        self._max_length = config.max_length
        self._previous: list[tuple[int, ...]] = []
        if call.prompt is not None and not call.repeats_prompt:
            marked = call.prompt[:1] == (config.prev_sot_token_id,)
            self._previous.append(call.prompt[1:] if marked else call.prompt)

    def transcribe(self) -> Steps["TransformersLongForm"]:
        """Decode the row to its end."""
        yield from self.run([(0, self.row.frames)])
        return self

    def next_speech(self, frame: int, end: int) -> int | None:
        """Skip nothing; if a single window is requested, stop after it."""
        if frame >= end or (self._call.is_single and self.kept):
            return None
        self._report(self.row, frame)
        return frame

    def features(self, seek: int, end: int) -> Float[np.ndarray, "mel frame"]:
        """Pad with 0.0; features of a short recording include its padding."""
        width = self.window_frames
        return self.row.window(seek, min(width, end - seek), width)

    def language(
        self,
        name: tuple[int, int],
        features: Float[np.ndarray, "mel frame"],
        num_frames: int | None,
    ) -> Steps[Language]:
        """Detect the row's language in its first window, for all of them."""
        if DETECT in self._start:
            call = self._call
            token = yield from detect(self.row, call.config, window_frames=call.window_frames)
            self._start = tuple(token if item == DETECT else item for item in self._start)
        return Language(code=None, probability=None)

    def prompt(self, language: Language) -> tuple[tuple[int, ...], int]:
        """Return the caller's prompt, the text so far or both, before the start tokens."""
        prompt = self._prompt()
        # A caller's own prompt may be shorter: the reference then counts from its end.
        return prompt, (len(prompt) - len(self._start)) % len(prompt)

    def _prompt(self) -> tuple[int, ...]:
        call, config = self._call, self._call.config
        if call.begin is not None and not self.kept:
            rows = call.begin
            return tuple(rows[self.row.index if len(rows) > 1 else 0].tolist())
        if not (self._previous and self._is_conditioned()):
            return (*(call.prompt or ()), *self._start)
        text: list[int] = []
        for tokens in self._previous:
            # Two timestamps at the end of a window only mean that it was cut there.
            paired = len(tokens) > 2 and self.clock.is_timestamp(tokens[-2])
            text += tokens[:-1] if paired else tokens
        # Half of the positions are reserved for the new text, and one for the marker before this.
        kept = text[-(call.max_target_positions // 2 - 1) :]
        if call.prompt is not None and call.repeats_prompt:
            return (*call.prompt, *kept, *self._start)
        marker = config.prev_sot_token_id
        if marker is None and config.suppress_tokens and len(config.suppress_tokens) >= 2:
            marker = config.suppress_tokens[-2]  # its only position in old files
        return (*(() if marker is None else (marker,)), *kept, *self._start)

    def _is_conditioned(self) -> bool:
        if not self.kept:
            return bool(self._call["condition_on_prev_tokens"])
        last = self.kept[-1].temperature
        return bool(self._call.config.condition_on_prev_tokens) and (
            last is None or last < _TOO_WARM_TO_CONDITION
        )

    def max_new_tokens(self, prompt: Sequence[int]) -> int:
        """Return the call's limit, or the remaining positions of the decoder."""
        length, room = len(prompt), self._call.max_target_positions
        wanted = self._call.config.max_new_tokens
        refuse_if(
            (wanted or 0) + length > room,
            f"found a prompt of {length} tokens and max_new_tokens {wanted or 0}, expected at most "
            f"max_target_positions, {room}, together; shorten prompt_ids or lower max_new_tokens",
        )
        if wanted is not None:
            return wanted
        assert self._max_length is not None
        # The reference raises the limit per window, by the length of its prompt.
        self._max_length = min(self._max_length + min(room // 2 - 1, length), room)
        refuse_if(
            self._max_length <= length,
            f"the prompt has {length} tokens, but max_length is {self._max_length}; raise "
            "max_length, or set max_new_tokens",
        )
        return self._max_length - length

    def search(self, window: Window, temperature: float | None) -> Search:
        """Use beam search until a window is sampled, and never afterwards."""
        call = self._call
        if temperature:
            self._num_beams = 1
        return call.search(
            window.prompt,
            row=self.row.index,
            temperature=temperature or None,
            num_beams=self._num_beams,
            assistant=call.assistant if self._num_beams == 1 else None,
            num_draft_tokens=call.config.num_assistant_tokens or Search().num_draft_tokens,
        )

    def seed(self, window: Window, temperature: float | None) -> int:
        """Derive the seed from a window's features, its position and the temperature."""
        if not temperature:
            return 0
        return self.row.seed(self._call.seed, window.seek, temperature, window.features)

    def mean_logprob(self, result: WindowResult) -> float:
        """Return the mean over the new tokens, the end token included."""
        total = sum(result.logprobs) + (result.end_logprob or 0.0)
        return total / len(with_end(result, self._call.end))

    def compression_ratio(self, result: WindowResult) -> float:
        """Return the ratio of the bytes of token IDs to their compressed bytes."""
        # The same number of bytes per token as in the reference, which affects the ratio.
        width = int(math.log2(self._call.vocab_size) / 8) + 1
        tokens = with_end(result, self._call.end)
        raw = b"".join(token.to_bytes(width, "little") for token in tokens)
        return len(raw) / len(zlib.compress(raw))

    def note(self, attempt: Attempt) -> None:
        """Keep all attempts."""
        self.attempts.append(attempt)
        if attempt.number:  # a later attempt at the same window
            self.kept.pop()
        self.kept.append(attempt)

    def content_s(self, frames: int) -> float:
        """Return the end of the last whole step of the audio."""
        clock = self.clock
        # The reference multiplies an integer and a fraction in float32, which affects rounding.
        steps = int(torch.tensor(frames) * clock.time_precision_features / clock.time_precision)
        return steps * clock.time_precision

    def is_silence(self, attempt: Attempt) -> bool:
        """Whether speech and the text are both improbable."""
        limit = self.thresholds.logprob_threshold
        return limit is not None and attempt.mean_logprob < limit and self.lacks_speech(attempt)

    def keep(self, attempt: Attempt, spans: Sequence[TokenSpan], seek: int) -> Steps[int]:
        """Keep every segment, whatever its text."""
        yield from ()  # token times are computed when all rows are finished
        clock, tokens = self.clock, attempt.result.tokens
        offset_s = attempt.window.seek * clock.time_precision / clock.input_stride
        for span in spans:
            # If text is cut off after a pair of timestamps, both mark it for later readers.
            last = span.stop + 1 if span is spans[-1] else span.stop
            moved = replace(
                span,
                stop=min(last, len(tokens)),
                start_s=offset_s + span.start_s,
                end_s=offset_s + span.end_s,
            )
            self.segments.append(RowSegment(span=moved, attempt=attempt))
            self._previous.append(self.segments[-1].tokens)
        return seek
