"""One run at a time: who wins a race, who may take over, and what the loser is told."""

import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from corpus_asr.errors import EngineError, LockedError
from corpus_asr.storage.run_state import lock
from corpus_asr.storage.run_state.lock import (
    LOCK_NAME,
    Holder,
    Lock,
    ProcessName,
    Timing,
    read_holder,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem

QUICK = Timing(heartbeat_s=0.05, looks=4)
# Of many threads on a busy machine, none may look dead because it has not been scheduled.
RACING = Timing(heartbeat_s=0.4, looks=10)
ELSEWHERE = ProcessName(host="other", user="someone", pid=7)


@pytest.fixture
def local(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path))


def left_by(store: OutputStore, process: ProcessName, *, at: str = "2026-01-01T00:00:00+00:00"):
    """Leave a lock as a process would that died while holding it."""
    holder = Holder(token="t", run_id="old", process=process, started_at=at, heartbeat_at=at)
    uri, taken = store.address(LOCK_NAME), False
    while not taken:  # what is merely written may be undone by a heartbeat that has just looked
        found = filesystem.peek(uri, store.options)
        taken = (
            filesystem.create(uri, holder.encoded(), store.options)
            if found is None
            else filesystem.swap(uri, holder.encoded(), found, store.options)
        )
    return holder


