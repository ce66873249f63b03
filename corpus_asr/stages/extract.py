"""PACKS in, PARTS out: each recording of a pack becomes one row per part, one table at a time.

`stages.extraction` does the work in a child process, so a crashing, hanging or memory-eating
decoder costs one recording.
"""

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_asr.activity import Activity, FileSums, stratum
from corpus_asr.config.decoding import expected_languages
from corpus_asr.config.run import ModelSettings, RunConfig
from corpus_asr.errors import CheckpointError, ConfigError, DecodeError, EngineError
from corpus_asr.families.registry import further_folders, users_family
from corpus_asr.logs import event
from corpus_asr.schemas import FILE_COLUMNS, PARTS
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import (
    DONE,
    GIGABYTE,
    DecodeProgress,
    ExtractRequest,
    Message,
    PartRow,
    check_finite,
    check_size,
    failure_fields,
    one_row,
    with_last,
)
from corpus_asr.storage.manifest import aligned_text, expected_bytes
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.storage.stores.filesystem import BLOCK_BYTES, StoreOptions
from corpus_asr.storage.stores.uri import located, redact_uri
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

_LOG = logging.getLogger(__name__)

# Opened while an earlier file is decoded: a store that takes 100 ms to answer delays none of them.
PREFETCH_FILES = 16
_OF_SIZE = ("size_bytes", "etag", "metadata")
PREFETCH_BYTES = 16 * MEBIBYTE

