"""Every failure is in the list or the file, with what to do; the file reads as a manifest."""

import csv
import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_asr.config.run import SourceSettings
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report.numbers import (
    CSV_COLUMNS,
    collect_failures,
    failure_examples,
    failure_groups,
    failures_csv,
)
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import put_nested


def failed(recording: str, kind: str | None = "not_audio", **values: Any) -> dict[str, Any]:
    usual = {
        "run_id": "run", "recording_id": recording, "uri": f"/audio/{recording}.mp3",
        "last_part": True, "status": "failed", "error_stage": "extract", "error_kind": kind,
        "error_message": f"decoding {recording}", "retryable": False,
    }  # fmt: skip
    return usual | values


@contextmanager
def collected(*rows: dict[str, Any], size: int = 3) -> Iterator[RunTables]:
    store = OutputStore(f"memory://{uuid.uuid4().hex}")
    table = pa.Table.from_pylist([{"part": at, **row} for at, row in enumerate(rows)], OUTCOMES)
    for batch in table.to_batches(max_chunksize=size):
        put_nested(store, pa.Table.from_batches([batch]), SEGMENTS.empty_table())
    with RunTables(store) as tables:
        collect_failures(tables)
        yield tables


def in_csv(tables: RunTables) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(failures_csv(tables).decode())))


def test_each_recording_and_kind_is_listed_once_by_kind_and_address() -> None:
    rows = [failed("c"), failed("a"), failed("a", error_message="its second part")]
    rows += [failed("a", "timeout", retryable=True), failed("b", None, error_stage="")]
    with collected(*rows) as tables:
        groups, in_file = failure_groups(tables), in_csv(tables)
        first = failure_examples(tables, 1, of_groups=2)
    assert [(each["uri"][-5:], each["kind"], each["message"]) for each in in_file] == [
        ("a.mp3", "not_audio", "decoding a"), ("c.mp3", "not_audio", "decoding c"),
        ("a.mp3", "timeout", "decoding a"), ("b.mp3", "unknown", "decoding b"),
    ]  # fmt: skip
    assert [(each.stage, each.kind, each.recordings, each.retryable) for each in groups] == [
        ("extract", "not_audio", 2, False), ("extract", "timeout", 1, True),
        ("unknown", "unknown", 1, False),
    ]  # fmt: skip
    assert [example.message for example in groups[0].examples] == ["decoding a", "decoding c"]
    assert [(group, len(examples)) for group, examples in first.items()] == [(0, 1), (1, 1)]
    with collected() as tables:
        assert failure_examples(tables, 10) == {}


def test_of_many_failures_the_first_of_each_kind_are_listed_and_all_are_in_the_file() -> None:
    rows = [failed(f"{number:04}") for number in range(500)]
    rows += [failed(f"t{number}", "timeout") for number in range(3)]
    with collected(*rows, size=100) as tables:
        examples, in_file = failure_examples(tables, 20), in_csv(tables)
        [most, _] = failure_groups(tables)
    assert (most.kind, most.recordings, most.retryable) == ("not_audio", 500, False)
    assert [example.uri[-8:] for example in most.examples] == ["0000.mp3", "0001.mp3", "0002.mp3"]
    assert {group: len(listed) for group, listed in examples.items()} == {0: 20, 1: 3}
    assert len(in_file) == 503


def test_the_file_says_what_to_do_and_is_a_manifest(tmp_path: Path) -> None:
    secret = "hunter2secret"
    rows = [
        failed("a", "timeout", retryable=True, uri='s3://bucket/it\'s, a "name".mp3'),
        failed("b", error_message=f"reading https://u:{secret}@h/x?token={secret}:\nno"),
        failed("c", "=cmd|' /C calc'!A0", error_message="@SUM(1)", error_stage="-1+1"),
    ]
    path = tmp_path / "page.failures.csv"
    with collected(*rows) as tables:
        path.write_bytes(failures_csv(tables))
        found = {row["recording_id"]: row for row in in_csv(tables)}
    assert secret not in path.read_text()
    assert tuple(found["a"]) == CSV_COLUMNS
    assert found["a"]["uri"] == rows[0]["uri"]
    assert (found["a"]["retryable"], found["b"]["retryable"]) == ("yes", "no")
    assert found["b"]["advice"] == failure_kind("not_audio").advice
    # What a spreadsheet would take for formulas is text there.
    texts = [found["c"][name] for name in ("stage", "kind", "message")]
    assert texts == ["'-1+1", "'=cmd|' /C calc'!A0", "'@SUM(1)"]
    (batch,) = FileListing(SourceSettings(manifest=(str(path),)))
    assert sorted(batch["uri"].to_pylist()) == sorted(row["uri"] for row in rows)
