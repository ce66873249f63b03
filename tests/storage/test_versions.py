"""Versions of recordings: text is replaced by text alone, whatever comes between, and by one."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus_asr.export.recordings import Selection, open_selection, recordings
from corpus_asr.report.run import load_report, render
from corpus_asr.storage.run_state.finish import OutcomeCounts, finish
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.run_files import Run, begin_run
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.catalogue import read_catalogue
from tests.support.stores import life
from tests.support.tables import (
    commit,
    files,
    part,
    remaining,
    results,
    run_config,
)

PARTS = {"a": 1, "b": 3}


def failure(name: str, index: int, *, kind: str = "access_denied", **values: Any) -> dict[str, Any]:
    kinds: dict[str, Any] = {"error_stage": "extract", "error_kind": kind,
                             "error_message": f"reading /{name}: no"}  # fmt: skip
    return part(name, index, texts=None, status="failed", retryable=False, **kinds, **values)


def good(name: str, index: int, etag: str | None, asked: int = 0) -> dict[str, Any]:
    last = index == PARTS[name] - 1
    again = f" {asked}" if asked else ""
    return part(name, index, texts=[f"{etag} {index}{again}"], etag=etag, last=last)


def whole(name: str, etag: str | None) -> list[dict[str, Any]]:
    return [good(name, index, etag) for index in range(PARTS[name])]


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

    def begin(self) -> Run:
        self.number += 1
        return begin_run(self.store, self.config, "f-r", run_id=f"run-{self.number:03d}")

    def finish(self, run: Run, listing: pa.RecordBatch) -> OutcomeCounts:
        return finish(
            self.store, run, self.config, model_revision="r", listing=[listing],
            num_listed=listing.num_rows,
        )  # fmt: skip

    def read(self, table: str) -> list[dict[str, Any]]:
        paths = sorted((self.path / table).glob("*.parquet"))
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    def texts(self) -> dict[str, list[str]]:
        """Return the texts of recordings in the table of segments."""
        found: dict[str, list[str]] = {}
        for row in sorted(self.read("segments"), key=lambda row: row["part"]):
            found.setdefault(row["uri"][1:], []).append(row["text"])
        return found

    def exported(self) -> dict[str, list[str]]:
        selection = Selection(partial=True)
        with open_selection(self.store, selection) as tables:
            found = recordings(self.store, tables, selection)
            return {each.uri[1:]: [segment.text for segment in each.segments] for each in found}

    def left(self, listing: pa.RecordBatch) -> dict[str, list[int]]:
        return {row["uri"][1:]: row["done_parts"] for row in remaining(self.store, listing)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def versions(**etags: str | None) -> pa.RecordBatch:
    batches = [files(name, etag=etag) for name, etag in etags.items()]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


NOW, NEW = versions(a="v1", b="v1"), versions(a="v2", b="v2")
OLD = {"a": ["v1 0"], "b": ["v1 0", "v1 1", "v1 2"]}


def test_a_run_that_does_not_come_to_changed_recordings_keeps_their_text(folder: Folder) -> None:
    folder.run(*whole("a", "v1"), *whole("b", "v1"), listing=NOW)
    counts = folder.run(listing=NEW)
    assert (counts.ok, counts.failed, counts.remaining, counts.earlier) == (0, 0, 2, 2)
    assert not folder.store.exists("_SUCCESS")
    assert folder.texts() == folder.exported() == OLD
    assert [row["status"] for row in folder.read("recordings")] == ["ok", "ok"]
    assert folder.left(NEW) == {"a": [], "b": []}


@pytest.mark.parametrize("kind", ["access_denied", "timeout", "decode", "poison"])
def test_a_version_that_failed_leaves_the_text_before_it_and_is_known(
    folder: Folder, kind: str
) -> None:
    folder.run(*whole("a", "v1"), *whole("b", "v1"), listing=NOW)
    failures = [failure(name, 0, kind=kind, etag="v2") for name in "ab"]
    counts = folder.run(*failures, listing=NEW)
    assert (counts.ok, counts.failed, counts.remaining, counts.earlier) == (0, 2, 0, 2)
    assert (counts.processed, counts.processed_failed) == (2, 2)
    assert folder.store.exists("_SUCCESS")
    assert folder.texts() == folder.exported() == OLD
    assert {row["etag"] for row in folder.read("recordings")} == {"v1"}
    failed = [row for row in folder.read("outcomes") if row["status"] == "failed"]
    assert [(row["etag"], row["error_kind"]) for row in failed] == [("v2", kind)] * 2
    assert set(folder.left(NEW)) == (set("ab") if kind in ("access_denied", "timeout") else set())
    shown = read_catalogue(folder.store).tables.rows("select state from shown")
    assert shown == [("done",), ("done",)]
    report = load_report(folder.store)
    assert report.accounting.problems == ()
    assert [group.kind for group in report.statistics.failures] == [kind]
    assert f"2 recordings: {kind}, in extract" in render(report)


def test_a_version_that_is_done_replaces_the_one_before_it(folder: Folder) -> None:
    folder.run(*whole("b", "v1"), listing=versions(b="v1"))
    listing = versions(b="v2")
    folder.run(failure("b", 0, etag="v2"), listing=listing)
    assert folder.run(*whole("b", "v2"), listing=listing).ok == 1
    assert folder.texts() == {"b": ["v2 0", "v2 1", "v2 2"]}
    assert {row["etag"] for row in folder.read("outcomes")} == {"v2"}


def test_a_half_done_version_is_hidden_and_gone_on_with(folder: Folder) -> None:
    folder.run(*whole("b", "v1"), listing=versions(b="v1"))
    listing = versions(b="v2")
    counts = folder.run(good("b", 0, "v2"), good("b", 2, "v2"), listing=listing)
    assert (counts.remaining, counts.earlier) == (1, 1)
    for _ in range(2):
        assert folder.texts() == folder.exported() == {"b": OLD["b"]}
        assert folder.left(listing) == {"b": [0, 2]}
        assert load_report(folder.store).accounting.problems == ()
        folder.run(listing=listing)
    commit(folder.store, results(good("b", 1, "v2")), run_id="run-009")
    new = {"b": ["v2 0", "v2 1", "v2 2"]}
    assert folder.exported() == new, "as soon as it is committed"
    assert folder.run(listing=listing).ok == 1
    assert folder.texts() == folder.exported() == new
    assert not list((folder.path / "_run" / "pending").rglob("*.parquet"))


def test_content_that_comes_back_has_its_text_without_any_work(folder: Folder) -> None:
    folder.run(*whole("a", "v1"), listing=versions(a="v1"))
    folder.run(failure("a", 0, etag="v2", kind="decode"), listing=versions(a="v2"))
    back = versions(a="v1")
    assert folder.left(back) == {}
    assert folder.run(listing=back).ok == 1
    assert [row["status"] for row in folder.read("outcomes")] == ["ok"]


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


attempt = st.tuples(
    st.sampled_from(["v1", "v2", "v3", None]),  # what is listed
    st.sets(st.integers(0, 2), max_size=3),  # parts that the run comes to
    st.sampled_from(["good", "good", "access_denied", "decode"]),
    st.sampled_from([0, 1, 2]),  # the part that fails
    st.sampled_from([None, None, 0, 3, 6, 10]),  # when the finish is killed first
    st.sampled_from([False, False, True]),  # whether it is asked to be done again before
)


@settings(max_examples=4, deadline=None)
@given(history=st.lists(attempt, min_size=2, max_size=7))
@example(history=[
    ("v1", {0, 1, 2}, "good", 0, None, False), ("v2", {0}, "good", 0, None, False),
    ("v2", {0, 1, 2}, "decode", 1, None, False), ("v1", set(), "good", 0, None, False),
    ("v3", {1}, "access_denied", 0, 3, False), ("v3", {0, 1, 2}, "good", 0, None, False),
])  # fmt: skip
@example(history=[
    (None, {0}, "access_denied", 1, None, False), ("v3", {0, 1}, "good", 0, None, False),
    ("v3", set(), "good", 0, None, False),
])  # fmt: skip
@example(history=[
    ("v1", {2}, "good", 0, None, False), (None, {0}, "good", 0, None, False),
    (None, set(), "good", 0, None, False),
])  # fmt: skip
@example(history=[
    ("v1", {0, 1, 2}, "good", 0, None, False), ("v1", {1}, "good", 0, 3, True),
    ("v1", {0}, "decode", 0, None, False), ("v1", {2}, "good", 0, None, True),
    ("v2", {0, 1}, "good", 0, None, True), ("v2", {2}, "good", 0, 6, False),
])  # fmt: skip
def test_whatever_happens_complete_text_stays_complete(
    tmp_path_factory: pytest.TempPathFactory, history: Sequence[tuple[Any, ...]]
) -> None:
    folder = Folder(tmp_path_factory.getbasetemp() / uuid.uuid4().hex)
    had_text = False
    before: tuple[str | None, set[int]] = ("", set())
    for etag, reached, what, failing, killed, again in history:
        listing = versions(b=etag)
        if again:
            folder.ask_again()
        todo = folder.left(listing)
        assert not again or set(todo.get("b", ())) == set(), "nothing of it is done"
        if before[0] == etag and "b" in todo and not again:
            assert before[1] <= {*todo["b"]}, "what was done of this version is kept"
        wanted = sorted(reached - {*todo.get("b", range(3))})
        rows = [good("b", index, etag, folder.asked) for index in wanted
                if what == "good" or index < failing]  # fmt: skip
        if what != "good" and wanted:
            taken = {*todo["b"], *(row["part"] for row in rows)}
            free = next(index for index in range(4) if index not in taken)
            rows.append(failure("b", free, kind=what, etag=etag))
        run = folder.begin()
        for row in rows:
            commit(folder.store, results(row), run_id=run.run_id)
        if killed is not None:
            with life(killed):
                folder.finish(run, listing)
            if had_text:
                assert len(folder.exported()["b"]) == 3, "also while a finish is killed"
        counts = folder.finish(run, listing)
        done = {row["part"] for row in rows if row["status"] == "ok"} | {*todo.get("b", ())}
        before = (etag, done if "b" in folder.left(listing) else set())
        had_text = check(folder, listing, counts, had_text=had_text)
    said = folder.texts()
    again = folder.finish(folder.begin(), listing)
    assert folder.texts() == said
    assert (again.ok, again.failed, again.remaining) == (counts.ok, counts.failed, counts.remaining)


def check(
    folder: Folder, listing: pa.RecordBatch, counts: OutcomeCounts, *, had_text: bool
) -> bool:
    """Compare all readers after a finish; return whether there is complete text."""
    said = folder.texts().get("b", [])
    # Without a version a listing fits any, and may go on with it.
    known = {text.split()[0] for text in said} - {"None"}
    assert len(known) <= 1, "of one version"
    assert len({text.split()[2:] == [] or text.split()[2] for text in said}) <= 1, "asked for once"
    rows = folder.read("recordings")
    complete = bool(rows) and rows[0]["status"] == "ok"
    assert complete or not had_text
    if complete:
        assert [text.split()[1] for text in said] == ["0", "1", "2"]
        assert counts.ok + counts.earlier >= 1
    assert folder.exported().get("b", []) == said
    found = load_report(folder.store)
    report = found.statistics
    assert found.accounting.problems == ()
    assert (report.ok, report.failed) == (
        int(complete), int(bool(rows) and rows[0]["status"] == "failed"),
    )  # fmt: skip
    assert counts.listed == 1 == counts.ok + counts.failed + counts.remaining
    assert (counts.failed > 0) <= bool(report.failures)
    named = json.loads((folder.path / "_run" / "tables.json").read_text())
    assert {name for name in named if name.startswith("outcomes")} == {
        f"outcomes/{path.name}" for path in (folder.path / "outcomes").glob("*.parquet")
    }
    return complete
