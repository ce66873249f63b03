import os
import signal
import socket
import time
from typing import Any

import pytest
import ray

from corpus_asr.activity import Activity
from corpus_asr.errors import ConfigError
from corpus_asr.runtime import coordinator as coordinator_module
from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.coordinator import (
    MOST_REPORTS_PER_S,
    SILENT_S,
    CoordinatorClient,
    Device,
    Report,
    RunCoordinator,
    TakenOut,
    start_coordinator,
)
from corpus_asr.storage.run_state.lock import ProcessName

PROCESS = ProcessName(host="h", user="u", pid=1, machine=None, started_ticks=None)


def test_what_workers_did_since_they_last_said_so_adds_up() -> None:
    coordinator = RunCoordinator()
    coordinator.report(Report("one", Activity(tokens=3), "node", PROCESS))
    coordinator.report(Report("two", Activity(tokens=4, slots=8), "node", PROCESS))
    coordinator.report(Report("one", Activity(tokens=2, slots=4), "node", PROCESS))
    coordinator.add(Tally(parts=1, files=1), Activity(commits=1, commit_s=0.25))
    coordinator.replace("no memory")
    assert coordinator.look().activity == Activity(
        tokens=9, slots=8, commits=1, commit_s=0.25, workers_replaced=1
    )


def test_all_workers_together_report_no_more_often_than_one_coordinator_can_take() -> None:
    coordinator, report = RunCoordinator(), Report("0", Activity(), "node", PROCESS)
    for num_workers, most_s in ((10, 0.1), (600, 2.0), (4500, 15.0)):
        coordinator._heard = {str(n): (time.monotonic(), report) for n in range(num_workers)}
        pause_s = coordinator.report(report).pause_s
        assert pause_s == pytest.approx(num_workers / MOST_REPORTS_PER_S)
        assert pause_s <= most_s
        assert 10 * pause_s < SILENT_S


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_was_reported_is_not_reported_again() -> None:
    coordinator = start_coordinator()
    did = Activity(tokens=3, slot_steps=1, slot_room=2)
    client = CoordinatorClient(coordinator, lambda: did)
    for _ in range(2):
        client.send()
    coordinator.add.remote(Tally(parts=1, files=1, audio_s=3.0), Activity(commits=1, commit_s=0.1))
    look = ray.get(coordinator.look.remote())
    assert look.tally.audio_s == 3.0
    assert look.activity.tokens == 3


@ray.remote(num_cpus=0, max_restarts=1, max_task_retries=1)
class Reporting:
    """A worker that reports, and may be frozen."""

    def __init__(self, coordinator: Any) -> None:
        CoordinatorClient(coordinator, Activity).start()

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_frozen_worker_is_killed_so_that_another_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator_module, "SILENT_S", 8.0)
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
        replaced += ray.get(coordinator.look.remote()).replaced
        time.sleep(0.5)
    assert ray.get(frozen.pid.remote()) != pids[0]
    assert ray.get(well.pid.remote()) == pids[1]
    assert replaced == [
        f"process {pids[0]} on {socket.gethostname()} reported nothing for 8 s: it was frozen, "
        "and was killed"
    ]


def test_nobody_is_frozen_who_could_not_be_heard() -> None:
    coordinator = RunCoordinator(silent_s=10.0)
    start_s = time.monotonic()
    for worker in ("one", "two"):
        coordinator.report(Report(worker, Activity(), "node", PROCESS))
    # The coordinator was stopped itself, or its machine was: reports are waiting to be read.
    assert coordinator._silent(start_s + 1000.0) == []
    for passed_s in range(1001, 1009):
        assert coordinator._silent(start_s + passed_s) == []
    _, two = coordinator._heard.pop("two")
    coordinator._heard["two"] = (start_s + 1009.0, two._replace(activity=Activity()))
    assert [report.process for report in coordinator._silent(start_s + 1011.0)] == [PROCESS]
    assert coordinator._silent(start_s + 1012.0) == []  # not again
    assert coordinator.num_heard() == 1


def test_a_coordinator_adds_up_and_passes_on_the_wish_to_stop() -> None:
    coordinator = RunCoordinator()
    assert not coordinator.report(Report("one", Activity(), "node", PROCESS)).stopping
    coordinator.look(stop=True)
    assert coordinator.report(Report("one", Activity(), "node", PROCESS)).stopping
    coordinator.add(Tally(parts=1, audio_s=2.0))
    coordinator.add(Tally(parts=2, audio_s=3.0))
    assert not coordinator.report(Report("one", Activity(), "node", PROCESS)).over
    coordinator.look(over=True)
    assert coordinator.report(Report("one", Activity(), "node", PROCESS)).over
    coordinator.replace("device lost")
    look = coordinator.look()
    assert (look.tally, look.replaced) == (Tally(parts=3, audio_s=5.0), ["device lost"])
    assert coordinator.look().replaced == []
    assert RunCoordinator().look().life != look.life


def test_a_coordinator_knows_which_workers_are_out_and_what_all_would_meet() -> None:
    coordinator = RunCoordinator()
    assert (coordinator.look().out, coordinator.look().failure) == ([], None)
    gpu = Device(node_id="node", host="host", gpus=("2",))
    out = TakenOut("transcribe", "2", gpu, "device lost")
    for _ in range(2):  # a worker that stands aside says so again
        coordinator.take_out(out)
    first, second = ConfigError("no such model"), ConfigError("another")
    coordinator.fail(first)
    coordinator.fail(second)
    look = coordinator.look()
    assert (look.out, look.failure) == ([out], first)
    assert str(out.device) == "GPU 2 of host"
    assert str(Device(node_id="node", host="host")) == "CPUs of host"
