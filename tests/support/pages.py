"""Pages as a parser, a client and a real browser see them."""

import contextlib
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # takes a second to import
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """Run a browser while the context is open; where there is none, skip the test."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path)


def look(page: "Page", *, width: int, height: int = 900, dark: bool = False) -> None:
    """Show a page in a window of this size."""
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="dark" if dark else "light")


def wait_for(page: "Page", condition: str, *, limit_s: float = 30.0) -> None:
    """Wait until an expression is true; Playwright's own waiting needs a policy with `eval`."""
    from playwright.sync_api import Error

    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with contextlib.suppress(Error):  # another page is coming
            if page.evaluate(f"Boolean({condition})"):
                return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not become true")


_VOID = {"br", "img", "input", "link", "meta", "wbr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    own_text: list[str] = field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        """Return the elements below of this name and with these attributes; `class_` is class."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            child
            for child in self.everything()
            if child.tag == tag
            and all(value in child.attributes.get(key, "").split() for key, value in wanted.items())
        ]

    def everything(self) -> list["Element"]:
        return [each for child in self.children for each in (child, *child.everything())]

    @property
    def text(self) -> str:
        """All text, with one blank for any space."""
        return " ".join("".join(self.own_text).split())


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.own_text.append(data)


def parsed(html: str) -> Element:
    """Return a page's document; what is not nested as it should be fails."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1, f"never closed: {[each.tag for each in parser.open[1:]]}"
    return parser.root


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def fetch(url: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Response:
    """Make a request; a refusal is a response like any other."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named, data=body)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return Response(found.status, found.read(), dict(found.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, error.read(), dict(error.headers))


def sent(url: str, what: str, value: Any, **headers: str) -> Response:
    """Post a value as pages of the server do."""
    usual = {"Content_Type": "application/json", "X_Corpus_ASR": "1"}
    body = json.dumps(value).encode()
    return fetch(url + what, method="POST", body=body, **(usual | headers))


def asked(url: str, what: str, /, **parameters: Any) -> str:
    """Return the address of a request with parameters."""
    return f"{url}{what}?{urllib.parse.urlencode(parameters)}"
