"""Loading a checkpoint in the form that search runs.

In: a folder, a device and a precision. Out: a slot model. Knows no family by name.
"""

from pathlib import Path
from typing import Any

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.models.device import resolve_device, resolve_precision
from corpus_asr.models.registry import family_of, resolve


def load_slot_model(folder: Path, *, device: str, dtype: str) -> SlotModel:
    """Load a checkpoint folder; what the slot model does not share with it is freed.

    Args:
        folder: a checkpoint in Hugging Face layout.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, `float16`, `bfloat16` or `int8`.

    Raises:
        CheckpointError: the folder cannot be loaded.
        ConfigError: no such device, or it cannot compute in such numbers.
    """
    where = resolve_device(device)
    precision = resolve_precision(dtype, where)
    model_class: Any = resolve(family_of(folder).slot_model)
    model = model_class.from_pretrained(folder, dtype=precision.dtype, device=where)
    slot_model: SlotModel = model.slot_model(int8=precision.int8)
    return slot_model
