"""Folders of data sets and checkpoints to the Hugging Face Hub, by the Hub's own client."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corpus_asr.errors import ConfigError
from corpus_asr.storage.model_files import HUB_NAME, weight_files
from corpus_asr.storage.stores.uri import LOCAL, normalize, redact_uri, scheme_of

# What our programs note for themselves, and what the Hub's client leaves in folders.
_NOT_UPLOADED = ("_run/*", ".cache/*")
_DATASET_FILES = ("README.md", "labels.json")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is on the Hub now."""

    url: str
    kind: str
    private: bool


def push_folder(folder: str, repo_id: str, *, public: bool = False) -> Pushed:
    """Upload a data set or a checkpoint in one commit; makes the repository, private, if needed.

    Raises:
        ConfigError: the folder holds neither, the name is none, there is no token, or the Hub
            refuses.
    """
    # Imported here: what never uploads needs none of it.
    import huggingface_hub

    doing = f"pushing {redact_uri(folder)} to {repo_id}"
    if scheme_of(folder) != LOCAL:
        raise ConfigError(
            f"{doing}: found an address, expected a folder of this machine; copy it here first"
        )
    path = Path(normalize(folder))
    kind = _kind_of(path, doing)
    if not HUB_NAME.fullmatch(repo_id):
        raise ConfigError(
            f"{doing}: found no name of a repository, expected OWNER/NAME of letters, digits and "
            "-, _ or . in the name; correct it"
        )
    token = huggingface_hub.get_token()
    if token is None:
        raise ConfigError(
            f"{doing}: found no token of the Hub, expected one that may write; run `hf auth "
            "login`, or set HF_TOKEN"
        )
    api = huggingface_hub.HfApi(token=token)
    try:
        return _upload(api, path, repo_id, kind, public=public, doing=doing)
    except ConfigError:
        raise
    except Exception as error:  # of the Hub, its client or the network: all say why
        reason = str(error).strip().partition("\n")[0].replace(token, "***")
        raise ConfigError(
            f"{doing}: {type(error).__name__}: {reason}; check the owner in the name, the token's "
            "rights and the network; the same command tries again"
        ) from error


_REPLACED: Mapping[str, Sequence[str]] = {
    "dataset": ("data/*", "audio/*", "selection/*"),
    "model": ("*.safetensors*", "*.bin*"),
}


def _upload(api: Any, path: Path, repo_id: str, kind: str, *, public: bool, doing: str) -> Pushed:
    made = api.create_repo(repo_id, repo_type=kind, private=not public, exist_ok=True)
    # Of a repository that was there, `create_repo` changes nothing.
    private = bool(api.repo_info(made.repo_id, repo_type=kind).private)
    if not private and not public:
        raise ConfigError(
            f"{doing}: found a public repository, expected a private one; add --public if anyone "
            "may read it, or choose another name"
        )
    api.upload_folder(
        repo_id=made.repo_id,
        folder_path=str(path),
        repo_type=kind,
        ignore_patterns=list(_NOT_UPLOADED),
        # Files of an earlier push that this one does not have would be read with it.
        delete_patterns=list(_REPLACED[kind]),
        commit_message=f"Upload {path.resolve().name}",
    )
    return Pushed(url=str(made), kind=kind, private=private)


def _kind_of(path: Path, doing: str) -> Literal["dataset", "model"]:
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if names.issuperset(_DATASET_FILES):
        return "dataset"
    patterns = [re.escape(name) for whole, index, _ in weight_files() for name in (whole, index)]
    has_weights = any(re.fullmatch("|".join(patterns), name) for name in names)
    if ("config.json" in names and has_weights) or names.issuperset(_ADAPTER_FILES):
        return "model"
    found = "no folder" if not path.is_dir() else f"{', '.join(sorted(names)[:5]) or 'no file'}"
    model = path / "model"
    inside = f"; {model} looks like one" if (model / "config.json").is_file() else ""
    raise ConfigError(
        f"{doing}: found {found}, expected a complete data set of `corpus-asr label` "
        f"({', '.join(_DATASET_FILES)}) or a checkpoint (config.json and weights){inside}; "
        "correct the folder, or complete it"
    )
