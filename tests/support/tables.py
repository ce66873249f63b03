"""Jobs, rows, tables, snapshots and recordings in the package's schemas, with usual values."""

import base64
import binascii
import contextlib
import datetime
import gzip
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.config.run import Retry, RunConfig
from corpus_asr.export.recordings import Recording
from corpus_asr.schemas import FILES, PACKS, PARTS, RESULTS
from corpus_asr.segments import Segment, Word
from corpus_asr.stages.parts import one_row
from corpus_asr.storage.parquet import BATCH_ROWS
from corpus_asr.storage.run_state.finish import merge_recordings
from corpus_asr.storage.run_state.moved import SOUND_DIGEST
from corpus_asr.storage.run_state.part_rows import commit_rows, nested, part_rows
from corpus_asr.storage.run_state.run_files import RUNNING, Snapshot
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.table_names import SEGMENT_ROWS, SUFFIX, PartRows, unique_stem
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, inspect_files
from corpus_asr.storage.stores.uri import recording_id


def run_config(
    source: object, output: object, /, *, model: object = "some/model", **sections: Any
) -> RunConfig:
    """Return a job over the files at an address; `sections` replace those of the same name."""
    usual: dict[str, Any] = {
        "source": {"uri": str(source)},
        "model": model if isinstance(model, dict) else {"checkpoint": str(model)},
        "output": {"uri": str(output)},
        # Clips take a child process: a second for every run of a test.
        "report": {"embed_audio": False},
    }
    return RunConfig.model_validate(usual | sections)


