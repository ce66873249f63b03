"""The slot model of a network, made once for each state of its weights, and tasks run on it."""

import copy
import functools
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from corpus_asr.decoding.device import set_threads
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler, Task, check_every_on, encode_batch_on
from corpus_asr.families.loading import resolve_dtype

# A slot holds keys and values of a whole text: this bounds what a large batch takes.
_MAX_SLOTS = {"cpu": 8, "cuda": 64}

# Values looked at in each parameter to see that nobody changed it behind torch's back.
_SAMPLES = 64
_HALVES = (torch.float16, torch.bfloat16)
logger = logging.getLogger(__name__)


# Beside the networks, not in them: copies and pickles of a network leave its slots behind.
_slot_models: WeakKeyDictionary[nn.Module, tuple[Any, SlotModel]] = WeakKeyDictionary()


def slot_model(model: Any) -> SlotModel:
    """Return the slot model of `model` as it is now, made again where its weights have changed.

    Where nobody chose the type of the weights, it computes in the one that is best on a CPU: in
    float16, in which most large checkpoints are stored, CPUs are several times slower.
    """
    state = _state(model)
    known, slots = _slot_models.get(model, (None, None))
    if slots is None or known != state:
        if model.device.type == "cpu":
            set_threads()
        slots = _in_best_dtype(model).slot_model()
        _slot_models[model] = state, slots
    found: SlotModel = slots
    return found


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
    samples = [_sample(p) for p in parameters]
    return marks, torch.cat(samples).cpu().numpy().tobytes() if samples else b""


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1) if parameter.is_contiguous() else parameter.flatten()
    return flat[:: max(1, flat.numel() // _SAMPLES)][: 2 * _SAMPLES].float()


def run(model: SlotModel, tasks: Sequence[Task], *, beams: int = 1) -> list[Any]:
    """Run tasks, one per text, on `beams` slots each; returns what each returns."""
    results: list[Any] = [None] * len(tasks)
    errors: list[Exception] = []
    kind = model.device.type
    scheduler = SlotScheduler(
        model,
        max(1, min(len(tasks), _MAX_SLOTS.get(kind, 8))) * beams,
        encode_batch=encode_batch_on(kind),
        check_every=check_every_on(kind),
        num_beams=beams,
    )

    def done(number: int, result: Any, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        results[number] = result

    for number, task in enumerate(tasks):
        scheduler.add(task, partial(done, number))
    while scheduler.pending and not errors:
        scheduler.advance()
    if errors:
        scheduler.fail(errors[0])
        raise errors[0]
    return results
