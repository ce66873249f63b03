"""A run is seen from its output folder alone: its state, and what was busy holds it up."""

import datetime
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from corpus_asr.activity import Activity
from corpus_asr.errors import ConfigError
from corpus_asr.report.status import (
    SILENT_S,
    Status,
    Verdict,
    as_data,
    bottleneck_of,
    load_status,
    render,
)
from corpus_asr.storage.run_state.lock import LOCK_NAME, Holder, ProcessName
from corpus_asr.storage.run_state.run_files import STOPPED, TRANSCRIBED, Snapshot, write_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import snapshot

NOW = datetime.datetime(2026, 1, 1, 13, 0, 10, tzinfo=datetime.UTC)
HOLDER = Holder(
    token="t",
    run_id="run-1",
    process=ProcessName(host="elsewhere", user="me", pid=7),
    started_at="2026-01-01T12:00:00+00:00",
    heartbeat_at="2026-01-01T13:00:05+00:00",
)


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path))


def look(
    store: OutputStore, *, seen: Snapshot | None = None, holder: Holder | None = None
) -> Status:
    if seen is not None:
        write_snapshot(store, seen)
    if holder is not None:
        store.write_bytes(LOCK_NAME, holder.encoded())
    return load_status(store, now=NOW)


def test_a_running_run_says_how_far_it_is_and_what_failed(store: OutputStore) -> None:
    found = look(store, seen=snapshot(), holder=HOLDER)
    text = render(found)
    for messages in (
        f"{store.uri} (running)",
        "process 7 of me on elsewhere, heartbeat 5.0 s ago, at 2026-01-01 13:00:05 UTC",
        "counted 10.0 s ago",
        "80 planned: 38 done, 2 failed, 40 remaining; 20 done before",
        "10.0 h committed in 1.0 h: RTFx 10.0",
        "50%, 5.00 of 10.00 h; expected: 10.00 h (8.00-12.00)",
        "ETA 1:00:00 (0:50:00-1:10:00)",
        "now extract: busy, transcribe: idle",
        "last commit 20.0 s ago, at 2026-01-01 12:59:50 UTC",
        "2 recordings: not_audio, in extract",
        "- /b.mp3",
        "What to do: these are not audio",
    ):
        assert messages in " ".join(text.split()), messages
    data = json.loads(json.dumps(as_data(found)))
    assert (data["state"], data["alive"], data["remaining"]) == ("running", True, 40)
    assert data["driver"]["host"] == "elsewhere"
    assert data["failures"][0]["advice"].startswith("these are not audio")
    assert data["snapshot"]["activity"]["steps"] == 0


def test_a_driver_is_dead_silent_or_alive(store: OutputStore) -> None:
    alive = replace(HOLDER, process=ProcessName.mine())
    assert look(store, seen=snapshot(), holder=alive).alive
    child = subprocess.Popen(["true"])
    child.wait()
    dead = look(store, holder=replace(alive, process=replace(alive.process, pid=child.pid)))
    assert dead.state == "dead"
    assert "run the same command again" in " ".join(render(dead).split())
    silent = look(store, holder=replace(HOLDER, heartbeat_at="2026-01-01T12:00:00+00:00"))
    assert silent.state == "silent"
    assert "--steal-lock" in render(silent)
    assert not silent.alive


def test_a_run_stops_plans_and_finishes(store: OutputStore) -> None:
    found = look(store, seen=snapshot(state=STOPPED))
    assert found.state == "stopped"
    assert "40 remaining" in render(found)
    assert "time left" not in render(found)
    # While it still plans, the counts of the run before it are not shown.
    found = look(store, seen=snapshot(run_id="run-0"), holder=HOLDER)
    assert (found.state, found.snapshot) == ("beginning", None)
    assert "planned" not in render(found)
    assert look(store, seen=snapshot(state=TRANSCRIBED), holder=HOLDER).state == "finishing"


def test_a_finished_run_shows_its_tables_even_if_it_still_holds_the_lock(
    store: OutputStore,
) -> None:
    counts = {"listed": 100, "ok": 90, "no_speech": 5, "failed": 5, "remaining": 0}
    times = {"started_at": "2026-01-01T12:00:00+00:00", "finished_at": "2026-01-01T14:00:00+00:00"}
    run = {"run_id": "run-1", "counts": counts, "committed": {"audio_s": 43_200.0}}
    store.write_json("run.json", run | times)
    store.write_bytes("_SUCCESS", b"")
    found = look(store, seen=snapshot(state=TRANSCRIBED, files=80))
    assert found.state == "finished"
    text = render(found)
    assert "100 listed: 90 with text, 5 without speech, 5 failed, 0 remaining" in text
    assert "at 2026-01-01 12:59:50 UTC" in text
    assert "counted" not in text
    # From listing to the finished tables: what the report says, too.
    assert "12.0 h committed in 2.0 h: RTFx 6.0" in text
    found = look(store, holder=HOLDER)
    assert (found.state, found.alive, found.counts) == ("finished", False, counts)
    after = look(store, holder=replace(HOLDER, run_id="run-2"))
    assert (after.state, after.counts) == ("beginning", None)


