"""Pages as a parser, a client and a real browser see them: headless Chromium over two pipes.

Source: https://chromedevtools.github.io/devtools-protocol/.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

ANSWER_LIMIT_S = 60.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads from 3 and writes to 4, whatever the pipes' numbers are here.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_CONTROL = {"Enter": 13, " ": 32}


def chromium_path() -> str | None:
    """Return where a Chromium is; None where there is none."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


class Chromium:
    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator["Chromium"]:
        """Run a browser with a profile of its own while the context is open."""
        path = chromium_path()
        assert path is not None
        to_browser, from_browser = os.pipe(), os.pipe()
        theirs = (to_browser[0], from_browser[1])
        with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, *map(str, theirs), path, *_SWITCHES,
                 f"--user-data-dir={profile}", "about:blank"],
                pass_fds=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            for descriptor in theirs:
                os.close(descriptor)
            try:
                yield cls(to_browser[1], from_browser[0])
            finally:
                process.terminate()
                process.wait(timeout=20)
                os.close(to_browser[1])
                os.close(from_browser[0])

    def open(self, url: str) -> "Page":
        # In a window of its own: tabs behind another one draw nothing.
        made = self.call("Target.createTarget", {"url": "about:blank", "newWindow": True})
        target = made["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, session["sessionId"], target)
        page.call("Page.enable")
        page.call("Runtime.enable")
        page.call("Log.enable")
        page.look(width=1280, height=900, dark=False)
        page.go(url)
        return page

    def call(self, method: str, params: Any = None, session: str | None = None) -> dict[str, Any]:
        """Make a call and return its result; what happens meanwhile goes to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while True:
            found = self._next(deadline)
            if found.get("id") == self._number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            data = os.read(self._replies, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


class Page:
    def __init__(self, browser: Chromium, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def call(self, method: str, params: Any = None) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def go(self, url: str) -> None:
        self.call("Page.navigate", {"url": url})
        self.wait_for("document.readyState === 'complete'")

    def look(self, *, width: int, height: int, dark: bool) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]})

    def value(self, expression: str) -> Any:
        """Return what an expression is in the page, promises awaited."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, condition: str, *, limit_s: float = 30.0) -> None:
        deadline = time.monotonic() + limit_s
        while not self._is_true(condition):
            assert time.monotonic() < deadline, f"{condition} did not become true"
            time.sleep(0.05)

    def _is_true(self, condition: str) -> bool:
        try:
            return bool(self.value(f"Boolean({condition})"))
        except AssertionError as error:
            if "target navigated" in str(error):  # another page is coming
                return False
            raise

    def click(self, selector: str, *, across: float = 0.5) -> None:
        """Click in an element, as a hand does: in its middle, or elsewhere across its width."""
        box = self.value(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const {left, top, width, height} = found.getClientRects()[0];"
            f"return [left + {across} * width, top + height / 2]; }})()"
        )
        where = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", {"type": kind, **where})

    def press(self, key: str) -> None:
        messages: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": _CONTROL.get(key, 0)}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", "text": text, **messages})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **messages})

    def type(self, text: str) -> None:
        self.call("Input.insertText", {"text": text})

    def complaints(self) -> list[str]:
        """Return errors of scripts, and what the browser refused, so far."""
        self.value("0")
        events = [e for e in self._browser.events if e.get("sessionId") == self._session]
        errors = [e for e in events if e["method"] == "Runtime.exceptionThrown"]
        entries = [e["params"]["entry"] for e in events if e["method"] == "Log.entryAdded"]
        return [json.dumps(e["params"]) for e in errors] + [
            entry["text"] for entry in entries if entry["level"] == "error"
        ]


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
