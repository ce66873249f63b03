"""Folders go to the Hub whole and private, by its client; what is neither is refused first."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.errors import ConfigError
from corpus_asr.storage.hub import push_folder

REAL_CLIENT = huggingface_hub.HfApi
TOKEN = "hf_s3cr3t"


class Client:
    """What is used of `huggingface_hub.HfApi`; the signatures are checked below."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    private = True
    failure: Exception | None = None

    def __init__(self, *, token: str) -> None:
        assert token == TOKEN
        type(self).asked = []

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/datasets/ada/{repo_id}")

    def repo_info(self, repo_id: str, **options: Any) -> Any:
        self.asked.append(("repo_info", {"repo_id": repo_id, **options}))
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("upload_folder", options))


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr(Client, "asked", [])
    return Client


@pytest.fixture
def training(tmp_path: Path) -> Path:
    folder = tmp_path / "training"
    folder.mkdir()
    for name in ("README.md", "labels.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_data_set_goes_up_private_without_notes_of_its_run(
    client: type[Client], training: Path
) -> None:
    found = CliRunner().invoke(cli.app, ["push", str(training), "podcasts"])
    assert found.output == "https://huggingface.co/datasets/ada/podcasts: private dataset\n"
    made, _, sent = (options for _, options in client.asked)
    assert made == {
        "repo_id": "podcasts", "repo_type": "dataset", "private": True, "exist_ok": True,
    }  # fmt: skip
    assert sent == {
        "repo_id": "ada/podcasts", "folder_path": str(training), "repo_type": "dataset",
        "ignore_patterns": ["_run/*", ".cache/*"], "commit_message": "Upload training",
        "delete_patterns": ["data/*", "audio/*", "selection/*"],
    }  # fmt: skip
    for name, options in client.asked:  # the real client takes what the stand-in is asked
        inspect.signature(getattr(REAL_CLIENT, name)).bind(None, **options)


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
    (training / "labels.json").touch()
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
