"""Optimizer steps: examples in, changed weights and a record of each step out.

In: a model, its objective and examples. Out: one record per step; the weights change in place. A
step depends on its number and the weights before it alone, so that a training that is stopped and
resumed ends with the same weights. Independent of files.
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
from corpus_asr.families.layers.side_by_side import run_side_by_side
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Collate, Examples
from corpus_asr.training.group import Group
from corpus_asr.training.objective import Losses, Objective
from corpus_asr.training.optimizer import LearningRates, NamedAdamW, clip

_MAX_OVERFLOWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """The make-up of an optimizer step."""

    batch_size: int
    """Windows per forward pass of a process."""
    accumulation_steps: int
    """Forward passes per optimizer step of a process."""
    max_grad_norm: float
    seed: int
    loader_workers: int
    dtype: torch.dtype
    random: bool
    """Whether the forward pass draws random numbers, as for dropout."""
    distilled_steps: int | None = None
    """Number of initial steps with the teacher; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One optimizer step; its fields are keys of log.jsonl."""

    step: int
    """Number of steps done, this one included."""
    loss: float
    """Mean over tokens."""
    parts: dict[str, float]
    """Terms of the loss."""
    lr: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Number of tokens with a loss."""
    wall_s: float


class Trainer:
    """Trains a model in place.

    Args:
        student: model to train.
        objective: its loss.
        optimizer: updates the weights.
        rates: learning rate of each step.
        examples: training windows.
        padding: token that pads short rows.
        steps: make-up of a step.
        group: processes that train together.
    """

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        objective: Objective,
        optimizer: NamedAdamW,
        rates: LearningRates,
        examples: Examples,
        *,
        padding: int,
        steps: StepSettings,
        group: Group,
    ) -> None:
        self._student = student
        self._objective = objective
        self._optimizer = optimizer
        self._rates = rates
        self._examples = examples
        self._collate = Collate(padding)
        self._steps = steps
        self._group = group
        self._overflows = 0

    def run(self, done: int) -> Iterator[Record]:
        """Run the steps after the first `done`; yields a record of each.

        Raises:
            EngineError: memory does not suffice, or gradients are not finite any more.
        """
        batches = iter(self._loader(done))
        for step in range(done, self._rates.steps):
            try:
                yield self._step(step, batches)
            except torch.OutOfMemoryError as error:
                raise EngineError(
                    f"training step {step + 1}: found too little memory on {self._student.device} "
                    f"for {self._steps.batch_size} windows ({error}); lower "
                    "training.per_device_train_batch_size and raise "
                    "training.gradient_accumulation_steps by the same factor, or set "
                    "training.gradient_checkpointing"
                ) from error

    def _loader(self, done: int) -> DataLoader[Batch]:
        workers = self._steps.loader_workers
        # Threads that compute side by side take several micro-batches at once.
        at_once = self._steps.accumulation_steps if self._side_by_side else 0
        loader: DataLoader[Batch] = DataLoader(
            self._examples,  # type: ignore[arg-type]
            batch_sampler=_WindowNumbers(self._steps, self._group, done, self._rates.steps),
            collate_fn=self._collate,
            num_workers=workers,
            prefetch_factor=max(2, -(-at_once // workers)) if workers else None,
            pin_memory=self._student.device.type == "cuda",
        )
        return loader

    def _step(self, step: int, batches: Iterator[Batch]) -> Record:
        began = time.perf_counter()
        sums: dict[str, float] = {}
        tokens = 0
        learning: list[Tensor] = list(self._optimizer.parameters.values())
        for losses in self._differentiated(step, self._micro_batches(step, batches), learning):
            tokens += losses.tokens
            for name, part in losses.parts.items():
                sums[name] = sums.get(name, 0.0) + part
        totals = torch.tensor([float(tokens), *sums.values()], dtype=torch.float64)
        totals = totals.to(self._student.device)
        gradients = [_gradient(p) for p in learning]
        self._group.add_up([totals, *gradients])
        tokens = int(totals[0])
        for gradient in gradients:
            gradient /= max(1, tokens)
        grad_norm = clip(learning, self._steps.max_grad_norm)
        lr = self._rates.at(step)
        if np.isfinite(grad_norm):  # one window that overflows must not spoil all weights
            self._optimizer.step(lr)
            self._overflows = 0
        else:
            self._optimizer.skip()
            self._count_overflow(step)
        parts = dict(zip(sums, (totals[1:] / max(1, tokens)).tolist(), strict=True))
        return Record(
            step=step + 1,
            loss=sum(parts.values()),
            parts=parts,
            lr=lr,
            grad_norm=grad_norm,
            tokens=tokens,
            wall_s=time.perf_counter() - began,
        )

    def _differentiated(
        self, step: int, batches: Iterator[Batch], learning: list[Tensor]
    ) -> Iterator[Losses]:
        """Add up the gradients of a step, micro-batch by micro-batch; yields the losses."""
        distilled = self._steps.distilled_steps
        distill = distilled is None or step < distilled

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
        return on_cpu and self._steps.batch_size == 1 and not self._steps.random

    def _micro_batches(self, step: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the micro-batches of a step."""
        # Dropout depends on the step and the process alone, so that training resumes exactly.
        torch.manual_seed(_seed(self._steps.seed, step, self._group.rank))
        self._student.train()
        for _ in range(self._steps.accumulation_steps):
            yield next(batches).to(self._student.device)

    def _computing(self) -> torch.autocast:
        dtype = self._steps.dtype
        return torch.autocast(self._student.device.type, dtype, enabled=dtype != torch.float32)

    def _count_overflow(self, step: int) -> None:
        self._overflows += 1
        if self._overflows == _MAX_OVERFLOWS:
            raise EngineError(
                f"training step {step + 1}: found gradients that are not finite in "
                f"{_MAX_OVERFLOWS} steps in a row, expected finite ones; lower "
                "training.learning_rate or set model.dtype: float32, and give another output.uri"
            )


def _gradient(parameter: Tensor) -> Tensor:
    """Return a gradient, of zeros where none was computed: all of a group add up the same list."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _WindowNumbers:
    """Numbers of the windows of each micro-batch of this process, in order."""

    def __init__(self, steps: StepSettings, group: Group, done: int, end: int) -> None:
        self._size = steps.batch_size
        self._per_step = steps.accumulation_steps
        self._group = group
        self._first, self._end = done * self._per_step, end * self._per_step

    def __len__(self) -> int:
        return self._end - self._first

    def __iter__(self) -> Iterator[list[int]]:
        for micro_batch in range(self._first, self._end):
            # Neighboring windows go to different processes: the windows of a step depend on the
            # effective batch size alone.
            start = (micro_batch * self._group.size + self._group.rank) * self._size
            yield list(range(start, start + self._size))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
