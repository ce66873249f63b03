"""Read weights that the Flax and TensorFlow classes of transformers saved.

Source: flax `serialization.py` for the file; transformers' `modeling_flax_pytorch_utils.py` and
`modeling_tf_pytorch_utils.py` (4.x) for names and layouts.
"""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError, install_words

FLAX_NAME = "flax_model.msgpack"

_ARRAY, _SCALAR = 1, 3  # msgpack extension types; 2 is a complex number, which no network here has
_FLAX_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
# By the names that files and callers use.
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def read_flax(path: Path) -> dict[str, Tensor]:
    """Read every tensor of the file; raises CheckpointError, also without msgpack."""
    msgpack = _library("msgpack", file_name=FLAX_NAME)
    try:
        # Lists are shapes, maps the layers of a network: others may take ten times the file.
        content = msgpack.unpackb(
            path.read_bytes(), ext_hook=_array, raw=False, max_array_len=100, max_map_len=10_000
        )
        # A state saved in training wraps the weights.
        tree = content["params"] if isinstance(content, dict) and "params" in content else content
        return dict(_flax_tensors(tree, ()))
    except Exception as error:  # a reader fed garbage raises nearly anything
        raise CheckpointError(
            f"reading {path}: found no readable Flax weights ({type(error).__name__}: {error}), "
            "expected arrays by name in msgpack; copy or download it again"
        ) from error


def _library(name: str, *, file_name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"reading {file_name}: the package {name} is not installed; {install_words('convert')}"
        ) from error


def _array(code: int, data: bytes) -> Tensor:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code}, expected {_ARRAY} (an array)")
    shape, dtype_name, buffer = _library("msgpack", file_name=FLAX_NAME).unpackb(data, raw=False)
    if dtype_name not in DTYPES:
        raise ValueError(f"an array of {dtype_name}, expected one of {', '.join(DTYPES)}")
    flat = torch.frombuffer(bytearray(buffer), dtype=DTYPES[dtype_name])
    if flat.numel() != math.prod(shape):
        raise ValueError(f"an array of {flat.numel()} values, expected the shape {tuple(shape)}")
    return flat.reshape(tuple(shape))


def _flax_tensors(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, dict) and "__msgpack_chunked_array__" in tree:
        # Flax cuts an array above msgpack's size limit into flat chunks, numbered by text.
        parts, shape = tree["chunks"], tree["shape"]
        flat = torch.cat([parts[str(at)] for at in range(len(parts))])
        tree = flat.reshape([shape[str(at)] for at in range(len(shape))])
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield from _flax_tensors(below, (*path, str(key)))
    elif isinstance(tree, Tensor):
        *above, leaf = path
        # Flax keeps the input before the output, and a convolution's width before both.
        values = tree.permute(*reversed(range(tree.dim()))) if leaf == "kernel" else tree
        yield ".".join([*above, _FLAX_LEAVES.get(leaf, leaf)]), values.contiguous()
    else:
        raise ValueError(f"{'/'.join(path)} is a {type(tree).__name__}, expected an array")


TENSORFLOW_NAME = "tf_model.h5"

_KERAS_LEAVES = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}
# A variable's path begins with the class and layer it was made in; the weights begin here.
_TOWERS = ("encoder", "decoder")
_PROJECTION = "lm_head"  # Speech2Text's, beside the towers


def read_tensorflow(path: Path) -> dict[str, Tensor]:
    """Read every tensor of the file; raises CheckpointError, also without h5py."""
    h5py = _library("h5py", file_name=TENSORFLOW_NAME)
    tensors: dict[str, Tensor] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # Keras stores all values, in this file, uncompressed: others may unfold to any size, or
            # be read from elsewhere.
            if item.is_virtual or item.external or item.id.get_storage_size() < item.nbytes:
                raise ValueError(f"the variable {name} without its values, expected all of them")
            translated, values = _keras_tensor(name, np.asarray(item))
            tensors[translated] = torch.from_numpy(np.ascontiguousarray(values))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # a reader fed garbage raises nearly anything
        raise CheckpointError(
            f"reading {path}: found no readable TensorFlow weights ({type(error).__name__}: "
            f"{error}), expected Keras variables in HDF5; copy or download it again"
        ) from error
    return tensors


def _keras_tensor(name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
    parts = name.rsplit(":", 1)[0].split("/")
    start = next((at for at, part in enumerate(parts) if part in _TOWERS), None)
    above = ["model"]
    if start is None and parts[-2:-1] == [_PROJECTION]:
        start, above = len(parts) - 2, []
    if start is None or values.dtype.kind != "f":
        raise ValueError(f"the variable {name} of {values.dtype}, expected a speech model's floats")
    *within, leaf = parts[start:]
    if leaf == "kernel":
        # Keras keeps the input before the output, and a convolution's width before both.
        values = values.transpose()
    return ".".join([*above, *within, _KERAS_LEAVES.get(leaf, leaf)]), values
