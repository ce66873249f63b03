"""Names of openai-whisper that stand for what is here, where both have the same, for its tests."""

import importlib
from pathlib import Path
from typing import Any

from corpus_asr import Transcriber
from corpus_asr.models.whisper import WhisperTokenizer
from corpus_asr.text.normalize import (
    EnglishTextNormalizer,
    american_spellings,
    numbers_in_figures,
)


class _Numbers:
    def __call__(self, text: str) -> str:
        return numbers_in_figures(text)


class _Spellings:
    def __call__(self, text: str) -> str:
        return " ".join(american_spellings().get(word, word) for word in text.split())


class _Model:
    """A checkpoint as `whisper.load_model` returns it, as far as its tests use one."""

    def __init__(self, folder: Path) -> None:
        self._transcriber = Transcriber(str(folder))

    def to(self, device: str) -> "_Model":
        return self

    def transcribe(self, audio: str, **options: Any) -> dict[str, Any]:
        found = self._transcriber.transcribe(audio, **options).to_dict()
        # The text of openai-whisper begins with the blank of its first segment.
        return {**found, "text": "".join(segment["text"] for segment in found["segments"])}


class _Tokenizer:
    def __init__(self, folder: Path) -> None:
        self._tokenizer = WhisperTokenizer.from_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))


def replace(models: Path) -> None:
    """Put them in place; `models` holds checkpoints under their names, as whisper-base."""
    folders = {path.name.removeprefix("whisper-"): path for path in sorted(models.iterdir())}
    english = next((path for name, path in folders.items() if name.endswith(".en")), None)
    other = next((path for name, path in folders.items() if not name.endswith(".en")), None)

    def get_tokenizer(multilingual: bool) -> _Tokenizer:
        folder = other if multilingual else english
        if folder is None:
            raise OSError(f"the hub is out of reach, and {models} has no such checkpoint")
        return _Tokenizer(folder)

    names: dict[str, dict[str, Any]] = {
        "whisper": {
            "available_models": lambda: list(folders),
            "load_model": lambda name: _Model(folders[name]),
        },
        "whisper.normalizers": {"EnglishTextNormalizer": EnglishTextNormalizer},
        "whisper.normalizers.english": {
            "EnglishTextNormalizer": EnglishTextNormalizer,
            "EnglishNumberNormalizer": _Numbers,
            "EnglishSpellingNormalizer": _Spellings,
        },
        "whisper.tokenizer": {"get_tokenizer": get_tokenizer},
    }
    for module, replaced in names.items():
        for name, value in replaced.items():
            setattr(importlib.import_module(module), name, value)
