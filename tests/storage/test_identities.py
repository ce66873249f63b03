"""A recording keeps the ID of where it was first seen; who comes to an address that it left."""

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.errors import FetchError
from corpus_asr.export.speakers import name_speaker, read_names
from corpus_asr.schemas import FILES
from corpus_asr.storage.run_state.forget import find_recordings, forget
from corpus_asr.storage.run_state.identities import Changes, Identities, Move
from corpus_asr.storage.run_state.prune import prune
from corpus_asr.storage.run_state.run_tables import REDO, REDO_NAME
from corpus_asr.storage.run_state.source_listings import note_listing
from corpus_asr.storage.run_state.table_names import IDENTITIES_NAME
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import recording_id
from tests.storage.test_moved import done, move, put, said, text
from tests.support.runs import ManualRun
from tests.support.tables import complete, rows_of

pytestmark = pytest.mark.long


def first_id(job: ManualRun, name: str) -> str:
    return recording_id(str(job.source / name))


def run_over(job: ManualRun, *names: str) -> None:
    """Let a run do what is new."""
    job.begin()
    for name in names:
        job.commit(name, segments=[text(f"new {name}")])
    job.finish()


def ids(job: ManualRun) -> dict[str, str]:
    return {str(Path(row["uri"]).relative_to(job.source)): row["recording_id"]
            for row in complete(job.store)}  # fmt: skip


def test_what_moved_and_is_replaced_later_is_done_once_more(tmp_path: Path) -> None:
    """Before: its new rows counted as those of the version that had moved, and no run ended."""
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "c.wav")
    run_over(job)
    put(job, "c.wav", "other", mtime=5.0)
    job.begin()
    assert (job.plan.num_changed, job.plan.num_remaining) == (1, 1)
    run_over(job, "c.wav")
    assert said(job) == {"b.wav": "b.wav", "c.wav": "new c.wav"}
    job.begin()
    assert job.plan.num_remaining == 0


def test_what_moved_is_touched_and_is_asked_for_again_is_done_once(tmp_path: Path) -> None:
    """Before: it was not seen as changed, its new rows got the earlier version, no run ended."""
    job = done(tmp_path, "a.wav", "b.wav")
    again = [{"recording_id": name, "begun_by": job.run.run_id} for name in ids(job).values()]
    move(job, "a.wav", "c.wav")
    run_over(job)
    put(job, "c.wav", "a.wav", mtime=5.0)
    job.store.write_table(REDO_NAME, pa.Table.from_pylist(again, REDO))
    job.begin()
    assert (job.plan.num_redone, job.plan.num_remaining) == (2, 2)
    run_over(job, "c.wav", "b.wav")
    assert said(job) == {"b.wav": "new b.wav", "c.wav": "new c.wav"}
    job.begin()
    assert job.plan.num_remaining == 0


