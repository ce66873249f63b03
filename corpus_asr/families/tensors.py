"""Lists of rows into arrays or tensors: where the half without torch makes tensors on request.

In: rows of numbers of equal length. Out: one numpy array or one torch tensor. torch is imported
only when somebody asks for tensors, so a worker that never does stays without it. Knows neither
what the numbers mean nor how they were padded.
"""

import sys
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

KINDS = ("np", "pt")
"""What `return_tensors` may say: numpy arrays or torch tensors."""


@runtime_checkable
class Listable(Protocol):
    """An array or tensor, wherever it lives."""

    def tolist(self) -> Any:
        """Return the values as nested lists."""


def as_tensors(rows: Any, kind: str | None) -> Any:
    """Make one array or tensor of `rows`.

    Args:
        rows: a number, or lists, arrays or tensors nested to the same depth and of equal lengths.
        kind: `np` for a numpy array, `pt` for a torch tensor, None for `rows` as they are.

    Returns:
        whole numbers as int64, what already has a type in its own, lists of floats as float64 by
        numpy and as torch's default type in tensors.

    Raises:
        ValueError: `kind` is not known, or rows have different lengths.
    """
    if kind is None:
        return rows
    if kind not in KINDS:
        raise ValueError(
            f"making tensors: found return_tensors={kind!r}, expected 'np', 'pt' or None; correct "
            f"it"
        )
    if kind == "pt" and is_tensor(rows):
        return rows
    if kind == "pt" and isinstance(rows, Sequence) and rows and is_tensor(rows[0]):
        return _stacked(rows)
    array = _array(rows)
    return array if kind == "np" else _tensor(array, rows)


def is_tensor(value: object) -> bool:
    """Tell whether `value` is a torch tensor, without importing torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_lists(values: Any) -> Any:
    """Return arrays and tensors as nested lists of Python numbers; anything else as it is."""
    return values.tolist() if isinstance(values, Listable) else values


def _array(rows: Any) -> np.ndarray:
    if is_tensor(rows):
        return np.asarray(rows.detach().cpu())
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise ValueError(_uneven(rows)) from error
    if array.dtype == object:
        raise ValueError(
            f"making one array: found a row of {_names(rows)}, expected numbers only; remove what "
            f"is no number or ask for no tensors"
        )
    # numpy takes an empty list for floats, but nothing was said here: ids are what is meant.
    empty_list = array.size == 0 and isinstance(rows, list) and not _has_type(rows)
    return array.astype(np.int64) if empty_list else array


def _tensor(array: np.ndarray, rows: Any) -> Any:
    import torch

    if array.dtype == np.float64 and isinstance(rows, list) and not _has_type(rows):
        return torch.tensor(rows)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def _stacked(rows: Sequence[Any]) -> Any:
    import torch

    if len({tuple(row.shape) for row in rows}) > 1:
        raise ValueError(_uneven(rows))
    return torch.stack(list(rows))


def _has_type(rows: Sequence[Any]) -> bool:
    """Whether the rows, at any depth, are arrays: then their type is meant."""
    first = rows[0] if rows else None
    return _has_type(first) if isinstance(first, list) else hasattr(first, "dtype")


def _uneven(rows: Any) -> str:
    lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")})
    found = f"lengths from {lengths[0]} to {lengths[-1]}" if lengths else "rows and numbers mixed"
    return (
        f"making one array of {len(rows)} rows: found {found}, expected the same in every row; "
        f"pass padding=True, and truncation=True where rows may be cut"
    )


def _names(rows: Any) -> str:
    first = rows[0] if isinstance(rows, Sequence) and rows else rows
    return type(first).__name__
