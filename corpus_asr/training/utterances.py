"""Labelled audio: utterances from manifests, datasets with audio in them, and the output of runs.

A manifest (.jsonl, .csv or .parquet) names a recording by `uri`, `path` or `audio_filepath`, with
`text` for the whole of it, or for the region from `start_s` (NeMo: `offset`) to `end_s`, or as
long as `duration_s` (`duration`); or with `segments`, objects of `start_s`, `end_s` and `text`.
`language` and `speaker` may be there. A dataset is Parquet, such as `corpus-asr label` writes: a
row is a recording, `audio` has its bytes, `text` its transcript, or `whisper_transcript` the same
with timestamps; `condition_on_prev` the preceding text, and `language`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pyarrow as pa

from corpus_asr.config.finetune import DataSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import SCORE_COLUMNS, Selection, chosen, read_index, recordings
from corpus_asr.labelling.dataset import DATA_FOLDER, SETTINGS_NAME
from corpus_asr.languages import resolve_language
from corpus_asr.storage.listing import manifest_rows
from corpus_asr.storage.run_state.tables import OutputStore, parquet_batches, parquet_columns
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri

_URI_NAMES = ("uri", "path", "audio_filepath")
_MAX_CHARACTERS = 1_000_000  # an hour of segments with their times
_PARQUET = ".parquet"
_MANIFESTS = (".jsonl", ".csv", _PARQUET)
_AUDIO = "audio"
_COLUMNS = ("text", "whisper_transcript", "condition_on_prev", "language")
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
    row: int | None = None
    """Of a Parquet file with audio in it, where that is the recording."""
    previous: str = ""
    """Preceding text, where no utterance of the same recording has it."""
    speaker: str | None = None

    @property
    def recording(self) -> "Recording":
        """Return what it is a region of."""
        return Recording(self.uri, self.row, self.channel)


class Recording(NamedTuple):
    """Audio that utterances lie in."""

    uri: str
    row: int | None = None
    channel: int | None = None


def read_utterances(
    manifest: str, *, endpoint_url: str | None = None, language: str | None = None
) -> Iterator[Utterance]:
    """Yield the utterances of a manifest in its order."""
    chunks = manifest_rows(
        manifest,
        StoreOptions(endpoint_url=endpoint_url),
        uri_names=_URI_NAMES,
        max_metadata_characters=_MAX_CHARACTERS,
    )
    for uris, rows in chunks:
        for uri, row in zip(uris, rows, strict=True):
            yield from _labelled_regions(manifest, uri, json.loads(row or "{}"), language)


def _labelled_regions(
    manifest: str, uri: str, row: Mapping[str, Any], usual: str | None
) -> Iterator[Utterance]:
    segments = row.get("segments")
    code = row.get("language") or usual
    try:
        if isinstance(segments, str):  # in CSV
            segments = json.loads(segments)
        language = None if code is None else resolve_language(str(code))
        for region in [row] if segments is None else segments:
            start_s, end_s = _times(region)
            text = region["text"]
            if not isinstance(text, str):
                raise TypeError(f"text {text!r}")
            yield Utterance(
                uri=uri,
                text=text,
                start_s=start_s,
                end_s=end_s,
                language=language,
                speaker=_speaker(region) or _speaker(row),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading the manifest {redact_uri(manifest)}: found {error} at {redact_uri(uri)}, "
            "expected a text, times in seconds that run forward, and a language that Whisper "
            "knows; correct the manifest"
        ) from error


def _speaker(region: Mapping[str, Any]) -> str | None:
    speaker = _first(region, "speaker", "speaker_id")
    return None if speaker is None else str(speaker)


def _times(region: Mapping[str, Any]) -> tuple[float, float | None]:
    start_s = float(_first(region, "start_s", "start", "offset") or 0.0)
    end = _first(region, "end_s", "end")
    length = _first(region, "duration_s", "duration")
    if end is None and length is not None:
        end = start_s + float(length)
    end_s = None if end is None else float(end)
    if not (math.isfinite(start_s) and start_s >= 0 and (end_s is None or start_s < end_s < 1e9)):
        raise ValueError(f"the times {start_s} to {end_s}")
    return start_s, end_s


def _first(region: Mapping[str, Any], *names: str) -> Any:
    return next((region[name] for name in names if region.get(name) not in (None, "")), None)


def _holds_audio(uri: str, endpoint_url: str | None) -> bool:
    try:
        with open_binary(uri, StoreOptions(endpoint_url=endpoint_url)) as file:
            return _AUDIO in parquet_columns(file)
    except pa.ArrowException:  # no Parquet, whatever its name says: `manifest_rows` tells
        return False


def _dataset_files(store: OutputStore, split: str) -> list[str]:
    names = sorted(name for name in store.all_names(DATA_FOLDER) if name.endswith(".parquet"))
    of_split = [name for name in names if name.rpartition("/")[2].startswith(f"{split}-")]
    if not of_split:
        raise ConfigError(
            f"reading the data set {redact_uri(store.uri)}: found no "
            f"{DATA_FOLDER}/{split}-*.parquet among {len(names)} files; write it with "
            "dataset.format: huggingface and with examples in that split"
        )
    return [store.address(name) for name in of_split]


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
    uri: str, number: int, row: Mapping[str, Any], usual: str | None
) -> Iterator[Utterance]:
    code = row.get("language") or usual
    common: dict[str, Any] = {
        "uri": uri,
        "row": number,
        "language": None if code is None else resolve_language(code),
        "previous": row.get("condition_on_prev") or "",
    }
    timed = _TIMED.findall(row.get("whisper_transcript") or "")
    for start, text, end in timed:
        yield Utterance(text=text, start_s=float(start), end_s=float(end), **common)
    if not timed:
        if not isinstance(row["text"], str):
            raise TypeError(f"text {row['text']!r}")
        yield Utterance(text=row["text"], **common)


def utterances_in(data: DataSettings, split: str) -> Iterator[Utterance]:
    """Yield the utterances of a split, `train` or `validation`, from all its sources."""
    sources: tuple[str, ...] = getattr(data, split)
    held_out = data.held_out_speakers if split == "train" else ()
    for source in sources:
        for utterance in utterances_of(source, data, split=split):
            if not any(fnmatchcase(utterance.speaker or "", pattern) for pattern in held_out):
                yield utterance


def utterances_of(uri: str, data: DataSettings, *, split: str) -> Iterator[Utterance]:
    """Yield the utterances of a manifest or a dataset, or the segments of a run."""
    options: dict[str, Any] = {"endpoint_url": data.endpoint_url, "language": data.language}
    if uri.lower().endswith(_MANIFESTS):
        is_dataset = uri.lower().endswith(_PARQUET) and _holds_audio(uri, data.endpoint_url)
        yield from (read_dataset if is_dataset else read_utterances)(uri, **options)
        return
    store = OutputStore(uri, endpoint_url=data.endpoint_url)
    if store.exists(SETTINGS_NAME):
        for file in _dataset_files(store, split):
            yield from read_dataset(file, **options)
        return
    index = read_index(store)
    selection = Selection(min_confidence=data.min_confidence, drop_known_hallucinations=True)
    wanted = chosen(index, selection)
    for _, recording in recordings(store, index, wanted, selection, columns=SCORE_COLUMNS):
        for segment, channel in zip(recording.segments, recording.channels, strict=True):
            yield Utterance(
                channel=channel,
                uri=recording.uri,
                text=segment.text,
                start_s=segment.start_s,
                end_s=segment.end_s,
                language=segment.language or data.language,
            )
