"""Moved recordings keep their results; when a listing last named one, and which are gone."""

import datetime
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.config.run import RunOptions
from corpus_asr.edits.corrections import Corrections
from corpus_asr.export.speakers import read_names, read_segments
from corpus_asr.storage.run_state.annotations import NAMES_NAME
from corpus_asr.storage.run_state.moved import Arrivals
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.source_listings import note_listing
from corpus_asr.storage.run_state.table_names import IDENTITIES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, open_binary
from corpus_asr.storage.stores.uri import recording_id
from tests.support.audio import wav_of
from tests.support.runs import REVISION, ManualRun, correct_segment, says
from tests.support.stores import life
from tests.support.tables import commit, complete, files, part, results, rows_of, stored_segments

pytestmark = pytest.mark.long


def text(name: str, number: int = 0) -> dict[str, Any]:
    return {"segment": number, "start_s": 2.0 * number, "end_s": 2.0 * number + 1, "text": name}


def done(folder: Path, *names: str) -> ManualRun:
    """A finished job in which every file says its name, and a later run is to begin."""
    job = ManualRun(folder, ())
    for name in names:
        put(job, name)
    job.begin()
    for name in names:
        job.commit(name, segments=[text(name)])
    job.finish()
    return job


def put(job: ManualRun, name: str, content: str | None = None, *, mtime: float = 0.0) -> None:
    """Write a file; all are of one size and time, as of loggers and in unpacked archives."""
    path = job.source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_of(f"{content or name:20}"))
    os.utime(path, (mtime, mtime))


def move(job: ManualRun, name: str, now: str) -> None:
    (job.source / now).parent.mkdir(parents=True, exist_ok=True)
    (job.source / name).rename(job.source / now)


def said(job: ManualRun) -> dict[str, str]:
    """Return the text of each recording, by where it lies now."""
    uris = {row["recording_id"]: row["uri"] for row in complete(job.store)}
    rows = rows_of(stored_segments(job.store))
    texts = {
        str(Path(uris[row["recording_id"]]).relative_to(job.source)): row["text"] for row in rows
    }
    assert len(texts) == len(rows), "each once"
    seen = read_segments(job.store.uri)
    present = {uris[row["recording_id"]] for row in rows}
    assert {*seen["uri"].to_pylist()} == present, "readers show the present address"
    return texts


def other(job: ManualRun) -> None:
    (job.source / "a.wav").unlink()
    put(job, "new.wav")


def copied(job: ManualRun) -> None:
    put(job, "new.wav", "a.wav")


def other_ends(job: ManualRun) -> None:
    """A folder is replaced by that of the next day, with equal names."""
    (job.source / "a.wav").unlink()
    put(job, "day/a.wav", "other")


def lengthened(job: ManualRun) -> None:
    move(job, "a.wav", "new.wav")
    (job.source / "new.wav").write_bytes(wav_of("longer" * 100))


@pytest.mark.parametrize("change", [other, copied, other_ends, lengthened])
def test_what_is_another_file_is_transcribed_whatever_its_time(
    tmp_path: Path, change: Callable[[ManualRun], None]
) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    change(job)
    job.begin()
    assert (job.plan.num_moved, job.plan.num_new, job.plan.num_remaining) == (0, 1, 1)
    job.finish()
    assert said(job) == {"a.wav": "a.wav", "b.wav": "b.wav"}


def test_a_file_that_was_moved_and_touched_keeps_its_text_and_its_correction(
    tmp_path: Path,
) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    correct_segment(job.store, "a.wav", "corrected")
    before = rows_of(stored_segments(job.store))
    move(job, "a.wav", "sub/new.wav")
    os.utime(job.source / "sub/new.wav", (9, 9))
    for _ in range(2):  # also by the next run
        job.begin()
        assert job.plan.num_remaining == 0
        job.finish()
        assert said(job) == {"sub/new.wav": "a.wav", "b.wav": "b.wav"}
    assert {row["run_id"] for row in rows_of(stored_segments(job.store))} == {before[0]["run_id"]}
    [own] = [row["recording_id"] for row in rows_of(job.store.recordings())
             if row["uri"] == str(job.source / "sub/new.wav")]  # fmt: skip
    assert own == recording_id(str(job.source / "a.wav")), "of where it was first seen"
    assert [each.text for each in Corrections.load(job.store).of(own)] == ["corrected"]
    etags = {row["uri"]: row["etag"] for row in rows_of(job.store.recordings())}
    assert etags[str(job.source / "sub/new.wav")].endswith("-9000000000")