def remaining(
    store: OutputStore,
    batch: pa.RecordBatch,
    retry: Retry = Retry.environment,
    *,
    leave_alone: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return the files that a run has to do, as a plan finds them."""
    with RunTables(store, columns=VERSION_COLUMNS) as run:
        return run.remaining(batch, retry, leave_alone=list(leave_alone)).to_pylist()


def complete(store: OutputStore) -> list[dict[str, Any]]:
    """Return the recordings that are complete, as a finish would write them."""
    with RunTables(store) as run:
        rows = run.changed(datetime.datetime.now(datetime.UTC), rows=BATCH_ROWS)
        return [row for some in rows for row in some.to_pylist()]


def record(store: OutputStore) -> None:
    """Write the table of recordings, as a finish does before others are derived from it."""
    with RunTables(store, opened="true") as run:
        now = datetime.datetime.now(datetime.UTC)
        old, new = merge_recordings(store, run, now, has_columns=False)
        if new:
            store.replace(old, new)


def with_section(config: RunConfig, name: str, **changes: Any) -> RunConfig:
    section = getattr(config, name).model_copy(update=changes)
    return config.model_copy(update={name: section})


def packs_of(*uris: str, done: dict[str, list[int]] | None = None) -> pa.Table:
    usual = {"size_bytes": 1000, "etag": "etag", "metadata": None, "begun_by": None}
    files = [
        {"recording_id": uri, "uri": uri, "done_parts": (done or {}).get(uri, [])} | usual
        for uri in uris
    ]
    row = {"pack_id": 0, "pack_bytes": 1000 * len(uris), "files": files}
    return pa.Table.from_pylist([row], schema=PACKS)


def plan_of(*packs: pa.Table) -> pa.Table:
    """Return packs as a plan has them: each with a number of its own."""
    numbers = pa.array(range(len(packs)), pa.int64())
    return pa.concat_tables(packs).set_column(0, PACKS.field("pack_id"), numbers)


def rows_of(batches: Iterable[pa.RecordBatch]) -> list[dict[str, Any]]:
    """Return the rows of a table that a store gives."""
    return [row for batch in batches for row in batch.to_pylist()]


def stored_segments(
    store: OutputStore, columns: Sequence[str] | None = None, *, rows: PartRows = SEGMENT_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the segments, or labels, of all commits and tables of a store, with their columns."""
    for _, table, _ in part_rows(store, store.commit_names(), rows, columns):
        yield from table.to_batches()


def plain_read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read a table the way any Parquet reader would: every file in the folder."""
    paths = sorted((folder / name).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def held_by(folder: str) -> dict[str, bytes]:
    """Return every file with its bytes, and all that is packed in them."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() else b""
        if name.endswith((".parquet", ".rows")):
            table = pq.read_table(io.BytesIO(data))
            data += repr(table.to_pylist()).encode() + str(table.schema.metadata).encode()
        if name.endswith(".gz"):
            data += gzip.decompress(data)
        for packed in re.findall(rb"[A-Za-z0-9+/]{8,}={0,2}", data):
            with contextlib.suppress(binascii.Error):
                data += base64.b64decode(packed)
        found[name] = name.encode() + data
    return found


def same_schema(found: pa.Schema, expected: pa.Schema) -> bool:
    """Compare types, names and all metadata; Parquet renames what is inside a list."""
    fields = zip(found, expected, strict=True)
    return bool(
        found.equals(expected)
        and found.metadata == expected.metadata
        and all(field.metadata == other.metadata for field, other in fields)
    )


def extracted(recording: str = "a", part: int = 0, **changes: Any) -> pa.Table:
    """Return a PARTS row as extraction hands it over: one second with a quarter of silence."""
    start_s = 10.0 * part
    row = {
        "recording_id": recording, "uri": f"memory://{recording}", "part": part, "last_part": True,
        "part_start_s": start_s, "part_end_s": start_s + 1.0, "status": "ok", "codec": "mp3",
        "speech_s": 0.5, "speech_spans": [{"start_s": start_s + 0.25, "end_s": start_s + 0.75}],
        "num_samples": 16_000, "num_mel_bins": 4, "features": np.full((102, 4), part, np.float16),
        "pad_value": -1.5, "language_window_start_s": 0.25, "decode_s": 0.1,
    }  # fmt: skip
    return one_row(PARTS, row | changes)


def part(
    name: str,
    index: int,
    *,
    texts: Sequence[str] | None,
    last: bool = True,
    status: str = "ok",
    uri: str | None = None,
    **values: Any,
) -> dict[str, Any]:
    """Return a RESULTS row of recording `/name`; `texts` are its segments.

    By default each version of it is one attempt, as those are that plans begin.
    """
    uri = uri or f"/{name}"
    version = f"{values.get('etag', 'v1')} {values.get('size_bytes', 100)}"
    segments: Any = texts and [
        {"segment": number, "text": text, "start_s": float(number), "end_s": number + 1.0,
         "tokens": [1, 2], "language": "en", "task": "transcribe"}
        for number, text in enumerate(texts)
    ]  # fmt: skip
    return {
        "recording_id": recording_id(uri), "uri": uri, "size_bytes": 100, "etag": "v1",
        "begun_by": version, "part": index, "last_part": last, "part_start_s": 10.0 * index,
        "part_end_s": 10.0 * index + 10, "duration_s": 10.0, "status": status, "attempts": 1,
        "segments": segments, **values,
    }  # fmt: skip


def digest_of(uri: str) -> str | None:
    """Return what extraction keeps of the content of a file."""
    digest: str | None
    [digest] = inspect_files(SOUND_DIGEST, [(uri, None)], DEFAULT_STORE)
    return digest


def results(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=RESULTS)


def commit(
    store: OutputStore,
    table: pa.Table,
    *,
    run_id: str = "run",
    model: str = "model",
    model_revision: str = "revision",
    **others: Any,
) -> str:
    """Commit rows with fixed stamps."""
    rows = commit_rows(table, run_id=run_id, model=(model, model_revision), **others)
    return store.put_commit(rows)


def put_nested(
    store: OutputStore, outcomes: pa.Table, part_rows: pa.Table, kind: PartRows = SEGMENT_ROWS
) -> str:
    """Commit outcomes with their segments or labels, as they are."""
    return store.put_commit(nested(outcomes, part_rows, kind))


def orphan(store: OutputStore, *rows: dict[str, Any], kind: PartRows = SEGMENT_ROWS) -> str:
    """Put segments or labels that do not count, as a killed finish does; return their name."""
    name = f"{kind.folder}/{unique_stem()}{SUFFIX}"
    made = commit_rows(results(*rows), run_id="other", model=("model", "revision"))
    flat = pc.list_flatten(made[kind.folder].combine_chunks())
    held = pa.Table.from_struct_array(flat).cast(kind.schema)
    store.write_table(name, held)
    return name


def files(*names: str, etag: str | None = "v1", size_bytes: int | None = 100) -> pa.RecordBatch:
    """Return FILES rows of recordings `/name`."""
    rows: list[dict[str, Any]] = [
        {"recording_id": recording_id(f"/{name}"), "uri": f"/{name}", "size_bytes": size_bytes,
         "etag": etag, "metadata": None}
        for name in names
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=FILES)


FAILURE = FailureCount(
    stage="extract", kind="not_audio", count=2, retryable=False, examples=("/a.mp3", "/b.mp3")
)


def snapshot(**values: Any) -> Snapshot:
    """Return a snapshot; what is not given is that of a run in the middle."""
    usual: dict[str, Any] = {
        "run_id": "run-1", "state": RUNNING, "started_at": "2026-01-01T12:00:00+00:00",
        "written_at": "2026-01-01T13:00:00+00:00", "elapsed_s": 3600.0, "host": "machine",
        "pid": 1, "listed": 100, "done_before": 20, "planned": 80, "planned_bytes": 8000,
        "files": 40, "failed": 2, "parts": 50, "parts_retried": 0, "audio_s": 36_000.0,
        "rtfx": 10.0, "eta_s": 3600.0, "last_commit_at": "2026-01-01T12:59:50+00:00",
        "extract_workers": 2, "transcribe_workers": 1, "failures": (FAILURE,),
        "activity": Activity(), "audio_done_s": 18_000.0, "audio_expected_s": 36_000.0,
        "audio_expected_range_s": (28_800.0, 43_200.0), "eta_range_s": (3000.0, 4200.0),
        "extract": "busy", "transcribe": "idle",
    }  # fmt: skip
    return Snapshot(**(usual | values))


def segment(
    text: str, start_s: float, end_s: float, *, words: bool = False, **values: Any
) -> Segment:
    """Return a segment; its words, if wanted, last equally long."""
    each = re.findall(r"\s*\S+", text)
    each_s = (end_s - start_s) / max(1, len(each))
    timed = tuple(
        Word(
            word=word,
            start_s=start_s + at * each_s,
            end_s=start_s + (at + 1) * each_s,
            probability=0.5,
        )
        for at, word in enumerate(each)
    )
    usual: dict[str, Any] = {
        "tokens": (1, 2), "language": "en", "language_probability": None, "task": "transcribe",
        "confidence": 0.9, "avg_logprob": -0.25, "no_speech_prob": 0.01, "compression_ratio": 1.5,
        "temperature": 0.0, "speech_fraction": None, "words": timed if words else None,
    }  # fmt: skip
    return Segment(text=text, start_s=start_s, end_s=end_s, **(usual | values))


def recording(*segments: Segment, uri: str = "/clips/talk.mp3") -> Recording:
    """Return a recording of one mixed channel."""
    return Recording(
        recording_id="r",
        uri=uri,
        duration_s=max((each.end_s for each in segments), default=0.0),
        language="en",
        segments=segments,
        channels=(None,) * len(segments),
        model="openai/whisper-tiny",
    )
