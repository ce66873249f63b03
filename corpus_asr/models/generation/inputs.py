"""Inputs of `generate`: rows of windows for Whisper, a padded batch for Speech2Text."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Float
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.families.speech2text.model import Speech2TextSlotModel
from corpus_asr.models.generation.settings import encoded_of, features_of, lengths_of
from corpus_asr.models.generation.slots import in_own_type, slot_model


def seed_of(sound: Float[np.ndarray, "*_"], name: str) -> int:
    """Return a sampling seed from the audio and a name: draw, position and temperature."""
    # Independent of the row's index in the batch: neighbors must not affect sampling.
    digest = hashlib.blake2b(np.ascontiguousarray(sound).data, digest_size=8)
    digest.update(name.encode())
    return int.from_bytes(digest.digest(), "little", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recording of a batch."""

    index: int
    """Index in the batch."""
    features: Float[np.ndarray, "mel frame"] | None
    encoded: Float[Tensor, "pos width"] | None
    """The encoder output, if the caller has it; then every window is this one."""
    frames: int
    """Number of valid frames; later features are padding."""

    def window(self, seek: int, count: int, width: int) -> Float[np.ndarray, "mel frame"]:
        """Cut `count` frames from `seek`, padded with 0.0 to `width` frames."""
        if self.features is None:
            return np.zeros((1, width), dtype=np.float32)
        cut = self.features[:, seek : seek + count]
        missing = width - cut.shape[1]
        return np.pad(cut, ((0, 0), (0, missing))) if missing > 0 else cut

    def seed(
        self, base: int, seek: int, temperature: float, window: Float[np.ndarray, "mel frame"]
    ) -> int:
        """Return the seed of a window at frame `seek`; `base` is drawn once per call."""
        # From the window's features: hashing a whole recording for every window would be slow.
        if self.features is None:
            assert self.encoded is not None
            window = self.encoded.detach().cpu().float().numpy()
        return seed_of(window, f"{base} {seek} {temperature!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """A batch of recordings."""

    features: Float[Tensor, "batch mel frame"] | None
    encoded: Float[Tensor, "batch pos width"] | None
    input_stride: int
    """Feature frames per encoder position."""
    window_frames: int
    """Feature frames per window."""

    @classmethod
    def of(cls, model: Any, input_features: Any, encoder_outputs: Any) -> "Audio":
        """Validate the arguments."""
        config = model.config
        encoder = model.get_encoder()
        # 2 in every published checkpoint, but not in the configuration.
        stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
        if input_features is None and encoder_outputs is None:
            raise ValueError(
                "generating text: found neither `input_features` nor `encoder_outputs`, expected "
                "one of them; pass what the feature extractor returns"
            )
        bins = config.num_mel_bins
        features = None if input_features is None else features_of(input_features, bins)
        encoded = None if encoder_outputs is None else encoded_of(encoder_outputs)
        window = stride * config.max_source_positions
        return cls(features=features, encoded=encoded, input_stride=stride, window_frames=window)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        held = self.encoded if self.features is None else self.features
        assert held is not None
        return int(held.shape[0])

    @property
    def total_frames(self) -> int:
        """Number of feature frames."""
        if self.features is not None:
            return int(self.features.shape[2])
        assert self.encoded is not None
        return int(self.encoded.shape[1]) * self.input_stride

    @property
    def is_short(self) -> bool:
        """Whether all rows fit one window."""
        return self.total_frames <= self.window_frames

    def rows(self, attention_mask: Any) -> list[Row]:
        """Split the batch."""
        frames = [self.total_frames] * self.batch_size
        if self.batch_size > 1 and not self.is_short:
            if attention_mask is None:
                raise ValueError(
                    f"generating text for {self.batch_size} recordings longer than a window: "
                    "found no `attention_mask`, expected one; call the feature extractor with "
                    "return_attention_mask=True"
                )
            frames = lengths_of(attention_mask, self.batch_size)
        features, encoded = self.features, self.encoded
        # At once: from a GPU each is a transfer.
        arrays = None if features is None else list(features.detach().cpu().float().numpy())
        return [
            Row(
                index=i,
                features=arrays[i] if arrays is not None else None,
                encoded=encoded[i] if encoded is not None else None,
                frames=frames[i],
            )
            for i in range(self.batch_size)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """A batch of recordings, padded at the end."""

    model: Speech2TextSlotModel
    """Slot model for windows as long as the batch."""
    features: Float[Tensor, "batch frame mel"] | None
    given: Float[Tensor, "batch pos width"] | None
    """The encoder output, if the caller has it."""
    num_frames: tuple[int, ...]
    """Number of valid frames of each row."""

    @classmethod
    def of(
        cls, model: Any, features: Any, encoder_outputs: Any, attention_mask: Any
    ) -> "PaddedBatch":
        """Validate the arguments."""
        slots = slot_model(model)
        assert isinstance(slots, Speech2TextSlotModel)
        if features is None and encoder_outputs is None:
            raise ValueError(
                "generating text: found neither `inputs` (`input_features`) nor `encoder_outputs`, "
                "expected one of them; pass what the feature extractor returns"
            )
        encoded = None if encoder_outputs is None else encoded_of(encoder_outputs)
        config = model.config
        if encoded is None:
            bins = config.input_feat_per_channel * config.input_channels
            features = features_of(features, bins, mel_axis=2)
            size, frames = features.shape[:2]
        else:
            features, size = None, len(encoded)
            frames = _frames_of(encoded, attention_mask, config)
        if frames > config.max_source_positions:
            raise ValueError(
                f"generating text: found {frames} frames, expected at most max_source_positions, "
                f"which is {config.max_source_positions}; cut the audio"
            )
        num_frames = [frames] * size
        if attention_mask is not None:
            num_frames = lengths_of(attention_mask, size)
            wrong = [row for row, number in enumerate(num_frames) if not 1 <= number <= frames]
            if wrong:
                raise ValueError(
                    f"generating text: attention_mask has {num_frames[wrong[0]]} frames in row "
                    f"{wrong[0]}, expected 1 to {frames}, which the features have; remove empty "
                    "rows"
                )
        slots = slots.for_windows(frames)
        if encoded is not None and tuple(encoded.shape[1:]) != slots.window_shape:
            raise ValueError(
                f"generating text: encoder_outputs have shape {tuple(encoded.shape)}, expected "
                f"(batch, {slots.window_shape[0]}, {slots.window_shape[1]}) for {frames} frames; "
                "pass the encoder's attention_mask"
            )
        return cls(model=slots, features=features, given=encoded, num_frames=tuple(num_frames))

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.num_frames)

    @property
    def placeholder(self) -> np.ndarray:
        """Return placeholder features for rows that are already encoded."""
        return np.broadcast_to(np.float32(0.0), (1, self.model.window_frames))

    def sound(self, row: int) -> np.ndarray:
        """Return the valid features of a row, or its encoder output."""
        if self.features is not None:
            valid = self.features[row, : self.num_frames[row]]
        else:
            assert self.given is not None
            [end] = self.model.positions_heard([self.num_frames[row]], windows=1)
            valid = self.given[row, :end]
        return valid.detach().float().cpu().numpy()

    def slots(self, *, max_tokens: int) -> SlotModel:
        """Return the slot model for this number of tokens."""
        model: SlotModel = self.model.for_windows(self.model.window_frames, max_tokens=max_tokens)
        return model

    @torch.inference_mode()
    def encoded(self) -> Float[Tensor, "batch pos width"]:
        """Encode all rows; on a GPU in small batches."""
        if self.given is not None:
            return self.given.to(self.model.device, self.model.dtype)
        assert self.features is not None
        device = self.model.device
        kind = device.type
        # A CPU encodes each row separately, and balances best over all rows.
        batch_size = self.size if kind == "cpu" else encode_batch_on(kind)
        with in_own_type(device):
            parts = [
                self.model.encode_padded(
                    self.features[first : first + batch_size].transpose(1, 2),
                    num_frames=self.num_frames[first : first + batch_size],
                )
                for first in range(0, self.size, batch_size)
            ]
        return torch.cat(parts)


def _frames_of(given: Tensor, attention_mask: Any, config: Any) -> int:
    # Strided convolutions round up, so several frame counts give these positions: the mask decides,
    # and without one the maximum allowed by the model.
    shape = tuple(getattr(attention_mask, "shape", ()))
    if len(shape) == 2:
        return int(shape[1])
    most = given.shape[1] * 2**config.num_conv_layers
    return int(min(most, max(config.max_source_positions, most - 2**config.num_conv_layers + 1)))
