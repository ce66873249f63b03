"""How fast a device computes, stage by stage: its ceilings, then what the engine makes of them."""

import importlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiled

from benchmarks.gpu.figures import Figures, Options, random_network, scheduler_for
from benchmarks.networks import decode_all, generate_fixed, hidden_states, random_job
from corpus_asr.activity import Activity
from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.families.layers.blocks import attend_cached
from corpus_asr.transcription.engine import auto_slots, predicted_bytes
from corpus_asr.units import WINDOW_FRAMES, WINDOW_S

POSITIONS, HEAD_DIM = 1_500, 64
NUM_BEAMS = 5
# Kernels of a step, costliest first.
MAX_KERNELS = 12
# Reserved memory holds what torch keeps between allocations as well.
MAX_RESERVED = 1.25


def ceilings(options: Options, say: Figures) -> None:
    """Measure what no kernel can exceed: copying, products, uploads, and starting kernels."""
    device, on_gpu = options.device, options.on_gpu
    source = torch.empty(1 << (30 if on_gpu else 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ms = options.median_ms(lambda: target.copy_(source))
    say("copy", 2 * source.numel() / ms / 1e6, "GB/s")
    size = 8192 if on_gpu else 256
    left, right = (torch.randn(size, size, device=device, dtype=options.dtype) for _ in range(2))
    say("matmul", 2 * size**3 / options.median_ms(lambda: left @ right) / 1e9, "TFLOP/s")
    if not on_gpu:
        return
    staged = torch.empty(1 << 27, dtype=torch.uint8, pin_memory=True)
    ms = options.median_ms(lambda: target[: staged.numel()].copy_(staged, non_blocking=True))
    say("upload_pinned", staged.numel() / ms / 1e6, "GB/s")
    small = torch.zeros(1, device=device)

    def hundred() -> None:
        for _ in range(100):
            small.add_(1)

    say("kernel", 10 * options.median_ms(hundred), "us")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hundred()
    say("kernel_in_graph", 10 * options.median_ms(graph.replay), "us")


@torch.inference_mode()
def attention(options: Options, say: Figures) -> None:
    """Time one query over a window's keys and values: the engine's way beside fused kernels."""
    heads = options.shape.width // HEAD_DIM
    for slots in options.slots:
        query, keys, values = (
            torch.randn(slots, heads, count, HEAD_DIM, device=options.device, dtype=options.dtype)
            for count in (1, POSITIONS, POSITIONS)
        )
        fused = partial(_attend_fused, query, keys, values)
        ways: dict[str, Callable[[], Any]] = {"engine": partial(attend_cached, query, keys, values)}
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
        ):
            ways[backend.name.partition("_")[0].lower()] = partial(fused, backend=backend)
        for name, way in ways.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # why a kernel cannot be taken, line by line
                    ms = options.median_ms(way)
            except RuntimeError as error:
                if name == "engine":
                    raise
                say(f"slots_{slots}.{name}", "refused", f"({str(error).splitlines()[0][:60]})")
                continue
            say(f"slots_{slots}.{name}", 1e3 * ms, "us")
            say(f"slots_{slots}.{name}.read", 2 * keys.nbytes / ms / 1e6, "GB/s")


def _attend_fused(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, backend: SDPBackend
) -> torch.Tensor:
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=1.0)


def least_bytes(size: ModelSize, slots: int) -> int:
    """Bytes that any step of greedy search reads: windows' keys and values, weights."""
    window = size.positions * size.position_values
    # Queries, keys, values and output of the text; query and output of the window; feed-forward.
    layers = size.token_values // (2 * size.width)
    weights = layers * (6 + 8) * size.width**2 + size.vocab_size * size.width
    return (slots * window + weights) * size.element_bytes


