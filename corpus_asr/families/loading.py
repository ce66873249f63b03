"""Loading a checkpoint in the form that search runs.

In: a folder, a device and a precision. Out: a slot model. Knows no family by name.
"""

import logging
from pathlib import Path
from typing import Any

from corpus_asr.decoding.protocols import FitsWindows, SlotModel
from corpus_asr.errors import ConfigError
from corpus_asr.families.device import resolve_device, resolve_precision
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.units import WINDOW_FRAMES

logger = logging.getLogger(__name__)


def load_slot_model(folder: Path, *, device: str, dtype: str) -> SlotModel:
    """Load a checkpoint folder, for windows of 30 s or of what it can hear, if that is less.

    What the slot model does not share with the network is freed.

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
    logger.info(
        "model=%s device=%s dtype=%s weights=%s", folder.name, where, dtype, slot_model.dtype
    )
    if isinstance(slot_model, FitsWindows):
        return slot_model.for_windows(min(WINDOW_FRAMES, slot_model.window_frames))
    return slot_model


def load_classifier(folder: Path, *, device: str, dtype: str) -> SlotModel:
    """Load a checkpoint folder with classes of audio, in the form that says one as a token.

    Args:
        folder: a checkpoint in Hugging Face layout.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, `float16` or `bfloat16`.

    Raises:
        CheckpointError: the folder cannot be loaded, or has no head of a classifier.
        ConfigError: no such device, it cannot compute in such numbers, or the family has no
            classifiers.
    """
    where = resolve_device(device)
    precision = resolve_precision(dtype, where)
    family = family_of(folder)
    if family.audio_classifier is None or precision.int8:
        found = "int8" if precision.int8 else f"the family {family.model_type}"
        raise ConfigError(
            f"loading {folder.name} as a classifier: found {found}, expected a "
            "WhisperForAudioClassification in a floating-point type; set model.dtype to auto, or "
            "use another checkpoint"
        )
    model: SlotModel = resolve(family.audio_classifier).from_pretrained(
        folder, dtype=precision.dtype, device=where
    )
    logger.info("classifier=%s device=%s dtype=%s", folder.name, where, precision.dtype)
    return model
