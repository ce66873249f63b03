"""Names of openai-whisper that stand for what is here, where both have the same, for its tests."""

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.worker import read_samples
from corpus_asr import Transcriber
from corpus_asr.decoding.alignment import _last_steps, median_filter
from corpus_asr.models.convert import convert
from corpus_asr.models.whisper import WhisperFeatureExtractor, WhisperTokenizer
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
        return self._transcriber.transcribe(audio, **options).to_dict()


class _Tokenizer:
    def __init__(self, folder: Path) -> None:
        self._tokenizer = WhisperTokenizer.from_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))


def _path(cost: np.ndarray) -> np.ndarray:
    """Return the cells of the cheapest way, which is kept here as steps into each token."""
    steps, end = _last_steps(cost), cost.shape[1]
    cells: list[tuple[int, int]] = []
    for token in range(len(cost) - 1, -1, -1):
        step = int(steps[token, end - 1])
        begin = (step >> 1) - 1
        cells += [(token, position) for position in range(end - 1, begin - 1, -1)]
        end = begin + 1 - (step & 1)
    return np.array(cells[::-1]).T


def _features(audio: str | np.ndarray) -> torch.Tensor:
    samples = read_samples(audio) if isinstance(audio, str) else audio
    # As long as the audio: openai-whisper fills up to a window only where it is told to.
    extractor = WhisperFeatureExtractor()
    found = extractor(samples, sampling_rate=16_000, padding=False, truncation=False)
    return torch.as_tensor(np.asarray(found["input_features"][0]))


def _median(values: torch.Tensor, width: int) -> torch.Tensor:
    return torch.from_numpy(median_filter(values.numpy(), width))


def _folders(models: Path) -> dict[str, Path]:
    return {path.name.removeprefix("whisper-"): path for path in sorted(models.iterdir())}


def serve(models: Path) -> None:
    """Let openai-whisper's own function load the checkpoints that are here, converted."""
    folders = _folders(models)
    library: Any = importlib.import_module("whisper")
    load = library.load_model

    def load_model(name: str) -> Any:
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / "model.pt"
            convert(folders[name], file)
            return load(str(file))

    library.available_models = lambda: list(folders)
    library.load_model = load_model


def replace(models: Path) -> None:
    """Put them in place; `models` holds checkpoints under their names, as whisper-base."""
    folders = _folders(models)
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
        "whisper.timing": {"dtw_cpu": _path, "median_filter": _median},
        "whisper.audio": {"load_audio": read_samples, "log_mel_spectrogram": _features},
    }
    for module, replaced in names.items():
        for name, value in replaced.items():
            setattr(importlib.import_module(module), name, value)
