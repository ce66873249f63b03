"""The page of a run says what its tables say, whatever the run is at, and breaks nothing."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from corpus_asr.report.advice import ADVICE, advice
from corpus_asr.report.page import write
from corpus_asr.report.page.write import write_page, write_page_at_the_end
from corpus_asr.report.reasons import REASONS, reason
from corpus_asr.storage.run_state.run_files import STOPPED, Moment, write_snapshot
from corpus_asr.storage.run_state.start import PAGE_NAME
from corpus_asr.storage.stores import filesystem
from tests.support.handwritten import Job
from tests.support.html import Element, browsed, parsed
from tests.support.snapshots import snapshot

FIRST_OF_SLOWEST = "[aria-labelledby=slowest]>div>table>thead>tr>th>button"


def words(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [
        {"word": word, "start_s": 0.0, "end_s": 1.0, "probability": probability}
        for word, probability in pairs
    ]


def segment(text: str, confidence: float, **values: Any) -> dict[str, Any]:
    usual = {
        "segment": 0, "start_s": 65.5, "end_s": 70.0, "text": text, "confidence": confidence,
        "language": "en",
    }  # fmt: skip
    return usual | values


def moment(elapsed_s: float, audio_s: float) -> Moment:
    return Moment(
        elapsed_s=elapsed_s, audio_s=audio_s, files=0, failed=0, extract_s=elapsed_s / 2,
        extract_alive_s=elapsed_s, engine_s=elapsed_s, transcribe_alive_s=elapsed_s,
    )  # fmt: skip


def page_of(job: Job, path: Path) -> Element:
    write_page(job.store, str(path))
    return parsed(path.read_text())


def test_a_finished_run(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.begin()
    said = segment(" Hello wrld", 0.55, words=words((" Hello", 0.95), (" wrld", 0.2)))
    job.commit("a.wav", segments=[said], decode_s=2.0)
    job.commit("b.wav", status="no_speech", segments=None, language=None)
    job.fail("c.wav")
    job.finish()
    write_snapshot(job.store, replace(snapshot(), run_id=job.run.run_id))
    write_page_at_the_end(job.store, num_recordings=3)
    page = parsed((tmp_path / "output" / PAGE_NAME).read_text())
    figures = {
        each.all("dt")[0].text: each.all("strong")[0].text
        for each in page.all("div", class_="figure")
    }
    assert figures["Audio"] == "2.0 min"
    assert figures["Recordings"] == "3"
    assert figures["Segments"] == "1"
    assert figures["Words"] == "2"
    assert figures["Failed"] == "1"
    assert page.all("span", class_="badge")[0].text == "Finished"
    assert page.all("svg", class_="progress")[0].attributes["aria-label"] == (
        "1 with text, 1 without speech, 1 failed"
    )
    [failure] = page.all("article", class_="failure")
    assert "Not audio" in failure.text
    assert "1 recording" in failure.text
    assert "decoding c.wav: not audio" in failure.text
    assert failure.all("a")[0].attributes["href"] == "./../source/c.wav"
    assert advice("not_audio", retryable=False) in failure.text
    assert "All 3 listed files ended exactly once." in page.text
    sample = page.all("li", class_="sample")[0]
    assert sample.all("blockquote")[0].text == "Hello wrld"
    assert sample.all("blockquote")[0].attributes == {"lang": "en", "dir": "ltr"}
    [mark] = sample.all("mark")
    assert (mark.text, mark.attributes["class"], mark.attributes["title"]) == (
        "wrld", "doubtful", "20% sure",
    )  # fmt: skip
    assert "1:05\u20131:10 · English (en) · 55% sure" in sample.text
    assert sample.all("a")[0].attributes["href"] == "./../source/a.wav#t=65.50"
    slow = page.all("section", **{"aria-labelledby": "slowest"})[0].all("tbody")[0].all("tr")
    assert slow[0].all("th")[0].text.endswith("/a.wav")
    assert [cell.text for cell in slow[0].all("td")] == ["1.0 min", "2.0 s", "1.0 s"]
    assert len(slow) == 3
    assert "extract.part_s" in page.text
    assert "some/model" in page.text


@pytest.mark.parametrize(
    ("state", "badge", "rest"),
    [
        (None, "Not running", "Stopped before its end: run the same command again to continue."),
        (STOPPED, "Not running", "run the same command again for the rest."),
    ],
)
def test_a_run_that_is_not_done(tmp_path: Path, state: str | None, badge: str, rest: str) -> None:
    job = Job(tmp_path)
    job.begin()
    job.commit("a.wav")
    job.commit("b.wav", last_part=False)
    if state is not None:
        write_snapshot(job.store, snapshot(run_id=job.run.run_id, state=state))
    page = page_of(job, tmp_path / "page.html")
    assert page.all("span", class_="badge")[0].text == badge
    assert page.all("svg", class_="progress")[0].attributes["aria-label"] == (
        "1 with text, 1 begun, 1 waiting"
    )
    assert rest.replace("Stopped before its end: ", "") in page.text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.begin()
    page = page_of(job, tmp_path / "page.html")
    assert "3 waiting" in page.text
    assert "Nothing failed." in page.text
    assert not page.all("li", class_="sample")
    links = [link.attributes["href"] for link in page.all("nav")[0].all("a")]
    targets = {f"#{heading.attributes['id']}" for heading in page.all("h2")}
    assert set(links) <= targets


def classified(job: Job) -> Job:
    labels = [
        {"window": 0, "start_s": 0.0, "end_s": 30.0, "weight_s": 30.0, "rank": rank, "label": label,
         "probability": probability}
        for rank, label, probability in ((1, "de", 0.7), (2, "nl", 0.2), (3, "en", 0.1))
    ]  # fmt: skip
    means = [{"label": "de", "probability": 0.7}]
    job.begin()
    for name in ("a.wav", "b.wav", "c.wav"):
        job.commit(
            name, segments=None, labels=labels, label="de", label_probability=0.7,
            label_means=means, label_weight_s=30.0,
        )  # fmt: skip
    job.finish()
    return job


def test_a_classification_has_labels_in_place_of_text(tmp_path: Path) -> None:
    job = classified(Job(tmp_path, pipeline="classify_audio"))
    page = page_of(job, tmp_path / "page.html")
    assert "Labels" in [heading.text for heading in page.all("h2")]
    sample = page.all("li", class_="sample")[0]
    assert sample.all("blockquote")[0].text == "de 70% · nl 20% · en 10%"
    assert "Words" not in [each.text for each in page.all("dt")]


@pytest.mark.parametrize("labels", [False, True])
def test_the_lines_shown_read_the_tables(
    labels: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    job = Job(folder, **({"pipeline": "classify_audio"} if labels else {}))
    if labels:
        classified(job)
    else:
        job.begin()
        job.commit("a.wav", segments=[segment("Hi.", 0.9, start_s=0.0, end_s=1.0)])
        job.finish()
    python, sql = page_of(job, tmp_path / "page.html").all("pre")
    exec("".join(python.own_text))
    told = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1] for line in told] == (["de"] * 3 if labels else ["Hi."])
    [row] = duckdb.execute("".join(sql.own_text)).fetchall()
    assert row == (("de", 3, 0.03) if labels else ("en", 1, 0.0))


def test_channels_and_lengths(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.begin()
    job.commit("a.wav", part=0, channel=0, duration_s=40.0, last_part=False)
    job.commit("a.wav", part=1, channel=1, duration_s=40.0)
    job.commit("b.wav", duration_s=7000.0)
    job.commit("c.wav", duration_s=40.0)
    job.finish()
    page = page_of(job, tmp_path / "page.html")
    [lengths] = [each for each in page.all("figure") if "by length" in each.text]
    rows = [row.text for row in lengths.all("tbody")[0].all("tr")]
    assert rows[0] == "30 s to 1 min267%"
    assert rows[-1] == "1 h to 3 h133%"


def test_the_page_of_a_folder_is_not_what_a_run_fails_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path)
    job.begin()
    job.commit("a.wav")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(filesystem, "write_atomic", refuse)
        write_page_at_the_end(job.store, num_recordings=1)
    assert "OSError: no room" in str(caplog.records[-1].__dict__)
    monkeypatch.setattr(write, "MOST_AT_THE_END", 2)
    write_page_at_the_end(job.store, num_recordings=3)
    assert "report --html" in str(caplog.records[-1].__dict__)
    assert not (tmp_path / "output" / PAGE_NAME).exists()
    write_page_at_the_end(job.store, num_recordings=2)
    page = parsed((tmp_path / "output" / PAGE_NAME).read_text())
    assert page.all("span", class_="badge")[0].text == "Not running"


def test_in_a_browser_tables_sort_and_nothing_is_refused_or_too_wide(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.begin()
    for name, took_s in (("a.wav", 1.0), ("b.wav", 3.0), ("c.wav", 2.0)):
        job.commit(name, decode_s=took_s)
    job.finish()
    history = tuple(moment(at, 60.0 * at) for at in range(0, 100, 10))
    write_snapshot(job.store, snapshot(run_id=job.run.run_id, history=history))
    write_page(job.store, str(tmp_path / "page.html"))
    seen = browsed(tmp_path / "page.html", click=FIRST_OF_SLOWEST)
    assert seen.complaints == []
    assert seen.widths == {1280: 1280, 400: 400}
    assert len(seen.document.all("svg", class_="chart")) == 3
    [slowest] = seen.document.all("section", **{"aria-labelledby": "slowest"})
    names = [row.all("th")[0].text[-5:] for row in slowest.all("tbody")[0].all("tr")]
    assert names == ["a.wav", "b.wav", "c.wav"]
    assert slowest.all("th")[0].attributes["aria-sort"] == "ascending"


def test_every_kind_with_advice_has_a_reason() -> None:
    assert set(ADVICE) <= set(REASONS)
    assert reason("of_tomorrow") == "Of tomorrow"
