"""Texts of any origin come in as text or are refused in words, and go out as text.

Each text stands for an attack: on what cannot be written, on lines, on terminals, on markup, on
templates, on memory. Which hosts addresses may lead to is tested in `tests/storage`, what browsers
make of pages in `tests/report` and `tests/view`.
"""

import csv
import io
import json
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webvtt

from corpus_asr.audio.decode import open_audio
from corpus_asr.cli.inputs import inputs_of
from corpus_asr.config.load import load_config
from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import MAX_MESSAGE_CHARACTERS, CorpusAsrError, ItemError
from corpus_asr.export.recordings import Selection
from corpus_asr.export.write import ExportOptions, export
from corpus_asr.formats.options import ExportFormat
from corpus_asr.formats.transcript import Transcript
from corpus_asr.logs import MAX_TEXT_CHARACTERS, LogFormat, LogLevel, LogSettings, configure, event
from corpus_asr.report import run as report
from corpus_asr.report import status
from corpus_asr.report.page import write_page
from corpus_asr.report.text import print_transcript
from corpus_asr.stages.parts import failure_fields
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import read_bytes
from corpus_asr.storage.stores.uri import normalize, recording_id, redact_uri
from tests.support.audio import tone, wav_bytes
from tests.support.pages import asked, fetch, parsed
from tests.support.tables import commit, part, results, rows_of, segment, stored_segments
from tests.view.conftest import serving

HOSTILE = {
    "surrogates": "half \ud800 a byte \udcff",
    "null": "nul\0l",
    "bidirectional": "invoice\u202egpj.exe\u2066\u2069\u200f",
    "lines": "one\r\n\r\n2\n00:00:00,000 --> 00:00:09,000\nno cue\u2028two\u2029\x85three\v\f",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\b",
    "markup": "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"'",
    "templates": "{{7*7}} ${7*7} %(a)s %s {0} <!--",
    "megabyte": "long " * 210_000,
}
WRITABLE = {name: text for name, text in HOSTILE.items() if name != "surrogates"}
ON_TERMINALS = set("\x1b\x07\x9b\x7f\b\u202e\u2066\u2028\u2029\x85\r\v\f\0")
LONGEST_REFUSAL = 10_000  # characters; a text may be in it twice


def taken(door: Callable[[str], Any], text: str) -> Any:
    """Return what becomes of a text, None where it is refused; in both cases UTF-8 can write it."""
    try:
        found = door(text)
    except CorpusAsrError as error:
        message = str(error)
        assert len(message) < LONGEST_REFUSAL, message[:200]
        message.encode()
        return None
    json.dumps(found, ensure_ascii=False).encode()
    return found


def listed(text: str, folder: Path) -> list[str]:
    try:
        (folder / text).write_bytes(b"sound")
    except (OSError, ValueError):  # no file can be called so
        return []
    return [
        row["uri"]
        for batch in FileListing(SourceSettings(uri=(str(folder),)))
        for row in batch.to_pylist()
    ]


def of_yaml(text: str, folder: Path) -> list[Any]:
    """Load jobs with the text in one place of each."""
    found = []
    for section, key in (("source", "uri"), ("output", "uri"), ("model", "checkpoint"),
                         ("source", "exclude"), ("decoding", "language"), (text, "uri"),
                         ("source", text)):  # fmt: skip
        values = {"source": {"uri": "/in"}, "output": {"uri": "/out"}, "model": {"checkpoint": "m"}}
        values.setdefault(section, {})[key] = text
        path = folder / "job.yaml"
        path.write_text(json.dumps({"pipeline": "transcribe_corpus", **values}))
        found.append(taken(lambda name: load_config(name).model_dump(mode="json"), str(path)))
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_at_every_entrance_it_is_text_or_refused_in_words(name: str, tmp_path: Path) -> None:
    text = HOSTILE[name]
    for address in (text, f"s3://b/{text}", f"https://h/{text}", f"/{text}", f"{text}://h/a"):
        uri = taken(normalize, address)
        if uri is not None:
            redact_uri(uri).encode()
            assert len(recording_id(uri)) == 16
    for uri in listed(text, tmp_path):
        assert read_bytes(uri) == b"sound"
        (named,) = inputs_of([f"{tmp_path}/{text}"]).found
        assert (named.uri, named.name.encode().decode()) == (uri, named.name)
    assert [len(problem) < LONGEST_REFUSAL for problem in inputs_of([f"/no/{text}"]).problems] == [
        True
    ]
    of_yaml(text, tmp_path)
    for error in (ItemError(text), ValueError(text), OSError(5, text, text)):
        message = failure_fields(error, stage="extract")["error_message"]
        assert len(message.encode()) < 4 * MAX_MESSAGE_CHARACTERS


