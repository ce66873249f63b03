import io
import itertools
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.errors import FetchError
from corpus_asr.runtime import progress as recording
from corpus_asr.runtime.commit import Tally, tally_of
from corpus_asr.runtime.progress import History, Progress, ProgressWriter
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.run_files import PROGRESS_NAME, Moment, Snapshot, read_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import scripted_job
from tests.support.tables import part, results, snapshot

FAILED: dict[str, Any] = {
    "uri": "https://host/a.mp3?sig=secret", "status": "failed", "duration_s": None,
    "size_bytes": None, "error_stage": "extract", "error_kind": "not_audio", "retryable": False,
}  # fmt: skip
FAILURE = FailureCount(
    stage="extract", kind="not_audio", count=1, retryable=False, examples=("https://host/a.mp3",)
)


def test_a_recording_counts_when_its_last_part_is_committed():
    tally = tally_of(
        results(
            part("r", 0, texts=[], last=False, attempts=2, size_bytes=1000),
            part("r", 1, texts=[], size_bytes=1000),
            part("", 0, texts=None, **FAILED),
        )
    )
    assert tally == Tally(
        parts=3, files=2, failed=1, audio_s=20.0, size_bytes=1000, retried=1, failures=(FAILURE,)
    )
    twice = replace(FAILURE, count=2)
    assert tally + tally == Tally(
        parts=6, files=4, failed=2, audio_s=40.0, size_bytes=2000, retried=2, failures=(twice,)
    )


def test_the_line_says_done_failed_left_speed_and_time_left():
    now_s = iter([0.0, 0.0, 3600.0, 3600.0])
    progress = Progress(total_files=4, total_bytes=4000, stream=None, clock=lambda: next(now_s))
    with progress.shown():
        progress.set(Tally(parts=2, files=1, failed=1, audio_s=7200.0, size_bytes=1000))
        assert progress.line() == (
            "1/4 files, 1 failed, 3 remaining; 2.00 h of audio, RTFx 2.0; "
            "elapsed 1:00:00, ETA 3:00:00"
        )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_first_and_the_last_line_are_printed_and_redrawn_on_a_terminal():
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with Progress(total_files=2, total_bytes=0, stream=stream).shown() as progress:
            progress.set(Tally(parts=1, files=2))
    first, last = plain.getvalue().splitlines()
    assert first.startswith("0/2 files")
    assert last.startswith("2/2 files")
    assert "2/2 files" in terminal.getvalue()


def test_a_commit_has_its_time_and_what_is_left_an_estimate():
    now_s = iter([0.0, 0.0, 10.0, 10.0])
    progress = Progress(total_files=4, total_bytes=0, stream=None, clock=lambda: next(now_s))
    assert (progress.read_activity(), progress.committed_at) == (Activity(), None)
    with progress.shown():
        progress.set(Tally(parts=1, files=1))
        before = progress.committed_at
        progress.set(Tally(parts=1, files=1))
        assert before is not None
        assert progress.committed_at == before  # nothing new
        assert progress.elapsed_s == 10.0
        assert progress.eta_s() == 30.0


PLAN = Plan(
    uri="plan", name="plan", num_files=10, num_bytes=1000, num_unknown_sizes=0, num_done=6,
    num_remaining=4, num_remaining_bytes=400, num_new=4, num_changed=0, num_retried=0, num_packs=1,
    num_excluded=0, num_duplicates=0,
)  # fmt: skip


def recorder(
    store: OutputStore, progress: Progress, folder: Path, every_s: float
) -> ProgressWriter:
    config = scripted_job(folder, extract={"workers": 3}, transcribe={"workers": 1})
    return ProgressWriter(
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


def ending(store: OutputStore) -> tuple[str, int]:
    last = read_snapshot(store)
    assert last is not None
    return last.state, last.files


def test_snapshots_follow_the_run_and_the_last_says_how_it_ended(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path / "output"))
    with Progress(total_files=4, total_bytes=400, stream=None).shown() as progress:
        progress.read_activity = lambda: Activity(steps=3)
        with recorder(store, progress, tmp_path, every_s=0.05).writing():
            first = wait_for(store, 0)
            assert first.state == "running"
            counts = first.listed, first.done_before, first.planned, first.remaining
            assert counts == (10, 6, 4, 4)
            assert first.last_commit_at is None
            progress.set(Tally(parts=2, files=1, audio_s=3600.0, size_bytes=100))
            then = wait_for(store, 1)
            assert then.last_commit_at is not None
            assert then.remaining == 3
            assert then.rtfx > 0
            assert then.activity.steps == 3
            progress.set(Tally(files=4))
    assert ending(store) == ("transcribed", 4)
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(total_files=4, total_bytes=0, stream=None).shown() as progress,
        recorder(store, progress, tmp_path, every_s=60.0).writing(),
    ):
        raise KeyboardInterrupt
    assert ending(store) == ("stopped", 0)


def test_a_snapshot_that_cannot_be_written_is_logged_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise FetchError("writing: no space", kind="fetch")

    monkeypatch.setattr(recording, "write_snapshot", refuse)
    store = OutputStore(str(tmp_path / "output"))
    with (
        Progress(total_files=4, total_bytes=0, stream=None).shown() as progress,
        recorder(store, progress, tmp_path, every_s=60.0).writing(),
    ):
        progress.set(Tally(files=4))
    assert "event=snapshot_not_written error='writing: no space'" in caplog.text


def moment(elapsed_s: float) -> Moment:
    busy = dict.fromkeys(("extract_s", "extract_alive_s", "engine_s", "transcribe_alive_s"), 0.0)
    return Moment(elapsed_s=elapsed_s, audio_s=10 * elapsed_s, files=0, failed=0, **busy)


@pytest.mark.parametrize("seconds", [0.0, 15.1, 300.0, 3_000.0, 400_000.0])
def test_moments_are_even_few_and_end_now(seconds: float) -> None:
    history = History(15.0, most=20)
    found = history.with_now(moment(0.0))
    number = 0
    while number * 15.1 < seconds:
        number += 1
        found = history.with_now(moment(number * 15.1))
    times = [each.elapsed_s for each in found]
    assert times[0] == 0.0
    assert times[-1] == number * 15.1
    assert len(times) <= 21
    gaps = [after - before for before, after in itertools.pairwise(times[:-1])]
    assert not gaps or max(gaps) <= 1.05 * min(gaps) + 15.1
    if number >= 20:
        assert len(times) >= 10


def test_history_survives_a_file_and_may_be_missing(tmp_path: Path) -> None:
    store, seen = OutputStore(str(tmp_path)), snapshot(history=(moment(0.0), moment(15.0)))
    data = asdict(seen)
    for stored, expected in (
        (data, seen),
        ({name: data[name] for name in data if name != "history"}, snapshot()),
        (data | {"history": [{"elapsed_s": 3}]}, None),
    ):
        store.write_json(PROGRESS_NAME, stored)
        assert read_snapshot(store) == expected
