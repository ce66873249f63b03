"""Loading of a checkpoint folder's weights into a network, and saving; never executes file content.

INT8 layout, as `corpus-asr convert --dtype int8` writes model.int8.safetensors: a matrix `NAME` of
shape (rows, ...) is stored as int8 under its own name, and its scales as `NAME_scale` of shape
(rows, groups) in float16. The values of a row, flattened, are split into groups of equal size; a
weight is its integer times the scale of its group. Everything else is float16.
"""

import fnmatch
import functools
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from corpus_asr.errors import CheckpointError, WeightsError
from corpus_asr.families.saved_files import checked, read_json_object, write_json_object
from corpus_asr.storage.model_files import weight_files
from corpus_asr.units import MEBIBYTE

SCALE_SUFFIX = "_scale"

# With whisper-tiny.en, groups of 64 reduce the divergence of next-token distributions from float16
# (mean KL over 24 clips) from 0.0012 with one scale per row to 0.0004, for 3 % more bytes.
_LARGEST_GROUP = 64
_SMALLEST_GROUP = 16  # for smaller groups scales cost more than they save: one scale per row
_STEPS = 127
_ROUNDED_UP = 1 + 2.0**-11  # maximum factor of float16 rounding for normal numbers
_SUBNORMAL_HALF_STEP = 2.0**-25  # maximum error below 6e-5
# Rows per block, which fits a core's own cache, in one thread. For whisper-tiny.en that takes 0.04
# CPU seconds, whole matrices 0.2.
_VALUES_AT_ONCE = 1 << 15

# Position tables are added to every state, have few values and are not multiplied.
_KEPT = "embed_positions"


def quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantize every matrix to INT8, rounding to nearest; all other floats become float16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or _KEPT in name:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
        else:
            stored[name], stored[name + SCALE_SUFFIX] = _quantize(tensor)
    return stored


