"""A page says what its tables say, as text: short, no markup, safe links."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.confidence import word_confidences
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report import page as page_module
from corpus_asr.report.formatting import cut, link, message, sample_words, visible
from corpus_asr.report.page import write_page, write_page_at_the_end
from corpus_asr.report.run import last_runs
from corpus_asr.report.samples import Sample
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    EVALUATION_NAME,
    PAGE_NAME,
    STOPPED,
    write_snapshot,
)
from corpus_asr.storage.run_state.table_names import RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.pages import Element, parsed
from tests.support.runs import ManualRun
from tests.support.tables import commit, part, results, snapshot


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


@pytest.fixture
def job(tmp_path: Path) -> ManualRun:
    begun = ManualRun(tmp_path)
    begun.begin()
    return begun


def page_of(job: ManualRun, path: Path) -> Element:
    write_page(job.store, str(path))
    return parsed(path.read_text())


def test_a_finished_run(job: ManualRun, tmp_path: Path) -> None:
    said = segment(
        " Hello wrld", 0.55, words=words((" Hello", 0.95), (" wrld", 0.2)), no_speech_prob=0.01
    )
    job.commit("a.wav", segments=[said], decode_s=2.0)
    job.commit("b.wav", status="no_speech", segments=None, language=None)
    job.fail("c.wav")
    job.finish()
    write_snapshot(job.store, replace(snapshot(), run_id=job.run.run_id))
    run = job.store.read_json(RUN_NAME) | {"versions": {"torch": "2.0"}}
    job.store.write_json(RUN_NAME, run)
    write_page_at_the_end(job.store, 3)
    # What the page of the next run shows next to its own.
    [entry] = last_runs(job.store)
    assert (entry.finished_at, entry.night) == (run["finished_at"], None)
    assert entry.output is not None
    page = parsed((tmp_path / "output" / PAGE_NAME).read_text())
    figures = {
        each.all("dt")[0].text: each.all("strong")[0].text
        for each in page.all("div", class_="figure")
    }
    expected = {"Audio": "2.0 min", "Recordings": "3", "Segments": "1", "Failed": "1"}
    assert expected.items() <= figures.items()
    assert page.all("span", class_="badge")[0].text == "Finished"
    assert page.all("svg", class_="progress")[0].attributes["aria-label"] == (
        "1 with text, 1 without speech, 1 failed"
    )
    [failure] = page.all("section", **{"aria-labelledby": "failures"})
    advice = failure_kind("not_audio", retryable=False).advice
    for words_of_failure in ("Not audio", "1 recording", "decoding c.wav: not audio", advice):
        assert words_of_failure in failure.text
    assert [link.attributes["href"] for link in failure.all("a")] == [
        "./report.failures.csv", "./../source/c.wav",
    ]  # fmt: skip
    assert "c.wav" in (tmp_path / "output" / "report.failures.csv").read_text()
    assert "All 3 listed files have exactly one outcome." in page.text
    sample = page.all("li", class_="sample")[0]
    assert sample.all("blockquote")[0].text == "Hello wrld"
    assert sample.all("blockquote")[0].attributes == {"lang": "en", "dir": "ltr"}
    [mark] = sample.all("mark")
    assert (mark.text, mark.attributes["class"], mark.attributes["title"]) == (
        "wrld", "doubtful", f"confidence {word_confidences(said)[1]:.0%}",
    )  # fmt: skip
    assert "1:05\u20131:10 · English (en) · confidence 55%" in sample.text
    assert sample.all("a")[0].attributes["href"] == "./../source/a.wav#t=65.50"
    [confidence] = page.all("section", **{"aria-labelledby": "confidence"})
    rows = [row.text for row in confidence.all("tbody")[0].all("tr")]
    assert (len(rows), rows[5]) == (10, "0.5 to 0.61100%")
    assert "extract.part_s" in page.text
    assert "some/model" in page.text


@pytest.mark.long
def test_a_run_that_is_not_done(job: ManualRun, tmp_path: Path) -> None:
    page = page_of(job, tmp_path / "page.html")
    assert "3 waiting" in page.text
    assert "Nothing failed." in page.text
    assert not page.all("li", class_="sample")
    links = [link.attributes["href"] for link in page.all("nav")[0].all("a")]
    assert links
    assert set(links) <= {f"#{heading.attributes['id']}" for heading in page.all("h2")}
    job.commit("a.wav")
    job.commit("b.wav", last_part=False)
    for seen, rest in (
        (None, "run the same command again to continue."),
        (snapshot(run_id=job.run.run_id, state=STOPPED),
         "run the same command again for the rest."),
    ):  # fmt: skip
        if seen is not None:
            write_snapshot(job.store, seen)
        page = page_of(job, tmp_path / "page.html")
        assert page.all("span", class_="badge")[0].text == "Not running"
        [progress] = page.all("svg", class_="progress")
        assert progress.attributes["aria-label"] == "1 with text, 1 started, 1 waiting"
        assert rest in page.text


def classified(job: ManualRun) -> ManualRun:
    labels = [
        {"window": 0, "start_s": 0.0, "end_s": 30.0, "weight_s": 30.0, "rank": rank, "label": label,
         "probability": probability}
        for rank, label, probability in ((1, "de", 0.7), (2, "nl", 0.2), (3, "en", 0.1))
    ]  # fmt: skip
    means = [{"label": "de", "probability": 0.7}]
    job.begin()
    for name in ("a.wav", "b.wav", "c.wav"):
        job.commit(
            name, segments=None, labels=labels, label_means=means, label_weight_s=30.0
        )  # fmt: skip
    job.finish()
    return job


def test_a_classification_has_labels_in_place_of_text(tmp_path: Path) -> None:
    job = classified(ManualRun(tmp_path, pipeline="classify_audio"))
    page = page_of(job, tmp_path / "page.html")
    assert "Labels" in [heading.text for heading in page.all("h2")]
    sample = page.all("li", class_="sample")[0]
    assert sample.all("blockquote")[0].text == "de 70% · nl 20% · en 10%"


@pytest.mark.long
def test_an_evaluation_is_shown_until_another_version_of_one_is_there(
    job: ManualRun, tmp_path: Path
) -> None:
    job.commit("a.wav")
    group = {"name": "all", "recordings": 3, "words": 1200, "wer": 0.125, "cer": None}
    evaluation = {
        "evaluated_at": "2026-01-02T03:04:05+00:00", "references": "<refs>", "missing": 2,
        "failed": 0, **group, "wer_interval": [0.1, 0.15],
        "by": {"language": [group | {"name": "de", "wer": 0.5}]},
    }  # fmt: skip
    job.store.write_json(EVALUATION_NAME, evaluation)
    page = page_of(job, tmp_path / "page.html")
    [section] = page.all("section", **{"aria-labelledby": "accuracy"})
    rows = [[each.text for each in row.children] for row in section.all("tbody")[0].all("tr")]
    assert rows == [
        ["all", "3", "1,200", "12.5%", "10.0% to 15.0%", "-"],
        ["de", "3", "1,200", "50.0%", "-", "-"],
    ]
    assert "2026-01-02 03:04 UTC against <refs>; references without a finished" in section.text
    assert "WER12.5%of 3 recordings" in page.all("dl", class_="figures")[0].text
    others: list[Any] = [[], {}, {"wer": 1.0}]
    for broken in (*others, evaluation | {"by": [1]}, evaluation | {"words": "<b>"}):
        job.store.write_json(EVALUATION_NAME, broken)
        page = page_of(job, tmp_path / "page.html")
        assert not page.all("section", **{"aria-labelledby": "accuracy"})


@pytest.mark.long
def test_the_command_takes_audio_and_links_from_its_options_or_the_run(
    job: ManualRun, tmp_path: Path
) -> None:
    job.commit("a.wav")
    job.commit("b.wav")
    job.finish()
    page, stale = tmp_path / "page.html", tmp_path / "page.failures.csv"
    stale.write_text("of an earlier run")
    for stored, options, clips, host in (
        ({"embed_audio": False}, [], False, "./source/"),
        ({}, ["--no-audio"], False, "./source/"),
        ({"embed_audio": False, "odd": 1}, [], True, "./source/"),
    ):  # fmt: skip
        config = job.store.read_json(CONFIG_NAME)
        job.store.write_json(CONFIG_NAME, config | {"report": stored})
        done = CliRunner().invoke(app, ["report", job.store.uri, "--html", str(page), *options])
        assert done.exit_code == 0, done.output
        found = parsed(page.read_text())
        # The recordings are none, so that each clip is missing for a reason.
        assert ("No clip: " in found.text) == clips
        assert ("audio is switched off" in found.text) != clips
        links = [each.attributes["href"] for each in found.all("li", class_="sample")[0].all("a")]
        assert links[0].startswith(host)
    assert not stale.exists()


def test_a_page_of_too_many_recordings_is_left_to_the_command(
    job: ManualRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(page_module, "MOST_AT_THE_END", 2)
    with caplog.at_level(logging.WARNING):
        write_page_at_the_end(job.store, 3)
    assert "report --html" in str(caplog.records[-1].__dict__)
    assert not (tmp_path / "output" / PAGE_NAME).exists()


SECRET = "hunter2secret"
ATTACKS = (
    "<script>document.title='owned'</script>",
    "</script></style></title></pre><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "javascript:alert(1)",
    "{{7*7}} ${7*7} $title %(a)s",
    "&lt;b&gt; &amp; &#60;",
    "invoice\u202egpj.exe\u2066\u2069",
    "a\x00b\x07\x1b[31m\x7f\x9b",
    "Z\u0351\u036b\u0343\u036a" * 50,
    "w" * 10_000,
    "\ufffe\uffff",
)
URIS = (
    *(f"/data/{attack.replace(chr(0), '')}" for attack in ATTACKS),
    f"https://user:{SECRET}@host/a.mp3?X-Amz-Signature={SECRET}",
    "https://host/a b\"'<>.mp3",
    "javascript:alert(1)//a.mp3",
    "data:text/html,<script>alert(1)</script>",
    "http://host/" + "x" * 10_000,
)


def hostile_output(folder: Path) -> OutputStore:
    """Write an output whose every text is an attack."""
    store = OutputStore(str(folder))
    rows: list[dict[str, Any]] = []
    for number, uri in enumerate(URIS):
        attack = ATTACKS[number % len(ATTACKS)]
        row = part(f"r{number}", 0, texts=[attack, attack], uri=uri, language=attack)
        for segment in row["segments"]:
            segment |= {"confidence": 0.1, "language": attack}
        row["segments"][1]["words"] = [
            {"word": f" {attack}", "start_s": 0.0, "end_s": 1.0, "probability": 0.1}
        ] * 300
        row["segments"][0]["words"] = [
            {"word": "\u0e33", "start_s": 0.0, "end_s": 1.0, "probability": 0.1}
        ] * 300  # signs that are one letter with whatever stands before them
        rows.append(row | {"decode_s": 1.0, "transcribe_s": 1.0, "device": attack})
        rows.append(
            part(f"f{number}", 0, texts=None, uri=f"{uri}.failed", status="failed")
            | {"error_stage": attack, "error_kind": attack, "retryable": False}
            | {"error_message": f"{attack} at https://u:{SECRET}@h/x?sig={SECRET}"}
        )
    commit(store, results(*rows), run_id=ATTACKS[0])
    config = {
        "model": {"checkpoint": ATTACKS[1]},
        "decoding": {f"key{number}": attack for number, attack in enumerate(ATTACKS)},
        "source": {"uri": f"s3://user:{SECRET}@bucket/x"},
        "report": {"embed_audio": False},
    }
    store.write_json(CONFIG_NAME, config)
    store.write_json("_run/fingerprint.json", {"fingerprint": f"x-{ATTACKS[0]}"})
    return store


def test_attacks_stay_text(tmp_path: Path) -> None:
    store = hostile_output(tmp_path / "output")
    write_page(store, str(tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text("utf-8")
    page = parsed(html)
    assert (len(page.all("script")), len(page.all("style")), page.all("img")) == (1, 1, [])
    for each in page.everything():
        names = [name for name in each.attributes if name.startswith("on")]
        assert not names, each
        assert not {"style", "src"} & set(each.attributes), each
    links = [each.attributes["href"] for each in page.all("a")]
    assert links
    assert [link for link in links if not re.match(r"(#|\./|https?://)", link)] == []
    assert not [link for link in links if re.search('[\\s"<>]', link)]
    assert SECRET not in html
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", html
    )
    assert ATTACKS[0] in page.text
    assert len(page.all("wbr")) > 300
    assert "invoice[U+202E]gpj.exe" in page.text
    assert "{{7*7}} ${7*7} $title" in page.text
    assert len(html.encode()) < 250_000


def test_what_hides_or_reorders_text_is_shown():
    assert (
        visible("a\x00b\x1b[0m\x7f\x85\ud800\n\tc\r\n")
        == "a\u2400b\u241b[0m\u2421\ufffd\ufffd\n\tc\n"
    )
    assert visible("invoice\u202egpj.exe\u2069") == "invoice[U+202E]gpj.exe[U+2069]"
    hebrew = "\u05e9\u05dc\u05d5\u05dd\u200f!"
    assert visible(hebrew) == hebrew


def test_links_lead_to_http_and_to_files_beside_the_page() -> None:
    for uri, target in (
        ("https://host/a b%20c.mp3?v=1", "https://host/a%20b%20c.mp3?v=1"),
        ("/data/in/x:y#z?.wav", "./../in/x:y%23z%3F.wav"),
        ("/data/page/a.wav", "./a.wav"),
        ("s3://bucket/a.wav", None),
        ("javascript://host/%0Aalert(1)", None),
    ):
        assert link(uri, folder="/data/page")[1] == target, uri
    assert link("/data/a.wav", folder=None)[1] is None


def test_a_sample_of_many_words_ends() -> None:
    words = ((" word", 0.1), *((f" w{number:03}", 0.9) for number in range(900)))
    sample = Sample(
        recording_id="r",
        channel=None,
        uri="/a",
        start_s=0.0,
        end_s=1.0,
        text="",
        language=None,
        confidence=0.5,
        words=words,
    )
    shown, left_out = sample_words(sample)
    assert (shown[0], shown[-1], left_out) == ((" word", 0.1), (" w148", 0.9), 751)


def test_texts_are_cut_in_the_middle_and_lose_their_secrets() -> None:
    assert cut("a" * 10, 10) == "a" * 10
    assert cut("a" * 200 + "b" * 200, 30) == "a" * 20 + " … " + "b" * 10
    assert "secret" not in message("reading s3://u:secret@b/k and http://h/x?token=secret")
    assert message("decoding /a.wav: not audio", of="/a.wav") == "not audio"
    assert message("the store said no", of="/a.wav") == "the store said no"
