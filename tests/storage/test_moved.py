"""Moved recordings keep their results; when a listing last named one, and which are gone."""

import datetime
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.run import RunOptions
from corpus_asr.storage.run_state.corrections import Corrections
from corpus_asr.storage.run_state.moved import MOVING_NAME, Arrivals
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.rewriting import NAMES_NAME
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import REVISION, ManualRun, correct_segment, says
from tests.support.stores import life
from tests.support.tables import commit, complete, files, part, results, rows_of

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


def put(job: ManualRun, name: str, *, mtime: float | None = None) -> None:
    path = job.source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"sound")
    if mtime is not None:
        os.utime(path, (mtime, mtime))


def move(job: ManualRun, name: str, now: str) -> None:
    (job.source / now).parent.mkdir(parents=True, exist_ok=True)
    (job.source / name).rename(job.source / now)


def said(job: ManualRun) -> dict[str, str]:
    """Return the text of each recording, by where it lies now."""
    rows = rows_of(job.store.segments())
    for row in rows:
        assert row["recording_id"] == recording_id(row["uri"])
    found = {str(Path(row["uri"]).relative_to(job.source)): row["text"] for row in rows}
    assert len(found) == len(rows), "each once"
    return found


def test_a_renamed_file_keeps_its_text_whatever_it_is_called(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "sub/talk of Ada.wav")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_remaining, job.plan.num_done) == (1, 0, 2)
    assert job.plan.notes() == ["1 recording moved: their results follow them"]
    job.finish()
    assert said(job) == {"sub/talk of Ada.wav": "a.wav", "b.wav": "b.wav"}
    recordings = rows_of(job.store.recordings())
    assert sorted(row["uri"] for row in recordings) == sorted(
        str(job.source / name) for name in ("b.wav", "sub/talk of Ada.wav")
    )
    assert {row["gone"] for row in recordings} == {False}
    assert not job.store.exists(MOVING_NAME)
    assert "moves" not in job.plan.as_data()
    job.begin()
    assert (job.plan.num_moved, job.plan.num_remaining) == (0, 0)


def test_a_renamed_folder_needs_no_transcription_although_all_versions_are_alike(
    tmp_path: Path,
) -> None:
    names = [f"{show}/{number}.wav" for show in ("x", "y") for number in range(3)]
    job = ManualRun(tmp_path, ())
    for name in names:
        put(job, name, mtime=1_600_000_000)  # as unpacked
    job.begin()
    for name in names:
        job.commit(name, segments=[text(name)])
    job.finish()
    (job.source / "all").mkdir()
    for show in ("x", "y"):
        move(job, show, f"all/{show}")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_remaining) == (6, 0)
    job.finish()
    assert said(job) == {f"all/{name}": name for name in names}


def unlike(job: ManualRun) -> None:
    (job.source / "a.wav").unlink()
    put(job, "new.wav")


def copied(job: ManualRun) -> None:
    (job.source / "new.wav").write_bytes((job.source / "a.wav").read_bytes())
    os.utime(job.source / "new.wav", ns=(0, (job.source / "a.wav").stat().st_mtime_ns))


def twice(job: ManualRun) -> None:
    version = (job.source / "a.wav").stat().st_mtime_ns
    (job.source / "a.wav").unlink()
    for name in ("new.wav", "other.wav"):
        put(job, name)
        os.utime(job.source / name, ns=(0, version))


def alike(job: ManualRun) -> None:
    """A file of another name has the version of one that stays, and of one that goes."""
    version = (job.source / "b.wav").stat().st_mtime_ns
    (job.source / "a.wav").unlink()
    put(job, "new.wav")
    os.utime(job.source / "new.wav", ns=(0, version))


@pytest.mark.parametrize("change", [unlike, copied, twice, alike])
def test_what_may_be_another_file_is_transcribed(
    tmp_path: Path, change: Callable[[ManualRun], None]
) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    change(job)
    job.begin()
    assert job.plan.num_moved == 0
    assert job.plan.num_new == len(list(job.source.iterdir())) - 1 - (change is copied)
    job.finish()
    assert said(job) == {"a.wav": "a.wav", "b.wav": "b.wav"}


def test_parts_that_are_left_are_done_at_the_new_place(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["a.wav"])
    job.begin()
    job.commit("a.wav", last_part=False, segments=[text("first")])
    job.finish()
    move(job, "a.wav", "b.wav")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_remaining, job.plan.num_new) == (1, 1, 0)
    job.commit("b.wav", part=1, segments=[text("second")])
    job.finish()
    assert [row["text"] for row in rows_of(job.store.segments())] == ["first", "second"]
    [recording] = complete(job.store)
    assert (recording["uri"], recording["parts"]) == (str(job.source / "b.wav"), 2)


