"""Weights as the TensorFlow classes of transformers save them: tf_model.h5.

In: a file. Out: tensors under the names of the PyTorch classes. Needs the package h5py.

Source: transformers' `modeling_tf_pytorch_utils.py` (4.x) for names and layouts.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError

TENSORFLOW_NAME = "tf_model.h5"

_LEAVES = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}
# A variable's path begins with the class and layer it was made in; the weights begin here.
_TOWERS = ("encoder", "decoder")
_PROJECTION = "lm_head"  # Speech2Text's, beside the towers


def read_tensorflow(path: Path) -> dict[str, Tensor]:
    """Read every tensor of the file.

    Raises:
        CheckpointError: h5py is not installed, or the file is broken or holds other variables.
    """
    h5py = _library()
    found: dict[str, Tensor] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            translated, values = _translate(name, np.asarray(item))
            found[translated] = torch.from_numpy(np.ascontiguousarray(values))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # a reader fed garbage raises nearly anything
        raise CheckpointError(
            f"reading {path}: found no readable TensorFlow weights ({type(error).__name__}: "
            f"{error}), expected Keras variables in HDF5; copy or download it again"
        ) from error
    return found


def _library() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise CheckpointError(
            f"reading {TENSORFLOW_NAME}: the package h5py is not installed; "
            "pip install 'corpus-asr[convert]'"
        ) from error


def _translate(name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
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
    return ".".join([*above, *within, _LEAVES.get(leaf, leaf)]), values
