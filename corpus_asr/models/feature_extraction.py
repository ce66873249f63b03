"""Base classes of feature extractors and processors, with transformers' interface."""

import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import SETTINGS_FILES
from corpus_asr.families.saved_files import (
    Uploads,
    find_saved,
    finish_saving,
    made_folder,
    take_source,
    typed_values,
    write_json_object,
)
from corpus_asr.families.tensors import BatchFeature, as_tensors, is_tensor
from corpus_asr.families.truncation_padding import PADDINGS, check_side, choice_word
from corpus_asr.storage.model_files import SMALL_FILES, fetch_checkpoint

FILE_NAME = "preprocessor_config.json"
# transformers 5 stores the same settings in the processor's file, which takes precedence.
_FILES = dict(reversed(SETTINGS_FILES.items()))

# More columns than this are samples; fewer, with more rows, are the channels of one recording.
_MAX_CHANNELS = 8

Row = Float32[np.ndarray, " sample"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Target length of rows, for padding and truncation."""

    padding: str
    max_length: int | None = None
    truncation: bool = False
    multiple_of: int | None = None
    """Lengths are rounded up to a multiple of this, also before truncation."""
    side: str = "right"
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.max_length is None and (self.truncation or self.padding == "max_length"):
            option = "truncation=True" if self.truncation else "padding='max_length'"
            raise ValueError(
                f"padding rows: found {option} without max_length, expected one; pass it"
            )
        for name in ("max_length", "multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"padding rows: found {name} {value}, expected 1 or more")
        check_side("padding_side", self.side)

    def apply(
        self, rows: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Truncate and pad rows and their masks; without masks, every step is content."""
        masks = masks or [np.ones(len(row), dtype=np.int32) for row in rows]
        if self.truncation:
            limit = self._rounded(self.max_length)
            rows, masks = [row[:limit] for row in rows], [mask[:limit] for mask in masks]
        longest = max(len(row) for row in rows)
        lengths = {"longest": longest, "max_length": self.max_length, "do_not_pad": 0}
        target = self._rounded(lengths[self.padding]) or 0
        padded = [self._padded(row, target, self.value) for row in rows]
        return padded, [self._padded(mask, target, 0) for mask in masks]

    def _rounded(self, length: int | None) -> int | None:
        if length is None or self.multiple_of is None:
            return length
        return -(-length // self.multiple_of) * self.multiple_of

    def _padded(self, row: np.ndarray, target: int, value: float) -> np.ndarray:
        missing = max(0, target - len(row))
        num_before, num_after = (missing, 0) if self.side == "left" else (0, missing)
        widths = [(num_before, num_after), *[(0, 0)] * (row.ndim - 1)]
        return np.pad(row, widths, constant_values=value) if missing else row


class SpeechFeatureExtractor(Uploads):
    """Pads features; its settings are attributes, which can be loaded and saved."""

    model_input_names: ClassVar[list[str]]
    """Names of a call's results; the first is the features."""
    sampling_rate: int
    padding_value: float
    padding_side: str
    return_attention_mask: bool

    def pad(
        self,
        processed_features: Any,
        padding: str | bool = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pad existing features to one length, along their first axis.

        `processed_features` are values of several examples by name, or a list of examples;
        `return_tensors` of None keeps the kind that was passed. Rows of different lengths are an
        array of objects with `np`.
        """
        fit = self._fit(padding, max_length, truncation, pad_to_multiple_of)
        name, wants_mask = self.model_input_names[0], self._wants_mask(return_attention_mask)
        features = processed_features
        if isinstance(features, list | tuple) and features and isinstance(features[0], Mapping):
            features = {key: [example[key] for example in features] for key in features[0]}
        features = dict(features)
        if name not in features:
            raise ValueError(
                f"padding features: found {', '.join(features) or 'nothing'}, expected {name}; "
                "pass what a feature extractor returned, or a list of such"
            )
        if len(features[name]) == 0:
            return BatchFeature(features | ({"attention_mask": []} if wants_mask else {}))
        counts = {key: len(values) for key, values in features.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"padding features: found {counts} examples, expected as many of each name; pass "
                "the values of the same examples"
            )
        if return_tensors is None and is_tensor(features[name][0]):
            return_tensors = "pt"
        attention_masks = features.pop("attention_mask", None)
        rows, masks = fit.apply(
            [_float32(value) for value in features[name]],
            None
            if attention_masks is None
            else [np.asarray(as_tensors(mask, "np")) for mask in attention_masks],
        )
        other_features = {
            key: joined([_float32(v) for v in values]) for key, values in features.items()
        }
        batch = BatchFeature(other_features | {name: joined(rows)})
        if wants_mask or attention_masks is not None:
            batch["attention_mask"] = joined(masks)
        return as_asked(batch, return_tensors)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        cache_dir: str | PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Read the settings of a checkpoint: a folder, a URI, a hub ID, or a JSON file.

        `kwargs` override settings, or name a `subfolder`; with `return_unused_kwargs=True`, other
        keywords are returned together with the extractor.
        """
        source = take_source(kwargs) | {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
        }
        path, content = find_saved(pretrained_model_name_or_path, _FILES, **source)
        typed_values(cls.__init__, content, path=path)
        try:
            return cls.from_dict(content, **kwargs)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"reading {path}: {error}") from error

    @classmethod
    def from_dict(
        cls,
        feature_extractor_dict: Mapping[str, Any],
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Create an extractor from saved settings; `kwargs` as in `from_pretrained`."""
        settable = inspect.signature(cls).parameters.keys() | feature_extractor_dict.keys()
        unused = {name: value for name, value in kwargs.items() if name not in settable}
        used = {name: value for name, value in kwargs.items() if name in settable}
        extractor = cls(**{**feature_extractor_dict, **used})
        if return_unused_kwargs:
            return extractor, unused
        if unused:
            logger.warning("ignored=%s reason='no setting of this extractor'", sorted(unused))
        return extractor

    def to_dict(self) -> dict[str, Any]:
        """Return all settings in their saved form."""
        return {**copy.deepcopy(vars(self)), "feature_extractor_type": type(self).__name__}

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the settings where `from_pretrained` reads them; return the file's path."""
        folder = made_folder(save_directory)
        write_json_object(folder / FILE_NAME, self.to_dict())
        finish_saving(folder, [FILE_NAME], push_to_hub=push_to_hub, **kwargs)
        return [str(folder / FILE_NAME)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_dict()}"

    def _check_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning(
                "sampling_rate=unknown expected=%d reason='pass sampling_rate, or audio of another "
                "rate goes unnoticed'",
                self.sampling_rate,
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"extracting features: found sampling_rate {sampling_rate!r}, expected "
                f"{self.sampling_rate}, which the checkpoint was trained on; resample the audio"
            )

    def _wants_mask(self, option: bool | None) -> bool:
        return self.return_attention_mask if option is None else option

    def _fit(
        self,
        padding: object,
        max_length: int | None,
        truncation: bool,
        pad_to_multiple_of: int | None,
    ) -> Fit:
        return Fit(
            padding=choice_word("padding", padding, PADDINGS),
            max_length=max_length,
            truncation=truncation,
            multiple_of=pad_to_multiple_of,
            side=self.padding_side,
            value=self.padding_value,
        )


def joined(rows: Sequence[np.ndarray]) -> Any:
    """Stack rows of equal shape; others remain a list."""
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else list(rows)


def as_asked(batch: BatchFeature, return_tensors: str | None) -> BatchFeature:
    """Convert all values to arrays or tensors; with `np`, unequal rows to object arrays."""
    ragged: dict[str, Any] = {}
    if return_tensors == "np":
        for key, rows in batch.items():
            if isinstance(rows, list) and len({np.shape(row) for row in rows}) > 1:
                ragged[key] = _objects(rows)
    even = {key: value for key, value in batch.items() if key not in ragged}
    return BatchFeature(BatchFeature(even, return_tensors) | ragged)


def _objects(rows: Sequence[np.ndarray]) -> np.ndarray:
    held = np.empty(len(rows), dtype=object)
    held[:] = rows
    return held


def _float32(value: Any) -> np.ndarray:
    array = np.asarray(as_tensors(value, "np"))
    # numpy's default type; other types are the caller's choice.
    return array.astype(np.float32) if array.dtype == np.float64 else array


def speech_rows(raw_speech: Any) -> list[Row]:
    """Convert one or several recordings to validated rows of samples.

    `raw_speech` is a list of numbers, an array of one dimension, or a list of either; an array of
    two dimensions has one recording per row.
    """
    rows = raw_speech
    if isinstance(rows, list | tuple):
        if not rows:
            raise ValueError(
                "extracting features: found an empty list, expected one recording or more; remove "
                "recordings without audio"
            )
        first = rows[0]  # a number in one recording, else a recording
        several = not isinstance(first, int | float | np.number) and getattr(first, "ndim", 1) != 0
    else:
        rows = _array(rows, name="the recording")
        several = rows.ndim == 2
        if several and rows.shape[1] <= _MAX_CHANNELS < len(rows):
            raise ValueError(
                f"extracting features: found an array of shape {rows.shape}, which looks like "
                f"{rows.shape[1]} channels of one recording, expected only mono-channel audio; "
                "pass one channel, or their mean"
            )
    if several:
        return [_row(row, name=f"recording {i}") for i, row in enumerate(rows)]
    return [_row(rows, name="the recording")]


def _row(speech: Any, *, name: str) -> Row:
    values = _array(speech, name=name)
    if values.ndim != 1:
        raise ValueError(
            f"extracting features of {name}: found an array of shape {values.shape}, expected only "
            "mono-channel audio of one dimension; choose a channel or average the channels"
        )
    if values.size == 0:
        raise ValueError(
            f"extracting features of {name}: found no samples, expected at least one; remove "
            "recordings without audio"
        )
    # Integers from -1 to 1 are silence or synthetic: real 16-bit recordings exceed them.
    if values.dtype.kind in "iu" and not (values.min() >= -1 and values.max() <= 1):
        raise ValueError(
            f"extracting features of {name}: found {values.dtype} samples from {values.min()} to "
            f"{values.max()}, expected numbers from -1 to 1; divide 16-bit samples by 32768"
        )
    row: Row = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(row)
    if not finite.all():
        raise ValueError(
            f"extracting features of {name}: found {row[~finite][0]} at sample "
            f"{int(np.argmin(finite))} ({int((~finite).sum())} of {row.size} are not finite), "
            "expected finite numbers; repair or remove the recording"
        )
    return row


def _array(speech: Any, *, name: str) -> np.ndarray:
    if isinstance(speech, str | bytes | dict | set):
        hint = "decode the file first" if isinstance(speech, str | bytes) else 'pass its "array"'
        raise TypeError(
            f"extracting features of {name}: found a {type(speech).__name__}, expected an array or "
            f"list of samples; {hint}"
        )
    values = speech
    if hasattr(values, "detach"):  # a tensor on any device
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"values of type {array.dtype}")
    except (ValueError, TypeError) as error:
        raise TypeError(
            f"extracting features of {name}: found a {type(speech).__name__} with {error}, "
            "expected an array or list of numbers; decode the file first"
        ) from error
    return array


# Processors


class SpeechProcessor(Uploads):
    """Passes audio to its feature extractor, and text and IDs to its tokenizer."""

    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]

    feature_extractor_class: ClassVar[type]
    tokenizer_class: ClassVar[type]
    _for_audio_alone: ClassVar[tuple[str, ...]] = ()
    """Keywords of a call for audio only; all others are for both."""

    def __init__(self, feature_extractor: Any, tokenizer: Any) -> None:
        for name, value, expected in (
            ("feature_extractor", feature_extractor, self.feature_extractor_class),
            ("tokenizer", tokenizer, self.tokenizer_class),
        ):
            if not isinstance(value, expected):
                raise TypeError(
                    f"making a processor: found a {type(value).__name__} as {name}, expected a "
                    f"{expected.__name__}; load one with {expected.__name__}.from_pretrained"
                )
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """Names of a call's results that models take."""
        halves = (self.feature_extractor, self.tokenizer)
        return list(dict.fromkeys(name for half in halves for name in half.model_input_names))

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepare audio, text or both: features, IDs, or features with the IDs as `labels`.

        `args` are the audio and further arguments of the feature extractor's call. Keywords except
        `audio`, `sampling_rate` and `text` are passed on to whichever of the two is called.
        """
        audio, text = kwargs.pop("audio", None), kwargs.pop("text", None)
        sampling_rate = kwargs.pop("sampling_rate", None)
        if args:
            if audio is not None:
                raise TypeError(
                    "processing audio: found it as the first argument and as audio=, expected one "
                    "of them"
                )
            audio, *args = args  # type: ignore[assignment]
        if audio is None and text is None:
            raise ValueError(
                "processing audio or text: found neither, expected audio=, text= or both"
            )
        for_text = {key: value for key, value in kwargs.items() if key not in self._for_audio_alone}
        encode: Callable[..., BatchFeature] = self.tokenizer
        extract: Callable[..., BatchFeature] = self.feature_extractor
        if audio is None:
            return encode(text, **for_text)
        inputs = extract(audio, *args, sampling_rate=sampling_rate, **kwargs)
        if text is not None:
            inputs["labels"] = encode(text, **for_text)["input_ids"]
        return inputs

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode several sequences of IDs, as the tokenizer's `batch_decode` does."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode IDs, as the tokenizer's `decode` does."""
        return self.tokenizer.decode(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        cache_dir: str | PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Read the feature extractor and the tokenizer of a checkpoint.

        It is a folder, a URI, a hub ID, or a feature extractor's JSON file with the tokenizer next
        to it; `kwargs` are `subfolder`, and settings of either.
        """
        returned = kwargs.pop("return_unused_kwargs", False)
        path = Path(pretrained_model_name_or_path)
        settings_file = path if path.is_file() else None
        folder = fetch_checkpoint(
            str(path.parent if settings_file else pretrained_model_name_or_path),
            weights=False,
            expect=None,
            subfolder=kwargs.pop("subfolder", ""),
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
        )
        extractor_class: Any = cls.feature_extractor_class
        tokenizer_class: Any = cls.tokenizer_class
        extractor, for_tokenizer = extractor_class.from_pretrained(
            settings_file or folder, return_unused_kwargs=True, **kwargs
        )
        tokenizer = tokenizer_class.from_pretrained(folder, **for_tokenizer)
        processor = cls(extractor, tokenizer)
        return (processor, {}) if returned else processor  # unused keywords were rejected

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the files that `from_pretrained` reads, also in transformers; return paths."""
        folder = made_folder(save_directory)
        self.tokenizer.save_pretrained(folder)
        # Without config.json, transformers' AutoProcessor uses the class's name.
        name = {"processor_class": type(self).__name__}
        write_json_object(folder / FILE_NAME, {**self.feature_extractor.to_dict(), **name})
        write_json_object(folder / "processor_config.json", name)
        names = [file for file in SMALL_FILES if file != "config.json" and (folder / file).exists()]
        finish_saving(folder, names, push_to_hub=push_to_hub, **kwargs)
        return [str(folder / file) for file in names]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}:\n- feature_extractor: {self.feature_extractor!r}\n"
            f"- tokenizer: {self.tokenizer!r}"
        )
