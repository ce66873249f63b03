"""Versions of recordings: text is replaced by text alone, whatever comes between, and by one."""

import json
import shutil
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus_asr.export.recordings import Selection, open_selection, recordings
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.finish import OutcomeCounts, finish
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.moved import Move
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.rewriting import write_identities
from corpus_asr.storage.run_state.run_files import RunRecord, begin_run
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.seen_segments import SeenSegments
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.stores import life
from tests.support.tables import (
    commit,
    files,
    part,
    plain_read,
    remaining,
    results,
    run_config,
)

pytestmark = pytest.mark.long
ID = recording_id("/b")


def failure(name: str, index: int, *, kind: str = "access_denied", **values: Any) -> dict[str, Any]:
    kinds: dict[str, Any] = {"error_stage": "extract", "error_kind": kind,
                             "error_message": f"reading /{name}: no"}  # fmt: skip
    return part(name, index, texts=None, status="failed", retryable=False, **kinds, **values)


def parts_of(name: str) -> int:
    return 1 if name == "a" else 3


def good(name: str, index: int, etag: str | None, asked: int = 0) -> dict[str, Any]:
    last = index == parts_of(name) - 1
    again = f" {asked}" if asked else ""
    return part(name, index, texts=[f"{etag} {index}{again}"], etag=etag, last=last)


def whole(name: str, etag: str | None) -> list[dict[str, Any]]:
    return [good(name, index, etag) for index in range(parts_of(name))]