def test_whoever_comes_to_an_address_that_was_left_is_another(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    for new_name, content in (("c.wav", "second"), ("d.wav", "third"), ("e.wav", "fourth")):
        move(job, "a.wav", new_name)
        run_over(job)
        put(job, "a.wav", content)
        job.begin()
        assert (job.plan.num_moved, job.plan.num_new, job.plan.num_remaining) == (0, 1, 1)
        job.commit("a.wav", segments=[text(content)])
        job.finish()
    assert said(job) == {
        "b.wav": "b.wav", "c.wav": "a.wav", "d.wav": "second", "e.wav": "third", "a.wav": "fourth"
    }  # fmt: skip
    recording_ids = ids(job)
    assert len({*recording_ids.values()}) == 5
    assert (recording_ids["c.wav"], recording_ids["b.wav"]) == (
        first_id(job, "a.wav"),
        first_id(job, "b.wav"),
    )
    job.begin()
    assert job.plan.num_remaining == 0
    assert not job.plan.identities.is_changed


def test_back_at_its_first_address_it_is_the_same(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    first_ids = ids(job)
    for old, new in (
        ("a.wav", "c.wav"),
        ("c.wav", "d.wav"),
        ("d.wav", "a.wav"),
        ("a.wav", "c.wav"),
    ):
        move(job, old, new)
        job.begin()
        assert (job.plan.num_moved, job.plan.num_remaining) == (1, 0)
        job.finish()
        assert ids(job) == {new: first_ids["a.wav"], "b.wav": first_ids["b.wav"]}
        assert said(job) == {new: "a.wav", "b.wav": "b.wav"}


def test_what_left_a_source_for_another_is_gone_once_that_lists_it_no_more(tmp_path: Path) -> None:
    """Before: the listing of the source that it had left kept it, for good."""
    job = done(tmp_path, "old/a.wav", "old/b.wav")
    for folder in ("old", "new", "new"):
        if folder == "new" and not (job.source / "new").exists():
            move(job, "old/a.wav", "new/a.wav")
            put(job, "new/c.wav", "old/b.wav")  # a copy: the listing of "old" stays for b.wav
        elif folder == "new":
            (job.source / "new/a.wav").unlink()
        source = job.config.source.model_copy(update={"uri": (str(job.source / folder),)})
        job.config = job.config.model_copy(update={"source": source})
        job.begin()
        note_listing(job.store, job.plan.name, source)
        if job.plan.num_new:
            job.commit("new/c.wav", segments=[text("c")])
        job.finish()
    gone = [row["uri"] for row in rows_of(job.store.recordings()) if row["gone_since"]]
    assert gone == [str(job.source / "new/a.wav")]


def test_what_is_gone_stays_where_it_was_seen_last(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "c.wav")
    run_over(job)
    (job.source / "c.wav").unlink()
    for _ in range(2):
        run_over(job)
        gone = [row["uri"] for row in rows_of(job.store.recordings()) if row["gone_since"]]
        assert gone == [str(job.source / "c.wav")]


def names_of(job: ManualRun) -> list[str]:
    return Path(job.store.address("speakers.csv")).read_text().splitlines()[1:]


def test_names_stay_with_whom_they_were_given_to(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    first = first_id(job, "a.wav")
    name_speaker(job.store, str(job.source / "a.wav"), "S1", "Ada", seen="")
    move(job, "a.wav", "c.wav")
    run_over(job)
    assert names_of(job) == [f"{job.source / 'a.wav'},S1,Ada"], "nothing is written"
    assert read_names(job.store) == {(first, "S1"): "Ada"}
    name_speaker(job.store, str(job.source / "c.wav"), "S2", "Ben", seen="")
    assert name_speaker(job.store, str(job.source / "c.wav"), "S1", "Ann", seen="Ada") is None
    move(job, "c.wav", "d.wav")
    run_over(job)
    expected = {(first, "S1"): "Ann", (first, "S2"): "Ben"}
    assert read_names(job.store) == expected
    put(job, "a.wav", "second")
    put(job, "c.wav", "third")
    run_over(job, "a.wav", "c.wav")
    assert read_names(job.store) == expected, "others are at the addresses by now"
    assert names_of(job) == [f"{job.source / 'd.wav'},S1,Ann", f"{job.source / 'd.wav'},S2,Ben"]


@pytest.mark.parametrize("at", ["a.wav", "c.wav", "d.wav", "*/a.wav", "*/d.wav"])
def test_it_is_erased_by_any_address_that_it_had(tmp_path: Path, at: str) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    name_speaker(job.store, str(job.source / "a.wav"), "S1", "Ada", seen="")
    for old, new in (("a.wav", "c.wav"), ("c.wav", "d.wav")):
        move(job, old, new)
        run_over(job)
    name_speaker(job.store, str(job.source / "d.wav"), "S2", "Ben", seen="")
    pattern = at if at.startswith("*") else str(job.source / at)
    matches = find_recordings(job.store, [pattern])
    assert matches.recordings == {first_id(job, "a.wav"): str(job.source / "d.wav")}
    forget(job.store, matches.recordings)
    assert {row["uri"] for row in rows_of(job.store.recordings())} == {str(job.source / "b.wav")}
    assert Identities.read(job.store).rows.num_rows == 0
    assert names_of(job) == []
    put(job, "a.wav", "second")
    job.begin()
    assert (job.plan.num_remaining, job.plan.num_forgotten) == (1, 1)
    job.commit("a.wav", segments=[text("second")])
    job.finish()
    assert ids(job)["a.wav"] != first_id(job, "a.wav"), "late saves of that are swept"


def test_an_address_means_the_recording_that_came_to_it_last(tmp_path: Path) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "c.wav")
    run_over(job)
    put(job, "a.wav", "second")
    run_over(job, "a.wav")
    for pattern in (str(job.source / "a.wav"), "*/a.wav"):
        matches = find_recordings(job.store, [pattern])
        assert matches.recordings == {ids(job)["a.wav"]: str(job.source / "a.wav")}
    forget(job.store, matches.recordings)
    assert said(job) == {"b.wav": "b.wav", "c.wav": "a.wav"}
    prune(job.store, [first_id(job, "a.wav")])
    assert Identities.read(job.store).rows.num_rows == 0


def damaged(job: ManualRun) -> None:
    job.store.write_bytes(IDENTITIES_NAME, b"PAR1 and no more")


def of_another_kind(job: ManualRun) -> None:
    job.store.write_table(IDENTITIES_NAME, pa.table({"uri": ["x"]}))


def lost(job: ManualRun) -> None:
    job.store.remove(IDENTITIES_NAME)


def of_another_folder(job: ManualRun) -> None:
    identities = Identities()
    uri = str(job.source / "b.wav")
    identities.follow(Changes({"f" * 16: Move("/elsewhere/b.wav", uri)}))
    identities.write(job.store)


@pytest.mark.parametrize("harm", [damaged, of_another_kind, lost, of_another_folder])
def test_what_is_no_use_is_made_again_of_the_tables(
    tmp_path: Path, harm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = done(tmp_path, "a.wav", "b.wav")
    move(job, "a.wav", "c.wav")
    run_over(job)
    put(job, "a.wav", "second")
    run_over(job, "a.wav")
    first_ids = ids(job)
    harm(job)
    with caplog.at_level(logging.WARNING):
        job.begin()
    [line] = [each for each in caplog.messages if "identities rebuilt" in each]
    assert "recordings=2" in line
    assert (job.plan.num_moved, job.plan.num_remaining) == (0, 0)
    job.finish()
    assert ids(job) == first_ids
    assert said(job) == {"a.wav": "new a.wav", "b.wav": "b.wav", "c.wav": "a.wav"}
    caplog.clear()
    run_over(job)
    assert not caplog.messages, "once"


def test_a_store_that_does_not_answer_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = done(tmp_path, "a.wav")
    move(job, "a.wav", "c.wav")
    run_over(job)
    opened = filesystem.open_binary

    def fails(uri: str, *args: Any, **options: Any) -> Any:
        if uri.endswith(IDENTITIES_NAME):
            raise FetchError("no answer", uri=uri, kind="timeout", retryable=True)
        return opened(uri, *args, **options)

    monkeypatch.setattr(filesystem, "open_binary", fails)
    with pytest.raises(FetchError, match="no answer"):
        Identities.read(job.store)


def test_a_large_folder_that_is_renamed_takes_little_time_and_memory() -> None:
    number = 100_000
    identities, moves = Identities(), dict[str, Move]()
    for at in range(number):
        uri = f"/archive/old/{at:07d}.wav"
        moves[recording_id(uri)] = Move(uri, uri.replace("old", "new"), "d" * 32, "9-0")
    start_s = time.process_time()
    identities.follow(Changes(moves))
    uris = pa.array([move.uri for move in moves.values()])
    hashes = pa.array(map(recording_id, uris.to_pylist()))
    nulls = [pa.nulls(number, field.type) for field in FILES][2:]
    columns = dict(zip(FILES.names, [hashes, uris, *nulls], strict=True))
    named = identities.name_files(pa.table(columns, schema=FILES))
    assert named["recording_id"].to_pylist() == [*moves]
    assert time.process_time() - start_s < 10.0
    assert identities.rows.nbytes < 300 * number


def test_ids_of_late_ones_are_the_same_each_time() -> None:
    rows = [{"recording_id": recording_id(f"/{name}"), "uri": f"/{name}"} for name in "abc"]
    files = pa.Table.from_pylist(rows, FILES)

    def named(*, is_kept: bool) -> list[str]:
        identities = Identities()
        identities.follow(
            Changes({recording_id("/a"): Move("/a", "/x"), recording_id("/y"): Move("/y", "/b")})
        )
        identities.follow(Changes({recording_id("/y"): Move("/b", "/z")}))
        table = identities.name_files(files)
        if is_kept:
            identities.keep(table)
            assert identities.name_files(files).equals(table)
            assert identities.newcomers == {
                "/a": recording_id("/a"), "/b": recording_id("/y"),
            }  # fmt: skip
        else:
            identities.keep(table.slice(0, 0))
            assert identities.newcomers == {}
        matches: list[str] = table["recording_id"].to_pylist()
        return matches

    first = named(is_kept=True)
    assert first == named(is_kept=False)
    assert first[0] not in {recording_id("/a"), *itertools.islice(first, 1, None)}
    assert first[1:] == [recording_id("/b"), recording_id("/c")], "which nobody had"
