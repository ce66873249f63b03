"""Folders of data sets and checkpoints to the Hugging Face Hub, by the Hub's own client.

What fits into one commit is one. Of a larger folder data come first, then the lists of them, and at
last, in one commit, the card and the deletion of what an earlier push had: whenever it ends, no
card or list names a file that is not there. Files that are there already are not sent again, which
the client finds by their hashes; so the same command goes on where it was.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from corpus_asr.errors import ConfigError
from corpus_asr.storage.model_files import HUB_NAME, weight_files
from corpus_asr.storage.stores.uri import LOCAL, normalize, redact_uri, scheme_of
from corpus_asr.units import MEBIBYTE

# What our programs note for themselves, and what the Hub's client leaves in folders.
_NOT_UPLOADED = ("_run/*", ".cache/*", ".git/*")
# The Hub's answer to a commit takes longer the more files it has, and is given up after a minute;
# it takes some hundred commits an hour. Small files travel in the commit itself.
_COMMIT_FILES, _COMMIT_BYTES = 500, 16 * 1024 * MEBIBYTE
_CARD = "README.md"
_DATASET_FILES = (_CARD, "labels.json")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is on the Hub now."""

    url: str
    kind: str
    private: bool


def push_folder(folder: str, repo_id: str, *, public: bool = False) -> Pushed:
    """Upload a data set or a checkpoint; makes the repository, private, if needed.

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
    numbers = _numbers_of(path, doing) if kind == "dataset" else None
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
        return _upload(api, path, repo_id, kind, public=public, numbers=numbers, doing=doing)
    except ConfigError:
        raise
    except Exception as error:  # of the Hub, its client or the network: all say why
        reason = str(error).strip().partition("\n")[0].replace(token, "***")
        raise ConfigError(
            f"{doing}: {type(error).__name__}: {reason}; check the owner in the name, the token's "
            "rights and the network; the same command tries again"
        ) from error


_REPLACED: Mapping[str, Sequence[str]] = {
    "dataset": (
        "data/*",
        "audio/*",
        "selection/*",
        *(f"{split}_manifest.json" for split in ("train", "validation", "test")),
    ),
    "model": ("*.safetensors*", "*.bin*"),
}
# Files that name no others, which come first, and lists of these; then what else there is, the card
# at the end.
_IN_ORDER: Sequence[Sequence[str]] = (
    ("audio/*", "data/*.parquet", "data/*.tar", "selection/*", "*.safetensors", "*.bin"),
    ("data/*",),
    ("*",),
)


def _upload(
    api: Any,
    path: Path,
    repo_id: str,
    kind: str,
    *,
    public: bool,
    numbers: Mapping[str, Any] | None,
    doing: str,
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    made = api.create_repo(repo_id, repo_type=kind, private=not public, exist_ok=True)
    # Of a repository that was there, `create_repo` changes nothing.
    private = bool(api.repo_info(made.repo_id, repo_type=kind).private)
    if not private and not public:
        raise ConfigError(
            f"{doing}: found a public repository, expected a private one; add --public if anyone "
            "may read it, or choose another name"
        )
    kept = {each for each in _names_in(path) if not _is_any(each, _NOT_UPLOADED)}
    there = api.list_repo_files(made.repo_id, repo_type=kind)
    # Files of an earlier push that this one does not have would be read with it.
    gone = sorted(each for each in {*there} - kept if _is_any(each, _REPLACED[kind]))
    # Whoever reads the card there has no folder of this machine.
    contents = {_CARD: _card_of(path, numbers, made.repo_id)} if numbers is not None else {}
    for names, is_last in _commits(path, kept):
        operations = [
            CommitOperationAdd(path_in_repo=each, path_or_fileobj=contents.get(each, path / each))
            for each in names
        ]
        deleted = gone if is_last else ()
        api.create_commit(
            made.repo_id,
            [*operations, *(CommitOperationDelete(path_in_repo=each) for each in deleted)],
            repo_type=kind,
            commit_message=f"Upload {path.resolve().name}" if is_last else f"Upload {names[0]} ...",
        )
    return Pushed(url=str(made), kind=kind, private=private)


def _numbers_of(path: Path, doing: str) -> dict[str, Any]:
    """Return the numbers of a data set; refuse one that nobody could load."""
    numbers: dict[str, Any] = json.loads((path / "labels.json").read_bytes())
    if not numbers["splits"]:
        raise ConfigError(
            f"{doing}: found a data set without examples, expected some; label with other rules"
        )
    return numbers


def _card_of(path: Path, numbers: Mapping[str, Any], repo_id: str) -> bytes:
    """Return the card, whose code names the repository in place of the folder."""
    here, there = (json.dumps(each).removesuffix('"') for each in (numbers["dataset"], repo_id))
    card = (path / _CARD).read_text(encoding="utf-8").replace(here, there)
    if "load_dataset(" not in card:  # other loaders take files of this machine
        first = f"# First: hf download {repo_id} --repo-type dataset --local-dir {repo_id}"
        card = card.replace("```python\n", f"```python\n{first}\n", 1)
    return card.encode()


def _names_in(path: Path) -> Iterator[str]:
    return (each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _commits(path: Path, names: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
    """Yield the files of each commit in the order in which to make them, and if it is the last."""
    commit: list[str] = []
    num_bytes = 0
    for name in sorted(names, key=lambda name: (_place_of(name), name)):
        size_bytes = (path / name).stat().st_size
        if commit and (len(commit) == _COMMIT_FILES or num_bytes + size_bytes > _COMMIT_BYTES):
            yield commit, False
            commit, num_bytes = [], 0
        commit.append(name)
        num_bytes += size_bytes
    yield commit, True


def _place_of(name: str) -> int:
    if name == _CARD:
        return len(_IN_ORDER)
    return next(at for at, patterns in enumerate(_IN_ORDER) if _is_any(name, patterns))


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
