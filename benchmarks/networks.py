"""Networks alone, without audio: encoder, first token and further tokens of windows of noise.

    python -m benchmarks.networks tiny base small [--peers ctranslate2 transformers]

Weights are random, written once and converted for each engine. The end token is forbidden, and a
row whose engine returns more or fewer tokens than requested fails. The first token holds the prompt
and the keys and values of cross-attention, which every engine computes there. CTranslate2 is the
engine of faster-whisper.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, measure, table
from benchmarks.worker import Engine
from corpus_asr.array_types import Float16
from corpus_asr.decoding.jobs import Search, Steps, TokenRules, WindowJob
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.families.loading import load_slot_model, resolve_device, resolve_dtype
from corpus_asr.families.weights import without_weights
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.languages import LANGUAGES
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.threads import usable_threads
from corpus_asr.units import WINDOW_FRAMES, WINDOW_S

# Text tokens of the multilingual vocabulary, the end token not among them.
_NUM_TEXT_TOKENS = 50_257
# Control tokens after the languages; then 1,501 times.
_AFTER_LANGUAGES = (
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
)  # fmt: skip
_NUM_TIMES = 1_501
STAGES = ("encode s", "first token s", "tokens s")


# How long a network takes depends on its sizes and types, not on the values of its weights.
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a network; those not named follow as in all of Whisper."""

    name: str
    width: int
    encoder_layers: int
    decoder_layers: int
    num_mel_bins: int = 80
    # Without Cantonese, which large-v3 added as the last one.
    num_languages: int = len(LANGUAGES) - 1

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token but the times, with the published control tokens at their ids."""
        return (
            *(f"text{number}" for number in range(_NUM_TEXT_TOKENS)),
            "<|endoftext|>",
            "<|startoftranscript|>",
            *(f"<|{code}|>" for code in tuple(LANGUAGES)[: self.num_languages]),
            *_AFTER_LANGUAGES,
        )

    def config(self) -> WhisperConfig:
        """Describe the network as config.json does."""
        heads = self.width // 64  # of 64 values each in every published size
        end = _NUM_TEXT_TOKENS
        return WhisperConfig(
            vocab_size=end + 2 + self.num_languages + len(_AFTER_LANGUAGES) + _NUM_TIMES,
            num_mel_bins=self.num_mel_bins,
            d_model=self.width,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * self.width,
            decoder_ffn_dim=4 * self.width,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=end + 1,
        )

    def network(self) -> WhisperForConditionalGeneration:
        """Build the network on the meta device, which takes no memory."""
        with without_weights():
            return WhisperForConditionalGeneration(self.config())

    def write(self, folder: Path) -> Path:
        """Write a checkpoint of random weights in float16, everywhere the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = WhisperForConditionalGeneration(self.config())
        network.to(torch.float16).save_pretrained(folder)
        return folder


# Source: Radford et al. 2022, table 1; the config.json of openai/whisper-large-v3 and -turbo.
_V3 = {"num_mel_bins": 128, "num_languages": len(LANGUAGES)}
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            # In seconds it shows that everything runs.
            Shape(name="nano", width=64, encoder_layers=1, decoder_layers=1),
            Shape(name="tiny", width=384, encoder_layers=4, decoder_layers=4),
            Shape(name="base", width=512, encoder_layers=6, decoder_layers=6),
            Shape(name="small", width=768, encoder_layers=12, decoder_layers=12),
            Shape(name="medium", width=1024, encoder_layers=24, decoder_layers=24),
            Shape(name="large-v3", width=1280, encoder_layers=32, decoder_layers=32, **_V3),
            Shape(name="large-v3-turbo", width=1280, encoder_layers=32, decoder_layers=4, **_V3),
        )
    }
)


def random_job(shape: Shape, number: int, *, tokens: int, **search: Any) -> WindowJob:
    """Ask for exactly so many tokens of a window of noise."""
    prompt, end = tokens_of(shape)
    return WindowJob(
        features=_noise(shape.num_mel_bins, number % 16),
        window=(number,),
        prompt=prompt,
        rules=TokenRules(end=end, suppress=(end,)),
        max_new_tokens=tokens,
        search=Search(**search),
        seed=number,
    )


def tokens_of(shape: Shape) -> tuple[tuple[int, ...], int]:
    """Return the prompt, and the end token; without times, whose grammar would be chance."""
    wanted = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    return tuple(map(shape.vocabulary.index, wanted)), shape.vocabulary.index("<|endoftext|>")


@cache
def _noise(num_mel_bins: int, seed: int) -> Float16[np.ndarray, "mel frame"]:
    draw = np.random.default_rng(seed)
    return draw.uniform(-1, 1, (num_mel_bins, WINDOW_FRAMES)).astype(np.float16)


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


