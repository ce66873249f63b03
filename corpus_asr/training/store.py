"""The output folder of a training, at any address.

checkpoints/step-00000200/state.safetensors   trained weights and optimizer state
checkpoints/step-00000200/state.json          written last: the checkpoint is whole
model/                                        a checkpoint in Hugging Face layout
adapter/                                      LoRA: the adapters alone, in PEFT's layout
log.jsonl                                     one line per step or evaluation
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import read_bytes, remove_folder, upload
from corpus_asr.storage.stores.uri import redact_uri

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"
LOG_NAME = "log.jsonl"
_FOLDER = "checkpoints"
_TENSORS_NAME, _SUMMARY_NAME = "state.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands."""

    tensors: dict[str, Tensor]
    account: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.account["step"])


class TrainingStore:
    """The output folder of one training."""

    def __init__(self, uri: str, *, endpoint_url: str | None, keep: int) -> None:
        self._store = OutputStore(uri, endpoint_url=endpoint_url)
        self.uri = self._store.uri
        self._keep = keep

    def latest(self) -> State | None:
        """Return the last whole checkpoint."""
        names = self._whole()
        if not names:
            return None
        folder = f"{_FOLDER}/{names[-1]}"
        try:
            account = json.loads(self._read(f"{folder}/{_SUMMARY_NAME}"))
            tensors = load(self._read(f"{folder}/{_TENSORS_NAME}"))
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"resuming from {redact_uri(self._store.address(folder))}: found a damaged "
                f"checkpoint ({error}); remove its folder to resume from the one before"
            ) from error
        return State(tensors, account)

    def save(self, state: State) -> None:
        """Write a checkpoint, then remove the oldest beyond those that stay."""
        folder = f"{_FOLDER}/step-{state.step:08}"
        with tempfile.TemporaryDirectory() as here:
            path = Path(here) / _TENSORS_NAME
            tensors = {name: t.detach().contiguous().cpu() for name, t in state.tensors.items()}
            save_file(tensors, path)
            self._upload(path, f"{folder}/{_TENSORS_NAME}")
        self._store.write_json(f"{folder}/{_SUMMARY_NAME}", state.account)
        first_kept = self._whole()[-self._keep :][0]
        parts = (_SUMMARY_NAME, _TENSORS_NAME)  # in this order: half a checkpoint is none
        ended = {name for name, part in self._files() if name < first_kept and part in parts}
        for name in sorted(ended):
            for part in parts:
                self._store.remove(f"{_FOLDER}/{name}/{part}")
            remove_folder(self._store.address(f"{_FOLDER}/{name}"))

    def save_folder(self, name: str, folder: Path, *, last: str) -> None:
        """Write the files of a local folder to the folder `name`."""
        # `last` marks the folder as whole for whoever loads it.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
            self._upload(path, f"{name}/{path.name}")

    def log(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        if not self._store.exists(LOG_NAME):
            return []
        return [json.loads(line) for line in self._read(LOG_NAME).decode().splitlines()]

    def write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the log; numbers that are none are null."""
        lines = (json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        self._store.write_bytes(LOG_NAME, "".join(lines).encode())

    def _whole(self) -> list[str]:
        """Return the names of whole checkpoints, the oldest first."""
        return sorted(folder for folder, name in self._files() if name == _SUMMARY_NAME)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield folder and name of each file of a checkpoint."""
        for path in self._store.all_names(_FOLDER):
            folder, name = path.split("/")[-2:]
            yield folder, name

    def _read(self, name: str) -> bytes:
        return read_bytes(self._store.address(name), self._store.options)

    def _upload(self, path: Path, name: str) -> None:
        upload(str(path), self._store.address(name), self._store.options)


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it, which knows no infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
