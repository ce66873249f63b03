"""Weights into a checkpoint folder, in one file or in shards.

In: tensors by name. Out: model.safetensors, model.int8.safetensors where some are INT8, or shards
and their index, as Hugging Face lays them out. Complete or not at all: a folder never holds an
index of shards that are not there. Knows no particular model.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from corpus_asr.families.config_file import write_json_object
from corpus_asr.families.int8_weights import INT8_NAME

WEIGHTS_NAME = "model.safetensors"
PICKLED_NAME = "pytorch_model.bin"

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(size: int | str) -> int:
    """Return a size in bytes: a number, or text such as `5GB` or `200MiB`.

    Raises:
        ValueError: it is no positive size.
    """
    match = re.fullmatch(r"(\d+)\s*([A-Z]*)", str(size).strip().upper())
    if match is None or match[2] not in _UNITS or int(match[1]) < 1:
        raise ValueError(f"reading the size {size!r}: expected a number of bytes, or such as 5GB")
    return int(match[1]) * _UNITS[match[2]]


def save_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
) -> list[str]:
    """Write tensors, replacing whatever weights of these names the folder held.

    Args:
        folder: made if needed.
        tensors: no two may share memory; names as in the network's state dict.
        max_shard_size: bytes of a file, unless a single tensor is larger.
        safe_serialization: safetensors; False writes pytorch_model.bin.

    Returns:
        The names of the files.

    Raises:
        ValueError: `max_shard_size` is no size.
    """
    shards = list(_shards(tensors, parse_size(max_shard_size)))
    folder.mkdir(parents=True, exist_ok=True)
    base = WEIGHTS_NAME if safe_serialization else PICKLED_NAME
    if any(tensor.dtype is torch.int8 for tensor in tensors.values()):
        base = INT8_NAME
    stem, _, suffix = base.rpartition(".")
    names = [f"{stem}-{at:05d}-of-{len(shards):05d}.{suffix}" for at in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [base]
    kept = set(names)
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, safe_serialization=safe_serialization)
    index = folder / f"{base}.index.json"
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        file_of = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json_object(index, {"metadata": {"total_size": total}, "weight_map": file_of})
        kept.add(index.name)
    _remove_others(folder, kept)
    return sorted(kept)


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shard and filled + size > max_bytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += size
    yield shard


def _write(path: Path, shard: dict[str, Tensor], *, safe_serialization: bool) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in shard.items()}
    if safe_serialization:
        unfinished.unlink(missing_ok=True)
        unfinished.touch()
        usual = unfinished.stat().st_mode
        save_file(plain, unfinished, metadata={"format": "pt"})
        unfinished.chmod(usual)  # it would be the owner's alone
    else:
        torch.save(plain, unfinished)
    unfinished.replace(path)


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove weights that a reader would find beside, or before, those just written."""
    pattern = re.compile(
        r"(model(\.int8)?\.safetensors|pytorch_model\.bin)(\.index\.json)?"
        r"|(model(\.int8)?|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)"
    )
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.name not in kept:
            path.unlink()
