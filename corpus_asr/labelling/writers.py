"""Writers of dataset shards in each format: audio of examples, and lines that describe them.

Source: the Hub's layout of Parquet with audio (`data/SPLIT-*.parquet`, the feature `Audio`);
WebDataset's tar files, where names equal up to the first dot are one sample; NeMo's manifest of
`audio_filepath`, `duration` and `text`, with paths relative to the manifest's folder.
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
# Limit of the Hub's viewer for files with audio, since it reads whole row groups.
_GROUP_ROWS = 100
_DIGITS = 6


class ShardWriter(ABC):
    """Writes the examples of one shard to local files."""

    manifest: ClassVar = ""
    """File of a split to be joined from those of its shards in `MANIFESTS_FOLDER`, if any."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        self._folder, self._name, self._suffix = folder, name, audio_format
        self.files: dict[str, Path] = {}
        """Local files by their names in the dataset, in upload order."""

    @abstractmethod
    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Add an example and its audio."""

    @abstractmethod
    def close(self) -> None:
        """Finish the files."""


class HuggingFaceWriter(ShardWriter):
    """A Parquet file that contains the audio."""

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
    """Return the EXAMPLES schema with the metadata that marks the audio column for `datasets`."""
    features = {field.name: _feature(field) for field in EXAMPLES}
    metadata = {**EXAMPLES.metadata, b"huggingface": json.dumps({"info": {"features": features}})}
    return EXAMPLES.with_metadata(metadata)


def _feature(field: pa.Field) -> dict[str, Any]:
    if field.name == "audio":
        return {"_type": "Audio", "sampling_rate": SAMPLE_RATE_HZ}
    names = {pa.float64(): "float64", pa.float32(): "float32"}
    return {"_type": "Value", "dtype": names.get(field.type, str(field.type))}


class WebDatasetWriter(ShardWriter):
    """A tar file with three members per example: audio, text, and JSON of the other columns."""

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
    # No times and owners, so that files are reproducible.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


# Renamed columns of the source recording: `uri` and `start_s` would refer to the example's file.
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
        columns = {_OF_SOURCE.get(name, name): value for name, value in row.items()}
        del columns["duration_s"]
        self._lines.append(json.dumps(line | _rounded(columns), ensure_ascii=False))

    def close(self) -> None:
        # Uploaded last, after the files that its lines name.
        path = self.files[f"{MANIFESTS_FOLDER}/{self._name}.jsonl"] = self._folder / "jsonl"
        path.write_bytes("".join(f"{line}\n" for line in self._lines).encode("utf-8", "replace"))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    # Decimal values from before rounding to 32 bits: 0.1, not 0.10000000149011612.
    return {
        name: round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in row.items()
    }


WRITERS: dict[str, type[ShardWriter]] = {
    "huggingface": HuggingFaceWriter,
    "webdataset": WebDatasetWriter,
    "nemo": NemoWriter,
}
