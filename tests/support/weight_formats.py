"""Weights in the layouts of other frameworks, written by hand: none of them need be installed.

A state dict of the PyTorch class goes in; a file as Flax or Keras would save the same model comes
out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFlowLayout:
    """Where a TensorFlow class of transformers puts its variables."""

    root: str
    """The class, in Keras' spelling."""
    leaves: Mapping[str, str]
    """What the leaf of a PyTorch name, told by its end, is called where no rule holds."""
    projection: str | None = None
    """The projection to the vocabulary, where it is stored by itself."""


WHISPER = TensorFlowLayout(
    root="tf_whisper_for_conditional_generation",
    leaves={"decoder.embed_positions.weight": "weight"},
)
# Its token table is a TFSharedEmbeddings, whose variable is called `weight`.
_SHARED = {"decoder.embed_tokens.weight": "weight"}
SPEECH2TEXT = TensorFlowLayout(
    root="tf_speech2_text_for_conditional_generation", leaves=_SHARED, projection="lm_head"
)
SPEECH2TEXT_MODEL = TensorFlowLayout(root="tf_speech2_text_model", leaves=_SHARED)


def write_flax(path: Path, state: Mapping[str, Tensor], *, chunked: str | None = None) -> None:
    """Write what `flax.serialization.msgpack_serialize` makes of the parameters."""
    tree: dict[str, Any] = {}
    for name, tensor in state.items():
        if name == "proj_out.weight":
            continue
        *above, leaf = name.split(".")
        values, leaf = _foreign(name, tensor.numpy(), leaf, norm="scale", table="embedding")
        at = tree
        for part in above:
            at = at.setdefault(part, {})
        at[leaf] = _chunks(values) if name == chunked else _extension(values)
    path.write_bytes(msgpack.packb(tree))


def write_tensorflow(
    path: Path, state: Mapping[str, Tensor], *, layout: TensorFlowLayout = WHISPER
) -> None:
    """Write what Keras' `save_weights` makes of the model: variables under the layer's name."""
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        file.create_group("top_level_model_weights").attrs["weight_names"] = []
        for name, tensor in state.items():
            if name == "proj_out.weight":
                continue
            *parts, leaf = _layers(name)
            values, leaf = _foreign(name, tensor.numpy(), leaf, norm="gamma", table="embeddings")
            if leaf == "bias" and "layer_norm" in name:
                leaf = "beta"
            for end, other in layout.leaves.items():
                leaf = other if name.endswith(end) else leaf
            if parts[0] == layout.projection:
                file[f"{parts[0]}/{layout.root}/{parts[0]}/{leaf}:0"] = values
            else:
                file[f"model/{layout.root}/{'/'.join(parts)}/{leaf}:0"] = values


def _layers(name: str) -> list[str]:
    """Split a name at its dots, but for those before a number: Keras has `layers.0` for one."""
    return re.split(r"\.(?!\d+\.)", name)


def _foreign(
    name: str, values: np.ndarray, leaf: str, *, norm: str, table: str
) -> tuple[np.ndarray, str]:
    if leaf != "weight":
        return values, leaf
    if "layer_norm" in name:
        return values, norm
    if "embed_" in name:
        return values, table
    if values.ndim == 3:  # torch (out, in, width); both others (width, in, out)
        return np.moveaxis(values, (0, 1, 2), (2, 1, 0)), "kernel"
    return values.T, "kernel"


def _extension(values: np.ndarray) -> msgpack.ExtType:
    content = (values.shape, values.dtype.name, np.ascontiguousarray(values).tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))


def _chunks(values: np.ndarray) -> dict[str, Any]:
    flat = np.ascontiguousarray(values).reshape(-1)
    halves = np.split(flat, [len(flat) // 2])
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(at): size for at, size in enumerate(values.shape)},
        "chunks": {str(at): _extension(half) for at, half in enumerate(halves)},
    }
