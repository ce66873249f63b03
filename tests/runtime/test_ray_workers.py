"""Workers that take one recording at a time, with actors that are scripted here."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.runtime import ray_workers
from corpus_asr.runtime.coordinator import Device
from corpus_asr.runtime.ray_workers import NEWCOMER_S, RecordingWorkers, is_hopeless
from corpus_asr.runtime.second_try import RetriedRecording, each_alone
from corpus_asr.storage.run_state.recording_rows import LostPortion
from tests.support import tables

DIED = ray.exceptions.RayActorError()
LOAD_FAILS = EngineError("its engine fails")


def gpu(number: int) -> Device:
    return Device(node_id=f"node{number}", host="host", gpus=(str(number),))


class Answer:
    """What a call gives, an error or a value, once it is ready."""

    def __init__(self, value: Any, *, is_ready: bool = True) -> None:
        self.value, self.is_ready = value, is_ready


class Answers(Answer):
    """What a call gives one after the other."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__(None)
        self._values = iter(values)

    def __next__(self) -> Answer:
        return Answer(next(self._values))


Told = Callable[[Device, str], list[Any]]
"""What comes of a recording, by its address, on a device."""


class Actor:
    """A worker: on a device, or without room for one."""

    def __init__(self, device: Device | None, told: Told, error: Exception | None) -> None:
        def transcribe(pack: pa.Table, _: int) -> Answers:
            assert device is not None, "it is there"
            ((file,),) = pack["files"].to_pylist()
            return Answers(told(device, file["uri"]))

        loaded = None if error is None else ray.exceptions.RayTaskError("prepare", "", error)
        self.device = SimpleNamespace(remote=lambda: Answer(device, is_ready=device is not None))
        self.prepare = SimpleNamespace(remote=lambda: Answer(loaded))
        self.transcribe = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=transcribe))


@pytest.fixture(autouse=True)
def lost_nodes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Put what is scripted in the place of Ray; return the nodes that are gone."""
    lost: set[str] = set()
    seconds = iter(range(10**6))

    def wait(answers: list[Answer], *, timeout: float) -> tuple[list[Answer], list[Answer]]:
        ready = [answer for answer in answers if answer.is_ready]
        return ready[(turn := next(seconds) % (len(ready) or 1)) : turn + 1], []

    def get(answer: Answer) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def nodes() -> list[dict[str, Any]]:
        return [{"NodeID": f"node{n}", "Alive": f"node{n}" not in lost} for n in range(9)]

    scripted = SimpleNamespace(
        wait=wait, get=get, kill=lambda _: None, nodes=nodes, exceptions=ray.exceptions
    )
    monkeypatch.setattr(ray_workers, "ray", scripted)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    return lost


def recordings(*names: str) -> list[RetriedRecording]:
    return [
        RetriedRecording(file=row | {"begun_by": None, "done_parts": []})
        for row in tables.files(*names).to_pylist()
    ]


def spoken(name: str, *parts: int) -> list[pa.Table]:
    return [tables.results(tables.part(name.strip("/"), part, texts=["x"])) for part in parts]


def usual(_: Device, uri: str) -> list[Any]:
    return spoken(uri, 0, 1)


def workers(
    *devices: Device | None,
    told: Told = usual,
    error: Exception | None = None,
    patience_s: float = 1e9,
    stopping: Callable[[], bool] = lambda: False,
) -> RecordingWorkers:
    """Return workers of which the first starts get these devices, and the later ones the first."""
    places: Iterator[Device | None] = iter(devices)
    return RecordingWorkers(
        lambda: Actor(next(places, devices[0]), told, error),
        num_workers=len(devices),
        patience_s=patience_s,
        stopping=stopping,
        replaced=lambda _: None,
    )


def test_recordings_are_transcribed_part_by_part() -> None:
    found = [*workers(gpu(0), gpu(1))(waiting := recordings("a", "b", "c"))]
    assert len(found) == 6
    assert [recording.file["done_parts"] for recording in waiting] == [[0, 1]] * 3


def test_what_ends_a_worker_is_tried_on_another_device_without_its_done_parts() -> None:
    tried: list[tuple[Device, str]] = []

    def told(device: Device, uri: str) -> list[Any]:
        tried.append((device, uri))
        return [*spoken(uri, 0), DIED] if uri == "/deadly" else spoken(uri, 0)

    waiting = recordings("deadly", *map(str, range(6)))
    *_, lost = each_alone(workers(gpu(0), gpu(1), told=told), waiting)
    assert isinstance(lost, LostPortion)
    assert lost.portion is waiting[0]
    assert {device for device, uri in tried if uri == "/deadly"} == {gpu(0), gpu(1)}
    assert len(tried) == len(waiting) + 1
    (row,) = waiting[0].poison().to_pylist()
    assert (row["part"], row["attempts"]) == (1, 3)
    assert "its process was killed, or ran out of memory" in row["error_message"]


def test_one_device_alone_tries_twice() -> None:
    waiting = recordings("deadly")
    (lost,) = each_alone(workers(gpu(0), told=lambda *_: [DIED]), waiting)
    assert isinstance(lost, LostPortion)
    assert len(waiting[0].reasons) == 2


def test_a_lost_machine_says_nothing_about_a_recording(lost_nodes: set[str]) -> None:
    def told(device: Device, uri: str) -> list[Any]:
        if device == gpu(1) and not lost_nodes:
            lost_nodes.add(device.node_id)
            return [DIED]
        return spoken(uri, 0)

    waiting = recordings(*map(str, range(4)))
    assert len([*workers(gpu(0), gpu(1), told=told)(waiting)]) == 4
    assert not any(recording.reasons for recording in waiting)


def test_workers_that_all_fail_their_test_end_the_run() -> None:
    with pytest.raises(EngineError, match=r"no transcribe worker can work.*its engine fails"):
        [*workers(gpu(0), gpu(1), error=LOAD_FAILS)(recordings("a"))]


def test_workers_that_never_come_are_not_waited_for_where_the_others_fail() -> None:
    with pytest.raises(EngineError, match=r"no transcribe worker can work.*its engine fails"):
        [*workers(gpu(0), None, error=LOAD_FAILS)(recordings("a"))]


def test_workers_that_never_come_are_not_missed_where_others_work() -> None:
    assert len([*workers(gpu(0), None)(recordings("a", "b"))]) == 4


def test_it_is_an_error_if_nothing_happens() -> None:
    with pytest.raises(EngineError, match="nothing happened for 100 s"):
        [*workers(None, patience_s=100.0)(recordings("a"))]


def test_what_every_recording_would_meet_is_raised() -> None:
    with pytest.raises(ConfigError, match="of the job"):
        [*workers(gpu(0), error=ConfigError("of the job"))(recordings("a"))]


def test_nothing_new_is_begun_once_the_run_is_to_stop() -> None:
    assert [*workers(gpu(0), stopping=lambda: True)(recordings("a"))] == []


def test_a_stage_is_hopeless_once_all_workers_are_out_or_no_other_comes() -> None:
    assert not is_hopeless(1, 2, NEWCOMER_S)  # another one may be starting
    assert is_hopeless(1, 2, NEWCOMER_S + 1.0)
    assert is_hopeless(2, 2, 0.0)
    # One whose workers ended, since all they had to do is done, is not: none of them is out.
    assert not is_hopeless(0, 2, NEWCOMER_S + 1.0)
