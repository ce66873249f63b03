"""Checkpoints from folders, addresses and a hub."""

import inspect
import json
import os
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CheckpointError
from corpus_asr.storage import model_files
from corpus_asr.storage.model_files import (
    KNOWN_NAMES,
    SHORT_NAMES,
    fetch_checkpoint,
    fetch_onnx,
    full_name,
    hub_name,
    model_revision,
    probably_meant,
    upload_files,
)
from corpus_asr.storage.run_state.run_files import safe_config
from corpus_asr.storage.stores.filesystem import write_atomic
from tests.support.stores import Handler, serving

FILES = {
    "config.json": b'{"model_type": "whisper"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"older weights",
    "README.md": b"hello",
    "flax_model.msgpack": b"another framework's",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORPUS_ASR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def address(memory: str) -> str:
    for name, data in FILES.items():
        write_atomic(f"{memory}/tiny/{name}", data)
    return f"{memory}/tiny"


def local(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = local(tmp_path / "whisper tiny", FILES)
    assert fetch_checkpoint(str(folder)) == folder
    assert fetch_checkpoint(f"file://{folder}", revision="main", weights=False) == folder


def test_an_adapter_says_how_it_is_merged(tmp_path: Path) -> None:
    folder = local(tmp_path / "lora", {"adapter_config.json": b"{}"})
    with pytest.raises(CheckpointError, match="that is an adapter: merge it by merge_and_unload"):
        fetch_checkpoint(str(folder))


def test_a_folder_that_is_not_there_is_no_hub_name() -> None:
    for name in ("./nowhere", "/nowhere", "a/b/c", "bad name"):
        with pytest.raises(CheckpointError, match="no such folder"):
            fetch_checkpoint(name)


def test_an_address_is_copied_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_checkpoint(address + "/")
    assert names(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"

    def never(*_: object) -> None:
        raise AssertionError("copied again")

    monkeypatch.setattr(model_files, "_copy", never)
    assert fetch_checkpoint(address) == folder
    assert fetch_checkpoint(address, weights=False) == folder


def test_changed_weights_are_copied_anew(address: str) -> None:
    assert names(fetch_checkpoint(address, weights=False)) == {"config.json", "tokenizer.json"}
    before = fetch_checkpoint(address)
    write_atomic(f"{address}/model.safetensors", b"new weights")
    after = fetch_checkpoint(address)
    assert (after / "model.safetensors").read_bytes() == b"new weights"
    assert (before / "model.safetensors").read_bytes() == b"weights"  # others may be reading it


def test_a_copy_that_fails_leaves_nothing(
    address: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(model_files, "_copy", fail)
        with pytest.raises(CheckpointError, match="CORPUS_ASR_CACHE"):
            fetch_checkpoint(address)
    [home] = (cache / "checkpoints").iterdir()
    assert names(home) == {"lock"}
    assert (fetch_checkpoint(address) / "config.json").exists()


def test_processes_of_one_node_copy_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    copy = model_files._copy

    def slow(uri: str, path: Path) -> None:
        copied.append(uri)
        copy(uri, path)

    monkeypatch.setattr(model_files, "_copy", slow)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(fetch_checkpoint, [address] * 4))) == 1
    assert len(copied) == 3


def test_an_incomplete_address_says_what_is_missing(memory: str) -> None:
    weights = "model.safetensors, model.int8.safetensors or pytorch_model.bin"
    for name, missing in (("model.safetensors", "config.json"), ("config.json", weights)):
        write_atomic(f"{memory}/{name} only/{name}", b"{}")
        with pytest.raises(CheckpointError, match=f"found {name}, expected {missing}"):
            fetch_checkpoint(f"{memory}/{name} only")
    with pytest.raises(CheckpointError, match="found nothing"):
        fetch_checkpoint(f"{memory}/nothing")


def test_a_revision_names_what_decides_results(tmp_path: Path) -> None:
    one = model_revision(local(tmp_path / "one", FILES))
    assert len(one) == 16
    assert one == model_revision(local(tmp_path / "two", FILES | {"README.md": b"other"}))
    assert one == model_revision(local(tmp_path / "three", FILES | {"pytorch_model.bin": b"x"}))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        changed = local(tmp_path / name, FILES | {name: b"changed"})
        assert model_revision(changed) != one
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        model_revision(local(tmp_path / "empty", {"config.json": b"{}"}))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running hub; what it has may change at any time."""

    endpoint_url: str
    repositories: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {"lab/tiny": dict(FILES)}
    )
    gated: tuple[str, ...] = ("lab/gated",)
    requested: list[str] = field(default_factory=list)


class _HubHandler(Handler):
    """As much of the hub's interface as a download needs."""

    def answer(self) -> None:
        steps = urllib.parse.unquote(self.path.partition("?")[0]).strip("/").split("/")
        if steps[:2] == ["api", "models"]:
            self._describe("/".join(steps[2:4]), steps[4:])
        elif steps[2:3] == ["resolve"]:
            self._file("/".join(steps[:2]), "/".join(steps[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    def _describe(self, name: str, rest: list[str]) -> None:
        if name in self.server.state.gated:
            self._refuse(403, "GatedRepo")
        elif name not in self.server.state.repositories:
            self._refuse(404, "RepoNotFound")
        elif rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            files = self.server.state.repositories[name].items()
            tree = [{"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                    for path, data in files]  # fmt: skip
            self._send(json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": path} for path in self.server.state.repositories[name]]
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False}
            self._send(json.dumps(info).encode())

    def _file(self, name: str, path: str) -> None:
        data = self.server.state.repositories.get(name, {}).get(path)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        if self.command == "GET":
            self.server.state.requested.append(path)
        self._send(data, **{"ETag": f'"{path}-{len(data)}"', "X-Repo-Commit": COMMIT})

    def _send(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.answer_empty(status, X_Error_Code=code, X_Error_Message=code)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, with an empty local cache."""
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    # Clients before 1.0 keep the session that a test without a network made.
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()
    with serving(_HubHandler, Hub) as hub:

        def from_here(name: str, **options: Any) -> str:
            given = {"endpoint": hub.endpoint_url, "cache_dir": tmp_path / "hub"} | options
            return str(download(name, **given))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", from_here)
        yield hub


def test_a_hub_name_fetches_what_is_needed(hub: Hub) -> None:
    small = fetch_checkpoint("lab/tiny", weights=False)
    assert names(small) == {"config.json", "tokenizer.json"}
    whole = fetch_checkpoint("lab/tiny", revision="main")
    assert names(whole) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert sorted(hub.requested) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert len(model_revision(whole)) == 16


def test_a_short_name_fetches_the_hubs_checkpoint(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["openai/whisper-large-v3-turbo"] = dict(FILES)
    assert "model.safetensors" in names(fetch_checkpoint("turbo"))
    monkeypatch.chdir(tmp_path)
    here = local(tmp_path / "turbo", FILES)
    assert fetch_checkpoint("turbo") == Path("turbo").resolve() == here
    assert (full_name("turbo"), hub_name("turbo")) == ("turbo", "openai/whisper-large-v3-turbo")
    (here / "config.json").unlink()
    with pytest.raises(CheckpointError, match="write openai/whisper-large-v3-turbo for the hub's"):
        fetch_checkpoint("turbo")


def test_a_hub_folder_is_kept_where_asked_and_used_without_the_network(
    hub: Hub, tmp_path: Path
) -> None:
    hub.repositories["lab/tiny"] = {f"best/{name}": data for name, data in FILES.items()}
    cache = tmp_path / "elsewhere"
    there: dict[str, Any] = {"subfolder": "best", "cache_dir": cache, "token": False}
    found = fetch_checkpoint("lab/tiny", **there)
    assert names(found) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert found.is_relative_to(cache)
    num_requests = len(hub.requested)
    assert fetch_checkpoint("lab/tiny", local_files_only=True, **there) == found
    assert len(hub.requested) == num_requests
    fetch_checkpoint("lab/tiny", weights=False, force_download=True, **there)
    assert len(hub.requested) == num_requests + 2
    with pytest.raises(CheckpointError, match="found nothing, expected config"):
        fetch_checkpoint("lab/tiny", subfolder="worst")


def test_what_the_hub_refuses_or_lacks_is_explained(hub: Hub) -> None:
    hub.repositories["lab/text"] = {"README.md": b"x", "config.json": b"{}"}
    for name, revision, message in (
        ("lab/none", None, "no such folder or repository.*HF_TOKEN"),
        ("lab/gated", None, "gated"),
        ("lab/tiny", "v9", "at revision v9.*no such revision"),
        ("lab/text", None, r"found config\.json, expected model\.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fetch_checkpoint(name, revision=revision)


def test_without_network_a_copy_serves_and_none_is_explained(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fetch_checkpoint("lab/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    getattr(huggingface_hub.utils, "reset_sessions", int)()  # those before 1.0 remember it
    assert fetch_checkpoint("lab/tiny") == whole
    with pytest.raises(
        CheckpointError,
        match=r"no local copy, and the Hub must not be contacted \(HF_HUB_OFFLINE\)",
    ):
        fetch_checkpoint("lab/other")


def test_an_error_of_the_hub_shows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise errors.OfflineModeIsEnabled("https://user:s3cr3t@hub/x?token=s3cr3t")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint("lab/tiny")
    assert "s3cr3t" not in str(caught.value)
    assert os.environ["CORPUS_ASR_CACHE"] not in str(caught.value)


REAL_CLIENT = huggingface_hub.HfApi


class Client:
    """What `upload_files` uses of `huggingface_hub.HfApi`; the signatures are checked below."""

    asked: list[tuple[str, dict[str, Any]]]
    failure: Exception | None = None

    def __init__(self, *, token: str | bool | None) -> None:
        type(self).asked = [("token", {"token": token})]

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/ada/{repo_id}")

    def upload_folder(self, **options: Any) -> None:
        self.asked.append(("upload_folder", options))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    monkeypatch.setattr(Client, "failure", None)
    return Client


def test_files_go_up_in_one_commit(client: type[Client], tmp_path: Path) -> None:
    upload_files(tmp_path, ["a.json", "b.txt"], repo_id="tiny", token="t", private=True)
    token, (_, made), (_, sent) = client.asked
    assert token == ("token", {"token": "t"})
    assert made == {"repo_id": "tiny", "private": True, "exist_ok": True}
    assert sent == {
        "repo_id": "ada/tiny",
        "folder_path": tmp_path,
        "allow_patterns": ["a.json", "b.txt"],
        "revision": None,
        "commit_message": "Upload a.json, b.txt",
        "create_pr": False,
    }
    for name, options in client.asked[1:]:  # the real client takes what the stand-in is asked
        inspect.signature(getattr(REAL_CLIENT, name)).bind(None, **options)


def test_a_refusal_is_a_checkpoint_error(client: type[Client], tmp_path: Path) -> None:
    client.failure = ValueError("You must be logged in\nand more")
    with pytest.raises(
        CheckpointError, match=r"a\.json .* to tiny: ValueError: You must be logged"
    ):
        upload_files(tmp_path, ["a.json"], repo_id="tiny")


def test_short_names_are_the_hubs_and_other_names_stay() -> None:
    for short, full in {
        "small.en": "openai/whisper-small.en",
        "distil-large-v3.5": "distil-whisper/distil-large-v3.5",
        "large": "openai/whisper-large-v3",
        "large-v1": "openai/whisper-large",
        "turbo": "openai/whisper-large-v3-turbo",
        "whisper-small": "openai/whisper-small",
        "whisper-turbo": "openai/whisper-large-v3-turbo",
    }.items():
        assert full_name(short) == full, short
    for unchanged in ("whisper-tiny.en", "openai/whisper-tiny.en", "lab/small", "s3://models/base"):
        assert full_name(unchanged) == unchanged
    assert set(SHORT_NAMES.values()) <= set(KNOWN_NAMES)


def test_what_a_run_notes_has_the_full_names_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder has such a name
    model = {"checkpoint": "small", "by_language": {"de": "turbo", "fr": "lab/french"}}
    config = RunConfig.model_validate(
        {"source": {"uri": "a"}, "model": model, "output": {"uri": "b"}}
    )
    noted = safe_config(config)["model"]
    assert noted["checkpoint"] == "openai/whisper-small"
    assert noted["by_language"] == {"de": "openai/whisper-large-v3-turbo", "fr": "lab/french"}
    unnamed = RunConfig.model_validate({"source": {"uri": "a"}, "output": {"uri": "b"}})
    assert safe_config(unnamed)["model"]["checkpoint"] == "whisper-tiny.en"


def test_the_name_that_was_meant_is_found_and_known_ones_are_not_corrected() -> None:
    for typed, meant in {
        "openai/whisper-smal": "openai/whisper-small",
        "smal": "small",
        "large-v4": "large-v3",
        "Turbo": "turbo",
        "whisper_tiny": "whisper-tiny",
        "whisper-tiny-en": "whisper-tiny.en",
        "distil-larg-v3": "distil-large-v3",
        "facebook/s2t-small": "facebook/s2t-small-librispeech-asr",
        "s2t-small-librispeech-asr": "facebook/s2t-small-librispeech-asr",
        "bert-base-uncased": None,
        "lab/german-telephone": None,
    }.items():
        assert probably_meant(typed) == meant, typed
    known = (*KNOWN_NAMES, *SHORT_NAMES, "whisper-small", "whisper-tiny.en")
    assert {probably_meant(name) for name in known} == {None}


def test_an_onnx_network_is_found_by_file_folder_address_and_hub_name(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("campplus", "segmentation-3.0"):
        assert fetch_onnx(name).stat().st_size < 8_000_000
    folder = local(tmp_path / "voices", {"a.onnx": b"a", "readme.md": b""})
    assert fetch_onnx(str(folder)) == fetch_onnx(str(folder / "a.onnx")) == folder / "a.onnx"
    write_atomic(f"{memory}/voices/b.onnx", b"b")
    assert fetch_onnx(f"{memory}/voices/b.onnx").read_bytes() == b"b"
    asked = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch_onnx("lab/voices") == fetch_onnx("lab/voices/a.onnx") == folder / "a.onnx"
    assert asked == [("lab/voices", ["*.onnx"]), ("lab/voices", ["a.onnx"])]
    (folder / "b.onnx").write_bytes(b"b")
    for model, message in (
        (str(folder), r"found a\.onnx, b\.onnx, expected one \.onnx file; name the file in"),
        (str(tmp_path), r"found none, expected one \.onnx file"),
        (str(tmp_path / "none.onnx"), "found no such file"),
        (f"{memory}/voices/none.onnx", "found no such object"),
        (f"{memory}/voices", "found no such object"),
        ("speakers", "found no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fetch_onnx(model)
