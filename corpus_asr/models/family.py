"""What a model family gives to the rest, by name.

A family is a folder under `models/` and one `Family` value that says where its parts are. The
references are strings, so that naming a family imports nothing and a CPU worker never loads torch.
Knows no particular family, no file and no network.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the parts of one model family are; each reference reads `"module:Name"`."""

    model_type: str
    """The `model_type` in a checkpoint's config.json."""
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
    jobs: str
    """Class with `from_folder(folder)`: how parts are transcribed; imports torch. Meets
    `transcription.family_jobs.FamilyJobs`."""
    slot_model: str
    """Class with `from_pretrained(folder, dtype=, device=)` and `slot_model()`; imports torch."""
    feature_extractor: str | None = None
    """Class with `from_pretrained(name)`: samples to the model's input; None where there is none.
    """
    processor: str | None = None
    """Class with `from_pretrained(name)`: feature extractor and tokenizer as one, or None."""
    speech_seq2seq: str | None = None
    """Class with `from_pretrained(name)`: audio to text by `generate`, or None; imports torch."""
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
