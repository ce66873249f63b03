"""Return values of `generate`: tensors padded as a batch, segments, and token times.

Windows that the reference decodes in the same round of a batch are padded to the longest of them,
and so here, though rows are decoded independently.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.alignment import begins_on_path, median_filter
from corpus_asr.decoding.jobs import AlignJob, AlignResult, Job, Result
from corpus_asr.families.outputs import ModelOutput
from corpus_asr.models.generation.call import WhisperCall
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.long_form import RowSegment, TransformersLongForm, with_end
from corpus_asr.models.generation.slots import run
from corpus_asr.transcription.fallback import Attempt


@dataclass(eq=False)
class GenerateEncoderDecoderOutput(ModelOutput):
    """Named results of `generate`."""

    sequences: Int[Tensor, "batch token"] | None = None
    """Prompts, text and end tokens."""


class Batch:
    """The decoded rows as the tensors of a batch."""

    def __init__(self, results: Sequence[TransformersLongForm], call: WhisperCall) -> None:
        self.results = results
        self.token_times: dict[Attempt, Float[Tensor, " token"]] = {}
        """Seconds of the tokens of windows, without prompts; set by `time_tokens`."""
        self._call = call
        self._device = call.model.device
        # The longest prompt of each round, and the longest text of each batch within it.
        self._prompts: dict[int, int] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._outputs: dict[Attempt, Any] = {}
        for attempt in (attempt for result in results for attempt in result.attempts):
            number, group = attempt.window.number, _group(attempt)
            self._prompts[number] = max(len(attempt.window.prompt), self._prompts.get(number, 0))
            self._lengths[group] = max(len(self._text(attempt)), self._lengths.get(group, 0))

    def prompt_length(self, attempt: Attempt) -> int:
        """Return the length of the padded prompt in this window's round."""
        return self._prompts[attempt.window.number]

    def said(self, attempt: Attempt) -> tuple[int, ...]:
        """Return the new tokens, padded to the longest of the same batch."""
        text = self._text(attempt)
        return (*text, *[self._call.pad] * (self._lengths[_group(attempt)] - len(text)))

    def _text(self, attempt: Attempt) -> tuple[int, ...]:
        return with_end(attempt.result, self._call.end)

    def output(self, attempt: Attempt) -> Any:
        """Return the result of the reference's search for a window."""
        if attempt not in self._outputs:
            self._outputs[attempt] = self._output(attempt)
        return self._outputs[attempt]

    def unique(self) -> ModelOutput | dict[str, Any]:
        """Return the texts of all windows of the last round, with token times if available.

        Windows decoded at different temperatures may differ in length.
        """
        last = max(len(result.kept) for result in self.results) - 1
        outputs = [self.output(row.kept[last]) for row in self.results if len(row.kept) > last]
        texts = [output["sequences"] for output in outputs]
        sequences = stacked(texts, self._call.pad).to(self._device)
        if all("token_timestamps" in output for output in outputs):
            times = stacked([output["token_timestamps"] for output in outputs], None)
            return {"sequences": sequences, "token_timestamps": times.to(self._device)}
        return GenerateEncoderDecoderOutput(sequences=sequences)

    def first(self, name: str) -> Tensor:
        """Return a tensor of each row's first window, stacked."""
        outputs = [self.output(result.kept[0]) for result in self.results]
        rows = [output[name] if isinstance(output, dict) else output for output in outputs]
        return stacked(rows, self._call.pad if name == "sequences" else None).to(self._device)

    def sequences(self) -> Int[Tensor, "batch token"]:
        """Return the text of each row, without prompts and end tokens."""
        rows = [
            torch.tensor([token for segment in result.segments for token in segment.tokens]).long()
            for result in self.results
        ]
        return stacked(rows, self._call.pad).to(self._device)

    def token_timestamps(self) -> Float[Tensor, "batch token"]:
        """Return seconds of each token of `sequences`, from its own window's start."""
        rows = [
            torch.cat([self._times(segment) for segment in result.segments] or [torch.zeros(0)])
            for result in self.results
        ]
        return stacked(rows, None).to(self._device)

    def segments(self) -> list[list[dict[str, Any]]]:
        """Return the segments of each row."""
        return [[self._segment(segment) for segment in result.segments] for result in self.results]

    def _segment(self, segment: RowSegment) -> dict[str, Any]:
        attempt, span = segment.attempt, segment.span
        prompt_length = self.prompt_length(attempt)
        output: dict[str, Any] = {
            "start": torch.tensor(span.start_s, dtype=torch.float64),
            "end": torch.tensor(span.end_s, dtype=torch.float64),
            "tokens": torch.tensor(segment.tokens).long().to(self._device),
            "idxs": (prompt_length + span.first, prompt_length + span.stop),
            "result": self.output(attempt),
        }
        if attempt in self.token_times:
            clock = self._call.clock
            # float64, as in the reference: float32 has steps of 0.5 ms after two hours.
            offset = (
                torch.tensor(attempt.window.seek).double()
                * clock.time_precision
                / clock.input_stride
            )
            output["token_timestamps"] = self._times(segment) + offset
        return output

    def _times(self, segment: RowSegment) -> Float[Tensor, " token"]:
        return self.token_times[segment.attempt][segment.span.first : segment.span.stop]

    def _output(self, attempt: Attempt) -> Any:
        prompt_length = self.prompt_length(attempt)
        prompt = attempt.window.prompt
        prompt = (*[self._call.pad] * (prompt_length - len(prompt)), *prompt)
        sequences = torch.tensor([*prompt, *self.said(attempt)])
        if not self._call.config.return_dict_in_generate:
            return sequences.to(self._device)
        output = {"sequences": sequences}
        if attempt in self.token_times:
            output["token_timestamps"] = torch.cat(
                [torch.zeros(prompt_length), self.token_times[attempt]]
            )
        return output


