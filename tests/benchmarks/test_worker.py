"""A worker's figures and failures, and the options that engines are given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import measured
from benchmarks.worker import tree_cpu_s
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
