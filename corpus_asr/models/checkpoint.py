"""Weights from a checkpoint folder into a network, strictly.

In: a module built on the meta device and a folder with safetensors or PyTorch weights, in one
file or sharded. Out: the module with its weights. Knows no particular model: what may be absent,
shared or left over is an argument. Runs no code from a checkpoint and reads no file outside its
folder.
"""

import functools
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from corpus_asr.errors import CheckpointError
from corpus_asr.models.convert.flax_file import FLAX_NAME, read_flax
from corpus_asr.models.convert.tensorflow_file import TENSORFLOW_NAME, read_tensorflow

# Heads around the same networks store them under this prefix; the bare network stores none.
_BASE_PREFIX = "model."

# By the names of safetensors' header. Quantised weights mean nothing without their scales.
_STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
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
    """None if it is no float type a network can use."""
    read: Callable[[], Tensor]


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    tied: Mapping[str, str],
    computed: Mapping[str, Callable[[], Tensor]],
    ignored: Collection[str],
    redrawn: Mapping[str, Callable[[], Tensor]] | None = None,
    safetensors: bool | None = None,
) -> list[str]:
    """Replace every parameter of `module` by the stored one.

    Files are memory-mapped and tensors converted one at a time, so the peak is one copy of the
    weights in `dtype`. Names match with and without the prefix `model.`.

    Args:
        module: its parameters may be on the meta device; they end on `device`.
        folder: a checkpoint folder.
        dtype: type of all weights; None means the stored one (the widest, if they differ).
        device: where the weights go.
        tied: parameters that share another's weights, unless the file holds different ones.
        computed: parameters that may be absent, and what makes them.
        ignored: how stored names begin that may be left over.
        redrawn: parameters that may be stored in another shape, and what makes them then.
        safetensors: whether to read them from safetensors or from PyTorch's files; None means
            what there is.

    Returns:
        Names of the parameters that were not stored in their shape, and hence made.

    Raises:
        CheckpointError: a file is missing, broken or unsafe, the stored names, shapes or types
            are not those of `module`, or a stored number is NaN or infinite.
    """
    full_names = {_bare(name): name for name in module.state_dict()}
    wanted = {_bare(name): tuple(t.shape) for name, t in module.state_dict().items()}
    tied = {_bare(target): _bare(source) for target, source in tied.items()}
    computed = {_bare(name): make for name, make in computed.items()}
    found = stored_tensors(folder, safetensors=safetensors)
    stored = {_bare(name): tensor for name, tensor in found.items()}
    for name in {_bare(name) for name in redrawn or {}} & stored.keys() & wanted.keys():
        if stored[name].shape != wanted[name]:
            del stored[name]
            computed[name] = (redrawn or {})[full_names[name]]
    for target, source in tied.items():
        if source not in stored and target in stored:  # of two equal tensors either may be kept
            stored[source] = stored.pop(target)
    _check_names(folder, stored, wanted, absent={*tied, *computed}, ignored=tuple(ignored))
    _check_tensors(stored, wanted)
    if dtype is None:
        dtypes = [stored[name].dtype or torch.float32 for name in wanted if name in stored]
        dtype = functools.reduce(torch.promote_types, dtypes)
    weights = {
        name: _read(name, stored[name], dtype=dtype, device=device)
        for name in wanted
        if name in stored
    }
    made = [name for name in wanted if name in computed and name not in weights]
    for name in made:
        weights[name] = computed[name]().to(device, dtype)
    shared = {
        target: source
        for target, source in tied.items()
        if target not in weights or torch.equal(weights[target], weights[source])
    }
    weights |= {target: weights[source] for target, source in shared.items()}
    module.load_state_dict({full_names[name]: t for name, t in weights.items()}, assign=True)
    for target, source in shared.items():
        share_parameter(module, full_names[target], full_names[source])
    return [full_names[name] for name in made if name not in shared]


def share_parameter(module: nn.Module, target: str, source: str) -> None:
    """Make the parameter named `target` the same object as the one named `source`."""
    owner, _, name = target.rpartition(".")
    setattr(module.get_submodule(owner), name, module.get_parameter(source))


