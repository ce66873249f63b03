"""Drivers that share a plan of one output folder: each its shard, one finish, whatever dies."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from corpus_asr.config.extraction import NO_SPEAKERS
from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import ConfigError, EngineError, LockedError
from corpus_asr.pipelines import driver
from corpus_asr.pipelines.driver import RunSummary
from corpus_asr.report.status import as_data, load_status, render
from corpus_asr.runtime import progress, terminal
from corpus_asr.storage.run_state import lock as locks
from corpus_asr.storage.run_state.lock import (
    LOCK_NAME,
    SHARDS_NAME,
    Lock,
    ProcessName,
    Shard,
    Timing,
)
from corpus_asr.storage.run_state.run_files import RUN_NAME, SUCCESS_NAME
from corpus_asr.storage.run_state.shared_plan import SharedPlan
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore
from tests.support.engines import script, scripted_engine
from tests.support.killing import PAUSE, KillableJob, killable_job, tables_of
from tests.support.stores import life
from tests.support.tables import with_section

pytestmark = pytest.mark.long

FILES = 4
QUICK = Timing(heartbeat_s=0.05, looks=2, settle_s=0.0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A job over four packs of a file each, with nothing real in it."""
    script(monkeypatch.setattr, engine=scripted_engine)
    # A thread of a process that died would only be in the way.
    for module in (progress, terminal):
        monkeypatch.setattr(module, "repeated", lambda *_, **__: contextlib.nullcontext())
    job = one_file_a_pack(killable_job(tmp_path, files=FILES))
    return job.config.model_copy(update={"speakers": NO_SPEAKERS})


def one_file_a_pack(job: KillableJob) -> KillableJob:
    return replace(job, config=with_section(job.config, "extract", pack_mb=1e-6))


def shard(config: RunConfig, number: int, of: int = 3, **options: Any) -> RunSummary:
    options = {"shard": f"{number}/{of}"} | options
    return driver.run(config, local=True, progress=None, options=RunOptions(**options))


def corpus_file(config: RunConfig) -> Path:
    return min(Path(config.source.uri[0]).iterdir())


def undisturbed(config: RunConfig, folder: Path) -> dict[str, list[dict[str, Any]]]:
    alone = with_section(config, "output", uri=str(folder))
    driver.run(alone, local=True, progress=None)
    return tables_of(alone)


def left_of_shards(config: RunConfig) -> list[str]:
    names = OutputStore(config.output.uri).all_names("_run")
    return [name for name in names if "/shards" in name or "lock" in name]


def test_the_last_of_the_shards_finishes(config: RunConfig, tmp_path: Path) -> None:
    store = OutputStore(config.output.uri)
    words = []
    for number in (2, 3):
        words.append(shard(config, number).shards)
        assert store.read_json(SHARDS_NAME)["of"] == 3
        assert not store.exists(SUCCESS_NAME)
    assert words == ["shard 2 of 3 done; 1, 3 to be started", "shard 3 of 3 done; 1 to be started"]
    found = load_status(store)
    assert (found.state, found.snapshot and found.snapshot.remaining) == ("stopped", 2)
    assert "shard 1 0 of 2 done; not at work" in " ".join(render(found).split())
    assert [each["remaining"] for each in as_data(found)["shards"]] == [2, 0, 0]
    again = shard(config, 2)
    assert (again.shards, again.planned_files) == (words[1].replace("3 of", "2 of"), 0)
    last = shard(config, 1)
    assert (last.shards, last.files, last.processed_files, last.remaining) == ("", FILES, FILES, 0)
    assert store.exists(SUCCESS_NAME)
    assert store.read_json(RUN_NAME)["committed"]["files"] == FILES
    assert not left_of_shards(config)
    assert tables_of(config) == undisturbed(config, tmp_path / "alone")
    late = shard(config, 3)
    assert (late.shards, late.planned_files) == ("", 0)
    assert not left_of_shards(config)