@pytest.mark.parametrize("name", HOSTILE)
def test_titles_of_containers_change_nothing(name: str) -> None:
    samples = tone(0.5)
    plain = wav_bytes(samples, rate_hz=16_000)
    title = HOSTILE[name].encode("utf-8", "surrogateescape" if name == "null" else "replace")
    if name == "surrogates":
        title = b"half \xed\xa0\x80 a byte \xff"
    title += b"\0" * (len(title) % 2)
    listing = b"INFOINAM" + struct.pack("<I", len(title)) + title
    tagged = plain + b"LIST" + struct.pack("<I", len(listing)) + listing
    tagged = tagged[:4] + struct.pack("<I", len(tagged) - 8) + tagged[8:]
    with open_audio(io.BytesIO(tagged), uri="a.wav") as decoder:
        assert sum(chunk.shape[1] for chunk in decoder) == samples.shape[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> OutputStore:
    """A run of recordings and failures whose every text is hostile."""
    store = OutputStore(str(tmp_path_factory.mktemp("run") / "output"))
    rows = []
    for name, text in WRITABLE.items():
        address = f"/data/{name}/{text.replace(chr(0), '')[:4_000]}"
        said = part("", 0, uri=address, texts=[text, " End."], language="en", metadata=text)
        said["segments"][0]["words"] = [
            {"word": f" {text[:200]}", "start_s": 0.0, "end_s": 1.0, "probability": 0.1}
        ]
        failed = part("", 0, uri=f"{address}.failed", texts=None, status="failed")
        failed |= failure_fields(ItemError(text, kind=text[:100]), stage="extract")
        rows += [said, failed]
    commit(store, results(*rows))
    config = {"model": {"checkpoint": "m"}, "source": {"uri": "/data"}}
    store.write_json(CONFIG_NAME, config | {"report": {"embed_audio": False}})
    return store


def uri_of(store: OutputStore, name: str) -> str:
    rows = rows_of(store.outcomes(["uri", "status"]))
    uris = [row["uri"] for row in rows if row["status"] == "ok"]
    (uri,) = [uri for uri in uris if uri.startswith(f"/data/{name}/")]
    return uri


def test_tables_hold_it_as_it_was(store: OutputStore) -> None:
    texts = {row["text"] for row in rows_of(stored_segments(store, ["text"]))}
    assert texts == {*WRITABLE.values(), " End."}
    assert {row["metadata"] for row in rows_of(store.outcomes(["metadata"]))} >= {
        *WRITABLE.values()
    }


@pytest.mark.long
def test_what_a_terminal_shows_does_nothing_to_it(
    store: OutputStore, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report.load_report(store)
    seen = status.load_status(store)
    shown = [report.render(found), status.render(seen)]
    for name, text in WRITABLE.items():
        transcript = Transcript(
            uri=uri_of(store, name), segments=(segment(text, 0.0, 1.0),), language="en",
            language_probability=None, duration_s=1.0,
        )  # fmt: skip
        print_transcript(transcript)
        shown.append(capsys.readouterr().out)
        assert shown[-1].count("\n") == 2
    for text in shown:
        assert not ON_TERMINALS & set(text), sorted(ON_TERMINALS & set(text))
    for data in (report.as_data(found), status.as_data(seen)):
        assert len(json.dumps(data, allow_nan=False)) < 300_000


def test_a_line_of_a_log_stays_one(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("corpus_asr.tests")
    for kind in LogFormat:
        configure(LogSettings(format=kind, level=LogLevel.info), redact=lambda text: text)
        for text in HOSTILE.values():
            event(log, logging.ERROR, "failed", uri=text, values=[text, {text[:9]: text}])
            log.warning("removed %s", text)
            try:
                raise ValueError(text)
            except ValueError as error:
                log.error("caught %s", "it", exc_info=error)
        written = capfd.readouterr().err
        assert not (ON_TERMINALS - {"\r"}) & set(written)
        lines = written.split("\n")[:-1]
        assert max(map(len, lines)) <= 4 * MAX_TEXT_CHARACTERS
        if kind is LogFormat.json:
            assert len(lines) == 3 * len(HOSTILE)
            assert all(isinstance(json.loads(line), dict) for line in lines)


def test_files_hold_one_cue_and_one_line_for_each_segment(
    store: OutputStore, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    needy = {ExportFormat.rttm, ExportFormat.ctm}  # of speakers, and of times of words
    formats = tuple(each for each in ExportFormat if each not in needy)
    export(store, str(to), ExportOptions(formats=formats), Selection())
    made = [path for path in to.rglob("*") if path.is_file()]
    assert len(made) == len(WRITABLE) * len(formats)
    for path in made:
        assert path.resolve().is_relative_to(to)
        assert not ON_TERMINALS & set(str(path))
        text = path.read_text("utf-8")
        match path.suffix:
            case ".csv":
                csv.field_size_limit(max(csv.field_size_limit(), len(text)))
                rows = csv.reader(io.StringIO(text, newline=""))
                assert [len(row) for row in rows] == [4, 4, 4]
            case ".html":
                assert parsed(text).all("script") == parsed(text).all("img") == []
            case ".vtt":
                assert len(webvtt.from_string(text).captions) >= 2
            case ".srt":
                assert text.count("-->") >= 2
            case ".txt":
                assert len(text.splitlines()) == 2, path
            case ".tsv":
                assert [row.count("\t") for row in text.splitlines()] == [2, 2, 2]
            case ".json":
                json.loads(text)
            case ".jsonl":
                assert [len(json.loads(line)) for line in text.split("\n")[:-1]] == [5, 5]


def test_a_page_is_bounded_and_holds_no_more_markup(store: OutputStore, tmp_path: Path) -> None:
    write_page(store, str(tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text("utf-8")
    page = parsed(html)
    assert (len(page.all("script")), page.all("img")) == (1, [])
    assert "49" not in [each.text for each in page.everything() if each.tag == "td"]
    assert len(html) < 1_000_000


@pytest.fixture(scope="module")
def viewer(store: OutputStore) -> Iterator[str]:
    with serving(store) as server:
        yield server.url


@pytest.mark.parametrize("name", WRITABLE)
def test_the_viewer_gives_it_as_data(viewer: str, store: OutputStore, name: str) -> None:
    uri = uri_of(store, name)
    identity = recording_id(uri)
    for what, parameters in (
        ("api/recording", {"id": identity}),
        ("api/segments", {"id": identity}),
        ("api/recordings", {"name": HOSTILE[name][:100]}),
        ("api/search", {"q": "end"}),  # each hit comes with the text before it
    ):
        answer = fetch(asked(viewer, what, **parameters))
        assert answer.status in (200, 400), what
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        json.loads(answer.body)
    saved = fetch(asked(viewer, "saved", id=identity, format="vtt"))
    assert saved.status == 200
    assert len(webvtt.from_string(saved.body.decode()).captions) >= 2
    disposition = saved.headers["Content-Disposition"]
    assert disposition.startswith("attachment; ")
    assert disposition.isascii()
    assert disposition.isprintable()