def test_of_two_with_one_content_each_goes_by_its_name(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ())
    for name in ("x/1.wav", "x/2.wav", "x/3.wav", "stays.wav"):
        put(job, name, "alike")
    job.begin()
    for name in ("x/1.wav", "x/2.wav", "x/3.wav", "stays.wav"):
        job.commit(name, segments=[text(name)])
    job.finish()
    move(job, "x/2.wav", "z/2.wav")
    move(job, "x/3.wav", "a/renamed.wav")
    (job.source / "x/1.wav").unlink()
    put(job, "b/copy.wav", "alike")
    put(job, "c/copy.wav", "alike")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_new) == (3, 1)
    job.finish()
    found = said(job)
    assert found.pop("z/2.wav") == "x/2.wav"
    assert found.pop("stays.wav") == "stays.wav"
    assert {*found.values()} == {"x/1.wav", "x/3.wav"}
    assert {*found} < {"a/renamed.wav", "b/copy.wav", "c/copy.wav"}


@pytest.mark.parametrize("is_there", [True, False])
def test_what_another_source_lists_moves_only_from_where_nothing_is(
    tmp_path: Path, is_there: bool
) -> None:
    job = done(tmp_path, "first/a.wav", "first/b.wav")
    correct_segment(job.store, "first/a.wav", "corrected")
    note_listing(job.store, job.plan.name, job.config.source)
    put(job, "second/c.wav", "first/a.wav")  # a copy, which the other job brings
    if not is_there:  # or the project was renamed, and its job with it
        (job.source / "first/a.wav").unlink()
    source = job.config.source.model_copy(update={"uri": (str(job.source / "second"),)})
    job.config = job.config.model_copy(update={"source": source})
    job.begin()
    assert (job.plan.num_moved, job.plan.num_new) == ((0, 1) if is_there else (1, 0))
    name = "first/a.wav" if is_there else "second/c.wav"
    assert said(job) == {name: "first/a.wav", "first/b.wav": "first/b.wav"}
    assert Corrections.load(job.store).recording_ids == [
        recording_id(str(job.source / "first/a.wav"))
    ]


def test_what_an_earlier_version_transcribed_is_not_recognized(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["a.wav"])
    job.begin()
    job.commit("a.wav", content_digest=None)
    job.finish()
    move(job, "a.wav", "b.wav")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_new) == (0, 1)


def test_only_new_files_of_a_size_that_is_gone_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.wav" for number in range(8)]
    job = done(tmp_path, *names)
    for name in names[:2]:
        move(job, name, f"sub/{name}")
    (job.source / "longer.wav").write_bytes(wav_of("other" * 10))
    read: list[str] = []

    def opened(uri: str, *args: Any, **options: Any) -> Any:
        read.extend([Path(uri).name] if uri.endswith(".wav") else ())
        return open_binary(uri, *args, **options)

    monkeypatch.setattr(filesystem, "open_binary", opened)
    job.begin()
    assert (job.plan.num_moved, job.plan.num_new) == (2, 1)
    assert sorted(read) == names[:2]


MD5 = "0123456789abcdef0123456789abcdef"


def test_what_was_not_read_to_its_end_begins_anew_at_its_new_place(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["a.wav"])
    job.begin()
    job.commit("a.wav", last_part=False, segments=[text("first")])
    job.finish()
    move(job, "a.wav", "b.wav")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_remaining, job.plan.num_new) == (0, 1, 1)
    job.commit("b.wav", segments=[text("all")])
    job.finish()
    [recording] = complete(job.store)
    assert (recording["uri"], recording["parts"]) == (str(job.source / "b.wav"), 1)


def test_all_parts_follow_the_digest_of_the_last(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["a.wav"])
    job.begin()
    job.commit("a.wav", last_part=False, segments=[text("first")])
    job.commit("a.wav", part=1, segments=[text("second")])
    job.finish()
    move(job, "a.wav", "b.wav")
    os.utime(job.source / "b.wav", (1.0, 1.0))
    job.begin()
    assert (job.plan.num_moved, job.plan.num_remaining) == (1, 0)
    job.finish()
    assert [row["text"] for row in rows_of(stored_segments(job.store))] == ["first", "second"]
    [recording] = complete(job.store)
    assert (recording["uri"], recording["parts"]) == (str(job.source / "b.wav"), 2)


