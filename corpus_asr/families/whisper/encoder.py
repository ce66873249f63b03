"""Whisper's encoder, its features on a GPU, and their masking in training (SpecAugment)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Bool, Float, Float32
from corpus_asr.families.layers.blocks import NOTHING, EncoderBlock, Record
from corpus_asr.families.layers.plain import plain
from corpus_asr.families.layers.stack import (
    FeatureEncoder,
    check_heard,
    check_values,
    rows_of,
    sinusoids,
)
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import BaseModelOutput
from corpus_asr.families.pretrained import PreTrainedModel
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.features.mel import (
    DYNAMIC_RANGE,
    OFFSET,
    POWER_FLOOR,
    SCALE,
    Analysis,
    mel_filters,
)
from corpus_asr.units import FRAMES_PER_POSITION

_POSITIONS = "encoder.embed_positions.weight"


class WhisperPreTrainedModel(PreTrainedModel):
    """Base of the Whisper networks; their encoder positions are fixed sinusoids."""

    config_class: ClassVar[type[ModelConfig]] = WhisperConfig
    config: WhisperConfig

    # Files of the complete model may store the projection, which is the token embedding.
    _left_over: ClassVar[tuple[str, ...]] = ("proj_out.weight",)
    _fixed: ClassVar[tuple[str, ...]] = (_POSITIONS, f"model.{_POSITIONS}")

    @torch.no_grad()
    def _draw(self, name: str, parameter: Tensor) -> None:
        if name.endswith(_POSITIONS):
            parameter.requires_grad_(False)
            if not parameter.is_meta:
                parameter.copy_(sinusoids(*parameter.shape))
        else:
            super()._draw(name, parameter)

    def _get_feat_extract_output_lengths(self, input_lengths: Any) -> Any:
        """Return the positions for a number of frames, as an integer or a tensor."""
        return (input_lengths - 1) // FRAMES_PER_POSITION + 1


@plain
class WhisperEncoder(FeatureEncoder, WhisperPreTrainedModel):
    """Two convolutions, sinusoidal positions, pre-norm blocks and a final norm.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    _fixed: ClassVar[tuple[str, ...]] = (_POSITIONS.removeprefix("encoder."),)

    def __init__(self, config: WhisperConfig, *, drawn: bool = True) -> None:
        super().__init__(config)
        width = config.d_model
        self.num_mel_bins = config.num_mel_bins
        # The second convolution halves the frames: 3,000 become 1,500 positions.
        self.num_frames = config.max_source_positions * FRAMES_PER_POSITION
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=FRAMES_PER_POSITION, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        # A bias of keys adds a constant to all scores of a query, which the softmax removes.
        self._add_blocks(EncoderBlock, config.encoder_layers, key_bias=False)
        # Weights are initialized by the enclosing network.
        if drawn:
            self._draw_weights()

    def get_input_embeddings(self) -> nn.Conv1d:
        """Return the input layer."""
        return self.conv1

    def set_input_embeddings(self, value: nn.Conv1d) -> None:
        """Replace the input layer."""
        self.conv1 = value

    def _draw(self, name: str, parameter: Tensor) -> None:
        super()._draw(f"encoder.{name}", parameter)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode whole windows (batch, mel, frame) in the weights' type.

        Arguments are those of transformers; None means the configuration's value. `attention_mask`
        has no effect: silence is encoded as well.
        """
        check_values(input_features, self.conv1.weight.dtype)
        record = Record.asked(self.config, output_attentions, output_hidden_states)
        # Only the blocks reference the embedded features, so that the first block frees them.
        last = self._encode(self._embedded(input_features), record, head_mask=head_mask)
        return self._output(last, record, return_dict)

    def encode(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode whole windows, and return only the last hidden states.

        Only `num_frames` of each window are encoded, as if there were no more, and the result is
        zero after them; None encodes whole windows.
        """
        if num_frames is None:
            return self._encode(self._embedded(input_features), NOTHING)
        check_windows(input_features, num_mel_bins=self.num_mel_bins, num_frames=self.num_frames)
        check_heard(
            num_frames,
            windows=len(input_features),
            whole=self.num_frames,
            step=FRAMES_PER_POSITION,
        )
        whole = input_features.new_zeros(len(input_features), *self.embed_positions.weight.shape)
        # Windows of equal length together: padding would be encoded and attended to.
        for length in sorted(set(num_frames)):
            rows = [row for row, frames in enumerate(num_frames) if frames == length]
            windows = torch.stack([input_features[row, :, :length] for row in rows])
            encoded = self._encode(self._embedded(windows, num_frames=length), NOTHING)
            for row, states in zip(rows, encoded, strict=True):
                whole[row, : len(states)] = states
        return whole

    def _embedded(
        self, features: Tensor, *, num_frames: int | None = None
    ) -> Float[Tensor, "batch pos width"]:
        num_frames = num_frames or self.num_frames
        check_windows(features, num_mel_bins=self.num_mel_bins, num_frames=num_frames)
        # Always GELU: `activation_function` is for the blocks.
        hidden = F.gelu(self.conv1(features))
        hidden = F.gelu(self.conv2(hidden))
        embedded: Tensor = hidden.transpose(1, 2) + rows_of(
            self.embed_positions, 0, hidden.shape[2]
        )
        # Sums keep the layout of their first operand, which saves a copy per norm. Dropout masks
        # depend on the layout, as in transformers.
        return embedded if self.training else embedded.contiguous()