def stored_tensors(folder: Path, *, safetensors: bool | None = None) -> dict[str, StoredTensor]:
    """List the tensors of a checkpoint folder by name, reading none.

    Looks for model.safetensors, its index, pytorch_model.bin and its index, then for what the Flax
    and TensorFlow classes save, in this order; with `safetensors` given, only for the first two or
    only for the next two.

    Raises:
        CheckpointError: there are no weights, a file is broken, would run code, or an index names
            a file outside the folder or a tensor its file does not hold.
    """
    for name, read_file in (("model.safetensors", _safetensors), ("pytorch_model.bin", _pickled)):
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
    kinds = {None: "model.safetensors, pytorch_model.bin", True: "model.safetensors"}
    raise CheckpointError(
        f"looking for weights in {folder}: found {_listed(present) or 'nothing'}, expected "
        f"{kinds.get(safetensors, 'pytorch_model.bin')} or the index of a sharded one"
    )


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
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
        raise _broken(path, error) from error
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
            f"reading {index}: its shards do not hold {_listed(lost)}; the files are from "
            f"different checkpoints: copy or download them again"
        )
    return {name: shards[file][name] for name, file in file_of.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Read which file of the folder holds which tensor."""
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(index, error) from error
    file_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
        raise CheckpointError(f"reading {index}: expected a weight_map of tensor names to files")
    outside = {file for file in file_of.values() if not _is_plain_name(file)}
    if outside:
        raise CheckpointError(
            f"reading {index}: found the shards {_listed(sorted(outside))}, expected names of "
            f"files beside the index. Refused: an index must not point outside its folder"
        )
    return file_of


def _is_plain_name(file: str) -> bool:
    return file not in ("", ".", "..") and not any(mark in file for mark in "/\\:\0")


def _check_names(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    absent: set[str],
    ignored: tuple[str, ...],
) -> None:
    """Compare names; those in `absent` may be missing, those that begin as `ignored` left over."""
    missing = wanted.keys() - stored.keys() - absent
    left_over = stored.keys() - wanted.keys()
    unexpected = {name for name in left_over if not name.startswith(ignored)}
    if not missing and not unexpected:
        return
    files = _listed(sorted({tensor.path.name for tensor in stored.values()})) or "no file"
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_listed(sorted(missing))}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_listed(sorted(unexpected))}")
    raise CheckpointError(
        f"loading {folder} ({files}): {len(wanted)} tensors expected, {'; '.join(problems)}; "
        f"config.json and the weights must belong to the same model"
    )


def _check_tensors(
    stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare shapes and types of the names both have."""
    problems = []
    for name in wanted.keys() & stored.keys():
        tensor = stored[name]
        if tensor.shape != wanted[name]:
            problems.append(f"{name} is {tensor.shape} in {tensor.path.name}, not {wanted[name]}")
        elif tensor.dtype is None:
            problems.append(f"{name} in {tensor.path.name} is not of a float type")
    if problems:
        folder = next(iter(stored.values())).path.parent
        raise CheckpointError(
            f"loading {folder}: {len(problems)} tensors do not fit config.json: "
            f"{_listed(sorted(problems), separator='; ')}; config.json and the weights must belong "
            f"to the same model"
        )


def _read(name: str, tensor: StoredTensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        # Always a copy: a mapped tensor would change or crash with its file.
        read = tensor.read().to(device, dtype, copy=True).contiguous()
    except (SafetensorError, OSError) as error:
        raise _broken(tensor.path, error) from error
    # The lowest and highest number carry every NaN and infinity, and take no memory to find.
    if read.numel() and not bool(torch.stack(torch.aminmax(read)).isfinite().all()):
        raise CheckpointError(
            f"reading {tensor.path}: found NaN or infinity in {name} as {dtype}, expected finite "
            f"weights; copy or download it again, or load it in a type of wider range"
        )
    return read


def _bare(name: str) -> str:
    return name.removeprefix(_BASE_PREFIX)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _broken(path: Path, error: Exception) -> CheckpointError:
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


def _listed(names: Iterable[str], *, separator: str = ", ") -> str:
    shown = list(names)
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return separator.join(shown[:_NAMES_SHOWN]) + more