def test_what_people_and_later_runs_said_of_it_is_of_it_still(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    old, new = str(job.source / "a.wav"), str(job.source / "c.wav")
    own = recording_id(old)
    correct_segment(job.store, "a.wav", "corrected")
    says(job.store, old, (0.0, 1.0, "S1"))
    job.store.write_bytes(NAMES_NAME, f"uri,speaker,name\n{old},S1,Ada\n".encode())
    move(job, "a.wav", "c.wav")
    before = contents(job, "outcomes", "segments", "speakers", "corrections")
    job.begin()
    assert contents(job, "outcomes", "segments", "speakers", "corrections") == before
    job.finish()
    assert {row["recording_id"] for row in complete(job.store) if row["uri"] == new} == {own}
    assert [each.text for each in Corrections.load(job.store).of(own)] == ["corrected"]
    assert read_names(job.store) == {(own, "S1"): "Ada"}


def contents(job: ManualRun, *folders: str) -> dict[str, bytes]:
    """Return the objects in some folders."""
    names = (name for folder in folders for name in job.store.all_names(folder))
    return {name: Path(job.store.address(name)).read_bytes() for name in names}


def test_a_plan_alone_moves_nothing(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav")
    move(job, "a.wav", "b.wav")
    before = sorted(job.store.all_names("segments"))
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_moved, plan.num_remaining) == (1, 0)
    assert [str(move) for move in plan.moves.values()] == [
        f"{job.source / 'a.wav'} -> {job.source / 'b.wav'}"
    ]
    assert sorted(job.store.all_names("segments")) == before
    assert not job.store.exists(IDENTITIES_NAME)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_with_moves_killed_anywhere_loses_nothing(tmp_path: Path, step: int) -> None:
    job = done(tmp_path, "a.wav", "b.wav", "d.wav")
    correct_segment(job.store, "a.wav", "corrected")
    names = f"uri,speaker,name\n{job.source / 'a.wav'},S1,Ada\n"
    job.store.write_bytes(NAMES_NAME, names.encode())
    move(job, "a.wav", "c.wav")
    job.begin()
    job.finish()
    move(job, "d.wav", "e.wav")
    put(job, "a.wav", "another")  # at the address that was left
    own, whole = recording_id(str(job.source / "a.wav")), job.store.uri
    for moment in itertools.count(0, step):
        job.store = OutputStore(str(shutil.copytree(whole, tmp_path / str(moment))))
        with life(moment) as process:
            job.begin()
            job.finish()
        texts = {row["text"] for row in rows_of(stored_segments(job.store))}
        assert texts == {"a.wav", "b.wav", "d.wav"}, "nothing is lost at any moment"
        job.begin()
        assert (job.plan.num_remaining, job.plan.num_new) == (1, 1)
        job.commit("a.wav", segments=[text("another")])
        job.finish()
        assert said(job) == {
            "a.wav": "another", "b.wav": "b.wav", "c.wav": "a.wav", "e.wav": "d.wav",
        }  # fmt: skip
        assert [each.text for each in Corrections.load(job.store).of(own)] == ["corrected"]
        assert read_names(job.store) == {(own, "S1"): "Ada"}
        shutil.rmtree(job.store.uri)
        if not process.killed:
            break
    assert moment > 10


def test_what_is_to_be_done_again_is_known_though_a_run_was_killed_after_noting_it(
    tmp_path: Path,
) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "c.wav")
    redo = RunOptions(redo="all")
    plan = make_plan(job.config, job.store, model_revision=REVISION, options=redo)
    assert plan.redo is not None
    note_redo(job.store, plan.redo)  # and no more
    again = make_plan(job.config, job.store, model_revision=REVISION)
    assert (again.num_moved, again.num_new, again.num_redone) == (1, 0, 2)
    job.begin()
    assert {Path(row["uri"]).name for row in complete(job.store)} == {"b.wav", "c.wav"}


def test_since_when_no_listing_names_a_recording(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")

    def gone_since() -> dict[str, datetime.datetime | None]:
        return {Path(row["uri"]).name: row["gone_since"] for row in rows_of(job.store.recordings())}

    assert gone_since() == {"a.wav": None, "b.wav": None}
    (job.source / "a.wav").unlink()
    began = list[datetime.datetime]()
    for _ in range(2):
        job.begin()
        job.finish()
        began.append(datetime.datetime.fromisoformat(job.run.started_at))
        assert gone_since() == {"a.wav": began[0], "b.wav": None}
    put(job, "a.wav")
    job.begin()
    job.commit("a.wav", segments=[text("again")])
    job.finish()
    assert gone_since() == {"a.wav": None, "b.wav": None}


def test_what_an_unreadable_archive_may_hold_is_neither_gone_nor_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(str(tmp_path))
    names = ("/a.tar#one.wav", "/a.tar#two.wav", "/b.tar#one.wav", "/c.wav")
    parts = (part(name[1:], 0, texts=["x"], content_digest=MD5) for name in names)
    commit(store, results(*parts))
    # The files that are new have the content of all four.
    new = files("moved/one.wav", "moved/two.wav", "moved/c.wav")
    listing = [files("a.tar#*"), new]
    with RunTables(store, listing=listing[:1]) as tables:
        gone = tables.rows("select uri from recordings where gone order by uri")
        assert gone == [("/b.tar#one.wav",), ("/c.wav",)]
        arrivals = Arrivals(tables)
        arrivals.add(pa.Table.from_batches(listing[1:]), pa.Table.from_batches(listing[1:]))
        moves = arrivals.changes(
            store, DEFAULT_STORE, inspect=lambda _, files, *__: [MD5 for _ in files]
        ).moves
    assert {each.old_uri: each.uri for each in moves.values()} == {
        "/b.tar#one.wav": "/moved/one.wav", "/c.wav": "/moved/c.wav"
    }  # fmt: skip