def dequantized(values: Tensor, scales: Tensor) -> Tensor:
    """Multiply int8 `values` (rows, ...) with `scales` (rows, groups), in the scales' type."""
    weights = torch.empty(values.shape, dtype=scales.dtype)
    rows = max(1, _VALUES_AT_ONCE * len(values) // values.numel())
    groups = (*scales.shape, -1)
    parts = [values.reshape(groups), scales.float().unsqueeze(-1), weights.view(groups)]
    for steps, factors, part in zip(*(torch.split(tensor, rows) for tensor in parts), strict=True):
        part.copy_(steps.float().mul_(factors))
    return weights


def _scales_problem(shape: tuple[int, ...], scales_shape: tuple[int, ...]) -> str | None:
    if len(shape) < 2:
        return f"its scales are of shape {scales_shape}, not no scales: only matrices are INT8"
    rows, width = shape[0], math.prod(shape[1:])
    fits = len(scales_shape) == 2 and scales_shape[0] == rows and scales_shape[1] > 0
    if fits and width % scales_shape[1] == 0:
        return None
    return f"its scales are of shape {scales_shape}, not ({rows}, a divisor of {width})"


def _quantize(tensor: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
    sizes = range(_LARGEST_GROUP, _SMALLEST_GROUP - 1, -1)
    size = next((size for size in sizes if width % size == 0), width)
    grouped = tensor.float().reshape(rows, -1, size)
    # Rounded up to float16: with a smaller scale the largest weight would need more than 127 steps.
    scales = (grouped.abs().amax(dim=-1) / _STEPS * _ROUNDED_UP + _SUBNORMAL_HALF_STEP).half()
    steps = (grouped / scales.float().unsqueeze(-1)).round_().clamp_(-_STEPS, _STEPS)
    return steps.to(torch.int8).reshape(tensor.shape), scales


# By type names of safetensors' header.
_STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I64": torch.int64,  # counters of norms
}
_NAMES_SHOWN = 8
# whisper-large's is 150 KB. The library allows 100 MB, which take a minute and gigabytes to parse.
_MAX_HEADER_BYTES = 16 * MEBIBYTE

# Messages of torch's restricted unpickler for forbidden calls, and the start of its advice, which
# is to load the file anyway.
_CALLED = re.compile(r"GLOBAL (\S+)")
_UNPICKLER = "WeightsUnpickler error:"
_GIT_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One unread tensor of a checkpoint."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for a type that networks cannot use; for INT8 weights the type of their scales."""
    read: Callable[[], Tensor]


def stored_tensors(
    folder: Path, *, safetensors: bool | None = None, variant: str | None = None
) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint folder by name, unread; raises CheckpointError.

    Looks for model.safetensors, model.int8.safetensors and pytorch_model.bin, each also sharded, in
    this order; with `safetensors` given, only for the first two or only for the third. For a
    `variant` the names are model.VARIANT.safetensors and so on.
    """
    return _with_scales(_all_tensors(folder, safetensors, variant))


def _all_tensors(
    folder: Path, safetensors: bool | None, variant: str | None
) -> dict[str, StoredTensor]:
    names = []
    for name, index_name, _ in weight_files(variant):
        is_safe = name.endswith(".safetensors")
        if safetensors is not None and safetensors != is_safe:
            continue
        names.append(name)
        read_file = _safetensors if is_safe else read_pickled
        if (folder / name).is_file():
            return read_file(folder / name)
        if (folder / index_name).is_file():
            return _sharded(folder / index_name, read_file)
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise CheckpointError(
        f"looking for weights in {folder}: found {listed(present) or 'nothing'}, expected "
        f"{', '.join(names)} or the index of shards; convert Flax and TensorFlow with "
        "transformers 4 (docs/how-to/models.md)"
    )


def _with_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    # After all shards are listed: weights and their scales may be in different ones.
    joined = dict(tensors)
    for name, values in tensors.items():
        if values.dtype is not torch.int8:
            continue
        scales = joined.pop(name + SCALE_SUFFIX, None)
        if scales is None:
            raise _unusable(values.path, f"{name} in INT8 without {name}{SCALE_SUFFIX}")
        if scales.dtype is None or not scales.dtype.is_floating_point:
            raise _unusable(values.path, f"{name}{SCALE_SUFFIX} that is not of a float type")
        if problem := _scales_problem(values.shape, scales.shape):
            raise _unusable(values.path, f"{name} of shape {values.shape} in INT8, but {problem}")
        read = functools.partial(_dequantized, name, values, scales)
        joined[name] = replace(values, dtype=scales.dtype, read=read)
    return joined


def _dequantized(name: str, values: StoredTensor, scales: StoredTensor) -> Tensor:
    factors = scales.read()
    # A wrong scale corrupts a whole group, possibly with finite values.
    if not bool((factors.isfinite() & (factors > 0)).all()):
        raise _unusable(scales.path, f"{name}{SCALE_SUFFIX} with values that are not above zero")
    return dequantized(values.read(), factors)


def _unusable(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"reading {path}: found {found}, expected INT8 weights with scales of their groups; copy "
        "it again, or run `corpus-asr convert SRC DST --dtype int8` on the original"
    )


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        check_header(path)
        file = _MappedFile(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise broken(path, error) from error
    return {
        name: StoredTensor(
            path=path, shape=shape, dtype=dtype, read=functools.partial(file.read, name)
        )
        for name, (shape, dtype) in file.described().items()
    }


# Reopening a file takes about a millisecond.
_MAX_MAPPED_BYTES = 256 * MEBIBYTE


class _MappedFile:
    """A safetensors file that is mapped again after some reading.

    Pages read from a mapping count as this process's memory until it is closed: in the end all
    weights a second time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._file: Any = safe_open(self._path, framework="pt", device="cpu")
        self._read_bytes = 0

    def described(self) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
        """Return the shape and type of each tensor."""
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        return {
            name: (tuple(tensor_slice.get_shape()), _STORED_DTYPES.get(tensor_slice.get_dtype()))
            for name, tensor_slice in slices.items()
        }

    def read(self, name: str) -> Tensor:
        """Copy a tensor."""
        if self._read_bytes > _MAX_MAPPED_BYTES:
            self._open()
        tensor: Tensor = self._file.get_tensor(name)
        self._read_bytes += tensor.nbytes
        return tensor


def check_header(path: Path) -> None:
    """Raise ValueError if a safetensors file declares an implausibly large header."""
    with path.open("rb") as file:
        size_bytes = int.from_bytes(file.read(8), "little")
    if size_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {size_bytes:,} bytes, more than {_MAX_HEADER_BYTES:,}")


def check_archive(path: Path) -> bool:
    """Return whether a file is a zip archive as written by torch.save, safe to be unpacked.

    Raises:
        ValueError: its members are compressed, which torch.save never does, and may expand to any
            size.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("a compressed archive, expected a plain one of torch.save")
    return True


def check_extent(path: Path, tensors: Iterable[Tensor]) -> None:
    """Raise CheckpointError if a file's tensors, views of its storage, expand to far more."""
    size_bytes, claimed = path.stat().st_size, sum(t.numel() * t.element_size() for t in tensors)
    if claimed > 2 * size_bytes:  # a tied matrix has two names
        raise CheckpointError(
            f"reading {path}: found tensors of {claimed:,} bytes in a file of {size_bytes:,}, "
            "expected at most its size; save contiguous tensors, or get the weights as safetensors"
        )


def read_pickled(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a torch.save file without executing any of its content.

    Raises:
        CheckpointError: it cannot be read, or has other content than named tensors.
    """
    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        mapped = check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # unpickling invalid data may raise any exception
        if called := _CALLED.search(str(error)):
            raise CheckpointError(
                f"reading {path}: found a call of {called[1]}, expected only tensors, since "
                "loading it could run any code; get the weights as safetensors"
            ) from error
        raise broken(path, error) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(
            f"reading {path}: found a {type(content).__name__}, expected tensors by name; save it "
            "with torch.save(model.state_dict(), ...)"
        )
    check_extent(path, content.values())
    return given_tensors(path, content)


def given_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Return tensors in memory as stored tensors of `path`."""
    return {
        name: StoredTensor(
            path=path,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype if tensor.dtype in _STORED_DTYPES.values() else None,
            read=tensor.detach,
        )
        for name, tensor in tensors.items()
    }


def _sharded(
    index: Path, read_file: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    weight_map = read_json_object(index).get("weight_map")
    file_of: dict[str, str] = checked(dict[str, str], weight_map, "weight_map", path=index)
    names = set(file_of.values())
    outside = {n for n in names if n in ("", ".", "..") or any(mark in n for mark in "/\\:\0")}
    if outside:
        raise CheckpointError(
            f"reading {index}: found the shards {listed(sorted(outside))}, expected names of "
            "files in its folder only; get the weights from a trusted source"
        )
    shards = {}
    for name in sorted(names):
        path = index.parent / name
        if not path.is_file():
            raise CheckpointError(
                f"reading {index}: found no shard {name}, expected it next to the index; copy or "
                "download it"
            )
        shards[name] = read_file(path)
    lost = [name for name, file in file_of.items() if name not in shards[file]]
    if lost:
        raise CheckpointError(
            f"reading {index}: found no {listed(lost)} in its shards, expected files of one "
            "checkpoint; copy or download them again"
        )
    return {name: shards[file][name] for name, file in file_of.items()}


def broken(path: Path, error: Exception) -> CheckpointError:
    """Return the error for an unreadable weights file, with a suggested fix."""
    # A repository cloned without Git LFS has small text files in place of its weights.
    remedy, size = "copy or download it again", "no file"
    if path.is_file():
        size = f"{path.stat().st_size} bytes"
        with path.open("rb") as file:
            if file.read(len(_GIT_LFS_POINTER)) == _GIT_LFS_POINTER:
                remedy = "it is a Git LFS pointer: run `git lfs pull` in its folder"
    reason = str(error).rpartition(_UNPICKLER)[2].strip().split("\n")[0]
    return CheckpointError(
        f"reading {path}: found {size} that cannot be read "
        f"({type(error).__name__}: {reason}); {remedy}"
    )


def listed(names: Iterable[str], *, separator: str = ", ") -> str:
    """Join the first eight names, followed by the number of others."""
    shown = list(names)
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return separator.join(shown[:_NAMES_SHOWN]) + more


def save_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
) -> list[str]:
    """Write tensors in place of all weights of the variant; return the names of the files.

    No two tensors may share memory. A file has at most `max_shard_size` bytes, such as `5GB`,
    unless a tensor is larger.
    """
    # Local import, since older hub clients load all of their own dependencies with it.
    from huggingface_hub import split_torch_state_dict_into_shards

    plain, quantized, pickled = weight_files(variant)
    base, index_name, _ = plain if safe_serialization else pickled
    if any(tensor.dtype is torch.int8 for tensor in tensors.values()):
        base, index_name, _ = quantized
    stem, _, suffix = base.rpartition(".")
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size=max_shard_size
    )
    folder.mkdir(parents=True, exist_ok=True)
    kept = set(split.filename_to_tensors)
    for name, members in split.filename_to_tensors.items():
        shard = {member: tensors[member] for member in members}
        _write(folder / name, shard, safe_serialization=safe_serialization)
    if split.is_sharded:
        index = folder / index_name
        content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json_object(index, content)
        kept.add(index.name)
    _remove_others(folder, kept, variant)
    return sorted(kept)


def _write(path: Path, shard: dict[str, Tensor], *, safe_serialization: bool) -> None:
    # Renamed when complete, so that a killed run leaves no incomplete file under this name.
    unfinished = path.with_name(f".{path.name}.unfinished")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in shard.items()}
    if safe_serialization:
        unfinished.unlink(missing_ok=True)
        unfinished.touch()
        usual = unfinished.stat().st_mode
        save_file(plain, unfinished, metadata={"format": "pt"})
        unfinished.chmod(usual)  # otherwise readable by the owner only
    else:
        torch.save(plain, unfinished)
    unfinished.replace(path)