def corpus_asr(
    model: str, shape: Mapping[str, Any], *, device: str, dtype: str, threads: int, **sizes: int
) -> Engine:
    """Load our network; the scheduler drives it as ever."""
    torch.set_num_threads(threads)
    loaded: Any = load_slot_model(Path(model), device=device, dtype=dtype)
    kind, batch, beams = loaded.device.type, sizes["batch"], sizes["beams"]
    scheduler = SlotScheduler(
        loaded, batch * beams, encode_batch=encode_batch_on(kind), check_every=check_every_on(kind)
    )
    sizes_of = Shape(**shape)
    jobs = [random_job(sizes_of, n, tokens=1, num_beams=beams) for n in range(batch)]
    features: Any = torch.from_numpy(np.stack([job.features for job in jobs])).float()

    def encode() -> list[Any]:
        groups = features.split(encode_batch_on(kind))
        return [window for group in groups for window in loaded.encode(group)]

    def decode(encoded: Sequence[Any], length: int) -> list[int]:
        wanted = [
            replace(job, encoded=window, max_new_tokens=length)
            for job, window in zip(jobs, encoded, strict=True)
        ]
        return [len(result.tokens) for result in decode_all(scheduler, wanted)]

    return staged(encode, decode, batch=batch, tokens=sizes["tokens"])


def ctranslate2(
    model: str, shape: Mapping[str, Any], *, device: str, dtype: str, threads: int, **sizes: int
) -> Engine:
    """Load CTranslate2's network, converted by `to_ctranslate2`."""
    library = importlib.import_module("ctranslate2")
    kind, _, index = device.partition(":")
    loaded = library.models.Whisper(
        model, device=kind, device_index=int(index or 0), compute_type=dtype,
        intra_threads=threads, inter_threads=1,
    )  # fmt: skip
    sizes_of, batch = Shape(**shape), sizes["batch"]
    prompt, end = tokens_of(sizes_of)
    features = np.stack([_noise(sizes_of.num_mel_bins, n % 16) for n in range(batch)])

    def encode() -> Any:
        return loaded.encode(library.StorageView.from_array(features.astype(np.float32)))

    def decode(encoded: Any, length: int) -> list[int]:
        results = loaded.generate(
            encoded,
            [list(prompt)] * batch,
            beam_size=sizes["beams"],
            # It writes as many as half of this, and as the prompt but for its last token leaves.
            max_length=max(2 * length, length + len(prompt) - 1),
            suppress_blank=False,
            suppress_tokens=[end],
        )
        return [len(result.sequences_ids[0]) for result in results]

    return staged(encode, decode, batch=batch, tokens=sizes["tokens"])


def to_ctranslate2(shape: Shape, source: Path, target: Path) -> Path:
    """Convert a checkpoint of `Shape.write`."""
    converters = importlib.import_module("ctranslate2.converters")
    converter = converters.TransformersConverter(str(source))
    ids = {token: number for number, token in enumerate(shape.vocabulary)}
    # As much of a tokenizer as the converter looks at.
    converter.load_tokenizer = lambda *_, **__: SimpleNamespace(get_vocab=lambda: ids)
    converter.convert(str(target))
    return target


def transformers(
    model: str, shape: Mapping[str, Any], *, device: str, dtype: str, threads: int, **sizes: int
) -> Engine:
    """Load the network of transformers, and the search that `generate` is built on."""
    library = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    loaded = library.WhisperForConditionalGeneration.from_pretrained(
        model, dtype=resolve_dtype(dtype, torch.device(device))
    )
    loaded.eval().to(device)
    sizes_of, batch = Shape(**shape), sizes["batch"]
    features = torch.from_numpy(
        np.stack([_noise(sizes_of.num_mel_bins, n % 16) for n in range(batch)])
    ).to(loaded.device, loaded.dtype)

    def decode(encoded: Any, length: int) -> list[int]:
        tokens = generate_fixed(loaded, encoded, sizes_of, tokens=length, beams=sizes["beams"])
        return [len(row) for row in tokens]

    return staged(
        lambda: hidden_states(loaded, features), decode, batch=batch, tokens=sizes["tokens"]
    )


