"""Nights as values, for tests of how they are judged and shown."""

from typing import Any

from corpus_asr.report.nightly import Archive, Findings, Night, NightState, PastNight


def night(**values: Any) -> Night:
    """Return a night of ten new recordings; counts of what was found may be among the values."""
    found = {name: values.pop(name) for name in list(values) if name in Findings.__slots__}
    usual: dict[str, Any] = {
        "date": "2026-11-21", "output": "s3://transcripts/podcasts", "run_id": "run-1",
        "state": NightState.done, "error": None, "started_at": "2026-11-21T01:00:00+01:00",
        "ended_at": "2026-11-21T02:00:00+01:00", "wall_s": 3600.0, "listed": 1000, "new": 10,
        "changed": 0, "retried": 0, "continued": 0, "left": 0, "audio_s": 36_000.0, "speed": 10.0,
        "archive": Archive(done=998, failed=2, audio_s=3_600_000.0), "left_alone": 0,
        "given_up": (),
    }  # fmt: skip
    findings: dict[str, Any] = {"done": 10}
    return Night(findings=Findings(**(findings | found)), **(usual | values))


def past(**values: Any) -> PastNight:
    """Return such a night as a later one knows it."""
    usual: dict[str, Any] = {
        "date": "2026-11-20", "state": "done", "listed": 990, "new": 10, "done": 10, "failed": 0,
        "left": 0, "audio_s": 36_000.0, "wall_s": 3600.0, "speed": 10.0, "unsure": 0,
    }  # fmt: skip
    return PastNight(**(usual | values))
