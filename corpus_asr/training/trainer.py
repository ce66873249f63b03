"""The objective, and optimizer steps: losses, AdamW, learning rates, gradients of all processes.

A step depends on its number and the weights before it alone, so that a training that is stopped
and resumed ends with the same weights. Losses are summed over tokens, so that micro-batches add up
to the whole batch.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from corpus_asr.config.finetune import DistillationSettings, FinetuneConfig, TrainingSettings
from corpus_asr.errors import CheckpointError, ConfigError, EngineError
from corpus_asr.families.layers.packed import run_per_sample
from corpus_asr.families.pretrained import IGNORED_LABEL
from corpus_asr.models.generation.whisper import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Examples, collate

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# Steps in a row with gradients that are not finite, before giving up: one window may overflow now
# and then, but after so many the weights themselves have diverged.
_MAX_OVERFLOWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses of one micro-batch."""

    total: Tensor
    """Sum over tokens."""
    tokens: int
    """Number of tokens with a loss."""
    parts: dict[str, float]
    """Sum over tokens of each term: `labels`, and `teacher` in distillation."""


class Objective:
    """Computes the loss of a batch."""

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        *,
        label_smoothing: float = 0.0,
        distillation: DistillationSettings,
        teacher: WhisperForConditionalGeneration | None,
    ) -> None:
        self._label_smoothing = label_smoothing
        self._distillation = distillation
        self._teacher = teacher
        if teacher is not None:
            _check_teacher(student, teacher)
            # No dropout: its distribution is the target.
            teacher.requires_grad_(False).eval()

    def __call__(
        self, student: WhisperForConditionalGeneration, batch: Batch, *, distill: bool = True
    ) -> Losses:
        """Compute the losses of a batch."""
        logits = _logits(student, batch)
        labels = F.cross_entropy(
            logits.float().flatten(0, 1),
            batch.labels.flatten(),
            ignore_index=IGNORED_LABEL,
            label_smoothing=self._label_smoothing,
            reduction="sum",
        )
        parts = {"labels": labels}
        if self._teacher is not None and distill:
            weight = self._distillation.kl_weight
            divergence = self._divergence(self._teacher, logits, batch)
            parts = {"labels": (1.0 - weight) * labels, "teacher": weight * divergence}
        return Losses(
            total=torch.stack(list(parts.values())).sum(),
            tokens=batch.num_labels,
            parts={name: float(part.detach()) for name, part in parts.items()},
        )

    def _divergence(
        self, teacher: WhisperForConditionalGeneration, logits: Tensor, batch: Batch
    ) -> Tensor:
        with torch.no_grad():
            expected = _logits(teacher, batch)
        counted = batch.labels != IGNORED_LABEL
        temperature = self._distillation.temperature
        ours = F.log_softmax(logits[counted].float() / temperature, dim=-1)
        theirs = F.log_softmax(expected[counted].float() / temperature, dim=-1)
        # Gradients of softened distributions are smaller (Hinton et al. 2015, section 2).
        return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)


def _logits(model: WhisperForConditionalGeneration, batch: Batch) -> Tensor:
    logits: Tensor = model(batch.features.to(model.dtype), decoder_input_ids=batch.inputs).logits
    return logits


def _check_teacher(
    student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration
) -> None:
    for key in ("num_mel_bins", "vocab_size"):
        found, expected = getattr(teacher.config, key), getattr(student.config, key)
        if found != expected:
            raise ConfigError(
                f"distillation.teacher: found a checkpoint with {key} {found}, expected the "
                f"student's {expected}; choose another teacher"
            )


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together; by default, this one alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Self:
        """Return the group that `torch.distributed` was set up with, if it was."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the group."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Return the rate of a step, counted from 0."""
    peak, warmup_steps = settings.learning_rate, settings.warmup_steps
    if step < warmup_steps:
        # From step 0 on above zero, and at the peak in the step after the last one.
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, settings.max_steps - warmup_steps)
    if settings.lr_scheduler_type == "linear":
        return peak * (1.0 - done)
    if settings.lr_scheduler_type == "cosine":
        return peak * (1.0 + math.cos(math.pi * done)) / 2
    return peak


