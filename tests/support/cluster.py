"""One Ray for all tests; imported as a fixture by the folders whose tests need it."""

from collections.abc import Iterator

import pytest
import ray

from corpus_asr.runtime.ray_cluster import Cluster, connected, start_ray

OBJECT_STORE_BYTES = 250 * 1024 * 1024


def start_once() -> None:
    """Start the Ray of the tests, as a run does, with four logical CPUs; where there is one, none.

    Tests with a Ray of their own end this one: it is started again for the next that asks.
    """
    if not ray.is_initialized():
        start_ray(cpus=4, gpus=0, store_bytes=OBJECT_STORE_BYTES)


@pytest.fixture
def ray_session() -> Iterator[Cluster]:
    """The Ray of the tests, which every later connection uses."""
    start_once()
    with connected("local", store_bytes=0) as cluster:
        yield cluster
