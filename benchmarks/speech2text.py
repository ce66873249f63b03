"""Speech2Text beside transformers: the same weights, the same batch, the same text.

Run as `python -m benchmarks.speech2text`; prints a table of medians of rounds in which the engines
take turns: what the clock says, and processor seconds, which other work on the machine distorts
less. Rows have lengths as utterances have, and texts as long as such utterances have. Weights are
random but for those that make the text: each row counts down from the token it is prompted with to
the end token, so that every engine and every type of numbers says the same.
"""

import argparse
import os
import platform
import statistics
import time
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
    features: Tensor
    mask: Tensor
    prompts: Tensor
    max_new_tokens: int


@dataclass
class Engine:
    """One of those that take turns."""

    name: str
    model: Any
    dtype: torch.dtype
    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    @torch.no_grad()
    def generate(self, batch: Batch, *, num_beams: int) -> Tensor:
        wall, processor = time.perf_counter(), time.process_time()
        tokens: Tensor = self.model.generate(
            batch.features.to(self.dtype),
            attention_mask=batch.mask,
            decoder_input_ids=batch.prompts,
            max_new_tokens=batch.max_new_tokens,
            num_beams=num_beams,
        )
        self.wall_s.append(time.perf_counter() - wall)
        self.processor_s.append(time.process_time() - processor)
        return tokens


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
    classes: dict[str, Any] = {
        "transformers": transformers.Speech2TextForConditionalGeneration,
        "corpus-asr": Speech2TextForConditionalGeneration,
    }
    return [
        Engine(f"{library} {name}", kind.from_pretrained(folder, dtype=dtype).eval(), dtype)
        for name, dtype in ((name, getattr(torch, name)) for name in dtypes)
        for library, kind in classes.items()
    ]


def measure(some: list[Engine], rounds: int, batch: Batch, num_beams: int) -> None:
    """Let the engines take turns; the first round warms up."""
    for number in range(rounds + 1):
        for engine in some:
            if number < 2:
                engine.wall_s.clear()
                engine.processor_s.clear()
            text = engine.generate(batch, num_beams=num_beams)
            if engine is some[0]:
                expected = text
            elif not torch.equal(text, expected):
                raise ValueError(f"{engine.name} says another text than {some[0].name}")


def report(some: list[Engine], what: dict[str, Any]) -> None:
    for engine in some:
        cells = [*what.values(), engine.name]
        for name in ("wall_s", "processor_s"):
            first, own = (statistics.median(getattr(each, name)) for each in (some[0], engine))
            cells += [f"{own:.2f}", f"{first / own:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=list(SIZES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 15.0))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
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
    for size in options.sizes:
        with TemporaryDirectory() as folder:
            config = save_network(size, Path(folder))
            some = engines(Path(folder), options.dtypes)
        for rows in options.rows:
            batch = batch_of(config, rows, *options.seconds)
            for beams in options.beams:
                measure(some, options.rounds, batch, beams)
                report(some, {"size": size, "rows": rows, "beams": beams})


if __name__ == "__main__":
    main()
