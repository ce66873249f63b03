"""A tiny random checkpoint in both libraries, to hear the same sound and say the same tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

WINDOW = 200
"""Frames of a window; a tenth of the real one, to be quick."""


@dataclass(frozen=True)
class Pair:
    """The same weights here and in transformers."""

    ours: WhisperForConditionalGeneration
    theirs: Any

    def both(self, features: Tensor, **arguments: Any) -> tuple[Any, Any]:
        """What the two say."""
        return self.say(features, **arguments), self.said(features, **arguments)

    def say(self, features: Tensor | None, **arguments: Any) -> Any:
        return self.ours.generate(features, **arguments)

    def said(self, features: Tensor, **arguments: Any) -> Any:
        with torch.no_grad():
            return self.theirs.generate(features, **arguments)

    def detect(self, features: Tensor | None, **arguments: Any) -> Tensor:
        return self.ours.detect_language(features, **arguments)

    @property
    def settings(self) -> Any:
        """Our generation settings."""
        return self.ours.generation_config

    def set(self, **settings: Any) -> None:
        """Change the generation settings of both."""
        for name, value in settings.items():
            setattr(self.ours.generation_config, name, value)
            setattr(self.theirs.generation_config, name, value)


def pair(
    folder: Path, *, seed: int = 0, multilingual: bool = True, spread: float = 0.25, **config: Any
) -> Pair:
    """Write a checkpoint with windows of `WINDOW` frames and load it twice."""
    tiny_tokenizer(folder / "tokenizer", multilingual)
    settings = {"d_model": 32, "layers": 2, "heads": 2, "max_target_positions": 40, **config}
    checkpoint = tiny_whisper(
        folder / "model",
        seed=seed,
        tokenizer=folder / "tokenizer",
        spread=spread,
        max_source_positions=WINDOW // 2,
        **settings,
    )
    ours = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint)
    return Pair(ours.eval(), theirs.eval())


def sound(rows: int, frames: int, *, seed: int = 0, mels: int = 80) -> Tensor:
    """Random log-mel features that change slowly, as speech does."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(rows, mels, frames // 20 + 2, generator=generator)
    return torch.nn.functional.interpolate(steps, size=frames, mode="linear")


def same(ours: Any, theirs: Any, *, where: str = "output") -> None:
    """Compare nested outputs exactly, scores within rounding."""
    if isinstance(theirs, Tensor):
        assert ours.shape == theirs.shape, (where, ours, theirs)
        if theirs.dtype in (torch.int64, torch.float64):
            assert torch.equal(ours, theirs), (where, ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4, msg=where)
    elif hasattr(theirs, "keys"):
        wanted = [key for key in theirs if key != "past_key_values"]
        missing = [key for key in wanted if key not in ours]
        assert not missing, (where, missing, list(ours))
        for key in wanted:
            same(ours[key], theirs[key], where=f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), (where, ours, theirs)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, where=f"{where}[{number}]")
    else:
        assert ours == theirs, (where, ours, theirs)
