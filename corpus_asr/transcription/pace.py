"""Throughput estimate of one engine: timings of its operations, combined for given settings.

Torch is imported only where operations are timed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from corpus_asr.config.decoding import AUTO_BEAMS, DecodingSettings
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.units import WINDOW_FRAMES, WINDOW_S, counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds per operation of an engine with full slots; 0 for operations that are not used."""

    window_s: float
    """One window of 30 s: encoding, prompt, cross-attention keys and values."""
    token_s: float
    """One token of one window, greedy search."""
    beam_token_s: float = 0.0
    """One token with the largest number of beams of the settings."""
    words_s: float = 0.0
    """Word times of one window."""


class _AudioStats(NamedTuple):
    """Recording-dependent quantities, assumed from measurements of English recordings."""

    chunk_s: float
    """Seconds of speech in a window that is cut at a pause."""
    step_s: float
    """Seconds of speech per window in the `sequential` strategy."""
    tokens_per_s: float
    speech_share: float
    """Fraction of the audio that is detected speech."""
    uncertain: float
    """Fraction of windows that `beam_size` auto decodes with beams."""
    failed: float
    """Additional decoding passes per window at higher temperatures."""


# Fractions `uncertain`: of clear read speech, and of clips in 39 languages.
_QUICK = _AudioStats(26.0, 29.0, 3.0, 0.8, 0.2, 0.0)
_SLOW = _AudioStats(18.0, 22.0, 5.0, 1.0, 0.7, 0.3)
_STEPS = 8
_WORDS_TOKENS = 100


def rtfx_range(
    pace: Pace, decoding: DecodingSettings, *, vad: bool = True, recording_s: float
) -> tuple[float, float]:
    """Return the minimum and maximum RTFx of one engine.

    `recording_s` is the mean recording length in seconds: short recordings do not fill windows.
    """
    slow, quick = (
        _rtfx(pace, decoding, speech, vad=vad, recording_s=recording_s)
        for speech in (_SLOW, _QUICK)
    )
    return slow, quick


def _rtfx(
    pace: Pace, decoding: DecodingSettings, speech: _AudioStats, *, vad: bool, recording_s: float
) -> float:
    share = speech.speech_share if vad else 1.0
    said_s = speech.chunk_s if decoding.in_chunks else speech.step_s
    said_s = recording_s * share / math.ceil(recording_s * share / said_s)
    read_s: float = WINDOW_S
    if decoding.first_padding_s is not None and decoding.in_chunks:
        read_s = min(WINDOW_S, said_s + decoding.first_padding_s)
    if decoding.padding_s == "auto" and read_s < WINDOW_S:
        again = speech.uncertain if decoding.beam_size == "auto" else speech.failed
        read_s += again * WINDOW_S
    token_s = (1 + speech.failed) * pace.token_s
    if decoding.beam_size == "auto":
        token_s += speech.uncertain * pace.beam_token_s
    elif decoding.beam_size > 1:
        token_s = pace.beam_token_s + speech.failed * pace.token_s
    words_s = pace.words_s if decoding.word_timestamps else 0.0
    window_s = pace.window_s * read_s / WINDOW_S + words_s
    return said_s / share / (window_s + token_s * speech.tokens_per_s * said_s)


def searched_words(decoding: DecodingSettings) -> str:
    """Name the settings that the speed depends on."""
    beams, padding_s = decoding.beam_size, decoding.padding_s
    return ", ".join(
        (
            "windows in chunks" if decoding.in_chunks else "sequential windows",
            f"{AUTO_BEAMS} beams where uncertain" if beams == "auto" else counted(beams, "beam"),
            *(["word times"] if decoding.word_timestamps else []),
            *([f"padding of {padding_s:g} s"] if isinstance(padding_s, float) else []),
        )
    )


def time_pace(
    folder: Path,
    decoding: DecodingSettings,
    *,
    device: str,
    dtype: str,
    num_threads: int | None,
    slots: int,
) -> Pace | None:
    """Time an engine of a checkpoint's sizes, without its weights; None if it is no Whisper.

    Timings depend on a network's sizes and data types, not on its weights. Networks of one and of
    two layers are timed; the difference is the cost of each additional layer.

    Raises:
        ImportError: torch is not installed.
    """
    from corpus_asr.decoding.device import set_threads

    family = family_of(folder)
    if family.model_type != "whisper":
        return None
    set_threads(num_threads)
    config = resolve(family.config).from_pretrained(folder)
    network = resolve(family.slot_model)
    of_one_layer, of_two_layers = (
        _time_layers(
            network, config, layers, decoding=decoding, device=device, dtype=dtype, slots=slots
        )
        for layers in (1, 2)
    )
    times = [
        max(second_s, first_s + (layers - 1) * (second_s - first_s))
        for first_s, second_s, layers in zip(
            of_one_layer,
            of_two_layers,
            (config.encoder_layers, *[config.decoder_layers] * 4),
            strict=True,
        )
    ]
    encode_s, begin_s, token_s, beam_token_s, words_s = times
    return Pace(
        window_s=encode_s + begin_s, token_s=token_s, beam_token_s=beam_token_s, words_s=words_s
    )


