"""Slot models of networks, cached for each state of their weights, and execution of tasks."""

import copy
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from corpus_asr.decoding.device import set_threads
from corpus_asr.decoding.jobs import Task
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.families.layers.plain import first_changed
from corpus_asr.families.loading import resolve_dtype

# Maximum slots; a slot has keys and values of a whole text.
_MAX_SLOTS = {"cpu": 8, "cuda": 64}
_HALVES = (torch.float16, torch.bfloat16)
# Number of elements compared per weight: 6 ms for whisper-base on a busy CPU; all take 52.
_SAMPLE = 64
# PEFT is not imported: a network without adapters does not need it.
_PEFT_LAYERS = "peft.tuners.lora.layer"
logger = logging.getLogger(__name__)


_Shape = tuple[int, tuple[int, int], int]


@dataclass(slots=True)
class _CachedSlotModel:
    """Slot model of a network in one state of its weights."""

    state: Any
    model: SlotModel
    schedulers: dict[_Shape, SlotScheduler] = field(default_factory=dict)
    """On a GPU the last scheduler, by its beams, windows and tokens: to allocate its caches and to
    record its steps again would take several tenths of a second per call."""


# Not attributes of the networks: copies and pickles of a network exclude its slots.
_slots: WeakKeyDictionary[nn.Module, _CachedSlotModel] = WeakKeyDictionary()
# The module of the last warning, by network.
_warned: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def changed_module(network: Any) -> str | None:
    """Return the first module that slot models do not stand for, with a reason, and warn of it."""
    changed = first_changed(_replace_lora(network, attrgetter("base_layer")))
    if changed is not None and _warned.get(network) != changed:
        _warned[network] = changed
        warnings.warn(
            f"generating text: {changed}, expected the family's modules or plain LoRA; decoding "
            "is several times slower: merge adapters (merge_and_unload) and remove hooks",
            stacklevel=3,
        )
    return changed


def slot_model(network: Any) -> SlotModel:
    """Return the slot model of a network, rebuilt if its weights have changed.

    If the caller chose no data type, it computes in the best one on a CPU: in float16, in which
    most large checkpoints are stored, CPUs are several times slower.
    """
    return _slots_of(network).model


def _slots_of(network: Any) -> _CachedSlotModel:
    state = _state(network)
    entry = _slots.get(network)
    if entry is None or entry.state != state:
        # Before another one is created: both would need memory.
        entry = None
        _slots.pop(network, None)
        on_cpu = network.device.type == "cpu"
        if on_cpu:
            set_threads()
        model = _in_best_dtype(_replace_lora(network, _merged)).slot_model()
        # Off the CPU some weights were fused, at another address.
        entry = _slots[network] = _CachedSlotModel(state if on_cpu else _state(network), model)
    return entry


def _replace_lora(module: Any, replacement: Callable[[Any], nn.Module]) -> Any:
    """Return a copy of a module with replaced LoRA layers that shares everything else."""
    if _is_lora(module):
        return replacement(module)
    children = {
        name: child and _replace_lora(child, replacement) for name, child in module._modules.items()
    }
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    copied = copy.copy(module)
    copied._modules = children
    return copied


def _lora_state(network: nn.Module) -> str:
    """Return the state besides weights that affects the text: active adapters and their scale."""
    layers: list[Any] = [module for module in network.modules() if _is_lora(module)]
    names = ("disable_adapters", "merged_adapters", "active_adapters", "scaling")
    return repr([[getattr(layer, name) for name in names] for layer in layers])


def _is_lora(layer: Any) -> bool:
    # Adapters per row of a batch are hooks of PEFT.
    return (
        type(layer) is getattr(sys.modules.get(_PEFT_LAYERS), "Linear", None)
        and type(layer.base_layer) is nn.Linear
        and "forward" not in vars(layer)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())
    )


def _merged(layer: Any) -> nn.Module:
    if layer.disable_adapters == layer.merged:
        # A copy: merging and unmerging a trained layer would round its weights each time, and
        # change tied weights.
        layer = copy.deepcopy(layer)
        layer.unmerge() if layer.merged else layer.merge()
    base: nn.Module = layer.base_layer
    return base


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
        "weights are %s, which is slow on this CPU: a copy in %s is used; load with "
        "dtype=torch.%s for that alone, or dtype=torch.%s for %s",
        stored, best, best, stored, stored,
    )  # fmt: skip


@torch.no_grad()
def _state(network: nn.Module) -> tuple[Any, ...]:
    # Torch counts in-place changes, and new storage has another address. Changes through `.data`,
    # as by merging adapters, are not counted, so some elements of each weight are compared too.
    weights = list(network.parameters())
    marks = [(w.data_ptr(), w._version, w.dtype, w.device, w.shape) for w in weights]
    samples = [w.flatten()[:: w.numel() // _SAMPLE + 1].float() for w in weights]
    return marks, torch.cat(samples).cpu().numpy().tobytes(), _lora_state(network)


def run(
    network: Any, tasks: Sequence[Task], *, model: SlotModel | None = None, beams: int = 1
) -> list[Any]:
    """Run tasks, one per text, on `beams` slots each; return their results.

    `model` is the network's slot model for other windows, if it is not the usual one.
    """
    model = slot_model(network) if model is None else model
    slots = _slots[network]
    shape = beams, model.window_shape, model.max_target_positions
    results: list[Any] = [None] * len(tasks)
    errors: list[Exception] = []

    def done(number: int, result: Any, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        results[number] = result

    # Removed while in use: threads never share one, and a failed one is not kept.
    scheduler = slots.schedulers.pop(shape, None)
    slots.schedulers.clear()
    if scheduler is None or scheduler.slots < _num_slots(model, len(tasks), beams):
        scheduler = None  # released before another is created
        scheduler = _scheduler(model, len(tasks), beams)
    for number, task in enumerate(tasks):
        scheduler.add(task, partial(done, number))
    with in_own_type(model.device):
        while scheduler.pending and not errors:
            scheduler.advance()
    if errors:
        scheduler.fail(errors[0])
        raise errors[0]
    if model.device.type == "cuda":
        slots.schedulers[shape] = scheduler
    return results


def in_own_type(device: torch.device) -> torch.autocast:
    """Return a context that computes in the type of the weights under `torch.autocast` too.

    Packed weights have one type, and threads that compute single rows are not under autocast.
    """
    return torch.autocast(device.type, enabled=False)


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
