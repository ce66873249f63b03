"""What feature extractors of all families have in common: settings, their file, and padding.

In: settings by keyword or from a checkpoint; features of unequal length. Out: settings saved again;
features of one length. How samples become features is a family's. Method and parameter names are
those of `transformers.SequenceFeatureExtractor`, version 5.23. Works without torch.
"""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import (
    Uploads,
    find_saved,
    finish_saving,
    made_folder,
    take_source,
    typed_values,
    write_json_object,
)
from corpus_asr.families.tensors import BatchFeature
from corpus_asr.models.padding import Fit, pad_features, padding_word

FILE_NAME = "preprocessor_config.json"
# transformers 5 keeps the same settings in the processor's file.
_FILES = {"processor_config.json": "feature_extractor", FILE_NAME: None}

logger = logging.getLogger(__name__)


class SpeechFeatureExtractor(Uploads):
    """Pads features, and reads and writes its settings, which are its attributes."""

    model_input_names: ClassVar[list[str]]
    """What a call returns; the first are the features."""
    _settings_class: ClassVar[type]
    """A dataclass: the keys of the settings file and their types."""

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
        """Bring features that are there already to one length, along their first axis.

        Args:
            processed_features: values of several examples by name, or a list of examples, as a
                data loader collects them; `input_features` must be among them.
            padding: as in a call.
            max_length: in steps of the first axis.
            truncation: cut what is longer than `max_length`.
            pad_to_multiple_of: round lengths up to a multiple of this.
            return_attention_mask: as in a call.
            return_tensors: `pt` or `np`; None keeps the kind that was passed.

        Raises:
            ValueError: there are no `input_features`, the names hold different numbers of examples,
                or a length is missing.
        """
        return pad_features(
            processed_features,
            self._fit(padding, max_length, truncation, pad_to_multiple_of),
            name=self.model_input_names[0],
            wants_mask=self._wants_mask(return_attention_mask),
            return_tensors=return_tensors,
        )

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
        """Read the settings of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, an address of one, a hub name, or a JSON file.
            cache_dir: where the hub's copies are kept.
            force_download: fetch from the hub even what there is a copy of.
            local_files_only: use the copy there is, never the network.
            token: of the hub.
            revision: branch, tag or commit on the hub.
            kwargs: settings to override; `subfolder`; and with `return_unused_kwargs=True`, what
                is no setting is returned beside the extractor.

        Raises:
            CheckpointError: there is no such checkpoint, or its settings cannot be used.
        """
        source = take_source(kwargs) | {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
        }
        path, content = find_saved(pretrained_model_name_or_path, _FILES, **source)
        typed_values(cls._settings_class, content, path=path)
        try:
            return cls.from_dict(content, **kwargs)
        except ValueError as error:
            raise CheckpointError(f"reading {path}: {error}") from error

    @classmethod
    def from_dict(
        cls,
        feature_extractor_dict: Mapping[str, Any],
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Make an extractor of saved settings; `kwargs` as in `from_pretrained`.

        Raises:
            ValueError: the settings cannot be used.
        """
        settable = {
            field.name for field in fields(cls._settings_class)
        } | feature_extractor_dict.keys()
        used = {name: value for name, value in kwargs.items() if name in settable}
        unused = {name: value for name, value in kwargs.items() if name not in settable}
        extractor = cls(**{**feature_extractor_dict, **used})
        if return_unused_kwargs:
            return extractor, unused
        if unused:
            logger.warning("ignored=%s reason='no setting of this extractor'", sorted(unused))
        return extractor

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, as they are saved."""
        return {**copy.deepcopy(vars(self)), "feature_extractor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """Return all settings as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | PathLike[str]) -> None:
        """Write all settings to one JSON file."""
        write_json_object(Path(json_file_path), self.to_dict())

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the settings where `from_pretrained` finds them; returns the file's path.

        Args:
            save_directory: a folder; made if needed.
            push_to_hub: also upload the folder's file to the hub.
            kwargs: of the upload: `repo_id`, `token`, `private`, `commit_message`, `revision`,
                `create_pr`.

        Raises:
            CheckpointError: `save_directory` is a file, or the hub does not take the upload.
            TypeError: an option of the upload is not known.
        """
        folder = made_folder(save_directory)
        self.to_json_file(folder / FILE_NAME)
        finish_saving(folder, [FILE_NAME], push_to_hub=push_to_hub, **kwargs)
        return [str(folder / FILE_NAME)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

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

    def _wants_mask(self, asked: bool | None) -> bool:
        return self.return_attention_mask if asked is None else asked

    def _fit(
        self,
        padding: object,
        max_length: int | None,
        truncation: bool,
        pad_to_multiple_of: int | None,
    ) -> Fit:
        return Fit(
            padding=padding_word(padding),
            max_length=max_length,
            truncation=truncation,
            multiple_of=pad_to_multiple_of,
            side=self.padding_side,
            value=self.padding_value,
        )