def batch_of(
    options: Options, model: Any, slots: int, *, tokens: int, recorded: bool, **search: Any
) -> SlotBatch | BeamBatch:
    """Fill all slots, or places of beams, with windows of noise that go on for long."""
    recorder = CudaRecorder(options.device) if recorded else None
    jobs: Any = [random_job(options.shape, n, tokens=tokens, **search) for n in range(slots)]
    batch: SlotBatch | BeamBatch
    if "num_beams" in search:
        batch = BeamBatch(model, slots, search["num_beams"], recorder=recorder)
    else:
        batch = SlotBatch(model, slots, recorder=recorder)
    positions, width = model.window_shape
    for first in range(0, slots, 16):
        some = range(first, min(slots, first + 16))
        encoded = torch.randn(
            len(some), positions, width, device=options.device, dtype=options.dtype
        )
        batch.fill(some, [jobs[slot] for slot in some], encoded)
        batch.admit(some, [jobs[slot] for slot in some])
    return batch


def step(options: Options, say: Figures) -> None:
    """Time a decoding step of all slots, or of as many beams, kernel by kernel and as a graph."""
    model: Any = random_network(options).slot_model()
    for slots in options.slots:
        least = least_bytes(model.size, slots)
        say(f"slots_{slots}.least_read", least / 1e9, "GB")
        for kind in ("eager", "graph") if options.on_gpu else ("eager",):
            batch = batch_of(options, model, slots, tokens=400, recorded=kind == "graph")
            key = f"slots_{slots}.{kind}"
            ms = _step_ms(options, batch, slots, sampled=False)
            say(f"{key}.greedy", ms, "ms")
            say(f"{key}.tokens", 1e3 * slots / ms, "tokens/s")
            say(f"{key}.read", least / ms / 1e6, "GB/s")
            say(f"{key}.sampled", _step_ms(options, batch, slots, sampled=True), "ms")
            del batch
            places = max(1, slots // NUM_BEAMS)  # as the scheduler divides them
            batch = batch_of(
                options, model, places, tokens=400, recorded=kind == "graph",
                num_beams=NUM_BEAMS, stop_loops=True,
            )  # fmt: skip
            say(f"{key}.beams", _step_ms(options, batch, places, sampled=False), "ms")
            del batch
        if options.on_gpu:
            model.float8_windows = True
            batch = batch_of(options, model, slots, tokens=400, recorded=True)
            say(f"slots_{slots}.fp8.greedy", _step_ms(options, batch, slots, sampled=False), "ms")
            del batch
            model.float8_windows = False


def _step_ms(options: Options, batch: SlotBatch | BeamBatch, slots: int, *, sampled: bool) -> float:
    steps = partial(batch.step, slots, sampled=sampled)
    return options.median_ms(steps, warm_ups=CudaRecorder.warm_ups + 3)


def encode(options: Options, say: Figures) -> None:
    """Time the encoder on batches of windows."""
    network = random_network(options)
    model, config = network.slot_model(), network.config
    width = config.d_model
    layer = 24 * width**2 * POSITIONS + 4 * POSITIONS**2 * width
    operations = config.encoder_layers * layer
    for windows in (1, 4, 16, 32) if options.on_gpu else (1,):
        features = torch.randn(
            windows, config.num_mel_bins, WINDOW_FRAMES, device=options.device, dtype=options.dtype
        )
        ms = options.median_ms(partial(model.encode, features))
        say(f"windows_{windows}.each", ms / windows, "ms")
        say(f"windows_{windows}.rate", windows * operations / ms / 1e9, "TFLOP/s")


HOST_STAGES = ("encode_s", "fill_s", "prefill_s", "step_s", "wait_s")


def offline(options: Options, say: Figures) -> None:
    """Decode windows of drawn lengths that refill the slots, as a run over a corpus does."""
    model: Any = random_network(options).slot_model()
    lengths = np.random.default_rng(0).normal(options.tokens, options.tokens / 4, options.windows)
    jobs = [
        random_job(options.shape, number, tokens=int(length), stop_loops=True)
        for number, length in enumerate(lengths.clip(2, 220))
    ]
    for slots in options.slots:
        if options.on_gpu:
            torch.cuda.reset_peak_memory_stats(options.device)
        scheduler = scheduler_for(options, model, slots)
        decode_all(scheduler, jobs[: 3 * slots])  # steps are recorded
        options.wait()
        before = seconds_of(scheduler.statistics)
        started_s = time.perf_counter()
        results = decode_all(scheduler, jobs)
        options.wait()
        taken_s = time.perf_counter() - started_s
        key = f"slots_{slots}"
        say(f"{key}.rate", len(jobs) / taken_s, "windows/s")
        say(f"{key}.tokens", sum(len(one.tokens) for one in results) / taken_s, "tokens/s")
        say(f"{key}.rtfx", WINDOW_S * len(jobs) / taken_s, "x")
        for name, spent_s in seconds_of(scheduler.statistics).items():
            say(f"{key}.host.{name}", 1e3 * (spent_s - before[name]) / len(jobs), "ms/window")
        say(f"{key}.occupancy", 100 * (scheduler.statistics.occupancy or 0.0), "%")
        if options.on_gpu:
            say(f"{key}.peak", torch.cuda.max_memory_reserved(options.device) / 1e9, "GB")
        del scheduler


def seconds_of(activity: Activity) -> dict[str, float]:
    """Return the host's seconds by what they were spent on."""
    return {name.removesuffix("_s"): getattr(activity, name) for name in HOST_STAGES}


def memory(options: Options, say: Figures) -> None:
    """Compare the memory that is calculated with what is taken; then leave too little of it."""
    if not options.on_gpu:
        raise SkipTest("there is no memory of a GPU to fill")
    # A share of its memory is only set of a device with a number.
    device = torch.device("cuda", options.device.index or 0)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device)  # by libraries, since stages before this one
    model: Any = random_network(options).slot_model()
    encode_batch = encode_batch_on(device.type)
    say("auto_slots", auto_slots(model, encode_batch=encode_batch), "slots")
    jobs = [
        random_job(options.shape, number, tokens=40, temperature=0.5 * (number % 2))
        for number in range(96)
    ]
    total = torch.cuda.get_device_properties(device).total_memory
    none, all_64 = (
        predicted_bytes(model.size, slots=slots, encode_batch=encode_batch).total
        for slots in (0, 64)
    )
    rooms = {"a_third": none + (all_64 - none) // 3, "two_slots": none + all_64 // 32}
    rooms = {"all": total} | {room: held + bytes_ for room, bytes_ in rooms.items()}
    over: list[str] = []
    try:
        for room, limit_bytes in rooms.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
            scheduler = scheduler_for(options, model, 64)
            decode_all(scheduler, jobs)
            slots, batch = scheduler.slots, scheduler.encode_batch
            calculated = predicted_bytes(model.size, slots=slots, encode_batch=batch).total
            reserved = torch.cuda.max_memory_reserved(device) - held
            say(f"{room}.slots", slots, "slots")
            say(f"{room}.halvings", scheduler.statistics.halvings, "halvings")
            say(f"{room}.calculated", calculated / 1e9, "GB")
            say(f"{room}.allocated", (torch.cuda.max_memory_allocated(device) - held) / 1e9, "GB")
            say(f"{room}.reserved", reserved / 1e9, "GB")
            if room == "all" and reserved > MAX_RESERVED * calculated:
                over.append(f"{reserved / 1e9:.1f} GB where {calculated / 1e9:.1f} are calculated")
            del scheduler
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    if over:
        raise MemoryError(f"reserving {'; '.join(over)}: expected at most {MAX_RESERVED} times it")


def beside_transformers(options: Options, say: Figures, *, cache: str | None = None) -> None:
    """Time transformers with the same weights, features, windows per batch and tokens."""
    if find_spec("transformers") is None:
        raise SkipTest("transformers is not installed")
    network = random_network(options)
    theirs = _transformers_network(options, network)
    model: Any = network.slot_model()
    for slots in options.slots:
        jobs = [random_job(options.shape, number, tokens=options.tokens) for number in range(slots)]
        scheduler = scheduler_for(options, model, slots)
        ours_s, ours = _timed(options, partial(decode_all, scheduler, jobs))
        del scheduler
        theirs_s, found = _timed(options, partial(_generate, options, theirs, jobs, cache))
        key = f"slots_{slots}"
        say(f"{key}.corpus_asr", slots / ours_s, "windows/s")
        say(f"{key}.transformers", slots / theirs_s, "windows/s")
        say(f"{key}.times_as_fast", theirs_s / ours_s, "x")
        # Random weights leave many tokens almost equally likely, which half precision confuses.
        same = sum(one.tokens == tokens for one, tokens in zip(ours, found, strict=True))
        say(f"{key}.same_text", 100 * same / slots, "%")


def beside_compiled(options: Options, say: Figures) -> None:
    """Time transformers with a static cache, with which it compiles the decoder's step."""
    if not options.on_gpu:
        raise SkipTest("transformers compiles steps on a GPU alone")
    beside_transformers(options, say, cache="static")


def _timed(options: Options, work: Callable[[], Any]) -> tuple[float, Any]:
    # The first rounds record steps, choose kernels and fill caches of allocators.
    for _ in range(3 if options.on_gpu else 1):
        work()
    options.wait()
    found_s = []
    for _ in range(math.ceil(options.repeats / 7)):
        started_s = time.perf_counter()
        result = work()
        options.wait()
        found_s.append(time.perf_counter() - started_s)
    return min(found_s), result


def _transformers_network(options: Options, network: Any) -> Any:
    library = importlib.import_module("transformers")
    library.logging.set_verbosity_error()
    config = library.WhisperConfig(**network.config.to_dict())
    with torch.device("meta"):
        theirs = library.WhisperForConditionalGeneration(config)
    theirs.load_state_dict(network.state_dict(), strict=False, assign=True)
    theirs.tie_weights()
    missing = [name for name, weights in theirs.named_parameters() if weights.is_meta]
    if missing:
        raise RuntimeError(f"giving transformers our weights: it also wants {missing[:3]}")
    return theirs.to(options.device).eval()


def _generate(
    options: Options, network: Any, jobs: Sequence[Any], cache: str | None
) -> list[tuple[int, ...]]:
    features = torch.from_numpy(np.stack([job.features for job in jobs]))
    hidden = hidden_states(network, features.to(options.device, options.dtype))
    found = generate_fixed(network, hidden, options.shape, tokens=options.tokens, cache=cache)
    return [tuple(row) for row in found]


def profile(options: Options, say: Figures) -> None:
    """Name the costliest kernels of a greedy step; on a CPU, its operations."""
    model: Any = random_network(options).slot_model()
    slots = options.slots[-1]
    batch = batch_of(options, model, slots, tokens=400, recorded=options.on_gpu)
    for _ in range(CudaRecorder.warm_ups + 3):
        batch.step(slots, sampled=False)
    options.wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.on_gpu else [])]
    with profiled(activities=kinds) as found:
        for _ in range(3):
            batch.step(slots, sampled=False)
        options.wait()
    clock = "self_device_time_total" if options.on_gpu else "self_cpu_time_total"
    events = [one for one in found.key_averages() if getattr(one, clock) > 0]
    if not events:
        raise RuntimeError("profiling a step: found no kernel, expected hundreds")
    say("kernels", sum(one.count for one in events) / 3, "per_step")
    events.sort(key=lambda one: -getattr(one, clock))
    for number, event in enumerate(events[:MAX_KERNELS], 1):
        name = "".join(letter if letter.isalnum() else "_" for letter in event.key)[:60]
        say(f"{number}.{name}", getattr(event, clock) / 3, "us/step")
