"""How a shard looks on disk: for Hugging Face `datasets`, for WebDataset, for NeMo.

In: examples with their audio, one after the other. Out: local files, and where they belong in the
data set. Nothing of a shard is held in memory but a group of rows. Knows no store.

Source: the Hub's layout of Parquet with audio (`data/SPLIT-*.parquet`, the feature `Audio`);
WebDataset's tar files, where names equal up to the first dot are one sample; NeMo's manifest of
`audio_filepath`, `duration` and `text`, where relative paths count from the manifest's folder.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from corpus_asr.schemas import EXAMPLES
from corpus_asr.storage.run_state.tables import ParquetFile
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

DATA_FOLDER, AUDIO_FOLDER, MANIFESTS_FOLDER = "data", "audio", "_run/manifests"
_GROUP_BYTES = 32 * MEBIBYTE
_DIGITS = 6
_GROUP_ROWS = 100  # what the Hub's viewer asks of files with audio


class ShardWriter(Protocol):
    """Takes the examples of one shard; `files` are what to upload when it is closed."""

    files: dict[str, Path]
    """Local files by their names in the data set."""

    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Take an example and its audio."""

    def close(self) -> None:
        """Complete the files."""


class HuggingFaceWriter:
    """A Parquet file with audio inside."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        path = folder / f"{name}.parquet"
        self.files = {f"{DATA_FOLDER}/{name}.parquet": path}
        self._suffix = audio_format
        self._file = ParquetFile(str(path), huggingface_schema())
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Take an example and its audio."""
        audio = {"bytes": data, "path": f"{row['example_id']}.{self._suffix}"}
        self._waiting.append(row | {"audio": audio})
        self._waiting_bytes += len(data)
        if len(self._waiting) == _GROUP_ROWS or self._waiting_bytes > _GROUP_BYTES:
            self._write()

    def close(self) -> None:
        """Complete the file."""
        if self._waiting:
            self._write()
        self._file.close()

    def _write(self) -> None:
        self._file.append(pa.Table.from_pylist(self._waiting, schema=huggingface_schema()))
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


class WebDatasetWriter:
    """A tar file: of each example the audio, its text, and a JSON object with all the rest."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        path = folder / f"{name}.tar"
        self.files = {f"{DATA_FOLDER}/{name}.tar": path}
        self._suffix = audio_format
        self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Take an example and its audio."""
        told = json.dumps(_rounded(row), ensure_ascii=False).encode("utf-8", "replace")
        text = row["text"].encode("utf-8", "replace")
        for suffix, content in ((self._suffix, data), ("txt", text), ("json", told)):
            # No times and owners: the same examples are the same bytes.
            member = tarfile.TarInfo(f"{row['example_id']}.{suffix}")
            member.size = len(content)
            self._file.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Complete the file."""
        self._file.close()


class NemoWriter:
    """An audio file of each example, and the lines of the manifest."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        self._folder = folder
        self._name = name
        self._suffix = audio_format
        manifest = folder / f"{name}.jsonl"
        self._manifest = manifest.open("w", encoding="utf-8", errors="replace")
        # The manifest is uploaded last: what it names is there.
        self.files: dict[str, Path] = {}
        self._last = (f"{MANIFESTS_FOLDER}/{name}.jsonl", manifest)

    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Take an example and its audio."""
        base = f"{row['example_id']}.{self._suffix}"
        address = f"{AUDIO_FOLDER}/{self._name}/{base}"
        path = self._folder / base
        path.write_bytes(data)
        self.files[address] = path
        line = {
            "audio_filepath": address,
            "duration": row["duration_s"],
            "text": row["text"],
            "lang": row["language"],
        }
        self._manifest.write(json.dumps(_rounded(line | row), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Complete the files."""
        self._manifest.close()
        self.files[self._last[0]] = self._last[1]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Show numbers as they were before they had 32 bits."""
    return {
        name: round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in row.items()
    }


WRITERS: dict[str, type[HuggingFaceWriter | WebDatasetWriter | NemoWriter]] = {
    "huggingface": HuggingFaceWriter,
    "webdataset": WebDatasetWriter,
    "nemo": NemoWriter,
}
