"""Data sets and checkpoints of the hub that tests of others name, as far as they are here.

`CORPUS_ASR_TEST_DATA` has the first clip of the small data set of LibriSpeech that most integration
tests read; those that need more of it say so and are skipped.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.worker import read_samples
from corpus_asr.units import SAMPLE_RATE_HZ

_LIBRISPEECH = (
    "hf-internal-testing/librispeech_asr_dummy",
    "patrickvonplaten/librispeech_asr_dummy",
)
_CLIPS = ("english_short/ls_1272-128104-0000.wav",)
# Any small model of text serves tests of what is done with its tokens; here a decoder by itself.
_TEXT_MODELS = ("hf-internal-testing/tiny-random-gpt2", "distilbert/distilgpt2")


class _Clips:
    """As much of a data set as there is, with the methods that the tests call."""

    def __init__(self, data: Path) -> None:
        self._rows = [
            {"audio": {"array": read_samples(str(data / clip)), "sampling_rate": SAMPLE_RATE_HZ}}
            for clip in _CLIPS
        ]

    def sort(self, column: str) -> "_Clips":
        return self

    def select(self, numbers: Sequence[int]) -> "_Clips":
        if max(numbers) >= len(self._rows):
            raise OSError(f"the hub is out of reach, and only {len(self._rows)} clips are here")
        return self

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return {"audio": [row["audio"] for row in self._rows[which]]}
        return self._rows[which]


def serve_clips(data: Path) -> None:
    """Let the clips that are here answer to the names of data sets."""
    datasets: Any = importlib.import_module("datasets")
    load = datasets.load_dataset

    def load_dataset(name: str, *arguments: Any, **keywords: Any) -> Any:
        return _Clips(data) if name in _LIBRISPEECH else load(name, *arguments, **keywords)

    datasets.load_dataset = load_dataset


def serve_text_models(folder: Path, tokenizers: dict[str, str]) -> None:
    """Let the decoder of a checkpoint answer to the names of models of text."""
    transformers: Any = importlib.import_module("transformers")
    tokenizers |= dict.fromkeys(_TEXT_MODELS, str(folder))
    kind = transformers.AutoModelForCausalLM
    load = kind.from_pretrained

    def from_pretrained(name: Any, *arguments: Any, **keywords: Any) -> Any:
        if name in _TEXT_MODELS:
            return transformers.WhisperForCausalLM.from_pretrained(str(folder))
        return load(name, *arguments, **keywords)

    kind.from_pretrained = from_pretrained
