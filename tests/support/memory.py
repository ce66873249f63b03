"""Bytes: of the tensors an object holds, and of what a function allocates at its peak."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def held_bytes(*roots: object) -> int:
    """Bytes of all tensors reachable from `roots`; shared storage counts once.

    Neither models nor the module-level state of libraries are looked into.
    """
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(roots)}
    return sum(sizes.values())


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes that are allocated at once while `function` runs, what it is given left out."""
    with torch.inference_mode():
        function()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            kept = function()
    del kept
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    present = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak


def _tensors(values: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    seen = set() if seen is None else seen
    if id(values) in seen or isinstance(values, torch.nn.Module):
        return
    seen.add(id(values))
    if isinstance(values, Tensor):
        if not values.is_mkldnn:
            yield values
        return
    for inner in _parts(values):
        yield from _tensors(inner, seen)


def _parts(values: object) -> list[Any]:
    if isinstance(values, dict):
        return list(values.values())
    if isinstance(values, list | tuple | set):
        return list(values)
    if dataclasses.is_dataclass(values):
        return [getattr(values, field.name) for field in dataclasses.fields(values)]
    if type(values).__module__.startswith("corpus_asr."):
        return list(vars(values).values())
    return []
