"""Two runs on one output, as processes of their own: one works, the other is told and leaves."""

import json
import time
from pathlib import Path

from corpus_asr.storage.lock import LOCK_NAME
from tests.support.killing import PAUSE, KillableJob, killable_job, tables_of

FILES = 12


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_run_leaves_and_one_after_a_killed_one_takes_over(tmp_path: Path) -> None:
    job = killable_job(tmp_path, files=FILES, environment={PAUSE: "1"})
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