def freeze(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Freeze parameters whose names match a pattern; returns the others by name."""
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"freezing {pattern!r}: found no parameter of that name among {len(names)}, such "
                f"as {names[0]}; correct model.freeze, for example model.encoder.*"
            )
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            trained[name] = parameter
    if not trained:
        raise ConfigError(
            f"freezing {', '.join(patterns)}: found nothing left to train; correct model.freeze"
        )
    return trained


class NamedAdamW:
    """AdamW with its state by parameter names."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> None:
        self.parameters = dict(parameters)
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        # Norms and biases do not decay: a scale near 0 is no simpler than one near 1.
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        betas = (settings.adam_beta1, settings.adam_beta2)
        # The learning rate is set before each step, from the step's number alone.
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def step(self, rate: float, *, skip: bool = False) -> None:
        """Change the weights by their gradients, unless these are to be skipped; clear those."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        if not skip:
            self._adamw.step()
        self._adamw.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return the moments as tensors by name."""
        return {
            f"{moment}.{name}": self._adamw.state[parameter][moment]
            for name, parameter in self.parameters.items()
            if parameter in self._adamw.state
            for moment in _MOMENTS
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore moments; parameters without a step yet have none."""
        known = {name for name in self.parameters if f"{_MOMENTS[0]}.{name}" in state}
        expected = {f"{moment}.{name}" for name in known for moment in _MOMENTS}
        if expected != set(state):
            wrong = sorted(expected ^ set(state))[:3]
            raise CheckpointError(
                f"resuming: found moments of other parameters ({', '.join(wrong)} and so on), "
                "expected those of the trained ones; resume with the same model.freeze and lora"
            )
        for name in known:
            parameter = self.parameters[name]
            # Fused AdamW wants all of them, the step's number too, where the parameter is.
            self._adamw.state[parameter] = {
                moment: state[f"{moment}.{name}"].to(parameter.device, copy=True)
                for moment in _MOMENTS
            }


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
    """Trains a model in place."""

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        objective: Objective,
        optimizer: NamedAdamW,
        examples: Examples,
        *,
        config: FinetuneConfig,
        dtype: torch.dtype,
        padding: int,
        group: Group,
    ) -> None:
        self._student = student
        self._objective = objective
        self._optimizer = optimizer
        self._examples = examples
        self._config = config
        self._settings = config.training
        self._dtype = dtype
        self._collate = partial(collate, padding=padding)
        self._group = group
        self._overflows = 0
        # Several threads draw from one generator in no certain order: with dropout, windows
        # cannot be computed by a thread each.
        network = student.config
        chances = (
            config.lora.dropout, network.dropout, network.attention_dropout,
            network.activation_dropout, network.encoder_layerdrop, network.decoder_layerdrop,
        )  # fmt: skip
        is_random = any(chance > 0 for chance in chances)
        one_window = self._settings.per_device_train_batch_size == 1
        self._thread_per_window = student.device.type == "cpu" and one_window and not is_random

    def run(self, done: int) -> Iterator[Record]:
        """Run the steps after the first `done`; yields a record of each."""
        batches = iter(self._loader(done))
        for step in range(done, self._settings.max_steps):
            try:
                yield self._step(step, batches)
            except torch.OutOfMemoryError as error:
                raise EngineError(
                    f"training step {step + 1}: found too little memory on {self._student.device} "
                    f"for {self._settings.per_device_train_batch_size} windows ({error}); lower "
                    "training.per_device_train_batch_size and raise "
                    "training.gradient_accumulation_steps by the same factor, or set "
                    "training.gradient_checkpointing"
                ) from error

    def _loader(self, done: int) -> DataLoader[Batch]:
        workers = self._config.data.workers
        # Threads that compute side by side take several micro-batches at once.
        at_once = self._settings.gradient_accumulation_steps if self._thread_per_window else 0
        loader: DataLoader[Batch] = DataLoader(
            self._examples,  # type: ignore[arg-type]
            batch_sampler=_window_numbers(self._settings, self._group, done),
            collate_fn=self._collate,
            num_workers=workers,
            worker_init_fn=_share_by_name,
            prefetch_factor=max(2, -(-at_once // workers)) if workers else None,
            # Page-locked memory is copied to a GPU while that computes.
            pin_memory=self._student.device.type == "cuda",
        )
        return loader

    def _step(self, step: int, batches: Iterator[Batch]) -> Record:
        began = time.perf_counter()
        sums: dict[str, float] = {}
        tokens = 0
        parameters: list[Tensor] = list(self._optimizer.parameters.values())
        for losses in self._differentiated(step, self._micro_batches(step, batches), parameters):
            tokens += losses.tokens
            for name, part in losses.parts.items():
                sums[name] = sums.get(name, 0.0) + part
        totals = torch.tensor([float(tokens), *sums.values()], dtype=torch.float64)
        totals = totals.to(self._student.device)
        gradients = [_gradient(p) for p in parameters]
        self._group.add_up([totals, *gradients])
        # Of all processes: a mean is over tokens, wherever they were.
        tokens = int(totals[0])
        for gradient in gradients:
            gradient /= max(1, tokens)
        grad_norm = float(nn.utils.clip_grad_norm_(parameters, self._settings.max_grad_norm))
        lr = learning_rate(self._settings, step)
        is_finite = math.isfinite(grad_norm)
        # One window that overflows must not spoil all weights.
        self._optimizer.step(lr, skip=not is_finite)
        self._count_overflow(step, is_finite)
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
        self, step: int, batches: Iterator[Batch], parameters: list[Tensor]
    ) -> Iterator[Losses]:
        distilled_steps = self._config.distillation.initial_steps
        distill = distilled_steps is None or step < distilled_steps
        device, mixed = self._student.device.type, self._dtype != torch.float32

        def losses_of(batch: Batch) -> Losses:
            with torch.autocast(device, self._dtype, enabled=mixed):
                return self._objective(self._student, batch, distill=distill)

        if not self._thread_per_window:
            for batch in batches:
                losses = losses_of(batch)
                losses.total.backward()  # type: ignore[no-untyped-call]
                yield losses
            return

        def differentiated(batch: Batch) -> tuple[Losses, tuple[Tensor | None, ...]]:
            losses = losses_of(batch)
            gradients = torch.autograd.grad(losses.total, parameters, allow_unused=True)
            return replace(losses, total=losses.total.detach()), gradients

        threads = torch.get_num_threads()
        # No more micro-batches than threads at a time: each keeps gradients of all parameters.
        while some := list(itertools.islice(batches, threads)):
            for losses, gradients in run_per_sample(differentiated, some, inference=False):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        _gradient(parameter).add_(gradient)
                yield losses

    def _micro_batches(self, step: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        # Dropout depends on the step and the process alone, so that training resumes exactly.
        entropy = (self._settings.seed, step, self._group.rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self._student.train()
        for _ in range(self._settings.gradient_accumulation_steps):
            yield next(batches).to(self._student.device)

    def _count_overflow(self, step: int, is_finite: bool) -> None:
        self._overflows = 0 if is_finite else self._overflows + 1
        if self._overflows == _MAX_OVERFLOWS:
            raise EngineError(
                f"training step {step + 1}: found gradients that are not finite in "
                f"{_MAX_OVERFLOWS} steps in a row, expected finite ones; lower "
                "training.learning_rate or set model.compute_type: float32, and give another "
                "output.uri"
            )


def _gradient(parameter: Tensor) -> Tensor:
    # Zeros where none was computed: all processes of a group have to add up the same list.
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _share_by_name(_worker: int) -> None:
    # The default hands descriptors over a socket, whose thread in the worker prints a traceback
    # where Ctrl-C ends the reader in the middle of it; shared memory by name needs no socket.
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]


def _window_numbers(settings: TrainingSettings, group: Group, done: int) -> Iterator[list[int]]:
    size, per_step = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    for micro_batch in range(done * per_step, settings.max_steps * per_step):
        # Neighboring windows go to different processes: the windows of a step depend on the
        # effective batch size alone.
        start = (micro_batch * group.size + group.rank) * size
        yield list(range(start, start + size))
