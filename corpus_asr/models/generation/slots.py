"""The slot model of a network, made once for each state of its weights, and tasks run on it."""

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from corpus_asr.decoding.device import set_threads
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.decoding.tasks import Task
from corpus_asr.families.loading import resolve_dtype

# A slot holds keys and values of a whole text: this bounds what a large batch takes.
_MAX_SLOTS = {"cpu": 8, "cuda": 64}

# Values looked at in each parameter to see that nobody changed it behind torch's back.
_SAMPLES = 64
_HALVES = (torch.float16, torch.bfloat16)
logger = logging.getLogger(__name__)


_Shape = tuple[int, tuple[int, int], int]


@dataclass(slots=True)
class _Slots:
    """What search needs of a network in one state of its weights."""

    state: Any
    model: SlotModel
    kept: dict[_Shape, SlotScheduler] = field(default_factory=dict)
    """On a GPU the last scheduler, by its beams, windows and tokens: to make its caches and to
    record its steps again would take several tenths of a second in each call."""


# Beside the networks, not in them: copies and pickles of a network leave its slots behind.
_slots: WeakKeyDictionary[nn.Module, _Slots] = WeakKeyDictionary()


def slot_model(network: Any) -> SlotModel:
    """Return the slot model of a network, made again where its weights have changed.

    Where nobody chose the type of the weights, it computes in the one that is best on a CPU: in
    float16, in which most large checkpoints are stored, CPUs are several times slower.
    """
    return _slots_of(network).model


def _slots_of(network: Any) -> _Slots:
    state = _state(network)
    known = _slots.get(network)
    if known is None or known.state != state:
        if network.device.type == "cpu":
            set_threads()
        model = _in_best_dtype(network).slot_model()
        # Elsewhere some weights have been put together, at another address.
        state = state if network.device.type == "cpu" else _state(network)
        known = _slots[network] = _Slots(state, model)
    return known


def _in_best_dtype(model: Any) -> Any:
    stored = getattr(model, "stored_dtype", None)
    if model.device.type != "cpu" or model.dtype != stored or stored not in _HALVES:
        return model
    best = resolve_dtype("auto", model.device)
    if best == stored:
        return model
    _tell_once(str(stored).removeprefix("torch."), str(best).removeprefix("torch."))
    return copy.deepcopy(model).to(best)


@functools.cache
def _tell_once(stored: str, best: str) -> None:
    logger.warning(
        "the checkpoint's weights are %s, in which this CPU is slow: text is generated in %s, with "
        "a copy of them; load with dtype=torch.%s to have that alone, or dtype=torch.%s for %s",
        stored, best, best, stored, stored,
    )  # fmt: skip


@torch.no_grad()
def _state(model: nn.Module) -> tuple[Any, ...]:
    # Torch counts changes made in place, and new storage has another address; changes through
    # `.data` are not counted, so some values of every parameter are compared too.
    parameters = list(model.parameters())
    marks = tuple((p.data_ptr(), p._version, p.dtype, p.device, p.shape) for p in parameters)
    # Of one type all at once: a copy for each of a thousand parameters is a launch each on a GPU.
    samples: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        samples.setdefault(parameter.dtype, []).append(_sample(parameter))
    values = [torch.cat(some).view(torch.uint8).cpu() for some in samples.values()]
    return marks, b"".join(some.numpy().tobytes() for some in values)


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1) if parameter.is_contiguous() else parameter.flatten()
    return flat[:: max(1, flat.numel() // _SAMPLES)][: 2 * _SAMPLES]


def run(
    network: Any, tasks: Sequence[Task], *, model: SlotModel | None = None, beams: int = 1
) -> list[Any]:
    """Run tasks, one per text, on `beams` slots each; returns what each returns.

    `model` is the network's slot model for other windows, where it is not the usual one.
    """
    slots = _slots_of(network)
    model = model or slots.model
    shape = beams, model.window_shape, model.max_target_positions
    results: list[Any] = [None] * len(tasks)
    errors: list[Exception] = []

    def done(number: int, result: Any, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        results[number] = result

    # Taken away while it is used: threads never share one, nor is one kept that broke down.
    scheduler = slots.kept.pop(shape, None)
    slots.kept.clear()
    if scheduler is None or scheduler.slots < _num_slots(model, len(tasks), beams):
        scheduler = None  # before there is another
        scheduler = _scheduler(model, len(tasks), beams)
    for number, task in enumerate(tasks):
        scheduler.add(task, partial(done, number))
    while scheduler.pending and not errors:
        scheduler.advance()
    if errors:
        scheduler.fail(errors[0])
        raise errors[0]
    if model.device.type == "cuda":
        slots.kept[shape] = scheduler
    return results


def _num_slots(model: SlotModel, texts: int, beams: int) -> int:
    return max(1, min(texts, _MAX_SLOTS.get(model.device.type, 8))) * beams


def _scheduler(model: SlotModel, texts: int, beams: int) -> SlotScheduler:
    kind = model.device.type
    return SlotScheduler(
        model,
        _num_slots(model, texts, beams),
        encode_batch=encode_batch_on(kind),
        check_every=check_every_on(kind),
        num_beams=beams,
    )
