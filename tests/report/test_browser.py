"""The page in a real browser: clips play; all fits."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from corpus_asr.report import samples
from corpus_asr.report.page import write_page, write_page_at_the_end
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from tests.report.conftest import OpenPage
from tests.report.test_page import ATTACKS, hostile_output
from tests.support.pages import look, parsed, wait_for
from tests.support.runs import ManualRun, of_file, passage, run_of, spoken, write_tones

if TYPE_CHECKING:
    from playwright.sync_api import Page


def opened(open_page: OpenPage, path: Path) -> "Page":
    """Open a page, which nothing may be refused in, nor be too wide."""
    page = open_page(path.as_uri())
    assert page.locator("meta[name=viewport][content*='width=device-width']").count() == 1
    for width, dark in ((400, True), (400, False), (1280, True), (1280, False)):
        look(page, width=width, dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    return page


@pytest.mark.long
def test_a_clip_is_heard_and_a_missing_one_says_why(
    open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "CUTTER", "tests.support.audio:CrashingCutter")
    good, gone, crash = (tmp_path / f"{name}.wav" for name in ("good", "gone", "crash"))
    write_tones(good, seconds=4)
    rows = [
        spoken(str(path), passage(0, "first"), passage(1, "second"), **version)
        for path, version in ((good, of_file(good)), (gone, {}))
    ]
    rows.insert(0, spoken(str(crash), passage(0, "crash")))
    store = run_of(tmp_path / "output", *rows)
    write_page(store, str(tmp_path / "page.html"))
    page = opened(open_page, tmp_path / "page.html")
    audio = "document.querySelectorAll('audio')"
    assert page.evaluate(f"{audio}.length") == 4  # two segments, each among both kinds
    wait_for(page, f"{audio}[0].readyState > 0")
    assert page.evaluate(f"{audio}[0].duration") == pytest.approx(2.2, abs=0.1)
    first, second = (f".sample:nth-child({number}) audio" for number in (2, 3))
    page.click(first, position={"x": 20, "y": 27})  # where its button is
    wait_for(page, f"{audio}[0].currentTime > 0.3")
    # Another one that begins stops it.
    page.click(second, position={"x": 20, "y": 27})
    wait_for(page, f"{audio}[1].ended")
    assert page.evaluate(f"{audio}[0].paused && !{audio}[0].ended")
    text = page.inner_text("[aria-labelledby=samples]")
    assert text.count("No clip: the recording is no longer there.") == 4
    assert text.count("No clip: its decoder crashed.") == 2
    assert f"corpus-asr view {store.uri}" in text
    write_page(store, str(tmp_path / "page.html"), embed_audio=False)
    html = parsed((tmp_path / "page.html").read_text())
    assert html.all("audio") == []
    assert "audio is switched off for this report" in html.text


@pytest.mark.long
def test_the_last_runs_are_a_table(open_page: OpenPage, tmp_path: Path) -> None:
    job = ManualRun(tmp_path)

    def done(*names: str) -> "Page":
        job.begin()
        for name in names:
            job.commit(name)
        job.fail("c.wav", error_kind="timeout", retryable=True)
        job.finish()
        write_page_at_the_end(job.store, 3)
        return opened(open_page, tmp_path / "output" / PAGE_NAME)

    page = done("a.wav")
    assert page.evaluate("document.getElementById('runs')") is None
    page = done("b.wav")
    rows = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby=runs] tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    # With text, without speech, failed, audio, segments.
    assert [row[1:6] for row in rows] == [
        ["2", "0", "1", "2.0 min", "2"], ["1", "0", "1", "1.0 min", "1"],
    ]  # fmt: skip


def test_attacks_do_nothing(open_page: OpenPage, tmp_path: Path) -> None:
    store = hostile_output(tmp_path / "output")
    write_page(store, str(tmp_path / "page.html"))
    page = opened(open_page, tmp_path / "page.html")
    assert "owned" not in page.evaluate("document.title")
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert ATTACKS[0] in page.evaluate("document.body.innerText")
