"""Editing and checking in a real browser: by keys, by mouse, on a phone, two people at once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from corpus_asr.edits.corrections import read_saved
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.server import ViewServer
from tests.report.conftest import OpenPage
from tests.support.audio import noise, wav_bytes
from tests.support.pages import look, wait_for
from tests.support.runs import correct_segment, of_file, passage, run_of, says, spoken, write_tones
from tests.view.conftest import add, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.long
Served = tuple[ViewServer, OutputStore]
OpenTalk = Callable[[], "Page"]

# Number, speaker and text of each segment, as it is shown.
LINES = (
    "[...document.querySelectorAll('.segment')].map((one) => [one.querySelector('.speaker')"
    "?.innerText, one.querySelector('.said').innerText.trim()].join(': '))"
)
TEXTS = ("we begin with the minutes", "which all have read", "then the budget", "I ask about it",
         "it is in it", "good")  # fmt: skip
FIRST = "S1: we begin with the minutes"
# A page looks for what others saved as soon as it is seen again.
SEEN_AGAIN = "document.dispatchEvent(new Event('visibilitychange'))"
EDITOR = "document.querySelector('.editor')"
NOTE = "document.querySelector('.note').textContent"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A talk of two speakers, and a shorter one."""
    talk, other = tmp_path / "talk.wav", tmp_path / "other.wav"
    for path, seconds in ((talk, 12.0), (other, 4.0)):
        path.write_bytes(wav_bytes(noise(seconds), rate_hz=16_000))
    said = [
        passage(at, text, probabilities=[0.95] * len(text.split()), confidence=0.9 - at / 10)
        for at, text in enumerate(TEXTS)
    ]
    store = run_of(
        tmp_path / "output",
        spoken(str(talk), *said, **of_file(talk)),
        spoken(str(other), passage(0, "one", confidence=0.3), passage(1, "two", confidence=0.95),
               **of_file(other)),
    )  # fmt: skip
    says(store, str(talk), (0.0, 6.0, "S1"), (6.0, 12.0, "S2"))
    with serving(store) as server:
        yield server, store


@pytest.fixture
def open_talk(served: Served, open_page: OpenPage) -> OpenTalk:
    """Opens the talk, as often as it is called."""

    def opened() -> "Page":
        page = open_page(served[0].url)
        page.click("#results a:has-text('talk.wav')")
        wait_for(
            page,
            "document.querySelector('.segment') && document.querySelector('audio').readyState > 0",
        )
        return page

    return opened


def write(page: "Page", text: str) -> None:
    page.evaluate("document.activeElement.select()")
    page.keyboard.insert_text(text)


def test_segments_are_split_joined_given_to_others_and_all_of_it_undone(
    open_talk: OpenTalk,
) -> None:
    page = open_talk()
    before = page.evaluate(LINES)
    page.click('[data-at="0"] .edit')
    page.evaluate("document.activeElement.setSelectionRange(8, 8)")
    page.keyboard.press("Control+Enter")
    wait_for(page, "document.querySelectorAll('.segment').length === 7")
    assert page.evaluate(LINES)[:3] == ["S1: we begin", "S1: with the minutes", before[1]]
    # Where its first word is said.
    start = "document.querySelectorAll('.segment .time')[1].innerText"
    assert page.evaluate(f"[{start}, {EDITOR}]") == ["0:00", None]
    page.click('[data-at="3"] .edit')
    page.keyboard.press("Control+j")
    wait_for(page, "document.querySelectorAll('.segment').length === 6")
    assert page.evaluate(LINES)[3] == "S1: then the budget I ask about it"
    # Two is the second speaker of the recording.
    page.click('[data-at="2"] .word')
    page.keyboard.press("2")
    wait_for(page, f"{LINES}[2] === 'S2: which all have read'")
    page.keyboard.press("v")
    wait_for(page, "document.querySelector('[data-at=\"2\"] .badge')?.innerText === 'checked'")
    for _ in range(3):
        page.keyboard.press("u")
        wait_for(page, f"{NOTE} === 'Undone.'")
        page.evaluate("document.querySelector('.note').textContent = ''")
    page.keyboard.press("Control+z")
    wait_for(page, f"{LINES}.join('|') === {json.dumps('|'.join(before))}")


