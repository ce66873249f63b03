"""Reading, validation and saving of a checkpoint's small JSON files.

Keywords of transformers' `from_pretrained` and `save_pretrained` without effect here are one list
for all classes that read and save; one that would have an effect is refused with advice.
"""

import dataclasses
import json
import stat
import typing
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.errors import CheckpointError
from corpus_asr.json_values import load, parsed
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.model_files import fetch_checkpoint, upload_files
from corpus_asr.units import MEBIBYTE

# Whisper's largest, tokenizer.json, has 4 MB. Parsed JSON takes up to 20 times its bytes.
MAX_SAVED_BYTES = 16 * MEBIBYTE

# Control how the reference loads and saves, not the result: any value.
_OF_LOADING = (
    "use_fast", "trust_remote_code", "code_revision", "resume_download", "mirror", "tqdm_class",
    "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict", "offload_buffers",
    "weights_only", "from_tf", "from_flax", "allow_all_kernels", "use_kernels", "disable_mmap",
    "fusion_config", "user_agent", "_from_auto", "_from_pipeline", "_fast_init", "_commit_hash",
)  # fmt: skip
_OF_SAVING = (
    "save_function", "legacy_format", "save_format", "save_peft_format", "save_original_format",
    "distributed_checkpoint", "is_main_process", "safe_serialization", "max_shard_size",
    "use_diff",
)  # fmt: skip

# Accepted only as None, False or empty; other values are rejected with this message.
_QUANTIZED = (
    "load the model, then call torch.ao.quantization.quantize_dynamic; or transcribe with "
    'corpus_asr.Transcriber(..., compute_type="int8")'
)
_ONE_DEVICE = "a model is on one device; use torch's own FSDP or DataParallel after loading"
_INSTEAD = {
    "proxies": "set the environment variable HTTPS_PROXY",
    "use_auth_token": "pass it as token",
    "variant": "only models have it",
    "quantization_config": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "load_in_4bit": _QUANTIZED,
    "gguf_file": "GGUF is not read; take the checkpoint it was made of",
    "state_dict": "only models take it",
    "generation_config": "only models take it",
    "output_loading_info": "only models have it",
    "key_mapping": "rename the keys of a state dict, and pass that as state_dict",
    "adapter_name": "load adapters with peft.PeftModel.from_pretrained",
    "adapter_kwargs": "load adapters with peft.PeftModel.from_pretrained",
    "tp_plan": _ONE_DEVICE,
    "tp_size": _ONE_DEVICE,
    "device_mesh": _ONE_DEVICE,
    "distributed_config": _ONE_DEVICE,
    "kernel_config": "kernels are torch's own",
    "experts_implementation": "there are no experts in these networks",
}
_NOTHING: tuple[Any, ...] = (None, False, "", {}, [])


def read_saved_bytes(path: Path) -> bytes:
    """Read one of a checkpoint's small files, any except its weights.

    Raises:
        OSError: it cannot be read, or is larger than any such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # an endless device, or a pipe without a writer
        raise OSError("no plain file")
    if status.st_size > MAX_SAVED_BYTES:
        raise OSError(f"{status.st_size:,} bytes, more than {MAX_SAVED_BYTES:,}")
    return path.read_bytes()


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object; raises CheckpointError."""
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
    """Read a file with one JSON object; an empty one if it is missing."""
    return read_json_object(path) if path.is_file() else {}


