"""Engines, each measured in a process of its own: `python -m benchmarks.worker`.

In, as JSON: `engine` ("module:function"), its `options`, `work` (a list of files), `warm_up` (some
of them) and `cores`. Out: seconds of the work, `texts`, peak memory. An engine is a function that
takes options and returns what does the work. Other environments run this file with engines of their
own, so at its top it imports the standard library alone.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Engine = Callable[[Sequence[str]], dict[str, Any]]


def main() -> None:
    """Load an engine, warm it up, and measure what it does."""
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # every library's prints go to stderr
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["cores"]])
        module, _, name = request["engine"].partition(":")
        engine: Engine = getattr(importlib.import_module(module), name)(**request["options"])
        engine(request["warm_up"])
        started_s, cpu_s = time.perf_counter(), tree_cpu_s()
        found = engine(request["work"])
        taken = {"wall_s": time.perf_counter() - started_s, "cpu_s": tree_cpu_s() - cpu_s}
        json.dump(taken | peak_memory() | found, out)


def tree_cpu_s(pid: str = "self") -> float:
    """Return user and system seconds of a process, its children, and those that it waited for."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    own_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(map(tree_cpu_s, _children(pid)))


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process and its children, and torch's on a GPU, in MiB."""
    # Unlike the high-water mark of `getrusage`, this one starts with the program.
    status = "".join(_read(f"/proc/{pid}/status") for pid in ("self", *_children("self")))
    kib = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    on_gpu = cuda is not None and cuda.is_initialized()  # other allocators cannot be seen
    gpu = {"peak_gpu_mib": cuda.max_memory_reserved() / (1 << 20)} if on_gpu else {}
    return {"peak_mib": kib / 1024, **gpu}


def _children(pid: str) -> list[str]:
    # Each thread has children of its own.
    return "".join(
        _read(str(file)) for file in Path(f"/proc/{pid}/task").glob("*/children")
    ).split()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended: its parent has its seconds
        return ""


def corpus_asr(model: str, *, dtype: Any, threads: int, **options: Any) -> Engine:
    """Load ours; it takes all files in one call."""
    from corpus_asr import Transcriber

    transcriber = Transcriber(model, compute_type=dtype, num_threads=threads, **options)

    def transcribe(paths: Sequence[str]) -> dict[str, Any]:
        texts = {each.uri: each.text for each in transcriber.transcribe_many(paths)}
        return {"texts": [texts[path] for path in paths]}

    return transcribe


def faster_whisper(
    model: str, *, device: str, dtype: str, threads: int, workers: int = 1, batched: bool = False,
    convert_to: str | None = None, **options: Any,
) -> Engine:  # fmt: skip
    """Load faster-whisper; its workers share one model, converted first if `convert_to` is set."""
    if convert_to is not None and not Path(convert_to).exists():
        names = ("tokenizer.json", "preprocessor_config.json")
        files = [name for name in names if Path(model, name).exists()]
        command = [sys.executable, "-P", "-m", "ctranslate2.converters.transformers"]
        command += ["--model", model, "--output_dir", convert_to, "--copy_files", *files]
        subprocess.run(command, check=True)  # a process of its own, as it loads torch
    # CTranslate2 loads torch wherever it finds it, and needs it in its converter only.
    sys.modules["torch"] = None  # type: ignore[assignment]
    library = importlib.import_module("faster_whisper")
    kind, _, index = device.partition(":")
    loaded = library.WhisperModel(
        convert_to or model, device=kind, device_index=int(index or 0), compute_type=dtype,
        cpu_threads=threads, num_workers=workers, local_files_only=True,
    )  # fmt: skip
    pipeline = library.BatchedInferencePipeline(loaded) if batched else loaded

    def one(path: str) -> str:
        segments, _ = pipeline.transcribe(path, **options)
        return " ".join(segment.text.strip() for segment in segments)

    def transcribe(paths: Sequence[str]) -> dict[str, Any]:
        with ThreadPoolExecutor(workers) as pool:
            return {"texts": list(pool.map(one, paths))}

    return transcribe


def transformers(
    model: str, *, device: str, dtype: str, threads: int, generate: dict[str, Any], **options: Any
) -> Engine:
    """Load the pipeline of transformers; it takes all files in one call."""
    import torch

    library = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    library.logging.set_verbosity_error()
    task = "automatic-speech-recognition"
    recognize = library.pipeline(task, model=model, dtype=dtype, device=device)
    if not recognize.model.generation_config.is_multilingual:  # it takes neither
        generate = {key: generate[key] for key in generate if key not in ("language", "task")}

    def transcribe(paths: Sequence[str]) -> dict[str, Any]:
        audio = [{"raw": read_samples(path), "sampling_rate": 16_000} for path in paths]
        results = recognize(audio, generate_kwargs=generate, **options)
        return {"texts": [result["text"].strip() for result in results]}

    return transcribe


def read_samples(path: str) -> Any:
    """Decode a file to 16 kHz mono."""
    import numpy as np

    from corpus_asr.audio.decode import open_audio

    with open(path, "rb") as file, open_audio(file, uri=path) as decoder:
        return np.concatenate([chunk[0] for chunk in decoder])


if __name__ == "__main__":
    main()
