"""Read, check and save a checkpoint's small JSON files."""

import dataclasses
import json
import stat
import typing
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.errors import CheckpointError
from corpus_asr.families.neutral_keywords import drop_neutral
from corpus_asr.json_values import load, parsed
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.model_files import fetch_checkpoint, upload_files
from corpus_asr.units import MEBIBYTE

# Whisper's largest, tokenizer.json, has 4 MB. JSON takes up to 20 times its bytes in memory.
MAX_SAVED_BYTES = 16 * MEBIBYTE


def read_saved_bytes(path: Path) -> bytes:
    """Read one of a checkpoint's small files, all but its weights.

    Raises:
        OSError: it cannot be read, or is larger than any such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a device without end, or a pipe that nobody writes to
        raise OSError("no plain file")
    if status.st_size > MAX_SAVED_BYTES:
        raise OSError(f"{status.st_size:,} bytes, more than {MAX_SAVED_BYTES:,}")
    return path.read_bytes()


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object, or raise CheckpointError."""
    try:
        content: dict[str, Any] = parsed(dict, load(read_saved_bytes(path)))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"reading {path}: found no such file; give a folder in Hugging Face layout"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"reading {path}: found no readable JSON ({error}); fetch the checkpoint again"
        ) from error
    return content


def optional_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object and may be missing."""
    return read_json_object(path) if path.is_file() else {}


def write_json_object(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, keys sorted, as Hugging Face does; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def typed_values(
    of: Callable[..., Any], content: dict[str, Any], *, path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a JSON object into checked values for a dataclass or function, and all other keys.

    The keys are its fields, but for those with metadata `{"in_file": False}`, or its annotated
    parameters; lists become tuples. Another type is a CheckpointError.
    """
    hints = typing.get_type_hints(of)
    names = [name for name in hints if name not in ("return", "kwargs")]
    if dataclasses.is_dataclass(of):
        names = [f.name for f in dataclasses.fields(of) if f.metadata.get("in_file", True)]
    values = {
        name: checked(hints[name], content[name], name, path=path)
        for name in names
        if name in content
    }
    unknown = {key: value for key, value in content.items() if key not in names}
    return values, unknown


def checked(hint: Any, value: Any, name: str, *, path: Path) -> Any:
    """Return what a file says under a key as its type has it; raises CheckpointError."""
    try:
        return parsed(hint, value, name)
    except ValueError as error:
        raise CheckpointError(
            f"reading {path}: {error}; fetch the checkpoint again or correct the key"
        ) from error


def plain_values(value: object) -> Any:
    """Turn tuples and mappings back into the lists and objects that JSON has."""
    if isinstance(value, tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    return value


SOURCE_OPTIONS = (
    "subfolder", "cache_dir", "force_download", "local_files_only", "token", "revision",
)  # fmt: skip
"""What a `from_pretrained` may say of where to look, as `fetch_checkpoint` names it."""


def take_source(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of `options` what says where to look; None is as good as not given.

    What means nothing here is taken out, too: see `neutral_keywords`.
    """
    drop_neutral(options)
    source = {name: options.pop(name, None) for name in SOURCE_OPTIONS}
    return {name: value for name, value in source.items() if value is not None}


def find_saved(
    checkpoint: str | PathLike[str], names: Mapping[str, str | None], **source: Any
) -> tuple[Path, dict[str, Any]]:
    """Find the first of several files that holds what is looked for, and the object in it.

    `names` are in order of preference; with a key, the object under that key is meant, and a file
    without it is passed over. `checkpoint` may be such a file itself; `source` is what
    `take_source` returns. Raises CheckpointError.
    """
    if Path(checkpoint).is_file():
        content = read_json_object(Path(checkpoint))
        inner = (content[k] for k in names.values() if k and isinstance(content.get(k), dict))
        return Path(checkpoint), next(inner, content)
    folder = fetch_checkpoint(str(checkpoint), weights=False, expect=None, **source)
    for name, key in names.items():
        content = optional_object(folder / name)
        wanted = content.get(key) if key else content
        if (folder / name).is_file() and isinstance(wanted, dict):
            return folder / name, wanted
    listing = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        f"reading {checkpoint}: found {listing}, expected {' or '.join(names)}; give a folder that "
        "save_pretrained has written, or a Hugging Face checkpoint"
    )


def made_folder(save_directory: str | PathLike[str]) -> Path:
    """Make the folder that something is saved to; raises CheckpointError where a file stands."""
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

    def push_to_hub(self, repo_id: str, **options: Any) -> None:
        """Upload what `save_pretrained` writes, in one commit; makes the repository if needed.

        `options` are those of `upload_files`, named as in transformers. Raises CheckpointError.
        """
        with scratch_folder() as folder:
            self.save_pretrained(folder)
            names = sorted(path.name for path in folder.iterdir())
            upload_files(folder, names, repo_id=repo_id, **options)


class OpenSettings(Uploads):
    """Settings in a dataclass; names that are no fields are kept in `extra`, as attributes too."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    extra: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        # By vars: a copy is asked for attributes before it has any, and would ask for ever.
        extra = vars(self).get("extra", {})
        if name not in extra:
            raise AttributeError(f"a {type(self).__name__} has no {name!r}, nor had its file")
        return extra[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name) or name in type(self).__dataclass_fields__:
            super().__setattr__(name, value)
        else:
            self.extra[name] = value


def finish_saving(
    folder: Path, names: list[str], *, push_to_hub: bool, repo_id: str | None = None, **options: Any
) -> None:
    """Upload what was just saved if asked for, into `repo_id` or the repository of its name."""
    drop_neutral(options, saving=True)
    if push_to_hub:
        upload_files(folder, names, repo_id=repo_id or folder.name, **options)
        return
    # Not passed over in silence: who names a repository means to upload.
    if unused := [*options, *(["repo_id"] if repo_id is not None else [])]:
        raise TypeError(
            f"saving to {folder}: found {', '.join(unused)}, expected options of an upload only "
            f"with push_to_hub=True; remove them or upload"
        )
