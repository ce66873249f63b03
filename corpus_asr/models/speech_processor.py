"""A feature extractor and a tokenizer as one, whatever the family.

Method and parameter names are those of `transformers.ProcessorMixin`, version 5.23.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from corpus_asr.families.saved_files import Uploads, finish_saving, made_folder, write_json_object
from corpus_asr.families.tensors import BatchFeature
from corpus_asr.models.feature_extraction import FILE_NAME
from corpus_asr.storage.model_files import SMALL_FILES, fetch_checkpoint


class SpeechProcessor(Uploads):
    """Passes audio to its feature extractor, and text and ids to its tokenizer.

    Args:
        feature_extractor: turns samples into features.
        tokenizer: turns text into ids and back.

    Raises:
        TypeError: one of them is of another class.
    """

    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]

    feature_extractor_class: ClassVar[type]
    tokenizer_class: ClassVar[type]
    _for_audio_alone: ClassVar[tuple[str, ...]] = ()
    """What a call may say that means nothing for text; all else is for both."""

    def __init__(self, feature_extractor: Any, tokenizer: Any) -> None:
        _check_class("feature_extractor", feature_extractor, self.feature_extractor_class)
        _check_class("tokenizer", tokenizer, self.tokenizer_class)
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns that a model takes."""
        halves = (self.feature_extractor, self.tokenizer)
        return list(dict.fromkeys(name for half in halves for name in half.model_input_names))

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepare audio, text or both.

        Args:
            args: the audio, and further arguments of the feature extractor's call.
            kwargs: `audio`, `sampling_rate` and `text`; all others are passed on to whichever of
                the two is called.

        Returns:
            The features; or the ids of the text; or the features with the ids as `labels`.

        Raises:
            ValueError: there is neither audio nor text.
            TypeError: audio is given twice.
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
        """Turn ids into texts, as the tokenizer's `batch_decode` does."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Turn ids into text, as the tokenizer's `decode` does."""
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
    ) -> Self:
        """Read the feature extractor and the tokenizer of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, a URI of one, a hub name, or a feature
                extractor's JSON file with the tokenizer next to it.
            cache_dir: this and all other named ones as in `fetch_checkpoint`.
            kwargs: `subfolder`, and settings of the feature extractor or the tokenizer.

        Raises:
            CheckpointError: there is no such checkpoint, or a file is missing or unusable.
        """
        given = Path(pretrained_model_name_or_path)
        settings_file = given if given.is_file() else None
        folder = fetch_checkpoint(
            str(given.parent if settings_file else pretrained_model_name_or_path),
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
        return cls(extractor, tokenizer_class.from_pretrained(folder, **for_tokenizer))

    def to_dict(self) -> dict[str, Any]:
        """Return the feature extractor's settings and the names of the classes."""
        return {
            "feature_extractor": self.feature_extractor.to_dict(),
            "processor_class": type(self).__name__,
        }

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the files that `from_pretrained` reads, here and in transformers; returns paths.

        Args:
            save_directory: a folder; made if needed.
            push_to_hub: also upload the files to the hub.
            kwargs: of the upload: `repo_id`, `token`, `private`, `commit_message`, `revision`,
                `create_pr`.

        Raises:
            CheckpointError: `save_directory` is a file, or the hub does not take the upload.
            TypeError: an option of the upload is not known.
        """
        folder = made_folder(save_directory)
        self.tokenizer.save_pretrained(folder)
        # The class's name leads transformers' AutoProcessor here where there is no config.json.
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


def _check_class(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(
            f"making a processor: found a {type(value).__name__} as {name}, expected a "
            f"{expected.__name__}; load one with {expected.__name__}.from_pretrained"
        )
