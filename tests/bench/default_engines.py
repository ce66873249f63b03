"""This package, openai-whisper and faster-whisper, each as it transcribes if nothing is set.

faster-whisper alone is given an option, `vad_filter=True`: its detector is off by default.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from corpus_asr.runtime.transcriber import Transcriber
from tests.support.signals import read_clip

Transcribe = Callable[[Path], str]


def ours(model: Path, _: Path) -> Transcribe:
    transcriber = Transcriber.from_pretrained(str(model))
    return lambda path: transcriber.transcribe(str(path)).text


def ours_everywhere(model: Path, _: Path) -> Transcribe:
    """Without speech detection."""
    from corpus_asr.config.stages import ExtractSettings

    unaided = ExtractSettings(speech_detection="none")
    transcriber = Transcriber.from_pretrained(str(model), extract=unaided)
    return lambda path: transcriber.transcribe(str(path)).text


def openai_whisper(model: Path, scratch: Path) -> Transcribe:
    import whisper

    loaded = whisper.load_model(str(_converted("openai", model, scratch / "openai.pt")), "cpu")

    def transcribe(path: Path) -> str:
        torch.manual_seed(0)  # temperatures above 0 sample
        return str(loaded.transcribe(read_clip(path))["text"])  # by path it would need ffmpeg

    return transcribe


def faster_whisper(model: Path, scratch: Path) -> Transcribe:
    from faster_whisper import WhisperModel

    loaded = WhisperModel(
        str(_converted("ctranslate2", model, scratch / "ctranslate2")),
        device="cpu",
        local_files_only=True,
    )

    def transcribe(path: Path) -> str:
        segments, _ = loaded.transcribe(str(path), vad_filter=True)
        return "".join(segment.text for segment in segments)

    return transcribe


ENGINES: dict[str, Callable[[Path, Path], Transcribe]] = {
    "corpus-asr": ours,
    "corpus-asr, no detection": ours_everywhere,
    "openai-whisper": openai_whisper,
    "faster-whisper": faster_whisper,
}


def _converted(layout: str, model: Path, target: Path) -> Path:
    if not target.exists():
        script = [sys.executable, "-m", "corpus_asr.benchmark.engines.conversion"]
        subprocess.run([*script, layout, str(model), str(target)], check=True)
    return target
