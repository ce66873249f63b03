"""Weights from a checkpoint folder into a network, strictly.

In: a module built on the meta device and a folder with weights. Out: the module with its weights.
Knows no particular model: what may be absent, shared or left over is an argument.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from corpus_asr.errors import CheckpointError
from corpus_asr.families.stored_weights import StoredTensor, broken, listed, stored_tensors

# Heads around the same networks store them under this prefix; the bare network stores none.
_BASE_PREFIX = "model."


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
    files = listed(sorted({tensor.path.name for tensor in stored.values()})) or "no file"
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {listed(sorted(missing))}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {listed(sorted(unexpected))}")
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
            f"{listed(sorted(problems), separator='; ')}; config.json and the weights must belong "
            f"to the same model"
        )


def _read(name: str, tensor: StoredTensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        # Always a copy: a mapped tensor would change or crash with its file.
        read = tensor.read().to(device, dtype, copy=True).contiguous()
    except (SafetensorError, OSError) as error:
        raise broken(tensor.path, error) from error
    # The lowest and highest number carry every NaN and infinity, and take no memory to find.
    if read.numel() and not bool(torch.stack(torch.aminmax(read)).isfinite().all()):
        raise CheckpointError(
            f"reading {tensor.path}: found NaN or infinity in {name} as {dtype}, expected finite "
            f"weights; copy or download it again, or load it in a type of wider range"
        )
    return read


def _bare(name: str) -> str:
    return name.removeprefix(_BASE_PREFIX)
