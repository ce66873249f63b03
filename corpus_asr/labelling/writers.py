"""Shards of a dataset in each format: the audio of examples, and the lines that describe them.

Source: the Hub's layout of Parquet with audio (`data/SPLIT-*.parquet`, the feature `Audio`);
WebDataset's tar files, where names equal up to the first dot are one sample; NeMo's manifest of
`audio_filepath`, `duration` and `text`, where relative paths count from the manifest's folder.
"""

import io
import json
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from corpus_asr.schemas import EXAMPLES
from corpus_asr.storage.parquet import parquet_writer
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

DATA_FOLDER, AUDIO_FOLDER, MANIFESTS_FOLDER = "data", "audio", "_run/manifests"
_GROUP_BYTES = 32 * MEBIBYTE
# What the Hub's viewer asks of files with audio: it reads whole groups of rows.
_GROUP_ROWS = 100
_DIGITS = 6


class ShardWriter(ABC):
    """Writes the examples of one shard to local files."""

    manifest: ClassVar = ""
    """The file of a split that is joined of those of its shards in `MANIFESTS_FOLDER`, if any."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        self._folder, self._name, self._suffix = folder, name, audio_format
        self.files: dict[str, Path] = {}
        """Local files by their names in the dataset, in the order in which to upload them."""

    @abstractmethod
    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Take an example and its audio."""

    @abstractmethod
    def close(self) -> None:
        """Complete the files."""


class HuggingFaceWriter(ShardWriter):
    """A Parquet file with audio inside."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        path = self.files[f"{DATA_FOLDER}/{name}.parquet"] = folder / f"{name}.parquet"
        self._file = parquet_writer(str(path), huggingface_schema())
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, row: dict[str, Any], data: bytes) -> None:
        audio = {"bytes": data, "path": f"{row['example_id']}.{self._suffix}"}
        self._waiting.append(row | {"audio": audio})
        self._waiting_bytes += len(data)
        if len(self._waiting) == _GROUP_ROWS or self._waiting_bytes > _GROUP_BYTES:
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._file.close()

    def _write(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._waiting, schema=huggingface_schema()))
        self._waiting, self._waiting_bytes = [], 0


def huggingface_schema() -> pa.Schema:
    """Return the EXAMPLES table with what tells `datasets` that a column is audio."""
    features = {field.name: _feature(field) for field in EXAMPLES}
    metadata = {**EXAMPLES.metadata, b"huggingface": json.dumps({"info": {"features": features}})}
    return EXAMPLES.with_metadata(metadata)


def _feature(field: pa.Field) -> dict[str, Any]:
    if field.name == "audio":
        return {"_type": "Audio", "sampling_rate": SAMPLE_RATE_HZ}
    names = {pa.float64(): "float64", pa.float32(): "float32"}
    return {"_type": "Value", "dtype": names.get(field.type, str(field.type))}


class WebDatasetWriter(ShardWriter):
    """A tar file: of each example the audio, its text, and a JSON object with all the rest."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        path = self.files[f"{DATA_FOLDER}/{name}.tar"] = folder / f"{name}.tar"
        self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, row: dict[str, Any], data: bytes) -> None:
        values = json.dumps(_rounded(row), ensure_ascii=False).encode("utf-8", "replace")
        text = row["text"].encode("utf-8", "replace")
        for suffix, content in ((self._suffix, data), ("txt", text), ("json", values)):
            _add_member(self._file, f"{row['example_id']}.{suffix}", content)

    def close(self) -> None:
        self._file.close()


def _add_member(file: tarfile.TarFile, name: str, content: bytes) -> None:
    # No times and owners: the same examples are the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


# Of the recording that an example was cut from: as `uri` and `start_s` they would be of its file.
_OF_SOURCE = {name: f"recording_{name}" for name in ("uri", "start_s", "end_s")}


class NemoWriter(ShardWriter):
    """Audio files, and lines of the manifest."""

    manifest: ClassVar = "{split}_manifest.json"

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        self._lines: list[str] = []

    def add(self, row: dict[str, Any], data: bytes) -> None:
        base = f"{row['example_id']}.{self._suffix}"
        address = f"{AUDIO_FOLDER}/{self._name}/{base}"
        path = self.files[address] = self._folder / base
        path.write_bytes(data)
        line = {
            "audio_filepath": address,
            "duration": round(row["duration_s"], _DIGITS),
            "text": row["text"],
            "lang": row["language"],
        }
        others = {_OF_SOURCE.get(name, name): value for name, value in row.items()}
        del others["duration_s"]
        self._lines.append(json.dumps(line | _rounded(others), ensure_ascii=False))

    def close(self) -> None:
        # Uploaded last: what its lines name is there.
        path = self.files[f"{MANIFESTS_FOLDER}/{self._name}.jsonl"] = self._folder / "jsonl"
        path.write_bytes("".join(f"{line}\n" for line in self._lines).encode("utf-8", "replace"))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    # As they were before they had 32 bits: 0.1, not 0.10000000149011612.
    return {
        name: round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in row.items()
    }


WRITERS: dict[str, type[ShardWriter]] = {
    "huggingface": HuggingFaceWriter,
    "webdataset": WebDatasetWriter,
    "nemo": NemoWriter,
}
