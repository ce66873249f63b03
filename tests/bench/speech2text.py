"""Speech2Text beside transformers: the same random weights, batch and number of tokens.

Run as `python -m tests.bench.speech2text`; prints a table of processor seconds, medians of rounds
in which the engines take turns, and how many times as fast as transformers each is. With one
thread these are what the clock says on a machine that does nothing else. Weights are random, so the
number of tokens is fixed: the end token is never said.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration

FRAMES_PER_SECOND = 100


@dataclass
class Engine:
    """One of those that take turns."""

    name: str
    generate: Callable[..., Tensor]
    seconds: list[float] = field(default_factory=list)


def batch(rows: int, shortest_s: float, longest_s: float) -> tuple[Tensor, Tensor]:
    """Features of rows whose lengths lie evenly between two, and their mask."""
    lengths = torch.linspace(shortest_s, longest_s, rows).mul(FRAMES_PER_SECOND).long()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, int(lengths.max()), 80, generator=generator)
    mask = (torch.arange(features.shape[1])[None] < lengths[:, None]).long()
    return features * mask[:, :, None], mask


def engines(folder: Path, dtypes: list[str]) -> list[Engine]:
    """Load the checkpoint in both libraries."""
    found = []
    for name in dtypes:
        dtype = getattr(torch, name)
        ours: Any = Speech2TextForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        theirs: Any = transformers.Speech2TextForConditionalGeneration.from_pretrained(
            folder, dtype=dtype
        )
        for library, model in (("transformers", theirs), ("corpus_asr", ours)):
            model.eval()
            found.append(Engine(f"{library} {name}", _without_gradients(model, dtype)))
    return found


def _without_gradients(model: Any, dtype: torch.dtype) -> Callable[..., Tensor]:
    @torch.no_grad()
    def generate(features: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
        tokens: Tensor = model.generate(features.to(dtype), attention_mask=mask, **arguments)
        return tokens

    return generate


def measure(some: list[Engine], rounds: int, *inputs: Tensor, **arguments: Any) -> None:
    """Let the engines take turns, and print medians."""
    for engine in some:
        engine.seconds.clear()
    for number in range(rounds + 1):
        for engine in some:
            start = time.process_time()
            engine.generate(*inputs, **arguments)
            if number:  # the first round warms up
                engine.seconds.append(time.process_time() - start)
    reference = statistics.median(some[0].seconds)
    print(", ".join(f"{name}={value}" for name, value in arguments.items()))
    for engine in some:
        median = statistics.median(engine.seconds)
        spread = f"{min(engine.seconds):.2f}-{max(engine.seconds):.2f}"
        print(f"  {engine.name:25} {median:6.2f} s ({spread}), {reference / median:.2f} x")


def main() -> None:
    """Measure greedy search, then beams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs=2, default=(10.0, 15.0))
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    inputs = batch(options.rows, *options.seconds)
    with TemporaryDirectory() as folder:
        config = transformers.Speech2TextConfig()  # s2t-small's
        transformers.Speech2TextForConditionalGeneration(config).save_pretrained(folder)
        some = engines(Path(folder), options.dtypes)
    for beams in options.beams:
        measure(
            some,
            options.rounds,
            *inputs,
            num_beams=beams,
            max_new_tokens=options.tokens,
            suppress_tokens=[config.eos_token_id],
        )


if __name__ == "__main__":
    main()