def write_json_object(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object with sorted keys, as Hugging Face does; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def typed_values(
    of: Callable[..., Any], content: dict[str, Any], *, path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a JSON object into validated values for a dataclass or function, and other keys.

    The keys are its fields, except those with metadata `{"in_file": False}`, or its annotated
    parameters; lists become tuples. A value of another type raises CheckpointError.
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
    """Return a file's value converted to its type; raises CheckpointError."""
    try:
        return parsed(hint, value, name)
    except ValueError as error:
        raise CheckpointError(
            f"reading {path}: {error}; fetch the checkpoint again or correct the key"
        ) from error


def plain_values(value: object) -> Any:
    """Convert tuples and mappings to the lists and objects of JSON."""
    if isinstance(value, tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    return value


def drop_neutral(options: dict[str, Any], *, saving: bool = False) -> None:
    """Remove the keywords without effect from `options`; raises TypeError for others."""
    problems = []
    for name in [*options]:
        value = options[name]
        if name in (_OF_SAVING if saving else _OF_LOADING):
            del options[name]
        elif name in _INSTEAD:
            if not any(value is nothing or value == nothing for nothing in _NOTHING):
                problems.append(f"{name}={value!r}: {_INSTEAD[name]}")
            del options[name]
        elif saving and value is None:
            del options[name]
    if problems:
        doing = "saving" if saving else "loading"
        raise TypeError(f"{doing}: found {'; '.join(problems)}; leave it out")


SOURCE_OPTIONS = (
    "subfolder", "cache_dir", "force_download", "local_files_only", "token", "revision",
)  # fmt: skip
"""Keywords of `from_pretrained` that select the source, as named by `fetch_checkpoint`."""


def take_source(options: dict[str, Any]) -> dict[str, Any]:
    """Remove and return the source keywords in `options`; None counts as not given.

    Keywords without effect here are removed too: see `neutral_keywords`.
    """
    drop_neutral(options)
    source = {name: options.pop(name, None) for name in SOURCE_OPTIONS}
    return {name: value for name, value in source.items() if value is not None}


def find_saved(
    checkpoint: str | PathLike[str], names: Mapping[str, str | None], **source: Any
) -> tuple[Path, dict[str, Any]]:
    """Find the first of several files that has the object, and return both.

    `names` are in order of preference; with a key, the object under that key is meant, and a file
    without it is skipped. `checkpoint` may be such a file itself; `source` is the result of
    `take_source`. Raises CheckpointError.
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
    """Create the folder to save to; raises CheckpointError if a file exists there."""
    folder = Path(save_directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"saving to {folder}: {error.strerror}, expected a folder or nothing; choose another "
            "save_directory"
        ) from error
    return folder


def vocabulary_paths(
    save_directory: str | PathLike[str], filename_prefix: str | None, *names: str
) -> tuple[Path, ...]:
    """Return the paths of a vocabulary's files, in a folder that must exist."""
    folder = Path(save_directory)
    if not folder.is_dir():
        raise NotADirectoryError(
            f"saving a vocabulary: found no folder {folder}, expected one; make it first"
        )
    prefix = f"{filename_prefix}-" if filename_prefix else ""
    return tuple(folder / f"{prefix}{name}" for name in names)


class Uploads:
    """Mixin: uploads what `save_pretrained` writes."""

    save_pretrained: Callable[..., Any]

    def push_to_hub(self, repo_id: str, **options: Any) -> None:
        """Upload the files of `save_pretrained` in one commit; creates the repository if needed.

        `options` are those of `upload_files`, named as in transformers. Raises CheckpointError.
        """
        with scratch_folder() as folder:
            self.save_pretrained(folder)
            names = sorted(path.name for path in folder.iterdir())
            upload_files(folder, names, repo_id=repo_id, **options)


class OpenSettings(Uploads):
    """Settings in a dataclass; other names are kept in `extra`, and are attributes too."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    extra: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        # By vars: copying reads attributes before any exist, which would recurse forever.
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
    """Upload saved files if requested, into `repo_id` or the repository of the folder's name."""
    drop_neutral(options, saving=True)
    if push_to_hub:
        upload_files(folder, names, repo_id=repo_id or folder.name, **options)
        return
    # An error, as a repository name implies an upload.
    if unused := [*options, *(["repo_id"] if repo_id is not None else [])]:
        raise TypeError(
            f"saving to {folder}: found {', '.join(unused)}, expected options of an upload only "
            f"with push_to_hub=True; remove them or upload"
        )
