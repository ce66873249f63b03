"""Whisper in the forms that search runs: caches in numbered slots, a packed encoder for CPUs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.cached_decoder import DecoderSlots
from corpus_asr.families.layers.fused import fused_encoder
from corpus_asr.families.layers.module_slots import ModuleSlots
from corpus_asr.families.layers.packed import (
    PackedConvolution,
    PackedEncoderBlock,
    copied_layers,
    run_per_sample,
)
from corpus_asr.families.layers.stack import check_heard
from corpus_asr.families.whisper.encoder import WhisperEncoder, check_windows
from corpus_asr.units import FRAMES_PER_POSITION, FRAMES_PER_SECOND

if TYPE_CHECKING:
    from corpus_asr.families.whisper.model import WhisperDecoder, WhisperSeq2SeqLM


class PackedWhisperEncoder:
    """A `WhisperEncoder` that holds packed copies of its linear maps, with `int8` in 8 bits.

    Convolutions are products over neighboring frames, never in 8 bits. Shares the last norm with
    `encoder`. Equal to it within the rounding of its type.
    """

    def __init__(self, encoder: WhisperEncoder, *, int8: bool, consume: bool = False) -> None:
        self._num_mel_bins, self._num_frames = encoder.num_mel_bins, encoder.num_frames
        self._conv1 = PackedConvolution(encoder.conv1, after="gelu")
        self._conv2 = PackedConvolution(encoder.conv2, after="gelu")
        with torch.inference_mode():
            self._positions = encoder.embed_positions.weight.float()
        self._blocks = [
            PackedEncoderBlock(block, int8=int8)
            for block in copied_layers(encoder.layers, consume=consume)
            if isinstance(block, EncoderBlock)
        ]
        self._layer_norm = encoder.layer_norm

    def encode(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        check_windows(input_features, num_mel_bins=self._num_mel_bins, num_frames=self._num_frames)
        windows = list(input_features)
        if num_frames is not None:
            step = FRAMES_PER_POSITION
            check_heard(num_frames, windows=len(windows), whole=self._num_frames, step=step)
            windows = [window[:, :end] for window, end in zip(windows, num_frames, strict=True)]
        encoded = run_per_sample(self._encode, windows, size=lambda window: window.shape[1])
        whole = len(self._positions)
        return torch.stack([F.pad(one, (0, 0, 0, whole - len(one))) for one in encoded])

    def _encode(self, features: Float[Tensor, "mel frame"]) -> Float[Tensor, "pos width"]:
        # GELU whatever `activation_function` says: that is for the blocks.
        hidden = self._conv2(self._conv1(features.t()))
        states = hidden + self._positions[: len(hidden)]  # (pos, width) in float32
        for block in self._blocks:
            block(states)
        normed: Tensor = self._layer_norm(states.to(features.dtype))
        return normed


class WhisperDecoderSlots(DecoderSlots):
    """A Whisper decoder alone: its slots are filled with windows that another model has encoded."""

    has_encoder = False

    def __init__(
        self,
        decoder: "WhisperDecoder",
        projection: nn.Linear,
        *,
        int8: bool = False,
        consume: bool = False,
    ) -> None:
        self._weight_bytes = sum(weight.nbytes for weight in decoder.parameters())
        super().__init__(
            decoder,
            projection,
            max_source_positions=decoder.max_source_positions,
            int8=int8,
            consume=consume,
        )
        self._token_positions = decoder.embed_positions

    @property
    def window_values(self) -> int:
        return int(self._config.num_mel_bins) * self._whole_frames

    @property
    def _whole_frames(self) -> int:
        return int(self._config.max_source_positions) * FRAMES_PER_POSITION

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        return _positions_heard(num_frames, windows=windows, whole=self._whole_frames)

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        raise ValueError(
            f"encoding {len(features)} windows with a decoder alone: expected encoded windows; "
            "encode them with the model it assists"
        )

    def _embed(
        self, tokens: Int[Tensor, "batch token"], positions: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token width"]:
        embedded = F.embedding(tokens, self._tokens.weight)
        return embedded + F.embedding(positions, self._token_positions.weight)


class WhisperSlotModel(WhisperDecoderSlots):
    """A `WhisperSeq2SeqLM` as a `SlotModel`.

    Shares the encoder of `model` too, on GPUs with fused queries, keys and values; but on CPUs, in
    bfloat16 and with `int8`, it is a packed copy. With `consume`, `model` loses every block that is
    copied, as soon as it is, and cannot be used after.
    """

    has_encoder = True

    def __init__(
        self, model: "WhisperSeq2SeqLM", *, int8: bool = False, consume: bool = False
    ) -> None:
        super().__init__(model.model.decoder, model.proj_out, int8=int8, consume=consume)
        encoder = model.model.encoder
        self._weight_bytes += sum(weight.nbytes for weight in encoder.parameters())
        self._encoder: WhisperEncoder | PackedWhisperEncoder
        if self.device.type != "cpu":
            self._encoder = fused_encoder(encoder)
        elif int8 or self.dtype == torch.bfloat16:
            self._encoder = PackedWhisperEncoder(encoder, int8=int8, consume=consume)
        else:
            self._encoder = encoder

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        return self._encoder.encode(features.to(self.device, self.dtype), num_frames=num_frames)


class WhisperModuleSlots(ModuleSlots):
    """A Whisper network, whole or a decoder alone, whose modules are called as they are."""

    frame_step = FRAMES_PER_SECOND

    def __init__(self, network: Any) -> None:
        super().__init__(network, max_source_positions=network.config.max_source_positions)
        self.has_encoder = network.config.is_encoder_decoder

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        whole = self._config.max_source_positions * FRAMES_PER_POSITION
        return _positions_heard(num_frames, windows=windows, whole=whole)

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        if num_frames is not None:
            raise ValueError(
                f"encoding {list(num_frames)} frames of windows: modules that are not the "
                "family's own encode whole windows alone; leave num_frames out"
            )
        return self._encoded(features.to(self.device, self.dtype))


def _positions_heard(num_frames: Sequence[int], *, windows: int, whole: int) -> list[int]:
    check_heard(num_frames, windows=windows, whole=whole, step=FRAMES_PER_POSITION)
    return [number // FRAMES_PER_POSITION for number in num_frames]
