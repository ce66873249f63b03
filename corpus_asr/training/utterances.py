"""Labelled audio: utterances from manifests, datasets with audio in them, and the output of runs.

A dataset is Parquet, or tar files with the same columns as JSON, such as `corpus-asr label` writes:
a row is a recording, `audio` has its bytes, `text` its transcript, or `whisper_transcript` the same
with timestamps; `condition_on_prev` the preceding text, and `language`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pyarrow as pa

from corpus_asr.config.finetune import DataSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import SCORE_COLUMNS, Selection, open_selection, recordings
from corpus_asr.labelling.dataset import SETTINGS_NAME
from corpus_asr.labelling.writers import DATA_FOLDER, NemoWriter
from corpus_asr.languages import resolve_language
from corpus_asr.segments import place_of
from corpus_asr.storage.manifest import SPEAKER, Row, is_manifest, read_manifest
from corpus_asr.storage.parquet import parquet_batches, parquet_columns
from corpus_asr.storage.run_state.run_files import open_run
from corpus_asr.storage.run_state.seen_segments import SeenSegments
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.shards import ShardLister
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri

_PARQUET, _TAR = ".parquet", ".tar"
_AUDIO = "audio"
_COLUMNS = ("text", "whisper_transcript", "condition_on_prev", "language", *SPEAKER)
_TIMED = re.compile(r"<\|(\d+\.\d\d)\|>(.*?)<\|(\d+\.\d\d)\|>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A part of a recording and its text."""

    uri: str
    text: str
    start_s: float = 0.0
    end_s: float | None = None
    """None: the end of the recording."""
    language: str | None = None
    channel: int | None = None
    """Of the recording; None: all of them mixed."""
    track: int | None = None
    """Number of its audio track, from 1; None where there is one."""
    row: int | None = None
    """Of a Parquet file with audio in it, where that is the recording."""
    previous: str = ""
    """Preceding text, where no utterance of the same recording has it."""
    speaker: str | None = None

    @property
    def recording(self) -> "Recording":
        """Return what it is a region of."""
        return Recording(self.uri, self.row, self.channel, self.track)


class Recording(NamedTuple):
    """Audio that utterances lie in."""

    uri: str
    row: int | None = None
    channel: int | None = None
    track: int | None = None


def read_utterances(
    manifest: str, *, endpoint_url: str | None = None, language: str | None = None
) -> Iterator[Utterance]:
    """Yield the utterances of a manifest in its order."""
    for row in read_manifest(manifest, StoreOptions(endpoint_url=endpoint_url)):
        for part in row.parts():
            start_s, end_s = part.span()
            yield Utterance(
                uri=part.uri,
                text=part.needed_text(),
                start_s=start_s,
                end_s=end_s,
                language=_language(part, language),
                speaker=part.speaker(),
            )


def _language(row: Row, usual: str | None) -> str | None:
    name = row.language() or usual
    try:
        return None if name is None else resolve_language(name)
    except ValueError as error:
        expected = "a code or name of a language that Whisper knows"
        raise row.wrong(f"language {name!r}", expected) from error


def _holds_audio(uri: str, endpoint_url: str | None) -> bool:
    try:
        with open_binary(uri, StoreOptions(endpoint_url=endpoint_url)) as file:
            return _AUDIO in parquet_columns(file)
    except pa.ArrowException:  # no Parquet, whatever its name says: `read_manifest` says so
        return False


def _read_folder(store: OutputStore, split: str, options: dict[str, Any]) -> Iterator[Utterance]:
    """Yield the utterances of a split of a data set that `corpus-asr label` wrote."""
    manifest = NemoWriter.joined["jsonl"].format(split=split)
    names = sorted(store.all_names(DATA_FOLDER))
    of_split = [name for name in names if name.rpartition("/")[2].startswith(f"{split}-")]
    tables = [store.address(name) for name in of_split if name.endswith(_PARQUET)]
    tars = [store.address(name) for name in of_split if name.endswith(_TAR)]
    if tables:
        for file in tables:
            yield from read_dataset(file, **options)
    elif tars:
        yield from _read_tars(tars, store, options["language"])
    elif store.exists(manifest):
        yield from read_utterances(store.address(manifest), **options)
    else:
        raise ConfigError(
            f"reading the data set {redact_uri(store.uri)}: found no "
            f"{DATA_FOLDER}/{split}-*.parquet or .tar among {len(names)} files and no {manifest}; "
            "write it with dataset.format huggingface, webdataset or nemo, and with examples in "
            "that split"
        )


