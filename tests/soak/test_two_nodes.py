"""A cluster of a CPU machine and a GPU machine, as far as one machine can play both.

The GPU is a number to Ray: the model runs on the CPU of what Ray takes for another machine.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from corpus_asr.config.run import RunConfig
from tests.support.corpora import CLIPS, job, tiny_model
from tests.support.killing import KillableJob, command_line, descendants, into, tables_of
from tests.support.tables import with_section

STORE_BYTES = 150 * 1024 * 1024
COPIES = 40
BUSY_S = 6.0  # of which loading takes most
GPU_MACHINE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE_BYTES}

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A long-lived Ray of one CPU machine, which is its head."""
    head = {"num_cpus": 4, "num_gpus": 0, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A job over copies of the demo clips."""
    folder = tmp_path_factory.mktemp("job")
    for number in range(COPIES):
        for clip in ("german.opus", "silence.flac"):
            (folder / "corpus" / f"{number:02d}").mkdir(parents=True, exist_ok=True)
            shutil.copy(CLIPS / clip, folder / "corpus" / f"{number:02d}" / clip)
    (folder / "corpus" / "broken.mp3").write_text("<html>404 not found</html>")
    usual = job(
        folder / "corpus",
        tiny_model(folder),
        folder / "output",
        extract={"part_s": 30, "pack_mb": 0.05, "workers": 1},
        transcribe={"slots": 2, "workers": 1, "gpus_per_worker": 1},
    )
    return with_section(usual, "model", device="cpu")


def on_ray(config: RunConfig, folder: Path, cluster: Cluster) -> KillableJob:
    """Return the job with an output of its own."""
    config = with_section(config, "output", uri=str(folder / "output"))
    environment = {"RAY_ADDRESS": cluster.address}
    return KillableJob(config, folder / "job", ray=True, scripted=False, environment=environment)


@pytest.fixture(scope="module")
def expected(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The tables of the same job in one process."""
    output = tmp_path_factory.mktemp("here") / "output"
    without_gpus = with_section(config, "transcribe", gpus_per_worker=0.0)
    here = into(KillableJob(without_gpus, output, scripted=False), output)
    code, said = here.finish()
    assert code == 0, said
    return tables_of(here.config)


def test_a_gpu_machine_that_goes_and_comes_back(
    cluster: Cluster, config: RunConfig, expected: dict, tmp_path: Path
):
    run = on_ray(config, tmp_path, cluster)
    machine = cluster.add_node(**GPU_MACHINE)
    with run.started() as process:
        wait_until_busy(process)
        cluster.remove_node(machine, allow_graceful=False)
        time.sleep(5)
        machine = cluster.add_node(**GPU_MACHINE)
        _, said = process.communicate(timeout=1200)
    cluster.remove_node(machine)
    assert process.returncode == 0, said
    assert tables_of(run.config) == expected


def test_a_driver_that_is_killed_leaves_the_cluster_as_it_was(
    cluster: Cluster, config: RunConfig, expected: dict, tmp_path: Path
):
    run = on_ray(config, tmp_path, cluster)
    machine = cluster.add_node(**GPU_MACHINE)
    with run.started() as process:
        wait_until_busy(process)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 300
    while left := workers():
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    code, said = run.finish()
    assert code == 0, said
    cluster.remove_node(machine)
    assert tables_of(run.config) == expected


@pytest.fixture
def apart() -> Iterator[Cluster]:
    """A Ray whose head works on nothing: what was extracted lies on another machine."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_the_machine_that_holds_all_that_was_extracted_is_lost(
    apart: Cluster, config: RunConfig, expected: dict, tmp_path: Path
):
    run = on_ray(config, tmp_path, apart)
    apart.add_node(**GPU_MACHINE)
    machine = apart.add_node(num_cpus=3, object_store_memory=STORE_BYTES)
    with run.started() as process:
        wait_until_busy(process)
        apart.remove_node(machine, allow_graceful=False)
        lost_s = time.monotonic()
        apart.add_node(num_cpus=3, object_store_memory=STORE_BYTES)
        _, said = process.communicate(timeout=1200)
    print(f"\ndone {time.monotonic() - lost_s:.0f} s later")  # noqa: T201 - what it is read for
    assert process.returncode == 0, said
    assert tables_of(run.config) == expected


@pytest.mark.parametrize("victim", ["gcs", "raylet"])
def test_a_head_that_dies_ends_the_run_and_another_cluster_continues_it(
    apart: Cluster, victim: str, config: RunConfig, expected: dict, tmp_path: Path
):
    run = on_ray(config, tmp_path, apart)
    apart.add_node(**GPU_MACHINE)
    apart.add_node(num_cpus=3, object_store_memory=STORE_BYTES)
    with run.started() as process:
        wait_until_busy(process)
        head: Any = apart.head_node
        if victim == "gcs":
            head.kill_gcs_server(check_alive=False)
        else:
            head.kill_raylet(check_alive=False)
        killed_s = time.monotonic()
        _, said = process.communicate(timeout=1200)
    print(f"\n{victim}: ended {time.monotonic() - killed_s:.0f} s later")  # noqa: T201
    assert process.returncode == 3, said
    assert "has died, expected it to respond" in said
    apart.shutdown()
    again = Cluster(initialize_head=True, head_node_args=GPU_MACHINE | {"num_cpus": 4})
    try:
        code, said = on_ray(run.config, tmp_path, again).finish()
    finally:
        again.shutdown()
    assert code == 0, said
    assert tables_of(run.config) == expected


def workers() -> dict[psutil.Process, str]:
    """Return the actors of the cluster that work for a run, and what they are called."""
    titles = {process: command_line(process) for process in descendants(os.getpid())}
    return {process: title for process, title in titles.items() if "Worker(MapBatches" in title}


def wait_until_busy(process: "subprocess.Popen[str]") -> None:
    """Return once the model has worked for a while; commits wait for more on GPUs."""
    while process.poll() is None:
        for worker, title in workers().items():
            if "TranscribeWorker" in title and cpu_s(worker) > BUSY_S:
                return
        time.sleep(0.1)
    pytest.fail(f"ended too early: {process.communicate()[1]}")


def cpu_s(process: psutil.Process) -> float:
    """Return the processor's time of a process; 0 where there is none any more."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
