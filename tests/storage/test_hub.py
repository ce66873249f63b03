"""Folders go to the Hub whole and private, by its client; what is neither is refused first."""

import base64
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.errors import ConfigError
from corpus_asr.storage import hub
from corpus_asr.storage.hub import push_folder

REAL_CLIENT = huggingface_hub.HfApi
TOKEN = "hf_s3cr3t"
NUMBERS = json.dumps({"dataset": "/srv/training", "splits": {"train": {"examples": 1}}})


class Client:
    """What is used of `huggingface_hub.HfApi`; the signatures are checked below."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    private = True
    failure: Exception | None = None
    fails_at: int | None = None
    files: ClassVar[dict[str, bytes]] = {}
    trees: ClassVar[list[dict[str, bytes]]] = []
    """After each commit."""

    def __init__(self, *, token: str) -> None:
        assert token == TOKEN
        type(self).asked = []

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/datasets/ada/{repo_id}")

    def repo_info(self, repo_id: str, **options: Any) -> Any:
        self.asked.append(("repo_info", {"repo_id": repo_id, **options}))
        return SimpleNamespace(private=self.private)

    def list_repo_files(self, repo_id: str, **options: Any) -> list[str]:
        return [*self.files]

    def create_commit(self, repo_id: str, operations: list[Any], **options: Any) -> None:
        if self.failure is not None and self.fails_at in (None, len(self.trees)):
            raise self.failure
        self.asked.append(("create_commit", {"repo_id": repo_id, **options}))
        added = {}
        for each in operations:
            if isinstance(each, huggingface_hub.CommitOperationAdd):
                with each.as_file() as file:
                    added[each.path_in_repo] = file.read()
        # The Hub refuses to delete what is not there.
        left = dict(self.files)
        for each in operations:
            if isinstance(each, huggingface_hub.CommitOperationDelete):
                del left[each.path_in_repo]
        type(self).files = left | added
        self.trees.append(self.files)


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    for name, value in (("asked", []), ("files", {}), ("trees", [])):
        monkeypatch.setattr(Client, name, value)
    return Client


@pytest.fixture
def training(tmp_path: Path) -> Path:
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "README.md").write_text("{}")
    (folder / "labels.json").write_text(NUMBERS)
    return folder


def test_a_data_set_goes_up_private_without_notes_of_its_run(
    client: type[Client], training: Path
) -> None:
    for name in ("selection", "_run"):
        (training / name).mkdir()
        (training / name / "0.parquet").write_text(name[0])
    found = CliRunner().invoke(cli.app, ["push", str(training), "podcasts"])
    assert found.output == "https://huggingface.co/datasets/ada/podcasts: private dataset\n"
    (made, _, sent) = (options for _, options in client.asked)
    assert made == {
        "repo_id": "podcasts", "repo_type": "dataset", "private": True, "exist_ok": True,
    }  # fmt: skip
    assert sent == {
        "repo_id": "ada/podcasts", "repo_type": "dataset", "commit_message": "Upload training",
    }  # fmt: skip
    assert client.files == {
        "README.md": b"{}", "labels.json": NUMBERS.encode(), "selection/0.parquet": b"s",
    }  # fmt: skip
    options = {name: options for name, options in client.asked} | {"list_repo_files": sent}
    options["create_commit"]["operations"] = []
    options["list_repo_files"] = {"repo_id": "ada/podcasts", "repo_type": "dataset"}
    for name, values in options.items():  # the real client takes what the stand-in is asked
        inspect.signature(getattr(REAL_CLIENT, name)).bind(None, **values)


def test_the_card_names_the_repository_in_place_of_the_folder(
    client: type[Client], training: Path
) -> None:
    (training / "README.md").write_text('load_dataset("/srv/training") | `/srv/training` |')
    push_folder(str(training), "podcasts")
    assert client.files["README.md"] == b'load_dataset("ada/podcasts") | `/srv/training` |'
    (training / "README.md").write_text('```python\nf("/srv/training/data/train/cuts.jsonl.gz")')
    push_folder(str(training), "podcasts")
    first = "# First: hf download ada/podcasts --repo-type dataset --local-dir ada/podcasts"
    loads = 'f("ada/podcasts/data/train/cuts.jsonl.gz")'
    assert client.files["README.md"].decode() == f"```python\n{first}\n{loads}"


def write_set(folder: Path, *, shards: int, content: str) -> None:
    """Write a data set of NeMo's layout with two audio files in each shard."""
    names = [f"audio/train-{at:05}/{clip}.flac" for at in range(shards) for clip in "ab"]
    for name in (*names, "selection/00000.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content} {name}")
    for name in ("train_manifest.json", "README.md"):
        (folder / name).write_text("\n".join([content, *names]))
    (folder / "labels.json").write_text(NUMBERS)


