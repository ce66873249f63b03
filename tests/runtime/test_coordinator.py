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
from corpus_asr.runtime.coordinator import (
    MOST_REPORTS_PER_S,
    SILENT_S,
    CoordinatorClient,
    Device,
    RunCoordinator,
    TakenOut,
    Worker,
    start_coordinator,
)
from corpus_asr.storage.run_state.lock import ProcessName

PROCESS = ProcessName(host="h", user="u", pid=1, machine=None, started_ticks=None)


GPU = Device(node_id="node", host="host", gpus=("2",))


def worker(actor: str, *, stage: str = "transcribe") -> Worker:
    return Worker(stage, actor, GPU, PROCESS)


def test_what_workers_did_since_they_last_said_so_adds_up() -> None:
    coordinator = RunCoordinator()
    coordinator.report(worker("one"), Activity(tokens=3))
    coordinator.report(worker("two"), Activity(tokens=4, slots=8))
    coordinator.report(worker("one"), Activity(tokens=2, slots=4))
    coordinator.replace("no memory")
    expected = Activity(tokens=9, slots=8, workers_replaced=1)
    assert coordinator.poll(()).activity == expected


def test_all_workers_together_report_no_more_often_than_one_coordinator_can_take() -> None:
    coordinator = RunCoordinator()
    for num_workers, most_s in ((10, 0.1), (600, 2.0), (4500, 15.0)):
        coordinator._heard = {str(n): (0, worker(str(n))) for n in range(num_workers)}
        pause_s = coordinator.report(worker("0"), Activity()).pause_s
        assert pause_s == pytest.approx(num_workers / MOST_REPORTS_PER_S)
        assert pause_s <= most_s
        assert 10 * pause_s < SILENT_S


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_was_reported_is_not_reported_again() -> None:
    coordinator = start_coordinator()
    did = Activity(tokens=3, slot_steps=1, slot_room=2)
    client = CoordinatorClient(coordinator, "transcribe", lambda: did)
    for _ in range(2):
        client.send()
    assert ray.get(coordinator.poll.remote(())).activity.tokens == 3


@ray.remote(num_cpus=0, max_restarts=1, max_task_retries=1)
class Reporting:
    """A worker that reports, and may be frozen."""

    def __init__(self, coordinator: Any) -> None:
        CoordinatorClient(coordinator, "transcribe", lambda: Activity(tokens=1)).start()

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
    while ray.get(coordinator.poll.remote(())).activity.tokens < 2:
        assert time.monotonic() < deadline
        time.sleep(1.0)
    os.kill(pids[0], signal.SIGSTOP)
    replaced: list[str] = []
    while not replaced:
        assert time.monotonic() < deadline
        replaced += ray.get(coordinator.poll.remote(())).replaced
        time.sleep(1.0)
    assert ray.get(frozen.pid.remote()) != pids[0]
    assert ray.get(well.pid.remote()) == pids[1]
    assert replaced == [
        f"process {pids[0]} on {socket.gethostname()} reported nothing for 8 s: it was frozen, "
        "and was killed"
    ]


def test_nobody_is_frozen_who_could_not_be_heard() -> None:
    coordinator = RunCoordinator(silent_s=10.0)
    for actor in ("one", "two"):
        coordinator.report(worker(actor), Activity())
    # A pause of the coordinator or its machine is none of its polls.
    for _ in range(10):
        assert coordinator.take_silent() == []
    coordinator.report(worker("two"), Activity())
    assert coordinator.take_silent() == [worker("one")]
    assert coordinator.take_silent() == []  # not again
    assert [*coordinator._heard] == ["two"]


def test_a_coordinator_passes_on_which_stages_are_to_stop() -> None:
    coordinator = RunCoordinator()
    alone = worker("alone", stage="alone")
    for stopped, are_stopping in (((), (False, False)), (("transcribe",), (True, False)),
                                  (("transcribe", "alone"), (True, True))):  # fmt: skip
        coordinator.poll(stopped)
        replies = (coordinator.report(each, Activity()) for each in (worker("one"), alone))
        assert tuple(reply.is_stopping for reply in replies) == are_stopping
    coordinator.replace("device lost")
    assert coordinator.poll(()).replaced == ["device lost"]
    assert coordinator.poll(()).replaced == []


def test_a_coordinator_knows_which_workers_are_out_and_what_all_would_meet() -> None:
    coordinator = RunCoordinator()
    status = coordinator.poll(())
    assert (status.out, status.failure) == ({}, None)
    for _ in range(2):  # a worker that stands aside says so again
        coordinator.take_out(worker("2"), "device lost")
    first, second = ConfigError("no such model"), ConfigError("another")
    coordinator.fail(first)
    coordinator.fail(second)
    status = coordinator.poll(())
    out = TakenOut("transcribe", GPU, "device lost")
    assert (status.out, status.failure) == ({"2": out}, first)
    assert str(out) == "GPU 2 of host: device lost"
    assert str(Device(node_id="node", host="host")) == "CPUs of host"
