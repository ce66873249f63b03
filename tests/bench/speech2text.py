"""Speech2Text beside transformers: the same weights, the same batch, the same text.

Run as `python -m tests.bench.speech2text`; prints a table of medians of rounds in which the engines
take turns: what the clock says, and processor seconds, which other work on the machine distorts
less. Rows have lengths as utterances have, and texts as long as such utterances have. Weights are
random but for those that make the text: each row counts down from the token it is prompted with to
the end token, so that every engine and every type of numbers says the same.
"""

import argparse
import json
import os
import platform
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
# Of LibriSpeech: 2.7 words a second, of 1.25 of the 10,000 tokens of the published checkpoints.
TOKENS_PER_SECOND = 3.4
# The published checkpoints of these names: width, heads, inner width.
SIZES = {"small": (256, 4, 2048), "medium": (512, 8, 2048), "large": (1024, 16, 4096)}
# Logits of the next token of a countdown, and of the end token in all other places.
_NEXT, _END = 25.0, 17.0


@dataclass(frozen=True)
class Batch:
    """Rows of several lengths."""

    features: Tensor
    mask: Tensor
    prompts: Tensor
    max_new_tokens: int


@dataclass
class Engine:
    """One of those that take turns."""

    name: str
    generate: Callable[..., Tensor]
    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)
    said: Tensor = field(default_factory=lambda: torch.empty(0))


def batch_of(config: Any, rows: int, shortest_s: float, longest_s: float) -> Batch:
    """Rows whose lengths lie evenly between two, in mixed order, and what they are to say."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.linspace(longest_s, shortest_s, rows)
    seconds = seconds[torch.randperm(rows, generator=generator)]
    lengths = seconds.mul(FRAMES_PER_SECOND).long()
    features = torch.randn(rows, int(lengths.max()), 80, generator=generator)
    mask = (torch.arange(features.shape[1])[None] < lengths[:, None]).long()
    tokens = seconds.mul(TOKENS_PER_SECOND).long().clamp(min=1)
    starts = torch.full_like(tokens, config.decoder_start_token_id)
    return Batch(
        features=features * mask[:, :, None],
        mask=mask,
        prompts=torch.stack([starts, config.eos_token_id + tokens], dim=1),
        max_new_tokens=int(tokens.max()) + 8,
    )


def save_network(size: str, folder: Path) -> Any:
    """Save random weights that count down; returns the configuration."""
    width, heads, inner = SIZES[size]
    config = transformers.Speech2TextConfig(
        d_model=width,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Speech2TextForConditionalGeneration(config)
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(torch.randn(config.vocab_size, width), dim=1)
        always = torch.nn.functional.normalize(torch.randn(width), dim=0)
        decoder = model.model.decoder
        decoder.embed_tokens.weight.copy_(tokens * width**0.5)
        decoder.layer_norm.bias.copy_(always)
        model.lm_head.weight.copy_(tokens.roll(-1, dims=0) * _NEXT / width**0.5)
        model.lm_head.weight[config.eos_token_id] += always * _END
    model.save_pretrained(folder)
    return config


def engines(folder: Path, dtypes: list[str]) -> list[Engine]:
    """Load the checkpoint in both libraries."""
    found = []
    for name in dtypes:
        dtype = getattr(torch, name)
        ours: Any = Speech2TextForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        theirs: Any = transformers.Speech2TextForConditionalGeneration.from_pretrained(
            folder, dtype=dtype
        )
        for library, model in (("transformers", theirs), ("corpus-asr", ours)):
            model.eval()
            found.append(Engine(f"{library} {name}", _without_gradients(model, dtype)))
    return found


def _without_gradients(model: Any, dtype: torch.dtype) -> Callable[..., Tensor]:
    @torch.no_grad()
    def generate(batch: Batch, *, num_beams: int) -> Tensor:
        tokens: Tensor = model.generate(
            batch.features.to(dtype),
            attention_mask=batch.mask,
            decoder_input_ids=batch.prompts,
            max_new_tokens=batch.max_new_tokens,
            num_beams=num_beams,
        )
        return tokens

    return generate


def measure(some: list[Engine], rounds: int, batch: Batch, num_beams: int) -> None:
    """Let the engines take turns."""
    for engine in some:
        engine.wall_s.clear()
        engine.processor_s.clear()
    for number in range(rounds + 1):
        for engine in some:
            wall, processor = time.perf_counter(), time.process_time()
            engine.said = engine.generate(batch, num_beams=num_beams)
            if number:  # the first round warms up
                engine.wall_s.append(time.perf_counter() - wall)
                engine.processor_s.append(time.process_time() - processor)
    for engine in some[1:]:
        if not torch.equal(engine.said, some[0].said):
            raise ValueError(f"{engine.name} says another text than {some[0].name}")


def report(some: list[Engine], what: dict[str, Any]) -> list[dict[str, Any]]:
    """Print a line for each engine; returns the numbers."""
    found = []
    for engine in some:
        ratios = [
            statistics.median(first) / statistics.median(own)
            for first, own in (
                (some[0].wall_s, engine.wall_s),
                (some[0].processor_s, engine.processor_s),
            )
        ]
        wall, processor = (statistics.median(s) for s in (engine.wall_s, engine.processor_s))
        print(
            f"| {' | '.join(str(value) for value in what.values())} | {engine.name} | {wall:.2f} | "
            f"{ratios[0]:.2f} | {processor:.2f} | {ratios[1]:.2f} |",
            flush=True,
        )
        found.append(
            {**what, "engine": engine.name, "wall_s": engine.wall_s.copy()}
            | {"processor_s": engine.processor_s.copy()}
        )
    return found


def main() -> None:
    """Measure all combinations asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=list(SIZES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 15.0))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--json", type=Path, help="where every single run is written to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} "
        f"threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print("| size | rows | beams | | wall s | x as fast | processor s | x as fast |")
    print("|---|--:|--:|---|--:|--:|--:|--:|")
    found = []
    for size in options.sizes:
        with TemporaryDirectory() as folder:
            config = save_network(size, Path(folder))
            some = engines(Path(folder), options.dtypes)
        for rows in options.rows:
            batch = batch_of(config, rows, *options.seconds)
            for beams in options.beams:
                measure(some, options.rounds, batch, beams)
                found += report(some, {"size": size, "rows": rows, "beams": beams})
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
