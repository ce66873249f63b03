"""What `generate` returns: tensors padded as a batch, segments, and times of tokens.

Windows that the reference decodes in the same round of a batch are padded to the longest of them
there, and so here, though nothing here runs in rounds.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.protocols import (
    AlignJob,
    AlignResult,
    Job,
    Result,
    SlotModel,
    WindowResult,
)
from corpus_asr.families.outputs import ModelOutput
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.long_form import RowSegment, TransformersLongForm, with_end
from corpus_asr.models.generation.settings import CallSettings, Settings
from corpus_asr.models.generation.slots import run
from corpus_asr.transcription.fallback import Attempt
from corpus_asr.transcription.words import dynamic_time_warping, median_filter


@dataclass(eq=False)
class GenerateEncoderDecoderOutput(ModelOutput):
    """What greedy search or sampling found."""

    sequences: Int[Tensor, "batch token"] | None = None
    """Prompts, text and end tokens."""
    scores: tuple[Float[Tensor, "batch vocab"], ...] | None = None
    """What each token was chosen from."""
    logits: tuple[Float[Tensor, "batch vocab"], ...] | None = None
    """What the network said before any rule."""
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    cross_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    decoder_hidden_states: tuple[tuple[Tensor, ...], ...] | None = None


@dataclass(eq=False)
class GenerateBeamEncoderDecoderOutput(ModelOutput):
    """What beam search found."""

    sequences: Int[Tensor, "batch token"] | None = None
    """Prompts, text and end tokens of the best beams."""
    sequences_scores: Float[Tensor, " batch"] | None = None
    """Their log-probabilities with the length penalty."""
    scores: tuple[Float[Tensor, "batch vocab"], ...] | None = None
    logits: tuple[Float[Tensor, "batch vocab"], ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    cross_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    decoder_hidden_states: tuple[tuple[Tensor, ...], ...] | None = None


class Batch:
    """The decoded rows as the tensors of a batch."""

    def __init__(
        self, results: Sequence[TransformersLongForm], settings: Settings, device: Any
    ) -> None:
        self.results = results
        self.token_times: dict[Attempt, Float[Tensor, " token"]] = {}
        """Seconds of the tokens of windows, prompts left out; filled by who knows them."""
        self._settings = settings
        self._device = device
        self._prompts: dict[int, int] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._outputs: dict[Attempt, Any] = {}
        for attempt in (attempt for result in results for attempt in result.attempts):
            number, group = attempt.window.number, _group(attempt)
            self._prompts[number] = max(len(attempt.window.prompt), self._prompts.get(number, 0))
            self._lengths[group] = max(len(self._text(attempt)), self._lengths.get(group, 0))

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
        """What one call of the reference's search gives for a window: tensor or dictionary."""
        if attempt not in self._outputs:
            self._outputs[attempt] = self._output(attempt)
        return self._outputs[attempt]

    def unique(self) -> ModelOutput | dict[str, Any]:
        """Everything of the last round that all its windows have, stacked.

        Windows decoded at different temperatures may differ in length, and in whether beams or
        samples found them.
        """
        last = max(len(result.kept) for result in self.results) - 1
        windows = [result.kept[last] for result in self.results if len(result.kept) > last]
        outputs = [self.output(attempt) for attempt in windows]
        found: dict[str, Any] = {
            "sequences": stacked([one["sequences"] for one in outputs], self._settings.pad)
        }
        shared = set.intersection(*(set(one) for one in outputs))
        if "sequences_scores" in shared:
            found["sequences_scores"] = torch.stack([one["sequences_scores"] for one in outputs])
        for name in ("scores", "logits"):
            if name in shared:
                longest = max(len(one[name]) for one in outputs)
                steps = zip(
                    *(filled_steps(one[name], longest, self._settings.pad) for one in outputs),
                    strict=True,
                )
                found[name] = tuple(torch.stack(step).to(self._device) for step in steps)
        if "token_timestamps" in shared:
            found["token_timestamps"] = stacked([one["token_timestamps"] for one in outputs], None)
        found = {name: _to(value, self._device) for name, value in found.items()}
        if "token_timestamps" in found:
            return found
        if all(attempt.result.sequence_score is not None for attempt in windows):
            return GenerateBeamEncoderDecoderOutput(**found)
        return GenerateEncoderDecoderOutput(**found)

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
        settings = self._settings
        before = self.prompt_length(attempt)
        prompt = attempt.window.prompt
        filler = [settings.pad] * (before - len(prompt))
        sequence = torch.tensor([*filler, *prompt, *self.said(attempt)])
        if not settings.config.return_dict_in_generate:
            return sequence.to(self._device)
        found: dict[str, Any] = {"sequences": sequence}
        if attempt.result.sequence_score is not None and settings.config.output_scores:
            found["sequences_scores"] = torch.tensor(attempt.result.sequence_score)
        scores, logits = attempt.result.scores, attempt.result.logits
        if scores is not None:
            # What is sampled is normalised once more there, after temperature and `top_k`.
            again = settings.config.renormalize_logits
            found["scores"] = self._steps(attempt, scores.log_softmax(-1) if again else scores)
        if logits is not None:
            found["logits"] = self._steps(attempt, logits)
        if attempt in self.token_times:
            found["token_timestamps"] = torch.cat([torch.zeros(before), self.token_times[attempt]])
        return found

    def _steps(
        self, attempt: Attempt, kept: Float[Tensor, "token vocab"]
    ) -> list[Float[Tensor, " vocab"]]:
        steps = [step.clone() for step in kept.cpu()]
        return filled_steps(steps, len(self.said(attempt)), self._settings.pad)