def _group(attempt: Attempt) -> tuple[int, int]:
    # The reference decodes windows of equal number and temperature in one batch.
    return attempt.window.number, attempt.number


def stacked(rows: Sequence[Tensor], pad: float | None) -> Tensor:
    """Stack rows of different lengths, padded with `pad`, or with their own last value."""
    longest = max(len(row) for row in rows)
    filled = []
    for row in rows:
        value = pad if pad is not None else (row[-1].item() if len(row) else 0.0)
        filled.append(torch.nn.functional.pad(row, (0, longest - len(row)), value=value))
    return torch.stack(filled)


# Encoder position in seconds: constant here in the reference too, whatever `time_precision` is.
_SECONDS_PER_POSITION = 0.02


def time_tokens(batch: Batch, call: WhisperCall) -> None:
    """Set the token times of all kept windows in `batch`."""
    mask = call["attention_mask"]
    ends = None if mask is None else torch.as_tensor(mask).sum(-1).tolist()
    windows = [(result.row, attempt) for result in batch.results for attempt in result.kept]
    tasks = [
        _align(
            row,
            attempt,
            batch.said(attempt),
            call,
            None if ends is None else int(ends[row.index]) - attempt.window.seek,
        )
        for row, attempt in windows
    ]
    for (_, attempt), times in zip(windows, run(call.model, tasks), strict=True):
        batch.token_times[attempt] = times


def _align(
    row: Row, attempt: Attempt, said: Sequence[int], call: WhisperCall, frames: int | None
) -> Generator[Job, Result, Float[Tensor, " token"]]:
    read = said[:-1]  # the reference has no attention for the last token
    if not read:
        return torch.zeros(len(said))
    heads = call.config.alignment_heads
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
        # Padding is attended to as well, and a path through it would move the last words.
        weights = weights[..., : max(1, frames // call.clock.input_stride)]
    return _token_seconds(weights, width=call.model.config.median_filter_width)


def _token_seconds(
    weights: Float[Tensor, "head token pos"], *, width: int
) -> Float[Tensor, " token_1"]:
    # Every head has equal weight, however sharp its attention is.
    deviation = weights.std(dim=-2, keepdim=True, unbiased=False)
    weights = (weights - weights.mean(dim=-2, keepdim=True)) / deviation
    smooth = torch.from_numpy(median_filter(weights.numpy(), width)).mean(dim=0)
    begins = begins_on_path(-smooth.double().numpy())
    seconds = [begin * _SECONDS_PER_POSITION for begin in begins]
    # The last token is never read: it has the time of the previous one, as in the reference.
    return torch.tensor([*seconds, seconds[-1]], dtype=torch.float32)
