import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.logs import LogSettings
from corpus_asr.runtime import workers
from corpus_asr.runtime.passes import (
    DEATHS_FOLDER,
    DIED,
    EXTRACT,
    FEW_PER_WORKER,
    HANDED_BACK,
    MAX_FAILURES,
    TRANSCRIBE,
    WRITTEN,
    Device,
    Done,
    Pass,
    Suspects,
    Trail,
    avoided,
    in_call,
    know_last_parts,
    next_pass,
    note_deaths,
    packs_of,
    read_deaths,
    resources_for,
)
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support import tables
from tests.support.engines import EXTRACTOR
from tests.support.tables import part, results, run_config

ALONE = Pass(number=2, alone=True)
DEVICES = {EXTRACT: 4, TRANSCRIBE: 4}


def committed(*rows: dict[str, Any]) -> Done:
    found = Done()
    found.add(results(*rows).select(WRITTEN.names))
    return found


def file(name: str, *done: int) -> dict[str, Any]:
    """Return a planned recording `/name`."""
    (row,) = tables.files(name).to_pylist()
    return row | {"done_parts": list(done)}


def died(
    name: str, index: int, *, device: str = "node/0", stage: str = TRANSCRIBE, kind: str = DIED,
    why: str = "it died", last: bool = True,
) -> dict[str, Any]:  # fmt: skip
    return part(
        name, index, texts=None, last=last, status="failed", error_stage=stage, error_kind=kind,
        error_message=why, retryable=True, device=device,
    )  # fmt: skip


def left(found: Done, *files: dict[str, Any]) -> dict[str, list[int]]:
    plan = [packs_of(list(files))]
    return {each["uri"]: each["done_parts"] for each in found.remaining(plan)}


def test_what_is_complete_is_not_left_and_of_the_rest_only_what_is_not_done() -> None:
    found = committed(
        part("whole", 0, texts=["a"], last=False),
        part("whole", 1, texts=["b"]),
        part("hole", 0, texts=["a"], last=False),
        part("hole", 2, texts=["c"]),
        part("endless", 0, texts=["a"], last=False),
    )
    files = [file(name) for name in ("whole", "hole", "endless", "new")]
    assert left(found, *files) == {"/hole": [0, 2], "/endless": [0], "/new": []}


def test_parts_of_earlier_runs_count_and_a_failure_that_ended_a_file_may_come_again() -> None:
    found = committed(
        part("resumed", 1, texts=["b"]),
        part("broken", 1, texts=None, status="failed"),
    )
    assert left(found, file("resumed", 0), file("broken")) == {"/broken": []}


