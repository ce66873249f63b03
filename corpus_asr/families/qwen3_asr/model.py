"""Qwen3-ASR networks: audio encoder, projector and text model, and their form for decoding."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.families.layers.gated import TextNetwork
from corpus_asr.families.layers.prefix_slots import PrefixSlots
from corpus_asr.families.layers.stack import heard_frames
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.pretrained import PreTrainedModel
from corpus_asr.families.qwen3_asr.config import Qwen3ASRConfig
from corpus_asr.families.qwen3_asr.encoder import (
    FusedQwen3ASREncoder,
    PackedQwen3ASREncoder,
    Qwen3ASREncoder,
    Qwen3ASRProjector,
    convolved_values,
)
from corpus_asr.units import WINDOW_FRAMES


class Qwen3ASRModel(nn.Module):
    """Weights without output projection."""

    def __init__(self, config: Qwen3ASRConfig) -> None:
        super().__init__()
        self.audio_tower = Qwen3ASREncoder(config.audio_config)
        self.language_model = TextNetwork(config.text_config)
        self.multi_modal_projector = Qwen3ASRProjector(config.audio_config)


class Qwen3ASRSeq2SeqLM(PreTrainedModel):
    """Weights of a checkpoint; `slot_model` decodes with them."""

    config_class: ClassVar[type[ModelConfig]] = Qwen3ASRConfig
    config: Qwen3ASRConfig
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }

    def __init__(self, config: Qwen3ASRConfig) -> None:
        super().__init__(config)
        self.model = Qwen3ASRModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.tie_weights()

    @property
    def head(self) -> nn.Linear:
        """The scores of tokens."""
        return self.lm_head

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self.config.end_tokens

    def slot_model(self, *, int8: bool = False, consume: bool = False) -> "Qwen3ASRSlotModel":
        """Return the form of this model for decoding; see `Qwen3ASRSlotModel`."""
        return Qwen3ASRSlotModel(self, int8=int8, consume=consume)


class Qwen3ASRTimes(PreTrainedModel):
    """Weights of an aligner's checkpoint."""

    config_class: ClassVar[type[ModelConfig]] = Qwen3ASRConfig
    config: Qwen3ASRConfig
    ends: ClassVar[tuple[int, ...]] = (0,)
    """Of classes: none ends anything."""

    def __init__(self, config: Qwen3ASRConfig) -> None:
        super().__init__(config)
        self.model = Qwen3ASRModel(config)
        width, bias = config.text_config.hidden_size, config.token_classification_bias
        self.score = nn.Linear(width, config.num_labels, bias=bias)

    @property
    def head(self) -> nn.Linear:
        """The scores of times."""
        return self.score


class Qwen3ASRSlotModel(PrefixSlots):
    """A network as a `SlotModel`; on CPUs its encoder is a packed copy.

    Windows have `window_frames`, initially 30 s. With `consume` each block of the text model is
    deleted as soon as it is copied.
    """

    def __init__(
        self,
        network: Qwen3ASRSeq2SeqLM | Qwen3ASRTimes,
        *,
        int8: bool = False,
        consume: bool = False,
    ) -> None:
        config, model = network.config, network.model
        self._audio = config.audio_config
        self._weight_bytes = sum(weight.nbytes for weight in network.parameters())
        super().__init__(
            model.language_model,
            network.head,
            placeholder=config.audio_token_id,
            ends=network.ends,
            window_frames=WINDOW_FRAMES,
            int8=int8,
            consume=consume,
        )
        parts = model.audio_tower, model.multi_modal_projector
        on_cpu = self.device.type == "cpu"
        self._encoder: PackedQwen3ASREncoder | FusedQwen3ASREncoder = (
            PackedQwen3ASREncoder(*parts, int8=int8) if on_cpu else FusedQwen3ASREncoder(*parts)
        )

    def positions(self, num_frames: int) -> int:
        return self._audio.positions(num_frames)

    @property
    def encoder_values(self) -> int:
        audio = self._audio
        blocks = 3 * audio.d_model + 2 * audio.encoder_ffn_dim
        peak = max(self.positions(self.window_frames) * blocks, convolved_values(audio))
        return peak + audio.num_mel_bins * self.window_frames

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        whole = self._audio.num_mel_bins, self.window_frames
        lengths = heard_frames(features, num_frames, whole=whole)
        encoded = torch.zeros(
            len(features), *self.window_shape, dtype=self.dtype, device=self.device
        )
        rows = self._encoder.encode(features.to(self.device, self.dtype), lengths)
        for row, states in enumerate(rows):
            encoded[row, : len(states)] = states
        return encoded
