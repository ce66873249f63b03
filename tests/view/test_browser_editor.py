"""Editing and checking in a real browser: by keys, by mouse, on a phone, two people at once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus_asr.storage.run_state.corrections import read_saved
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.server import ViewServer
from tests.support.audio import noise, wav_bytes
from tests.support.pages import Chromium, Page, chromium_path
from tests.support.runs import correct_segment, of_file, passage, run_of, says, spoken, write_tones
from tests.view.conftest import add, serving

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine"),
]

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
def served(tmp_path: Path) -> Iterator[tuple[ViewServer, OutputStore]]:
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


def opened(browser: Chromium, server: ViewServer) -> Page:
    page = browser.open(server.url)
    rows = "[...document.querySelectorAll('#results a')]"
    page.wait_for(f"{rows}.length === 2")
    page.go(page.value(f"{rows}.find((one) => one.textContent.endsWith('talk.wav')).href"))
    page.wait_for(
        "document.querySelector('.segment') && document.querySelector('audio').readyState > 0"
    )
    return page


def control(page: Page, key: str) -> None:
    code = 13 if key == "Enter" else ord(key.upper())
    pressed = {"key": key, "modifiers": 2, "windowsVirtualKeyCode": code}
    for kind in ("rawKeyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", {"type": kind, **pressed})


def write(page: Page, text: str) -> None:
    page.value("document.activeElement.select()")
    page.type(text)


def test_segments_are_split_joined_given_to_others_and_all_of_it_undone(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    page = opened(browser, served[0])
    before = page.value(LINES)
    page.click('[data-at="0"] .edit')
    page.value("document.activeElement.setSelectionRange(8, 8)")
    control(page, "Enter")
    page.wait_for("document.querySelectorAll('.segment').length === 7")
    assert page.value(LINES)[:3] == ["S1: we begin", "S1: with the minutes", before[1]]
    # Where its first word is said.
    start = "document.querySelectorAll('.segment .time')[1].innerText"
    assert page.value(f"[{start}, {EDITOR}]") == ["0:00", None]
    page.click('[data-at="3"] .edit')
    control(page, "j")
    page.wait_for("document.querySelectorAll('.segment').length === 6")
    assert page.value(LINES)[3] == "S1: then the budget I ask about it"
    # Two is the second speaker of the recording.
    page.click('[data-at="2"] .word')
    page.press("2")
    page.wait_for(f"{LINES}[2] === 'S2: which all have read'")
    page.press("v")
    page.wait_for("document.querySelector('[data-at=\"2\"] .badge')?.innerText === 'checked'")
    for _ in range(3):
        page.press("u")
        page.wait_for(f"{NOTE} === 'Undone.'")
        page.value("document.querySelector('.note').textContent = ''")
    control(page, "z")
    page.wait_for(f"{LINES}.join('|') === {json.dumps('|'.join(before))}")
    assert page.complaints() == []
    page.close()


def test_times_are_dragged_and_moved_by_keys(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    page = opened(browser, served[0])
    page.click('[data-at="1"] .edit')
    page.wait_for("document.querySelector('.edge.end:not([hidden])')?.style.left")
    times = "[...document.querySelectorAll('.moment')].map((one) => one.value)"
    box = page.value(
        "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        "(document.querySelector('.edge.end').getBoundingClientRect())"
    )
    for kind, by in (("mousePressed", 0), ("mouseMoved", -150), ("mouseReleased", -150)):
        where = {"x": box[0] + by, "y": box[1], "button": "left", "buttons": 1, "clickCount": 1}
        page.call("Input.dispatchMouseEvent", {"type": kind, **where})
    start, end = page.value(times)
    assert start == "0:02.00"
    assert "0:02.50" < end < "0:03.90"
    page.value("document.querySelector('.edge.start').focus()")
    page.press("ArrowRight")
    assert page.value(times) == ["0:02.05", end]
    # The picture shows what it did before.
    zoomed = "document.querySelector('.zoom button[title^=\"Zoom out\"]').disabled"
    assert page.value(zoomed) is False
    page.click(".editor .main")
    page.wait_for(f"!{EDITOR} && {zoomed}")
    clip = "document.querySelector('.editor a.button').href"
    page.click('[data-at="1"] .edit')
    assert page.value(times) == ["0:02.05", end]
    size = page.value(
        f"fetch({clip}).then((one) => one.arrayBuffer()).then((all) => all.byteLength)"
    )
    lasts_s = float(end.partition(":")[2]) - 2.05
    assert size == pytest.approx(44 + 32_000 * lasts_s, abs=4)
    # What ends before it starts is refused at once.
    page.value("document.querySelector('.moment').value = '0:09'")
    page.click(".editor .main")
    page.wait_for("document.querySelector('.editor .bad')?.innerText.includes('its end after')")
    assert page.complaints() == []
    page.close()


def test_of_two_who_edit_one_segment_both_texts_are_shown(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    mine, theirs = opened(browser, served[0]), opened(browser, served[0])
    for at, choice, left in ((1, 1, "my words"), (2, 2, "their words")):
        mine.click(f'[data-at="{at}"] .edit')
        write(mine, "my words")
        theirs.click(f'[data-at="{at}"] .edit')
        write(theirs, "their words")
        theirs.press("Enter")
        theirs.wait_for(f"!{EDITOR}")
        mine.press("Enter")
        mine.wait_for("document.querySelector('.versions button')")
        shown = mine.value("document.querySelector('.editor .versions').innerText")
        assert "my words" in shown
        assert "their words" in shown
        mine.click(f".editor .versions section:nth-child({choice}) button")
        mine.wait_for(f"!{EDITOR} && {LINES}[{at}].endsWith(': {left}')")
    theirs.value(SEEN_AGAIN)
    theirs.wait_for(f"{LINES}[1].endsWith(': my words')")
    # Of what others change while somebody writes nothing is lost.
    mine.click('[data-at="3"] .edit')
    write(mine, "not saved yet")
    theirs.click('[data-at="3"] .edit')
    write(theirs, "faster")
    theirs.press("Enter")
    theirs.wait_for(f"!{EDITOR}")
    mine.value(SEEN_AGAIN)
    mine.wait_for("document.querySelector('.editor .original, .editor') && "
                  "document.querySelector('[data-at=\"3\"] .badge')")  # fmt: skip
    assert mine.value("document.querySelector('.editor textarea').value") == "not saved yet"
    mine.value("document.querySelector('.editor textarea').focus()")
    mine.press("Escape")
    assert mine.value(f"{LINES}[3]") == "S2: faster"
    assert {text.partition("(")[0] for text in mine.complaints()} == {
        "Failed to load resource: the server responded with a status of 409 "
    }
    mine.close()
    theirs.close()


def test_somebody_without_a_turn_is_shown_and_offered_again(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    page = opened(browser, served[0])
    # The second turn begins in the middle of what the sound is shown of, then at its end.
    begins = (
        "(([lane, , turn]) => Math.round(10 * (turn.left - lane.left) / lane.width))"
        "(['.lane', '.turn', '.turn + .turn'].map("
        "(which) => document.querySelector(which).getBoundingClientRect()))"
    )
    assert page.value(begins) == 5
    page.click('[data-at="1"] .edit')
    page.wait_for(f"{begins} === 10")
    page.value(
        "(() => { const list = document.querySelector('.editor select'); list.selectedIndex = 3;"
        "list.dispatchEvent(new Event('change')); })()"
    )
    page.type("Ada")
    page.press("Enter")
    page.wait_for(f"{LINES}[1] === 'Ada: which all have read' && {begins} === 5")
    lefts = "[...document.querySelectorAll('.said')].map((one) => one.getBoundingClientRect().left)"
    assert len(set(page.value(lefts))) == 1
    page.click('[data-at="2"] .edit')
    options = "[...document.querySelector('.editor select').options].map((one) => one.text)"
    assert page.value(options) == ["S1 (by turns)", "S1", "S2", "Ada", "another name …"]
    page.press("Escape")
    assert page.complaints() == []
    page.close()


def test_what_was_not_saved_is_said_where_somebody_reads(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    mine, theirs = opened(browser, served[0]), opened(browser, served[0])
    mine.look(width=1280, height=450, dark=False)
    mine.click('[data-at="5"] .time')
    mine.press(" ")
    theirs.click('[data-at="5"] .edit')
    write(theirs, "very good")
    theirs.press("Enter")
    theirs.wait_for(f"!{EDITOR}")
    mine.value("scrollTo({top: 1e6, behavior: 'instant'})")
    mine.press("v")
    mine.wait_for("!document.getElementById('problem').hidden")
    top = "document.getElementById('problem').getBoundingClientRect().top"
    assert mine.value("scrollY") > 100
    assert 0 <= mine.value(top) < 100
    # A form opens above the player.
    mine.wait_for(f"{LINES}[5] === 'S2: very good'")
    mine.value("document.querySelector('[data-at=\"4\"] .edit').click()")
    mine.wait_for(
        f"{EDITOR}.getBoundingClientRect().bottom"
        " <= document.getElementById('player').getBoundingClientRect().top"
    )
    mine.press("Escape")
    mine.close()
    theirs.close()


def test_a_key_goes_to_the_next_segment_that_nobody_checked(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    correct_segment(served[1], TEXTS[1], TEXTS[1])
    page = opened(browser, served[0])
    now = "document.querySelector('.segment.now .said')?.innerText.trim()"
    page.press("x")
    page.wait_for(f"{now} === {json.dumps(TEXTS[2])}")
    page.press("v")  # and on to the next
    page.wait_for(f"{now} === {json.dumps(TEXTS[3])}")
    for text in TEXTS[4:]:
        page.press("x")
        page.wait_for(f"{now} === {json.dumps(text)}")
    page.press("x")
    page.wait_for(f"{NOTE} === 'No unchecked segment after this.'")
    # In a search, too.
    page.go(f"{served[0].url}?unchecked=1&order=least_sure")
    page.wait_for("document.querySelectorAll('.hit').length === 6")
    assert page.value("document.querySelector('.hit .said').innerText.trim()").startswith("one")
    assert page.complaints() == []
    page.close()


CHECKED = "document.querySelector('.editor input[type=checkbox]')"


def test_what_is_edited_is_checked_only_where_a_person_says_so(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    page = opened(browser, served[0])

    def save(*, tick: bool = False, split: bool = False, text: str = "") -> bool:
        """Edit the first segment, and return what its box showed last."""
        count = len(read_saved(served[1]))
        page.click('[data-at="0"] .edit')
        if tick:
            page.click(".editor input[type=checkbox]")
        if text:
            write(page, text)
        shown = page.value(f"{CHECKED}.checked")
        if split:
            page.value("document.querySelector('.editor textarea').setSelectionRange(2, 2)")
            page.value("document.querySelector('.editor textarea').focus()")
        control(page, "Enter") if split else page.value(
            "document.querySelector('.editor').requestSubmit()"
        )
        page.wait_for(f"!{EDITOR}")
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
    assert page.complaints() == []
    page.close()


def test_paragraphs_and_forms_fit_a_phone(
    browser: Chromium, served: tuple[ViewServer, OutputStore]
) -> None:
    page = opened(browser, served[0])
    page.press("b")
    begins = "[...document.querySelectorAll('.begins .said')].map((one) => one.innerText.trim())"
    assert page.value(begins) == [TEXTS[0], TEXTS[3]]
    tops = "[...document.querySelectorAll('.said')].map((one) => one.getBoundingClientRect().top)"
    one, same = page.value(tops)[:2]
    assert one == same
    url = page.value("location.href")
    for width, dark in ((400, False), (400, True), (1280, False)):
        page.look(width=width, height=800, dark=dark)
        page.go(url)
        page.wait_for("document.querySelector('.segment')")
        page.press("e")
        page.wait_for(EDITOR)
        assert page.value("document.documentElement.scrollWidth") <= width
        if width == 400:  # a finger hits what is 44 pixels high
            heights = (
                "[...document.querySelectorAll('.editor button')].map((one) => one.offsetHeight)"
            )
            assert min(page.value(heights)) >= 44
        page.press("Escape")
    assert page.complaints() == []
    page.close()


def test_edits_without_a_place_are_shown_next_to_what_is_there_now(
    browser: Chromium, tmp_path: Path
) -> None:
    store = run_of(tmp_path / "output", spoken("/a.wav", passage(0, "one"), passage(1, "two")))
    correct_segment(store, "one", "first edit", name="Anna")
    correct_segment(store, "two", "second edit")
    others = [passage(at, f"something else {at}") for at in range(2)]
    add(store, spoken("/a.wav", *others, etag="v2"))
    with serving(store) as server:
        page = browser.open(server.url)
        page.wait_for("document.querySelector('#results a')")
        page.click("#results a")
        page.wait_for("document.getElementById('stale')?.hidden === false")
        title = "document.getElementById('stale-title').innerText"
        assert page.value(title) == "2 edits not applied"
        page.click("#stale summary")
        shown = page.value("document.querySelector('#stale li').innerText").split("\n")
        assert [line for line in shown if line] == [
            "0:00 by Anna", "The edit", "first edit", "Take it", "Now", "something else 0",
            "Dismiss", "The model, then", "one",
        ]  # fmt: skip
        for width in (1280, 400):
            page.look(width=width, height=800, dark=width == 400)
            assert page.value("document.documentElement.scrollWidth") <= width
        page.click("#stale li section:nth-child(1) button")
        page.wait_for(f"{title} === '1 edit not applied'")
        page.wait_for("document.querySelector('.said').innerText.trim() === 'first edit'")
        page.click("#stale li section:nth-child(2) button")
        page.wait_for("document.getElementById('stale').hidden")
        assert page.value("document.querySelectorAll('.said')[1].innerText") == "something else 1"
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


def test_the_clip_of_a_segment_is_of_its_channel(browser: Chromium, dialogue: ViewServer) -> None:
    page = browser.open(dialogue.url)
    page.wait_for("document.querySelector('#results a')")
    page.click("#results a")
    for at, channel in ((0, 0), (2, 1)):
        page.wait_for(f"document.querySelector('[data-at=\"{at}\"] .edit')")
        page.click(f'[data-at="{at}"] .edit')
        href = page.value("document.querySelector('.editor a.button').href")
        assert f"&channel={channel}" in href
        page.press("Escape")
    page.close()


def test_two_presses_save_once(browser: Chromium, served: tuple[ViewServer, OutputStore]) -> None:
    page = opened(browser, served[0])
    page.click('[data-at="0"] .edit')
    write(page, "twice")
    page.value("[1, 2].forEach(() => document.querySelector('.editor').requestSubmit())")
    page.wait_for(f"!{EDITOR} && {LINES}[0] === 'S1: twice'")
    page.press("v")
    page.press("v")
    page.wait_for(f"{NOTE}.startsWith('Checked')")
    assert page.complaints() == []
    assert len(read_saved(served[1])) == 2
    page.close()
