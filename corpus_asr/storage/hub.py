"""Files onto the Hugging Face hub.

In: files of a folder and the name of a repository. Out: one commit there. Knows nothing of what is
in the files.
"""

from collections.abc import Sequence
from pathlib import Path

from corpus_asr.errors import CheckpointError
from corpus_asr.storage.stores.uri import without_secrets


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
    """Put files into a repository in one commit; the repository is made if needed.

    Args:
        folder: where the files are.
        names: relative to the folder, and in the repository.
        repo_id: `name` or `owner/name`.
        token: None for this machine's login.
        private: of a repository that is made; None for the owner's default.
        revision: branch; None for the main one.
        commit_message: None names the files.
        create_pr: propose the commit instead of making it.

    Raises:
        CheckpointError: the hub does not take it.
    """
    # Imported here: what never uploads needs none of it.
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        there = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=there,
            folder_path=folder,
            allow_patterns=list(names),
            revision=revision,
            commit_message=commit_message or f"Upload {', '.join(names)}",
            create_pr=create_pr,
        )
    except Exception as error:
        first_line = next(iter(without_secrets(str(error)).strip().splitlines()), "")
        raise CheckpointError(
            f"uploading {', '.join(names)} of {folder} to {repo_id}: {type(error).__name__}: "
            f"{first_line}; check the repository's name, HF_TOKEN's rights and the network"
        ) from error