def _group(attempt: Attempt) -> tuple[int, int]:
    """What the reference decodes in one batch: windows of one number at one temperature."""
    return attempt.window.number, attempt.number


def filled_steps(
    steps: list[Float[Tensor, " vocab"]], count: int, pad: int
) -> list[Float[Tensor, " vocab"]]:
    """The scores or logits of `count` steps; after its end a row is certain of padding."""
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


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


_SECONDS_PER_POSITION = 0.02


def time_tokens(model: SlotModel, batch: Batch, settings: Settings, attention_mask: Any) -> None:
    """Find the times of the tokens of all windows that were kept, and note them in `batch`.

    Args:
        model: reads the tokens once more.
        batch: the decoded rows.
        settings: of the call.
        attention_mask: tells how long each row is, (batch, frame); None for no bound.
    """
    ends = None if attention_mask is None else torch.as_tensor(attention_mask).sum(-1).tolist()
    windows = [(result.row, attempt) for result in batch.results for attempt in result.kept]
    tasks = [
        align(
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


def align(
    row: Row, attempt: Attempt, said: Sequence[int], settings: Settings, frames: int | None
) -> Generator[Job, Result, Float[Tensor, " token"]]:
    """Return the seconds of each of `said`, from the window's start.

    Args:
        row: the window's recording.
        attempt: the window.
        said: its tokens after the prompt, padding included.
        settings: name the heads that follow the sound.
        frames: feature frames of sound from the window's first on; None for no bound.
    """
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
        weights = weights[..., : max(1, frames // settings.clock.input_stride)]
    return token_seconds(weights, width=settings.median_filter_width)


def token_seconds(
    weights: Float[Tensor, "head token pos"], *, width: int
) -> Float[Tensor, " token_1"]:
    """Find the cheapest path through the attention; the last token's time counts twice.

    Args:
        weights: attention to the sound while each token but the last is read.
        width: of the median filter, in positions.
    """
    deviation = weights.std(dim=-2, keepdim=True, unbiased=False)
    weights = (weights - weights.mean(dim=-2, keepdim=True)) / deviation
    smooth = torch.from_numpy(median_filter(weights.numpy(), width)).mean(dim=0)
    text, time = dynamic_time_warping(-smooth.double().numpy())
    jumps = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
    seconds = time[jumps] * _SECONDS_PER_POSITION
    return torch.tensor([*seconds, seconds[-1]], dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text that search found."""

    prompt: tuple[int, ...]
    said: tuple[int, ...]
    """New tokens, the end token included where it was said."""
    result: WindowResult

    @classmethod
    def of(cls, prompt: tuple[int, ...], result: WindowResult, *, end: int) -> Self:
        """Put the end token back where it was said."""
        return cls(prompt=prompt, said=with_end(result, end), result=result)


def as_sequences(texts: Sequence[Text], *, pad: int) -> Int[Tensor, "batch token"]:
    """Stack texts, prompts included, padded at the end."""
    return stacked([torch.tensor([*text.prompt, *text.said]) for text in texts], pad)


def as_output(texts: Sequence[Text], settings: CallSettings, device: Any) -> ModelOutput:
    """Return everything that was found, by name."""
    found: dict[str, Any] = {"sequences": as_sequences(texts, pad=settings.pad).to(device)}
    longest = max(len(text.said) for text in texts)
    again = settings.config.renormalize_logits and settings.config.do_sample
    if settings.keep_scores:
        kept = [text.result.scores for text in texts]
        # What is sampled is normalised once more there, after temperature and `top_k`.
        scores = [one.log_softmax(-1) if again and one is not None else one for one in kept]
        found["scores"] = _by_step(scores, longest, settings.pad, device)
    if settings.keep_logits:
        logits = [text.result.logits for text in texts]
        found["logits"] = _by_step(logits, longest, settings.pad, device)
    if texts[0].result.sequence_score is None:
        return GenerateEncoderDecoderOutput(**found)
    if settings.keep_scores:
        of_beams = [text.result.sequence_score or 0.0 for text in texts]
        found["sequences_scores"] = torch.tensor(of_beams, device=device)
    return GenerateBeamEncoderDecoderOutput(**found)


def _by_step(
    kept: Sequence[Float[Tensor, "_ vocab"] | None], longest: int, pad: int, device: Any
) -> tuple[Float[Tensor, "batch vocab"], ...]:
    """Turn what was kept of each text into one tensor for each step."""
    rows = [filled_steps(list(one.cpu()), longest, pad) for one in kept if one is not None]
    return tuple(torch.stack(step).to(device) for step in zip(*rows, strict=True))
