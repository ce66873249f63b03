"""The tensors of a checkpoint folder by name, read one at a time.

In: a folder with safetensors, PyTorch, Flax or TensorFlow weights, in one file or sharded. Out:
name, shape, type and a way to read each. Runs no code from a checkpoint and reads no file outside
its folder. INT8 weights are multiplied with their scales as they are read.
"""

import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.flax_file import FLAX_NAME, read_flax
from corpus_asr.families.int8_weights import INT8_NAME, SCALE_SUFFIX, dequantized, scales_problem
from corpus_asr.families.tensorflow_file import TENSORFLOW_NAME, read_tensorflow

# By the names of safetensors' header.
_STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
}
_NAMES_SHOWN = 8

# How torch's restricted unpickler names what it will not call, and where its own words begin:
# before them it suggests to load the file all the same.
_CALLED = re.compile(r"GLOBAL (\S+)")
_UNPICKLER = "WeightsUnpickler error:"
_GIT_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None if it is no float type a network can use; of INT8 weights that of their scales."""
    read: Callable[[], Tensor]


def stored_tensors(folder: Path, *, safetensors: bool | None = None) -> dict[str, StoredTensor]:
    """List the tensors of a checkpoint folder by name, reading none.

    Looks for model.safetensors, model.int8.safetensors and pytorch_model.bin, each also sharded,
    then for what the Flax and TensorFlow classes save, in this order; with `safetensors` given,
    only for the first two or only for the third.

    Raises:
        CheckpointError: there are no weights, a file is broken, would run code, an index names a
            file outside the folder or a tensor its file does not hold, or INT8 weights and their
            scales do not fit together.
    """
    return _with_scales(_all_tensors(folder, safetensors))


def _all_tensors(folder: Path, safetensors: bool | None) -> dict[str, StoredTensor]:
    for name, read_file in (
        ("model.safetensors", _safetensors),
        (INT8_NAME, _safetensors),
        ("pytorch_model.bin", _pickled),
    ):
        if safetensors is not None and safetensors != name.endswith(".safetensors"):
            continue
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_file(folder / name)
        if index.is_file():
            return _sharded(index, read_file)
    for name, read_all in ((FLAX_NAME, read_flax), (TENSORFLOW_NAME, read_tensorflow)):
        if safetensors is None and (folder / name).is_file():
            return _stored(folder / name, read_all(folder / name))
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    kinds = {
        None: f"model.safetensors, {INT8_NAME}, pytorch_model.bin",
        True: f"model.safetensors, {INT8_NAME}",
    }
    raise CheckpointError(
        f"looking for weights in {folder}: found {listed(present) or 'nothing'}, expected "
        f"{kinds.get(safetensors, 'pytorch_model.bin')} or the index of a sharded one"
    )


def _with_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Join INT8 weights and their scales, which may lie in different shards."""
    joined = dict(tensors)
    for name, values in tensors.items():
        if values.dtype is not torch.int8:
            continue
        scales = joined.pop(name + SCALE_SUFFIX, None)
        if scales is None:
            raise _unusable(values.path, f"{name} in INT8 without {name}{SCALE_SUFFIX}")
        if scales.dtype is None or scales.dtype is torch.int8:
            raise _unusable(values.path, f"{name}{SCALE_SUFFIX} that is not of a float type")
        if problem := scales_problem(values.shape, scales.shape):
            raise _unusable(values.path, f"{name} of shape {values.shape} in INT8, but {problem}")
        joined[name] = StoredTensor(
            path=values.path,
            shape=values.shape,
            dtype=scales.dtype,
            read=functools.partial(_dequantized, name, values, scales),
        )
    return joined


def _dequantized(name: str, values: StoredTensor, scales: StoredTensor) -> Tensor:
    factors = scales.read()
    if not bool((factors.isfinite() & (factors > 0)).all()):
        raise _unusable(scales.path, f"{name}{SCALE_SUFFIX} with values that are not above zero")
    return dequantized(values.read(), factors)


def _unusable(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"reading {path}: found {found}, expected INT8 weights and the scales of their groups; the "
        "file is damaged or in another layout: copy it again, or run `corpus-asr convert SRC DST "
        "--dtype int8` on the original"
    )


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error
    tensors = {}
    for name in file.keys():  # noqa: SIM118  (a file, not a mapping)
        described = file.get_slice(name)
        tensors[name] = StoredTensor(
            path=path,
            shape=tuple(described.get_shape()),
            dtype=_STORED_DTYPES.get(described.get_dtype()),
            read=functools.partial(file.get_tensor, name),
        )
    return tensors


def _pickled(path: Path) -> dict[str, StoredTensor]:
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # an unpickler fed garbage raises nearly anything
        if called := _CALLED.search(str(error)):
            raise CheckpointError(
                f"reading {path}: found a call of {called[1]}, expected nothing but tensors. "
                f"Refused: loading it could run any code; get the weights as safetensors"
            ) from error
        raise broken(path, error) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(
            f"reading {path}: found a {type(content).__name__} that is no state dict, expected "
            f"tensors by name; save it with torch.save(model.state_dict(), ...)"
        )
    return _stored(path, content)


def _stored(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            path=path,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype if tensor.dtype in _STORED_DTYPES.values() else None,
            read=functools.partial(_itself, tensor),
        )
        for name, tensor in tensors.items()
    }


def _sharded(
    index: Path, read_file: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    file_of = _weight_map(index)
    shards = {}
    for name in sorted(set(file_of.values())):
        path = index.parent / name
        if not path.is_file():
            raise CheckpointError(
                f"reading {index}: the shard {name} it names is missing; copy or download it again"
            )
        shards[name] = read_file(path)
    lost = [name for name, file in file_of.items() if name not in shards[file]]
    if lost:
        raise CheckpointError(
            f"reading {index}: its shards do not hold {listed(lost)}; the files are from "
            f"different checkpoints: copy or download them again"
        )
    return {name: shards[file][name] for name, file in file_of.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Read which file of the folder holds which tensor."""
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise broken(index, error) from error
    file_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
        raise CheckpointError(f"reading {index}: expected a weight_map of tensor names to files")
    outside = {file for file in file_of.values() if not _is_plain_name(file)}
    if outside:
        raise CheckpointError(
            f"reading {index}: found the shards {listed(sorted(outside))}, expected names of "
            f"files beside the index. Refused: an index must not point outside its folder"
        )
    return file_of


def _is_plain_name(file: str) -> bool:
    return file not in ("", ".", "..") and not any(mark in file for mark in "/\\:\0")


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def broken(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file of weights that cannot be read, with what to do about it."""
    remedy = "copy or download it again"
    if _starts_with(path, _GIT_LFS_POINTER):
        remedy = "it is a Git LFS pointer: run `git lfs pull` in its folder"
    size = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
    return CheckpointError(
        f"reading {path}: found {size} that cannot be read "
        f"({type(error).__name__}: {_first_line(error)}); {remedy}"
    )


def _starts_with(path: Path, start: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _first_line(error: Exception) -> str:
    return str(error).rpartition(_UNPICKLER)[2].strip().split("\n")[0]


def listed(names: Iterable[str], *, separator: str = ", ") -> str:
    """Join the first eight names, and count the others."""
    shown = list(names)
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return separator.join(shown[:_NAMES_SHOWN]) + more
