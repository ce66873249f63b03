"""SpecAugment: features masked at random in training.

In: features of whole windows. Out: the same with spans of time and of mel bins set to zero. Draws
from numpy's global generator, call for call as transformers does, so that `np.random.seed` gives
the same masks. Knows no network.

Source: Park et al. 2019, section 2.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corpus_asr.families.whisper.config import WhisperConfig


def mask_features(
    features: Float[Tensor, "batch mel frame"],
    config: WhisperConfig,
    attention_mask: Tensor | None = None,
) -> Float[Tensor, "batch mel frame"]:
    """Return a copy with masked spans, as `config.mask_*` say.

    Args:
        features: stay as they are.
        config: says how much is masked.
        attention_mask: (batch, frame), 1 where there is sound, at the start of each row; spans of
            time lie within it.

    Raises:
        ValueError: a span is longer than its axis, or the mask is of another shape.
    """
    batch, bins, frames = features.shape
    if config.mask_time_prob > 0:
        masked = mask_spans(
            (batch, frames),
            probability=config.mask_time_prob,
            length=config.mask_time_length,
            min_spans=config.mask_time_min_masks,
            lengths=_lengths(attention_mask, (batch, frames)),
        )
        features = features.masked_fill(_on(masked, features)[:, None, :], 0.0)
    if config.mask_feature_prob > 0:
        masked = mask_spans(
            (batch, bins),
            probability=config.mask_feature_prob,
            length=config.mask_feature_length,
            min_spans=config.mask_feature_min_masks,
        )
        features = features.masked_fill(_on(masked, features)[:, :, None], 0.0)
    return features


def mask_spans(
    shape: tuple[int, int],
    *,
    probability: float,
    length: int,
    min_spans: int,
    lengths: list[int] | None = None,
    draw: np.random.RandomState | None = None,
) -> Bool[np.ndarray, "batch pos"]:
    """Draw spans to mask; they may overlap.

    Args:
        shape: rows, and places in each.
        probability: share of the places that spans would cover if none overlapped.
        length: places in a span.
        min_spans: spans in a row, however low `probability` is.
        lengths: places of each row in which spans may lie; None means all.
        draw: generator of random numbers; None means numpy's global one.

    Raises:
        ValueError: a span is longer than a row.

    Source: transformers/models/whisper/modeling_whisper.py, `_compute_mask_indices`; equal to it
    under the same `np.random.seed`.
    """
    rows, places = shape
    if not 1 <= length <= places:
        raise ValueError(
            f"masking features: found spans of {length} in rows of {places}, expected 1 to "
            f"{places}; correct mask_time_length or mask_feature_length"
        )
    # One draw for all rows decides which way a fraction of a span is rounded.
    rand, choice = (np.random.rand, np.random.choice) if draw is None else (draw.rand, draw.choice)
    rounding = rand(1).item()

    def num_spans(available: int) -> int:
        wanted = max(int(probability * available / length + rounding), min_spans)
        return max(min(wanted, places // length, available - length + 1), 0)

    masked = np.zeros(shape, dtype=bool)
    if num_spans(places) == 0:
        return masked
    for row, available in zip(masked, lengths or [places] * rows, strict=True):
        starts = choice(np.arange(available - length + 1), num_spans(available), replace=False)
        for start in starts:
            row[start : start + length] = True
        if not len(starts):  # too short for a span: its last place is padding
            row[-1] = True
    return masked


def _lengths(attention_mask: Tensor | None, shape: tuple[int, int]) -> list[int] | None:
    if attention_mask is None:
        return None
    if tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"masking features: found an attention_mask of shape {tuple(attention_mask.shape)}, "
            f"expected {shape}: one value for each frame"
        )
    return [int(count) for count in attention_mask.sum(dim=-1).tolist()]


def _on(masked: Bool[np.ndarray, "batch pos"], features: Tensor) -> Bool[Tensor, "batch pos"]:
    return torch.from_numpy(masked).to(features.device)
