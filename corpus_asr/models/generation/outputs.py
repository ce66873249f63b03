"""What `generate` returns: tensors padded as a batch, segments, or both.

In: the rows as they were decoded. Out: what transformers returns for them, in its types. Windows
that a batch decodes in the same round are padded to the longest of them there, and so here, though
nothing here runs in rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.families.outputs import ModelOutput
from corpus_asr.models.generation.row import Attempt, RowResult, RowSegment
from corpus_asr.models.generation.settings import Settings


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

    def __init__(self, results: Sequence[RowResult], settings: Settings, device: Any) -> None:
        self.results = results
        self.token_times: dict[Attempt, Float[Tensor, " token"]] = {}
        """Seconds of the tokens of windows, prompts left out; filled by who knows them."""
        self._settings = settings
        self._device = device
        self._prompts: dict[int, int] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._outputs: dict[Attempt, Any] = {}
        for attempt in (attempt for result in results for attempt in result.attempts):
            group = attempt.round, attempt.attempt
            self._prompts[attempt.round] = max(
                len(attempt.prompt), self._prompts.get(attempt.round, 0)
            )
            self._lengths[group] = max(len(attempt.said), self._lengths.get(group, 0))

    def prompt_length(self, attempt: Attempt) -> int:
        """Tokens before the text of the windows of this round."""
        return self._prompts[attempt.round]

    def said(self, attempt: Attempt) -> tuple[int, ...]:
        """New tokens, padded to the longest of the same round."""
        missing = self._lengths[attempt.round, attempt.attempt] - len(attempt.said)
        return (*attempt.said, *[self._settings.pad] * missing)

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
        attempt, piece = segment.attempt, segment.piece
        before = self.prompt_length(attempt)
        found: dict[str, Any] = {
            "start": piece.start,
            "end": piece.end,
            "tokens": torch.tensor(segment.tokens).long().to(self._device),
            "idxs": (before + piece.first, before + piece.last),
            "result": self.output(attempt),
        }
        if attempt in self.token_times:
            clock = self._settings.clock
            offset = torch.tensor(attempt.seek).double() * clock.time_precision / clock.input_stride
            found["token_timestamps"] = self._times(segment) + offset
        return found

    def _times(self, segment: RowSegment) -> Float[Tensor, " token"]:
        piece = segment.piece
        return self.token_times[segment.attempt][piece.first : piece.last]

    def _output(self, attempt: Attempt) -> Any:
        settings = self._settings
        before = self.prompt_length(attempt)
        filler = [settings.pad] * (before - len(attempt.prompt))
        sequence = torch.tensor([*filler, *attempt.prompt, *self.said(attempt)])
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
