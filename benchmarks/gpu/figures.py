"""What the stages share: options, figures, clocks, and networks of random weights."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from benchmarks.networks import SHAPES, Shape
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.families.loading import device_name
from corpus_asr.models.whisper import WhisperForConditionalGeneration

Value = str | float | int


class Figures:
    """Says the figures of one stage."""

    def __init__(self, say: Callable[[str, Value, str], None]) -> None:
        self._say = say

    def __call__(self, key: str, value: Value, unit: str = "") -> None:
        """Say one figure; keys are words joined by dots, without blanks."""
        self._say(key, value, unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured, and how often."""

    device: torch.device
    dtype: torch.dtype
    shape: Shape
    slots: tuple[int, ...]
    windows: int
    tokens: int
    repeats: int
    quick: bool

    @classmethod
    def of(cls, asked: argparse.Namespace) -> Self:
        """Fill in what the command line leaves open."""
        device = torch.device(asked.device)
        on_gpu = device.type == "cuda"
        # A CPU only shows that everything runs.
        slots: Sequence[int]
        slots, windows, tokens, repeats = (16, 64, 128), 768, 63, 20
        if not on_gpu:
            slots, windows, tokens, repeats = (2, 4), 8, 16, 3
        if asked.quick:
            slots, windows, tokens, repeats = (2,), 3, 6, 1
        dtype = asked.dtype
        if dtype == "auto":
            dtype = "float16" if on_gpu else "float32"
        return cls(
            device=device,
            dtype=getattr(torch, dtype),
            shape=SHAPES[asked.shape],
            slots=tuple(asked.slots or slots),
            windows=asked.windows or windows,
            tokens=asked.tokens or tokens,
            repeats=repeats,
            quick=asked.quick,
        )

    @property
    def device_name(self) -> str:
        """As tables name it."""
        return device_name(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether there are streams, graphs and a memory to measure."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done all it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def median_ms(self, work: Callable[[], object], *, warm_ups: int = 3) -> float:
        """Return the median milliseconds of `work`, on a GPU by the device's own marks."""
        for _ in range(warm_ups if self.on_gpu else 1):
            work()
        self.wait()
        found_ms: list[float] = []
        for _ in range(self.repeats):
            if self.on_gpu:
                event: Any = torch.cuda.Event
                begin, end = (event(enable_timing=True) for _ in range(2))
                begin.record()
                work()
                end.record()
                end.synchronize()
                found_ms.append(begin.elapsed_time(end))
            else:
                started_s = time.perf_counter()
                work()
                found_ms.append(1e3 * (time.perf_counter() - started_s))
        return statistics.median(found_ms)


def random_network(options: Options) -> WhisperForConditionalGeneration:
    """Make a network whose weights are drawn on the device: no file of gigabytes is written."""
    network = options.shape.network().to(options.dtype).to_empty(device=options.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.endswith("layer_norm.weight"):
                weights.fill_(1.0)
            else:
                weights.normal_(std=0.02)
    network.proj_out.weight = network.model.decoder.embed_tokens.weight  # `to_empty` parts them
    return network.eval()


def scheduler_for(options: Options, model: Any, slots: int) -> SlotScheduler:
    """Make a scheduler as the engine does."""
    kind = options.device.type
    return SlotScheduler(
        model, slots, encode_batch=encode_batch_on(kind), check_every=check_every_on(kind)
    )
