"""Whisper in the form that search runs: caches in numbered slots, and a packed encoder for CPUs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.cached_decoder import DecoderSlots
from corpus_asr.families.layers.packed import (
    PackedConvolution,
    PackedEncoderBlock,
    run_per_sample,
)
from corpus_asr.families.whisper.decoder import WhisperDecoder
from corpus_asr.families.whisper.encoder import WhisperEncoder, check_heard, check_windows
from corpus_asr.units import FRAMES_PER_POSITION

if TYPE_CHECKING:
    from corpus_asr.families.whisper.config import WhisperConfig
    from corpus_asr.families.whisper.model import WhisperSeq2SeqLM


class LearnedPositions:
    """Tokens and positions each have learned rows, which are added."""

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding) -> None:
        self._tokens = tokens
        self._positions = positions

    @property
    def weight(self) -> Float[Tensor, "vocab width"]:
        """Of the tokens."""
        return self._tokens.weight

    def start(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0."""
        embedded = F.embedding(tokens, self._tokens.weight)
        return embedded + self._positions.weight[: tokens.shape[1]]

    def at(
        self, tokens: Int[Tensor, "*batch"], positions: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch width"]:
        """Embed tokens, each at its own position."""
        embedded = F.embedding(tokens, self._tokens.weight)
        return embedded + F.embedding(positions, self._positions.weight)


class PackedWhisperEncoder:
    """A `WhisperEncoder` that holds packed copies of its linear maps, with `int8` in 8 bits.

    Convolutions are products over neighbouring frames, never in 8 bits. Shares the last norm with
    `encoder`. Equal to it within the rounding of its type.
    """

    def __init__(self, encoder: WhisperEncoder, *, int8: bool) -> None:
        self._num_mel_bins, self._num_frames = encoder.num_mel_bins, encoder.num_frames
        self._conv1 = PackedConvolution(encoder.conv1, after="gelu")
        self._conv2 = PackedConvolution(encoder.conv2, after="gelu")
        with torch.inference_mode():
            self._positions = encoder.embed_positions.weight.float()
        self._blocks = [
            PackedEncoderBlock(block, int8=int8)
            for block in encoder.layers
            if isinstance(block, EncoderBlock)
        ]
        self._layer_norm = encoder.layer_norm

    def encode(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows; arguments as for `WhisperEncoder.encode`."""
        check_windows(input_features, num_mel_bins=self._num_mel_bins, num_frames=self._num_frames)
        windows = list(input_features)
        if num_frames is None:
            return torch.stack(run_per_sample(self._encode, windows, size=_frames))
        check_heard(num_frames, windows=len(windows), whole=self._num_frames)
        heard = [window[:, :end] for window, end in zip(windows, num_frames, strict=True)]
        positions = len(self._positions)
        encoded = run_per_sample(self._encode, heard, size=_frames)
        return torch.stack([F.pad(one, (0, 0, 0, positions - len(one))) for one in encoded])

    def _encode(self, features: Float[Tensor, "mel frame"]) -> Float[Tensor, "pos width"]:
        # GELU whatever `activation_function` says: that is for the blocks.
        hidden = self._conv2(self._conv1(features.t()))
        states = hidden + self._positions[: len(hidden)]  # (pos, width) in float32
        for block in self._blocks:
            block(states)
        normed: Tensor = self._layer_norm(states.to(features.dtype))
        return normed


def _frames(window: Float[Tensor, "mel frame"]) -> int:
    return window.shape[1]


class WhisperDecoderSlots(DecoderSlots):
    """A Whisper decoder alone, with its caches in numbered slots.

    Meets `decoding.protocols.SlotModel` but for the encoder: windows are filled in as another
    model has encoded them. Shares the embeddings and norms of `decoder`; its linear maps are fused
    copies made here, so training it further, or moving it, needs new slots.
    """

    has_encoder = False

    def __init__(
        self,
        config: "WhisperConfig",
        decoder: WhisperDecoder,
        projection: nn.Linear,
        *,
        int8: bool = False,
    ) -> None:
        super().__init__(
            config,
            LearnedPositions(decoder.embed_tokens, decoder.embed_positions),
            decoder,
            projection,
            max_source_positions=decoder.max_source_positions,
            int8=int8,
        )
        self._weight_bytes = sum(weight.nbytes for weight in decoder.parameters())

    @property
    def window_values(self) -> int:
        """Numbers in the features of a window."""
        config = self._config
        values: int = config.num_mel_bins * config.max_source_positions * FRAMES_PER_POSITION
        return values

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        """Return how many encoder positions so many frames of each of some windows make."""
        whole = self._config.max_source_positions * FRAMES_PER_POSITION
        check_heard(num_frames, windows=windows, whole=whole)
        return [number // FRAMES_PER_POSITION for number in num_frames]

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Refuse: there is no encoder."""
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

    has_encoder = True

    def __init__(self, model: "WhisperSeq2SeqLM", *, int8: bool = False) -> None:
        super().__init__(model.config, model.model.decoder, model.proj_out, int8=int8)
        encoder = model.model.encoder
        low = self.device.type == "cpu" and (int8 or self.dtype == torch.bfloat16)
        self._encoder = PackedWhisperEncoder(encoder, int8=int8) if low else encoder
        self._weight_bytes += sum(weight.nbytes for weight in encoder.parameters())

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows; arguments as for `WhisperEncoder.encode`."""
        return self._encoder.encode(features.to(self.device, self.dtype), num_frames=num_frames)
