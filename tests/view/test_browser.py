"""The pages in a real browser: search, click a word and hear it, follow along, hostile texts."""

from collections.abc import Iterator

import pytest

from tests.support.pages import Chromium, Page, chromium_path
from tests.view.conftest import HOSTILE_TEXT, PASSAGES, Shown

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine")

AUDIO = "document.querySelector('audio')"
NOTE = "document.querySelector('.note').textContent"
WORD = '[data-at="{passage}"] [data-word="{word}"]'


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium.start() as started:
        yield started


@pytest.fixture
def page(browser: Chromium, shown: Shown) -> Iterator[Page]:
    """The first page; at the end nothing may have gone wrong in it."""
    opened = browser.open(shown.url)
    opened.wait_for("document.querySelectorAll('#results li').length === 4")
    yield opened
    assert opened.complaints() == []
    opened.close()


def read(page: Page, shown: Shown, name: str, rest: str = "") -> None:
    page.go(f"{shown.url}recording?id={shown.id(name)}{rest}")
    page.wait_for(f"document.querySelector('.segment') && {AUDIO}.readyState > 0")


def test_from_a_search_to_the_word_that_is_heard(page: Page, shown: Shown) -> None:
    page.press("/")
    page.type("PASSAGE7")
    page.press("Enter")
    page.wait_for("document.querySelectorAll('#results li').length === 1")
    assert page.value("document.querySelector('#results mark').textContent") == "passage7"
    assert page.value("location.search") == "?q=PASSAGE7"
    page.click("#results a")
    page.wait_for(f"document.querySelector('.segment') && {AUDIO}.readyState > 0")
    assert page.value("document.querySelector('.found').textContent") == "passage7"
    assert page.value(f"{AUDIO}.currentTime") == pytest.approx(14.0, abs=0.05)
    page.click(WORD.format(passage=20, word=2))
    page.wait_for(f"{AUDIO}.currentTime > 41.2 && !{AUDIO}.paused")
    assert page.value(f"{AUDIO}.currentTime") < 50
    assert page.value("location.hash") == "#t=41.00"
    # It goes along: what is marked is what is said now, and it is in view.
    page.wait_for("document.querySelector('.segment.now').dataset.at >= 22", limit_s=60)
    spoken_s = page.value(
        f"[Number(document.querySelector('.segment.now').dataset.at) * 2, {AUDIO}.currentTime]"
    )
    assert 0 <= spoken_s[1] - spoken_s[0] < 3
    assert page.value(
        "(({top, bottom}) => top >= 0 && bottom <= innerHeight)"
        "(document.querySelector('.word.now').getBoundingClientRect())"
    )
    page.press(" ")
    page.wait_for(f"{AUDIO}.paused")


def test_keys_go_to_doubtful_words_and_through_time(page: Page, shown: Shown) -> None:
    read(page, shown, "plain.wav")
    now = "document.querySelector('.word.now')?.textContent"
    page.press("n")
    page.wait_for(f"{now} === 'passage7' && {AUDIO}.currentTime > 14.9")
    assert page.value("document.querySelector('.doubtful.word').textContent") == "passage7"
    decoration = "getComputedStyle(document.querySelector('.doubtful.word')).textDecorationStyle"
    assert page.value(decoration) == "wavy"  # not by colour alone
    page.press("ArrowRight")
    page.wait_for(f"{AUDIO}.currentTime > 19.9")
    page.press("p")
    page.wait_for(f"{AUDIO}.currentTime < 15.1")
    page.press("p")
    page.wait_for(
        "document.querySelector('.note').textContent.startsWith('No low-confidence word before')"
    )
    page.press(">")
    assert page.value(f"{AUDIO}.playbackRate") == 1.25
    page.press("?")
    assert page.value("document.getElementById('keys').open")


def test_what_browsers_do_not_play_is_decoded(page: Page, shown: Shown) -> None:
    read(page, shown, "odd.aiff", "#t=2")
    assert "decode=1" in page.value(f"{AUDIO}.src")
    assert page.value(f"{AUDIO}.duration") == pytest.approx(60.0)
    # Without word times a passage is what is clicked.
    page.click('[data-at="1"] .whole')
    page.wait_for(f"{AUDIO}.currentTime > 2.2 && !{AUDIO}.paused")


def test_hostile_names_and_texts_stay_text(page: Page) -> None:
    page.click("#results li:nth-child(1) a")
    page.wait_for("document.querySelector('.segment')")
    visible = HOSTILE_TEXT.replace("\u202e", "[U+202E]")
    assert page.value("document.querySelector('.said').textContent.trim()") == visible
    assert page.value("document.querySelectorAll('b, img').length") == 0
    assert page.value("document.title").startswith("<img src=x onerror=alert(1)>")


def test_a_failure_is_shown_with_advice(page: Page, shown: Shown) -> None:
    page.go(f"{shown.url}recording?id={shown.id('bad.wav')}")
    page.wait_for("!document.getElementById('failure').hidden")
    text = page.value("document.getElementById('failure').innerText")
    assert "not_audio" in text
    assert "What to do: these are no audio" in text
    page.wait_for(f"{NOTE}.startsWith('No audio')")
    # One that is missing by now is told where its sound would be.
    path = shown.folder / "plain.wav"
    kept = path.rename(path.with_suffix(".away"))
    try:
        page.go(f"{shown.url}recording?id={shown.id('plain.wav')}")
        page.wait_for(f"{NOTE}.startsWith('No audio')")
        page.wait_for(f"document.querySelectorAll('.segment').length === {PASSAGES}")
    finally:
        kept.rename(path)


def test_nothing_is_wider_than_the_window(page: Page, shown: Shown) -> None:
    for width, dark in ((1280, False), (1280, True), (400, False), (400, True)):
        page.look(width=width, height=900, dark=dark)
        for address in ("", "?q=peace", f"recording?id={shown.id('plain.wav')}"):
            page.go(shown.url + address)
            page.wait_for("document.querySelector('#results li, .segment')")
            assert page.value("document.documentElement.scrollWidth") <= width
