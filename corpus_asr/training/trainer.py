"""Steps of training: examples in, changed weights and a record of each step out.

In: a network, what it is to learn and from what. Out: records, one per step, and the network's
weights changed in place. A step depends on its number and the weights before it alone, so training
that is stopped and resumed ends with the same weights. Knows no files.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from corpus_asr.errors import EngineError
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Collate, Examples
from corpus_asr.training.group import Group
from corpus_asr.training.memory import HeardBatch, Memory
from corpus_asr.training.objective import Losses, Objective
from corpus_asr.training.optimiser import NamedAdamW, Rates, clip

_MAX_OVERFLOWS = 20
_DECODER = ("model.decoder.", "proj_out.")

Learns = Literal["encoder", "decoder", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How steps are made up."""

    batch_windows: int
    windows_at_once: int
    max_gradient: float
    seed: int
    loader_workers: int
    dtype: torch.dtype
    taught: int | None = None
    """The first ones, in which a teacher is asked; None: all."""
    encoder_alone: int = 0
    """The first ones, in which the decoder learns nothing."""
    decoder_alone: int = 0
    """Those after them, in which the encoder does not."""
    decoder_positions: int = 0
    """Of encodings that are written in each of the latter, over the group."""
    memory_windows: int = 1
    """Heard before a step, whose encodings are written again, over the group."""

    def learns(self, step: int) -> Learns:
        """Return what learns at a step, counted from 0."""
        if step < self.encoder_alone:
            return "encoder"
        return "decoder" if step < self.encoder_alone + self.decoder_alone else "both"

    def heard_from(self, step: int) -> int:
        """Return the first step whose windows may be written again at a step."""
        if self.learns(step) != "decoder":
            return step
        return max(self.encoder_alone, step - -(-self.memory_windows // self.batch_windows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One step."""

    step: int
    """From 1: so many are done."""
    loss: float
    """Per token that was learnt."""
    parts: dict[str, float]
    """What it is the sum of."""
    rate: float
    gradient: float
    """Length, before it was shortened."""
    tokens: int
    wall_s: float


class Trainer:
    """Trains a network in place.

    Args:
        student: what learns.
        objective: what it is to learn.
        optimiser: how it changes.
        rates: how fast, at each step.
        examples: what from.
        padding: the token that fills rows up.
        steps: how steps are made up.
        group: who trains together.
    """

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        objective: Objective,
        optimiser: NamedAdamW,
        rates: Rates,
        examples: Examples,
        *,
        padding: int,
        steps: Steps,
        group: Group,
    ) -> None:
        self._student = student
        self._objective = objective
        self._optimiser = optimiser
        self._rates = rates
        self._examples = examples
        self._collate = Collate(padding)
        self._steps = steps
        self._group = group
        self._memory = Memory(max(1, steps.memory_windows // group.size))
        self._overflows = 0

    def run(self, done: int) -> Iterator[Record]:
        """Make the steps after the first `done`, and say of each what came of it.

        Raises:
            EngineError: memory does not suffice, or gradients are no numbers any more.
        """
        first = self._steps.heard_from(done)
        batches = iter(self._loader(first))
        for step in range(first, self._rates.steps):
            try:
                if step < done:
                    self._hear(step, batches)
                else:
                    yield self._step(step, batches)
            except torch.OutOfMemoryError as error:
                raise EngineError(
                    f"training step {step + 1}: found too little memory on {self._student.device} "
                    f"for {self._steps.windows_at_once} windows at once ({error}); lower "
                    "training.windows_at_once, which leaves steps as they are, or set "
                    "training.gradient_checkpointing"
                ) from error

    def _loader(self, done: int) -> DataLoader[Batch]:
        workers = self._steps.loader_workers
        loader: DataLoader[Batch] = DataLoader(
            self._examples,  # type: ignore[arg-type]
            batch_sampler=_Numbers(self._steps, self._group, done, self._rates.steps),
            collate_fn=self._collate,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=self._student.device.type == "cuda",
        )
        return loader

    def _step(self, step: int, batches: Iterator[Batch]) -> Record:
        began = time.perf_counter()
        sums: dict[str, float] = {}
        tokens = 0
        for losses in self._losses(step, batches):
            losses.total.backward()  # type: ignore[no-untyped-call]
            tokens += losses.tokens
            for name, part in losses.parts.items():
                sums[name] = sums.get(name, 0.0) + part
        told = torch.tensor([float(tokens), *sums.values()], dtype=torch.float64)
        told = told.to(self._student.device)
        learning = self._learning(self._steps.learns(step))
        gradients = [_gradient(p) for p in learning]
        self._group.add_up([told, *gradients])
        tokens = int(told[0])
        for gradient in gradients:
            gradient /= max(1, tokens)
        length = clip(learning, self._steps.max_gradient)
        rate = self._rates.at(step)
        if np.isfinite(length):  # one window that overflows must not spoil all weights
            self._optimiser.step(rate)
            self._overflows = 0
        else:
            self._optimiser.skip()
            self._count_overflow(step)
        parts = dict(zip(sums, (told[1:] / max(1, tokens)).tolist(), strict=True))
        return Record(
            step=step + 1,
            loss=sum(parts.values()),
            parts=parts,
            rate=rate,
            gradient=length,
            tokens=tokens,
            wall_s=time.perf_counter() - began,
        )

    def _losses(self, step: int, batches: Iterator[Batch]) -> Iterator[Losses]:
        """Yield the losses of a step, piece by piece."""
        learns = self._steps.learns(step)
        taught = self._steps.taught is None or step < self._steps.taught
        if learns == "decoder":
            self._hear(step, batches)
            draw = np.random.default_rng((self._steps.seed, step, self._group.rank))
            drawn = self._memory.draw(self._steps.decoder_positions // self._group.size, draw)
            with self._computing():
                losses = self._objective.write(self._student, HeardBatch.joined(drawn))
            yield losses
            return
        self._memory.forget()
        for batch in self._pieces(step, batches):
            with self._computing():
                losses = self._objective(
                    self._student, batch, taught=taught, encoder_alone=learns == "encoder"
                )
            yield losses

    def _hear(self, step: int, batches: Iterator[Batch]) -> None:
        """Remember the encodings of a step's windows."""
        for batch in self._pieces(step, batches):
            with self._computing():
                heard = self._objective.hear(self._student, batch)
            for window in heard:
                self._memory.add(window)

    def _pieces(self, step: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield what a step is made of."""
        # Dropout depends on the step and on who computes it, on nothing that happened before.
        torch.manual_seed(_seed(self._steps.seed, step, self._group.rank))
        self._student.train()
        for _ in range(_pieces(self._steps, self._group)):
            yield next(batches).to(self._student.device)

    def _computing(self) -> torch.autocast:
        dtype = self._steps.dtype
        return torch.autocast(self._student.device.type, dtype, enabled=dtype != torch.float32)

    def _learning(self, learns: Learns) -> list[Tensor]:
        """Return the parameters that change in a step; others have no gradient at all."""
        return [
            parameter
            for name, parameter in self._optimiser.parameters.items()
            if learns == "both" or name.startswith(_DECODER) == (learns == "decoder")
        ]

    def _count_overflow(self, step: int) -> None:
        self._overflows += 1
        if self._overflows == _MAX_OVERFLOWS:
            raise EngineError(
                f"training step {step + 1}: found gradients that are no numbers in "
                f"{_MAX_OVERFLOWS} steps in a row, expected finite ones; lower "
                "training.learning_rate or set model.dtype: float32, and give another output.uri"
            )


def _gradient(parameter: Tensor) -> Tensor:
    """Return a gradient, of zeros where none was computed: all of a group add up the same list."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Numbers:
    """Numbers of the windows of each batch of this process, in order."""

    def __init__(self, steps: Steps, group: Group, done: int, end: int) -> None:
        self._steps = steps
        self._group = group
        self._range = range(done, end)

    def __len__(self) -> int:
        return len(self._range) * _pieces(self._steps, self._group)

    def __iter__(self) -> Iterator[list[int]]:
        once, size = self._steps.windows_at_once, self._group.size
        for step in self._range:
            first = step * self._steps.batch_windows
            for piece in range(_pieces(self._steps, self._group)):
                start = first + (piece * size + self._group.rank) * once
                yield list(range(start, start + once))


def _pieces(steps: Steps, group: Group) -> int:
    return steps.batch_windows // (steps.windows_at_once * group.size)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