def _time_layers(
    network: Any,
    config: Any,
    layers: int,
    *,
    decoding: DecodingSettings,
    device: str,
    dtype: str,
    slots: int,
) -> tuple[float, ...]:
    """Return the seconds per window of encoding, prompt, token, beam token and word times."""
    import torch

    from corpus_asr.decoding.batch import SlotBatch
    from corpus_asr.decoding.beam import BeamBatch
    from corpus_asr.decoding.device import CudaRecorder
    from corpus_asr.decoding.jobs import AlignJob, Search, TokenRules, TokenTiming, WindowJob
    from corpus_asr.decoding.slots import encode_batch_on, places_of
    from corpus_asr.families.loading import resolve_device, resolve_precision
    from corpus_asr.families.weights import without_weights

    where = resolve_device(device)
    precision = resolve_precision(dtype, where)
    recorder = CudaRecorder(where) if where.type == "cuda" else None
    with without_weights():
        built = network(replace(config, encoder_layers=layers, decoder_layers=layers))
    built.to(precision.dtype).to_empty(device=where)
    with torch.no_grad():
        for weights in built.parameters():
            weights.fill_(0.01)  # uninitialized memory may hold NaN
    built.proj_out.weight = built.model.decoder.embed_tokens.weight  # `to_empty` unties them
    model = built.eval().slot_model(int8=precision.int8, consume=True)
    model.float8_windows = precision.float8_windows

    def timed(work: Callable[[], object], *, warm_ups: int = 0) -> float:
        for _ in range(warm_ups):
            work()
        # CPU time of this thread, which takes part in each operation, to exclude other processes.
        clock = time.thread_time if recorder is None else time.perf_counter
        began_s = clock()
        work()
        if recorder is not None:
            torch.cuda.synchronize(where)
        return clock() - began_s

    at_once = 1 if recorder is None else encode_batch_on(where.type)
    noise = torch.rand(at_once, config.num_mel_bins, WINDOW_FRAMES).to(where, precision.dtype)
    # On a GPU the first run selects kernels and records graphs.
    encode_s = timed(lambda: model.encode(noise), warm_ups=recorder is not None) / at_once
    encoded = torch.zeros((1, *model.window_shape), device=where, dtype=precision.dtype)
    end = config.eos_token_id
    features = noise[0].to("cpu", torch.float16).numpy()  # NumPy has no bfloat16
    of_window: Any = {"features": features, "window": (0,)}

    def searched(batch: SlotBatch | BeamBatch, beams: int) -> tuple[float, float]:
        job = WindowJob(
            **of_window, prompt=(config.decoder_start_token_id,), max_new_tokens=200,
            rules=TokenRules(end=end, suppress=(end,)), search=Search(num_beams=beams),
        )  # fmt: skip
        places = range(batch.places)
        jobs = [job] * batch.places

        def begin() -> None:
            batch.fill(places, jobs, encoded.expand(batch.places, -1, -1))
            batch.admit(places, jobs)

        def step() -> None:
            for _ in range(_STEPS):
                batch.step(batch.places, sampled=False)

        begin_s = timed(begin)
        warm_ups = 1 if recorder is None else 2
        return begin_s / batch.places, timed(step, warm_ups=warm_ups) / _STEPS / batch.places

    plain = SlotBatch(model, slots, recorder=recorder)
    begin_s, token_s = searched(plain, 1)
    beams = decoding.most_beams
    beam_token_s = words_s = 0.0
    if beams > 1:
        batch = BeamBatch(model, places_of(slots, beams, where), beams, recorder=recorder)
        beam_token_s = searched(batch, beams)[1]
    if decoding.word_timestamps:
        tokens = (config.decoder_start_token_id,) * min(_WORDS_TOKENS, config.max_target_positions)
        timing = TokenTiming(first=1, count=len(tokens) - 1, positions=1500, filter_width=7)
        heads = tuple((0, head) for head in range(config.decoder_attention_heads))
        alignment = AlignJob(**of_window, tokens=tokens, heads=heads, timing=timing)
        words_s = timed(lambda: plain.admit([0], [alignment]))
    return encode_s, begin_s, token_s, beam_token_s, words_s
