"""The output folder of a training, at any address.

checkpoints/step-00000200/state.safetensors   trained weights and optimizer state
checkpoints/step-00000200/state.json          written last: the checkpoint is whole
model/                                        a checkpoint in Hugging Face layout
adapter/                                      LoRA: the adapters alone, in PEFT's layout
log.jsonl                                     one line per step or evaluation
"""

import functools
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
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    list_objects,
    read_bytes,
    remove,
    remove_folder,
    upload,
    write_atomic,
)
from corpus_asr.storage.stores.uri import join, normalise, redact_uri

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
        self.uri = normalise(uri)
        self._store = StoreOptions(endpoint_url=endpoint_url)
        self._keep = keep

    def latest(self) -> State | None:
        """Return the last whole checkpoint."""
        names = self._whole()
        if not names:
            return None
        folder = self._address(_FOLDER, names[-1])
        try:
            account = json.loads(self._read(join(folder, _SUMMARY_NAME)))
            tensors = load(self._read(join(folder, _TENSORS_NAME)))
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"resuming from {redact_uri(folder)}: found a damaged checkpoint ({error}); remove "
                "its folder to resume from the one before"
            ) from error
        return State(tensors, account)

    def save(self, state: State) -> None:
        """Write a checkpoint, then remove the oldest beyond those that stay."""
        folder = self._address(_FOLDER, f"step-{state.step:08}")
        with tempfile.TemporaryDirectory() as here:
            path = Path(here) / _TENSORS_NAME
            tensors = {name: t.detach().contiguous().cpu() for name, t in state.tensors.items()}
            save_file(tensors, path)
            upload(str(path), join(folder, _TENSORS_NAME), self._store)
        self._write(join(folder, _SUMMARY_NAME), json.dumps(state.account, indent=2))
        first_kept = self._whole()[-self._keep :][0]
        parts = (_SUMMARY_NAME, _TENSORS_NAME)  # in this order: half a checkpoint is none
        ended = {name for name, part in self._files() if name < first_kept and part in parts}
        for name in sorted(ended):
            for part in parts:
                remove(self._address(_FOLDER, name, part), self._store)
            remove_folder(self._address(_FOLDER, name))

    def save_folder(self, name: str, folder: Path, *, last: str) -> None:
        """Write the files of a local folder to the folder `name`."""
        for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
            upload(str(path), self._address(name, path.name), self._store)

    def log(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        address = self._address(LOG_NAME)
        if address not in self._uris(self.uri):
            return []
        return [json.loads(line) for line in self._read(address).decode().splitlines()]

    def write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the log; numbers that are none are null."""
        lines = (json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        self._write(self._address(LOG_NAME), "".join(lines))

    def _whole(self) -> list[str]:
        """Return the names of whole checkpoints, the oldest first."""
        return sorted(folder for folder, name in self._files() if name == _SUMMARY_NAME)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield folder and name of each file of a checkpoint."""
        for uri in self._uris(self._address(_FOLDER)):
            folder, name = uri.split("/")[-2:]
            yield folder, name

    def _uris(self, folder: str) -> list[str]:
        return [uri for uri, _, _ in list_objects(folder, self._store)]

    def _address(self, *names: str) -> str:
        return functools.reduce(join, names, self.uri)

    def _read(self, uri: str) -> bytes:
        return read_bytes(uri, self._store)

    def _write(self, uri: str, text: str) -> None:
        write_atomic(uri, text.encode(), self._store)


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it, which knows no infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
