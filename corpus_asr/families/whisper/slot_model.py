"""Whisper in the form that search runs: caches in numbered slots.

In: features, token ids and slots. Out: logits. Meets `decoding.protocols.SlotModel`; knows no
text and no search.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.families.layers.decoder_slots import DecoderSlots
from corpus_asr.families.whisper.cached_decoder import cached_whisper_decoder
from corpus_asr.families.whisper.encoder import check_heard
from corpus_asr.families.whisper.packed_encoder import PackedWhisperEncoder
from corpus_asr.units import FRAMES_PER_POSITION

if TYPE_CHECKING:
    from corpus_asr.families.whisper.causal_lm import WhisperForCausalLM
    from corpus_asr.families.whisper.config import WhisperConfig
    from corpus_asr.families.whisper.decoder import WhisperDecoder
    from corpus_asr.families.whisper.model import WhisperSeq2SeqLM


class WhisperDecoderSlots(DecoderSlots):
    """A Whisper decoder alone, with its caches in numbered slots.

    Meets `decoding.protocols.SlotModel` but for the encoder: windows are filled in as another
    model has encoded them. Shares the embeddings and norms of `decoder`; its linear maps are fused
    copies made here, so training it further, or moving it, needs new slots.
    """

    def __init__(
        self,
        config: "WhisperConfig",
        decoder: "WhisperDecoder",
        projection: nn.Linear,
        *,
        int8: bool = False,
    ) -> None:
        super().__init__(cached_whisper_decoder(decoder, int8=int8), projection, int8=int8)
        self._config = config
        self._weight_bytes = sum(weight.nbytes for weight in decoder.parameters())

    @property
    def size(self) -> ModelSize:
        """Its shape and weights, for sizing the slots."""
        config = self._config
        return ModelSize(
            layers=config.decoder_layers,
            width=config.d_model,
            inner_width=config.encoder_ffn_dim,
            vocab_size=config.vocab_size,
            tokens=config.max_target_positions,
            positions=config.max_source_positions,
            window_values=config.num_mel_bins * config.max_source_positions * FRAMES_PER_POSITION,
            element_bytes=self.dtype.itemsize,
            weight_bytes=self._weight_bytes,
        )

    @property
    def has_encoder(self) -> bool:
        """Whether this model encodes windows itself."""
        return False

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        """Return how many encoder positions so many frames of each of some windows make.

        Raises:
            ValueError: so many frames cannot be heard, or there is not one number for each window.
        """
        whole = self._config.max_source_positions * FRAMES_PER_POSITION
        check_heard(num_frames, windows=windows, whole=whole)
        return [number // FRAMES_PER_POSITION for number in num_frames]

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Refuse: there is no encoder.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"encoding {len(features)} windows with a decoder alone: expected encoded windows; "
            "encode them with the model it assists"
        )


class WhisperSlotModel(WhisperDecoderSlots):
    """A `WhisperSeq2SeqLM` whose decoder keeps its caches in numbered slots.

    Meets `decoding.protocols.SlotModel`. Shares of the decoder of `model` what
    `WhisperDecoderSlots` shares, and its encoder; but on CPUs, in bfloat16 and with `int8`, its
    encoder is a packed copy.
    """

    def __init__(self, model: "WhisperSeq2SeqLM", *, int8: bool = False) -> None:
        super().__init__(model.config, model.model.decoder, model.proj_out, int8=int8)
        encoder = model.model.encoder
        low = self.device.type == "cpu" and (int8 or self.dtype == torch.bfloat16)
        self._encoder = PackedWhisperEncoder(encoder, int8=int8) if low else encoder
        self._weight_bytes += sum(weight.nbytes for weight in encoder.parameters())

    @property
    def has_encoder(self) -> bool:
        """Whether this model encodes windows itself."""
        return True

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows.

        Args:
            features: whole windows.
            num_frames: of each window, the frames that are heard, as if there were no more; what
                is returned holds zeros after them. None hears whole windows.

        Raises:
            ValueError: the features are no whole window, or no such part of it can be heard.
        """
        return self._encoder.encode(features.to(self.device, self.dtype), num_frames=num_frames)


def causal_slot_model(model: "WhisperForCausalLM") -> WhisperDecoderSlots:
    """Make an assistant of a decoder that reads the windows its main model encodes."""
    return WhisperDecoderSlots(model.config, model.model.decoder, model.proj_out)
