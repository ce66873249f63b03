"""Engines of other environments, run there by `benchmarks.worker`.

Files are 16 kHz mono WAV, so that decoding them costs no engine anything. Nothing else of
corpus_asr is imported: an environment of peers does not have what it needs.
"""

import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from queue import SimpleQueue
from typing import Any

import numpy as np

from benchmarks.worker import Engine

_PCM_SCALE = 1 / 32768


def samples(path: str) -> Any:
    """Read a WAV file of 16-bit samples."""
    with wave.open(path) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") * np.float32(_PCM_SCALE)


def spread(transcribers: Sequence[Callable[[str], str]], *packages: str) -> Engine:
    """Let each transcriber take the next file when it is free; `packages` have their versions."""
    free: SimpleQueue[Callable[[str], str]] = SimpleQueue()
    for transcribe in transcribers:
        free.put(transcribe)

    def one(path: str) -> str:
        transcribe = free.get()
        try:
            return transcribe(path)
        finally:
            free.put(transcribe)

    def engine(paths: Sequence[str]) -> dict[str, Any]:
        with ThreadPoolExecutor(len(transcribers)) as pool:
            texts = list(pool.map(one, paths))
        return {"texts": texts, "versions": {package: version(package) for package in packages}}

    return engine


def openvino(model: str, *, threads: int, workers: int = 1, **options: Any) -> Engine:
    """Load OpenVINO GenAI, one pipeline for each worker."""
    import openvino_genai

    def load() -> Callable[[str], str]:
        settings = {"INFERENCE_NUM_THREADS": threads}
        if workers > 1:
            settings["ENABLE_CPU_PINNING"] = False  # else all are tied to the same cores
        pipeline = openvino_genai.WhisperPipeline(model, "CPU", **settings)
        return lambda path: pipeline.generate(samples(path).tolist(), **options).texts[0]

    return spread([load() for _ in range(workers)], "openvino", "openvino-genai")


def whisper_cpp(
    model: str, *, threads: int, workers: int = 1, beams: bool = False, **options: Any
) -> Engine:
    """Load whisper.cpp, one context for each worker."""
    from pywhispercpp.model import Model

    def load() -> Callable[[str], str]:
        loaded = Model(
            model,
            params_sampling_strategy=int(beams),
            redirect_whispercpp_logs_to=None,
            n_threads=threads,
            print_progress=False,
            print_realtime=False,
            **options,
        )
        return lambda path: " ".join(each.text.strip() for each in loaded.transcribe(samples(path)))

    return spread([load() for _ in range(workers)], "pywhispercpp")


def openai_whisper(model: str, *, threads: int, **options: Any) -> Engine:
    """Load openai-whisper, whose function decodes one window after another."""
    import torch
    import whisper

    torch.set_num_threads(threads)
    loaded = whisper.load_model(f"{model}.pt", device="cpu")
    return spread(
        [lambda path: loaded.transcribe(samples(path), fp16=False, **options)["text"].strip()],
        "openai-whisper",
    )
