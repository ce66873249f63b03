"""One Ray for all tests; imported as a fixture by the folders whose tests need it."""

from collections.abc import Iterator

import pytest
import ray

from corpus_asr.runtime.ray_cluster import Cluster, connected, start_ray

OBJECT_STORE_BYTES = 250 * 1024 * 1024


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Cluster]:
    """A Ray started as by a run, with four logical CPUs; every later connection uses it."""
    started = not ray.is_initialized()
    if started:
        start_ray(cpus=4, gpus=0, store_bytes=OBJECT_STORE_BYTES)
    with connected("local", store_bytes=0) as cluster:
        yield cluster
    if started:
        ray.shutdown()
