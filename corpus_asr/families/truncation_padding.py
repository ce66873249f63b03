"""Rows of token ids: how long they may be, and their padding to one width.

Names of options are those of the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corpus_asr.families.tensors import BatchEncoding, as_lists, is_tensor

NO_LIMIT = int(1e30)
"""What files say where texts may have any length."""

OUTSIDE = (0, 0)
"""Where a token stands that is not of the text."""

# Lengths above this are no lengths but a file's way to say that there is none.
# Source: transformers 5.23, tokenization_utils_base.py, LARGE_INTEGER.
_LARGE = int(1e20)

_PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long rows may and shall be."""

    max_length: int | None
    """Tokens of a row that is cut, or of every row that is padded to the maximum."""
    padding: str
    """`longest`, `max_length` or `do_not_pad`."""
    truncation: str
    """`longest_first`, `only_first`, `only_second` or `do_not_truncate`."""
    multiple: int | None
    """What the width of padded rows shall be a multiple of."""

    @property
    def limit(self) -> int:
        """Tokens that a row may have."""
        cut = self.truncation != "do_not_truncate" and self.max_length is not None
        return self.max_length if cut and self.max_length is not None else NO_LIMIT

    def width(self, longest: int) -> int:
        """Return the width to pad to, where the longest row has `longest` tokens."""
        fixed = self.padding == "max_length" and self.max_length is not None
        width = self.max_length if fixed and self.max_length is not None else longest
        if self.multiple is not None:
            width += -width % self.multiple
        return width


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """What a call asks for, beside its texts."""

    words: bool
    """Whether texts come as lists of words."""
    special: bool
    """Whether to put special tokens around each."""
    lengths: Lengths
    stride: int
    """Tokens that are repeated where a row is cut."""
    overflow: bool
    """Whether what is cut off is returned."""
    outputs: tuple[str, ...]
    """What is returned beside ids, by name."""
    side: str
    """Where rows are padded."""
    tensors: str | None
    """`np`, `pt` or None for lists."""


