"""One Ray for all tests; imported as a fixture by the folders whose tests need it."""

from collections.abc import Iterator

import pytest
import ray

from corpus_asr.runtime.ray_cluster import Cluster, connected

OBJECT_STORE_BYTES = 250 * 1024 * 1024


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Cluster]:
    """A Ray started here with four logical CPUs; every later connection finds and uses it."""
    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
        )
    with connected("local", store_bytes=0) as cluster:
        yield cluster
    if started:
        ray.shutdown()
