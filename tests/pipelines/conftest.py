"""The session's Ray, and the demo's clips with a file among them that is no audio."""

from pathlib import Path

import pytest

from tests.support.cluster import ray_session
from tests.support.corpora import demo_corpus

__all__ = ["ray_session"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_corpus(tmp_path_factory.mktemp("corpus") / "audio")
