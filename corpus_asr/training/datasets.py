"""Data sets with audio in them, such as `corpus-asr label` writes: Parquet in, utterances out.

A row is a recording: `audio` has its bytes, `text` its transcript, or `whisper_transcript` the same
with timestamps; `condition_on_prev` the preceding text, and `language`. Independent of samples.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from corpus_asr.errors import ConfigError
from corpus_asr.labelling.dataset import SETTINGS_NAME
from corpus_asr.labelling.layouts import DATA_FOLDER
from corpus_asr.languages import resolve_language
from corpus_asr.storage.run_state.tables import OutputStore, parquet_batches, parquet_columns
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.training.utterances import Utterance

_AUDIO = "audio"
_READ = ("text", "whisper_transcript", "condition_on_prev", "language")
_TIMED = re.compile(r"<\|(\d+\.\d\d)\|>(.*?)<\|(\d+\.\d\d)\|>", re.DOTALL)


def holds_audio(uri: str, *, endpoint_url: str | None) -> bool:
    """Return whether a Parquet file has audio in it; what is no Parquet has none.

    Raises:
        FetchError: it cannot be read.
    """
    try:
        with open_binary(uri, StoreOptions(endpoint_url=endpoint_url)) as file:
            return _AUDIO in parquet_columns(file)
    except pa.ArrowException:
        return False


def files_of_dataset(store: OutputStore, split: str) -> list[str] | None:
    """Return the addresses of a split's files; None where the folder is no data set.

    Raises:
        ConfigError: the data set is not written as Parquet, or has no such split.
        FetchError: the store failed.
    """
    if not store.exists(SETTINGS_NAME):
        return None
    names = sorted(name for name in store.all_names(DATA_FOLDER) if name.endswith(".parquet"))
    found = [name for name in names if name.rpartition("/")[2].startswith(f"{split}-")]
    if not found:
        raise ConfigError(
            f"reading the data set {redact_uri(store.uri)}: found no "
            f"{DATA_FOLDER}/{split}-*.parquet among {len(names)} files; write it with "
            "dataset.format: huggingface and with examples in that split"
        )
    return [store.address(name) for name in found]


def read_dataset(
    uri: str, *, endpoint_url: str | None = None, language: str | None = None
) -> Iterator[Utterance]:
    """Yield the utterances of a Parquet file with audio in it.

    Args:
        uri: its address.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        language: of rows that say none.

    Raises:
        ConfigError: there is no text, or an unknown language.
        FetchError: it cannot be read.
    """
    number = 0
    with open_binary(uri, StoreOptions(endpoint_url=endpoint_url)) as file:
        for batch in parquet_batches(file, columns=_READ):
            for row in batch.to_pylist():
                try:
                    yield from _utterances(uri, number, row, language)
                except (KeyError, TypeError, ValueError) as error:
                    raise ConfigError(
                        f"reading the data set {redact_uri(uri)}: found {error} in row {number}, "
                        "expected a column text and a language that Whisper knows; correct the "
                        "data set"
                    ) from error
                number += 1


def _utterances(
    uri: str, number: int, row: Mapping[str, Any], usual: str | None
) -> Iterator[Utterance]:
    said = row.get("language") or usual
    more: dict[str, Any] = {
        "uri": uri,
        "row": number,
        "language": None if said is None else resolve_language(said),
        "previous": row.get("condition_on_prev") or "",
    }
    timed = _TIMED.findall(row.get("whisper_transcript") or "")
    for start, text, end in timed:
        yield Utterance(text=text, start_s=float(start), end_s=float(end), **more)
    if not timed:
        if not isinstance(row["text"], str):
            raise TypeError(f"text {row['text']!r}")
        yield Utterance(text=row["text"], **more)
