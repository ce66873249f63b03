"""Pages as a browser's parser sees them: elements, attributes, text; and a real browser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.chromium import Chromium, chromium_path

_VOID = {"br", "img", "input", "link", "meta", "wbr"}


@dataclass
class Element:
    """An element and what is in it."""

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    own_text: list[str] = field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        """Return the elements below of this name and with these attributes; `class_` is class."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        found = [
            child
            for child in self.everything()
            if child.tag == tag
            and all(
                value in child.attributes.get(name, "").split() for name, value in wanted.items()
            )
        ]
        return found

    def everything(self) -> list["Element"]:
        """Return all elements below, in order."""
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


@dataclass
class Seen:
    """A page in a browser, its scripts run."""

    document: Element
    complaints: list[str]
    """Errors of scripts, and what the page's policy refused."""
    widths: dict[int, int]
    """How wide the page was where it had so many pixels."""


def browsed(path: Path, *, click: str = "") -> Seen:
    """Open a page in a browser, wide and narrow, and perhaps click elements one by one.

    Args:
        path: the page.
        click: selectors, parted by blanks.
    """
    if chromium_path() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with Chromium.start() as browser:
        page = browser.open(path.as_uri())
        widths = {}
        for width in (1280, 400):
            page.look(width=width, height=900, dark=width == 400)
            widths[width] = page.value("document.documentElement.scrollWidth")
        for selector in click.split():
            page.click(selector)
        html = page.value("document.documentElement.outerHTML")
        return Seen(parsed(html), page.complaints(), widths)
