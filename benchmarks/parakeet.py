"""Parakeet compared with transformers and onnx-asr: same weights and batch, features to tokens.

    python -m benchmarks.parakeet [--shapes 110m 0.6b] [--heads CTC TDT] [--dtypes bfloat16 float32]

Weights are random; a transducer's are biased so that it says as many tokens as are said in speech,
none of which lasts 0 positions. The encoder is measured by itself, too; its rate is printed next to
that of large products of the same type with as many threads. --onnx-asr names the Python of an
environment that has the project's packages, onnx and onnx-asr (`benchmarks.parakeet_onnx`).
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, measure, measured, table
from benchmarks.worker import Engine
from corpus_asr.families.parakeet import config as configs
from corpus_asr.families.parakeet import model as networks
from corpus_asr.threads import usable_threads
from corpus_asr.units import FRAMES_PER_SECOND

# Of parakeet-tdt_ctc-110m and parakeet-tdt-0.6b-v3: settings of the encoder, tokens with the blank,
# layers of the prediction network.
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "tiny": ({"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}, 129, 1),
    "110m": ({"hidden_size": 512, "num_hidden_layers": 17, "intermediate_size": 2048}, 1025, 1),
    "0.6b": ({"num_mel_bins": 128, "attention_bias": False, "convolution_bias": False}, 8193, 2),
}
HEADS = ("CTC", "TDT")
LIBRARIES = ("corpus-asr", "transformers")
WORK: dict[str, list[str]] = {"work": [], "warm_up": ["encoder"]}
_TOKENS_PER_SECOND = 3.0
_PEAK_SIZE, _ROUNDS = 2048, 3


def save_network(shape: str, head: str, folder: Path) -> None:
    """Save random weights of a published shape."""
    encoder, tokens, layers = SHAPES[shape]
    if head == "CTC":
        settings = {"pad_token_id": tokens - 1}
    else:
        settings = {"blank_token_id": tokens - 1, "num_decoder_layers": layers}
    torch.manual_seed(0)
    config = getattr(configs, f"Parakeet{head}Config")(
        encoder_config=encoder, vocab_size=tokens, **settings
    )
    model = getattr(networks, f"Parakeet{head}")(config).eval()
    if head != "CTC":
        _say_blanks(model)
    model.save_pretrained(folder)


@torch.inference_mode()
def _say_blanks(model: Any) -> None:
    seconds = 10.0
    features, frames = batch_of(model, [seconds])
    bias = model.joint.head.bias
    bias[model.vocab_size] = -100.0  # what lasts 0 positions
    low, high = -50.0, 50.0
    for _ in range(12):
        bias[model.blank] = (low + high) / 2
        (row,) = model.transcribe(features, num_frames=frames).rows()
        enough = len(row.tokens) > _TOKENS_PER_SECOND * seconds
        low, high = ((low + high) / 2, high) if enough else (low, (low + high) / 2)
    bias[model.blank] = low


def batch_of(model: Any, seconds: Sequence[float]) -> tuple[Tensor, list[int]]:
    """Return features of rows of these lengths, and how many frames each has."""
    frames = [round(one * FRAMES_PER_SECOND) for one in seconds]
    bins = model.config.encoder_config.num_mel_bins
    features = torch.randn(
        len(frames), max(frames), bins, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.arange(max(frames))[:, None] < torch.tensor(frames)[:, None, None]
    weight = next(model.parameters())
    return (features * mask).to(weight), frames


def cpu_s(action: Callable[[], Any]) -> float:
    """Return the least CPU seconds of some rounds of an action, after one that warms up."""
    action()
    found: list[float] = []
    for _ in range(_ROUNDS):
        began_s = time.process_time()
        action()
        found.append(time.process_time() - began_s)
    return min(found)


def peak_flops(like: Tensor) -> float:
    """Measure the rate of large products, in operations per CPU second."""
    one, other = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, dtype=like.dtype) for _ in range(2))
    return 2 * _PEAK_SIZE**3 / cpu_s(lambda: one @ other)


def engine(
    model: str, *, library: str, head: str, dtype: str, threads: int, seconds: Sequence[float]
) -> Engine:
    """Load the network of a library; the warm-up measures the encoder by itself."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ours = library != "transformers"
    kind = getattr(networks if ours else transformers, f"Parakeet{'' if ours else 'For'}{head}")
    loaded = kind.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    features, frames = batch_of(loaded, seconds)
    mask = (torch.arange(features.shape[1]) < torch.tensor(frames)[:, None]).long()
    if head != "CTC" and not ours:
        blank = loaded.config.blank_token_id
        loaded.generation_config.decoder_start_token_id = blank
        # It would take scores of durations for those of tokens.
        scores = len(loaded.joint.head.bias)
        loaded.generation_config.suppress_tokens = list(range(blank + 1, scores))
    alone: dict[str, float] = {}

    def encode() -> Any:
        if ours:
            return loaded.encoder.encode(features, num_frames=frames)
        return loaded.encoder(features, mask)

    @torch.inference_mode()
    def work(warm_up: Sequence[str]) -> dict[str, Any]:
        if warm_up:
            with FlopCounterMode(display=False) as counter:
                encode()
            alone["encoder CPU s"] = cpu_s(encode)
            rate = counter.get_total_flops() / alone["encoder CPU s"]
            alone["encoder GFLOPS"] = rate / 1e9
            alone["% of products"] = 100 * rate / peak_flops(features)
        if ours:
            rows = loaded.transcribe(features, num_frames=frames).rows()
            return {"tokens": sum(len(row.tokens) for row in rows), **alone}
        found = loaded.generate(features, attention_mask=mask)
        sequences = found if head == "CTC" else found.sequences
        return {"tokens": sequences.numel(), **alone}

    return work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["110m", "0.6b"], choices=list(SHAPES))
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 15.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--onnx-asr", metavar="PYTHON", help="interpreter that has onnx-asr")
    asked = parser.parse_args(arguments)
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {asked.threads} "
        f"threads, torch {torch.__version__}, transformers {transformers.__version__}; rows of "
        f"{', '.join(map(str, asked.seconds))} s"
    )
    for shape in asked.shapes:
        for head in asked.heads:
            with TemporaryDirectory() as folder:
                save_network(shape, head, Path(folder))
                for dtype in asked.dtypes:
                    rows = rows_of(folder, head, dtype, asked)
                    measure(rows, WORK, runs=asked.rounds)
                    if asked.onnx_asr:
                        rows += peers_of(folder, head, asked)
                    columns = ("encoder CPU s", "encoder GFLOPS", "% of products", "tokens")
                    print(f"\n{shape} {head} {dtype}\n{table(rows, sum(asked.seconds), *columns)}")


def rows_of(folder: str, head: str, dtype: str, asked: argparse.Namespace) -> list[Row]:
    """Return a row for each library."""
    options = {"model": folder, "head": head, "dtype": dtype, "threads": asked.threads}
    return [
        Row(
            name=library,
            engine="benchmarks.parakeet:engine",
            options=options | {"library": library, "seconds": asked.seconds},
        )
        for library in LIBRARIES
    ]


def peers_of(folder: str, head: str, asked: argparse.Namespace) -> list[Row]:
    """Measure onnx-asr with weights of products in float32 and in 8 bits."""
    rows = []
    for dtype in ("float32", "int8"):
        options = {"model": folder, "head": head, "dtype": dtype, "threads": asked.threads}
        options |= {"library": "onnx-asr", "seconds": asked.seconds}
        engine = "benchmarks.parakeet_onnx:engine"
        row = Row(name=f"onnx-asr {dtype}", engine=engine, options=options)
        for _ in range(asked.rounds):
            found = measured(engine, options, WORK, asked.onnx_asr)
            row.failed = found.get("failed")
            row.runs += [] if row.failed else [found]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
