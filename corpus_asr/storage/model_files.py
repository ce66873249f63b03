"""Local copies of a checkpoint's files, from a folder, a URI or the Hugging Face Hub."""

import difflib
import fcntl
import fnmatch
import hashlib
import importlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from corpus_asr.config.decoding import PACKAGED_CHECKPOINT
from corpus_asr.errors import CheckpointError, FetchError
from corpus_asr.storage.stores.uri import (
    LOCAL,
    join,
    normalize,
    redact_uri,
    scheme_of,
    without_secrets,
)
from corpus_asr.units import MEBIBYTE

_LOG = logging.getLogger(__name__)

CACHE_VARIABLE = "CORPUS_ASR_CACHE"
SMALL_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt",
    "normalizer.json", "added_tokens.json", "special_tokens_map.json", "sentencepiece.bpe.model",
)  # fmt: skip
# By preference. Repositories also hold other precisions and files of other frameworks.
_WEIGHTS = (("model", "safetensors"), ("model.int8", "safetensors"), ("pytorch_model", "bin"))
PACKAGED_FOLDER = Path(__file__).resolve().parent.parent / "pretrained"
PACKAGED = tuple(sorted(path.parent.name for path in PACKAGED_FOLDER.glob("*/config.json")))
"""Checkpoints included in the package, by name."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?", re.ASCII)
_EXAMPLES = ("base", "small", "large-v3")
_ONNX = ".onnx"
_COPY_BYTES = 8 * MEBIBYTE
_NAMES_SHOWN = 10


def weight_files(variant: str | None = None) -> tuple[tuple[str, str, str], ...]:
    """Return file, index and shard name patterns of weights, by preference, e.g. of variant `fp16`.

    Raises:
        ValueError: the variant cannot be part of a file name.
    """
    if variant is not None and not re.fullmatch(r"[\w-]+", variant):
        raise ValueError(
            f"reading or writing weights: found variant={variant!r}, expected letters and digits, "
            "such as fp16"
        )
    mark = "" if variant is None else f".{variant}"
    return tuple(
        (f"{stem}{mark}.{suffix}", f"{stem}.{suffix}.index{mark}.json",
         f"{stem}{mark}-[0-9]*-of-[0-9]*.{suffix}")
        for stem, suffix in _WEIGHTS
    )  # fmt: skip


class _RemoteFile(NamedTuple):
    name: str
    size_bytes: int | None
    etag: str | None


def fetch_checkpoint(
    checkpoint: str,
    *,
    revision: str | None = None,
    weights: bool = True,
    expect: str | None = "config.json",
    subfolder: str = "",
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    variant: str | None = None,
) -> Path:
    """Return a local folder with a checkpoint's files; without `weights`, only the small ones.

    A checkpoint is a folder (used in place), the fsspec URI of one, a name in `PACKAGED`, a Hub
    model ID or a short name such as `large-v3`. `expect` is a file that must exist; `variant` is
    that of the weights; `revision`, `cache_dir` and the following are Hub arguments.
    """
    checkpoint = full_name(checkpoint)
    local = Path(normalize(checkpoint)) if scheme_of(checkpoint) == LOCAL else None
    if local is not None and local.is_dir():
        folder = local / subfolder
    elif checkpoint in PACKAGED:
        folder = PACKAGED_FOLDER / checkpoint / subfolder
    elif scheme_of(checkpoint) != LOCAL:
        address = normalize(checkpoint)
        address = join(address, subfolder) if subfolder else address
        folder = _fetch_address(address, weights=weights, expect=expect, variant=variant)
    elif HUB_NAME.fullmatch(checkpoint) and not (local is not None and local.is_file()):
        _check_spelling(checkpoint)
        access = {
            "revision": revision, "cache_dir": cache_dir, "force_download": force_download,
            "local_files_only": local_files_only, "token": token,
        }  # fmt: skip
        access = {name: value for name, value in access.items() if value is not None}
        folder = _fetch_hub(
            checkpoint, access, weights=weights, subfolder=subfolder, variant=variant
        )
    elif local is not None and local.is_file():
        raise _is_file(local)
    else:
        raise CheckpointError(
            f"fetching the checkpoint {redact_uri(checkpoint)}: found no such folder, expected a "
            f"folder, a URI such as s3://..., or a name such as {', '.join(_EXAMPLES)}; correct "
            "the name"
        )
    if not folder.is_dir() or (expect is not None and not (folder / expect).is_file()):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise _missing(
            f"{checkpoint}/{subfolder}".rstrip("/"), expect or "a folder with files", names,
            hub=hub_name(checkpoint),
        )  # fmt: skip
    return folder


def fetch_onnx(model: str) -> Path:
    """Return the local file of an ONNX network, as named by `speakers.model`.

    A model is such a file, a folder that has one, the fsspec URI of one, the name of a packaged
    one, a Hub repository that has one, or `OWNER/NAME/FILE.onnx` in a Hub repository.

    Raises:
        CheckpointError: no file, several files, or the download failed.
    """
    if (packaged := PACKAGED_FOLDER / model / "encoder.onnx").is_file():
        return packaged
    local = Path(normalize(model)) if scheme_of(model) == LOCAL else None
    if local is not None and local.is_file():
        return local
    if local is not None and local.is_dir():
        return _only_onnx(local, model)
    owner, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    if local is None:
        return _fetch_onnx_address(normalize(model))
    if name and HUB_NAME.fullmatch(f"{owner}/{name}") and (not file or file.endswith(_ONNX)):
        folder = _snapshot(f"{owner}/{name}", {}, [file or f"*{_ONNX}"])
        return folder / file if file else _only_onnx(folder, model)
    raise CheckpointError(
        f"fetching the network {redact_uri(model)}: found no such file, expected an {_ONNX} file, "
        "a folder with one, a URI of one, or OWNER/NAME of the Hub; correct speakers.model"
    )


def _only_onnx(folder: Path, model: str) -> Path:
    paths = sorted(folder.glob(f"*{_ONNX}"))
    if len(paths) == 1:
        return paths[0]
    names = ", ".join(path.name for path in paths[:_NAMES_SHOWN]) or "none"
    raise CheckpointError(
        f"fetching the network {model}: found {names}, expected one {_ONNX} file; name the file in "
        f"speakers.model, such as {model.rstrip('/')}/model{_ONNX}"
    )


def _fetch_onnx_address(uri: str) -> Path:
    above, _, name = uri.rpartition("/")
    with _copying(f"fetching the network {redact_uri(uri)}"):
        files = [file for file in _list_checkpoint(above) if file.name == name]
        if not files or not name.endswith(_ONNX):
            raise CheckpointError(
                f"fetching the network {redact_uri(uri)}: found no such object, expected an "
                f"{_ONNX} file there; correct speakers.model"
            )
        return _copy_once(above, files, _home_of(uri)) / name


@contextmanager
def _copying(doing: str) -> Iterator[None]:
    """Turn errors of a store and of this machine's disk into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:  # also an OSError
        raise
    except FetchError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{doing}: {error}, expected room for a copy below {cache_folder()}; free some, or set "
            f"{CACHE_VARIABLE} to another folder"
        ) from error


