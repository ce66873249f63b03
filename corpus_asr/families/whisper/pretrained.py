"""What all Whisper networks share beside what those of all families do.

In: a checkpoint, or a configuration. Out: a network of the class asked. Knows no features and no
tokens, and not what a network computes.
"""

from typing import ClassVar

import torch
from torch import Tensor

from corpus_asr.families.layers.positions import sinusoids
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.pretrained import PreTrainedModel
from corpus_asr.families.whisper.config import WhisperConfig

_POSITIONS = "encoder.embed_positions.weight"


class WhisperPreTrainedModel(PreTrainedModel):
    """Base of the Whisper networks; the positions of their encoder are fixed sinusoids."""

    config_class: ClassVar[type[ModelConfig]] = WhisperConfig
    config: WhisperConfig

    _left_over: ClassVar[tuple[str, ...]] = ("proj_out.weight",)
    _fixed: ClassVar[tuple[str, ...]] = (_POSITIONS, f"model.{_POSITIONS}")

    @torch.no_grad()
    def _draw(self, name: str, parameter: Tensor) -> None:
        if name.endswith(_POSITIONS):
            parameter.requires_grad_(False).copy_(sinusoids(*parameter.shape))
        else:
            super()._draw(name, parameter)