def _read_tars(tars: list[str], store: OutputStore, usual: str | None) -> Iterator[Utterance]:
    lister = ShardLister(
        store=store.options,
        version="etag",
        is_ignored=lambda _: False,
        is_excluded=lambda _: False,
    )
    for found in lister.rows(tars):
        for uri, metadata in zip(found.uris, found.metadata, strict=True):
            try:
                yield from _of_row(uri, None, json.loads(metadata or "{}"), usual)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"reading the data set {redact_uri(store.uri)}: found {error} for "
                    f"{redact_uri(uri)}, expected a .json of its name with text and a language "
                    "that Whisper knows; correct the data set"
                ) from error


def read_dataset(
    uri: str, *, endpoint_url: str | None = None, language: str | None = None
) -> Iterator[Utterance]:
    """Yield the utterances of a Parquet file with audio in it."""
    number = 0
    with open_binary(uri, StoreOptions(endpoint_url=endpoint_url)) as file:
        for batch in parquet_batches(file, columns=_COLUMNS):
            for row in batch.to_pylist():
                try:
                    yield from _of_row(uri, number, row, language)
                except (KeyError, TypeError, ValueError) as error:
                    raise ConfigError(
                        f"reading the data set {redact_uri(uri)}: found {error} in row {number}, "
                        "expected a column text and a language that Whisper knows; correct the "
                        "data set"
                    ) from error
                number += 1


def _of_row(
    uri: str, number: int | None, row: Mapping[str, Any], usual: str | None
) -> Iterator[Utterance]:
    code = row.get("language") or usual
    speakers = (row[name] for name in SPEAKER if row.get(name) not in (None, ""))
    common: dict[str, Any] = {
        "uri": uri,
        "row": number,
        "language": None if code is None else resolve_language(code),
        "previous": row.get("condition_on_prev") or "",
        "speaker": next(map(str, speakers), None),  # they may be numbers
    }
    timed = _TIMED.findall(row.get("whisper_transcript") or "")
    for start, text, end in timed:
        yield Utterance(text=text, start_s=float(start), end_s=float(end), **common)
    if not timed:
        if not isinstance(row["text"], str):
            raise TypeError(f"text {row['text']!r}")
        yield Utterance(text=row["text"], **common)


def utterances_in(data: DataSettings, split: str) -> Iterator[Utterance]:
    """Yield the utterances of a split, `train` or `validation`, from all its sources.

    Raises:
        ConfigError: no speaker is one of those that are to be held out.
    """
    sources: tuple[str, ...] = getattr(data, split)
    held_out = data.held_out_speakers if split == "train" else ()
    excluded = 0
    for source in sources:
        for utterance in utterances_of(source, data, split=split):
            if any(fnmatchcase(utterance.speaker or "", pattern) for pattern in held_out):
                excluded += 1
            else:
                yield utterance
    if held_out and not excluded:
        # A misspelt name would train on the speakers of the test.
        raise ConfigError(
            f"reading data.train: found no speaker of data.held_out_speakers "
            f"({', '.join(held_out)}), expected some to exclude; correct it, or leave it out"
        )


def utterances_of(uri: str, data: DataSettings, *, split: str) -> Iterator[Utterance]:
    """Yield the utterances of a manifest or a dataset, or the segments of a run."""
    options: dict[str, Any] = {"endpoint_url": data.endpoint_url, "language": data.language}
    if is_manifest(uri):
        is_dataset = uri.lower().endswith(_PARQUET) and _holds_audio(uri, data.endpoint_url)
        yield from (read_dataset if is_dataset else read_utterances)(uri, **options)
        return
    store = open_run(uri, endpoint_url=data.endpoint_url)
    if store.exists(SETTINGS_NAME):
        yield from _read_folder(store, split, options)
        return
    selection = Selection(min_confidence=data.min_confidence, drop_known_hallucinations=True)
    with open_selection(store, selection) as tables:
        seen = SeenSegments(store, tables)
        for recording in recordings(seen, tables, selection, columns=SCORE_COLUMNS):
            for segment, channel in recording.pairs:
                place = place_of(channel, recording.audio_track, recording.audio_tracks)
                yield Utterance(
                    channel=place[0],
                    track=place[1],
                    uri=recording.uri,
                    text=segment.text,
                    start_s=segment.start_s,
                    end_s=segment.end_s,
                    language=segment.language or data.language,
                )
