"""Copies between host and device that make the host wait as rarely as can be.

In: tensors on one side. Out: the same on the other. On a GPU a plain copy of pageable memory waits
for everything the device still has to do; here uploads are pinned, and what comes back comes in
one piece, or is read after more work has been queued. Knows nothing of what is copied.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; the host goes on at once."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def upload(device: torch.device, *parts: Sequence[int] | Sequence[float] | Tensor) -> list[Tensor]:
    """Copy numbers to the device in one piece; returns one tensor for each part.

    Args:
        device: where to.
        parts: integers, floats, or tensors of int64 or float64. Floats arrive as float64.
    """
    tensors = [part if isinstance(part, Tensor) else _numbers(part) for part in parts]
    packed = torch.cat([tensor.reshape(-1).view(torch.long) for tensor in tensors])
    there = to_device(packed, device)
    pieces = torch.split_with_sizes(there, [tensor.numel() for tensor in tensors])
    return [
        piece.view(tensor.dtype).view(tensor.shape)
        for piece, tensor in zip(pieces, tensors, strict=True)
    ]


def upload_stack(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack tensors of one shape and type on the device; the host goes on at once."""
    if device.type != "cuda":
        return torch.stack(list(rows)).to(device)
    staged = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(list(rows), out=staged).to(device, non_blocking=True)


def download(*columns: Tensor) -> list[Tensor]:
    """Copy tensors of as many rows each to the host in one piece; floats arrive as float64.

    Args:
        columns: tensors (row, ...), all on one device.
    """
    rows = len(columns[0])
    wide = [
        (column.double() if column.is_floating_point() else column.long()).reshape(rows, -1)
        for column in columns
    ]
    packed = torch.cat([tensor.view(torch.long) for tensor in wide], dim=1).cpu()
    pieces = torch.split_with_sizes(packed, [tensor.shape[1] for tensor in wide], dim=1)
    return [
        piece.view(tensor.dtype).reshape(column.shape)
        for piece, tensor, column in zip(pieces, wide, columns, strict=True)
    ]


class Lookout:
    """Flags on the device, looked at from the host.

    Where the device works behind the host, flags are asked for before the last step is queued and
    read after it: so the device has a step to do while the host reads. What comes true in between
    is seen the next time.
    """

    def __init__(self, flags: Bool[Tensor, " slot"], *, behind: bool) -> None:
        """Watch some flags.

        Args:
            flags: they keep their place in memory.
            behind: whether to read what was asked for, in place of what is true now.
        """
        self._flags = flags
        self._behind = behind
        self._asked = False
        on_gpu = flags.device.type == "cuda"
        self._copy = torch.zeros(flags.shape, dtype=torch.bool, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def ask(self) -> None:
        """Ask for the flags as they are when all work queued so far is done."""
        if not self._behind:
            return
        self._copy.copy_(self._flags, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._flags.device))
        self._asked = True

    def read(self, count: int) -> list[bool]:
        """The first `count` flags; all false where they were not asked for since the last read."""
        if not self._behind:
            now: list[bool] = self._flags[:count].tolist()
            return now
        if not self._asked:
            return [False] * count
        self._asked = False
        if self._copied is not None:
            self._copied.synchronize()
        then: list[bool] = self._copy[:count].tolist()
        return then


def _numbers(values: Sequence[int] | Sequence[float]) -> Tensor:
    has_floats = any(isinstance(value, float) for value in values)
    return torch.tensor(values, dtype=torch.float64 if has_floats else torch.long)
