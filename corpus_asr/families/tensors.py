"""Rows of numbers as arrays or tensors, and batches of them; torch is imported only on request."""

import sys
from collections.abc import Sequence
from typing import Any, Self

import numpy as np


def as_tensors(rows: Any, kind: str | None) -> Any:
    """Convert nested rows to one numpy array (`np`) or torch tensor (`pt`); None keeps them.

    Integers become int64; floats become float64 in numpy and torch's default type in tensors; typed
    values keep their type.
    """
    if kind is None:
        return rows
    if kind not in ("np", "pt"):
        raise ValueError(
            f"making tensors: found return_tensors={kind!r}, expected 'np', 'pt' or None; correct "
            f"it"
        )
    if kind == "np":
        return _array(rows)
    import torch

    if is_tensor(rows):
        return rows
    if isinstance(rows, Sequence) and rows and is_tensor(rows[0]):
        if len({tuple(row.shape) for row in rows}) > 1:
            raise ValueError(_uneven(rows))
        return torch.stack(list(rows))
    array = _array(rows)
    # Plain floats take torch's default type, as in torch.tensor, not numpy's.
    if array.dtype == np.float64 and isinstance(rows, list) and not _has_type(rows):
        return torch.tensor(rows)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor."""
    # Without torch imported there are none; workers that extract features do not import it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_lists(values: Any) -> Any:
    """Return arrays and tensors as nested lists of Python numbers; other values unchanged."""
    return values.tolist() if hasattr(values, "tolist") else values


def _array(rows: Any) -> np.ndarray:
    if is_tensor(rows):
        return np.asarray(rows.detach().cpu())
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise ValueError(_uneven(rows)) from error
    if array.dtype == object:
        first = rows[0] if isinstance(rows, Sequence) and rows else rows
        raise ValueError(
            f"making one array: found a row of {type(first).__name__}, expected numbers; remove "
            "other values, or omit return_tensors"
        )
    # numpy makes an empty list float; here it stands for a text without tokens.
    empty_list = array.size == 0 and isinstance(rows, list) and not _has_type(rows)
    return array.astype(np.int64) if empty_list else array


def _has_type(rows: Sequence[Any]) -> bool:
    # Arrays at any depth determine the type.
    first = rows[0] if rows else None
    return _has_type(first) if isinstance(first, list) else hasattr(first, "dtype")


def _uneven(rows: Any) -> str:
    lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")})
    sizes = f"lengths from {lengths[0]} to {lengths[-1]}" if lengths else "rows and numbers mixed"
    return (
        f"making one array of {len(rows)} rows: found {sizes}, expected the same in every row; "
        f"pass padding=True, and truncation=True where rows may be cut"
    )


class BatchFeature(dict[str, Any]):
    """Named values: `batch["input_features"]` is also `batch.input_features`.

    With `tensor_type` `np` or `pt` all values become arrays or tensors; None keeps them.
    """

    def __init__(self, data: dict[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"reading {name!r} of a {type(self).__name__}: found {', '.join(self) or 'nothing'}"
                f"; choose one of these"
            ) from None

    @property
    def data(self) -> dict[str, Any]:
        """Return the values by name."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Convert all values to arrays (`np`) or tensors (`pt`); None keeps them."""
        for key, value in self.items():
            try:
                self[key] = as_tensors(value, tensor_type)
            except ValueError as error:
                raise ValueError(f"converting {key!r}: {error}") from error
        return self

    def to(self, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Self:
        """Move the tensors, here and in place; floating-point ones also change their type.

        Takes a device, a dtype, or both in either order or by name, as `torch.Tensor.to` does.
        """
        device, dtype = _target(args, kwargs)
        for key, value in self.items():
            if is_tensor(value):
                kind = dtype if value.is_floating_point() else None
                self[key] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    unknown = sorted(kwargs.keys() - {"device", "dtype"})
    if unknown or len(args) > 2:
        raise TypeError(
            f"moving a batch: found {unknown or args}, expected a device, a dtype or both; "
            f"correct it"
        )
    named = dict(kwargs)
    for value in args:
        # By class name, to avoid importing torch.
        name = "dtype" if type(value).__name__ == "dtype" else "device"
        if name in named:
            raise TypeError(f"moving a batch: found two values for the {name}, expected one")
        named[name] = value
    return named.get("device"), named.get("dtype")