def test_times_are_dragged_and_moved_by_keys(open_talk: OpenTalk) -> None:
    page = open_talk()
    page.click('[data-at="1"] .edit')
    wait_for(page, "document.querySelector('.edge.end:not([hidden])')?.style.left")
    times = "[...document.querySelectorAll('.moment')].map((one) => one.value)"
    page.hover(".edge.end")
    page.mouse.down()
    edge = page.locator(".edge.end").bounding_box()
    assert edge is not None
    page.mouse.move(edge["x"] + edge["width"] / 2 - 150, edge["y"] + edge["height"] / 2)
    page.mouse.up()
    start, end = page.evaluate(times)
    assert start == "0:02.00"
    assert "0:02.50" < end < "0:03.90"
    page.focus(".edge.start")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(times) == ["0:02.05", end]
    # The picture shows what it did before.
    spans = "document.querySelector('.slider').style.getPropertyValue('--spans')"
    assert page.evaluate(f"Number({spans})") > 1
    page.click(".editor .main")
    wait_for(page, f"!{EDITOR} && {spans} === '1'")
    clip = "document.querySelector('.editor a.button').href"
    page.click('[data-at="1"] .edit')
    assert page.evaluate(times) == ["0:02.05", end]
    size = page.evaluate(
        f"fetch({clip}).then((one) => one.arrayBuffer()).then((all) => all.byteLength)"
    )
    lasts_s = float(end.partition(":")[2]) - 2.05
    assert size == pytest.approx(44 + 32_000 * lasts_s, abs=4)
    # What ends before it starts is refused at once.
    page.evaluate("document.querySelector('.moment').value = '0:09'")
    page.click(".editor .main")
    wait_for(page, "document.querySelector('.editor .bad')?.innerText.includes('its end after')")


def test_of_two_who_edit_one_segment_both_texts_are_shown(
    open_talk: OpenTalk, complaints: list[str]
) -> None:
    mine, theirs = open_talk(), open_talk()
    for at, choice, left in ((1, 1, "my words"), (2, 2, "their words")):
        mine.click(f'[data-at="{at}"] .edit')
        write(mine, "my words")
        theirs.click(f'[data-at="{at}"] .edit')
        write(theirs, "their words")
        theirs.keyboard.press("Enter")
        theirs.wait_for_selector(".editor", state="detached")
        mine.keyboard.press("Enter")
        mine.wait_for_selector(".versions button")
        shown = mine.inner_text(".editor .versions")
        assert "my words" in shown
        assert "their words" in shown
        mine.click(f".editor .versions section:nth-child({choice}) button")
        wait_for(mine, f"!{EDITOR} && {LINES}[{at}].endsWith(': {left}')")
    theirs.evaluate(SEEN_AGAIN)
    wait_for(theirs, f"{LINES}[1].endsWith(': my words')")
    # Of what others change while somebody writes nothing is lost.
    mine.click('[data-at="3"] .edit')
    write(mine, "not saved yet")
    theirs.click('[data-at="3"] .edit')
    write(theirs, "faster")
    theirs.keyboard.press("Enter")
    theirs.wait_for_selector(".editor", state="detached")
    mine.evaluate(SEEN_AGAIN)
    wait_for(mine, "document.querySelector('.editor .original, .editor') && "
                  "document.querySelector('[data-at=\"3\"] .badge')")  # fmt: skip
    assert mine.input_value(".editor textarea") == "not saved yet"
    mine.focus(".editor textarea")
    mine.keyboard.press("Escape")
    assert mine.evaluate(f"{LINES}[3]") == "S2: faster"
    assert all("status of 409" in text for text in complaints)
    complaints.clear()


