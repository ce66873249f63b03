import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from corpus_asr.runtime.tries import (
    DEATHS_FOLDER,
    MAX_FAILURES,
    Device,
    Pass,
    Trail,
    avoided,
    in_call,
    note_deaths,
    read_deaths,
)
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import part, results

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
        "from corpus_asr.runtime.tries import *\n"
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
    assert not read_deaths(store, of).num_rows


def test_devices_are_named_for_people_and_compared_by_id() -> None:
    cpus = Device(node_id="node", host="gpu-1")
    assert (str(GPU), str(cpus)) == ("GPU 3 of gpu-1", "CPUs of gpu-1")
    of = Pass(avoided=frozenset({avoided("transcribe", GPU.id)}))
    assert of.avoids("transcribe", GPU)
    assert not of.avoids("extract", GPU)
    assert not of.avoids("transcribe", cpus)
