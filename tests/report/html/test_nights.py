"""A page over nights: each with its numbers and a link to its summary, and nothing that runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report.html.nights import write_nights_page
from corpus_asr.report.nightly import NightState, as_data, read_nights
from corpus_asr.storage.run_state.run_files import NIGHTS_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.nightly import night
from tests.support.pages import Chromium, Element, parsed


def wrote(folder: Path, name: str, **values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    one = night(date=name[:10], **values)
    (folder / f"{name}.json").write_text(json.dumps(as_data(one)))
    (folder / f"{name}.md").write_text("# Nightly run")


def page_of(output: Path, summaries: Path) -> Element:
    write_nights_page(OutputStore(str(output)), OutputStore(str(summaries)))
    return parsed((output / NIGHTS_NAME).read_text())


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """Four nights: two of a day, one with nothing to do, one aborted; one of an older version."""
    folder = tmp_path / "out" / "nights"
    wrote(folder, "2026-11-20", done=8, failed=2, mean_confidence=0.8, low_confidence=3)
    wrote(folder, "2026-11-20-2", new=0, done=0, audio_s=0.0, rtfx=0.0, wall_s=2.0)
    wrote(folder, "2026-11-22", state=NightState.aborted, error="x", done=5, remaining=5)
    wrote(folder, "2026-11-21", state=NightState.time_limit, mean_confidence=0.9, audio_s=108_000.0)
    path = folder / "2026-11-19.json"
    wrote(folder, "2026-11-19")
    data = json.loads(path.read_text())
    del data["numbers"]["confidence"]
    path.write_text(json.dumps(data))
    (folder / "2026-11-23.json").write_text('{"somebody": "else"}')
    return folder


def test_every_night_is_a_row_and_a_bar(nights: Path) -> None:
    page = page_of(nights.parent, nights)
    [table] = page.all("table")
    rows = [
        [cell.text for cell in row.children if cell.tag in ("th", "td")]
        for row in table.all("tbody")[0].all("tr")
    ]
    assert [row[:2] for row in rows] == [
        ["2026-11-22", "aborted"], ["2026-11-21", "time limit"],
        ["2026-11-20-2", "nothing to do"], ["2026-11-20", "done"], ["2026-11-19", "done"],
    ]  # fmt: skip
    assert rows[3][2:] == [
        "10", "8", "2", "0", "10.0 h", "1.0 h", "10.0", "0.80", "3",
    ]  # fmt: skip
    assert rows[2][6:10] == ["0.0 s", "2.0 s", "-", "-"]
    figures = page.all("dl", class_="figures")[0].text
    # Confidence by audio: 10 hours of 0.8 and 30 of 0.9.
    for words in ("Nights5since 2026-11-19", "Recordings33done", "Failed25.7% of 35",
                  "Confidence0.88"):  # fmt: skip
        assert words in figures
    titles = [each.text for each in page.all("h3")]
    assert titles == ["Recordings", "Audio", "Failures", "RTFx", "Confidence"]
    for chart in page.all("svg", class_="chart"):
        assert len(chart.all("rect", class_="bar")) == 5
    [failures] = [each for each in page.all("figure") if "Failures" in each.text]
    heights = [float(bar.attributes["height"]) for bar in failures.all("rect", class_="bar")]
    assert [height > 0 for height in heights] == [False, True, False, False, False]
    bars = [each.text for each in failures.all("title")]
    assert bars[1] == "2026-11-20: 2 of 10 recordings"
    [speeds] = [each for each in page.all("figure") if "RTFx" in each.text]
    heights = [float(bar.attributes["height"]) for bar in speeds.all("rect", class_="bar")]
    assert [height > 0 for height in heights] == [True, True, False, True, True]


def test_nights_lead_to_their_summaries_wherever_these_are(nights: Path, tmp_path: Path) -> None:
    names = ["2026-11-22", "2026-11-21", "2026-11-20-2", "2026-11-20", "2026-11-19"]
    found = [each.attributes["href"] for each in page_of(nights.parent, nights).all("a")]
    assert found == [f"./nights/{name}.md" for name in names]
    (nights.parent / "report.html").write_text("x")
    links = page_of(nights.parent, nights).all("a")
    assert links[0].attributes["href"] == "./report.html"
    elsewhere = tmp_path / "all #nights"
    nights.rename(elsewhere)
    for link in page_of(tmp_path / "out", elsewhere).all("a")[1:]:
        assert link.attributes["href"].startswith("./../all%20%23nights/2026-")
    store = OutputStore("memory://summaries")  # a page on a disk cannot lead there
    store.write_bytes("2026-11-19.json", (elsewhere / "2026-11-19.json").read_bytes())
    write_nights_page(OutputStore(str(tmp_path / "out")), store)
    assert len(parsed((tmp_path / "out" / NIGHTS_NAME).read_text()).all("a")) == 1


def test_a_page_is_no_reason_for_a_night_to_fail(
    nights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = nights.parent / NIGHTS_NAME
    blocked.mkdir()
    write_nights_page(OutputStore(str(nights.parent)), OutputStore(str(nights)))
    assert "page_not_written" in caplog.text
    blocked.rmdir()
    assert "No summary" in page_of(nights.parent, nights / "none").text


def test_the_last_nights_are_read_in_their_order(nights: Path) -> None:
    names = [name for name, _ in read_nights(OutputStore(str(nights)), 3)]
    assert names == ["2026-11-21", "2026-11-22"]  # what is no summary is one of the three
    assert [name for name, _ in read_nights(OutputStore(str(nights)), 99)][1:3] == [
        "2026-11-20", "2026-11-20-2",
    ]  # fmt: skip


def test_a_browser_shows_it_wide_and_narrow(nights: Path, browser: Chromium) -> None:
    hostile = nights.parent / "<b>x<b> & 'y'"
    hostile.mkdir()
    nights = nights.rename(hostile / "nights")
    page_of(hostile, nights)
    page = browser.open((hostile / NIGHTS_NAME).as_uri())
    for width in (1280, 400):
        page.look(width=width, height=900, dark=width == 400)
        assert page.value("document.documentElement.scrollWidth") == width
    page.click("thead>tr>th:nth-child(5)>button")
    assert page.complaints() == []
    seen = parsed(page.value("document.documentElement.outerHTML"))
    page.close()
    assert "<b>x<b> & 'y'" in seen.all("h1")[0].text
    rows = seen.all("tbody")[0].all("tr")
    assert rows[0].all("th")[0].text == "2026-11-20"  # with most failures
