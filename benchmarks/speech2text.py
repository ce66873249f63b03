"""Speech2Text beside transformers: the same weights, the same batch, the same text.

    python -m benchmarks.speech2text [--sizes small] [--rows 1 8] [--beams 1 5]

Rows have lengths as utterances have, and texts as long as such utterances have. Weights are random
but for those that make the text: each row counts down from the token it is prompted with to the end
token, so that every engine and every type of numbers returns the same.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.measure import Row, measure, table
from benchmarks.worker import Engine
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.threads import usable_threads

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
    audio_s: float


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
        audio_s=float(seconds.sum()),
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


CLASSES: dict[str, Any] = {
    "corpus-asr": Speech2TextForConditionalGeneration,
    "transformers": transformers.Speech2TextForConditionalGeneration,
}


def engine(
    model: str, *, library: str, dtype: str, threads: int, num_beams: int, sizes: Sequence[Any]
) -> Engine:
    """Load the network of a library; it returns the tokens of a batch."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loaded = CLASSES[library].from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    batch = batch_of(loaded.config, *sizes)

    def work(_: object) -> dict[str, Any]:
        with torch.no_grad():
            tokens = loaded.generate(
                batch.features.to(loaded.dtype),
                attention_mask=batch.mask,
                decoder_input_ids=batch.prompts,
                max_new_tokens=batch.max_new_tokens,
                num_beams=num_beams,
            )
        return {"tokens": tokens.tolist()}

    return work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=list(SIZES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 15.0))
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    asked = parser.parse_args(arguments)
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {asked.threads} "
        f"threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    for size in asked.sizes:
        with TemporaryDirectory() as folder:
            config = save_network(size, Path(folder))
            for number in asked.rows:
                audio_s = batch_of(config, number, *asked.seconds).audio_s
                for beams in asked.beams:
                    rows = rows_of(folder, asked, [number, *asked.seconds], beams)
                    measure(rows, {"work": [], "warm_up": []}, runs=asked.rounds)
                    check_same(rows)
                    print(f"\n{size}, {number} rows, {beams} beams\n{table(rows, audio_s)}")


def rows_of(folder: str, asked: argparse.Namespace, sizes: Sequence[Any], beams: int) -> list[Row]:
    options = {"model": folder, "threads": asked.threads, "sizes": sizes, "num_beams": beams}
    return [
        Row(
            name=f"{library} {dtype}",
            engine="benchmarks.speech2text:engine",
            options=options | {"library": library, "dtype": dtype},
        )
        for dtype in asked.dtypes
        for library in CLASSES
    ]


def check_same(rows: Sequence[Row]) -> None:
    """Raise ValueError if a row returns other tokens than the first."""
    for row in rows:
        for run in row.runs:
            if run["tokens"] != rows[0].runs[0]["tokens"]:
                raise ValueError(f"{row.name} returns another text than {rows[0].name}")


if __name__ == "__main__":
    main()
