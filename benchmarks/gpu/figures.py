"""What the stages share: options, figures, clocks, and networks of random weights."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import torch

from corpus_asr.benchmark import measuring
from corpus_asr.benchmark.measuring import Shape
from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.decoding.tasks import Steps
from corpus_asr.families.loading import device_name
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.units import WINDOW_FRAMES

# Beside the published sizes one that shows in seconds that everything runs.
SHAPES = {
    **measuring.SHAPES,
    "nano": measuring.Shape(name="nano", width=64, encoder_layers=1, decoder_layers=1),
}
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


def random_job(shape: Shape, number: int, *, tokens: int, **search: Any) -> WindowJob:
    """Ask for exactly so many tokens of a window of noise."""
    end = shape.vocabulary.index("<|endoftext|>")
    prompt = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    return WindowJob(
        features=_noise(shape.num_mel_bins, number % 16),
        window=(number,),
        prompt=tuple(map(shape.vocabulary.index, prompt)),
        rules=TokenRules(end=end, suppress=(end,)),
        max_new_tokens=tokens,
        search=Search(**search),
        seed=number,
    )


@cache
def _noise(num_mel_bins: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.uniform(-1, 1, (num_mel_bins, WINDOW_FRAMES)).astype(np.float16)


def scheduler_for(options: Options, model: Any, slots: int) -> SlotScheduler:
    """Make a scheduler as the engine does."""
    kind = options.device.type
    return SlotScheduler(
        model, slots, encode_batch=encode_batch_on(kind), check_every=check_every_on(kind)
    )


def decode_all(scheduler: SlotScheduler, jobs: Sequence[Any]) -> list[Any]:
    """Run jobs side by side; returns the result of each, or raises what ended one."""
    found: dict[int, Any] = {}

    def ask(job: Any) -> Steps[Any]:
        result = yield job
        return result

    def note(number: int) -> Callable[[Any, Exception | None], None]:
        def done(result: Any, error: Exception | None) -> None:
            if error is not None:
                raise error
            found[number] = result

        return done

    for number, job in enumerate(jobs):
        scheduler.add(ask(job), note(number))
    while scheduler.pending:
        scheduler.advance()
    return [found[number] for number in range(len(jobs))]
