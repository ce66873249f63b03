"""Whisper's encoder.

In: log-mel features of whole windows. Out: one hidden state per 20 ms. Knows no samples, no
tokens and no decoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.encoder import FeatureEncoder, check_values
from corpus_asr.families.layers.tower import Record
from corpus_asr.families.outputs import BaseModelOutput
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.units import FRAMES_PER_POSITION

_NOTHING = Record(states=None, weights=None)


class WhisperEncoder(FeatureEncoder):
    """Two convolutions, sinusoidal positions, pre-norm blocks and a last norm.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        width = config.d_model
        self.num_mel_bins = config.num_mel_bins
        self.num_frames = config.max_source_positions * FRAMES_PER_POSITION
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=FRAMES_PER_POSITION, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self._add_blocks(key_bias=False)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode whole windows.

        Args:
            input_features: float (batch, mel, frame) in the weights' type.
            attention_mask: has no effect: silence is heard like everything else.
            head_mask: (layer, head), what each head's attention weights are multiplied with.
            output_attentions: whether to return them; None asks the configuration, as below.
            output_hidden_states: whether to return the states after every layer.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: the features have another type, or number of mel bins or frames, than the
                model, or (where they are on a CPU) hold NaN or infinity; or a mask does not fit.
        """
        check_values(input_features, self.conv1.weight.dtype)
        record = Record.asked(self.config, output_attentions, output_hidden_states)
        return self._output(self._run(input_features, head_mask, record), record, return_dict)

    def encode(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows, and return the last hidden states only.

        Args:
            input_features: whole windows.
            num_frames: of each window, the frames that are heard, as if there were no more; what
                is returned holds zeros after them. None hears whole windows.

        Raises:
            ValueError: the features have another number of mel bins or frames than the model, or
                no such part of a window can be heard.
        """
        if num_frames is None:
            return self._run(input_features, None, _NOTHING)
        check_windows(input_features, num_mel_bins=self.num_mel_bins, num_frames=self.num_frames)
        check_heard(num_frames, windows=len(input_features), whole=self.num_frames)
        whole = input_features.new_zeros(len(input_features), *self.embed_positions.weight.shape)
        for length in sorted(set(num_frames)):  # those of one length together
            rows = [row for row, heard in enumerate(num_frames) if heard == length]
            some = torch.stack([input_features[row, :, :length] for row in rows])
            encoded = self._run(some, None, _NOTHING, num_frames=length)
            for row, states in zip(rows, encoded, strict=True):
                whole[row, : len(states)] = states
        return whole

    def _run(
        self,
        features: Tensor,
        head_mask: Tensor | None,
        record: Record,
        *,
        num_frames: int | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode; put what every layer gives into `record`."""
        num_frames = num_frames or self.num_frames
        check_windows(features, num_mel_bins=self.num_mel_bins, num_frames=num_frames)
        # Held by nobody but the blocks, so that it is freed after the first of them.
        return self._run_blocks(
            self._embedded(features), mask=None, head_mask=head_mask, record=record
        )

    def _embedded(
        self, features: Float[Tensor, "batch mel frame"]
    ) -> Float[Tensor, "batch pos width"]:
        # GELU whatever `activation_function` says: that is for the blocks.
        hidden = F.gelu(self.conv1(features))
        hidden = F.gelu(self.conv2(hidden))
        positions = self.embed_positions.weight[: hidden.shape[2]]
        embedded: Tensor = hidden.transpose(1, 2) + positions
        return embedded


def check_windows(features: Tensor, *, num_mel_bins: int, num_frames: int) -> None:
    """Check that these are whole windows.

    Raises:
        ValueError: they are not.
    """
    found = tuple(features.shape)
    if len(found) != 3 or found[1:] != (num_mel_bins, num_frames):
        shown = f"{found[1]} mel bins x {found[2]} frames" if len(found) == 3 else f"{found}"
        raise ValueError(
            f"encoding a window: found {shown}, expected {num_mel_bins} x {num_frames} after the "
            f"batch; pad or cut the features to one window"
        )
    if not found[0]:
        raise ValueError(
            "encoding windows: found an empty batch, expected one window or more; leave the "
            "call out"
        )


def check_heard(num_frames: Sequence[int], *, windows: int, whole: int) -> None:
    """Check that so many frames of each of some windows can be heard.

    Raises:
        ValueError: they cannot.
    """
    stride = FRAMES_PER_POSITION
    fitting = all(stride <= number <= whole and not number % stride for number in num_frames)
    if len(num_frames) != windows or not fitting:
        raise ValueError(
            f"hearing parts of {windows} windows: found {list(num_frames)} frames, expected for "
            f"each window a multiple of {stride}, {stride} to {whole}; correct num_frames"
        )
