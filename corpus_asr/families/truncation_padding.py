"""Rows of token IDs: input forms, truncation lengths and padding."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from corpus_asr.families.tensors import BatchFeature, as_lists, is_tensor

NO_LIMIT = int(1e30)
"""Value in files for unlimited length."""

# Larger lengths in files mean that there is no limit.
# Source: transformers 5.23, tokenization_utils_base.py, LARGE_INTEGER.
_LARGE = int(1e20)

PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Row lengths for truncation, and the width for padding."""

    max_length: int | None
    """Tokens of a truncated row, or of every row padded to the maximum."""
    padding: str
    truncation: str
    multiple: int | None
    """The width of padded rows is a multiple of this."""

    @classmethod
    def chosen(
        cls,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        model_max_length: int,
    ) -> Self:
        """Resolve a caller's options as transformers does."""
        # `max_length` alone implies truncation. Without it, the tokenizer's own length applies;
        # without that either, nothing is truncated or padded to the maximum.
        if max_length is not None and padding is False and truncation is None:
            truncation = "longest_first"
        pad = choice_word("padding", padding, PADDINGS)
        cut = choice_word("truncation", truncation, _TRUNCATIONS)
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
                f"encoding texts: found max_length={max_length}, expected a multiple of "
                f"pad_to_multiple_of={pad_to_multiple_of}; change one of them"
            )
        return cls(max_length, pad, cut, pad_to_multiple_of)

    @property
    def limit(self) -> int:
        """Maximum number of tokens of a row."""
        if self.max_length is None or self.truncation == "do_not_truncate":
            return NO_LIMIT
        return self.max_length


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """Arguments of a call except its texts."""

    words: bool
    """Whether texts are lists of words."""
    special: bool
    """Whether to add special tokens around each."""
    lengths: Lengths
    stride: int
    overflow: bool
    outputs: tuple[str, ...]
    """Names of the values returned in addition to IDs."""
    padding_side: str
    tensors: str | None


def pad_batch(
    batch: Mapping[str, Any], lengths: Lengths, fillers: Mapping[str, Any], *, side: str
) -> BatchFeature:
    """Pad one row, or a list of rows, to one width, with the filler of each name.

    Rows without a filler, and longer ones, are unchanged.
    """
    check_side("padding_side", side)
    ids = batch["input_ids"]
    if lengths.padding == "do_not_pad":
        return BatchFeature(dict(batch))
    if fillers["input_ids"] is None:
        raise ValueError(
            "padding texts: found no padding token, expected one; set it first, such as by "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    if not ids:
        return BatchFeature(dict(batch))
    if not isinstance(ids[0], list):
        several = pad_batch({n: [row] for n, row in batch.items()}, lengths, fillers, side=side)
        return BatchFeature({name: rows[0] for name, rows in several.items()})
    width = max(map(len, ids))
    if lengths.max_length is not None and lengths.padding == "max_length":
        width = lengths.max_length
    width += -width % (lengths.multiple or 1)
    padded = dict(batch)
    for name in batch.keys() & fillers.keys():
        padded[name] = []
        for row in batch[name]:
            filling = [fillers[name]] * (width - len(row))
            padded[name].append([*row, *filling] if side == "right" else [*filling, *row])
    return BatchFeature(padded)


def collate(encoded: Any) -> tuple[dict[str, Any], str | None]:
    """Return call results as rows by name, as lists, and their kind of tensor."""
    if isinstance(encoded, Sequence) and encoded and isinstance(encoded[0], Mapping):
        if len({frozenset(row) for row in encoded}) > 1:
            raise ValueError(
                f"padding {len(encoded)} rows: found different names, expected "
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


def text_pairs(text: Any, pair: Any, *, words: bool) -> tuple[bool, list[tuple[Any, Any]]]:
    """Return whether `text` has several texts, and each with its second text or None."""
    # A text as words and several texts are both lists: their items distinguish them.
    several = isinstance(text, list | tuple)
    if several and words:
        several = bool(text) and isinstance(text[0], list | tuple)
    if not several:
        return False, [(text, pair)]
    if pair is None:
        return True, [_unpaired(entry, words=words) for entry in text]
    seconds = [pair] if isinstance(pair, str) else [second for second in pair if second is not None]
    if isinstance(pair, str) or len(seconds) != len(text):
        raise ValueError(
            f"encoding pairs: found {len(text)} texts and {len(seconds)} second ones, expected "
            f"as many; correct the lists"
        )
    return True, list(zip(text, seconds, strict=True))


def _unpaired(text: Any, *, words: bool) -> tuple[Any, Any]:
    # A text and its second one may also be a pair within the list.
    together = isinstance(text, tuple) or (isinstance(text, list) and not words)
    if together and len(text) == 2:
        return text[0], text[1]
    return text, None


def choice_word(name: str, choice: object, known: Sequence[str]) -> str:
    """Return the word for True, False, one of the words, or such an enum of transformers.

    The first word is that of True, the last that of False and None.
    """
    word = getattr(choice, "value", choice)
    if word is None or isinstance(word, bool):
        return known[0 if word else -1]
    if not isinstance(word, str) or word not in known:
        raise ValueError(
            f"choosing {name}: found {choice!r}, expected True, False or one of "
            f"{', '.join(known)}; correct it"
        )
    return word


def check_side(name: str, side: str) -> None:
    """Raise ValueError unless the side is left or right."""
    if side not in _SIDES:
        raise ValueError(f"choosing {name}: found {side!r}, expected 'left' or 'right'; correct it")


def decode_each(token_ids: Any, decode: Callable[[list[int]], Any]) -> Any:
    """Decode one sequence of IDs, or several into a list."""
    ids = id_lists(token_ids)
    if ids and isinstance(ids[0], list):
        return [decode_each(row, decode) for row in ids]
    return decode(ids)


def id_lists(token_ids: Any) -> list[Any]:
    """Return IDs as a list of numbers, or of such lists."""
    values = as_lists(token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids)
    if isinstance(values, int):
        return [values]
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise _no_ids(values)
    rows = [as_lists(value) for value in values]
    return [list(row) if isinstance(row, list | tuple) else _as_id(row) for row in rows]


def _as_id(value: Any) -> int:
    # Integers of numpy and torch are IDs; floats are not, even whole ones.
    try:
        return operator.index(value)
    except TypeError as error:
        raise _no_ids(value) from error


def _no_ids(values: Any) -> TypeError:
    return TypeError(
        f"decoding: found {str(values)[:40]!r} of type {type(values).__name__}, expected token "
        "ids: integers, or lists or tensors of them; pass the output of generate() or a call"
    )


def _as_rows(value: Any) -> Any:
    value = as_lists(value)
    return [_as_rows(row) for row in value] if isinstance(value, list | tuple) else value