def named(tree: dict[str, bytes], name: str) -> list[str]:
    return tree[name].decode().splitlines()[1:] if name in tree else []


@pytest.mark.parametrize("fails_at", [None, *range(4)])
def test_no_commit_leaves_a_card_or_a_list_that_names_what_is_not_there(
    client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int | None
) -> None:
    monkeypatch.setattr(hub, "_COMMIT_FILES", 3)
    for shards, content in ((6, "first"), (4, "second")):
        folder = tmp_path / content
        write_set(folder, shards=shards, content=content)
        earlier = client.files
        monkeypatch.setattr(client, "trees", [])
        if fails_at is not None:
            monkeypatch.setattr(client, "failure", OSError("reset"))
            monkeypatch.setattr(client, "fails_at", fails_at)
            with pytest.raises(ConfigError, match=r"reset; check .* the same command tries again"):
                push_folder(str(folder), "podcasts")
            monkeypatch.setattr(client, "failure", None)
        push_folder(str(folder), "podcasts")
        for before, after in pairwise([earlier, *client.trees]):
            assert sum(after[name] != before.get(name) for name in after) <= 3
        for tree in client.trees:
            for name in ("README.md", "labels.json", "train_manifest.json"):
                assert {*named(tree, name)} <= tree.keys()
        assert "README.md" not in client.trees[-2] or shards == 4
        assert client.files == {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()
        }  # fmt: skip


