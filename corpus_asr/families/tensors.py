"""Rows of numbers as arrays or tensors, and batches of them; torch is imported only on request."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


def as_tensors(rows: Any, kind: str | None) -> Any:
    """Make one numpy array (`np`) or torch tensor (`pt`) of nested rows; None keeps them.

    Integers become int64; floats float64 in numpy and torch's default type in tensors; what already
    has a type keeps it.
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
    # Plain floats take torch's default type, not numpy's, as torch.tensor gives them.
    if array.dtype == np.float64 and isinstance(rows, list) and not _has_type(rows):
        return torch.tensor(rows)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def is_tensor(value: object) -> bool:
    """Tell whether `value` is a torch tensor."""
    # Where nobody imported torch there are none, and workers that extract features never do.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_lists(values: Any) -> Any:
    """Return arrays and tensors as nested lists of Python numbers; anything else as it is."""
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
            f"making one array: found a row of {type(first).__name__}, expected numbers only; "
            f"remove what is not a number, or omit return_tensors"
        )
    # numpy takes an empty list for floats; here it stands for a text without tokens.
    empty_list = array.size == 0 and isinstance(rows, list) and not _has_type(rows)
    return array.astype(np.int64) if empty_list else array


def _has_type(rows: Sequence[Any]) -> bool:
    # Arrays at any depth: then their type is meant.
    first = rows[0] if rows else None
    return _has_type(first) if isinstance(first, list) else hasattr(first, "dtype")


def _uneven(rows: Any) -> str:
    lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")})
    found = f"lengths from {lengths[0]} to {lengths[-1]}" if lengths else "rows and numbers mixed"
    return (
        f"making one array of {len(rows)} rows: found {found}, expected the same in every row; "
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
        """The values by name."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Make arrays (`np`) or tensors (`pt`) of all values; None keeps them."""
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


@dataclass(frozen=True, slots=True)
class Padded:
    """An encoded row: of each token, the padding's among them, where it comes from.

    None stands for special tokens and padding.
    """

    tokens: list[str]
    word_ids: list[int | None]
    sequence_ids: list[int | None]
    offsets: list[tuple[int, int]]

    @classmethod
    def of(cls, encoding: Any, ids: list[int]) -> Self:
        """Take what the tokenizers library knows of a row, which may have been padded since."""
        missing = len(ids) - len(encoding)
        is_left = bool(missing) and ids[missing:] == encoding.ids
        before, after = (missing, 0) if is_left else (0, missing)
        # Of a pair the library forgets this of the first text as it puts special tokens around.
        kinds = zip(encoding.special_tokens_mask, encoding.type_ids, strict=True)
        texts = [None if special else kind for special, kind in kinds]

        def padded(values: Sequence[Any], filler: Any) -> list[Any]:
            return [*[filler] * before, *values, *[filler] * after]

        return cls(
            tokens=padded(encoding.tokens, ""),
            word_ids=padded(encoding.word_ids, None),
            sequence_ids=padded(texts, None),
            offsets=padded(encoding.offsets, (0, 0)),
        )


class BatchEncoding(BatchFeature):
    """Ids of texts and what goes with them: `input_ids`, `attention_mask`, `labels`."""

    encodings: Sequence[Any] | None = None
    """Of each row before padding, what the tokenizers library returned; None from a tokenizer that
    does without it."""

    @property
    def is_fast(self) -> bool:
        """Whether rows know where their tokens come from."""
        return self.encodings is not None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a row as the vocabulary spells them."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the number of the word that each token of a row is of."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return which text of a pair each token of a row is of: 0 or 1."""
        return self._row(batch_index).sequence_ids

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> Any:
        """Return the number of the word that a token is of."""
        row, token = _place(batch_or_token_index, token_index)
        return self._row(row).word_ids[token]

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> tuple[int, int] | None:
        """Return the first character of a token, and the one after its last."""
        row, token = _place(batch_or_token_index, token_index)
        held = self._row(row)
        return None if held.sequence_ids[token] is None else held.offsets[token]

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that a character is in; None where there is none, as for blanks."""
        row, char = _place(batch_or_char_index, char_index)
        held = self._row(row)
        of_text = enumerate(zip(held.sequence_ids, held.offsets, strict=True))
        within = (
            token
            for token, (text, (first, end)) in of_text
            if text == sequence_index and first <= char < end
        )
        return next(within, None)

    def _row(self, number: int) -> Padded:
        if self.encodings is None:
            raise ValueError(
                "asking where tokens come from: found a batch of a tokenizer that cannot tell, "
                "expected one whose is_fast is true"
            )
        ids = as_lists(self["input_ids"])
        several = bool(ids) and isinstance(ids[0], list)
        return Padded.of(self.encodings[number], ids[number] if several else ids)


def _place(first: int, second: int | None) -> tuple[int, int]:
    # One number is a place in the only row.
    return (0, first) if second is None else (first, second)


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    unknown = sorted(kwargs.keys() - {"device", "dtype"})
    if unknown or len(args) > 2:
        raise TypeError(
            f"moving a batch: found {unknown or args}, expected a device, a dtype or both; "
            f"correct it"
        )
    named = dict(kwargs)
    for value in args:
        # By the name of its class, so that torch need not be imported to ask.
        name = "dtype" if type(value).__name__ == "dtype" else "device"
        if name in named:
            raise TypeError(f"moving a batch: found two values for the {name}, expected one")
        named[name] = value
    return named.get("device"), named.get("dtype")
