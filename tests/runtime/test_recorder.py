"""The driver's snapshots: the first at once, the last whatever the end, none worth a failure."""

import time
from pathlib import Path

import pytest

from corpus_asr.activity import Activity
from corpus_asr.errors import FetchError
from corpus_asr.runtime import recorder as recording
from corpus_asr.runtime.progress import Progress, Tally
from corpus_asr.runtime.recorder import Recorder
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.run_files import Snapshot, read_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import scripted_job

PLAN = Plan(
    uri="plan", name="plan", num_files=10, num_bytes=1000, num_unknown_sizes=0, num_done=6,
    num_remaining=4, num_remaining_bytes=400, num_new=4, num_changed=0, num_retried=0, num_packs=1,
    num_excluded=0, num_duplicates=0,
)  # fmt: skip


def recorder(store: OutputStore, progress: Progress, folder: Path, every_s: float) -> Recorder:
    config = scripted_job(folder, extract={"workers": 3}, transcribe={"workers": 1})
    return Recorder(
        store,
        progress,
        run_id="run-1",
        plan=PLAN,
        resources=resolve_resources(config, (this_machine(),), num_packs=4),
        every_s=every_s,
    )


def wait_for(store: OutputStore, files: int) -> Snapshot:
    for _ in range(600):
        seen = read_snapshot(store)
        if seen is not None and seen.files == files:
            return seen
        time.sleep(0.1)
    return pytest.fail(f"no snapshot with {files} files within a minute")


def test_snapshots_follow_the_run_and_the_last_says_how_it_ended(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path / "output"))
    with Progress(total_files=4, total_bytes=400, stream=None) as progress:
        progress.watch(lambda: Activity(steps=3))
        with recorder(store, progress, tmp_path, every_s=0.05):
            first = wait_for(store, 0)
            assert first.state == "running"
            assert (first.listed, first.done_before, first.planned, first.left) == (10, 6, 4, 4)
            assert first.last_commit_at is None
            progress.add(Tally(parts=2, files=1, audio_s=3600.0, size_bytes=100))
            then = wait_for(store, 1)
            assert then.last_commit_at is not None
            assert then.left == 3
            assert then.speed > 0
            assert then.activity.steps == 3
            progress.add(Tally(files=3))
    last = read_snapshot(store)
    assert last is not None
    assert (last.state, last.files) == ("transcribed", 4)
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(total_files=4, total_bytes=0, stream=None) as progress,
        recorder(store, progress, tmp_path, every_s=60.0),
    ):
        raise KeyboardInterrupt
    last = read_snapshot(store)
    assert last is not None
    assert last.state == "stopped"


def test_a_snapshot_that_cannot_be_written_is_logged_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise FetchError("writing: no space", kind="fetch")

    monkeypatch.setattr(recording, "write_snapshot", refuse)
    store = OutputStore(str(tmp_path / "output"))
    with (
        Progress(total_files=4, total_bytes=0, stream=None) as progress,
        recorder(store, progress, tmp_path, every_s=60.0),
    ):
        progress.add(Tally(files=4))
    assert "event=snapshot_not_written error='writing: no space'" in caplog.text
