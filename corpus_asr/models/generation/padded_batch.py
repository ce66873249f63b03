"""What `generate` is given to listen to, where each row of a padded batch is one text.

In: features with their mask, or what the encoder made of them. Out: every row encoded, as
transformers encodes it in that batch, and how much of it is heard. Knows no tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.families.speech2text.slots import Speech2TextSlotModel
from corpus_asr.models.generation.arguments import encoded_of, features_of, lengths_of
from corpus_asr.models.generation.slots import slot_model


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """A batch of recordings, padded at the end."""

    model: Speech2TextSlotModel
    """For windows as long as the batch."""
    features: Float[Tensor, "batch frame mel"] | None
    given: Float[Tensor, "batch pos width"] | None
    """The encoder's output, where the caller has it already."""
    num_frames: tuple[int, ...]
    """Of each row, those that are heard."""

    @classmethod
    def of(
        cls, model: Any, features: Any, encoder_outputs: Any, attention_mask: Any
    ) -> "PaddedBatch":
        """Check what was given.

        Raises:
            TypeError: features or mask are no tensor.
            ValueError: neither features nor encoder outputs were given, or they are of another
                shape than a batch, longer than the model can hear, or not finite; or the mask
                does not fit them.
        """
        slots = slot_model(model)
        assert isinstance(slots, Speech2TextSlotModel)
        if features is None and encoder_outputs is None:
            raise ValueError(
                "generating text: found neither `inputs` (`input_features`) nor `encoder_outputs`, "
                "expected one of them; pass what the feature extractor returns"
            )
        given = None if encoder_outputs is None else encoded_of(encoder_outputs)
        config = model.config
        if given is None:
            bins = config.input_feat_per_channel * config.input_channels
            features = features_of(features, bins, mel_axis=2)
            size, frames = features.shape[:2]
        else:
            features, size = None, len(given)
            frames = _frames_of(given, attention_mask, config)
        if frames > config.max_source_positions:
            raise ValueError(
                f"generating text: found {frames} frames, expected at most max_source_positions, "
                f"which is {config.max_source_positions}; cut the audio into shorter pieces"
            )
        heard = [frames] * size
        if attention_mask is not None:
            heard = lengths_of(attention_mask, size)
            _check_lengths(heard, frames)
        slots = slots.for_windows(frames)
        if given is not None and tuple(given.shape[1:]) != slots.window_shape:
            raise ValueError(
                f"generating text: encoder_outputs have shape {tuple(given.shape)}, expected "
                f"(batch, {slots.window_shape[0]}, {slots.window_shape[1]}) for {frames} frames; "
                "pass the mask that the encoder was given"
            )
        return cls(model=slots, features=features, given=given, num_frames=tuple(heard))

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.num_frames)

    @property
    def placeholder(self) -> np.ndarray:
        """Stands for the features of a row that is encoded already."""
        return np.broadcast_to(np.float32(0.0), (1, self.model.window_frames))

    def sound(self, row: int) -> np.ndarray:
        """What is heard of a row: features, or what the encoder made of them."""
        if self.features is not None:
            heard = self.features[row, : self.num_frames[row]]
        else:
            assert self.given is not None
            [end] = self.model.positions_heard([self.num_frames[row]], windows=1)
            heard = self.given[row, :end]
        return heard.detach().float().cpu().numpy()

    @torch.inference_mode()
    def encoded(self) -> Float[Tensor, "batch pos width"]:
        """Encode all rows; on a GPU a few at a time."""
        if self.given is not None:
            return self.given.to(self.model.device, self.model.dtype)
        assert self.features is not None
        kind = self.model.device.type
        # A CPU encodes each row by itself, and is kept busy best where it has all to choose from.
        some = self.size if kind == "cpu" else encode_batch_on(kind)
        parts = [
            self.model.encode_padded(
                self.features[first : first + some].transpose(1, 2),
                num_frames=self.num_frames[first : first + some],
            )
            for first in range(0, self.size, some)
        ]
        return torch.cat(parts)


def _frames_of(given: Tensor, attention_mask: Any, config: Any) -> int:
    """How many frames became these positions: as the mask says, or as many as could."""
    shape = tuple(getattr(attention_mask, "shape", ()))
    if len(shape) == 2:
        return int(shape[1])
    most = given.shape[1] * 2**config.num_conv_layers
    return int(min(most, max(config.max_source_positions, most - 2**config.num_conv_layers + 1)))


def _check_lengths(heard: list[int], frames: int) -> None:
    wrong = [row for row, number in enumerate(heard) if not 1 <= number <= frames]
    if wrong:
        raise ValueError(
            f"generating text: attention_mask has {heard[wrong[0]]} frames in row {wrong[0]}, "
            f"expected 1 to {frames}, which the features have; leave empty rows out"
        )