def test_somebody_without_a_turn_is_shown_and_offered_again(open_talk: OpenTalk) -> None:
    page = open_talk()
    # The second turn begins in the middle of what the sound is shown of, then at its end.
    begins = (
        "(([lane, , turn]) => Math.round(10 * (turn.left - lane.left) / lane.width))"
        "(['.lane', '.turn', '.turn + .turn'].map("
        "(which) => document.querySelector(which).getBoundingClientRect()))"
    )
    assert page.evaluate(begins) == 5
    page.click('[data-at="1"] .edit')
    wait_for(page, f"{begins} === 10")
    page.evaluate(
        "(() => { const list = document.querySelector('.editor select'); list.selectedIndex = 3;"
        "list.dispatchEvent(new Event('change')); })()"
    )
    page.keyboard.insert_text("Ada")
    page.keyboard.press("Enter")
    wait_for(page, f"{LINES}[1] === 'Ada: which all have read' && {begins} === 5")
    lefts = "[...document.querySelectorAll('.said')].map((one) => one.getBoundingClientRect().left)"
    assert len(set(page.evaluate(lefts))) == 1
    page.click('[data-at="2"] .edit')
    options = "[...document.querySelector('.editor select').options].map((one) => one.text)"
    assert page.evaluate(options) == ["S1 (by turns)", "S1", "S2", "Ada", "another name …"]
    page.keyboard.press("Escape")


def test_a_key_goes_to_the_next_segment_that_nobody_checked(
    open_talk: OpenTalk, served: Served
) -> None:
    correct_segment(served[1], TEXTS[1], TEXTS[1])
    page = open_talk()
    now = "document.querySelector('.segment.now .said')?.innerText.trim()"
    page.keyboard.press("x")
    wait_for(page, f"{now} === {json.dumps(TEXTS[2])}")
    page.keyboard.press("v")  # and on to the next
    wait_for(page, f"{now} === {json.dumps(TEXTS[3])}")
    for text in TEXTS[4:]:
        page.keyboard.press("x")
        wait_for(page, f"{now} === {json.dumps(text)}")
    page.keyboard.press("x")
    wait_for(page, f"{NOTE} === 'No unchecked segment after this.'")
    # In a search, too.
    page.goto(f"{served[0].url}?unchecked=1&order=least_sure")
    wait_for(page, "document.querySelectorAll('.hit').length === 6")
    assert page.evaluate("document.querySelector('.hit .said').innerText.trim()").startswith("one")


CHECKED = "document.querySelector('.editor input[type=checkbox]')"


def test_what_is_edited_is_checked_only_where_a_person_says_so(
    open_talk: OpenTalk, served: Served
) -> None:
    page = open_talk()

    def save(*, tick: bool = False, split: bool = False, text: str = "") -> bool:
        """Edit the first segment, and return what its box showed last."""
        count = len(read_saved(served[1]))
        page.click('[data-at="0"] .edit')
        if tick:
            page.click(".editor input[type=checkbox]")
        if text:
            write(page, text)
        shown = page.evaluate(f"{CHECKED}.checked")
        if split:
            page.evaluate("document.querySelector('.editor textarea').setSelectionRange(2, 2)")
            page.focus(".editor textarea")
        page.keyboard.press("Control+Enter") if split else page.evaluate(
            "document.querySelector('.editor').requestSubmit()"
        )
        page.wait_for_selector(".editor", state="detached")
        assert len(read_saved(served[1])) == count + 1
        return bool(shown)

    def newest() -> bool:
        saved = read_saved(served[1])
        return saved[max(saved)].segments[0].checked

    assert [save(text="we have begun"), newest()] == [False, False]
    assert [save(tick=True), newest()] == [True, True]
    # It stays what it was, until another text is written.
    assert [save(), newest()] == [True, True]
    assert [save(text="we began"), newest()] == [False, False]
    assert [save(tick=True, text="we begin"), newest()] == [True, True]
    assert [save(tick=False, split=True), newest()] == [True, False]


