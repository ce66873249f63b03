"""The pages in a real browser: search, narrow, play, look, correct; hostile texts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from corpus_asr.edits.corrections import read_saved
from corpus_asr.export.speakers import read_names
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.server import ViewServer
from tests.report.conftest import OpenPage
from tests.support.audio import tone, video_bytes, wav_bytes
from tests.support.pages import look, wait_for
from tests.support.runs import of_file, passage, run_of, says, spoken
from tests.view.conftest import HOSTILE_TEXT, PASSAGES, Shown, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

AUDIO = "document.querySelector('audio')"
NOTE = "document.querySelector('.note').textContent"
PHONE_SIZED = "meta[name=viewport][content*='width=device-width']"
WORD = '[data-at="{passage}"] [data-word="{word}"]'


@pytest.fixture
def page(open_page: OpenPage, shown: Shown) -> "Page":
    """The first page."""
    opened = open_page(shown.url)
    wait_for(opened, "document.querySelectorAll('#results li').length === 4")
    return opened


def read(page: "Page", shown: Shown, name: str, rest: str = "") -> None:
    page.goto(f"{shown.url}recording?id={shown.id(name)}{rest}")
    wait_for(page, f"document.querySelector('.segment') && {AUDIO}.readyState > 0")


def test_from_a_search_to_the_word_that_is_heard(page: "Page", shown: Shown) -> None:
    page.keyboard.press("/")
    page.keyboard.insert_text("PASSAGE7")
    page.keyboard.press("Enter")
    wait_for(page, "document.querySelectorAll('#results li').length === 1")
    assert page.text_content("#results mark") == "passage7"
    assert page.evaluate("location.search") == "?q=PASSAGE7"
    page.click("#results a")
    wait_for(page, f"document.querySelector('.segment') && {AUDIO}.readyState > 0")
    assert page.text_content(".found") == "passage7"
    assert page.evaluate(f"{AUDIO}.currentTime") == pytest.approx(14.0, abs=0.05)
    page.click(WORD.format(passage=20, word=2))
    wait_for(page, f"{AUDIO}.currentTime > 41.2 && !{AUDIO}.paused")
    assert page.evaluate(f"{AUDIO}.currentTime") < 50
    assert page.evaluate("location.hash") == "#t=41.00"
    # It goes along: what is marked is what is said now, and it is in view.
    wait_for(page, "document.querySelector('.segment.now').dataset.at >= 22", limit_s=60)
    spoken_s = page.evaluate(
        f"[Number(document.querySelector('.segment.now').dataset.at) * 2, {AUDIO}.currentTime]"
    )
    assert 0 <= spoken_s[1] - spoken_s[0] < 3
    assert page.evaluate(
        "(({top, bottom}) => top >= 0 && bottom <= innerHeight)"
        "(document.querySelector('.word.now').getBoundingClientRect())"
    )
    page.keyboard.press(" ")
    wait_for(page, f"{AUDIO}.paused")


def test_keys_go_to_doubtful_words_and_through_time(page: "Page", shown: Shown) -> None:
    read(page, shown, "plain.wav")
    now = "document.querySelector('.word.now')?.textContent"
    page.keyboard.press("n")
    wait_for(page, f"{now} === 'passage7' && {AUDIO}.currentTime > 14.9")
    assert page.text_content(".doubtful.word") == "passage7"
    decoration = "getComputedStyle(document.querySelector('.doubtful.word')).textDecorationStyle"
    assert page.evaluate(decoration) == "wavy"  # not by colour alone
    page.keyboard.press("ArrowRight")
    wait_for(page, f"{AUDIO}.currentTime > 19.9")
    page.keyboard.press("p")
    wait_for(page, f"{AUDIO}.currentTime < 15.1")
    page.keyboard.press("p")
    wait_for(
        page,
        "document.querySelector('.note').textContent.startsWith('No low-confidence word before')",
    )
    page.keyboard.press(">")
    assert page.evaluate(f"{AUDIO}.playbackRate") == 1.25
    page.keyboard.press("?")
    assert page.evaluate("document.getElementById('keys').open")


def test_what_browsers_do_not_play_is_decoded(page: "Page", shown: Shown) -> None:
    read(page, shown, "odd.aiff", "#t=2")
    assert "decode=1" in page.evaluate(f"{AUDIO}.src")
    assert page.evaluate(f"{AUDIO}.duration") == pytest.approx(60.0)
    # Without word times a passage is what is clicked.
    page.click('[data-at="1"] .whole')
    wait_for(page, f"{AUDIO}.currentTime > 2.2 && !{AUDIO}.paused")


def test_hostile_names_and_texts_stay_text(page: "Page") -> None:
    page.click("#results li:nth-child(1) a")
    page.wait_for_selector(".segment")
    visible = HOSTILE_TEXT.replace("\u202e", "[U+202E]")
    assert page.evaluate("document.querySelector('.said').textContent.trim()") == visible
    assert page.locator("b, img").count() == 0
    assert page.evaluate("document.title").startswith("<img src=x onerror=alert(1)>")


def test_a_failure_is_shown_with_advice(page: "Page", shown: Shown) -> None:
    page.goto(f"{shown.url}recording?id={shown.id('bad.wav')}")
    wait_for(page, "!document.getElementById('failure').hidden")
    text = page.inner_text("#failure")
    assert "not_audio" in text
    assert "What to do: these are not audio" in text
    wait_for(page, f"{NOTE}.startsWith('No audio')")
    # One that is missing by now is told where its sound would be.
    path = shown.folder / "plain.wav"
    kept = path.rename(path.with_suffix(".away"))
    try:
        page.goto(f"{shown.url}recording?id={shown.id('plain.wav')}")
        wait_for(page, f"{NOTE}.startsWith('No audio')")
        wait_for(page, f"document.querySelectorAll('.segment').length === {PASSAGES}")
    finally:
        kept.rename(path)


def test_nothing_is_wider_than_the_window(page: "Page", shown: Shown) -> None:
    for width, dark in ((1280, False), (400, True)):
        look(page, width=width, dark=dark)
        for address in ("", "?q=peace", f"recording?id={shown.id('plain.wav')}"):
            page.goto(shown.url + address)
            page.wait_for_selector("#results li, .segment")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator(PHONE_SIZED).count() == 1


FILM_S, TALK_S = 4, 20


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ViewServer, OutputStore]]:
    """A run of a film and two talks in two folders."""
    folder = tmp_path_factory.mktemp("shelf")
    film, talk, other = folder / "films" / "a.webm", folder / "talks" / "b.wav", folder / "c.wav"
    for path, data in (
        (film, video_bytes(FILM_S)),
        (talk, wav_bytes(tone(float(TALK_S)), rate_hz=16_000)),
        (other, wav_bytes(tone(2.0), rate_hz=16_000)),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    said = [passage(at, f"word{at} peace", probabilities=(0.3, 0.9)) for at in range(5)]
    late = passage(8, "late peace", probabilities=(0.9, 0.9))
    store = run_of(
        tmp_path_factory.mktemp("run") / "output",
        spoken(str(film), passage(0, "moving peace"), codec="opus", duration_s=float(FILM_S),
               part_end_s=float(FILM_S), **of_file(film)),
        spoken(str(talk), *said, late, part_end_s=float(TALK_S), **of_file(talk)),
        spoken(str(other), passage(0, "stiller Friede", language="de"), language="de",
               **of_file(other)),
    )  # fmt: skip
    says(store, str(talk), (0.0, 6.0, "S1"), (6.0, 10.0, "S2"), (14.0, 20.0, "S1"))
    with serving(store) as server:
        yield server, store


@pytest.fixture
def inside(open_page: OpenPage, shelf: tuple[ViewServer, OutputStore]) -> "Page":
    """The first page of the shelf."""
    opened = open_page(shelf[0].url)
    wait_for(opened, "document.querySelectorAll('#results li').length === 3")
    return opened


def talk_url(page: "Page", rest: str = "") -> str:
    wait_for(page, "document.querySelectorAll('#results li').length === 3")
    rows = "[...document.querySelectorAll('#results a')]"
    href = page.evaluate(f"{rows}.find((one) => one.textContent.endsWith('b.wav')).href")
    return f"{href}{rest}"


def test_hits_are_narrowed_by_the_name_of_a_folder(inside: "Page") -> None:
    inside.click("#q")
    inside.keyboard.insert_text("peace")
    inside.keyboard.press("Enter")
    told = "document.getElementById('told').textContent"
    wait_for(inside, f"{told}.startsWith('7 segments')")
    inside.click("#more summary")
    inside.click("#name")
    inside.keyboard.insert_text("/talks/")
    inside.keyboard.press("Enter")
    wait_for(inside, f"{told}.startsWith('6 segments')")
    assert inside.evaluate("location.search") == "?q=peace&name=%2Ftalks%2F"
    inside.go_back()
    wait_for(inside, f"{told}.startsWith('7 segments')")
    inside.click("#clear")
    wait_for(inside, "document.querySelectorAll('#results li').length === 3")


def test_a_click_in_the_waveform_goes_there(inside: "Page") -> None:
    inside.goto(talk_url(inside))
    wait_for(inside, f"document.querySelector('.segment') && {AUDIO}.readyState > 0")
    pixel = (
        "(() => { const canvas = document.querySelector('.waveform canvas');"
        "return canvas.getContext('2d').getImageData(canvas.width / 4, canvas.height / 2, 1, 1)"
        ".data[3]; })()"
    )
    wait_for(inside, f"{pixel} > 0")
    inside.click(".waveform canvas")
    wait_for(inside, f"Math.abs({AUDIO}.currentTime - {TALK_S / 2}) < 0.2")
    slider = "document.querySelector('[role=slider]')"
    inside.evaluate(f"{slider}.focus()")
    inside.keyboard.press("ArrowRight")
    wait_for(inside, f"Math.abs({AUDIO}.currentTime - {TALK_S / 2 + 1}) < 0.2")
    assert inside.evaluate(f"{slider}.getAttribute('aria-valuetext')") == "0:11"
    inside.keyboard.press("End")
    wait_for(inside, f"{AUDIO}.currentTime > {TALK_S - 0.5}")


def test_a_film_is_seen(inside: "Page") -> None:
    inside.click("#results li:nth-child(2) a")  # films/a.webm
    wait_for(inside, "document.querySelector('video.picture')?.readyState > 0")
    video = "document.querySelector('video')"
    assert inside.evaluate(f"[{video}.videoWidth, {video}.clientHeight > 50]") == [64, True]
    inside.click('[data-at="0"] .whole')
    wait_for(inside, f"{video}.currentTime > 0.1 && !{video}.paused")
    # Decoded there is sound alone.
    inside.evaluate("document.querySelector('.choices select[title^=Which]').value = 'decoded'")
    inside.evaluate(
        "document.querySelector('.choices select[title^=Which]').dispatchEvent(new Event('change'))"
    )
    wait_for(inside, f"!document.querySelector('video') && {AUDIO}.readyState > 0")


def test_a_person_corrects_a_segment(inside: "Page", shelf: tuple[ViewServer, OutputStore]) -> None:
    inside.goto(talk_url(inside))
    wait_for(inside, "document.querySelectorAll('.segment').length === 6")
    text = "document.querySelector('[data-at=\"1\"] .said').textContent.trim()"
    inside.click('[data-at="1"] .edit')
    inside.keyboard.press("Escape")
    assert inside.evaluate("document.querySelector('.editor')") is None
    inside.click('[data-at="1"] .edit')
    inside.evaluate("document.activeElement.select()")
    inside.keyboard.insert_text("<b>word one</b> peace")
    inside.keyboard.press("Enter")
    wait_for(inside, f"{text} === '<b>word one</b> peace'")
    assert inside.locator("b").count() == 0
    assert inside.inner_text('[data-at="1"] .badge') == "corrected"
    title = inside.evaluate("document.querySelector('[data-at=\"1\"] .said').title")
    assert title.startswith("Original: word1 peace\ncorrected on 20")
    # Checked by one key, which goes on to the next.
    inside.click('[data-at="2"] .word')
    inside.evaluate("document.activeElement.blur()")
    inside.keyboard.press("v")
    wait_for(inside, "document.querySelector('[data-at=\"2\"] .badge')?.innerText === 'checked'")
    wait_for(inside, "document.querySelector('.segment.now').dataset.at === '3'")
    inside.goto(f"{shelf[0].url}?q=one")
    wait_for(inside, "document.querySelector('#results .badge')?.innerText === 'corrected'")
    saved = [said.text for each in read_saved(shelf[1]).values() for said in each.segments]
    assert sorted(saved) == ["<b>word one</b> peace", "word2 peace"]


def test_a_person_names_a_speaker_and_sees_it_everywhere(
    inside: "Page", shelf: tuple[ViewServer, OutputStore]
) -> None:
    inside.goto(talk_url(inside))
    wait_for(inside, "document.querySelectorAll('.segment').length === 6")
    shown = (
        "['.segment .speaker', '.voices .who', '.lane .turn'].map((which) =>"
        "[...document.querySelectorAll(which)].map((one) => one.innerText || one.title).join())"
    )
    turns = "{0} 0:00,{1} 0:06,{0} 0:14"
    assert inside.evaluate(shown) == [
        "S1,S1,S1,S2,S2,S1", "S1 75%,S2 25%", turns.format("S1", "S2")
    ]  # fmt: skip
    inside.click('[data-at="4"] .speaker')
    assert inside.inner_text("#naming-title") == "Who is S2?"
    inside.keyboard.insert_text("<b>Anna")
    inside.keyboard.press("Enter")
    wait_for(inside, "!document.getElementById('naming').open")
    assert inside.evaluate(shown) == [
        "S1,S1,S1,<b>Anna,<b>Anna,S1", "S1 75%,<b>Anna 25%", turns.format("S1", "<b>Anna")
    ]  # fmt: skip
    color = "getComputedStyle(document.querySelector('[data-at=\"{}\"]')).borderLeftColor"
    one, same, other = (inside.evaluate(color.format(at)) for at in (1, 2, 4))
    assert (one == same, one == other) == (True, False)
    # In the lane's list, too; escape leaves the name as it is.
    inside.click(".voices .who")
    inside.keyboard.insert_text("Ben")
    inside.keyboard.press("Escape")
    assert [*read_names(shelf[1]).values()] == ["<b>Anna"]
