"""Every test of the command line leaves logging as it was."""

from collections.abc import Iterator

import pytest

from tests.support.logs import logging_put_back


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CORPUS_ASR_DEBUG", raising=False)
    with logging_put_back():
        yield
