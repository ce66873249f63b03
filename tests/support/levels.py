"""A made-up family, all that one needs to run: each part is `loud` or `quiet`.

Real families have a module for each of these classes, so that workers on CPUs import no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Float32
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import TokenRules, WindowJob
from corpus_asr.decoding.tasks import Steps
from corpus_asr.errors import ConfigError
from corpus_asr.families.model_config import ModelConfig, Probability, Size
from corpus_asr.families.registry import PartFeatures
from corpus_asr.segments import Segment
from corpus_asr.transcription.engine import PartTranscript
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import HOP_SAMPLES
from tests.support.slots import ScriptedModel


class LevelsTranscriber:
    """Meets `PartTranscriber`."""

    languages = ()

    @classmethod
    def from_folder(cls, folder: Path) -> "LevelsTranscriber":
        return cls()

    def check(self, settings: DecodingSettings) -> None:
        if settings.word_timestamps:
            raise ConfigError(
                "checking decoding.word_timestamps: found true, expected false for the family "
                "levels, whose words take no time; correct it"
            )

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        result = yield WindowJob(
            features=part.window(0, part.num_frames),
            window=(0,),
            prompt=(END,),
            rules=TokenRules(end=END),
            max_new_tokens=len(WORDS),
            num_frames=part.num_frames,
        )
        segment = Segment(
            start_s=part.start_s,
            end_s=part.end_s,
            text=LevelsTokenizer().decode(result.tokens),
            tokens=result.tokens,
            language=None,
            language_probability=None,
            task="transcribe",
            confidence=1.0,
            avg_logprob=sum(result.logprobs),
            no_speech_prob=None,
            compression_ratio=1.0,
            temperature=0.0,
            speech_fraction=None,
        )
        return PartTranscript(segments=(segment,))


@dataclass(kw_only=True, init=False)
class LevelsConfig(ModelConfig):
    """What the network says: `loud` above the threshold, `quiet` below it."""

    model_type: ClassVar[str] = "levels"
    num_words: Size = 2
    threshold: Probability = 0.01


END, QUIET, LOUD = range(3)
WORDS = {QUIET: " quiet", LOUD: " loud"}


class LevelsTokenizer:
    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **options: Any) -> Self:
        return cls()

    def decode(self, token_ids: Iterable[int]) -> str:
        return "".join(WORDS.get(token, "") for token in token_ids)


class LevelsFeatures:
    """One value per 10 ms."""

    num_mel_bins = 1
    language_window_frames = None

    @classmethod
    def from_folder(cls, folder: Path) -> "LevelsFeatures":
        return cls()

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        hops = samples[: samples.size // HOP_SAMPLES * HOP_SAMPLES].reshape(-1, HOP_SAMPLES)
        levels = np.sqrt(np.mean(np.square(hops), axis=1, keepdims=True))
        return PartFeatures(values=levels.astype(np.float16), pad_value=0.0)


class LevelsSlots(ScriptedModel):
    """Meets `SlotModel`."""

    def __init__(self, threshold: float) -> None:
        super().__init__([[QUIET], [LOUD]])
        self._threshold = threshold

    def encode(self, features: Tensor, *, num_frames: Sequence[int] | None = None) -> Tensor:
        lengths = num_frames or [features.shape[2]] * len(features)
        transcribed = [row[:, :n].mean() for row, n in zip(features.float(), lengths, strict=True)]
        return (torch.stack(transcribed) > self._threshold).float().reshape(-1, 1, 1)


class LevelsModel:
    def __init__(self, config: LevelsConfig) -> None:
        self._config = config

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, dtype: torch.dtype, device: torch.device
    ) -> Self:
        return cls(LevelsConfig.from_pretrained(folder))

    def slot_model(self, *, int8: bool = False, consume: bool = False) -> Any:
        return LevelsSlots(self._config.threshold)