def _home_of(uri: str) -> Path:
    return cache_folder() / "checkpoints" / hashlib.blake2b(uri.encode()).hexdigest()[:16]


def model_revision(folder: Path) -> str:
    """Return a short hash of names and contents of configuration, tokenizer and weight files."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = _weight_names(names)
    if not weights:
        raise _missing(str(folder), _weights_wanted(), names)
    digest = hashlib.sha256()
    # Other files, such as a README or another framework's weights, do not change results.
    for name in sorted({*_matching(names, SMALL_FILES), *weights}):
        try:
            with open(folder / name, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(
                f"hashing {folder / name}: {error.strerror}, expected a readable file; check its "
                "permissions"
            ) from error
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def checkpoint_version(checkpoint: str) -> str:
    """Return a hash of a checkpoint's full name and, for a folder, its files' sizes and times.

    Unlike `model_revision`, it reads no file contents.
    """
    name = full_name(checkpoint)
    folder = Path(normalize(name)) if scheme_of(name) == LOCAL else Path()
    if not folder.is_absolute() or not folder.is_dir():
        return hashlib.sha256(name.encode()).hexdigest()[:16]
    names = [path.name for path in folder.iterdir() if path.is_file()]
    files = sorted({*_matching(names, SMALL_FILES), *_weight_names(names)})
    stats = [(file, (folder / file).stat()) for file in files]
    version = [str(folder), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]
    return hashlib.sha256(repr(version).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder of this node's copies: $CORPUS_ASR_CACHE, or the platform default."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "corpus-asr"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corpus-asr"


def _check_spelling(name: str) -> None:
    # Checked before any request: no model has a misspelled name without an owner.
    meant = None if "/" in name else probably_meant(name)
    if meant is not None:
        raise CheckpointError(
            f"fetching the checkpoint {name}: found no such folder or model (did you mean "
            f"{meant}?), expected a folder, a URI, OWNER/NAME of the Hub, or a name such as "
            f"{', '.join(_EXAMPLES)}; correct the name"
        )


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _weight_names(names: Sequence[str], variant: str | None = None) -> list[str]:
    for patterns in weight_files(variant):
        weights = _matching(names, patterns)
        if any(not name.endswith(".json") for name in weights):
            return weights
    return []


def _weights_wanted(variant: str | None = None) -> str:
    *names, last = (name for name, _, _ in weight_files(variant))
    return f"{', '.join(names)} or {last}"


def _is_file(path: Path) -> CheckpointError:
    cure = f"point model.checkpoint at {path.parent} if that is one"
    if path.suffix == ".pt":
        cure = f"make one of it with `corpus-asr convert {path} {path.with_suffix('')}`"
    return CheckpointError(
        f"fetching the checkpoint {path}: found a file, expected the folder of a Hugging Face "
        f"checkpoint; {cure}"
    )


def _missing(
    checkpoint: str, what: str, names: Sequence[str], *, hub: str | None = None
) -> CheckpointError:
    shown_names = ", ".join(names[:_NAMES_SHOWN]) or "nothing"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    cure = "point model.checkpoint at a folder with a Hugging Face checkpoint"
    if "adapter_config.json" in names:
        cure = (
            "that is an adapter: merge it by merge_and_unload of PEFT's PeftModel, save the model "
            "in a new folder, and use that"
        )
    if hub is not None:
        cure = f"write {hub} for the hub's checkpoint: a folder of that short name lies here"
    return CheckpointError(
        f"fetching the checkpoint {redact_uri(checkpoint)}: found {shown_names}{more}, "
        f"expected {what}; {cure}"
    )


def _fetch_address(uri: str, *, weights: bool, expect: str | None, variant: str | None) -> Path:
    uri = uri.rstrip("/")
    with _copying(f"fetching the checkpoint {redact_uri(uri)}"):
        files = _list_checkpoint(uri)
        names = [file.name for file in files]
        small = _matching(names, SMALL_FILES)
        if expect is not None and expect not in small:
            raise _missing(uri, expect, names)
        weight_names = _weight_names(names, variant)
        if weights and not weight_names:
            raise _missing(uri, _weights_wanted(variant), names)
        home = _home_of(uri)
        whole = [file for file in files if file.name in {*small, *weight_names}]
        complete = home / _version(whole)
        if complete.is_dir():
            return complete
        wanted = whole if weights else [file for file in files if file.name in small]
        return _copy_once(uri, wanted, home)


def _list_checkpoint(uri: str) -> list[_RemoteFile]:
    return [
        _RemoteFile(name.rpartition("/")[2], size, etag)
        for page in _filesystem().list_pages(uri + "/", depth=1)
        for name, size, etag in zip(page.uris, page.sizes, page.etags, strict=True)
        if name.rpartition("/")[0] == uri
    ]


def _version(files: Sequence[_RemoteFile]) -> str:
    # Keyed by ETags: a changed file makes another copy next to the one in use.
    described = repr(sorted(files, key=lambda file: file.name))
    return hashlib.blake2b(described.encode()).hexdigest()[:16]


def _copy_once(uri: str, files: Sequence[_RemoteFile], home: Path) -> Path:
    target = home / _version(files)
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "a") as lock:
        # Lock between processes of this node; released when its holder exits.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():  # another process was faster
            return target
        temporary = Path(tempfile.mkdtemp(prefix="incoming-", dir=home))
        try:
            for file in files:
                _copy(join(uri, file.name), temporary / file.name)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _copy(uri: str, path: Path) -> None:
    with _filesystem().open_binary(uri) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, _COPY_BYTES)
        target.flush()
        os.fsync(target.fileno())


def _fetch_hub(
    name: str, access: dict[str, Any], *, weights: bool, subfolder: str, variant: str | None
) -> Path:
    # `access` holds arguments of the Hub client.
    def snapshot(patterns: Sequence[str]) -> Path:
        wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        return _snapshot(name, access, wanted)

    folder = snapshot(SMALL_FILES) / subfolder
    if not weights or not folder.is_dir():
        return folder
    for patterns in weight_files(variant):
        folder = snapshot([*SMALL_FILES, *patterns]) / subfolder
        if _weight_names([path.name for path in folder.iterdir()], variant):
            return folder
    raise _missing(name, _weights_wanted(variant), sorted(os.listdir(folder)))


def _snapshot(name: str, access: dict[str, Any], patterns: Sequence[str]) -> Path:
    # Imported here: folders and URIs do not need it.
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*patterns], **access))
    except Exception as error:
        raise _hub_error(name, access.get("revision"), error) from error


def _hub_error(name: str, revision: str | None, error: Exception) -> CheckpointError:
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    doing = f"fetching the checkpoint {name}{at} from the Hub"
    first_line = _first_line(error)
    meant = probably_meant(name)
    meant = f"did you mean {meant}? Otherwise " if meant else ""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        reason = "it is gated; accept its terms on the Hub and set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "found no such revision, expected a branch, tag or commit; correct model.revision"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = (
            f"found no such folder or repository; {meant}correct model.checkpoint, or set "
            "HF_TOKEN if it is private"
        )
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        forbidden = "must not be contacted (HF_HUB_OFFLINE)"
        reached = forbidden if constants.HF_HUB_OFFLINE else "cannot be reached"
        freed = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "check network and proxy"
        reason = (
            f"found no local copy, and the Hub {reached}, expected one of them; {meant}{freed}, "
            f"copy a folder of `hf download {name} --local-dir FOLDER`, or use "
            f"{PACKAGED_CHECKPOINT} (English), which needs no network"
        )
    elif status == 401:
        reason = (
            f"the Hub does not accept the token ({first_line}); renew HF_TOKEN or `hf auth login`, "
            "or remove both for a public checkpoint"
        )
    else:
        reason = f"{type(error).__name__}: {first_line}; check the name, the network and HF_TOKEN"
    return CheckpointError(f"{doing}: {reason}")


def _first_line(error: Exception) -> str:
    return next(iter(without_secrets(str(error)).strip().splitlines()), "")


def _filesystem() -> Any:
    # Only for a URI: a folder loads without pyarrow.
    return importlib.import_module("corpus_asr.storage.stores.filesystem")


_WHISPER_SIZES = (
    "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large",
    "large-v2", "large-v3", "large-v3-turbo",
)  # fmt: skip
_DISTILLED = ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")
KNOWN_NAMES = (
    *(f"openai/whisper-{size}" for size in _WHISPER_SIZES),
    *(f"distil-whisper/distil-{size}" for size in _DISTILLED),
    *(f"facebook/s2t-{size}-librispeech-asr" for size in ("small", "medium", "large")),
    *(f"facebook/s2t-{size}-mustc-multilingual-st" for size in ("small", "medium")),
)  # fmt: skip
_BY_SIZE = {size: f"openai/whisper-{size}" for size in _WHISPER_SIZES} | {
    # As in openai-whisper, where `large` is the latest; openai/whisper-large is the first version.
    "large": "openai/whisper-large-v3",
    "large-v1": "openai/whisper-large",
    "turbo": "openai/whisper-large-v3-turbo",
}
SHORT_NAMES = _BY_SIZE | {f"distil-{size}": f"distil-whisper/distil-{size}" for size in _DISTILLED}
"""Hub model IDs by short name: `tiny.en`, `large-v3`, `turbo`, `distil-large-v3`."""

_PREFIXED = {f"whisper-{size}": name for size, name in _BY_SIZE.items()}
# Minimum similarity, 0 to 1, for a name to count as misspelled.
_ALIKE = 0.75


def full_name(checkpoint: str) -> str:
    """Return the Hub model ID of a short name; anything else unchanged."""
    hub = hub_name(checkpoint)
    return checkpoint if hub is None or Path(checkpoint).is_dir() else hub


def hub_name(name: str) -> str | None:
    """Return the Hub model ID of a short name, ignoring folders of that name."""
    return None if name == PACKAGED_CHECKPOINT else (SHORT_NAMES | _PREFIXED).get(name)


def probably_meant(name: str) -> str | None:
    """Return the known name most similar to a misspelled one; None for known or unrelated names."""
    typed = name.strip().lower().replace("_", "-")
    usable = (*KNOWN_NAMES, *SHORT_NAMES, *_PREFIXED, PACKAGED_CHECKPOINT)
    spellings = {
        checkpoint.partition("/")[2]: checkpoint for checkpoint in KNOWN_NAMES
    }  # without the owner
    spellings |= {spelling: spelling for spelling in usable}
    started = [checkpoint for checkpoint in KNOWN_NAMES if checkpoint.startswith(typed)]
    near = difflib.get_close_matches(typed, spellings, n=1, cutoff=_ALIKE) or started
    meant = spellings[near[0]] if near else None
    return None if meant == name else meant


def upload_files(
    folder: Path,
    names: Sequence[str],
    *,
    repo_id: str,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> None:
    """Upload files of a folder to a Hub repository in one commit, creating it if needed."""
    # Imported here: only uploads need it.
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        api.upload_folder(
            repo_id=api.create_repo(repo_id, private=private, exist_ok=True).repo_id,
            folder_path=folder,
            allow_patterns=list(names),
            revision=revision,
            commit_message=commit_message or f"Upload {', '.join(names)}",
            create_pr=create_pr,
        )
    except Exception as error:
        raise CheckpointError(
            f"uploading {', '.join(names)} of {folder} to {repo_id}: {type(error).__name__}: "
            f"{_first_line(error)}; check the repository name, the permissions of HF_TOKEN and the "
            "network"
        ) from error
