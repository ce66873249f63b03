import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Activity, FailureCount, FileSums, Tally
from corpus_asr.errors import FetchError
from corpus_asr.runtime import progress as recording
from corpus_asr.runtime.commit import tally_of
from corpus_asr.runtime.progress import (
    Progress,
    ProgressWriter,
    StageWatch,
    line_of,
)
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.run_files import (
    RunProgress,
    Snapshot,
    read_snapshot,
)
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import scripted_job
from tests.support.tables import part, results

FAILED: dict[str, Any] = {
    "uri": "https://host/a.mp3?sig=secret", "status": "failed", "duration_s": None,
    "error_stage": "extract", "error_kind": "not_audio", "retryable": False,
}  # fmt: skip
FAILURE = FailureCount(
    stage="extract", kind="not_audio", count=1, retryable=False, examples=("https://host/a.mp3",)
)


def test_a_recording_counts_when_its_last_part_is_committed():
    tally = tally_of(
        results(
            part("r", 0, texts=[], last=False, attempts=2),
            part("r", 1, texts=[]),
            part("", 0, texts=None, **FAILED),
        )
    )
    assert tally == Tally(
        parts=3, files=2, failed=1, audio_s=20.0, parts_retried=1, failures=(FAILURE,)
    )
    twice = replace(FAILURE, count=2)
    assert tally + tally == Tally(
        parts=6, files=4, failed=2, audio_s=40.0, parts_retried=2, failures=(twice,)
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PLANNED = {"mp3:11": FileSums(files=4, size=4e6)}


def at_work(**values: Any) -> Activity:
    """Return what workers did that know two of the four recordings, of an hour each."""
    usual: dict[str, Any] = {
        "durations": {"mp3:11": FileSums.of(1_000_000, 3600.0) + FileSums.of(1_000_000, 3600.0)},
        "decoded_s": 7200.0, "transcribed_s": 3600.0, "load_s": 10.0, "transcribe_alive_s": 100.0,
        "step_s": 90.0, "extract_alive_s": 100.0, "extract_s": 10.0, "backpressure_s": 80.0,
    }  # fmt: skip
    return Activity(**(usual | values))


def standing_at(elapsed_s: float, tally: Tally, activity: Activity) -> RunProgress:
    progress = Progress(
        total_files=4, planned=PLANNED, stream=None, clock=lambda: elapsed_s, started_s=0.0
    )
    progress.read_activity = lambda: activity
    progress.set(tally)
    return progress.standing()


def test_the_line_moves_before_anything_is_committed_and_says_what_waits():
    standing = standing_at(110.0, Tally(), at_work())
    assert line_of(standing) == (
        "0 of 4 files, 0 failed; 25%, 1.00 of 4.00 h; RTFx unknown; "
        "elapsed 0:01:50, ETA 0:05:00 (0:03:07-0:08:02); "
        "extract: blocked, as the engines are behind, transcribe: busy"
    )
    assert standing.eta is not None
    assert standing.eta.low < 300 < standing.eta.high
    committed = Tally(parts=9, files=2, failed=1, audio_s=5500.0)
    standing = standing_at(110.0, committed, at_work(transcribed_s=5600.0))
    assert line_of(standing).startswith(
        "2 of 4 files, 1 failed; 39%, 1.56 of 4.00 h; RTFx 50.0; elapsed 0:01:50, ETA 0:0"
    )
    done = standing_at(400.0, Tally(parts=9, files=4, audio_s=14_000.0), at_work())
    assert (done.share_done, done.audio_expected_s, done.eta_s) == (1.0, 14_000.0, 0.0)


def test_a_recording_whose_last_part_came_first_is_not_done():
    tally = Tally(parts=9, files=4, audio_s=3000.0)
    for changes in (
        {"parts_extracted": 12, "parts_started": 9, "parts_transcribed": 9},
        {"parts_extracted": 12, "parts_started": 12, "parts_transcribed": 9},
    ):
        standing = standing_at(400.0, tally, at_work(**changes))
        assert standing.files == 3
        assert standing.share_done is not None
        assert standing.share_done < 0.5
        assert standing.eta_s is not None
        assert standing.eta_s > 60
    ended = dict.fromkeys(("parts_extracted", "parts_started", "parts_transcribed"), 12)
    standing = standing_at(400.0, tally, at_work(**ended))
    assert (standing.files, standing.share_done, standing.eta_s) == (4, 1.0, 0.0)


def test_a_run_that_is_over_is_done_whatever_its_workers_told_last() -> None:
    progress = Progress(total_files=4, stream=None)
    progress.set(Tally(parts=9, files=4, audio_s=3000.0))
    progress.read_activity = lambda: at_work(parts_extracted=9, parts_started=7)
    assert progress.standing().files == 3
    progress.is_over = True
    standing = progress.standing()
    assert standing.files == 4
    assert "ready" not in standing.transcribe


@pytest.mark.parametrize(
    ("changes", "extract", "transcribe"),
    [
        ({"extract_alive_s": 0.0, "transcribe_alive_s": 0.0}, "starting", "loading the model"),
        ({"extract_s": 70.0, "backpressure_s": 0.0, "step_s": 5.0}, "busy", "waiting for extr"),
        ({"extract_s": 5.0, "backpressure_s": 5.0, "parts_extracted": 3}, "idle", "busy, 3 parts"),
        ({"parts_extracted": 1, "durations": {"wav:9": FileSums(files=4, size=1, audio_s=1)},
          "backpressure_s": 0.0}, "done", "busy, 1 part ready"),
    ],
)  # fmt: skip
def test_stages_say_in_words_what_they_wait_for(changes, extract, transcribe):
    standing = standing_at(110.0, Tally(), at_work(**changes))
    assert standing.extract.startswith(extract)
    assert standing.transcribe.startswith(transcribe)


def test_a_stage_is_judged_by_its_last_seconds():
    watch, extract, transcribe = StageWatch(), "", ""
    for at_s in range(0, 100, 5):
        busy_s = min(at_s, 50.0)  # the second half of the time it does nothing
        now = Activity(
            extract_alive_s=at_s, extract_s=busy_s, transcribe_alive_s=at_s, step_s=busy_s
        )
        extract, transcribe = watch.words(now, float(at_s), all_open=False)
        if at_s == 50:
            assert (extract, transcribe) == ("busy", "busy")
    assert (extract, transcribe) == ("idle", "waiting for extraction")
    for at_s in range(100, 130, 5):  # nobody reports any more
        extract, _ = watch.words(now, float(at_s), all_open=True)
    assert extract == "done"


def test_the_first_and_the_last_line_are_printed_and_redrawn_on_a_terminal():
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with Progress(total_files=2, stream=stream).shown() as progress:
            progress.set(Tally(parts=1, files=2))
    first, last = plain.getvalue().splitlines()
    assert first.startswith("0 of 2 files, 0 failed; 0.0 min of audio; RTFx unknown; ")
    assert last.startswith("2 of 2 files, 0 failed; 100%")
    assert "2 of 2 files" in terminal.getvalue()


PLAN = Plan(
    uri="plan", name="plan", num_files=10, num_bytes=1000, num_unknown_sizes=0, num_done=6,
    num_remaining=4, num_remaining_bytes=400, num_new=4, num_changed=0, num_retried=0, num_packs=1,
    num_excluded=0, num_ignored=0, num_duplicates=0,
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
    with Progress(total_files=4, stream=None).shown() as progress:
        progress.read_activity = lambda: Activity(steps=3)
        with recorder(store, progress, tmp_path, every_s=0.05).writing():
            first = wait_for(store, 0)
            assert first.state == "running"
            counts = first.listed, first.done_before, first.planned, first.remaining
            assert counts == (10, 6, 4, 4)
            assert first.last_commit_at is None
            progress.set(Tally(parts=2, files=1, audio_s=3600.0))
            then = wait_for(store, 1)
            assert then.last_commit_at is not None
            assert then.remaining == 3
            assert then.rtfx > 0
            assert then.activity.steps == 3
            progress.set(Tally(files=4))
    assert ending(store) == ("transcribed", 4)
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(total_files=4, stream=None).shown() as progress,
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
        Progress(total_files=4, stream=None).shown() as progress,
        recorder(store, progress, tmp_path, every_s=60.0).writing(),
    ):
        progress.set(Tally(files=4))
    assert "event=snapshot_not_written error='writing: no space'" in caplog.text
