"""Uploads to the hub, by a stand-in for its client that notes what it is asked."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.storage.hub import upload_files


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


def test_the_real_client_takes_what_the_stand_in_is_asked(
    monkeypatch: pytest.MonkeyPatch, client: type[Client], tmp_path: Path
) -> None:
    import inspect

    monkeypatch.undo()
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    upload_files(tmp_path, ["a"], repo_id="x", commit_message="m", revision="dev", create_pr=True)
    for name, options in client.asked[1:]:
        inspect.signature(getattr(real, name)).bind(None, **options)


def test_a_refusal_is_a_checkpoint_error(client: type[Client], tmp_path: Path) -> None:
    client.failure = ValueError("You must be logged in\nand more")
    with pytest.raises(
        CheckpointError, match=r"a\.json .* to tiny: ValueError: You must be logged"
    ):
        upload_files(tmp_path, ["a.json"], repo_id="tiny")