def chosen_lengths(
    *,
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    model_max_length: int,
) -> Lengths:
    """Resolve a caller's options.

    `max_length` alone cuts. Without one, the tokenizer's own length is taken, and where it has none
    nothing is cut, nor padded to the maximum.

    Raises:
        ValueError: an option is not known, or rows would be cut to a length and padded to another.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = "longest_first"
    pad = _chosen(padding, yes="longest", no="do_not_pad")
    cut = _chosen(truncation, yes="longest_first", no="do_not_truncate")
    _check_option("padding", pad, _PADDINGS)
    _check_option("truncation", cut, _TRUNCATIONS)
    for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
        if value is not None and value < 1:
            raise ValueError(
                f"encoding texts: found {name}={value}, expected 1 or more; correct it"
            )
    if max_length is None and model_max_length <= _LARGE:
        if pad == "max_length" or cut != "do_not_truncate":
            max_length = model_max_length
    elif max_length is None:
        pad = "do_not_pad" if pad == "max_length" else pad
        cut = "do_not_truncate"
    cuts_and_pads = cut != "do_not_truncate" and pad != "do_not_pad"
    if cuts_and_pads and max_length is not None and max_length % (pad_to_multiple_of or 1):
        raise ValueError(
            f"encoding texts: found max_length={max_length} to cut to, expected a multiple of "
            f"pad_to_multiple_of={pad_to_multiple_of}; change one of them"
        )
    return Lengths(max_length=max_length, padding=pad, truncation=cut, multiple=pad_to_multiple_of)


def pair_limits(first: int, second: int, limit: int, truncation: str) -> tuple[int, int]:
    """Share `limit` tokens between two texts.

    Raises:
        ValueError: only one may be cut, and it is too short for that.

    Source: huggingface/tokenizers, utils/truncation.rs, truncate_encodings.
    """
    excess = first + second - limit
    if excess <= 0:
        return first, second
    if truncation == "longest_first":
        shorter, longer = sorted((first, second))
        longer = shorter if shorter > limit else max(shorter, limit - shorter)
        if shorter + longer > limit:
            shorter, longer = limit // 2, limit // 2 + limit % 2
        return (shorter, longer) if first <= second else (longer, shorter)
    left = (first if truncation == "only_first" else second) - excess
    if left <= 0:
        raise ValueError(
            f"cutting two texts of {first} and {second} tokens to {limit}: found too few to cut by "
            f"truncation={truncation!r}; cut the other one, or allow more by max_length"
        )
    return (left, second) if truncation == "only_first" else (first, left)


def pad_batch(
    batch: Mapping[str, Any],
    lengths: Lengths,
    *,
    fillers: Mapping[str, Any],
    side: str,
    tensors: str | None,
) -> BatchEncoding:
    """Pad one row or a list of rows each to one width, by the filler of their name.

    Rows without a filler, and one that is longer than `max_length`, stay as they are.

    Raises:
        ValueError: a side or kind of tensor is not known, or rows that shall be one tensor differ
            in length all the same.
    """
    check_side("padding_side", side)
    ids = batch["input_ids"]
    if lengths.padding == "do_not_pad" or not ids:
        return BatchEncoding(dict(batch), tensors)
    single = not isinstance(ids[0], list)
    rows = [ids] if single else ids
    width = lengths.width(max(map(len, rows)))
    padded = dict(batch)
    for name, filler in fillers.items():
        if name in batch:
            values = [batch[name]] if single else batch[name]
            filled = [_filled(row, width, filler, side) for row in values]
            padded[name] = filled[0] if single else filled
    return BatchEncoding(padded, tensors)


def collate(encoded: Any) -> tuple[dict[str, Any], str | None]:
    """Return rows by name as lists, and the kind of tensor they were.

    `encoded` is one mapping of names to rows or lists of rows, or a list of mappings.

    Raises:
        ValueError: there are no `input_ids`, or names have different numbers of rows.
    """
    if isinstance(encoded, Sequence) and encoded and isinstance(encoded[0], Mapping):
        if len({frozenset(row) for row in encoded}) > 1:
            raise ValueError(
                f"padding {len(encoded)} rows: found different names in them, expected "
                f"{', '.join(encoded[0])} in all; correct what was passed"
            )
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        names = sorted(encoded) if isinstance(encoded, Mapping) else type(encoded).__name__
        raise ValueError(
            f"padding: found {names}, expected input_ids, or a list of mappings with input_ids; "
            f"call the tokenizer first"
        )
    ids = encoded["input_ids"]
    first = ids[0] if isinstance(ids, list | tuple) and len(ids) else ids
    kind = "pt" if is_tensor(first) else "np" if hasattr(first, "dtype") else None
    rows = {name: _as_rows(value) for name, value in encoded.items()}
    lists = [name for name, value in rows.items() if isinstance(value, list)]
    if len({len(rows[name]) for name in lists}) > 1:
        raise ValueError(
            f"padding: found {', '.join(f'{len(rows[name])} rows of {name}' for name in lists)}, "
            f"expected as many of each; correct what was passed"
        )
    return rows, kind


def is_several(text: Any, *, words: bool) -> bool:
    """Whether this is a list of texts, not one text, which may itself be a list of words."""
    if not isinstance(text, list | tuple):
        return False
    return not words or (bool(text) and isinstance(text[0], list | tuple))


def second_texts(texts: Sequence[Any], pair: Any, *, several: bool) -> Sequence[Any]:
    """Return the second text of each, None where there is none."""
    if not several or pair is None:
        return [pair] * len(texts)
    seconds = [pair] if isinstance(pair, str) else list(pair)
    if isinstance(pair, str) or len(seconds) != len(texts):
        raise ValueError(
            f"encoding pairs: found {len(texts)} texts and {len(seconds)} second ones, expected "
            f"as many; correct the lists"
        )
    return seconds


def check_side(name: str, side: str) -> None:
    """Refuse a side that is neither left nor right."""
    if side not in _SIDES:
        raise ValueError(f"choosing {name}: found {side!r}, expected 'left' or 'right'; correct it")


def _filled(row: Sequence[Any], width: int, filler: Any, side: str) -> list[Any]:
    filling = [filler] * (width - len(row))
    return [*row, *filling] if side == "right" else [*filling, *row]


def _as_rows(value: Any) -> Any:
    value = as_lists(value)
    return [_as_rows(row) for row in value] if isinstance(value, list | tuple) else value


def _chosen(option: bool | str | None, *, yes: str, no: str) -> str:
    return option if isinstance(option, str) else yes if option else no


def _check_option(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(
            f"encoding texts: found {name}={value!r}, expected True, False or one of "
            f"{', '.join(known)}; correct it"
        )
