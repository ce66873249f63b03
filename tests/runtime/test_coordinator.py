import os
import re
import signal
import socket
import time
from collections import Counter as Counts
from pathlib import Path
from typing import Any

import pytest
import ray

from corpus_asr.activity import Activity
from corpus_asr.runtime import coordinator as exporting
from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.coordinator import (
    COMMIT_SECONDS,
    COUNTERS,
    GAUGES,
    OCCUPANCY,
    PREFIX,
    RECORDINGS,
    Metrics,
    Reporter,
    RunCoordinator,
    WorkerPlace,
    WorkerState,
    start_coordinator,
)
from corpus_asr.runtime.passes import Device
from corpus_asr.storage.run_state.lock import ProcessName

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "watching.md"


class Exported:
    """Stands in for Ray's metrics: keeps what they were given."""

    def __init__(self) -> None:
        self.added: Counts[str] = Counts()
        self.shown: dict[str, float] = {}

    def metric(self, name: str, description: str, *_: object, **__: object) -> "Exported.One":
        assert description
        return self.One(self, name)

    class One:
        def __init__(self, exported: "Exported", name: str) -> None:
            self._exported, self._name = exported, name

        def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert value > 0
            self._exported.added[" ".join([self._name, *(tags or {}).values()])] += value  # type: ignore[assignment]

        def set(self, value: float) -> None:
            self._exported.shown[self._name] = value

        observe = inc


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    found = Exported()
    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(exporting, name, found.metric)
    return found


def test_counters_grow_by_what_is_new_and_never_shrink(exported: Exported) -> None:
    metrics = Metrics()
    metrics.update(Tally(files=3, failed=1, audio_s=10.0), Activity(tokens=5, fetch_retries=1))
    metrics.update(Tally(files=5, failed=2, audio_s=15.0), Activity(tokens=9, fetch_retries=1))
    metrics.update(Tally(), Activity())  # the coordinator was lost: it begins anew
    metrics.update(Tally(files=1), Activity(tokens=1))
    metrics.committed(0.5)
    assert exported.added == {
        "corpus_asr_audio_seconds_total": 15.0,
        "corpus_asr_recordings_total done": 4,
        "corpus_asr_recordings_total failed": 2,
        "corpus_asr_tokens_total": 10,
        "corpus_asr_fetch_retries_total": 1,
        "corpus_asr_commit_seconds": 0.5,
    }


def test_gauges_show_now(exported: Exported) -> None:
    metrics = Metrics()
    metrics.update(Tally(), Activity(slot_steps=8, slot_room=8, parts_extracted=3, parts_started=1))
    metrics.update(Tally(), Activity(slot_steps=10, slot_room=16, parts_started=1))
    metrics.update(Tally(), Activity(slot_steps=10, slot_room=16))  # nothing was decoded since
    assert exported.shown == {
        "corpus_asr_slot_occupancy": 0.25,
        "corpus_asr_parts_ready": 0,
        "corpus_asr_parts_in_engines": 0,
    }


def test_the_board_adds_up_workers_and_replaces_what_one_sent_before(exported: Exported) -> None:
    coordinator = RunCoordinator()
    coordinator.report("one", Activity(tokens=3))
    coordinator.report("two", Activity(tokens=4, slots=8))
    coordinator.report("one", Activity(tokens=5))
    coordinator.add(Tally(parts=1, files=1), Activity(commits=1, commit_s=0.25))
    coordinator.replace("no memory")
    assert coordinator.activity() == Activity(
        tokens=9, slots=8, commits=1, commit_s=0.25, workers_replaced=1
    )
    assert exported.added["corpus_asr_tokens_total"] == 9


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_metrics_cost_nothing_where_nobody_exports_them() -> None:
    coordinator = start_coordinator()
    Reporter(coordinator, lambda: Activity(tokens=3, slot_steps=1, slot_room=2)).send()
    coordinator.add.remote(Tally(parts=1, files=1, audio_s=3.0), Activity(commits=1, commit_s=0.1))
    assert ray.get(coordinator.read.remote()).audio_s == 3.0
    assert ray.get(coordinator.activity.remote()).tokens == 3