def dead_here() -> ProcessName:
    """Name a process of this machine that has ended; before it is buried it is dead, too."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat")
    started_ticks = stat.read_text().rpartition(")")[2].split()[19]
    name = replace(ProcessName.mine(), pid=child.pid, started_ticks=started_ticks)
    child.kill()
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert name.is_surely_dead()
    child.communicate()
    return name


def test_a_lock_is_held_beats_and_is_given_back(store: OutputStore) -> None:
    with Lock(store, "run", timing=QUICK) as held:
        held.key.check()
        pickle.loads(pickle.dumps(held.key)).check()
        first = read_holder(store)
        assert first is not None
        assert (first.run_id, first.process) == ("run", ProcessName.mine())
        shown = store.read_json(LOCK_NAME)  # a file for people, too
        assert (shown["run_id"], shown["process"]["pid"]) == ("run", os.getpid())
        while (later := read_holder(store)) == first:
            time.sleep(0.01)
        assert later is not None
        assert later.beats > first.beats
        assert replace(later, beats=0, heartbeat_at=first.heartbeat_at) == replace(first, beats=0)
        held.key.check()
    assert not store.exists(LOCK_NAME)
    assert read_holder(store) is None


def test_a_lock_is_given_back_whatever_ends_the_run(local: OutputStore) -> None:
    for error in (KeyboardInterrupt, EngineError, SystemExit):
        with pytest.raises(error), Lock(local, "run", timing=QUICK):
            raise error
        assert not local.exists(LOCK_NAME)


def test_a_second_run_is_refused_at_once_and_told_everything(local: OutputStore) -> None:
    with Lock(local, "first", timing=QUICK) as held:
        with pytest.raises(LockedError) as caught, Lock(local, "second", timing=QUICK):
            pass
        message = str(caught.value)
        holder = read_holder(local)
        assert holder is not None
        for part in ("first", str(os.getpid()), holder.process.host, holder.started_at,
                     "last heartbeat", "--steal-lock", "wait for it to end"):  # fmt: skip
            assert part in message
        held.key.check()


def test_a_living_holder_is_not_robbed_even_if_its_clock_stands_still(
    local: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_now", lambda: "2026-03-04T00:00:00+00:00")
    with Lock(local, "first", timing=replace(QUICK, heartbeat_s=0.01)) as held:
        slow = replace(QUICK, heartbeat_s=0.3)
        with pytest.raises(LockedError, match="alive"), Lock(local, "2", steal=True, timing=slow):
            pass
        held.key.check()


def test_a_heartbeat_at_the_last_moment_keeps_the_lock(
    local: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = left_by(local, ELSEWHERE)

    def swap(*_: object) -> bool:
        local.write_bytes(LOCK_NAME, replace(holder, beats=holder.beats + 1).encoded())
        return False

    monkeypatch.setattr(filesystem, "swap", swap)
    with pytest.raises(LockedError, match="that is alive"):
        Lock(local, "new", steal=True, timing=QUICK).__enter__()


def test_the_holders_clock_does_not_matter(local: OutputStore) -> None:
    """Silence is what makes a lock stale, and only with leave; whatever time it shows."""
    for skew in ("1999-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00", "?"):
        left_by(local, ELSEWHERE, at=skew)
        with pytest.raises(LockedError, match="process 7 of someone on other"):
            Lock(local, "new", timing=QUICK).__enter__()
        said: list[str] = []
        with Lock(local, "new", steal=True, say=said.append, timing=QUICK) as held:
            held.key.check()
        assert [text.split(" the lock")[0] for text in said] == ["watching", "took over"]


def test_what_is_no_lock_of_ours_is_treated_like_one(local: OutputStore) -> None:
    for content in (b"", b"{", b"[]", b"\xff", b'{"process": {"pid": "x"}}'):
        local.write_bytes(LOCK_NAME, content)
        assert read_holder(local) is None
        with pytest.raises(LockedError, match="something unknown"):
            Lock(local, "new", timing=QUICK).__enter__()
        with Lock(local, "new", steal=True, timing=QUICK) as held:
            held.key.check()


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(
    local: OutputStore,
) -> None:
    left_by(local, dead_here())
    with Lock(local, "new", timing=replace(QUICK, heartbeat_s=1e6)) as held:
        held.key.check()


def test_a_pid_that_is_used_again_is_not_taken_for_its_first_owner(local: OutputStore) -> None:
    mine = ProcessName.mine()
    assert not mine.is_surely_dead()
    assert replace(mine, started_ticks="1").is_surely_dead()
    left_by(local, replace(mine, started_ticks="1"))
    with Lock(local, "new", timing=QUICK) as held:
        held.key.check()


def test_what_cannot_be_known_is_not_called_dead() -> None:
    dead = dead_here()
    for unsure in (
        replace(dead, machine=None),
        replace(dead, started_ticks=None),
        replace(dead, machine="another boot/pid:[1]"),
    ):
        assert not unsure.is_surely_dead()


def test_a_robbed_holder_commits_no_more_and_leaves_the_new_lock_alone(local: OutputStore) -> None:
    with Lock(local, "old", timing=replace(QUICK, heartbeat_s=0.02)) as held:
        thief = left_by(local, ELSEWHERE)
        with pytest.raises(EngineError, match=r"run old .*on other.*committed is kept"):
            held.key.check()
        with pytest.raises(EngineError, match=r"run old .*on other.*committed is kept"):
            held.store.write_bytes("outcomes/late.parquet", b"")
        held._thread.join(10)
        assert not held._thread.is_alive(), "it still beats"
    assert read_holder(local) == thief


def test_a_lock_removed_by_hand_is_not_made_again(local: OutputStore) -> None:
    with Lock(local, "old", timing=replace(QUICK, heartbeat_s=0.02)) as held:
        local.remove(LOCK_NAME)
        held._thread.join(10)
        with pytest.raises(EngineError, match="found no lock"):
            held.key.check()
    assert not local.exists(LOCK_NAME)


def race(store: OutputStore, racers: int, *, steal: bool = False) -> list[str]:
    """Let many runs lock one output at once; return those that held it at the same time."""
    ready, all_tried = threading.Barrier(racers), threading.Barrier(racers)

    def one(index: int) -> str | None:
        held = Lock(store, f"run-{index}", steal=steal, timing=RACING)
        ready.wait(60)
        try:
            with held:
                all_tried.wait(60)
                held.key.check()
                return f"run-{index}"
        except LockedError:
            all_tried.wait(60)
            return None

    with ThreadPoolExecutor(racers) as pool:
        return [winner for winner in pool.map(one, range(racers)) if winner]


def test_of_many_at_once_exactly_one_wins(store: OutputStore) -> None:
    for _ in range(3):
        assert len(race(store, 12)) == 1
        assert not store.exists(LOCK_NAME)


@pytest.mark.long
def test_of_many_thieves_exactly_one_wins(store: OutputStore) -> None:
    left_by(store, ELSEWHERE)
    assert len(race(store, 8, steal=True)) == 1
