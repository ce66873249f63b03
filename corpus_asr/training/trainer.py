"""Steps of training: examples in, changed weights and a record of each step out.

In: a network, what it is to learn and from what. Out: records, one per step, and the network's
weights changed in place. A step depends on its number and the weights before it alone, so training
that is stopped and resumed ends with the same weights. Knows no files.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from corpus_asr.errors import EngineError
from corpus_asr.models.layers.side_by_side import run_side_by_side
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Collate, Examples
from corpus_asr.training.group import Group
from corpus_asr.training.objective import Losses, Objective
from corpus_asr.training.optimiser import NamedAdamW, Rates, clip

_MAX_OVERFLOWS = 20


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
        self._overflows = 0

    def run(self, done: int) -> Iterator[Record]:
        """Make the steps after the first `done`, and say of each what came of it.

        Raises:
            EngineError: memory does not suffice, or gradients are no numbers any more.
        """
        batches = iter(self._loader(done))
        for step in range(done, self._rates.steps):
            try:
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
        # Where a step takes all its pieces at once, the next step's are made meanwhile.
        pieces = _pieces(self._steps, self._group) if self._side_by_side else 0
        loader: DataLoader[Batch] = DataLoader(
            self._examples,  # type: ignore[arg-type]
            batch_sampler=_Numbers(self._steps, self._group, done, self._rates.steps),
            collate_fn=self._collate,
            num_workers=workers,
            prefetch_factor=max(2, -(-pieces // workers)) if workers else None,
            pin_memory=self._student.device.type == "cuda",
        )
        return loader

    def _step(self, step: int, batches: Iterator[Batch]) -> Record:
        began = time.perf_counter()
        sums: dict[str, float] = {}
        tokens = 0
        learning = list(self._optimiser.parameters.values())
        for losses in self._learnt(step, self._pieces(step, batches), learning):
            tokens += losses.tokens
            for name, part in losses.parts.items():
                sums[name] = sums.get(name, 0.0) + part
        told = torch.tensor([float(tokens), *sums.values()], dtype=torch.float64)
        told = told.to(self._student.device)
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

    def _learnt(
        self, step: int, batches: Iterator[Batch], learning: list[Tensor]
    ) -> Iterator[Losses]:
        """Add up the gradients of a step, micro-batch by micro-batch."""
        distill = self._steps.taught is None or step < self._steps.taught

        def losses_of(batch: Batch) -> Losses:
            with self._computing():
                return self._objective(self._student, batch, distill=distill)

        if not self._side_by_side:
            for batch in batches:
                losses = losses_of(batch)
                losses.total.backward()  # type: ignore[no-untyped-call]
                yield losses
            return

        def differentiated(batch: Batch) -> tuple[Losses, tuple[Tensor | None, ...]]:
            losses = losses_of(batch)
            gradients = torch.autograd.grad(losses.total, learning, allow_unused=True)
            return replace(losses, total=losses.total.detach()), gradients

        threads = torch.get_num_threads()
        # No more micro-batches than threads at a time: each keeps gradients of all parameters.
        while some := list(itertools.islice(batches, threads)):
            for losses, gradients in run_side_by_side(differentiated, some, inference=False):
                for parameter, gradient in zip(learning, gradients, strict=True):
                    if gradient is not None:
                        _gradient(parameter).add_(gradient)
                yield losses

    @property
    def _side_by_side(self) -> bool:
        """Whether windows are computed by a thread each, which do not wait for one another.

        Several draw from one generator in no certain order, so there must be no chance in them.
        """
        on_cpu = self._student.device.type == "cpu"
        return on_cpu and self._steps.windows_at_once == 1 and not _draws(self._student)

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


def _draws(network: WhisperForConditionalGeneration) -> bool:
    """Return whether chance decides what a network computes in training."""
    config = network.config
    return any(
        (
            config.dropout,
            config.attention_dropout,
            config.activation_dropout,
            config.encoder_layerdrop,
            config.decoder_layerdrop,
        )
    )


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
