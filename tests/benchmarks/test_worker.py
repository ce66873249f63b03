"""A worker's figures and failures, and the options that engines are given."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import measured
from benchmarks.worker import tree_cpu_s
from corpus_asr.threads import BRIEFLY, SPIN_COUNT
from tests.benchmarks import runners

RUNNERS = "tests.benchmarks.runners"
WORK = {"work": ["a", "b"], "warm_up": ["a"]}


def test_a_worker_has_its_own_process_cores_and_threads_and_may_print():
    found = measured(f"{RUNNERS}:works", {"threads": 1, "name": "A"}, WORK)
    assert found["texts"] == ["Four score, and seven!"] * 2
    assert found["pid"] != os.getpid()
    assert (found["threads"], found["cores"]) == ("1", 1)
    assert found["peak_mib"] > 1
    assert found["wall_s"] == 2.0  # an engine that times itself is believed


def test_the_work_counts_and_the_warm_up_does_not(tmp_path):
    turns = tmp_path / "turns"
    measured(f"{RUNNERS}:works", {"threads": 1, "name": "A", "turns": str(turns)}, WORK)
    assert turns.read_text().split() == ["A1", "A2"]
    found = measured(f"{RUNNERS}:burns", {"threads": 1}, WORK)
    assert 0.25 <= found["cpu_s"] < 0.55  # that of the work, counted in ticks of 10 ms
    assert found["wall_s"] >= found["cpu_s"] / 2


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("cannot_load", "exit code 1: ValueError: no such weights"),
        ("dies", "exit code -9: malloc(): corrupted"),
        ("absent", "exit code 1: AttributeError: "),
    ],
)
def test_a_worker_that_fails_says_why(engine, reason):
    found = measured(f"{RUNNERS}:{engine}", {"threads": 1}, WORK)
    assert found["failed"].startswith(reason)
    assert "\n" not in found["failed"]


def test_another_environment_needs_nothing_but_python():
    request = {"engine": f"{RUNNERS}:works", "options": {"threads": 1, "name": "A"}, "cores": 1}
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-m", "benchmarks.worker"],
        input=json.dumps(request | WORK),
        env={"PYTHONPATH": str(Path(runners.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cores"] == 1


def test_our_threads_wait_briefly_and_the_others_as_their_users_have_them(monkeypatch):
    environments = []

    def run(command, *, env, **_):
        environments.append(env)
        return subprocess.CompletedProcess(command, 0, stdout="{}", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    for value in (BRIEFLY, "77"):
        monkeypatch.setenv(SPIN_COUNT, value)
        for engine in ("m:f", "m:corpus_asr"):
            measured(engine, {"threads": 3}, WORK)
    assert [each.get(SPIN_COUNT) for each in environments] == [None, BRIEFLY, "77", "77"]
    assert {each["OMP_NUM_THREADS"] for each in environments} == {"3"}
    assert {each["HF_HUB_OFFLINE"] for each in environments} == {"1"}


def test_cpu_seconds_are_of_children_that_live_and_of_those_that_ended():
    before_s = tree_cpu_s()
    with subprocess.Popen(
        [sys.executable, "-c", runners.BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        living_s = tree_cpu_s() - before_s
        child.communicate(b"\n")
    ended_s = tree_cpu_s() - before_s
    assert living_s >= 0.25  # counted in ticks of 10 ms
    assert ended_s >= living_s
    assert tree_cpu_s(str(child.pid)) == 0.0


def test_batched_faster_whisper_decides_by_itself_on_timestamps():
    """Forced to write them, it loses sentences."""
    library = pytest.importorskip("faster_whisper")
    parameters = inspect.signature(library.BatchedInferencePipeline.transcribe).parameters
    assert parameters["without_timestamps"].default is True
    assert parameters["vad_filter"].default is True
