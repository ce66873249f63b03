"""Shards of a dataset in each format: the audio of examples, and the lines that describe them.

Source: the Hub's layout of Parquet with audio (`data/SPLIT-*.parquet`, the feature `Audio`);
WebDataset's tar files, where names equal up to the first dot are one sample; NeMo's manifest of
`audio_filepath`, `duration` and `text`, where relative paths count from the manifest's folder;
lhotse, documentation of `MonoCut` and of the layout Shar; Kaldi, "Data preparation" (`LC_ALL=C`
order, speakers as prefixes of utterances); ESPnet, "Kaldi-style data directory".
"""

import gzip
import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pyarrow as pa

from corpus_asr.formats.pieces import one_line
from corpus_asr.schemas import EXAMPLES
from corpus_asr.storage.parquet import parquet_writer
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

DATA_FOLDER, AUDIO_FOLDER, MANIFESTS_FOLDER = "data", "audio", "_run/manifests"
_GROUP_BYTES = 32 * MEBIBYTE
# What the Hub's viewer asks of files with audio: it reads whole groups of rows.
_GROUP_ROWS = 100
_DIGITS = 6

Arrange = Callable[[Iterable[bytes]], Iterable[bytes]]


class ShardWriter(ABC):
    """Writes the examples of one shard to local files."""

    joined: ClassVar[Mapping[str, str]] = {}
    """By suffix of the pieces that each shard has: the file of a split that is made of them."""
    arranged: ClassVar[Mapping[str, Arrange]] = {}
    """By such a suffix: what a file is made of its lines, which come sorted by their bytes."""

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


class _ClipsWriter(ShardWriter):
    """An audio file of each example, and lines of the files that are joined at the end."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        self._lines: dict[str, list[str]] = {suffix: [] for suffix in self.joined}

    def close(self) -> None:
        # Uploaded last: what they name is there.
        for suffix, lines in self._lines.items():
            path = self.files[f"{MANIFESTS_FOLDER}/{self._name}.{suffix}"] = self._folder / suffix
            path.write_bytes(_joined_lines(lines, zipped=suffix.endswith(".gz")))

    def _save(self, row: dict[str, Any], data: bytes) -> str:
        base = f"{row['example_id']}.{self._suffix}"
        address = f"{AUDIO_FOLDER}/{self._name}/{base}"
        path = self.files[address] = self._folder / base
        path.write_bytes(data)
        return address


def _joined_lines(lines: Iterable[str], *, zipped: bool) -> bytes:
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    return gzip.compress(content, mtime=0) if zipped else content


# Of the recording that an example was cut from: as `uri` and `start_s` they would be of its file.
_OF_SOURCE = {name: f"recording_{name}" for name in ("uri", "start_s", "end_s")}


def _others(row: dict[str, Any], *without: str) -> dict[str, Any]:
    others = {_OF_SOURCE.get(name, name): value for name, value in row.items()}
    for name in without:
        others.pop(name)
    return _rounded(others)


class NemoWriter(_ClipsWriter):
    """Audio files, and lines of the manifest."""

    joined: ClassVar = {"jsonl": "{split}_manifest.json"}

    def add(self, row: dict[str, Any], data: bytes) -> None:
        line = {
            "audio_filepath": self._save(row, data),
            "duration": round(row["duration_s"], _DIGITS),
            "text": row["text"],
            "lang": row["language"],
        }
        self._lines["jsonl"].append(_json(line | _others(row, "duration_s")))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    # As they were before they had 32 bits: 0.1, not 0.10000000149011612.
    return {
        name: round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in row.items()
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def lhotse_cut(row: dict[str, Any], source: Mapping[str, str]) -> dict[str, Any]:
    """Return an example as a `MonoCut`: all of a recording of its own, with one supervision."""
    name = row["example_id"]
    # To the sample: what is rounded more would end before its audio, or after it.
    num_samples = round(row["duration_s"] * SAMPLE_RATE_HZ)
    span = {"start": 0.0, "duration": num_samples / SAMPLE_RATE_HZ, "channel": 0}
    known = {key: row[key] for key in ("language", "speaker") if row[key] is not None}
    others = _others(row, "example_id", "text", "duration_s", "language", "speaker")
    custom = {key: value for key, value in others.items() if value is not None}
    said = {"id": name, "recording_id": name, **span, "text": row["text"], **known}
    recording = {
        "id": name,
        "sources": [{**source, "channels": [0]}],
        "sampling_rate": SAMPLE_RATE_HZ,
        "num_samples": num_samples,
        "duration": span["duration"],
        "channel_ids": [0],
    }
    return {
        "id": name, **span, "supervisions": [said | {"custom": custom}], "recording": recording,
        "type": "MonoCut",
    }  # fmt: skip


class LhotseWriter(_ClipsWriter):
    """Audio files, and lines of lhotse's manifests."""

    joined: ClassVar = {
        f"{kind}.jsonl.gz": f"{DATA_FOLDER}/{{split}}/{kind}.jsonl.gz"
        for kind in ("recordings", "supervisions", "cuts")
    }

    def add(self, row: dict[str, Any], data: bytes) -> None:
        cut = lhotse_cut(row, {"type": "file", "source": self._save(row, data)})
        parts = {"recordings": cut["recording"], "supervisions": cut["supervisions"][0]}
        for kind, value in (parts | {"cuts": cut}).items():
            self._lines[f"{kind}.jsonl.gz"].append(_json(value))