def _remove_others(folder: Path, kept: set[str], variant: str | None) -> None:
    # A reader would load them in addition to, or in place of, the new ones.
    patterns = [pattern for patterns in weight_files(variant) for pattern in patterns]
    for path in folder.iterdir():
        is_ours = any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)
        if is_ours and path.name not in kept:
            path.unlink()


# Prefix of a network's weights when stored with a head; bare networks have none.
_BASE_PREFIX = "model."


class _SkipRandomInit(TorchFunctionMode):
    """Skips random numbers: on the meta device torch would load its compiler for 1 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Context in which networks are built with names and shapes only, without memory."""
    with torch.device("meta"), _SkipRandomInit():
        yield


def load_weights(
    module: nn.Module,
    folder: Path,
    found: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    tied: Mapping[str, str],
    fresh: tuple[str, ...],
    draw: Callable[[str, Tensor], None],
    ignored: tuple[str, ...],
    redraw: bool = False,
    strict: bool = True,
) -> list[str]:
    """Replace every parameter of `module` by the one stored in `folder`.

    `dtype` None means the stored one (the widest, if they differ). Names match with and without the
    prefix `model.`. `tied` parameters share another's weights, unless the file has different
    ones. Parameters with a prefix in `fresh` may be absent, with `redraw` any may be stored in
    another shape: these are initialized, and their names returned. Stored names with a prefix in
    `ignored` are skipped. Unless `strict`, any may be absent, and others stored. Raises
    CheckpointError; RuntimeError if torch makes tensors on the meta device.
    """
    if torch.get_default_device().type == "meta":
        raise RuntimeError(
            f"loading {folder}: You are using `from_pretrained` with a meta device context manager "
            "(torch.device), expected one with memory; call it outside, or from_config within"
        )
    # Files are memory-mapped and tensors converted one at a time: the peak is one copy in `dtype`.
    full_names = {_bare(name): name for name in module.state_dict()}
    wanted = {_bare(name): tuple(t.shape) for name, t in module.state_dict().items()}
    whole = {_bare(n): t.dtype for n, t in module.state_dict().items() if not t.is_floating_point()}
    tied = {_bare(target): _bare(source) for target, source in tied.items()}
    absent = {bare for bare, name in full_names.items() if name.startswith(fresh)}
    stored = {_bare(name): tensor for name, tensor in found.items()}
    if redraw:
        misfits = {n for n in wanted.keys() & stored.keys() if stored[n].shape != wanted[n]}
        stored = {name: tensor for name, tensor in stored.items() if name not in misfits}
        absent |= misfits
    for target, source in tied.items():
        if source not in stored and target in stored:  # either of two equal tensors may be stored
            stored[source] = stored.pop(target)
    if not strict:
        absent |= wanted.keys() - stored.keys() - tied.keys()
        stored = {name: tensor for name, tensor in stored.items() if name in wanted}
    _check_tensors(folder, stored, wanted, absent={*tied, *absent}, ignored=ignored, whole=whole)
    present = [name for name in wanted if name in stored]
    if dtype is None:
        dtypes = [stored[name].dtype or torch.float32 for name in present if name not in whole]
        dtype = functools.reduce(torch.promote_types, dtypes or [torch.get_default_dtype()])
    weights = {
        name: _read(name, stored[name], dtype=whole.get(name, dtype), device=device)
        for name in present
    }
    made = [name for name in wanted if name in absent and name not in weights]
    for name in made:
        fresh_tensor = torch.empty(wanted[name])
        draw(full_names[name], fresh_tensor)
        weights[name] = fresh_tensor.to(device, dtype)
    shared = {
        target: source
        for target, source in tied.items()
        if target not in weights or torch.equal(weights[target], weights[source])
    }
    # load_state_dict is strict, and would give tied names separate objects.
    weights |= {target: weights[source] for target, source in shared.items()}
    module.load_state_dict({full_names[name]: t for name, t in weights.items()}, assign=True)
    for target, source in shared.items():
        share_parameter(module, full_names[target], full_names[source])
    absent_sources = {name for name in made if name not in map(_bare, found)}
    absent_tied = {target for target, source in shared.items() if source in absent_sources}
    return [full_names[n] for n in wanted if n in absent_tied or (n in made and n not in shared)]


