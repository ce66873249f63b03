"""What tokenizers and feature extractors return: named arrays that move to a device together.

In: names and their values. Out: the same, by key or by attribute. Method names and results are
those of the classes of the same names in `transformers`, version 5.23. Knows neither text nor
audio, and imports no torch: a tensor moves itself.
"""

from typing import Any, Self

from corpus_asr.families.tensors import as_tensors, is_tensor


class BatchFeature(dict[str, Any]):
    """Named values: `batch["input_features"]` is also `batch.input_features`.

    Args:
        data: the values by name.
        tensor_type: `np` or `pt` makes arrays or tensors of all values; None keeps them.

    Raises:
        ValueError: `tensor_type` is not known, or the rows of a value have different lengths.
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
        """The values by name."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Make arrays (`np`) or tensors (`pt`) of all values; None keeps them.

        Raises:
            ValueError: `tensor_type` is not known, or the rows of a value have different lengths.
        """
        for key, value in self.items():
            try:
                self[key] = as_tensors(value, tensor_type)
            except ValueError as error:
                raise ValueError(f"converting {key!r}: {error}") from error
        return self

    def to(self, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Self:
        """Move the tensors, here and in place; floating-point ones also change their type.

        Args:
            args: a device, a dtype, or both in either order, as `torch.Tensor.to` takes them.
            non_blocking: return before a copy from pinned memory has ended.
            kwargs: `device` and `dtype` by name.

        Raises:
            TypeError: anything else was given.
        """
        device, dtype = _target(args, kwargs)
        for key, value in self.items():
            if is_tensor(value):
                kind = dtype if value.is_floating_point() else None
                self[key] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self


class BatchEncoding(BatchFeature):
    """Ids of texts and what goes with them: `input_ids`, `attention_mask`, `labels`."""


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Tell the device and the dtype apart; None where not given."""
    unknown = sorted(kwargs.keys() - {"device", "dtype"})
    if unknown or len(args) > 2:
        raise TypeError(
            f"moving a batch: found {unknown or args}, expected a device, a dtype or both; "
            f"correct it"
        )
    found = dict(kwargs)
    for value in args:
        # A torch.dtype is told by its class name, so that nothing is imported to ask.
        name = "dtype" if type(value).__name__ == "dtype" else "device"
        if name in found:
            raise TypeError(f"moving a batch: found two values for the {name}, expected one")
        found[name] = value
    return found.get("device"), found.get("dtype")
