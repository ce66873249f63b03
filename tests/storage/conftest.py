"""Stores shared by the storage tests."""

import uuid
from collections.abc import Iterator

import pytest

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
