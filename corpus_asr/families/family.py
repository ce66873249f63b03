"""What the parts of a model family are and where they lie, by name.

The references are strings, so that a CPU worker that names a family never loads torch.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the parts of one model family are; each reference reads `"module:Name"`."""

    model_type: str
    """The `model_type` in a checkpoint's config.json."""
    class_prefix: str
    """How the names of its classes begin in files that `transformers` wrote."""
    config: str
    """Class with `from_pretrained(folder)`: the fields of config.json."""
    generation: str
    """Class with `from_pretrained(folder)`: what the checkpoint says of decoding."""
    tokenizer: str
    """Class with `from_pretrained(folder)`: text to ids and back."""
    part_features: str
    """Class with `from_folder(folder)`: samples of one part to `PartFeatures`; torch-free.

    Its `num_mel_bins` is the width of what it gives; its `language_window_frames` the length of
    the windows that a part's language is asked for in, None where nobody asks.
    """
    slot_model: str
    """Class with `from_pretrained(folder, dtype=, device=)` and `slot_model()`; imports torch."""
    audio_classifier: str | None = None
    """Class with `from_pretrained(folder, dtype=, device=)` that meets `SlotModel`: it says a
    window's class as one token. None where there is none; imports torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFeatures:
    """What the model hears of one part of a recording."""

    values: Float16[np.ndarray, "frame mel"]
    """One row per 10 ms; the rows that hold `pad_value` throughout are left out at the end."""
    pad_value: float
    """The value of every frame after the last one."""