def loading_info(
    module: nn.Module, found: Mapping[str, StoredTensor], drawn: Collection[str]
) -> dict[str, Any]:
    """Return the missing, unexpected and mismatched keys, named as in transformers.

    `drawn` are the names that `load_weights` returned.
    """
    wanted = {_bare(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = {_bare(name): tensor.shape for name, tensor in found.items()}
    mismatched = {name for name in drawn if _bare(name) in stored}
    return {
        "missing_keys": {name for name in drawn if name not in mismatched},
        "unexpected_keys": {name for name in found if _bare(name) not in wanted},
        "mismatched_keys": {(n, stored[_bare(n)], wanted[_bare(n)]) for n in mismatched},
        "error_msgs": [],
    }


def share_parameter(module: nn.Module, target: str, source: str) -> None:
    """Make the parameter `target` the same object as `source`."""
    owner, _, name = target.rpartition(".")
    setattr(module.get_submodule(owner), name, module.get_parameter(source))


def _check_tensors(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    absent: set[str],
    ignored: tuple[str, ...],
    whole: Collection[str],
) -> None:
    missing = wanted.keys() - stored.keys() - absent
    left_over = stored.keys() - wanted.keys()
    unexpected = {name for name in left_over if not name.startswith(ignored)}
    sides = (("missing", missing), ("unexpected", unexpected))
    problems = [f"{len(names)} {side}: {listed(sorted(names))}" for side, names in sides if names]
    if problems:
        files = listed(sorted({tensor.path.name for tensor in stored.values()})) or "no file"
        raise WeightsError(
            f"loading {folder} ({files}): {len(wanted)} tensors expected, {'; '.join(problems)}; "
            "use config.json and weights of the same model"
        )

    for name in wanted.keys() & stored.keys():
        tensor = stored[name]
        if tensor.shape != wanted[name]:
            problems.append(f"{name} is {tensor.shape} in {tensor.path.name}, not {wanted[name]}")
        elif tensor.dtype is None or tensor.dtype.is_floating_point == (name in whole):
            kind = "whole numbers" if name in whole else "a float type"
            problems.append(f"{name} in {tensor.path.name} is not of {kind}")
    if problems:
        raise WeightsError(
            f"loading {folder}: {len(problems)} tensors do not fit config.json: "
            f"{listed(sorted(problems), separator='; ')}; use config.json and weights of the same "
            "model"
        )


def _read(name: str, tensor: StoredTensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        # Always a copy: a mapped tensor would change or crash with its file.
        read = tensor.read().to(device, dtype, copy=True).contiguous()
    except (SafetensorError, OSError) as error:
        raise broken(tensor.path, error) from error
    # Minimum and maximum propagate NaN and infinity, and need no memory.
    if read.numel() and not bool(torch.stack(torch.aminmax(read)).isfinite().all()):
        raise CheckpointError(
            f"reading {tensor.path}: found NaN or infinity in {name} as {dtype}, expected finite "
            "weights; copy it again, or load it in a wider type"
        )
    return read


def _bare(name: str) -> str:
    return name.removeprefix(_BASE_PREFIX)
