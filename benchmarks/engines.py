"""Engines behind one protocol, run as a script by the Python that has the engine installed.

    driver                         this script
    a request, as a JSON line ->   loads the engine and transcribes the warm-up file
                              <-   {"ready": true, "versions": {...}}
    "run"                     ->   transcribes all files
                              <-   {"wall_s": ..., "texts": [...]}

A failure is {"failed": why}, and the end. Files are 16 kHz mono WAV, so that decoding them costs no
engine anything. Nothing of corpus_asr is imported but by its own engine: peers have their own
environment.
"""

import json
import os
import sys
import time
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

Engine = Callable[[Sequence[str]], list[str]]
_PCM_SCALE = 1 / 32768
# What each engine computes with: another environment may have another version of the rest.
_PACKAGES = {
    "corpus-asr": ("corpus-asr", "torch", "onnxruntime"),
    "faster-whisper": ("faster-whisper", "ctranslate2"),
    "openvino": ("openvino", "openvino-genai"),
    "whisper.cpp": ("pywhispercpp",),
    "transformers": ("transformers",),
}


def samples(path: str) -> Any:
    """Read a WAV file of 16-bit samples."""
    with wave.open(path) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") * np.float32(_PCM_SCALE)


def spread(transcribers: Sequence[Callable[[str], str]]) -> Engine:
    """Let each transcriber take the next file when it is free, the longest first."""
    free: SimpleQueue[Callable[[str], str]] = SimpleQueue()
    for transcribe in transcribers:
        free.put(transcribe)

    def one(path: str) -> str:
        transcribe = free.get()
        try:
            return transcribe(path)
        finally:
            free.put(transcribe)

    def engine(paths: Sequence[str]) -> list[str]:
        order = sorted(paths, key=lambda path: -Path(path).stat().st_size)
        with ThreadPoolExecutor(len(transcribers)) as pool:
            texts = dict(zip(order, pool.map(one, order), strict=True))
        return [texts[path] for path in paths]

    return engine


def corpus_asr(model: str, *, threads: int, workers: int, **options: Any) -> Engine:
    """Load ours; it takes all files in one call."""
    from corpus_asr import Transcriber

    transcriber = Transcriber(model, num_threads=threads, **options)

    def engine(paths: Sequence[str]) -> list[str]:
        texts = {each.uri: each.text for each in transcriber.transcribe_many(paths)}
        return [texts[path] for path in paths]

    return engine


def faster_whisper(
    model: str, *, threads: int, workers: int, batched: bool = False, **options: Any
) -> Engine:
    """Load faster-whisper; its workers share one model."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    loaded = WhisperModel(
        model, device="cpu", compute_type="int8", cpu_threads=threads, num_workers=workers
    )
    pipeline = BatchedInferencePipeline(loaded) if batched else loaded

    def one(path: str) -> str:
        segments, _ = pipeline.transcribe(path, **options)
        return " ".join(segment.text.strip() for segment in segments)

    return spread([one] * workers)


def openvino(model: str, *, threads: int, workers: int, **options: Any) -> Engine:
    """Load OpenVINO GenAI, one pipeline for each worker."""
    import openvino_genai

    def load() -> Callable[[str], str]:
        settings = {"INFERENCE_NUM_THREADS": threads}
        if workers > 1:
            settings["ENABLE_CPU_PINNING"] = False  # else all are tied to the same cores
        pipeline = openvino_genai.WhisperPipeline(model, "CPU", **settings)
        return lambda path: pipeline.generate(samples(path).tolist(), **options).texts[0]

    return spread([load() for _ in range(workers)])


def whisper_cpp(
    model: str, *, threads: int, workers: int, beams: bool = False, **options: Any
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

    return spread([load() for _ in range(workers)])


def transformers(
    model: str,
    *,
    threads: int,
    workers: int,
    dtype: str,
    batch_size: int = 1,
    generate: dict[str, Any],
    **options: Any,
) -> Engine:
    """Load the pipeline of transformers; it takes all files in one call."""
    import torch
    import transformers as library

    torch.set_num_threads(threads)
    library.logging.set_verbosity_error()
    recognize = library.pipeline("automatic-speech-recognition", model=model, dtype=dtype)

    def engine(paths: Sequence[str]) -> list[str]:
        audio = [{"raw": samples(path), "sampling_rate": 16_000} for path in paths]
        results = recognize(audio, batch_size=batch_size, generate_kwargs=generate, **options)
        return [result["text"].strip() for result in results]

    return engine


ENGINES: dict[str, Callable[..., Engine]] = {
    "corpus-asr": corpus_asr,
    "faster-whisper": faster_whisper,
    "openvino": openvino,
    "whisper.cpp": whisper_cpp,
    "transformers": transformers,
}


def serve(reply: Callable[[dict[str, Any]], None]) -> None:
    """Answer until the driver has no more to ask, or something fails."""
    try:
        request = json.loads(sys.stdin.readline())
        load = ENGINES[request["engine"]]
        sizes = {"threads": request["threads"], "workers": request["workers"]}
        engine = load(request["model"], **sizes, **request["options"])
        engine([request["warm_up"]] * request["workers"])
        reply({"ready": True, "versions": versions(request["engine"])})
        for _ in sys.stdin:
            started_s = time.perf_counter()
            texts = engine(request["audio"])
            wall_s = time.perf_counter() - started_s
            reply({"wall_s": wall_s, "texts": texts})
    except Exception as error:
        # Whatever an engine fails with becomes its row; the other engines continue.
        reply({"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        raise


def versions(engine: str) -> dict[str, str]:
    """Return the versions of an engine and of what it computes with."""
    return {package: version(package) for package in _PACKAGES[engine]}


def main() -> None:
    """Keep stdout for replies, and let every library's prints go to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)

        def reply(message: dict[str, Any]) -> None:
            replies.write(json.dumps(message) + "\n")
            replies.flush()

        serve(reply)


if __name__ == "__main__":
    main()
