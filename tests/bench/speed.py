"""Times this engine beside `transformers` on the same audio, checkpoint, dtype and batch size.

    python -m tests.bench.speed --model FOLDER AUDIO...

Runs alternate and medians are printed, as times real time (seconds of audio per second of work,
features and loading left out), with the machine they were taken on. The engine runs its whole seek
loop: what a window leaves unfinished is decoded again, where `transformers` decodes each once.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.models.whisper.features import WhisperPartFeatures
from corpus_asr.transcription.engine import Engine, PartRequest
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from tests.support.oracles import read_audio

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    arguments = _arguments()
    windows = [window for path in arguments.audio for window in _windows(read_audio(path))]
    audio_s = sum(len(window) for window in windows) / SAMPLE_RATE_HZ
    ours = _ours(arguments, windows)
    theirs = _theirs(arguments, windows)
    ours(), theirs()  # warm up
    found: dict[str, list[float]] = {"corpus-asr": [], "transformers": []}
    for _ in range(arguments.runs):
        found["corpus-asr"].append(_seconds(ours))
        found["transformers"].append(_seconds(theirs))
    print(f"{_machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"{arguments.model.name}, {arguments.dtype}, batch {arguments.batch}, greedy; "
        f"{len(windows)} windows, {audio_s:.0f} s of audio, median of {arguments.runs} runs"
    )
    for name, seconds in found.items():
        print(f"  {name:<14} {audio_s / statistics.median(seconds):7.1f} x real time")
    ratios = [b / a for a, b in zip(found["corpus-asr"], found["transformers"], strict=True)]
    print(f"  ratio          {statistics.median(ratios):7.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def _windows(samples: np.ndarray) -> list[np.ndarray]:
    return [
        samples[start : start + WINDOW_SAMPLES] for start in range(0, len(samples), WINDOW_SAMPLES)
    ]


def _ours(arguments: argparse.Namespace, windows: list[np.ndarray]) -> Callable[[], None]:
    settings = DecodingSettings.model_validate(
        {
            "language": "en",
            "temperature": 0.0,
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
            "no_speech_threshold": None,
        }
    )
    engine = Engine.from_folder(
        arguments.model, decoding=settings, dtype=arguments.dtype, slots=arguments.batch
    )
    extract = WhisperPartFeatures.from_folder(arguments.model)
    parts = []
    for number, samples in enumerate(windows):
        features = extract(samples)
        parts.append(
            PartRequest(
                recording_id=str(number),
                part=0,
                features=features.values,
                num_samples=len(samples),
                pad_value=features.pad_value,
                start_s=0.0,
                speech=None,
            )
        )

    def run() -> None:
        for future in [engine.submit(part) for part in parts]:
            future.result()

    return run


def _theirs(arguments: argparse.Namespace, windows: list[np.ndarray]) -> Callable[[], None]:
    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES[arguments.dtype]
    extract = transformers.WhisperFeatureExtractor.from_pretrained(arguments.model)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        arguments.model, dtype=dtype
    ).eval()
    torch.nn.Module.to(model, device)
    features = extract(
        windows, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    ).input_features.to(device, dtype)

    def run() -> None:
        for first in range(0, len(features), arguments.batch):
            model.generate(
                features[first : first + arguments.batch],
                language="en",
                return_timestamps=True,
                do_sample=False,
            )

    return run


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
