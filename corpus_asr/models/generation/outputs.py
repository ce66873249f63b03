"""What `generate` returns: tensors padded as a batch, segments, and times of tokens.

Windows that the reference decodes in the same round of a batch are padded to the longest of them
there, and so here, though nothing here runs in rounds.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.alignment import begins_on_path, median_filter
from corpus_asr.decoding.protocols import (
    AlignJob,
    AlignResult,
    Job,
    Result,
    WindowResult,
)
from corpus_asr.families.layers.kv_cache import DecoderCache
from corpus_asr.families.outputs import ModelOutput
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.long_form import RowSegment, TransformersLongForm, with_end
from corpus_asr.models.generation.settings import CallSettings, Settings
from corpus_asr.models.generation.slots import run
from corpus_asr.transcription.fallback import Attempt


@dataclass(eq=False)
class GenerateEncoderDecoderOutput(ModelOutput):
    """The results of `generate` by name."""

    sequences: Int[Tensor, "batch token"] | None = None
    """Prompts, text and end tokens; of the best beams, where there are several."""
    sequences_scores: Float[Tensor, " batch"] | None = None
    """Of beams: their log-probabilities with the length penalty."""
    scores: tuple[Float[Tensor, "row vocab"], ...] | None = None
    """What each token was chosen from; of Speech2Text a row for each running beam."""
    logits: tuple[Float[Tensor, "row vocab"], ...] | None = None
    """The network's own, before any rule."""
    beam_indices: Int[Tensor, "batch step"] | None = None
    """Of beams: the row of `scores` that each new token was chosen from; -1 after the end."""
    # By layer; those of the decoder by step and layer.
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    cross_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    decoder_hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: DecoderCache | None = None
    """Of all tokens but the last, where attentions or hidden states are asked for."""


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """The results of `generate` of a decoder alone by name."""

    sequences: Int[Tensor, "batch token"] | None = None
    """Prompts, text and end tokens; of the best beams, where there are several."""
    sequences_scores: Float[Tensor, " batch"] | None = None
    """Of beams: their log-probabilities with the length penalty."""
    scores: tuple[Float[Tensor, "row vocab"], ...] | None = None
    """What each token was chosen from; of beams a row for each that ran."""
    logits: tuple[Float[Tensor, "row vocab"], ...] | None = None
    """The network's own, before any rule."""
    beam_indices: Int[Tensor, "batch step"] | None = None
    """Of beams: the row of `scores` that each new token was chosen from; -1 after the end."""
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    cross_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: DecoderCache | None = None
    """Of all tokens but the last, where attentions or hidden states are asked for."""


def text_output(
    prompt: Sequence[int], tokens: Sequence[int], result: WindowResult, settings: CallSettings
) -> dict[str, Any]:
    """Return the results for one text by name."""
    output: dict[str, Any] = {"sequences": torch.tensor([*prompt, *tokens])}
    if result.sequence_score is not None:
        output["beam_indices"] = torch.tensor(result.parents, dtype=torch.int32)
        if settings.keep_scores:
            output["sequences_scores"] = torch.tensor(result.sequence_score)
    scores = result.scores
    if scores is not None and settings.config.renormalize_logits:
        # What is sampled is normalized once more there, after temperature and `top_k`.
        scores = scores.log_softmax(-1)
    for name, steps in (("scores", scores), ("logits", result.logits)):
        if steps is not None:
            output[name] = _filled(list(steps.cpu()), len(tokens), settings.pad)
    return output


def stack_outputs(outputs: Sequence[dict[str, Any]], *, pad: int, device: Any) -> dict[str, Any]:
    """Stack what all texts have; the shorter ones end in padding."""
    shared = set.intersection(*(set(output) for output in outputs))
    stack: dict[str, Any] = {"sequences": stacked([text["sequences"] for text in outputs], pad)}
    if "sequences_scores" in shared:
        stack["sequences_scores"] = torch.stack([text["sequences_scores"] for text in outputs])
    if "token_timestamps" in shared:
        stack["token_timestamps"] = stacked([text["token_timestamps"] for text in outputs], None)
    if "beam_indices" in shared:
        stack["beam_indices"] = stacked([text["beam_indices"] for text in outputs], -1)
    stack = {name: value.to(device) for name, value in stack.items()}
    for name in shared & {"scores", "logits"}:
        longest = max(len(text[name]) for text in outputs)
        rows = [_filled(text[name], longest, pad) for text in outputs]
        stack[name] = tuple(torch.stack(step).to(device) for step in zip(*rows, strict=True))
    for name in shared & {"encoder_attentions", "encoder_hidden_states"}:
        layers = zip(*(text[name] for text in outputs), strict=True)
        stack[name] = tuple(torch.stack(layer).to(device) for layer in layers)
    for name in shared & {"decoder_attentions", "cross_attentions", "decoder_hidden_states"}:
        # Windows decoded at other temperatures may be shorter.
        steps = zip(*(text[name] for text in outputs), strict=False)
        stack[name] = tuple(
            tuple(torch.cat(layer).to(device) for layer in zip(*step, strict=True))
            for step in steps
        )
    if "past_key_values" in shared:
        caches = [text["past_key_values"] for text in outputs]
        # Texts of other lengths have no common cache.
        if len({cache.get_seq_length() for cache in caches}) == 1:
            stack["past_key_values"] = DecoderCache.stacked(caches)
    return stack