class Folder:
    """An output folder in local files, so that it can be read as any Parquet reader does."""

    def __init__(self, path: Path) -> None:
        self.path, self.store = path, OutputStore(str(path))
        self.config = run_config("/in", str(path), model="tiny")
        self.number = self.asked = 0

    def ask_again(self) -> None:
        """Ask for all recordings to be done again."""
        self.asked += 1
        with RunTables(self.store) as tables:
            ids = tables.table("select recording_id from recordings")["recording_id"]
            note_redo(self.store, tables.do_again(ids.combine_chunks()))

    def run(self, *rows: dict[str, Any], listing: pa.RecordBatch) -> OutcomeCounts:
        """Commit rows as one more run, and finish it."""
        run = self.begin()
        for row in rows:
            commit(self.store, results(row), run_id=run.run_id)
        return self.finish(run, listing)

    def begin(self) -> RunRecord:
        self.number += 1
        return begin_run(self.store, self.config, "f-r", run_id=f"run-{self.number:03d}")

    def finish(self, run: RunRecord, listing: pa.RecordBatch) -> OutcomeCounts:
        return finish(
            self.store, run, self.config, model_revision="r", listing=[listing],
            num_listed=listing.num_rows,
        )  # fmt: skip

    def read(self, table: str) -> list[dict[str, Any]]:
        return plain_read(self.path, table)

    def texts(self) -> dict[str, list[str]]:
        """Return the texts of recordings in the table of segments."""
        found: dict[str, list[str]] = {}
        uris = Identities.read(self.store).addresses_of([ID])
        for row in sorted(self.read("segments"), key=lambda row: row["part"]):
            uri = uris.get(row["recording_id"], row["uri"])
            found.setdefault(uri[1:], []).append(row["text"])
        return found

    def exported(self) -> dict[str, list[str]]:
        selection = Selection(partial=True)
        with open_selection(self.store, selection) as tables:
            found = recordings(SeenSegments(self.store, tables), tables, selection)
            return {each.uri[1:]: [segment.text for segment in each.segments] for each in found}

    def left(self, listing: pa.RecordBatch) -> dict[str, list[int]]:
        return {row["uri"][1:]: row["done_parts"] for row in remaining(self.store, listing)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def versions(**etags: str | None) -> pa.RecordBatch:
    if not etags:
        return files()
    batches = [files(name, etag=etag) for name, etag in etags.items()]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


NOW, NEW = versions(a="v1", b="v1"), versions(a="v2", b="v2")


def test_failures_are_told_by_kind_whatever_an_earlier_program_stored(folder: Folder) -> None:
    rows = [failure("a", 0, etag="v1"), failure("b", 0, etag="v1", kind="decode")]
    folder.run(*(row | {"retryable": kind} for row, kind in zip(rows, (False, True), strict=True)),
               listing=NOW)  # fmt: skip
    assert folder.left(NOW) == {"a": []}


def test_the_newer_failure_is_found_in_merged_commits(folder: Folder) -> None:
    folder.run(*whole("a", "v1"), *whole("b", "v1"), listing=NOW)
    folder.run(*(failure(name, 0, etag="v2", kind="decode") for name in "ab"), listing=NEW)
    assert len(folder.store.names("outcomes")) == 1, "merged"
    with RunTables(folder.store) as run:
        assert run.rows("select uri from failing order by uri") == [("/a",), ("/b",)]


GONE = "gone"


class Attempt(NamedTuple):
    """What happens to the recording before a run, and in it."""

    etag: str | None
    """That is listed; `GONE`: the recording is not."""
    reached: Collection[int]
    """Parts that the run comes to."""
    what: str = "good"
    failing: int = 0
    """The part that fails, if anything does."""
    killed: int | None = None
    """After so many changes the finish is killed first."""
    again: bool = False
    """Whether it is asked to be done again before."""
    moved: int | None = None
    """Whether it was moved before, and after how many changes noting that is killed first."""


attempts = st.builds(
    Attempt,
    st.sampled_from(["v1", "v1", "v2", "v2", "v3", None, GONE]),
    st.sets(st.integers(0, 2), max_size=3),
    st.sampled_from(["good", "good", "access_denied", "decode"]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([None, None, 0, 3, 6, 10]),
    st.sampled_from([False, False, True]),
    st.sampled_from([None, None, None, 0, 99]),
)
ALL = {0, 1, 2}


# One that is new each time beside those that once failed, each some seconds of opening tables;
# `--hypothesis-profile many` takes some hundreds.
@settings(max_examples=settings().max_examples // 10, deadline=None)
@given(history=st.lists(attempts, min_size=2, max_size=7))
@example(history=[
    Attempt("v1", ALL), Attempt("v2", {0}), Attempt("v2", ALL, "decode", 1), Attempt("v1", ()),
    Attempt("v3", {1}, "access_denied", killed=3), Attempt("v3", ALL),
])  # fmt: skip
@example(history=[
    Attempt(None, {0}, "access_denied", 1), Attempt("v3", {0, 1}), Attempt("v3", ()),
])  # fmt: skip
@example(history=[Attempt("v1", {2}), Attempt(None, {0}), Attempt(None, ())])
@example(history=[
    Attempt("v1", ALL), Attempt("v1", {1}, killed=3, again=True), Attempt("v1", {0}, "decode"),
    Attempt("v1", {2}, again=True), Attempt("v2", {0, 1}, again=True), Attempt("v2", {2}, killed=6),
])  # fmt: skip
@example(history=[
    Attempt("v1", ALL), Attempt("v2", {1}, again=True), Attempt(GONE, (), moved=0),
    Attempt("v2", {0}, killed=3, moved=99), Attempt("v1", ALL, "decode", 2), Attempt("v2", {2}),
])  # fmt: skip
def test_whatever_happens_complete_text_stays_complete(
    tmp_path_factory: pytest.TempPathFactory, history: Sequence[Attempt]
) -> None:
    path = tmp_path_factory.getbasetemp() / uuid.uuid4().hex
    folder = Folder(path)
    name, had_text = "b", False
    before: tuple[str | None, set[int]] = ("", set())
    for number, each in enumerate(history):
        if each.moved is not None:
            name = move(folder, name, f"b{number}", each.moved)
        listed = versions(**({} if each.etag == GONE else {name: each.etag}))
        listing = listed_as(folder, listed)
        if each.again:
            folder.ask_again()
        todo = folder.left(listing)
        assert not each.again or set(todo.get(name, ())) == set(), "nothing of it is done"
        if before[0] == each.etag and name in todo and not each.again:
            assert before[1] <= {*todo[name]}, "what was done of this version is kept"
        rows = attempted(each, name, todo.get(name), folder.asked)
        run = folder.begin()
        for row in rows:
            commit(folder.store, results(row | {"recording_id": ID}), run_id=run.run_id)
        if each.killed is not None:
            with life(each.killed):
                folder.finish(run, listing)
            if had_text:
                assert len(folder.exported()[name]) == 3, "also while a finish is killed"
        counts = folder.finish(run, listing)
        done = {row["part"] for row in rows if row["status"] == "ok"} | {*todo.get(name, ())}
        before = (each.etag, done if name in folder.left(listing) else set())
        had_text = check(folder, listing, counts, had_text=had_text)
        assert {*folder.texts()} <= {name}, "nowhere else"
    check_report(folder, counts)
    said = folder.texts()
    again = folder.finish(folder.begin(), listing)
    assert folder.texts() == said
    assert (again.ok, again.failed, again.remaining) == (counts.ok, counts.failed, counts.remaining)
    shutil.rmtree(path)


def move(folder: Folder, name: str, now: str, changes: int) -> str:
    """Let a recording be at another address, killed after so many changes first."""
    with life(changes):
        note_move(folder.store, name, now)
    if Identities.read(folder.store).id_of(f"/{now}") != ID:
        note_move(folder.store, name, now)
    return now


def note_move(store: OutputStore, name: str, now: str) -> None:
    identities = Identities.read(store)
    identities.move({ID: Move(f"/{name}", f"/{now}")})
    write_identities(store, identities)


def listed_as(folder: Folder, listed: pa.RecordBatch) -> pa.RecordBatch:
    """Return what is listed, as a plan has it."""
    files = pa.Table.from_batches([listed])
    named = Identities.read(folder.store).name_files(files)
    return named.combine_chunks().to_batches()[0] if named.num_rows else listed


def attempted(each: Attempt, name: str, done: list[int] | None, asked: int) -> list[dict[str, Any]]:
    """Return the rows that a run commits of what is left."""
    if done is None:
        return []
    wanted = sorted(set(each.reached) - {*done})
    rows = [good(name, index, each.etag, asked) for index in wanted
            if each.what == "good" or index < each.failing]  # fmt: skip
    if each.what != "good" and wanted:
        taken = {*done, *(row["part"] for row in rows)}
        free = next(index for index in range(4) if index not in taken)
        rows.append(failure(name, free, kind=each.what, etag=each.etag))
    return rows


def check(
    folder: Folder, listing: pa.RecordBatch, counts: OutcomeCounts, *, had_text: bool
) -> bool:
    """Compare the tables and an export after a finish; return whether there is complete text."""
    [said] = folder.texts().values() or [[]]
    # Without a version a listing fits any, and may go on with it.
    known = {text.split()[0] for text in said} - {"None"}
    assert len(known) <= 1, "of one version"
    assert len({text.split()[2:] == [] or text.split()[2] for text in said}) <= 1, "asked for once"
    rows = folder.read("recordings")
    complete = bool(rows) and rows[0]["status"] == "ok"
    assert complete or not had_text
    assert [row["gone_since"] is not None for row in rows] == [not listing.num_rows] * len(rows)
    if complete:
        assert [text.split()[1] for text in said] == ["0", "1", "2"]
        assert counts.ok + counts.earlier >= listing.num_rows
    assert [*folder.exported().values()] == ([said] if said else [])
    assert counts.listed == listing.num_rows == counts.ok + counts.failed + counts.remaining
    named = json.loads((folder.path / "_run" / "tables.json").read_text())
    assert {name for name in named["tables"] if name.startswith("outcomes")} == {
        f"outcomes/{path.name}" for path in (folder.path / "outcomes").glob("*.parquet")
    }
    return complete


def check_report(folder: Folder, counts: OutcomeCounts) -> None:
    """Compare the report with the tables."""
    rows = folder.read("recordings")
    status = [row["status"] for row in rows]
    found = load_report(folder.store)
    report = found.statistics
    assert found.accounting.problems == ()
    assert (report.ok, report.failed) == (status.count("ok"), status.count("failed"))
    assert (counts.failed > 0) <= bool(report.failures)
