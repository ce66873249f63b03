"""Loading and saving a tokenizer of any family.

In: a checkpoint's name, or a folder to save to. Out: the tokenizer, or its files. What the files
are is a family's. Knows no vocabulary.
"""

from abc import abstractmethod
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from corpus_asr.families.saved_files import Uploads, finish_saving, made_folder
from corpus_asr.families.token_settings import TokenSettings
from corpus_asr.storage.model_files import fetch_checkpoint


class PretrainedTokenizer(Uploads):
    """What is loaded from a checkpoint's folder and saved to another."""

    _settings_class: ClassVar[type[TokenSettings]]

    @abstractmethod
    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        """Set up a tokenizer that was not made yet from a folder; `given` settings win."""

    @abstractmethod
    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        """Write all files into a folder; returns their paths."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        revision: str = "main",
        subfolder: str = "",
        cache_dir: str | PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **settings: Any,
    ) -> Self:
        """Load the tokenizer of a checkpoint.

        What is not given is taken from tokenizer_config.json, where a saved tokenizer says it.

        Args:
            pretrained_model_name_or_path: a folder, an address such as s3://..., or a hub name.
            revision: branch, tag or commit of a hub name.
            subfolder: where below it the files are.
            cache_dir: where the hub's copies are kept.
            force_download: fetch again what there is a copy of.
            local_files_only: use the copy there is, never the network.
            token: of the hub; True for the one of this machine's login.
            settings: the class's arguments beside its files, in place of what the checkpoint says.

        Raises:
            CheckpointError: files are missing or broken, or lack a token.
            TypeError: there is no such setting.
            ValueError: a setting has a value that cannot be used, such as an unknown language.
        """
        folder = fetch_checkpoint(
            str(pretrained_model_name_or_path),
            revision=revision,
            weights=False,
            expect=None,
            subfolder=subfolder,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        names = cls._settings_class.__dataclass_fields__
        unknown = sorted(settings.keys() - names.keys())
        if unknown:
            raise TypeError(
                f"loading a tokenizer from {folder}: found the settings {', '.join(unknown)}, "
                f"expected some of {', '.join(names)}; correct them"
            )
        tokenizer = cls.__new__(cls)
        tokenizer._load(folder, {k: value for k, value in settings.items() if value is not None})
        return tokenizer

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Write all files of the tokenizer, those of older readers among them.

        Args:
            save_directory: a folder; made if needed.
            filename_prefix: put before the names of the vocabulary's files.
            push_to_hub: also upload the files to the hub.
            kwargs: of the upload: `repo_id`, `token`, `private`, `commit_message`, `revision`,
                `create_pr`.

        Returns:
            The paths of the files.

        Raises:
            CheckpointError: `save_directory` is a file, or the hub does not take the upload.
            TypeError: an option of the upload is not known.
        """
        folder = made_folder(save_directory)
        paths = self._save(folder, filename_prefix)
        names = [Path(path).name for path in paths]
        finish_saving(folder, names, push_to_hub=push_to_hub, **kwargs)
        return paths


def vocabulary_paths(
    save_directory: str | PathLike[str], filename_prefix: str | None, *names: str
) -> tuple[Path, ...]:
    """Return where the files of a vocabulary go, in a folder that is there.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    folder = Path(save_directory)
    if not folder.is_dir():
        raise NotADirectoryError(
            f"saving a vocabulary: found no folder {folder}, expected one; make it first"
        )
    prefix = f"{filename_prefix}-" if filename_prefix else ""
    return tuple(folder / f"{prefix}{name}" for name in names)
