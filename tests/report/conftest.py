"""One browser for the pages of a module, in which nothing may go wrong."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.pages import chromium, look

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

OpenPage = Callable[[str], "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as started:
        yield started


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Errors of scripts, and what the browser refused; a test clears those that it expects."""
    heard: list[str] = []
    yield heard
    assert heard == []


@pytest.fixture
def open_page(browser: "Browser", complaints: list[str]) -> Iterator[OpenPage]:
    """Opens addresses, each in a window of its own; a server is to be asked for before this."""
    pages = []

    def hear(message: "ConsoleMessage") -> None:
        if message.type == "error":
            complaints.append(message.text)

    def opened(url: str) -> "Page":
        page = browser.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", hear)
        look(page, width=1280)
        page.goto(url)
        return page

    yield opened
    for page in pages:
        page.close()
