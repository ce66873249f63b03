"""A fleet of eight GPUs that loses a GPU, a machine and its coordinator at once."""

import os
from pathlib import Path

import pytest
import ray

from benchmarks.fleet.losses import Fleet, compared, run_fleet
from tests.support.killing import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]

ALL = "bad GPU, lost node, killed coordinator"


def test_a_bad_gpu_a_lost_machine_and_a_killed_coordinator_lose_and_double_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(REPOSITORY))
    fleet = Fleet(nodes=4, gpus_per_node=2, recordings=200)
    calm = run_fleet(fleet, "calm", tmp_path / "calm")
    struck = compared(calm, run_fleet(fleet, ALL, tmp_path / "struck"))
    print(f"\n{struck}")  # noqa: T201 - what a soak test is read for
    assert set(struck["strikes"]) == {"lost", "coordinator"}
    # It is taken out once it has failed three times, unless the others are done before.
    assert struck["models_loaded"] > calm.figures["models_loaded"]
    assert all("CUDA error: unknown error" in each for each in struck["taken_out"])
    assert (struck["lost"], struck["doubled"], struck["failed"]) == (0, 0, 0)
    assert struck["counted"] == calm.figures["counted"] == 200