class Batch:
    """The decoded rows as the tensors of a batch."""

    def __init__(
        self, results: Sequence[TransformersLongForm], settings: Settings, device: Any
    ) -> None:
        self.results = results
        self.token_times: dict[Attempt, Float[Tensor, " token"]] = {}
        """Seconds of the tokens of windows, prompts left out; filled by who knows them."""
        self.states: dict[Attempt, dict[str, Any]] = {}
        """Attentions and hidden states of windows; filled by who makes them."""
        self._settings = settings
        self._device = device
        # The longest prompt of each round, and the longest text of each batch within it.
        self._prompts: dict[int, int] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        # How many rows of each batch come before a text's own.
        self._before: dict[Attempt, int] = {}
        sizes: dict[tuple[int, int], int] = {}
        self._outputs: dict[Attempt, Any] = {}
        for attempt in (attempt for result in results for attempt in result.attempts):
            number, group = attempt.window.number, _group(attempt)
            self._prompts[number] = max(len(attempt.window.prompt), self._prompts.get(number, 0))
            self._lengths[group] = max(len(self._text(attempt)), self._lengths.get(group, 0))
            self._before[attempt] = sizes.get(group, 0)
            sizes[group] = self._before[attempt] + 1

    def prompt_length(self, attempt: Attempt) -> int:
        """Tokens before the text of the windows of this round."""
        return self._prompts[attempt.window.number]

    def said(self, attempt: Attempt) -> tuple[int, ...]:
        """New tokens, padded to the longest of the same round."""
        text = self._text(attempt)
        return (*text, *[self._settings.pad] * (self._lengths[_group(attempt)] - len(text)))

    def _text(self, attempt: Attempt) -> tuple[int, ...]:
        return with_end(attempt.result, self._settings.end)

    def output(self, attempt: Attempt) -> Any:
        """Return what a call of the reference's search returns for a window."""
        if attempt not in self._outputs:
            self._outputs[attempt] = self._output(attempt)
        return self._outputs[attempt]

    def unique(self) -> ModelOutput | dict[str, Any]:
        """Return what all windows of the last round have, stacked.

        Windows decoded at different temperatures may differ in length, and in whether beams or
        samples found them.
        """
        last = max(len(result.kept) for result in self.results) - 1
        outputs = [self.output(row.kept[last]) for row in self.results if len(row.kept) > last]
        stack = stack_outputs(outputs, pad=self._settings.pad, device=self._device)
        # Of texts of one window what the encoder gave is there once, as in the reference.
        numbers = [row.row.index for row in self.results if len(row.kept) > last]
        first = [numbers.index(number) for number in dict.fromkeys(numbers)]
        for name in stack.keys() & {"encoder_attentions", "encoder_hidden_states"}:
            stack[name] = tuple(layer[first] for layer in stack[name])
        return stack if "token_timestamps" in stack else GenerateEncoderDecoderOutput(**stack)

    def first(self, name: str) -> Tensor:
        """A tensor of each row's first window, stacked."""
        outputs = [self.output(result.kept[0]) for result in self.results]
        rows = [one[name] if isinstance(one, dict) else one for one in outputs]
        return stacked(rows, self._settings.pad if name == "sequences" else None).to(self._device)

    def sequences(self) -> Int[Tensor, "batch token"]:
        """The text of each row, without prompts and end tokens."""
        rows = [
            torch.tensor([token for one in result.segments for token in one.tokens]).long()
            for result in self.results
        ]
        return stacked(rows, self._settings.pad).to(self._device)

    def token_timestamps(self) -> Float[Tensor, "batch token"]:
        """Seconds of each token of `sequences`, from its own window's start."""
        rows = [
            torch.cat([self._times(one) for one in result.segments] or [torch.zeros(0)])
            for result in self.results
        ]
        return stacked(rows, None).to(self._device)

    def segments(self) -> list[list[dict[str, Any]]]:
        """The segments of each row."""
        return [[self._segment(one) for one in result.segments] for result in self.results]

    def _segment(self, segment: RowSegment) -> dict[str, Any]:
        attempt, span = segment.attempt, segment.span
        before = self.prompt_length(attempt)
        found: dict[str, Any] = {
            "start": torch.tensor(span.start_s, dtype=torch.float64),
            "end": torch.tensor(span.end_s, dtype=torch.float64),
            "tokens": torch.tensor(segment.tokens).long().to(self._device),
            "idxs": (before + span.first, before + span.stop),
            "result": self.output(attempt),
        }
        if attempt in self.token_times:
            clock = self._settings.clock
            # float64, as there: float32 has steps of 0.5 ms after two hours.
            offset = (
                torch.tensor(attempt.window.seek).double()
                * clock.time_precision
                / clock.input_stride
            )
            found["token_timestamps"] = self._times(segment) + offset
        return found

    def _times(self, segment: RowSegment) -> Float[Tensor, " token"]:
        return self.token_times[segment.attempt][segment.span.first : segment.span.stop]

    def _output(self, attempt: Attempt) -> Any:
        before = self.prompt_length(attempt)
        prompt = attempt.window.prompt
        prompt = (*[self._settings.pad] * (before - len(prompt)), *prompt)
        output = text_output(prompt, self.said(attempt), attempt.result, self._settings)
        if not self._settings.config.return_dict_in_generate:
            return output["sequences"].to(self._device)
        if "beam_indices" in output:
            beams = self._settings.config.num_beams or 1
            output["beam_indices"] += self._before[attempt] * beams
        if attempt in self.token_times:
            output["token_timestamps"] = torch.cat([torch.zeros(before), self.token_times[attempt]])
        return output | self.states.get(attempt, {})


