"""A run's snapshot with usual values."""

from typing import Any

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.storage.run_state.run_files import RUNNING, Snapshot

FAILURE = FailureCount(
    stage="extract", kind="not_audio", count=2, retryable=False, examples=("/a.mp3", "/b.mp3")
)


def snapshot(**values: Any) -> Snapshot:
    """Return a snapshot; what is not given is that of a run in the middle."""
    usual: dict[str, Any] = {
        "run_id": "run-1",
        "state": RUNNING,
        "started_at": "2026-01-01T12:00:00+00:00",
        "written_at": "2026-01-01T13:00:00+00:00",
        "elapsed_s": 3600.0,
        "host": "machine",
        "pid": 1,
        "listed": 100,
        "done_before": 20,
        "planned": 80,
        "planned_bytes": 8000,
        "files": 40,
        "failed": 2,
        "parts": 50,
        "parts_retried": 0,
        "audio_s": 36_000.0,
        "speed": 10.0,
        "time_left_s": 3600.0,
        "last_commit_at": "2026-01-01T12:59:50+00:00",
        "extract_workers": 2,
        "transcribe_workers": 1,
        "failures": (FAILURE,),
        "activity": Activity(),
    }
    return Snapshot(**(usual | values))
