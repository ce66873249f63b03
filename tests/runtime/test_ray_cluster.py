import os
import time

import pytest
import ray

from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.coordinator import start_coordinator
from corpus_asr.runtime.ray_cluster import (
    MIN_LOGICAL_CPUS,
    Cluster,
    connected,
    local_machine,
)


def test_this_machine_gets_enough_logical_cpus_not_to_wait_for_itself():
    assert local_machine().cpus >= MIN_LOGICAL_CPUS
    assert local_machine().cores >= 1


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left_running(ray_session: Cluster):
    # Workers do not give way to the processes of Ray.
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    (node,) = ray_session.nodes
    assert node.cpus == 4
    assert node.cores <= local_machine().cores
    assert ray_session.store_bytes > 0
    with connected("auto", store_bytes=1) as cluster:
        assert cluster == ray_session
        coordinator = start_coordinator()
        ray.get(coordinator.add.remote(Tally(parts=1)))
        assert ray.get(coordinator.read.remote()) == Tally(parts=1)
        # One that died is replaced by an empty one: what is counted and remembered starts anew.
        ray.kill(coordinator, no_restart=False)
        deadline = time.monotonic() + 60
        while ray.get(coordinator.read.remote(), timeout=60) != Tally():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert ray.is_initialized()