def test_a_job_of_fewer_packs_than_shards_waits_for_no_more(config: RunConfig) -> None:
    of, first = FILES + 2, with_section(config, "source", uri=(str(corpus_file(config)),))
    assert shard(first, of, of).shards == "shard 6 of 6 done; 1 to be started"
    assert not shard(first, 1, of).shards


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "-1/4", "1/0", "", "1/2/3", "1/99999"])
def test_a_shard_is_a_number_of_a_number(config: RunConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected I/N with I from 1 to N"):
        driver.run(config, local=True, progress=None, options=RunOptions(shard=text))
    assert not Path(config.output.uri).exists()


def test_what_does_not_fit_the_plan_is_refused(config: RunConfig, tmp_path: Path) -> None:
    shard(config, 1)
    with pytest.raises(ConfigError, match="found a plan for 3 drivers, expected one for 4; use"):
        shard(config, 2, 4)
    with pytest.raises(ConfigError, match='language: was "auto", now "de"; joining as shard 2'):
        shard(with_section(config, "decoding", language="de"), 2)
    with pytest.raises(ConfigError, match="found a plan of another source"):
        shard(with_section(config, "source", uri=(str(tmp_path),)), 2)
    store = OutputStore(config.output.uri)
    shared = SharedPlan.read(store)
    assert shared is not None
    store.remove(shared.plan.pack_names[0])
    with pytest.raises(ConfigError, match=r"found its plan without _run/plan/.* run without --sh"):
        shard(config, 2)
    # As the messages say: a plain run takes over.
    done = driver.run(config, local=True, progress=None)
    assert (done.planned_files, done.remaining) == (FILES - 2, 0)
    assert not store.exists(SHARDS_NAME)


def test_a_live_shard_keeps_others_away_and_a_run_keeps_shards_away(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(config, 1)
    store = OutputStore(config.output.uri)
    with Lock(store, "first", shard=Shard(2, 3)):
        for options in ({}, {"new_run": True}, {"redo": "all"}):
            with pytest.raises(LockedError, match=r"in use by shard 2 of 3, run first \(process"):
                driver.run(config, local=True, progress=None, options=RunOptions(**options))
        with pytest.raises(LockedError, match="in use by shard 2 of 3"):
            shard(config, 2)
        assert shard(config, 3).shards == "shard 3 of 3 done; 2 still at work"
    assert store.exists(SHARDS_NAME)
    with Lock(OutputStore(str(Path(config.output.uri) / "other")), "run"):
        pass
    monkeypatch.setattr(locks, "USUAL", QUICK)
    store.write_bytes(LOCK_NAME, locks.Holder(
        token="t", run_id="plain", process=ProcessName(host="h", user="u", pid=1),
        started_at="", heartbeat_at="",
    ).encoded())  # fmt: skip
    with pytest.raises(LockedError, match="in use by run plain"):
        shard(config, 2)


def test_a_shard_waits_while_another_plans(config: RunConfig) -> None:
    store, of = OutputStore(config.output.uri), Shard(1, 3)
    said: list[str] = []
    other = Lock(store, "other", shard=of, whole=True, timing=QUICK)
    planner = other.__enter__()
    waiting = Lock(store, "me", shard=Shard(2, 3), whole=True, timing=QUICK)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            planner.__exit__()

    with mock.patch("time.sleep", nap), waiting:
        assert len(naps) == 3
    # One that shows no sign of life is named.
    silent = replace(other._holder, process=ProcessName(host="h", user="u", pid=1))
    store.write_bytes(LOCK_NAME, silent.encoded())
    lock = Lock(store, "me", shard=Shard(2, 3), whole=True, timing=QUICK)
    with pytest.raises(LockedError, match=r"shard 1 of 3, run other.*--steal-lock"):
        lock.__enter__()
    stealing = Lock(store, "me", shard=of, whole=True, timing=QUICK, steal=True, say=said.append)
    with stealing:
        assert "took over the lock of shard 1 of 3" in said[-1]


def test_a_shard_that_was_frozen_commits_no_more(config: RunConfig) -> None:
    store, two = OutputStore(config.output.uri), Shard(2, 3)
    shard(config, 1)
    frozen = Lock(store, two.new_run_id(), shard=two, timing=replace(QUICK, heartbeat_s=1e6))
    held = frozen.__enter__()
    with Lock(store, two.new_run_id(), shard=two, steal=True, timing=QUICK):
        pass
    late = f"outcomes/{held.store.stem()}.parquet"
    store.write_bytes(late, b"never read")
    assert late not in store.names("outcomes")
    with pytest.raises(EngineError, match="found no lock"):
        held.store.check()
    for number in (2, 3):
        done = shard(config, number)
    assert (done.shards, done.remaining) == ("", 0)


@contextlib.contextmanager
def all_others_dead() -> Iterator[None]:
    """Let locks that are found be those of processes that are no more."""
    with mock.patch.object(ProcessName, "is_surely_dead", return_value=True):
        yield


def check(config: RunConfig, expected: dict[str, list[dict[str, Any]]]) -> None:
    store = OutputStore(config.output.uri)
    assert store.exists(SUCCESS_NAME)
    assert not store.exists(SHARDS_NAME)
    assert tables_of(config) == expected


def killed(config: RunConfig, victim: int, moment: int) -> bool:
    """Do both shards of two, one of which dies after so many changes; tell whether it did."""
    with all_others_dead():
        died = False
        for number in (2, 1):
            with life(moment if number == victim else float("inf")) as process:
                shard(config, number, 2)
            died |= process.killed
        store = OutputStore(config.output.uri)
        left = died and (store.exists(SHARDS_NAME) or not store.exists(SUCCESS_NAME))
        if left and shard(config, victim, 2).shards:
            shard(config, 3 - victim, 2)
    return died


@pytest.mark.parametrize(("victim", "moment"), [(2, 9), (2, 13), (1, 5), (1, 13)])
def test_a_shard_that_is_killed_at_some_writes_loses_nothing(
    config: RunConfig, tmp_path: Path, victim: int, moment: int
) -> None:
    assert killed(config, victim, moment)
    check(config, undisturbed(config, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [2, 1])
def test_a_shard_that_is_killed_at_any_write_loses_nothing(
    config: RunConfig, tmp_path: Path, victim: int
) -> None:
    expected = undisturbed(config, tmp_path / "alone")
    for moment in range(1000):
        own = with_section(config, "output", uri=str(tmp_path / f"{moment}"))
        died = killed(own, victim, moment)
        check(own, expected)
        if not died:
            break
    assert moment > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("on_ray", "of", "files"),
    [(False, 4, 24), pytest.param(True, 2, 16, marks=pytest.mark.ray)],
    ids=["local", "ray"],
)
def test_drivers_of_which_one_is_killed_and_started_again(
    tmp_path: Path, on_ray: bool, of: int, files: int
) -> None:
    usual = killable_job(tmp_path, files=files, ray=on_ray, environment={PAUSE: "2"})
    job = one_file_a_pack(usual)
    drivers = [replace(job, folder=tmp_path / f"driver-{number}", seen=set())
               for number in range(1, of + 1)]  # fmt: skip
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(each.started("--shard", f"{number}/{of}"))
            for number, each in enumerate(drivers, 1)
        ]
        two, victim = Shard(2, of), processes[1]
        while victim.poll() is None and sum(map(two.is_in, job.store.names(OUTCOMES_FOLDER))) < 2:
            time.sleep(0.02)
        victim.kill()
        assert victim.wait() == -signal.SIGKILL, "it was at work"
        if not on_ray:  # where the others take as long to start as to end
            code, said = KillableJob(job.config, tmp_path / "plain").finish()
            assert code == 2, said
            assert "in use by shard" in said
        again = replace(job, folder=tmp_path / "again", seen=set())
        code, said = again.finish("--shard", f"2/{of}")
        assert code in (0, 1), said
        assert f"took over the lock of shard 2 of {of}" in said
        for process in (processes[0], *processes[2:]):
            assert process.wait(timeout=600) in (0, 1)
    alone = with_section(job.config, "output", uri=str(tmp_path / "alone"))
    assert KillableJob(alone, tmp_path / "alone-job").finish()[0] == 0
    assert tables_of(job.config) == tables_of(alone)
    run = json.loads((tmp_path / "output" / RUN_NAME).read_text())
    assert run["counts"]["listed"] == files
    assert run["committed"]["files"] == files