def test_paragraphs_and_forms_fit_a_phone(open_talk: OpenTalk) -> None:
    page = open_talk()
    page.keyboard.press("b")
    begins = "[...document.querySelectorAll('.begins .said')].map((one) => one.innerText.trim())"
    assert page.evaluate(begins) == [TEXTS[0], TEXTS[3]]
    tops = "[...document.querySelectorAll('.said')].map((one) => one.getBoundingClientRect().top)"
    one, same = page.evaluate(tops)[:2]
    assert one == same
    url = page.evaluate("location.href")
    for width, dark in ((400, True), (1280, False)):
        look(page, width=width, height=800, dark=dark)
        page.goto(url)
        page.wait_for_selector(".segment")
        page.keyboard.press("e")
        page.wait_for_selector(".editor")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width == 400:  # a finger hits what is 44 pixels high
            heights = (
                "[...document.querySelectorAll('.editor button')].map((one) => one.offsetHeight)"
            )
            assert min(page.evaluate(heights)) >= 44
        page.keyboard.press("Escape")


def test_edits_without_a_place_are_shown_next_to_what_is_there_now(
    open_page: OpenPage, tmp_path: Path
) -> None:
    store = run_of(tmp_path / "output", spoken("/a.wav", passage(0, "one"), passage(1, "two")))
    correct_segment(store, "one", "first edit", name="Anna")
    correct_segment(store, "two", "second edit")
    others = [passage(at, f"something else {at}") for at in range(2)]
    add(store, spoken("/a.wav", *others, etag="v2"))
    with serving(store) as server:
        page = open_page(server.url)
        page.wait_for_selector("#results a")
        page.click("#results a")
        wait_for(page, "document.getElementById('stale')?.hidden === false")
        title = "document.getElementById('stale-title').innerText"
        assert page.evaluate(title) == "2 edits not applied"
        page.click("#stale summary")
        shown = page.inner_text("#stale li").split("\n")
        assert [line for line in shown if line] == [
            "0:00 by Anna", "The edit", "first edit", "Now", "something else 0",
            "The model, then", "one",
        ]  # fmt: skip
        for width in (1280, 400):
            look(page, width=width, height=800, dark=width == 400)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


@pytest.fixture
def dialogue(tmp_path: Path) -> Iterator[ViewServer]:
    """Two who speak at once, each in a channel, and an echo of one."""
    path = tmp_path / "dialogue.wav"
    write_tones(path, seconds=4, num_channels=2)
    said = (("left", "echo"), ("right",))
    sides = [
        spoken(str(path),
               *(passage(0, text, segment=at, confidence=0.3 + at / 20 + side / 10)
                 for at, text in enumerate(texts)),
               **of_file(path), part=side, channel=side, channels=2, last_part=side == 1)
        for side, texts in enumerate(said)
    ]  # fmt: skip
    with serving(run_of(tmp_path / "output", *sides)) as server:
        yield server


def test_the_clip_of_a_segment_is_of_its_channel(dialogue: ViewServer, open_page: OpenPage) -> None:
    page = open_page(dialogue.url)
    page.wait_for_selector("#results a")
    page.click("#results a")
    for at, channel in ((0, 0), (2, 1)):
        wait_for(page, f"document.querySelector('[data-at=\"{at}\"] .edit')")
        page.click(f'[data-at="{at}"] .edit')
        href = page.evaluate("document.querySelector('.editor a.button').href")
        assert f"&channel={channel}" in href
        page.keyboard.press("Escape")


def test_two_presses_save_once(open_talk: OpenTalk, served: Served) -> None:
    page = open_talk()
    page.click('[data-at="0"] .edit')
    write(page, "twice")
    page.evaluate("[1, 2].forEach(() => document.querySelector('.editor').requestSubmit())")
    wait_for(page, f"!{EDITOR} && {LINES}[0] === 'S1: twice'")
    page.keyboard.press("v")
    page.keyboard.press("v")
    wait_for(page, f"{NOTE}.startsWith('Checked')")
    assert len(read_saved(served[1])) == 2
