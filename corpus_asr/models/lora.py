"""Low-rank adapters (LoRA): small trained matrices next to the frozen weights of linear layers.

Files are in PEFT's layout.

Source: Hu et al. 2021, section 4.1.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import read_saved_bytes

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Variants of PEFT that compute something else: their keys and what each has if it is off.
_VARIANTS: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
}


def merge_adapter(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return all weights of a checkpoint with an adapter in PEFT's layout merged into them.

    What changed is in float32.
    """
    scale = _scale(folder)
    matrices = _matrices(folder)
    merged = dict(weights)
    for layer in sorted({name.removesuffix(_A).removesuffix(_B) for name in matrices}):
        # Checkpoints of a bare network name their tensors without `model.`.
        bare = f"{layer.removeprefix('model.')}.weight"
        name = bare if bare in weights else f"{layer}.weight"
        down, up = matrices.get(layer + _A), matrices.get(layer + _B)
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
            raise CheckpointError(
                f"reading {folder / ADAPTER_WEIGHTS_NAME}: found no matching pair lora_A and "
                f"lora_B for {layer}, expected both; copy the adapter again"
            )
        shape = len(up), down.shape[1]
        stored = weights.get(name)
        if stored is None or tuple(stored.shape) != shape or not stored.is_floating_point():
            found = "no such layer" if stored is None else f"{tuple(stored.shape)}"
            raise CheckpointError(
                f"merging {folder}: found {found} for {layer} in the checkpoint, expected a float "
                f"matrix of {shape}; give the checkpoint that the adapter was trained on"
            )
        merged[name] = stored.float() + scale * (up.float() @ down.float())
    return merged


def _scale(folder: Path) -> float:
    path = folder / ADAPTER_CONFIG_NAME
    try:
        content: Any = json.loads(read_saved_bytes(path))
        kind, rank, alpha = content["peft_type"], int(content["r"]), float(content["lora_alpha"])
        others = [
            f"{key}: {content[key]}"
            for key, off in _VARIANTS.items()
            if key in content and content[key] not in off
        ]
        root = bool(content.get("use_rslora"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"reading {path}: found no usable file ({type(error).__name__}: {error}), expected "
            "peft_type, r and lora_alpha as PEFT writes them; give the folder of a LoRA adapter"
        ) from error
    if kind != "LORA" or rank < 1 or others:
        raise CheckpointError(
            f"reading {path}: found peft_type {kind}, r {rank}"
            f"{''.join(f', {other}' for other in others)}, expected plain LORA of rank 1 or more; "
            "merge this adapter with PEFT itself"
        )
    # Rank-stabilized LoRA. Source: Kalajdzievski 2023.
    return alpha / (math.sqrt(rank) if root else rank)


def _matrices(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS_NAME
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"reading {path}: found no usable file ({type(error).__name__}: {error}), expected the "
            "weights of a LoRA adapter; copy the adapter again"
        ) from error
    for name, tensor in stored.items():
        if not (name.startswith(_PREFIX) and name.endswith((_A, _B))):
            raise CheckpointError(
                f"reading {path}: found the tensor {name}, expected names such as "
                f"{_PREFIX}model.encoder.layers.0.self_attn.q_proj{_A}; merge this adapter with "
                "PEFT itself"
            )
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise CheckpointError(
                f"reading {path}: found NaN, infinity or no floats in {name}, expected finite "
                "weights; copy the adapter again"
            )
    if not stored:
        raise CheckpointError(f"reading {path}: found no tensors, expected those of an adapter")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
