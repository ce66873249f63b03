"""Selection: the segments of a run, measured and decided, recording after recording.

There are two passes, since how often a text occurs is known at the end of the first only; between
them rows wait on this machine's disk. In memory are one recording, some 30 bytes per segment, and
the existing transcripts.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import (
    SCORE_COLUMNS,
    Index,
    Recording,
    Selection,
    chosen,
    read_index,
    recordings,
)
from corpus_asr.labelling.measures import Comparisons, listed_hashes, measured
from corpus_asr.labelling.rules import Rule, decide
from corpus_asr.report.accuracy.scoring import Reference, read_references
from corpus_asr.schemas import SELECTION
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, FINGERPRINT_NAME
from corpus_asr.storage.run_state.tables import OutputStore, ParquetFile, parquet_batches
from corpus_asr.storage.stores.uri import redact_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A run, as a data set made of it knows it."""

    transcripts: str
    """Its output folder."""
    fingerprint: str
    """Of its settings and weights."""
    checkpoint: str
    channels: Literal["mix", "each"] | int
    by_language: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """The weights' part of the fingerprint."""
        return self.fingerprint.partition("-")[2]

    def model(self, language: str | None) -> dict[str, str]:
        """Return the columns that say which model wrote a text in a language."""
        model = self.by_language.get(language or "", self.checkpoint)
        return {"model": model, "model_revision": self.revision}

    def as_data(self) -> dict[str, Any]:
        """Return what the card says of the run, settings that are null left out."""
        found = {
            "checkpoint": self.checkpoint,
            "revision": self.revision,
            "by_language": self.by_language or None,
            "transcripts": self.transcripts,
            "extract.channels": self.channels,
            **{f"decoding.{key}": value for key, value in self.decoding.items()},
        }
        return {key: value for key, value in found.items() if value is not None}


def read_origin(store: OutputStore) -> Origin:
    """Read what a run notes of itself.

    Raises:
        ConfigError: it has no notes.
        FetchError: the store does not answer.
    """
    config, fingerprint = (store.read_json(name) for name in (CONFIG_NAME, FINGERPRINT_NAME))
    if config is None or fingerprint is None:
        missing = CONFIG_NAME if config is None else FINGERPRINT_NAME
        raise ConfigError(
            f"selecting from {redact_uri(store.uri)}: found no {missing}, expected that of the "
            "run, which says how its audio was read; restore it, or run again"
        )
    return Origin(
        transcripts=redact_uri(store.uri),
        fingerprint=fingerprint["fingerprint"],
        checkpoint=config["model"]["checkpoint"],
        channels=config["extract"]["channels"],
        by_language=config["model"].get("by_language") or {},
        decoding=config["decoding"],
    )


