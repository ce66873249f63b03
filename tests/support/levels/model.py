"""A made-up family's network: what it hears decides which of two scripts it says."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from tests.support.levels.config import LevelsConfig
from tests.support.levels.tokenizer import LOUD, QUIET
from tests.support.models import ScriptedModel


class LevelsSlots(ScriptedModel):
    """Meets `SlotModel`."""

    def __init__(self, threshold: float) -> None:
        super().__init__([[QUIET], [LOUD]])
        self._threshold = threshold

    def encode(self, features: Tensor, *, num_frames: Sequence[int] | None = None) -> Tensor:
        lengths = num_frames or [features.shape[2]] * len(features)
        heard = [row[:, :n].mean() for row, n in zip(features.float(), lengths, strict=True)]
        return (torch.stack(heard) > self._threshold).float().reshape(-1, 1, 1)


class LevelsModel:
    """What a checkpoint is loaded as."""

    def __init__(self, config: LevelsConfig) -> None:
        self._config = config

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, dtype: torch.dtype, device: torch.device
    ) -> Self:
        return cls(LevelsConfig.from_pretrained(folder))

    def slot_model(self, *, int8: bool = False) -> Any:
        return LevelsSlots(self._config.threshold)