def check_windows(features: Tensor, *, num_mel_bins: int, num_frames: int) -> None:
    """Raise ValueError unless these are whole windows."""
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[1:] != (num_mel_bins, num_frames):
        shown = f"{shape[1]} mel bins x {shape[2]} frames" if len(shape) == 3 else f"{shape}"
        raise ValueError(
            f"encoding a window: found {shown}, expected {num_mel_bins} x {num_frames} after the "
            f"batch; pad or cut the features to one window"
        )
    if not shape[0]:
        raise ValueError(
            "encoding windows: found an empty batch, expected one window or more; omit the call"
        )


def log_mel_on_device(
    rows: Float32[np.ndarray, "batch sample"],
    *,
    num_mel_bins: int,
    analysis: Analysis,
    device: Any,
) -> Float32[np.ndarray, "batch mel frame"]:
    """Compute the log-mel features of many recordings on a device, in float32.

    Source: `transformers.WhisperFeatureExtractor._torch_extract_fbank_features`; equal to it within
    1e-5 on the same device, and to the float64 features of the CPU within 1e-4.
    """
    samples = torch.from_numpy(rows).to(device, torch.float32)
    if analysis.dither:
        # Once per sample; the CPU version draws per frame, and frames overlap.
        samples = samples + analysis.dither * torch.randn(samples.shape, device=samples.device)
    window = torch.hann_window(analysis.fft_samples, device=samples.device)
    spectra = torch.stft(
        samples, analysis.fft_samples, analysis.hop_samples, window=window, return_complex=True
    )
    # The last frame is centered on the end of the samples: the reference drops it.
    power = (spectra[..., :-1].abs() ** 2).contiguous()  # (batch, bin, frame)
    filters = mel_filters(
        num_mel_bins, fft_samples=analysis.fft_samples, sample_rate_hz=analysis.sample_rate_hz
    )
    weights = torch.tensor(filters, device=samples.device)  # (mel, bin)
    logs = (weights @ power).clamp(min=POWER_FLOOR).log10()
    # Each row by its own maximum, so that recordings are independent.
    peaks = logs.amax(dim=(1, 2), keepdim=True)
    scaled = (torch.maximum(logs, peaks - DYNAMIC_RANGE) + OFFSET) / SCALE
    features: Float32[np.ndarray, "batch mel frame"] = scaled.cpu().numpy()
    return features


def mask_features(
    features: Float[Tensor, "batch mel frame"],
    config: WhisperConfig,
    attention_mask: Tensor | None = None,
) -> Float[Tensor, "batch mel frame"]:
    """Return a copy with masked spans, according to `config.mask_*`.

    Time spans lie within `attention_mask` (batch, frame), which is 1 for audio, at the start of
    each row.
    """
    # Time first, then features, to draw from numpy's generator in the order of transformers.
    for axis, name in ((2, "time"), (1, "feature")):
        probability = getattr(config, f"mask_{name}_prob")
        if probability > 0:
            shape = features.shape[0], features.shape[axis]
            masked = mask_spans(
                shape,
                probability=probability,
                length=getattr(config, f"mask_{name}_length"),
                min_spans=getattr(config, f"mask_{name}_min_masks"),
                lengths=_lengths(attention_mask, shape) if name == "time" else None,
            )
            hidden = torch.from_numpy(masked).to(features.device)
            features = features.masked_fill(hidden.unsqueeze(3 - axis), 0.0)
    return features


def mask_spans(
    shape: tuple[int, int],
    *,
    probability: float,
    length: int,
    min_spans: int,
    lengths: list[int] | None = None,
) -> Bool[np.ndarray, "batch pos"]:
    """Draw spans of `length` to mask in (rows, positions); they may overlap.

    `probability` is the fraction of positions that they would cover without overlaps. They lie in
    the first `lengths` positions of each row; None means all. Draws from numpy's global generator
    are those of transformers: `np.random.seed` gives the same masks.

    Source: Park et al. 2019, section 2; transformers/models/whisper/modeling_whisper.py,
    `_compute_mask_indices`.
    """
    rows, places = shape
    if not 1 <= length <= places:
        raise ValueError(
            f"masking features: found spans of {length} in rows of {places}, expected 1 to "
            f"{places}; correct mask_time_length or mask_feature_length"
        )
    # One draw for all rows determines how a fractional number of spans is rounded.
    rounding = np.random.rand(1).item()

    def num_spans(available: int) -> int:
        wanted = max(int(probability * available / length + rounding), min_spans)
        return max(min(wanted, places // length, available - length + 1), 0)

    masked = np.zeros(shape, dtype=bool)
    if num_spans(places) == 0:
        return masked
    for row, available in zip(masked, lengths or [places] * rows, strict=True):
        places_left = np.arange(available - length + 1)
        starts = np.random.choice(places_left, num_spans(available), replace=False)
        for start in starts:
            row[start : start + length] = True
        if not len(starts):
            # In a row shorter than a span the last position is padding; the reference masks it too.
            row[-1] = True
    return masked


def _lengths(attention_mask: Tensor | None, shape: tuple[int, int]) -> list[int] | None:
    if attention_mask is None:
        return None
    if tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"masking features: found an attention_mask of shape {tuple(attention_mask.shape)}, "
            f"expected {shape}: one value per frame"
        )
    return [int(count) for count in attention_mask.sum(dim=-1).tolist()]