def test_the_last_part_may_be_of_an_earlier_run(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    rows = [part("a", 0, texts=None, last=False, status="failed"), part("a", 1, texts=["b"])]
    tables.commit(store, results(*rows))
    # The failed part was to be done again, and was; that it was not the last is known.
    found = committed(part("a", 0, texts=["a"], last=False))
    assert left(found, file("a", 1)) == {"/a": [0, 1]}
    know_last_parts(store, [file("a", 1)], found)
    assert left(found, file("a", 1)) == {}


def test_a_part_is_given_up_after_two_workers_that_it_ended_alone() -> None:
    suspects = Suspects()
    suspects.add(results(died("a", 1), died("b", 0)), Pass())
    suspects.add(results(died("a", 1, device="node/1"), died("a", 1, device="node/1")), ALONE)
    # In the first pass it had company, and in one pass it is counted once.
    assert not suspects.take_poison([file("a", 0)]).num_rows
    suspects.add(results(died("a", 1, device="node/2", why="no memory", last=False)), ALONE)
    (row,) = suspects.take_poison([file("a", 0)]).to_pylist()
    assert (row["part"], row["last_part"], row["attempts"]) == (1, False, 3)
    assert (row["status"], row["error_kind"], row["error_stage"]) == ("failed", DIED, TRANSCRIBE)
    assert row["error_message"].startswith(
        "transcribing part 1 of /a: its worker ended 3 times, 2 of them with nothing else in work "
        "(it died; no memory), expected a result"
    )
    assert not suspects.take_poison([file("a", 0)]).num_rows  # not again


@pytest.mark.parametrize(("done", "taken"), [([], 0), ([0, 1], 2), ([0, 2], 1)])
def test_a_file_that_ends_extract_workers_fails_at_the_first_open_part(
    done: list[int], taken: int
) -> None:
    suspects = Suspects()
    for device in ("one", "two"):
        suspects.add(results(died("a", 0, stage=EXTRACT, device=device)), ALONE)
    (row,) = suspects.take_poison([file("a", *done)]).to_pylist()
    assert (row["part"], row["last_part"], row["error_stage"]) == (taken, True, EXTRACT)
    assert row["error_message"].startswith("extracting /a: ")


def test_what_was_done_meanwhile_or_handed_back_is_blamed_for_nothing() -> None:
    suspects = Suspects()
    for _ in range(2):
        rows = died("done", 0), died("whole", 0), died("back", 0, kind=HANDED_BACK, why="out")
        suspects.add(results(*rows), ALONE)
    assert not suspects.take_poison([file("done", 0), file("back")]).num_rows
    assert list(suspects.reasons) == ["it died", "out"]
    assert not suspects.devices()


def test_a_suspect_is_tried_on_another_device_as_long_as_there_is_one() -> None:
    suspects = Suspects()
    suspects.add(results(died("a", 0, device="node/0"), died("b", 0, device="node/1")), ALONE)
    few = next_pass(ALONE, suspects, few=True, bad=frozenset(), devices=DEVICES)
    assert few.avoided == {"transcribe node/0", "transcribe node/1"}
    none = next_pass(ALONE, suspects, few=True, bad=frozenset(), devices={TRANSCRIBE: 2})
    assert none.avoided == frozenset()
    bad = next_pass(ALONE, suspects, few=True, bad=frozenset({"x"}), devices={TRANSCRIBE: 2})
    assert bad.avoided == {"x"}


def test_passes_have_less_and_less_at_a_time() -> None:
    resources = resolve_resources(run_config("/in", "/out"), (this_machine(),), num_packs=100)
    many = next_pass(Pass(), Suspects(), few=False, bad=frozenset(), devices=DEVICES)
    assert (many.number, many.alone) == (2, False)
    some = resources_for(many, resources, num_files=1000, num_nodes=1)
    assert (some.rows_per_call, some.extract_workers) == (1, resources.extract_workers)
    assert some.parts_in_flight <= resources.parts_in_flight
    for before, few in ((Pass(), True), (many, False)):
        alone = next_pass(before, Suspects(), few=few, bad=frozenset(), devices=DEVICES)
        assert alone.alone
        one = resources_for(alone, resources, num_files=FEW_PER_WORKER, num_nodes=1)
        assert (one.parts_in_flight, one.extract_workers) == (1, 1)


def test_each_file_is_a_pack() -> None:
    packs = packs_of([file("a", 1), file("b")])
    assert packs["pack_id"].to_pylist() == [0, 1]
    assert [pack[0]["uri"] for pack in packs["files"].to_pylist()] == ["/a", "/b"]
    assert isinstance(packs, pa.Table)


GPU = Device(node_id="node", host="gpu-1", gpus=("3",))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_call_that_ends_leaves_nothing(temporary: Path) -> None:
    trail = Trail(Pass(), GPU, "worker")
    assert trail.before("call") is None
    with in_call(trail, "call"):
        trail.begin("call", "a recording")
        assert list(temporary.iterdir())
    assert trail.before("call") is None
    assert not list(temporary.iterdir())


def test_a_process_that_is_killed_leaves_what_it_was_doing(temporary: Path) -> None:
    of = Pass()
    program = (
        "import os, pickle, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from corpus_asr.runtime.passes import *\n"
        "of, gpu = pickle.loads(bytes.fromhex(sys.argv[2]))\n"
        "trail = Trail(of, gpu, 'worker')\n"
        "with in_call(trail, 'call'):\n"
        "    trail.begin('call', 'a'); trail.begin('call', 'b')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    given = pickle.dumps((of, GPU)).hex()
    ended = subprocess.run([sys.executable, "-c", program, str(temporary), given], check=False)
    assert ended.returncode == -signal.SIGKILL
    trail = Trail(of, GPU, "worker")
    found = trail.before("call")
    assert found is not None
    assert (found.doing, found.why, found.noted) == ("b", "", False)
    assert Trail(Pass(), GPU, "worker").before("call") is None  # another pass
    elsewhere = Device(node_id="other", host="gpu-2", gpus=("3",))
    assert Trail(of, elsewhere, "worker").before("call") is None  # its machine was lost
    trail.note("call", found)
    noted = trail.before("call")
    assert noted is not None
    assert noted.noted


def test_an_error_is_that_of_every_call_in_work() -> None:
    of = Pass()
    trail = Trail(of, GPU, "worker")
    for call in ("one", "two", "ended"):
        trail.begin(call)
    trail.clear("ended")
    trail.fail("device lost")
    after = Trail(of, GPU, "worker")
    whys = [each and each.why for each in map(after.before, ("one", "two", "ended"))]
    assert whys == ["device lost", "device lost", None]


def test_a_worker_is_out_once_its_processes_fail_in_a_row() -> None:
    trail = Trail(Pass(), GPU, "worker")
    for _ in range(MAX_FAILURES):
        assert not trail.is_out
        trail.start()
    assert trail.is_out
    assert "killed" in trail.failures()[1]
    trail.fail("device lost")
    assert trail.failures() == (MAX_FAILURES, "device lost")
    trail.works()
    assert trail.failures() == (0, "")
    trail.fail("device lost")  # of a part, or of the device: the next process will know
    assert trail.failures() == (1, "device lost")


def test_deaths_are_read_once_and_those_of_killed_runs_go(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path / "output"))
    of, other = Pass(), Pass()
    row = part("a", 0, texts=None, status="failed", error_kind="poison")
    note_deaths(store, of, results(row), GPU)
    note_deaths(store, of, results(row, row), GPU)
    note_deaths(store, other, results(row), GPU)
    deaths = read_deaths(store, of)
    assert deaths.num_rows == 3
    assert set(deaths["device"].to_pylist()) == {"node/3"}
    assert not list(store.all_names(DEATHS_FOLDER))
    note_deaths(store, of, results(), GPU)
    assert not list(store.all_names(DEATHS_FOLDER))


def test_devices_are_named_for_people_and_compared_by_id() -> None:
    cpus = Device(node_id="node", host="gpu-1")
    assert (str(GPU), str(cpus)) == ("GPU 3 of gpu-1", "CPUs of gpu-1")
    of = Pass(avoided=frozenset({avoided("transcribe", GPU.id)}))
    assert of.avoids("transcribe", GPU)
    assert not of.avoids("extract", GPU)
    assert not of.avoids("transcribe", cpus)


@pytest.mark.parametrize(
    ("doing", "kind"), [("/a.wav", DIED), ("/of-another-pack.wav", HANDED_BACK), ("", HANDED_BACK)]
)
def test_a_pack_whose_worker_ended_goes_to_the_next_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str, kind: str
) -> None:
    of, config = Pass(), run_config(tmp_path, tmp_path / "out", model="whisper-tiny.en")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(workers, "this_device", lambda: GPU)
    monkeypatch.setattr(workers, "this_worker", lambda: ("worker", True))
    idle = SimpleNamespace(start=str, stopping=lambda: False, send=str)
    monkeypatch.setattr(workers, "CoordinatorClient", lambda *_, **__: idle)
    pack = tables.packs_of("/a.wav", "/b.wav")
    Trail(of, GPU, "worker").begin("packs [0]", doing)
    worker = workers.ExtractWorker(
        config, coordinator=None, logs=LogSettings(), extractor=EXTRACTOR, of=of
    )
    assert list(worker(pack)) == list(worker(pack)) == []  # Ray may ask again
    deaths = read_deaths(OutputStore(config.output.uri), of)
    assert set(deaths["error_kind"].to_pylist()) == {kind}
    named = deaths["recording_id"].to_pylist()
    assert named == (["/a.wav"] if kind == DIED else ["/a.wav", "/b.wav"])
