"""Whisper's encoder made ready for CPUs in low precision.

In: log-mel features of whole windows. Out: one hidden state per 20 ms. Runs windows side by side,
one per thread; what a window gives does not depend on the others.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.packed_block import PackedEncoderBlock
from corpus_asr.families.layers.packed_convolution import PackedConvolution
from corpus_asr.families.layers.side_by_side import run_side_by_side
from corpus_asr.families.whisper.encoder import WhisperEncoder, check_heard, check_windows


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
        """Encode windows.

        Args:
            input_features: whole windows.
            num_frames: as for `WhisperEncoder.encode`.

        Raises:
            ValueError: the features have another number of mel bins or frames than the model, or
                no such part of a window can be heard.
        """
        check_windows(input_features, num_mel_bins=self._num_mel_bins, num_frames=self._num_frames)
        windows = list(input_features)
        if num_frames is None:
            return torch.stack(run_side_by_side(self._encode, windows, size=_frames))
        check_heard(num_frames, windows=len(windows), whole=self._num_frames)
        heard = [window[:, :end] for window, end in zip(windows, num_frames, strict=True)]
        positions = len(self._positions)
        encoded = run_side_by_side(self._encode, heard, size=_frames)
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