def _group(attempt: Attempt) -> tuple[int, int]:
    # The reference decodes in one batch the windows of one number at one temperature.
    return attempt.window.number, attempt.number


def _filled(
    steps: list[Float[Tensor, " vocab"]], count: int, pad: int
) -> list[Float[Tensor, " vocab"]]:
    # After its end a row is certain of padding, where the reference goes on computing scores.
    over = torch.full_like(steps[0], float("-inf"))
    over[pad] = 0.0
    return [*steps, *[over] * (count - len(steps))]


def stacked(rows: Sequence[Tensor], pad: float | None) -> Tensor:
    """Stack rows of unlike length, filled up with `pad`, or with their own last value."""
    longest = max(len(row) for row in rows)
    filled = []
    for row in rows:
        value = pad if pad is not None else (row[-1].item() if len(row) else 0.0)
        filled.append(torch.nn.functional.pad(row, (0, longest - len(row)), value=value))
    return torch.stack(filled)


# Of the encoder: the reference, too, has this number here, whatever `time_precision` is.
_SECONDS_PER_POSITION = 0.02


def time_tokens(model: Any, batch: Batch, settings: Settings, attention_mask: Any) -> None:
    """Set the times of the tokens of all windows that were kept, in `batch`."""
    ends = None if attention_mask is None else torch.as_tensor(attention_mask).sum(-1).tolist()
    windows = [(result.row, attempt) for result in batch.results for attempt in result.kept]
    tasks = [
        _align(
            row,
            attempt,
            batch.said(attempt),
            settings,
            None if ends is None else int(ends[row.index]) - attempt.window.seek,
        )
        for row, attempt in windows
    ]
    for (_, attempt), times in zip(windows, run(model, tasks), strict=True):
        batch.token_times[attempt] = times


def _align(
    row: Row, attempt: Attempt, said: Sequence[int], settings: Settings, frames: int | None
) -> Generator[Job, Result, Float[Tensor, " token"]]:
    read = said[:-1]  # the reference has no attention for the last token
    if not read:
        return torch.zeros(len(said))
    heads = settings.config.alignment_heads
    assert heads is not None
    result = yield AlignJob(
        features=attempt.window.features,
        window=attempt.window.name,
        tokens=(*attempt.window.prompt, *read),
        heads=tuple((layer, head) for layer, head in heads),
        encoded=row.encoded,
    )
    assert isinstance(result, AlignResult)
    weights = torch.from_numpy(np.asarray(result.weights))[:, len(attempt.window.prompt) :]
    if frames is not None:
        # Padding gets attention too, and the path through it would move the last words.
        weights = weights[..., : max(1, frames // settings.clock.input_stride)]
    return _token_seconds(weights, width=settings.median_filter_width)


def _token_seconds(
    weights: Float[Tensor, "head token pos"], *, width: int
) -> Float[Tensor, " token_1"]:
    # Every head counts alike, however sharp its attention is.
    deviation = weights.std(dim=-2, keepdim=True, unbiased=False)
    weights = (weights - weights.mean(dim=-2, keepdim=True)) / deviation
    smooth = torch.from_numpy(median_filter(weights.numpy(), width)).mean(dim=0)
    begins = begins_on_path(-smooth.double().numpy())
    seconds = [begin * _SECONDS_PER_POSITION for begin in begins]
    # The last token is never read: it has the time of the one before, as there.
    return torch.tensor([*seconds, seconds[-1]], dtype=torch.float32)
