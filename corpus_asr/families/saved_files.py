"""A checkpoint's small JSON files: where they are read from, and where they go.

In: a folder, an address, a hub name or one JSON file, and the names that a file may have. Out: the
object in it. Knows nothing of what the keys mean.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from corpus_asr.errors import CheckpointError
from corpus_asr.families.config_file import read_json_object
from corpus_asr.storage.model_files import fetch_checkpoint, upload_files

SOURCE_OPTIONS = (
    "subfolder",
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
)
"""What a `from_pretrained` may say of where to look, as `fetch_checkpoint` names it."""


def take_source(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of `options` what says where to look; what was not given is left out."""
    found = {name: options.pop(name) for name in SOURCE_OPTIONS if name in options}
    return {name: value for name, value in found.items() if value is not None}


def find_saved(
    checkpoint: str | PathLike[str], names: Mapping[str, str | None], **source: Any
) -> tuple[Path, dict[str, Any]]:
    """Find the first of several files that holds what is looked for.

    Args:
        checkpoint: a folder, an address of one, a hub name, or a file itself.
        names: file names in order of preference; with a key, the object under that key is meant,
            and a file without it is passed over.
        source: what `take_source` returns.

    Returns:
        The file, and the object.

    Raises:
        CheckpointError: there is no such checkpoint, none of the files, or one that is unreadable.
    """
    if Path(checkpoint).is_file():
        content = read_json_object(Path(checkpoint))
        for key in names.values():
            if key is not None and isinstance(content.get(key), dict):
                return Path(checkpoint), content[key]
        return Path(checkpoint), content
    folder = fetch_checkpoint(str(checkpoint), weights=False, expect=None, **source)
    for name, key in names.items():
        if not (folder / name).is_file():
            continue
        content = read_json_object(folder / name)
        if key is None:
            return folder / name, content
        if isinstance(content.get(key), dict):
            return folder / name, content[key]
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        f"reading {checkpoint}: found {found}, expected {' or '.join(names)}; give a folder that "
        "save_pretrained has written, or a Hugging Face checkpoint"
    )


def made_folder(save_directory: str | PathLike[str]) -> Path:
    """Make the folder that something is saved to.

    Raises:
        CheckpointError: a file stands there, or the folder cannot be made.
    """
    folder = Path(save_directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"saving to {folder}: {error.strerror}, expected a folder or nothing; choose another "
            "save_directory"
        ) from error
    return folder


class Uploads:
    """What can be saved to a folder can be uploaded."""

    save_pretrained: Callable[..., Any]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> None:
        """Upload what `save_pretrained` writes, in one commit.

        Args:
            repo_id: `name` or `owner/name`; made if needed.
            commit_message: None names the files.
            private: of a repository that is made; None for the owner's default.
            token: of the hub; None for this machine's login.
            revision: branch; None for the main one.
            create_pr: propose the commit instead of making it.

        Raises:
            CheckpointError: the hub does not take it.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            upload_files(
                Path(folder),
                sorted(path.name for path in Path(folder).iterdir()),
                repo_id=repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


def finish_saving(folder: Path, names: list[str], *, push_to_hub: bool, **options: Any) -> None:
    """Upload what was just saved if asked for; see `push_saved`.

    Raises:
        CheckpointError: the hub does not take it.
        TypeError: an option is not known, or there is one though nothing is uploaded.
    """
    if push_to_hub:
        push_saved(folder, names, **options)
    elif options:
        raise TypeError(
            f"saving to {folder}: found {', '.join(options)}, expected options of an upload only "
            f"with push_to_hub=True; remove them or upload"
        )


def push_saved(
    folder: Path, names: list[str], *, repo_id: str | None = None, **options: Any
) -> None:
    """Upload files of a saved folder to the hub, into the repository of the folder's name.

    Args:
        folder: where they were saved.
        names: of the files.
        repo_id: another repository than that of the folder's name.
        options: `token`, `private`, `revision`, `commit_message` and `create_pr`.

    Raises:
        CheckpointError: the hub does not take them.
        TypeError: an option is not known.
    """
    upload_files(folder, names, repo_id=repo_id or folder.name, **options)
