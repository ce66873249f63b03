"""Stores shared by the storage tests."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions
from tests.support.stores import S3Server, WebServer, environment, s3_server, web_server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server, environment(server.environment):
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3.make_bucket(name)
    return name


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


@pytest.fixture
def memory() -> str:
    """An address of its own in fsspec's memory store."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, StoreOptions]:
    """A folder's address in each writable store, and how to reach it."""
    if request.param == "local":
        return str(tmp_path / "out"), StoreOptions()
    if request.param == "memory":
        return request.getfixturevalue("memory"), StoreOptions()
    options = request.getfixturevalue("s3").options
    return f"s3://{request.getfixturevalue('bucket')}/out", options


@pytest.fixture
def store(place: tuple[str, StoreOptions]) -> OutputStore:
    """An output folder in each writable store."""
    return OutputStore(place[0], endpoint_url=place[1].endpoint_url)
