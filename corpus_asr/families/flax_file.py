"""Weights as the Flax classes of transformers save them: flax_model.msgpack.

In: a file. Out: tensors under the names of the PyTorch classes. Runs no code from a file. Needs the
package msgpack.

Source: flax `serialization.py` for the file, transformers' `modeling_flax_pytorch_utils.py` (4.x)
for names and layouts.
"""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError

FLAX_NAME = "flax_model.msgpack"

_ARRAY, _SCALAR = 1, 3  # msgpack extension types; 2 is a complex number, which no network here has
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def read_flax(path: Path) -> dict[str, Tensor]:
    """Read every tensor of the file.

    Raises:
        CheckpointError: msgpack is not installed, or the file is broken or holds more than arrays.
    """
    msgpack = _library()
    try:
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False)
        # A state saved in training wraps the weights.
        tree = content["params"] if isinstance(content, dict) and "params" in content else content
        return dict(_tensors(tree, ()))
    except Exception as error:  # a reader fed garbage raises nearly anything
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"reading {path}: found no readable Flax weights ({type(error).__name__}: {error}), "
            "expected arrays by name in msgpack; copy or download it again"
        ) from error


def _library() -> Any:
    try:
        return importlib.import_module("msgpack")
    except ImportError as error:
        raise CheckpointError(
            f"reading {FLAX_NAME}: the package msgpack is not installed; "
            "pip install 'corpus-asr[convert]'"
        ) from error


def _array(code: int, data: bytes) -> Tensor:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code}, expected {_ARRAY} (an array)")
    shape, dtype_name, buffer = _library().unpackb(data, raw=False)
    if dtype_name not in _DTYPES:
        raise ValueError(f"an array of {dtype_name}, expected one of {', '.join(_DTYPES)}")
    flat = torch.frombuffer(bytearray(buffer), dtype=_DTYPES[dtype_name])
    if flat.numel() != math.prod(shape):
        raise ValueError(f"an array of {flat.numel()} values, expected the shape {tuple(shape)}")
    return flat.reshape(tuple(shape))


def _tensors(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Walk nested dicts to their tensors, translating names and layouts."""
    if isinstance(tree, dict) and tree.keys() >= {"__msgpack_chunked_array__"}:
        tree = _joined(tree)
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield from _tensors(below, (*path, str(key)))
    elif isinstance(tree, Tensor):
        *above, leaf = path
        # Flax keeps the input before the output, and a convolution's width before both.
        values = tree.permute(*reversed(range(tree.dim()))) if leaf == "kernel" else tree
        yield ".".join([*above, _LEAVES.get(leaf, leaf)]), values.contiguous()
    else:
        raise ValueError(f"{'/'.join(path)} is a {type(tree).__name__}, expected an array")


def _joined(chunked: dict[str, Any]) -> Tensor:
    """Join an array above msgpack's size limit, which Flax cuts into flat chunks."""
    shape = [chunked["shape"][str(at)] for at in range(len(chunked["shape"]))]
    chunks = [chunked["chunks"][str(at)] for at in range(len(chunked["chunks"]))]
    return torch.cat(chunks).reshape(shape)
