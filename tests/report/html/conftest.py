"""One browser for all pages."""

from collections.abc import Iterator

import pytest

from tests.support.pages import Chromium, chromium_path


@pytest.fixture(scope="package")
def browser() -> Iterator[Chromium]:
    if chromium_path() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with Chromium.start() as started:
        yield started
