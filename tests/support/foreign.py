"""Weights in the layouts of other frameworks, written by hand: none of them need be installed.

A state dict of the PyTorch class goes in; a file as Flax or Keras would save the same model comes
out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
from torch import Tensor

_ROOT = "tf_whisper_for_conditional_generation"


def write_flax(path: Path, state: Mapping[str, Tensor], *, chunked: str | None = None) -> None:
    """Write what `flax.serialization.msgpack_serialize` makes of the parameters.

    Args:
        chunked: name of a tensor that is cut into chunks, as Flax does above a size.
    """
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


def write_tensorflow(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write what Keras' `save_weights` makes of the model: variables under the layer's name."""
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        for name, tensor in state.items():
            if name == "proj_out.weight":
                continue
            parts = name.split(".")
            if "layers" in parts:
                at = parts.index("layers")
                parts[at : at + 2] = [f"layers.{parts[at + 1]}"]
            leaf = parts.pop()
            values, leaf = _foreign(name, tensor.numpy(), leaf, norm="gamma", table="embeddings")
            if leaf == "bias" and "layer_norm" in name:
                leaf = "beta"
            if "decoder.embed_positions" in name:
                leaf = "weight"
            file[f"model/{_ROOT}/{'/'.join(parts)}/{leaf}:0"] = values


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