def test_what_people_and_later_runs_said_of_it_follows(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    old, new = str(job.source / "a.wav"), str(job.source / "c.wav")
    correct_segment(job.store, "a.wav", "corrected")
    says(job.store, old, (0.0, 1.0, "S1"))
    job.store.write_bytes(NAMES_NAME, f"uri,speaker,name\n{old},S1,Ada\n".encode())
    move(job, "a.wav", "c.wav")
    job.begin()
    job.finish()
    corrections = Corrections.load(job.store)
    assert corrections.recording_ids == [recording_id(new)]
    assert [each.text for each in corrections.of(recording_id(new))] == ["corrected"]
    [turns] = job.store.names("speakers")
    assert pq.read_table(job.store.address(turns))["uri"].to_pylist() == [new]
    names = Path(job.store.address(NAMES_NAME)).read_text()
    assert names == f"uri,speaker,name\n{new},S1,Ada\n"
    left = [name for name in job.store.all_names("") if recording_id(old) in name]
    assert left == []


def test_a_plan_alone_moves_nothing(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav")
    move(job, "a.wav", "b.wav")
    before = sorted(job.store.all_names("segments"))
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_moved, plan.num_remaining) == (1, 0)
    assert sorted(job.store.all_names("segments")) == before
    assert not job.store.exists(MOVING_NAME)


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_move_killed_anywhere_loses_nothing_and_is_gone_on_with(
    tmp_path: Path, step: int
) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    correct_segment(job.store, "a.wav", "corrected")
    move(job, "a.wav", "c.wav")
    whole = job.store.uri
    for moment in itertools.count(0, step):
        job.store = OutputStore(str(shutil.copytree(whole, tmp_path / str(moment))))
        with life(moment) as process:
            job.begin()
        texts = {row["text"] for row in rows_of(job.store.segments())}
        assert texts == {"a.wav", "b.wav"}, "nothing is lost at any moment"
        plan = make_plan(job.config, job.store, model_revision=REVISION)
        assert plan.num_remaining == 0
        job.begin()
        assert job.plan.num_remaining == 0
        job.finish()
        assert said(job) == {"c.wav": "a.wav", "b.wav": "b.wav"}
        assert len(Corrections.load(job.store)) == 1
        if not process.killed:
            break
    assert moment > 10


def test_rows_follow_though_a_run_was_killed_once_it_noted_what_to_do_again(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "c.wav")
    redo = RunOptions(redo="all")
    plan = make_plan(job.config, job.store, model_revision=REVISION, options=redo)
    assert plan.redo is not None
    note_redo(job.store, plan.redo)  # and no more
    again = make_plan(job.config, job.store, model_revision=REVISION)
    assert (again.num_moved, again.num_new, again.num_redone) == (1, 0, 2)
    job.begin()
    assert {Path(row["uri"]).name for row in rows_of(job.store.segments())} == {"b.wav", "c.wav"}


def test_when_a_listing_last_named_a_recording(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    first = datetime.datetime.fromisoformat(job.run.started_at)

    def presence() -> dict[str, tuple[datetime.datetime, bool]]:
        return {
            Path(row["uri"]).name: (row["listed_at"], row["gone"])
            for row in rows_of(job.store.recordings())
        }

    assert presence() == {"a.wav": (first, False), "b.wav": (first, False)}
    (job.source / "a.wav").unlink()
    for _ in range(2):
        job.begin()
        job.finish()
        now = datetime.datetime.fromisoformat(job.run.started_at)
        assert presence() == {"a.wav": (first, True), "b.wav": (now, False)}
    put(job, "a.wav")
    job.begin()
    job.commit("a.wav", segments=[text("again")])
    job.finish()
    assert presence()["a.wav"] == (datetime.datetime.fromisoformat(job.run.started_at), False)


def test_a_table_of_an_older_version_was_listed_when_it_was_transcribed(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav")
    began = datetime.datetime.fromisoformat(job.run.started_at).replace(microsecond=0)
    [name] = job.store.names("recordings")
    older = pq.read_table(job.store.address(name)).drop_columns(["listed_at", "gone"])
    pq.write_table(older, job.store.address(name))
    (job.source / "a.wav").unlink()
    job.begin()
    job.finish()
    [row] = rows_of(job.store.recordings())
    assert row["gone"]
    assert abs(row["listed_at"] - began) <= datetime.timedelta(seconds=1)


def test_versions_that_are_not_known_move_nothing(memory: str) -> None:
    with RunTables(OutputStore(memory)) as tables:
        assert tables.num_versions == 0


def test_what_an_unreadable_archive_may_hold_is_neither_gone_nor_moved(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    names = ("/a.tar#one.wav", "/a.tar#two.wav", "/b.tar#one.wav", "/c.wav")
    commit(store, results(*(part(name[1:], 0, texts=["x"]) for name in names)))
    # The files that are new have the version of all four.
    new = files("moved/one.wav", "moved/two.wav", "moved/c.wav")
    listing = [files("a.tar#*"), new]
    with RunTables(store, listing=listing[:1]) as tables:
        gone = tables.rows("select uri from recordings where gone order by uri")
        assert gone == [("/b.tar#one.wav",), ("/c.wav",)]
        arrivals = Arrivals(tables)
        arrivals.add(pa.Table.from_batches(listing[1:]), pa.Table.from_batches(listing[1:]))
        assert arrivals.moves(store) == {recording_id("/c.wav"): "/moved/c.wav"}
