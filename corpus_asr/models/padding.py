"""Rows of unequal length to one length: cut, pad and mask, as sequence models expect.

In: one array per row, its first axis the one that is padded, and the words `padding` and
`truncation` of `transformers`. Out: the rows, and a mask of 1 where there is content. Knows nothing
of audio or text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from corpus_asr.families.tensors import BatchFeature, as_tensors, is_tensor

Padding = Literal["longest", "max_length", "do_not_pad"]

PADDINGS: dict[object, Padding] = {
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    False: "do_not_pad",
    "do_not_pad": "do_not_pad",
}
"""What `padding` may say, and what it means."""


def padding_word(padding: object) -> Padding:
    """Turn what a caller said of padding into one word.

    Raises:
        ValueError: it is none of `PADDINGS`.
    """
    # An enum of transformers carries its word as a value.
    word = getattr(padding, "value", padding)
    if not isinstance(word, bool | str) or word not in PADDINGS:
        raise ValueError(
            f"padding rows: found padding={padding!r}, expected True or 'longest', 'max_length', "
            f"False or 'do_not_pad'; choose one of these"
        )
    return PADDINGS[word]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """To which length rows are brought, and how.

    Args:
        padding: `longest` pads to the longest row, `max_length` to `max_length`.
        max_length: length to pad or cut to; None where neither is asked for.
        truncation: cut rows longer than `max_length`.
        multiple_of: lengths are rounded up to a multiple of this, also before cutting.
        side: which end is padded.
        value: what is padded with.

    Raises:
        ValueError: a length that is needed is missing or not positive, or `side` is not known.
    """

    padding: Padding
    max_length: int | None = None
    truncation: bool = False
    multiple_of: int | None = None
    side: str = "right"
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.max_length is None and (self.truncation or self.padding == "max_length"):
            asked = "truncation=True" if self.truncation else "padding='max_length'"
            raise ValueError(f"padding rows: found {asked} without max_length; give the length")
        for name in ("max_length", "multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"padding rows: found {name} {value}, expected 1 or more")
        if self.side not in ("left", "right"):
            raise ValueError(
                f"padding rows: found padding_side {self.side!r}, expected 'left' or 'right'"
            )

    def apply(
        self, rows: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Cut and pad the rows and their masks; without masks, every step is content."""
        masks = masks or [np.ones(len(row), dtype=np.int32) for row in rows]
        if self.truncation:
            limit = self._rounded(self.max_length)
            rows, masks = [row[:limit] for row in rows], [mask[:limit] for mask in masks]
        target = 0
        if self.padding == "longest":
            target = self._rounded(max(len(row) for row in rows)) or 0
        elif self.padding == "max_length":
            target = self._rounded(self.max_length) or 0
        padded = [self._padded(row, target, self.value) for row in rows]
        return padded, [self._padded(mask, target, 0) for mask in masks]

    def _rounded(self, length: int | None) -> int | None:
        if length is None or self.multiple_of is None:
            return length
        return -(-length // self.multiple_of) * self.multiple_of

    def _padded(self, row: np.ndarray, target: int, value: float) -> np.ndarray:
        missing = max(0, target - len(row))
        before, after = (missing, 0) if self.side == "left" else (0, missing)
        widths = [(before, after), *[(0, 0)] * (row.ndim - 1)]
        return np.pad(row, widths, constant_values=value) if missing else row


def pad_features(
    processed_features: Any,
    fit: Fit,
    *,
    name: str,
    wants_mask: bool,
    return_tensors: str | None = None,
) -> BatchFeature:
    """Bring the values of several examples to one length.

    Args:
        processed_features: values of the examples by name, or a list of examples, as a data loader
            collects them. An `attention_mask` among them is padded likewise.
        fit: the length.
        name: which values are padded; the others are kept as they are.
        wants_mask: also return a mask where none was passed.
        return_tensors: `pt` or `np`; None keeps the kind that was passed.

    Raises:
        ValueError: there is no such name, the names hold different numbers of examples, or the rows
            keep different lengths and tensors are asked for.
    """
    features = _collected(processed_features)
    if name not in features:
        raise ValueError(
            f"padding features: found {', '.join(features) or 'nothing'}, expected {name}; pass "
            "what a feature extractor returned, or a list of such"
        )
    if len(features[name]) == 0:
        return BatchFeature(features | ({"attention_mask": []} if wants_mask else {}))
    _check_counts(features)
    if return_tensors is None and is_tensor(features[name][0]):
        return_tensors = "pt"
    given = features.pop("attention_mask", None)
    rows, masks = fit.apply(
        [_float32(value) for value in features[name]],
        None if given is None else [np.asarray(as_tensors(mask, "np")) for mask in given],
    )
    others = {key: joined([_float32(v) for v in values]) for key, values in features.items()}
    batch = BatchFeature(others | {name: joined(rows)})
    if wants_mask or given is not None:
        batch["attention_mask"] = joined(masks)
    return batch.convert_to_tensors(return_tensors)


def joined(rows: Sequence[np.ndarray]) -> Any:
    """Stack rows of one shape; others stay a list."""
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else list(rows)


def _collected(features: Any) -> dict[str, Any]:
    """Turn a list of examples into lists of values by name."""
    if isinstance(features, list | tuple) and features and isinstance(features[0], Mapping):
        return {name: [example[name] for example in features] for name in features[0]}
    return dict(features)


def _check_counts(features: Mapping[str, Any]) -> None:
    counts = {name: len(value) for name, value in features.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"padding features: found {counts} examples, expected as many of each name; pass the "
            "values of the same examples"
        )


def _float32(value: Any) -> np.ndarray:
    array = np.asarray(as_tensors(value, "np"))
    return array.astype(np.float32) if array.dtype == np.float64 else array