class SharWriter(ShardWriter):
    """A shard of lhotse's Shar: cuts, and a tar file of their audio in the same order."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        split, _, number = name.rpartition("-")
        self._cuts: list[str] = []
        tar, cuts = f"recording.{int(number):06d}.tar", f"cuts.{int(number):06d}.jsonl.gz"
        self._file = tarfile.open(folder / tar, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._cuts_path = folder / cuts
        for each in (tar, cuts):
            self.files[f"{DATA_FOLDER}/{split}/{each}"] = folder / each

    def add(self, row: dict[str, Any], data: bytes) -> None:
        # Without a source: lhotse takes the audio from the tar file.
        cut = lhotse_cut(row, {"type": "shar", "source": ""})
        _add_member(self._file, f"{row['example_id']}.{self._suffix}", data)
        recording = _json(cut["recording"]).encode()
        _add_member(self._file, f"{row['example_id']}.json", recording)
        self._cuts.append(_json(cut))

    def close(self) -> None:
        self._file.close()
        self._cuts_path.write_bytes(_joined_lines(self._cuts, zipped=True))


def _grouped(lines: Iterable[bytes]) -> Iterator[bytes]:
    # "speaker utterance" on each line becomes "speaker utterance utterance ...", piece by piece:
    # a speaker may have all of a corpus.
    pairs = (line.split() for line in lines)
    for speaker, group in groupby(pairs, key=lambda pair: pair[0]):
        yield speaker
        yield from (b" " + utterance for _, utterance in group)
        yield b"\n"


def kaldi_token(name: str) -> str:
    """Return a name without blanks and hyphens, a different one for each name.

    Speakers are prefixes of utterances, up to a hyphen. Where it is less than all of their own
    characters, utterances and speakers have the same order.
    """
    return quote(name, safe="", errors="replace").replace("-", "%2D").replace("%", "=")


class EspnetWriter(_ClipsWriter):
    """Audio files, and the lines of a Kaldi-style folder without segments."""

    joined: ClassVar = {
        name: f"{DATA_FOLDER}/{{split}}/{name}"
        for name in ("wav.scp", "text", "utt2spk", "spk2utt", "utt2lang")
    }
    # By bytes, which is what LC_ALL=C means.
    arranged: ClassVar = dict.fromkeys(joined, iter) | {"spk2utt": _grouped}
    commands: ClassVar[Mapping[str, str]] = {}

    def add(self, row: dict[str, Any], data: bytes) -> None:
        example = row["example_id"]
        speaker, utterance = example.rpartition("-")[0], example
        if row["speaker"]:
            speaker = kaldi_token(row["speaker"])
            utterance = f"{speaker}-{example}"
        read = self.commands.get(self._suffix, "{}").format(self._save(row, data))
        text = " ".join(one_line(row["text"]).split())
        values = {
            "wav.scp": read, "text": text, "utt2spk": speaker, "utt2lang": row["language"] or "und",
        }  # fmt: skip
        values |= self._of_segment(utterance, row["duration_s"])
        for name, value in values.items():
            self._lines[name].append(f"{utterance} {value}".rstrip())
        self._lines["spk2utt"].append(f"{speaker} {utterance}")

    def _of_segment(self, utterance: str, duration_s: float) -> dict[str, str]:
        return {}


class KaldiWriter(EspnetWriter):
    """Audio files, and the lines of a Kaldi data folder."""

    joined: ClassVar = EspnetWriter.joined | {
        name: f"{DATA_FOLDER}/{{split}}/{name}" for name in ("segments", "reco2dur")
    }
    arranged: ClassVar = EspnetWriter.arranged | dict.fromkeys(("segments", "reco2dur"), iter)
    # Kaldi itself reads WAV alone.
    commands: ClassVar = {
        "flac": "flac -c -d -s {} |",
        "opus": f"ffmpeg -nostdin -v error -i {{}} -ar {SAMPLE_RATE_HZ} -f wav - |",
    }

    def _of_segment(self, utterance: str, duration_s: float) -> dict[str, str]:
        end = f"{duration_s:.7f}"  # to the sample
        return {"segments": f"{utterance} 0.0 {end}", "reco2dur": end}


WRITERS: dict[str, type[ShardWriter]] = {
    "huggingface": HuggingFaceWriter,
    "webdataset": WebDatasetWriter,
    "nemo": NemoWriter,
    "lhotse": LhotseWriter,
    "shar": SharWriter,
    "kaldi": KaldiWriter,
    "espnet": EspnetWriter,
}