def test_commits_are_bounded_by_bytes_and_the_small_ones_are_one(
    client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 4):
        (tmp_path / f"model-0000{at}-of-00003.safetensors").write_bytes(bytes(10))
    for name in ("config.json", "model.safetensors.index.json", "README.md"):
        (tmp_path / name).write_bytes(b"{}")
    push_folder(str(tmp_path), "tiny")
    assert len(client.trees) == 1
    monkeypatch.setattr(client, "files", {"model.safetensors": b"", "training_args.bin": b""})
    monkeypatch.setattr(client, "trees", [])
    monkeypatch.setattr(hub, "_COMMIT_BYTES", 25)
    push_folder(str(tmp_path), "tiny")
    first, last = client.trees
    assert [name for name in first if name.startswith("model-")] == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
    ]  # fmt: skip
    assert "model.safetensors" in first
    assert {*last} == {path.name for path in tmp_path.iterdir()}


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers to its client, with all files in git."""

    files: ClassVar[dict[str, bytes]] = {}
    sent: ClassVar[list[list[str]]] = []
    """The files of each commit."""
    commits_left = 0

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"http://{self.headers['host']}/datasets/ada/podcasts"})
        elif "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(content)["files"]]
            self.answer({"files": [self.state_of(name) for name in names]})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in content.splitlines()])
        else:
            self.answer({})

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": name, "oid": "", "size": 1}
                         for name in self.files])  # fmt: skip
        else:
            self.answer({"id": "ada/podcasts", "private": True, "sha": "0" * 40})

    def state_of(self, name: str) -> dict[str, Any]:
        state = {"path": name, "uploadMode": "regular", "shouldIgnore": False}
        if name in self.files:
            return state | {"oid": git_hash(self.files[name])}
        return state

    def commit(self, lines: list[dict[str, Any]]) -> None:
        if not self.commits_left:
            self.answer({"error": "no more"}, status=400)
            return
        type(self).commits_left -= 1
        added = {each["value"]["path"]: base64.b64decode(each["value"]["content"])
                 for each in lines if each["key"] == "file"}  # fmt: skip
        gone = {each["value"]["path"] for each in lines if each["key"] == "deletedFile"}
        assert gone <= self.files.keys()
        left = {name: data for name, data in self.files.items() if name not in gone}
        type(self).files = left | added
        self.sent.append([*added])
        url = "https://huggingface.co/datasets/ada/podcasts/commit/1"
        self.answer({"commitUrl": url, "commitOid": "1", "pullRequestUrl": None})

    def answer(self, value: Any, *, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


def git_hash(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_interrupted_push_sends_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, shards=4, content="first")
    monkeypatch.setattr(Hub, "files", {"audio/train-00009/a.flac": b"of an earlier push"})
    monkeypatch.setattr(Hub, "sent", [])
    monkeypatch.setattr(Hub, "commits_left", 2)
    monkeypatch.setattr(hub, "_COMMIT_FILES", 3)
    with serving() as url:
        monkeypatch.setattr(huggingface_hub, "HfApi", partial(REAL_CLIENT, endpoint=url))
        with pytest.raises(ConfigError, match="the same command tries again"):
            push_folder(str(tmp_path), "ada/podcasts")
        assert "README.md" not in Hub.files
        monkeypatch.setattr(Hub, "commits_left", 9)
        push_folder(str(tmp_path), "ada/podcasts")
    sent = [name for names in Hub.sent for name in names]
    assert len(sent) == len({*sent})
    assert [len(names) for names in Hub.sent] == [3, 3, 3, 3]
    assert Hub.files == {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*") if path.is_file()
    }  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model.safetensors"), ("config.json", "model.safetensors.index.json"),
        ("adapter_config.json", "adapter_model.safetensors"),
    ],
)  # fmt: skip
def test_checkpoints_and_adapters_are_models(
    client: type[Client], tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    client.private = False
    assert push_folder(str(tmp_path), "tiny", public=True).kind == "model"
    assert client.asked[0][1]["private"] is False


def test_what_is_neither_is_refused_before_the_hub_is_asked(
    client: type[Client], training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (training / "labels.json").unlink()  # of a data set that is not complete
    better = training / "better"
    (better / "model").mkdir(parents=True)
    (better / "model" / "config.json").touch()
    for folder, words in (
        (str(training), r"found README.md, better, expected a complete data set"),
        (str(training / "none"), "found no folder"),
        (str(better), r"found model, .*better/model looks like one; correct the folder"),
        (str(better / "model"), r"found config.json, expected .*config.json and weights"),
        ("s3://key:pass@bucket/set", r"pushing s3://[^p]*bucket/set .*found an address"),
    ):
        with pytest.raises(ConfigError, match=words):
            push_folder(folder, "ada/podcasts")
    (training / "labels.json").write_text(NUMBERS.replace('{"train": {"examples": 1}}', "{}"))
    with pytest.raises(ConfigError, match="found a data set without examples"):
        push_folder(str(training), "ada/podcasts")
    (training / "labels.json").write_text(NUMBERS)
    for name in ("a/b/c", "-x", "ada/../b", "", "ada/a b"):
        with pytest.raises(ConfigError, match=r"found no name of a repository, expected OWNER"):
            push_folder(str(training), name)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"found no token of the Hub.*hf auth login.*HF_TOKEN"):
        push_folder(str(training), "ada/podcasts")
    assert client.asked == []


def test_a_public_repository_gets_nothing_unasked_and_no_error_tells_the_token(
    client: type[Client], training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "private", False)
    with pytest.raises(ConfigError, match="found a public repository, expected a private one"):
        push_folder(str(training), "podcasts")
    assert [name for name, _ in client.asked] == ["create_repo", "repo_info"]
    monkeypatch.setattr(client, "failure", OSError(f"403 Forbidden: {TOKEN} may not\nmore"))
    with pytest.raises(
        ConfigError, match=r"OSError: 403 Forbidden: \*\*\* may not; check"
    ) as caught:
        push_folder(str(training), "podcasts", public=True)
    assert TOKEN not in str(caught.value)
