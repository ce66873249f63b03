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
from corpus_asr.models.generation.call import refuse_if, tensor_of
from corpus_asr.models.generation.slots import in_own_type, slot_model


def seed_of(sound: Float[np.ndarray, "*_"], name: str) -> int:
    """Return a sampling seed from the audio and a name: draw, position and temperature."""
    # Independent of the row's index in the batch: neighbors must not affect sampling.
    digest = hashlib.blake2b(np.ascontiguousarray(sound).data, digest_size=8)
    digest.update(name.encode())
    return int.from_bytes(digest.digest(), "little", signed=True)


def features_of(given: Any, *axes: int | str) -> Tensor:
    """Validate features with these axes after the batch's."""
    features = tensor_of("input_features", given, "batch", *axes)
    # Synchronizes with a GPU once a call: later errors would be unclear.
    finite = features.isfinite()
    if not bool(finite.all()):
        rows = (~finite).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"generating text: found NaN or infinity in the input_features of rows {rows}, "
            "expected finite numbers; check the audio"
        )
    return features


def _features_or_encoding(
    features: Any, encoder_outputs: Any, *axes: int | str
) -> tuple[Tensor | None, Tensor | None]:
    """Validate features, the hidden states of an encoder's output, or both."""
    refuse_if(
        features is None and encoder_outputs is None,
        "found neither `input_features` (`inputs`) nor `encoder_outputs`, expected one of them; "
        "pass what the feature extractor returns",
    )
    states = getattr(encoder_outputs, "last_hidden_state", encoder_outputs)
    if isinstance(states, list | tuple) and states:
        states = states[0]
    return (
        None if features is None else features_of(features, *axes),
        None if states is None else tensor_of("encoder_outputs", states, "batch", "pos", "width"),
    )


def lengths_of(attention_mask: Any, batch_size: int) -> list[int]:
    """Return the number of frames of each row."""
    mask = tensor_of("attention_mask", attention_mask, batch_size, "frames")
    lengths: list[int] = mask.sum(-1).long().tolist()
    return lengths


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
        config, encoder = model.config, model.get_encoder()
        # 2 in every published checkpoint, but not in the configuration.
        stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
        features, encoded = _features_or_encoding(
            input_features, encoder_outputs, config.num_mel_bins, "frames"
        )
        window = stride * config.max_source_positions
        return cls(features=features, encoded=encoded, input_stride=stride, window_frames=window)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        rows = self.encoded if self.features is None else self.features
        assert rows is not None
        return len(rows)

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
            refuse_if(
                attention_mask is None,
                f"found {self.batch_size} recordings longer than a window without "
                "`attention_mask`, expected one; call the feature extractor with "
                "return_attention_mask=True",
            )
            frames = lengths_of(attention_mask, self.batch_size)
        nothing = [None] * self.batch_size
        features, encoded = self.features, self.encoded
        # At once: from a GPU each is a transfer.
        arrays = nothing if features is None else features.detach().cpu().float().numpy()
        return [
            Row(index=i, features=row_features, encoded=row_encoded, frames=frames[i])
            for i, (row_features, row_encoded) in enumerate(
                zip(arrays, nothing if encoded is None else encoded, strict=True)
            )
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
        slots, config = slot_model(model), model.config
        assert isinstance(slots, Speech2TextSlotModel)
        bins = config.input_feat_per_channel * config.input_channels
        if encoder_outputs is not None:
            features = None
        features, encoded = _features_or_encoding(features, encoder_outputs, "frames", bins)
        if encoded is not None:
            frames = _frames_of(encoded, attention_mask, config)
        else:
            frames = features.shape[1]
        refuse_if(
            frames > config.max_source_positions,
            f"found {frames} frames, expected at most max_source_positions, which is "
            f"{config.max_source_positions}; cut the audio",
        )
        size = len(features if encoded is None else encoded)
        num_frames = [frames] * size
        if attention_mask is not None:
            num_frames = lengths_of(attention_mask, size)
        for row, number in enumerate(num_frames):
            refuse_if(
                not 1 <= number <= frames,
                f"attention_mask has {number} frames in row {row}, expected 1 to {frames}, which "
                "the features have; remove empty rows",
            )
        slots = slots.for_windows(frames)
        if encoded is not None:
            tensor_of("encoder_outputs", encoded, "batch", *slots.window_shape)
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
