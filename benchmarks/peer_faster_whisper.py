"""Names of faster-whisper that stand for what is here, where both have the same, for its tests.

Checkpoints that are here answer to the names of others: whisper-base to `tiny`. faster-whisper's
own classes, with which failed tests run once more, get the same ones, converted.
"""

import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from benchmarks.worker import read_samples
from corpus_asr import Segment, Transcriber
from corpus_asr.config.options import options_from
from corpus_asr.text.words import split_characters
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.units import SAMPLE_RATE_HZ


@cache
def _loaded(folder: Path) -> Transcriber:
    return Transcriber(str(folder))


class _Model:
    """A checkpoint as `WhisperModel` is one, as far as the tests use it."""

    # What is done there where a call names nothing.
    usual: ClassVar[dict[str, Any]] = {
        "beam_size": 5,
        "condition_on_previous_text": True,
        "vad_filter": False,
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hf_tokenizer = PromptFormat.from_folder(folder)

    @property
    def supported_languages(self) -> list[str]:
        return list(self.hf_tokenizer.languages) or ["en"]

    def transcribe(self, audio: Any, **options: Any) -> tuple[Iterator[SimpleNamespace], Any]:
        transcriber, options = _loaded(self.folder), self.usual | options
        options.pop("batch_size", None)
        rate = None if isinstance(audio, str) else SAMPLE_RATE_HZ
        found = transcriber.transcribe(audio, sampling_rate=rate, **options)
        settings = options_from(options)
        about = SimpleNamespace(
            language=found.language,
            language_probability=found.language_probability,
            duration=found.duration_s,
            all_language_probs=self.detect_language(audio, **options)[2],
            transcription_options=settings.decoding,
            vad_options=SimpleNamespace(
                min_silence_duration_ms=settings.extract.vad_min_silence_s * 1000,
                speech_pad_ms=settings.extract.vad_pad_s * 1000,
            ),
        )
        return map(_segment, found.segments), about

    def detect_language(self, audio: Any, **options: Any) -> Any:
        rate = None if isinstance(audio, str) else SAMPLE_RATE_HZ
        return _loaded(self.folder).detect_language(audio, sampling_rate=rate, **options)


class _Pipeline(_Model):
    """A model as `BatchedInferencePipeline` is one."""

    usual: ClassVar[dict[str, Any]] = {"beam_size": 5, "vad_filter": True, "strategy": "chunked"}

    def __init__(self, model: _Model) -> None:
        super().__init__(model.folder)


@dataclass
class _Tokenizer:
    prompts: PromptFormat
    multilingual: bool

    def split_tokens_on_unicode(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        pieces = split_characters(tokens, self.prompts.text)
        return [text for text, _ in pieces], [list(some) for _, some in pieces]


def _suppressed(tokenizer: _Tokenizer, tokens: list[int]) -> tuple[int, ...]:
    options_from({"suppress_tokens": tokens})
    return tokenizer.prompts.suppress


def _segment(segment: Segment) -> SimpleNamespace:
    words = segment.words and [
        SimpleNamespace(word=one.word, start=one.start_s, end=one.end_s) for one in segment.words
    ]
    return SimpleNamespace(start=segment.start_s, end=segment.end_s, text=segment.text, words=words)


def _folders(models: Path) -> dict[str, Path]:
    folders = {path.name.removeprefix("whisper-"): path for path in sorted(models.iterdir())}
    multilingual = next((path for name, path in folders.items() if not name.endswith(".en")), None)
    return folders if multilingual is None else {"tiny": multilingual, **folders}


def replace(models: Path) -> None:
    """Put them in place; `models` holds checkpoints under their names, as whisper-base."""
    folders = _folders(models)
    names: dict[str, dict[str, Any]] = {
        "faster_whisper": {
            "WhisperModel": lambda name: _Model(folders[name]),
            "BatchedInferencePipeline": _Pipeline,
            "decode_audio": lambda path, **_: read_samples(path),
        },
        "faster_whisper.tokenizer": {"Tokenizer": _Tokenizer},
        "faster_whisper.transcribe": {"get_suppressed_tokens": _suppressed},
    }
    for module, replaced in names.items():
        for name, value in replaced.items():
            setattr(importlib.import_module(module), name, value)


def serve(models: Path) -> None:
    """Let faster-whisper's own classes find the checkpoints that are here, converted."""
    folders = _folders(models)
    scratch = Path(tempfile.mkdtemp())
    module: Any = importlib.import_module("faster_whisper.transcribe")

    def converted(name: str, **options: Any) -> str:
        folder = scratch / name
        if not folder.exists():
            converters = importlib.import_module("ctranslate2.converters")
            files = ["tokenizer.json", "preprocessor_config.json"]
            converter = converters.TransformersConverter(str(folders[name]), copy_files=files)
            converter.convert(str(folder))
        return str(folder)

    module.download_model = converted
