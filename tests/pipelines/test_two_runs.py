"""Several runs on one output: at the same time, one after a killed one, and with a choice."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import Retry, RunConfig, RunOptions
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.pipelines import driver
from corpus_asr.runtime.local import run_local
from corpus_asr.storage.run_state.lock import LOCK_NAME, Holder, ProcessName
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import EXTRACTOR, outcomes_by_part, script, scripted_engine
from tests.support.killing import PAUSE, KillableJob, killable_job, tables_of
from tests.support.tables import with_section

FILES = 12


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_second_run_leaves_and_one_after_a_killed_one_takes_over(tmp_path: Path) -> None:
    job = killable_job(tmp_path, files=FILES, environment={PAUSE: "2"})
    lock = tmp_path / "output" / LOCK_NAME
    with job.started() as first:
        wait_for(lock)
        code, said = KillableJob(job.config, tmp_path / "second").finish()
        assert code == 2, said
        assert f"process {first.pid} of " in said
        assert "--steal-lock" in said
        assert first.poll() is None, "the first one goes on"
        assert json.loads(lock.read_text())["process"]["pid"] == first.pid
        job.wait_for_commits(first, 1)
        first.kill()
    assert lock.exists()
    code, said = KillableJob(job.config, tmp_path / "third").finish()
    assert code == 0, said
    assert "took over the lock" in said
    assert not lock.exists()
    tables = tables_of(job.config)
    assert len(tables["recordings"]) == len({row["uri"] for row in tables["recordings"]}) == FILES
    parts = [(row["uri"], row["part"]) for row in tables["outcomes"]]
    assert len(parts) == len(set(parts))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A job over four files, of which one has a part that fails, with nothing real in it."""
    script(monkeypatch.setattr, engine=scripted_engine)
    return killable_job(tmp_path, files=4).config


def test_a_robbed_run_stops_committing_and_keeps_what_it_has(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(config.output.uri)

    def robbed(*args: Any, **kwargs: Any) -> None:
        thief = Holder(
            token="t", run_id="thief", started_at="", heartbeat_at="",
            process=ProcessName(host="other", user="someone", pid=7),
        )  # fmt: skip
        store.write_bytes(LOCK_NAME, thief.encoded())
        run_local(*args, extractor=EXTRACTOR, **kwargs)

    monkeypatch.setattr(driver, "run_local", robbed)
    with pytest.raises(EngineError, match="run thief"):
        driver.run(config, local=True, progress=None)
    assert store.names("outcomes") == []
    assert not store.exists("_SUCCESS")
    assert store.exists(LOCK_NAME), "it is not ours to remove"


@pytest.mark.slow
def test_failures_are_done_again_part_by_part(config: RunConfig) -> None:
    first = driver.run(config, local=True, progress=None)
    assert (first.files, first.failed, first.failed_fraction) == (4, 1, 0.25)
    before = outcomes_by_part(config)
    for retry in (Retry.environment, Retry.failed):
        options = RunOptions(retry=retry)
        idle = driver.run(config, local=True, progress=None, options=options)
        assert (idle.planned_files, idle.processed_files, idle.failed) == (0, 0, 1)
        assert idle.failed_fraction == 0  # what failed before is not held against it
    options = RunOptions(retry=Retry.all)
    again = driver.run(config, local=True, progress=None, options=options)
    assert (again.processed_files, again.failed, again.failed_fraction) == (1, 1, 1)
    after = outcomes_by_part(config)
    assert after.keys() == before.keys()
    redone = [key for key, row in after.items() if row["run_id"] == again.run_id]
    assert [before[key]["status"] for key in redone] == ["failed"]


def test_a_new_run_begins_anew_and_keeps_the_earlier_one(config: RunConfig) -> None:
    first = driver.run(config, local=True, progress=None)
    before = tables_of(config)
    other = with_section(config, "decoding", language="de")
    with pytest.raises(ConfigError, match="--new-run"):
        driver.run(other, local=True, progress=None)
    assert OutputStore(config.output.uri).exists("_SUCCESS")
    for processed in (4, 0):  # the second time it only continues
        anew = driver.run(other, local=True, progress=None, options=RunOptions(new_run=True))
        assert anew.processed_files == processed
    earlier = Path(config.output.uri) / "_earlier"
    [folder] = earlier.iterdir()
    assert json.loads((folder / "run.json").read_text())["run_id"] == first.run_id
    assert tables_of(with_section(config, "output", uri=str(folder))) == before
