"""Qwen3-ASR's slots beside `generate` of transformers: windows of noise, random weights.

    python -m benchmarks.prompted OUT.json [--dtype float32] [--batches 1 4 16]

Both decode the same windows of 2 to 30 s, in batches in the order given, or in as many slots. A
text ends after four tokens a second of audio: by a stopping criterion for each row there, by the
job's limit here. Texts that differ are counted. CPU seconds are those of the process.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from corpus_asr.decoding.jobs import Steps, TokenRules, WindowJob
from corpus_asr.decoding.slots import SlotScheduler, encode_batch_on
from corpus_asr.families.qwen3_asr.model import Qwen3ASRSeq2SeqLM

BINS, CHUNK = 128, 100
TOKENS_PER_S = 4
PLACEHOLDER, END = 1, 2
AUDIO = {
    "model_type": "qwen3_asr_encoder", "num_mel_bins": BINS, "encoder_layers": 6, "d_model": 256,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 1024, "downsample_hidden_size": 128,
    "output_dim": 512,
}  # fmt: skip
TEXT = {
    "model_type": "qwen3", "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536,
    "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 4096,
}  # fmt: skip


def write_network(folder: Path) -> int:
    """Write random weights; return their number."""
    config = transformers.Qwen3ASRConfig(
        audio_config=AUDIO, text_config=TEXT, audio_token_id=PLACEHOLDER, eos_token_id=END,
        pad_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    network = transformers.Qwen3ASRForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                spread = 1.5 / parameter[0].numel() ** 0.5
                parameter.normal_(generator=generator).mul_(spread)
        network.lm_head.weight[[PLACEHOLDER, END]] = 0.0  # neither is ever the likeliest
    network.save_pretrained(folder)
    return sum(parameter.numel() for parameter in network.parameters())


class Windows:
    """Windows of noise of 2 to 30 s, their prompts and the lengths of their texts."""

    def __init__(self, count: int, positions: Callable[[int], int]) -> None:
        generator = torch.Generator().manual_seed(1)
        shares = torch.rand(count, generator=generator)
        self.frames = [round(float(200 * 15**share)) for share in shares]
        self.features = torch.zeros(count, BINS, 3000)
        for row, end in enumerate(self.frames):
            self.features[row, :, :end] = torch.randn(BINS, end, generator=generator)
        self.prompts = [
            (*range(10, 18), *[PLACEHOLDER] * positions(end), *range(20, 28)) for end in self.frames
        ]
        self.lengths = [round(TOKENS_PER_S * end / 100) for end in self.frames]


def by_generate(network: Any, windows: Windows, batch: int, dtype: torch.dtype) -> list[list[int]]:
    """Decode in batches, padded on the left as the processor does."""
    texts: list[list[int]] = []
    for first in range(0, len(windows.frames), batch):
        rows = range(first, min(first + batch, len(windows.frames)))
        longest = max(len(windows.prompts[row]) for row in rows)
        end = -(-max(windows.frames[row] for row in rows) // CHUNK) * CHUNK
        ids = [
            [END] * (longest - len(windows.prompts[row])) + [*windows.prompts[row]] for row in rows
        ]
        tokens = torch.tensor(ids)
        attention = torch.tensor(
            [[0] * (longest - len(windows.prompts[row])) + [1] * len(windows.prompts[row])
             for row in rows]
        )  # fmt: skip
        heard = torch.tensor(
            [[frame < windows.frames[row] for frame in range(end)] for row in rows]
        )
        lengths = torch.tensor([windows.lengths[row] for row in rows])

        def ended(ids: Tensor, scores: Any, *, longest: int = longest, lengths: Tensor = lengths,
                  **_: Any) -> Tensor:  # fmt: skip
            return ids.shape[1] - longest >= lengths

        found = network.generate(
            input_ids=tokens,
            attention_mask=attention,
            input_features=windows.features[list(rows), :, :end].to(dtype),
            input_features_mask=heard.long(),
            max_new_tokens=int(lengths.max()),
            do_sample=False,
            stopping_criteria=[ended],
        )
        texts += [
            row[longest : longest + length].tolist()
            for row, length in zip(found, lengths.tolist(), strict=True)
        ]
    return texts


def by_slots(model: Any, windows: Windows, slots: int) -> list[list[int]]:
    """Decode in continuous slots."""
    results: dict[int, Any] = {}
    scheduler = SlotScheduler(model, slots, encode_batch=encode_batch_on("cpu"))

    def task(row: int) -> Steps[Any]:
        return (yield WindowJob(
            features=windows.features[row].numpy(), window=(row,), num_frames=windows.frames[row],
            prompt=windows.prompts[row], rules=TokenRules(end=END),
            max_new_tokens=windows.lengths[row],
        ))  # fmt: skip

    def done(row: int, result: Any, error: Exception | None) -> None:
        if error is not None:
            raise error
        results[row] = result

    for row in range(len(windows.frames)):
        scheduler.add(task(row), partial(done, row))
    while scheduler.pending:
        scheduler.advance()
    return [list(results[row].tokens) for row in range(len(windows.frames))]


def measured(decode: Callable[[], list[list[int]]]) -> tuple[dict[str, float], list[list[int]]]:
    """Return CPU and wall seconds, and the texts."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    texts = decode()
    return {
        "cpu_s": round(time.process_time() - cpu_s, 2),
        "wall_s": round(time.perf_counter() - wall_s, 2),
    }, texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--windows", type=int, default=32)
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as name:
        parameters = write_network(Path(name))
        theirs = transformers.Qwen3ASRForConditionalGeneration.from_pretrained(name, dtype=dtype)
        model = Qwen3ASRSeq2SeqLM.from_pretrained(name, dtype=dtype).slot_model()
    theirs.eval()
    windows = Windows(options.windows, model.positions)
    few = Windows(2, model.positions)  # what is done once
    by_generate(theirs, few, 2, dtype)
    by_slots(model, few, 2)
    rows = []
    for batch in options.batches:
        generated, expected = measured(partial(by_generate, theirs, windows, batch, dtype))
        decoded, found = measured(partial(by_slots, model, windows, batch))
        rows.append({
            "batch": batch, "transformers": generated, "corpus_asr": decoded,
            "times_cpu": round(generated["cpu_s"] / decoded["cpu_s"], 2),
            "equal_texts": sum(ours == text for ours, text in zip(found, expected, strict=True)),
        })  # fmt: skip
        print(json.dumps(rows[-1]))
    content = {
        "parameters": parameters, "dtype": options.dtype, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "windows": options.windows, "audio_s": round(sum(windows.frames) / 100, 1),
        "tokens": sum(windows.lengths), "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
