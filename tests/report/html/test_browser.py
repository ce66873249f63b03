"""The page in a real browser: clips play; tables sort, narrow down and are saved; all fits."""

import csv
import time
from pathlib import Path

import pytest

from corpus_asr.report import samples
from corpus_asr.report.html.page import write_page, write_page_at_the_end
from corpus_asr.storage.run_state.run_files import PAGE_NAME, write_snapshot
from corpus_asr.storage.stores.uri import recording_id
from tests.report.html.test_page import ATTACKS, hostile_output, moment
from tests.support.pages import Chromium, Page, parsed
from tests.support.runs import ManualRun, of_file, passage, run_of, spoken, write_tones
from tests.support.tables import commit, results, snapshot

FAILURES = "[...document.querySelectorAll('#failures-table tbody tr')].filter(row => !row.hidden)"


def opened(browser: Chromium, path: Path) -> Page:
    """Open a page, which nothing may be refused in, nor be too wide."""
    page = browser.open(path.as_uri())
    for width, dark in ((400, True), (400, False), (1280, True), (1280, False)):
        page.look(width=width, height=900, dark=dark)
        assert page.value("document.documentElement.scrollWidth") == width
    assert page.complaints() == []
    return page


def choose(page: Page, form: str, control: str, value: str) -> None:
    """Set a field of a form, as somebody who types or chooses in it."""
    page.value(
        f"(() => {{ const control = document.querySelector('[data-table={form}] {control}');"
        f"control.value = {value!r};"
        "control.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


@pytest.mark.long
def test_a_clip_is_heard_and_a_missing_one_says_why(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    page = opened(browser, tmp_path / "page.html")
    audio = "document.querySelectorAll('audio')"
    assert page.value(f"{audio}.length") == 4  # two segments, each among both kinds
    page.wait_for(f"{audio}[0].readyState > 0")
    assert page.value(f"{audio}[0].duration") == pytest.approx(2.2, abs=0.1)
    first, second = (f".sample:nth-child({number}) audio" for number in (2, 3))
    page.click(first, across=0.05)  # where its button is
    page.wait_for(f"{audio}[0].currentTime > 0.3")
    # Another one that begins stops it.
    page.click(second, across=0.05)
    page.wait_for(f"{audio}[1].ended")
    assert page.value(f"{audio}[0].paused && !{audio}[0].ended")
    text = page.value("document.querySelector('[aria-labelledby=samples]').innerText")
    assert text.count("No clip: the recording is no longer there.") == 4
    assert text.count("No clip: its decoder crashed.") == 2
    assert f"corpus-asr view {store.uri}" in text
    assert page.complaints() == []
    page.close()
    # Without audio, and with a viewer that links lead to.
    write_page(store, str(tmp_path / "page.html"), embed_audio=False, viewer_url="https://host/asr")
    html = parsed((tmp_path / "page.html").read_text())
    assert html.all("audio") == []
    assert "audio is switched off for this report" in html.text
    [links] = {link.attributes["href"] for link in html.all("li", class_="sample")[0].all("a")}
    assert links in {
        f"https://host/asr/recording?id={recording_id(str(path))}#t=0.00"
        for path in (good, gone, crash)
    }


def test_failures_are_narrowed_down_and_saved(browser: Chromium, tmp_path: Path) -> None:
    names = [f"f{number:02}.wav" for number in range(60)]
    job = ManualRun(tmp_path, names)
    job.begin()
    rows = []
    for number, name in enumerate(names):
        store_failed = number % 20 == 0
        rows.append(
            spoken(str(job.source / name), status="failed", segments=None)
            | of_file(job.source / name)
            | {"error_stage": "extract", "retryable": store_failed}
            | {"error_kind": "timeout" if store_failed else "not_audio"}
            | {"error_message": f"reading {name}, \"said\": =code{number % 7}"}
        )  # fmt: skip
    commit(job.store, results(*rows), run_id=job.run.run_id)
    write_page(job.store, str(tmp_path / "page.html"))
    page = opened(browser, tmp_path / "page.html")
    shown = "document.querySelector('[data-table=failures-table] output').textContent"
    page.click("details.each summary")
    assert page.value(f"[{FAILURES}.length, {shown}]") == [60, "60 of 60 shown"]
    for control, value, count in (
        ("select[name=kind]", "1", 3), ("select[name=retry]", "no", 0),
        ("select[name=kind]", "", 57), ("input", "CODE3  f1", 2), ("input", "code3", 9),
    ):  # fmt: skip
        choose(page, "failures-table", control, value)
        assert page.value(f"[{FAILURES}.length, {shown}]") == [count, f"{count} of 60 shown"]
    page.call("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.click("[data-table=failures-table] button")
    saved = tmp_path / "failures.csv"
    deadline = time.monotonic() + 20
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with saved.open() as file:
        head, *lines = csv.reader(file)
    assert head == ["recording", "kind", "message", "retry"]
    assert [line[0][-7:] for line in lines] == [f"f{n:02}.wav" for n in range(60) if n % 7 == 3]
    assert lines[0][2:] == ['reading f03.wav, "said": =code3', "will not help"]
    page.value("document.querySelector('#failures-table a[href^=\"#kind\"]').click()")
    assert page.value("location.hash") == "#kind-0"
    assert page.complaints() == []
    page.close()


def test_recordings_sort_and_narrow_down(browser: Chromium, tmp_path: Path) -> None:
    job = ManualRun(tmp_path)
    job.begin()
    for name, took_s, duration_s in (("a", 1.0, 40.0), ("b", 30.0, 7000.0), ("c", 2.0, 40.0)):
        job.commit(f"{name}.wav", decode_s=took_s, duration_s=duration_s,
                   language="de" if name == "c" else "en")  # fmt: skip
    job.finish()
    history = tuple(moment(at, 60.0 * at) for at in range(0, 100, 10))
    write_snapshot(job.store, snapshot(run_id=job.run.run_id, history=history))
    write_page(job.store, str(tmp_path / "page.html"))
    page = opened(browser, tmp_path / "page.html")
    table = "document.querySelector('#recordings-table')"
    rows = f"[...{table}.tBodies[0].rows].filter(row => !row.hidden)"
    names = f"{rows}.map(row => row.cells[0].textContent.trim().at(-5)).join('')"
    # Names begin at a, numbers with the greatest; another click turns the order.
    for column, order, sort in (
        (1, "abc", "ascending"), (1, "cba", "descending"), (7, "bca", "descending"),
        (7, "acb", "ascending"),
    ):  # fmt: skip
        page.click(f"#recordings-table th:nth-child({column}) button")
        assert page.value(names) == order
        head = f"{table}.querySelector('th:nth-child({column})')"
        assert page.value(f"{head}.ariaSort") == sort
    choose(page, "recordings-table", "select[name=language]", "en")
    assert page.value(names) == "ab"
    choose(page, "recordings-table", "select[name=status]", "ok")
    choose(page, "recordings-table", "input", "B.wav")
    assert page.value(names) == "b"
    document = parsed(page.value("document.documentElement.outerHTML"))
    assert len(document.all("svg", class_="chart")) == 3
    [lengths] = [each for each in document.all("figure") if "by length" in each.text]
    rows_of_lengths = lengths.all("tbody")[0].all("tr")
    assert (rows_of_lengths[0].text, rows_of_lengths[-1].text) == (
        "30 s to 1 min267%", "1 h to 3 h133%",
    )  # fmt: skip
    assert page.complaints() == []
    page.close()


@pytest.mark.long
def test_the_last_runs_are_a_table(browser: Chromium, tmp_path: Path) -> None:
    job = ManualRun(tmp_path)

    def done(*names: str) -> Page:
        job.begin()
        for name in names:
            job.commit(name)
        job.fail("c.wav", error_kind="timeout", retryable=True)
        job.finish()
        write_page_at_the_end(job.store, 3)
        return opened(browser, tmp_path / "output" / PAGE_NAME)

    page = done("a.wav")
    assert page.value("document.getElementById('runs')") is None
    page.close()
    page = done("b.wav")
    rows = page.value(
        "[...document.querySelectorAll('[aria-labelledby=runs] tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    # With text, without speech, failed, audio, segments.
    assert [row[1:6] for row in rows] == [
        ["2", "0", "1", "2.0 min", "2"], ["1", "0", "1", "1.0 min", "1"],
    ]  # fmt: skip
    assert page.complaints() == []
    page.close()


def test_attacks_do_nothing(browser: Chromium, tmp_path: Path) -> None:
    store = hostile_output(tmp_path / "output")
    write_page(store, str(tmp_path / "page.html"))
    page = opened(browser, tmp_path / "page.html")
    assert "owned" not in page.value("document.title")
    assert page.value("document.querySelectorAll('script').length") == 1
    assert page.value("document.querySelectorAll('img').length") == 0
    assert ATTACKS[0] in page.value("document.body.innerText")
    page.close()