@ray.remote(num_cpus=0, max_restarts=1, max_task_retries=1)
class Reporting:
    """A worker that reports, and may be frozen."""

    def __init__(self, coordinator: Any) -> None:
        Reporter(coordinator, Activity).start()

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_frozen_worker_is_killed_so_that_another_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "SILENT_S", 8.0)
    coordinator = start_coordinator()
    reporting: Any = Reporting
    frozen, well = reporting.remote(coordinator), reporting.remote(coordinator)
    pids = ray.get([frozen.pid.remote(), well.pid.remote()])
    deadline = time.monotonic() + 60
    while ray.get(coordinator.num_heard.remote()) < 2:
        assert time.monotonic() < deadline
    os.kill(pids[0], signal.SIGSTOP)
    replaced: list[str] = []
    while not replaced:
        assert time.monotonic() < deadline
        replaced += ray.get(coordinator.take_replaced.remote())
        time.sleep(0.5)
    assert ray.get(frozen.pid.remote()) != pids[0]
    assert ray.get(well.pid.remote()) == pids[1]
    assert replaced == [
        f"process {pids[0]} on {socket.gethostname()} reported nothing for 8 s: it was frozen, "
        "and was killed"
    ]


def test_nobody_is_frozen_who_could_not_be_heard() -> None:
    place = WorkerPlace("node", ProcessName.mine())
    coordinator = RunCoordinator(silent_s=10.0)
    start_s = time.monotonic()
    coordinator.report("one", Activity(), place)
    coordinator.report("two", Activity(), place)
    # The coordinator was stopped itself, or its machine was: reports are waiting to be read.
    assert coordinator._silent(start_s + 1000.0) == []
    for passed_s in range(1001, 1009):
        assert coordinator._silent(start_s + passed_s) == []
    coordinator.report("two", Activity(), place)
    coordinator._heard["two"] = (start_s + 1009.0, place)
    assert coordinator._silent(start_s + 1011.0) == [place]
    assert coordinator._silent(start_s + 1012.0) == []  # not again
    assert coordinator.num_heard() == 1


def test_every_metric_is_documented_and_no_other() -> None:
    metrics = (*COUNTERS, *GAUGES, OCCUPANCY, RECORDINGS, COMMIT_SECONDS)
    names = {metric.name for metric in metrics}
    documented = re.findall(rf"`ray_{PREFIX}(\w+)`", DOCUMENT.read_text())
    assert set(documented) == names
    assert len(documented) == len(names)


def test_a_coordinator_adds_up_and_passes_on_the_wish_to_stop() -> None:
    coordinator = RunCoordinator()
    assert not coordinator.stopping()
    coordinator.stop()
    assert coordinator.stopping()
    coordinator.add(Tally(parts=1, audio_s=2.0))
    coordinator.add(Tally(parts=2, audio_s=3.0))
    assert coordinator.read() == Tally(parts=3, audio_s=5.0)
    coordinator.replace("device lost")
    assert coordinator.take_replaced() == ["device lost"]
    assert coordinator.take_replaced() == []


def test_a_coordinator_knows_which_workers_of_a_pass_are_out_and_whether_any_is_left() -> None:
    coordinator = RunCoordinator()

    def report(worker: str, *, token: str = "now", out: str | None = None) -> None:
        gpu = Device(node_id="node", host="host", gpus=(worker,))
        state = WorkerState(token, "transcribe", worker, gpu, out)
        coordinator.report(worker, Activity(), None, state)

    report("0", token="before")
    report("1")
    report("2", out="device lost")
    (out,), idle = coordinator.out_of_work("now")
    assert (str(out.device), out.out, idle) == ("GPU 2 of host", "device lost", [])
    report("1", out="no memory")
    out_now, idle = coordinator.out_of_work("now")
    assert (len(out_now), idle) == (2, ["transcribe"])
    # A coordinator that took its place learns it from the next reports.
    coordinator = RunCoordinator()
    assert coordinator.out_of_work("now") == ([], [])
    report("2", out="device lost")
    assert coordinator.out_of_work("now")[1] == ["transcribe"]


def test_a_run_is_quiet_once_no_worker_does_anything() -> None:
    coordinator = RunCoordinator()
    coordinator._moved_s -= 100
    coordinator.report("idle", Activity(transcribe_alive_s=5.0, backpressure_s=3.0))
    assert coordinator.quiet_s() >= 100
    coordinator.report("busy", Activity(load_s=1.0))
    assert coordinator.quiet_s() < 100
    coordinator._moved_s -= 100
    coordinator.add(Tally(parts=1))
    assert coordinator.quiet_s() < 100