_COLUMNS = tuple(
    name for name in (*SCORE_COLUMNS, "language_probability", "speech_fraction")
    if name not in ("words", "tokens")
)  # fmt: skip
_WHAT_WAS_HEARD = ["recording_id", "etag", "segments", "complete", "failed"]
_ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a selection reads."""

    store: OutputStore
    index: Index
    other: tuple[OutputStore, Index] | None = None
    references: Mapping[str, Reference] | None = None

    def digest(self) -> str:
        """Name everything that is read: another digest, another data set."""
        found = hashlib.blake2b(digest_size=8)
        for _, index in filter(None, ((self.store, self.index), self.other)):
            table = index.recordings.select(_WHAT_WAS_HEARD)
            for rows in table.to_batches(max_chunksize=_ROWS_AT_A_TIME):
                found.update(repr(rows.to_pylist()).encode())
        for identity, reference in sorted((self.references or {}).items()):
            found.update(repr((identity, reference.text, reference.language)).encode())
        return found.hexdigest()


def read_sources(
    output_uri: str, settings: SelectionSettings, *, endpoint_url: str | None = None
) -> Sources:
    """Read what is there to select from.

    Raises:
        ConfigError: there is no such output, it is compared with itself or with one of other
            recordings, or the existing transcripts cannot be used.
        FetchError: a store failed beyond its retries.
    """
    store = OutputStore(output_uri, endpoint_url=endpoint_url)
    index = read_index(store)
    other = references = None
    if settings.against is not None:
        there = OutputStore(settings.against, endpoint_url=endpoint_url)
        if there.uri == store.uri:
            raise ConfigError(
                f"reading selection.against: found {redact_uri(there.uri)}, which is output.uri "
                "itself, expected another run over the same recordings; it always agrees with "
                "itself"
            )
        other = (there, read_index(there))
        _check_shared(index, other[1].recordings["recording_id"], there.uri)
    if settings.references is not None:
        references = read_references(settings.references, endpoint_url=endpoint_url)
        _check_shared(index, pa.chunked_array([list(references)], pa.string()),
                      settings.references)  # fmt: skip
    return Sources(store=store, index=index, other=other, references=references)


def _check_shared(index: Index, ids: pa.ChunkedArray, uri: str) -> None:
    ours = index.recordings["recording_id"]
    if len(ours) and not pc.any(pc.is_in(ours, value_set=ids.combine_chunks())).as_py():
        example = redact_uri(index.recordings["uri"][0].as_py())
        raise ConfigError(
            f"selecting by {redact_uri(uri)}: found none of this run's recordings there, expected "
            f"them by the same addresses (such as {example}); correct it, or everything is dropped"
        )


def measure(sources: Sources, settings: SelectionSettings, path: str) -> np.ndarray:
    """Write the measured segments of all recordings that are done to a local file.

    Returns:
        The number of each segment's text, in the order of the file.
    """
    listed = listed_hashes(settings.drop_texts)
    references = sources.references or {}
    versions = sources.index.recordings.select(["size_bytes", "etag"])
    hashes = array("Q")
    waiting: list[dict[str, Any]] = []
    file = ParquetFile(path, SELECTION)
    try:
        for position, recording, other in _beside_the_other(sources):
            beside = Comparisons(other=other, reference=references.get(recording.recording_id))
            version = versions.slice(position, 1).to_pylist()[0]
            for each in measured(recording, version, beside, listed=listed):
                waiting.append(each.row)
                hashes.append(each.text_hash)
            if len(waiting) >= _ROWS_AT_A_TIME:
                file.append(pa.Table.from_pylist(waiting, schema=SELECTION))
                waiting = []
        if waiting:
            file.append(pa.Table.from_pylist(waiting, schema=SELECTION))
    finally:
        file.close()
    return np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, dtype=np.uint64)


def _beside_the_other(
    sources: Sources,
) -> Iterator[tuple[int, Recording, Recording | None]]:
    """Yield recordings with the same of the other run, if it has it; both sorted by address."""
    theirs = _all_of(*sources.other, sources.index) if sources.other else iter(())
    candidate = next(theirs, None)
    for position, recording in _done(sources.store, sources.index):
        while candidate is not None and _place(candidate[1]) < _place(recording):
            candidate = next(theirs, None)
        same = candidate is not None and candidate[1].recording_id == recording.recording_id
        yield position, recording, candidate[1] if candidate is not None and same else None


def _place(recording: Recording) -> tuple[bytes, str]:
    return recording.uri.encode("utf-8", "surrogatepass"), recording.recording_id


def _done(store: OutputStore, index: Index) -> Iterator[tuple[int, Recording]]:
    everything = Selection()
    wanted = chosen(index, everything)
    return recordings(store, index, wanted, everything, columns=_COLUMNS)


def _all_of(store: OutputStore, index: Index, ours: Index) -> Iterator[tuple[int, Recording]]:
    everything = Selection()
    ids = ours.recordings["recording_id"].combine_chunks()
    shared = np.asarray(pc.is_in(index.recordings["recording_id"], value_set=ids))
    wanted = chosen(index, everything) & shared
    return recordings(store, index, wanted, everything, columns=_COLUMNS)


def decided(path: str, hashes: np.ndarray, rules: Sequence[Rule]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one recording after the other, with what the rules say of each."""
    _, number, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    rows = _counted_rows(path, counts[number])
    for _, group in groupby(rows, key=lambda row: row["recording_id"]):
        found = list(group)
        for row in found:
            decide(row, rules)
        yield found


def _counted_rows(path: str, copies: np.ndarray) -> Iterator[dict[str, Any]]:
    at = 0
    for batch in parquet_batches(path, batch_rows=_ROWS_AT_A_TIME):
        for row, count in zip(
            batch.to_pylist(), copies[at : at + batch.num_rows].tolist(), strict=True
        ):
            row["copies"] = count
            yield row
        at += batch.num_rows