EXTRACTOR = "corpus_asr.stages.extraction:PartExtractor"
# Fields for searching a log of millions of parts; the rest is in the tables.
_LOGGED = ["recording_id", "part", "uri", "status", "error_kind", "decode_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecordingProgress:
    """Progress of the recording being decoded; separate channels count each."""

    stratum: str
    size_bytes: int | None
    expected_s: float | None = None
    decoded_s: float = 0.0
    parts_s: float = 0.0
    """Part of `decoded_s` in complete parts."""
    done_before_s: float = 0.0
    """Part of `parts_s` in parts that are already committed."""

    def after(self, message: PartRow | DecodeProgress) -> "_RecordingProgress":
        """Return the progress after a message of the extractor."""
        if isinstance(message, DecodeProgress):
            decoded_s = max(self.decoded_s, message.decoded_s)
            return replace(self, decoded_s=decoded_s, expected_s=message.expected_s)
        audio_s = message["num_samples"] / SAMPLE_RATE_HZ
        parts_s = self.parts_s + audio_s
        return replace(
            self,
            parts_s=parts_s,
            decoded_s=max(self.decoded_s, parts_s),
            done_before_s=self.done_before_s + (audio_s if message["status"] == DONE else 0.0),
        )

    def activity(self, *, ended: bool) -> Activity:
        """Return its counters; a duration is the header's until decoding has ended."""
        decoded_s = self.parts_s if ended else self.decoded_s
        known_s = decoded_s if ended else self.expected_s
        wanted_s = max(0.0, decoded_s - self.done_before_s)
        if known_s is None:
            return Activity(decoded_s=wanted_s)
        sums = FileSums.of(self.size_bytes, max(wanted_s, known_s - self.done_before_s))
        return Activity(decoded_s=wanted_s, durations={self.stratum: sums})


def further_features_of(model: ModelSettings, aligner: str | None) -> dict[str, Path]:
    """Return the folders of checkpoints with additional kinds of features, by kind.

    Parts have features of each of these kinds as well: of models for some languages, and of the
    `aligner` that computes word times.
    """
    checkpoints = [*sorted(model.by_language.values()), *([] if aligner is None else [aligner])]
    if not checkpoints:
        return {}
    return _further_folders(model.checkpoint, model.revision, model.recognizer, *checkpoints)


@lru_cache(maxsize=8)  # queries a hub or store
def _further_folders(
    main: str, revision: str | None, recognizer: str | None, *others: str
) -> dict[str, Path]:
    folders = [fetch_checkpoint(name, weights=False) for name in dict.fromkeys(others)]
    if recognizer is not None:
        return further_folders(Path(), folders, family=users_family(recognizer))
    return further_folders(fetch_checkpoint(main, revision=revision, weights=False), folders)


class ExtractStage:
    """Extract the recordings of packs, one after another."""

    def __init__(self, config: RunConfig, *, extractor: str = EXTRACTOR) -> None:
        model, settings = config.needed_model, config.extract
        folder = ""
        if model.recognizer is None:
            checkpoint_folder = fetch_checkpoint(
                model.checkpoint, revision=model.revision, weights=False
            )
            folder = str(checkpoint_folder)
        store = StoreOptions.of(config.source)
        self._child = IsolatedGenerator(
            extractor,
            init_kwargs={
                "folder": folder,
                "recognizer": model.recognizer,
                "further_folders": further_features_of(model, config.align.model),
                "settings": settings,
                "store": store,
                "speakers": config.speakers,
                "languages": expected_languages(config.decoding),
            },
            timeout_s=settings.item_timeout_s,
        )
        self._max_file_gb = settings.max_file_gb
        self._aligns = config.decoding.align
        self._began_s = time.monotonic()
        self._activity = Activity()
        # Fields of the current recording and time, read by another thread.
        self._doing = ("", 0.0)
        self._file: _RecordingProgress | None = None
        self._lock = threading.Lock()

    @property
    def activity(self) -> Activity:
        """Return the activity so far; thread-safe."""
        with self._lock:
            now_s = time.monotonic()
            (count, since_s), file, activity = self._doing, self._file, self._activity
        if count:
            activity += _spent(count, now_s - since_s)
        if file is not None:
            activity += file.activity(ended=False)
        return replace(activity, extract_alive_s=now_s - self._began_s)

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """Yield one PARTS table per part, as soon as it is known whether it is the last."""
        for files in packs.column("files").to_pylist():
            # One after another: the workers are what runs in parallel, and memory stays bounded.
            for number, file in enumerate(files, start=1):
                size_bytes = expected_bytes(*(file[name] for name in _OF_SIZE))
                self._file = _RecordingProgress(
                    stratum=stratum(file["uri"], size_bytes), size_bytes=size_bytes
                )
                following = files[number : number + PREFETCH_FILES]
                with closing(self._extract(file, following)) as tables:
                    for parts in tables:
                        with self._counting("backpressure_s"):
                            yield parts
                self._count(self._file.activity(ended=True))
                self._file = None

    def close(self) -> None:
        """End the child process."""
        self._child.close()

    def _extract(
        self, file: dict[str, Any], following: list[dict[str, Any]]
    ) -> Generator[pa.Table, None, None]:
        """Yield the parts of one file, one part late, so that the last is marked."""
        identity = {name: file[name] for name in FILE_COLUMNS} | {"content_digest": None}
        done = frozenset(file["done_parts"] or ())
        request = ExtractRequest(
            uri=located(file["uri"], file["etag"]),
            name=file["uri"],
            done_parts=done,
            upcoming=self._upcoming(following),
        )
        next_part, emitted = 0, False
        failure: dict[str, Any] | None = None
        try:
            for row in with_last(self._rows(file, request, identity)):
                next_part = row["part"] + 1
                if row["status"] != DONE:
                    emitted = True
                    yield self._table(identity | row)
        except (CheckpointError, ConfigError, EngineError):
            raise  # every recording would fail in this way
        except Exception as error:  # failures of a recording become its row
            failure = failure_fields(error, stage="extract", of=identity | {"part": next_part})
        if failure is None and not emitted:
            # All parts were already processed, yet the recording is incomplete: it needs a row.
            failure = failure_fields(_changed(file["uri"], next_part, done), stage="extract")
        if failure is not None:
            # A transcribed part keeps its outcome: the failure takes the first free index.
            while next_part in done:
                next_part += 1
            yield self._table(identity | failure | {"part": next_part, "last_part": True})

    def _rows(
        self, file: dict[str, Any], request: ExtractRequest, identity: dict[str, Any]
    ) -> Iterator[PartRow]:
        """Yield the parts that the child extracts, count what it does, and note the digest."""
        messages = self._messages(file, request)
        while True:
            with self._counting("extract_s"):
                message = next(messages, None)
            if message is None:
                return
            if isinstance(message, Activity):
                self._count(message)
                continue
            assert self._file is not None, "set before its first message"
            self._file = self._file.after(message)
            if isinstance(message, dict):
                yield message
            elif message.content_digest is not None:
                identity["content_digest"] = message.content_digest

    def _messages(self, file: dict[str, Any], request: ExtractRequest) -> Iterator[Message]:
        # Size from the listing: a store without range requests would send the whole object.
        num_bytes, uri = file["size_bytes"] or 0, redact_uri(file["uri"])
        check_size(num_bytes, uri=uri, max_file_gb=self._max_file_gb)
        if self._aligns:
            aligned_text(file["uri"], file["metadata"])  # fails before decoding
        yield from self._child.run(request)

    def _upcoming(self, following: list[dict[str, Any]]) -> tuple[str, ...]:
        """Return URIs to open ahead: a few, whose first blocks fit into memory."""
        uris: list[str] = []
        bytes_left = PREFETCH_BYTES
        for file in following[:PREFETCH_FILES]:
            num_bytes = BLOCK_BYTES if file["size_bytes"] is None else file["size_bytes"]
            bytes_left -= min(num_bytes, BLOCK_BYTES)
            if bytes_left < 0:
                break
            if num_bytes <= self._max_file_gb * GIGABYTE:  # others are rejected unopened
                uris.append(located(file["uri"], file["etag"]))
        return tuple(uris)

    @contextmanager
    def _counting(self, count: str) -> Iterator[None]:
        """Count the time spent, also while it lasts."""
        since_s = time.monotonic()
        self._doing = (count, since_s)
        try:
            yield
        finally:
            with self._lock:
                self._doing = ("", 0.0)
                self._activity += _spent(count, time.monotonic() - since_s)

    def _table(self, row: PartRow) -> pa.Table:
        """Return a PARTS row as a table; one that does not fit is its recording's failure."""
        try:
            check_finite(row)
            table = one_row(PARTS, row)
        except Exception as error:
            columns = (*FILE_COLUMNS, "content_digest", "part", "last_part")
            row = {name: row[name] for name in columns}
            row |= failure_fields(error, stage="extract", of=row)
            table = one_row(PARTS, row)
        self._count(Activity(parts_extracted=1))
        logged = {name: row.get(name) for name in _LOGGED} | {"uri": redact_uri(row["uri"])}
        event(_LOG, logging.INFO, "part_extracted", **logged)
        return table

    def _count(self, counts: Activity) -> None:
        with self._lock:
            self._activity += counts


def _spent(count: str, seconds: float) -> Activity:
    counts: dict[str, Any] = {count: seconds}
    return Activity(**counts)


def _changed(uri: str, parts: int, done: frozenset[int]) -> DecodeError:
    return DecodeError(
        f"extracting {redact_uri(uri)}: found {parts} parts, expected more than the {len(done)} "
        "of an earlier run, so its content was replaced; transcribe it again with another "
        "output.uri",
        uri=redact_uri(uri),
        kind="changed",
        retryable=True,
    )
