"""A fleet of eight GPUs that loses a GPU, a machine and its coordinator at once."""

import os
from pathlib import Path

import pytest
import ray

from benchmarks.fleet import Fleet, compared, run_fleet
from tests.support.killing import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]

ALL = "bad GPU, lost node, killed coordinator"


def test_a_bad_gpu_a_lost_machine_and_a_killed_coordinator_lose_and_double_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(REPOSITORY))
    fleet = Fleet(nodes=4, gpus_per_node=2, recordings=400)
    calm = run_fleet(fleet, "calm", tmp_path / "calm")
    struck = compared(calm, run_fleet(fleet, ALL, tmp_path / "struck"))
    print(f"\n{struck}")  # noqa: T201 - what a soak test is read for
    assert set(struck["strikes"]) == {"lost", "coordinator"}
    assert struck["models_loaded"] > calm.figures["models_loaded"]
    # After three failures, long before the others have done all 400.
    assert len(struck["taken_out"]) == 1
    assert "CUDA error: unknown error" in struck["taken_out"][0]
    assert (struck["lost"], struck["doubled"], struck["failed"]) == (0, 0, 0)
    assert struck["counted"] == calm.figures["counted"] == 400
