"""A run that was frozen while another took its folder over: whatever it still writes, none counts.

A guard that lets a run pass and then freezes it stands for SIGSTOP at exactly that place.
"""

import contextlib
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from corpus_asr.errors import EngineError
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state import tables
from corpus_asr.storage.run_state.lock import LOCK_NAME, SUCCESS_NAME, Holder, Lock, LockKey, Timing
from corpus_asr.storage.run_state.part_rows import part_rows
from corpus_asr.storage.run_state.table_names import (
    SEGMENT_ROWS,
    TABLES_NAME,
    Manifest,
    TableSize,
    unique_stem,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from tests.storage.test_lock import ELSEWHERE
from tests.storage.test_run_tables import done
from tests.support.tables import (
    commit,
    files,
    part,
    remaining,
    results,
    rows_of,
    stored_segments,
)

CHECKS_OF_A_FINISH = 9
QUICK = Timing(heartbeat_s=0.01, looks=2)


@dataclass
class Freezes:
    """Lets a run pass so many times, the last time when it is already too late."""

    key: LockKey
    passes: int
    then: Callable[[], object]
    run_id: str = "old"
    checked: int = field(default=0, init=False)

    def check(self) -> None:
        self.key.check()
        self.checked += 1
        if self.checked == self.passes:
            self.then()


def frozen(store: OutputStore, passes: int, then: Callable[[], object]) -> OutputStore:
    """Return the folder as a run on another machine writes it that is frozen after some checks."""
    held = Holder(
        token="t", run_id="old", process=ELSEWHERE, started_at="then", heartbeat_at="then"
    )
    store.write_bytes(LOCK_NAME, held.encoded())
    key = LockKey(uri=store.address(LOCK_NAME), options=store.options, token="t", run_id="old")
    return store.held(Freezes(key, passes, then))


def taken_over(store: OutputStore, *listed: str) -> None:
    """Have another run take the folder over, do what is missing, and finish."""
    with Lock(store, "new", steal=True, timing=QUICK) as lock:
        for row in remaining(store, files(*listed)):
            again = part(row["uri"][1:], 0, texts=["by new"])
            commit(lock.store, results(again), run_id="new")
        assert done(lock.store, files(*listed)).remaining == 0


def texts(store: OutputStore) -> list[tuple[str, str]]:
    return sorted(
        (row["uri"], row["text"]) for row in rows_of(stored_segments(store, ["uri", "text"]))
    )


BEFORE, AFTER = 1, 2  # the put


@pytest.mark.long
@pytest.mark.parametrize("place", ["local"], indirect=True)
@pytest.mark.parametrize("passes", [BEFORE, AFTER])
def test_a_commit_counts_if_it_was_there_when_the_lock_was_taken(
    store: OutputStore, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = passes == AFTER
    monkeypatch.setattr(tables, "LOOK_EVERY_S", 0.0)
    old = frozen(store, passes, lambda: taken_over(store, "a", "b"))
    made = commit(old, results(part("a", 0, texts=["by old"])), run_id="old")
    if counts:
        commit(old, results(part("a", 0, texts=["by old"])), run_id="old")
    with pytest.raises(EngineError, match="found no lock"):
        commit(old, results(part("a", 0, texts=["by old"])), run_id="old")
    expected = [("/a", "by old" if counts else "by new"), ("/b", "by new")]
    assert store.exists(made) is not counts, "merged, or late"
    for _ in range(2):  # what readers see at once, and after the next run
        assert store.exists(SUCCESS_NAME)
        assert texts(store) == expected
        assert sorted(row["uri"] for row in rows_of(store.outcomes(["uri"]))) == ["/a", "/b"]
        assert sorted(row["uri"] for row in rows_of(store.recordings(["uri"]))) == ["/a", "/b"]
        taken_over(store, "a", "b")
    assert not list(store.all_names("_run/commits"))
    assert not store.leftovers()


def test_the_lock_is_looked_at_now_and_then_and_what_came_late_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("corpus_asr.storage.run_state.tables.time.monotonic", lambda: now_s[0])
    store = OutputStore(str(tmp_path))
    old = frozen(store, 2, lambda: taken_over(store, "a", "b"))
    guard = old._guard
    assert isinstance(guard, Freezes)
    for name, checked in (("a", 1), ("a", 1), ("a", 2), ("b", 2)):
        commit(old, results(part(name, 0, texts=["by old"])), run_id="old")
        assert guard.checked == checked
        now_s[0] += 2.5
    # The third was put just after the second look, when it was too late.
    late = [name for name, _ in store._listed("_run/commits") if name not in store.commit_names()]
    assert len(late) == 2
    assert texts(store) == [("/a", "by old"), ("/b", "by new")]
    with pytest.raises(EngineError, match="found no lock"):
        commit(old, results(part("b", 0, texts=["by old"])), run_id="old")
    assert sorted(store.leftovers()) == sorted(late)
    assert texts(store) == [("/a", "by old"), ("/b", "by new")]


@pytest.mark.long
@pytest.mark.parametrize(
    "passes",
    [
        pytest.param(number, marks=[pytest.mark.slow] * (number % 3 != 1))
        for number in range(1, CHECKS_OF_A_FINISH + 1)
    ],
)
def test_a_finish_that_is_frozen_anywhere_doubles_and_loses_nothing(
    tmp_path: Path, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LOOK_EVERY_S", 0.0)
    store = OutputStore(str(tmp_path))
    old = frozen(store, 1 << 30, lambda: taken_over(store, "a", "b", "c"))
    for name in "abca":
        commit(old, results(part(name, 0, texts=["by old"])), run_id="old")
    guard = old._guard
    assert isinstance(guard, Freezes)
    guard.passes = guard.checked + passes
    with contextlib.suppress(EngineError):  # after the last check there is none to raise it
        done(old, files("a", "b", "c"))
    assert guard.checked >= guard.passes
    taken = [("/a", "by old"), ("/b", "by old"), ("/c", "by old")]
    assert texts(store) == taken
    assert len(rows_of(store.recordings(["uri"]))) == 3
    taken_over(store, "a", "b", "c")
    assert texts(store) == taken
    assert len(rows_of(store.outcomes(["uri"]))) == 3
    assert len(rows_of(store.recordings(["uri"]))) == 3


def test_a_put_that_is_tried_again_looks_at_the_lock_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts of one put take minutes: long enough to lose the lock in between."""
    store = OutputStore(str(tmp_path))
    monkeypatch.setattr(tables, "LOOK_EVERY_S", 0.0)
    old = frozen(store, 1, lambda: None)
    tried = []

    def write(self: object, uri: str, data: bytes) -> None:
        tried.append(uri)
        store.remove(LOCK_NAME)
        raise ConnectionResetError

    monkeypatch.setattr("corpus_asr.storage.stores.local.LocalStore.write", write)
    monkeypatch.setattr("corpus_asr.storage.stores.store.RetryPolicy.wait_s", lambda *_, **__: 0.0)
    with pytest.raises(EngineError, match="found no lock"):
        old.write_bytes("x", b"")
    assert len(tried) == 1


def test_what_travels_to_workers_does_not_grow_with_the_tables(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    sizes = []
    for count in (1, 1_000):
        for number in range(count):
            (tmp_path / "outcomes").mkdir(exist_ok=True)
            (tmp_path / f"outcomes/{number:020d}.parquet").write_bytes(b"")
        sizes.append(len(pickle.dumps(frozen(store, 1, print))))
    assert sizes[0] == sizes[1]


def test_what_is_noted_of_a_run_is_kept_when_the_next_is_taken_over(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    for run_id in ("first", "second"):
        held = Holder(token="t", run_id=run_id, process=ELSEWHERE, started_at="", heartbeat_at="")
        store.write_bytes(LOCK_NAME, held.encoded())
        key = LockKey(uri=store.address(LOCK_NAME), options=store.options, token="t", run_id=run_id)
        worker = pickle.loads(pickle.dumps(store.held(key)))  # as one on another machine has it
        commit(worker, results(part(run_id, 0, texts=["x"])), run_id=run_id)
        with Lock(store, "thief", steal=True, timing=QUICK):
            pass
        name = f"_run/commits/{worker.stem()}.rows"
        store.write_bytes(name, filesystem.read_bytes(store.address(store.commit_names()[0])))
        assert name not in store.commit_names()
    assert {*store.read_json(TABLES_NAME)["closed_runs"]} == {"first", "second"}
    assert len(store.commit_names()) == 2
    assert len(store.leftovers()) == 2
    # Names of other programs, and of runs that were never robbed, are read as before.
    for name in ("part-0.parquet", f"{unique_stem(run_id='third')}.parquet"):
        store.write_table(f"_run/commits/{name}", OUTCOMES.empty_table())
    assert len(store.commit_names()) == 4


def test_a_finish_that_is_late_cannot_replace_what_counts(tmp_path: Path) -> None:
    """Frozen just before it names its tables, it would put back what another run removed since."""
    store = OutputStore(str(tmp_path))
    old = frozen(store, 1 << 30, lambda: taken_over(store, "a", "b"))
    guard = old._guard
    assert isinstance(guard, Freezes)
    made = [commit(old, results(part("a", 0, texts=["by old"])), run_id="old")]
    [(_, rows, _)] = part_rows(old, made, SEGMENT_ROWS)
    written = old.write_tables(old.read_table(made[0], OUTCOMES), [rows])
    guard.then()
    with pytest.raises(EngineError, match="found no lock"):
        old.replace(made, written)
    assert texts(store) == [("/a", "by old"), ("/b", "by new")]
    assert not {*written} & {*store.names("outcomes"), *store.names("segments")}
    assert len(rows_of(store.outcomes(["uri"]))) == 2


def test_a_listing_after_a_takeover_takes_time_in_proportion_to_its_tables() -> None:
    times_s = []
    for count in (2_000, 20_000):
        names = [f"_run/commits/{unique_stem(run_id='old')}.rows" for _ in range(count)]
        manifest = Manifest(closed_runs={"old": frozenset(names)})
        began_s = time.process_time()
        assert len(manifest.counting(dict.fromkeys(names, TableSize()))) == count
        times_s.append(time.process_time() - began_s)
    assert times_s[1] < 30 * max(times_s[0], 0.005), "ten times the tables"