@torch.inference_mode()
def hidden_states(network: Any, features: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = network.get_encoder()(features).last_hidden_state
    return hidden


@torch.inference_mode()
def generate_fixed(
    network: Any,
    encoded: torch.Tensor,
    shape: Shape,
    *,
    tokens: int,
    beams: int = 1,
    cache: str | None = None,
) -> list[list[int]]:
    """Return exactly so many tokens of each window, as transformers decodes them.

    With a `cache` of "static", transformers compiles the decoder's step on a GPU.
    """
    library = importlib.import_module("transformers")
    outputs = importlib.import_module("transformers.modeling_outputs").BaseModelOutput
    prompt, end = tokens_of(shape)
    asked = torch.tensor([prompt] * len(encoded), device=encoded.device)
    settings = library.GenerationConfig(
        max_new_tokens=tokens, num_beams=beams, do_sample=False, suppress_tokens=[end],
        decoder_start_token_id=prompt[0], bos_token_id=end, eos_token_id=end, pad_token_id=end,
        cache_implementation=cache,
    )  # fmt: skip
    # Whisper's own `generate` cuts audio and reads timestamps; this is what it calls.
    found = library.GenerationMixin.generate(
        network,
        encoder_outputs=outputs(last_hidden_state=encoded),
        decoder_input_ids=asked,
        generation_config=settings,
    )
    rows: list[list[int]] = found[:, len(prompt) :].tolist()
    return rows


def staged(
    encode: Callable[[], Any], decode: Callable[[Any, int], list[int]], *, batch: int, tokens: int
) -> Engine:
    """Time the encoder, the first token and all others; `decode` returns how many it decoded."""
    cuda: Any = torch.cuda

    def now_s() -> float:
        if cuda.is_initialized():
            cuda.synchronize()
        return time.perf_counter()

    def work(_: object) -> dict[str, Any]:
        marks_s = [now_s()]
        encoded = encode()
        # Decoding twice, once for a single token, needs no look inside an engine.
        for length in (1, tokens):
            marks_s.append(now_s())
            if (counts := decode(encoded, length)) != [length] * batch:
                raise ValueError(f"requested {length} tokens for {batch} windows, found {counts}")
        marks_s.append(now_s())
        encode_s, first_s, all_s = (end_s - start_s for start_s, end_s in pairwise(marks_s))
        stages = dict(zip(STAGES, (encode_s, first_s, all_s - first_s), strict=True))
        return {"wall_s": encode_s + all_s, "cpu_s": None, **stages}

    return work


def rows_of(shape: Shape, folder: Path, asked: argparse.Namespace) -> list[Row]:
    """Write the network in the layouts that the engines read, and return a row for each of them."""
    source = shape.write(folder / shape.name)
    options = {
        "shape": asdict(shape), "device": str(resolve_device(asked.device)),
        "threads": asked.threads, "batch": asked.batch, "beams": asked.beams,
        "tokens": asked.tokens_per_window,
    }  # fmt: skip
    on_gpu = options["device"] != "cpu"
    wanted = [("corpus_asr", source, dtype) for dtype in asked.dtype]
    if "ctranslate2" in asked.peers:
        converted = to_ctranslate2(shape, source, folder / "ctranslate2")
        wanted.append(("ctranslate2", converted, "float16" if on_gpu else "int8"))
    if "transformers" in asked.peers:
        types = ("float16" if on_gpu else "float32", "bfloat16")
        wanted += [("transformers", source, dtype) for dtype in types]
    return [
        Row(
            name=f"{name.replace('_', '-')} {dtype}",
            engine=f"benchmarks.networks:{name}",
            options=options | {"model": str(model), "dtype": dtype},
        )
        for name, model, dtype in wanted
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("shapes", nargs="+", choices=list(SHAPES), metavar="SIZE", help=", ".join(SHAPES))
    add("--peers", nargs="*", choices=("ctranslate2", "transformers"),
        default=["ctranslate2", "transformers"], help="other engines")  # fmt: skip
    add("--dtype", nargs="+", default=["auto"], help="data types of this engine")
    add("--batch", type=int, default=8, help="windows")
    add("--tokens-per-window", type=int, default=100)
    add("--beams", type=int, default=1)
    add("--runs", type=int, default=3, help="rounds")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=usable_threads())
    add("--json", type=Path, metavar="FILE", help="write all results as JSON")
    asked = parser.parse_args(arguments)
    tables = []
    for shape in map(SHAPES.__getitem__, asked.shapes):
        with tempfile.TemporaryDirectory() as scratch:
            rows = rows_of(shape, Path(scratch), asked)
            measure(rows, {"work": [], "warm_up": []}, runs=asked.runs)
        millions = shape.network().num_parameters() / 1e6
        print(
            f"\n{shape.name} ({millions:.1f} M parameters, random), {asked.batch} windows of "
            f"{WINDOW_S} s, {asked.tokens_per_window} tokens each, {asked.threads} threads"
        )
        print(table(rows, float(asked.batch * WINDOW_S), *STAGES))
        tables.append({"shape": shape.name, "rows": list(map(asdict, rows))})
        if asked.json is not None:
            asked.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