def test_a_folder_of_something_else_is_refused(store: OutputStore) -> None:
    with pytest.raises(ConfigError, match="no _run/"):
        look(store)


def test_a_snapshot_of_another_version_is_left_out(store: OutputStore) -> None:
    store.write_json("_run/progress.json", asdict(snapshot()) | {"failures": 3})
    found = look(store, holder=HOLDER)
    assert found.snapshot is None
    store.write_json("_run/progress.json", asdict(snapshot()) | {"of_tomorrow": 1})
    assert look(store).snapshot == snapshot()


def test_no_table_is_read(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps it quick however many recordings there are."""
    for reading in ("batches", "commit_names"):
        monkeypatch.setattr(OutputStore, reading, pytest.fail)
    assert look(store, seen=snapshot(), holder=HOLDER).alive
    assert SILENT_S == 90.0


IDLE_EXTRACT = {"extract_alive_s": 100.0, "extract_s": 10.0, "parts_extracted": 5}
IDLE_ENGINE = {"transcribe_alive_s": 100.0, "step_s": 10.0, "steps": 1000}
EMPTY_SLOTS = {"step_s": 90.0, "slot_steps": 2, "slot_room": 10}


def verdict(**counts: object) -> Verdict:
    activity = Activity(**(IDLE_EXTRACT | IDLE_ENGINE | counts))  # type: ignore[arg-type]
    verdict = bottleneck_of(snapshot(activity=activity, elapsed_s=110.0))
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("counts", "stage", "setting"),
    [
        ({"load_s": 80.0}, "loading", "longer run"),
        ({"encode_s": 85.0}, "transcription", "transcribe.workers"),
        (
            {"encode_s": 85.0, "slot_steps": 9, "slot_room": 10},
            "transcription",
            "model.compute_type",
        ),
        ({**EMPTY_SLOTS, "parts_started": 5}, "slots", "extract.part_s"),
        ({**EMPTY_SLOTS, "parts_started": 1}, "transcription", "transcribe.workers"),
        ({"extract_s": 90.0, "extract_cpu_s": 80.0}, "extraction", "CPU nodes"),
        ({"extract_s": 90.0, "extract_cpu_s": 20.0}, "store", "extract.workers"),
        ({"commits": 9, "commit_s": 100.0}, "commits", "output.uri"),
        ({"encode_s": 85.0, "halvings": 2}, "transcription", "halved"),
        ({}, "nothing", "extract.pack_mb"),
    ],
)
def test_what_is_busy_is_what_held_it_up(counts, stage, setting):
    messages = verdict(**counts)
    assert messages.stage == stage
    assert setting in messages.advice
    assert ("halved" in messages.advice) == ("halvings" in counts)
    assert bottleneck_of(snapshot(activity=Activity())) is None


def shown(seen: Snapshot) -> list[str]:
    status = Status(
        uri="out", state="running", now=NOW, holder=None, snapshot=seen, counts=None,
    )  # fmt: skip
    return render(status).splitlines()


def test_lines_show_shares_queues_and_repetitions_within_the_width():
    found = Activity(
        **(IDLE_EXTRACT | IDLE_ENGINE),  # type: ignore[arg-type]
        backpressure_s=40.0, slots=16, slot_steps=3, slot_room=4, parts_started=3,
        parts_transcribed=2, commits=2, commit_s=1.0, fetch_retries=1, commit_retries=2,
        workers_replaced=1, extract_cpu_s=5.0, load_s=3.0, windows=7, tokens=1,
        failed_captures=2,
    )  # fmt: skip
    lines = shown(snapshot(activity=found, parts=1, parts_retried=4))
    text = "\n".join(lines)
    for messages in (
        "10% busy (50% of it CPU), 40% blocked by backpressure, 50% idle",
        "75% of 16 slots in use; model loaded in 3.0 s; 7 windows, 1 token; 1 worker",
        "2 commits of 0.5 s each",
        "2 captures failed, and steps run without graphs",
        "3 requests to stores, 4 parts after their worker died, 1 worker replaced",
        "2 parts before the engines, 1 in them, 1 behind them",
        "nothing: no stage was busy most of the time. To raise throughput",
    ):
        assert messages in " ".join(text.split()), messages
    assert max(len(line) for line in lines) <= 100
    out = shown(snapshot(workers_out=("GPU 3 of gpu-1: device lost",)))
    assert any("taken out" in line and "GPU 3 of gpu-1: device lost" in line for line in out)
    # Without counts, only queues are shown.
    labels = [line[2:14].strip() for line in shown(snapshot(activity=Activity(), failures=()))[1:]]
    assert labels == [
        "counted", "this run", "audio", "progress", "ETA", "now", "last commit", "queues",
    ]  # fmt: skip
