"""Exports of running, killed and finished outputs: complete, once, bounded, under their names."""

import csv
import json
import os
import re
import unicodedata
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.edits.corrected_segments import SeenSegments
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.export.recordings import Selection, open_selection, recordings
from corpus_asr.export.speakers import name_speaker, read_segments, register_segments
from corpus_asr.export.write import ExportOptions, distinct_names, export
from corpus_asr.formats.options import ExportFormat, WordStyle
from corpus_asr.report.run import load_report
from corpus_asr.report.scoring import read_references
from corpus_asr.runtime.complete_recordings import find_speakers_of_run
from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.run_tables import MEMORY_VARIABLE
from corpus_asr.storage.run_state.table_names import TABLES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import read_bytes
from corpus_asr.storage.stores.uri import recording_id, within
from tests.support.runs import correct_segment, finished, says
from tests.support.tables import commit, part, results


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path / "output"))


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "files"


def options(*formats: str, **values: Any) -> ExportOptions:
    return ExportOptions(formats=tuple(ExportFormat(each) for each in formats), **values)


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(index: int, *words: str) -> list[dict[str, Any]]:
    """Segments with times within their part."""
    return [
        {"segment": at, "text": f" {word}", "start_s": 10.0 * index + at,
         "end_s": 10.0 * index + at + 1, "language": "en", "confidence": 0.5 + 0.1 * at,
         "tokens": [1]}
        for at, word in enumerate(words)
    ]  # fmt: skip


def transcribed(
    name: str, index: int, *words: str, last: bool = True, **values: Any
) -> dict[str, Any]:
    return part(name, index, texts=None, last=last, segments=rows(index, *words), language="en",
                **values)  # fmt: skip


def add(store: OutputStore, *rows: dict[str, Any]) -> str:
    return commit(store, results(*rows))


def exported(store: OutputStore, to: Path, *formats: str, **selection: Any) -> dict[str, str]:
    export(store, str(to), options(*formats or ("txt",)), Selection(**selection))
    return texts(to)


def test_what_was_committed_twice_is_there_once_and_new_content_replaces_old(
    store: OutputStore, to: Path
) -> None:
    add(store, transcribed("a.wav", 0, "one", "two"), transcribed("b.wav", 0, "b"))
    add(store, transcribed("c.wav", 0, "c"), transcribed("a.wav", 0, "again", "and", "more"))
    assert exported(store, to) == {"a.txt": "one\ntwo\n", "b.txt": "b\n", "c.txt": "c\n"}
    add(store, part("d.wav", 0, texts=None, status="failed"))
    add(store, transcribed("a.wav", 0, "new", etag="v2"), transcribed("d.wav", 0, "d"))
    store.remove(add(store, transcribed("e.wav", 0, "removed")))
    assert exported(store, to) == {
        "a.txt": "new\n", "b.txt": "b\n", "c.txt": "c\n", "d.txt": "d\n",
    }  # fmt: skip


def test_what_is_unfinished_failed_or_silent_is_told(store: OutputStore, to: Path) -> None:
    add(
        store,
        transcribed("half.wav", 0, "half", last=False),
        part("bad.wav", 0, texts=None, status="failed"),
        part("quiet.wav", 0, texts=None, status="no_speech"),
        transcribed("partly.wav", 0, "partly", last=False),
        part("partly.wav", 1, texts=None, status="failed"),
    )
    summary = export(store, str(to), options("txt"), Selection())
    assert texts(to) == {"quiet.txt": "", "partly.txt": "partly\n"}
    assert (summary.failed, summary.unfinished, summary.partly_failed) == (1, 1, 1)
    summary = export(store, str(to), options("txt"), Selection(uris=("*partly*",)))
    assert (summary.failed, summary.unfinished, summary.partly_failed) == (0, 0, 1)
    summary = export(store, str(to), options("txt"), Selection(uris=("*a*.wav",)))
    assert (summary.failed, summary.unfinished, summary.partly_failed) == (1, 1, 1)
    summary = export(store, str(to), options("txt"), Selection(partial=True))
    assert texts(to)["half.txt"] == "half\n"
    assert summary.unfinished == 0


def test_the_model_is_that_of_the_texts_and_not_of_the_last_settings(
    store: OutputStore, to: Path
) -> None:
    commit(store, results(transcribed("a.wav", 0, "one")), model="whisper-tiny.en")
    commit(store, results(transcribed("b.wav", 0, "two", last=False)), model="whisper-base")
    commit(store, results(transcribed("b.wav", 1, "three")), model="/models/own")
    add(store, part("quiet.wav", 0, texts=None, status="no_speech"))
    store.write_json(CONFIG_NAME, {"model": {"checkpoint": "whisper-base"}})
    export(store, str(to), options("json", "md"), Selection())
    models = {path.name: json.loads(path.read_text())["model"] for path in to.glob("*.json")}
    both = "whisper-base, /models/own"
    assert models == {"a.json": "whisper-tiny.en", "b.json": both, "quiet.json": None}
    assert "whisper-tiny.en" in (to / "a.md").read_text()
    assert both in (to / "b.md").read_text()
    assert load_report(store).model == "/models/own, whisper-base, whisper-tiny.en"


def test_a_finished_output_says_the_same(store: OutputStore, to: Path) -> None:
    words = {name: [f"{name}{at}" for at in range(3)] for name in "abcdef"}
    for name in words:
        add(store, transcribed(f"{name}.wav", 1, *words[name][1:]))
    add(store, *(transcribed(f"{n}.wav", 0, words[n][0], last=False) for n in words))
    add(store, transcribed("a.wav", 1, "again"), transcribed("b.wav", 1, "again"))
    before = exported(store, to / "before")
    finished(store, *(f"{name}.wav" for name in words))
    assert len(store.commit_names()) == 1
    expected = {f"{name}.txt": "".join(f"{w}\n" for w in words[name]) for name in words}
    assert before == exported(store, to / "after") == expected


def test_segments_and_recordings_are_chosen(store: OutputStore, to: Path) -> None:
    (ja,) = (row | {"language": "de"} for row in rows(0, "ja"))
    both = [*rows(0, "yes"), ja | {"segment": 1}]
    # Null: written before there was such a column.
    marks = zip(rows(0, "a", "b", "c"), (None, True, False), strict=True)
    marked = [row | {"known_hallucination": mark} for row, mark in marks]
    add(
        store,
        part("x/de.mp3", 0, texts=None, segments=[ja]),
        part("x/en.wav", 0, texts=None, segments=marked),
        part("y/both.mp3", 0, texts=None, segments=both),
    )
    german = exported(store, to / "1", languages=("German",))
    assert german == {"x/de.txt": "ja\n", "y/both.txt": "ja\n"}
    assert set(exported(store, to / "2", uris=("*.mp3", "*none*"))) == {"x/de.txt", "y/both.txt"}
    assert exported(store, to / "3", min_confidence=0.65)["x/en.txt"] == "c\n"
    assert exported(store, to / "4")["x/en.txt"] == "a\nb\nc\n"
    assert exported(store, to / "5", drop_known_hallucinations=True)["x/en.txt"] == "a\nc\n"
    measured = zip(rows(0, "d", "e", "f"), (None, 3.0, 4.0), strict=True)
    scored = [row | {"snr_db": snr_db} for row, snr_db in measured]
    add(store, part("z/noisy.wav", 0, texts=None, segments=scored))
    assert exported(store, to / "6", min_snr_db=3.5)["z/noisy.txt"] == "d\nf\n"
    assert exported(store, to / "7", min_snr_db=3.0)["z/noisy.txt"] == "d\ne\nf\n"
    assert exported(store, to / "8", min_snr_db=5.0)["x/en.txt"] == "a\nb\nc\n", "not measured"
    for wrong in ({"languages": ("klingon",)}, {"min_confidence": 2.0},
                  {"min_confidence": float("nan")}):  # fmt: skip
        with pytest.raises(ConfigError):
            Selection(**wrong)


def test_json_has_whispers_and_whisperxs_shape_and_nemo_reads_lines(
    store: OutputStore, to: Path
) -> None:
    words = [{"word": " one", "start_s": 0.0, "end_s": 0.5, "probability": 0.25},
             {"word": " two", "start_s": 0.5, "end_s": 1.0, "probability": 1 / 3}]  # fmt: skip
    segment = rows(0, "one two")[0] | {
        "words": words, "temperature": 0.2, "avg_logprob": -0.1, "compression_ratio": 1.2,
        "no_speech_prob": None,
    }  # fmt: skip
    add(store, part("a.wav", 0, texts=None, segments=[segment], language="en", channel=1))
    export(store, str(to), options("json", "whisperx", "nemo"), Selection())
    found = json.loads((to / "a.json").read_text())
    assert list(found) == [
        "text", "segments", "language", "duration", "uri", "model", "version",
    ]  # fmt: skip
    assert (found["uri"], found["duration"]) == ("/a.wav", 10.0)
    assert found["version"] == f"corpus-asr {version('corpus-asr')}"
    # As openai/whisper's transcribe() returns them, but for `seek`.
    assert list(found["segments"][0]) == [
        "id", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
        "no_speech_prob", "confidence", "language", "speech_fraction", "known_hallucination",
        "task", "words",
    ]  # fmt: skip
    assert found["segments"][0]["temperature"] == 0.2
    assert found["segments"][0]["words"][1] == {
        "word": " two", "start": 0.5, "end": 1.0, "probability": 0.333333,
    }  # fmt: skip
    speaker = {"speaker": "CHANNEL_01"}
    scored = [
        {"word": "one", "start": 0.0, "end": 0.5, "score": 0.25, **speaker},
        {"word": "two", "start": 0.5, "end": 1.0, "score": 0.333333, **speaker},
    ]
    assert json.loads((to / "a.whisperx.json").read_text()) == {
        "segments": [{"start": 0.0, "end": 1.0, "text": "one two", "words": scored, **speaker}],
        "word_segments": scored,
        "language": "en",
    }
    (line,) = (to / "a.nemo.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "audio_filepath": "/a.wav", "offset": 0.0, "duration": 1.0, "text": "one two", "lang": "en",
    }  # fmt: skip
    (read,) = read_references(str(to / "a.nemo.jsonl")).values()  # it is a manifest
    assert (read.uri, read.text, read.spans, read.language) == (
        "/a.wav",
        "one two",
        ((0, 1),),
        "en",
    )


@pytest.mark.parametrize("folder", ["local", "memory://export-single"])
def test_all_recordings_in_one_file(folder: str, store: OutputStore, tmp_path: Path) -> None:
    to = str(tmp_path / folder) if folder == "local" else folder
    add(store, transcribed("b.wav", 0, "b\t1\n", "2"), transcribed("a,\n.wav", 0, "a"))
    asked = options("txt", "tsv", "json", "whisperx", "nemo", single=True)
    summary = export(store, to, asked, Selection())
    assert (summary.files, summary.recordings) == (5, 2)
    read = OutputStore(to)
    tsv = pd.read_csv(
        pa.BufferReader(read_bytes(read.address("transcripts.tsv"))), sep="\t", quoting=3
    )
    assert tsv.to_dict("list") == {
        "uri": ["/a, .wav", "/b.wav", "/b.wav"], "start": [0, 0, 1000], "end": [1000, 1000, 2000],
        "text": ["a", "b 1", "2"],
    }  # fmt: skip
    lines = read_bytes(read.address("transcripts.jsonl")).splitlines()
    assert [json.loads(line)["uri"] for line in lines] == ["/a,\n.wav", "/b.wav"]
    assert len(read_bytes(read.address("transcripts.nemo.jsonl")).splitlines()) == 3
    assert len(read_bytes(read.address("transcripts.whisperx.jsonl")).splitlines()) == 2
    assert read_bytes(read.address("transcripts.txt")) == b"a\nb\t1\n2\n"


def test_what_cannot_be_exported_is_refused(store: OutputStore, tmp_path: Path, to: Path) -> None:
    for formats, values in ((("srt",), {"single": True}),
                            (("lrc", "vtt"), {"words": WordStyle.highlight})):  # fmt: skip
        with pytest.raises(ConfigError, match="expected"):
            options(*formats, **values)
    with pytest.raises(ConfigError, match="found an http URL"):
        export(store, "https://example.org/x", options("txt"), Selection())
    with pytest.raises(ConfigError, match="found neither outcomes nor _run/"):
        exported(OutputStore(str(tmp_path)), to)
    label = {"window": 0, "start_s": 0.0, "end_s": 1.0, "rank": 1, "label": "en"}
    add(store, part("a.wav", 0, texts=None, labels=[label]))
    for read in (partial(exported, to=to), lambda labelled: read_segments(labelled.uri)):
        with pytest.raises(
            ConfigError, match="found labels/ of a classification, expected segments"
        ):
            read(store)


@pytest.mark.parametrize("change", ["fewer", "others"])
def test_segments_that_are_not_what_the_outcomes_say_are_noticed(
    store: OutputStore, to: Path, change: str
) -> None:
    add(store, transcribed("a.wav", 0, "one", "two"), transcribed("b.wav", 0, "b"))
    finished(store, "a.wav", "b.wav")
    [name] = store.names("segments")
    table = store.read_table(name, SEGMENTS)
    store.write_table(name, table.take([2, 0, 1]) if change == "others" else table.slice(0, 2))
    with pytest.raises(CorpusAsrError, match="expected the 3 of outcomes/"):
        export(store, str(to), options("txt"), Selection())


@pytest.mark.long
def test_more_segments_than_memory_holds_come_in_the_order_of_recordings_and_time(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 100)
    sizes[17] = 400
    parts = [(f"{at:03d}.wav", index) for at in range(100) for index in range(sizes[at] // 3 + 1)]
    expected = {f"/{name}": 0 for name, _ in parts}
    for some in np.array_split(rng.permutation(parts), 20):
        add(store, *(
            transcribed(name, int(index), *["word " * 800] * 30, last=(name, int(index) + 1)
                        not in parts)
            for name, index in some.tolist()
        ))  # fmt: skip
        for name, _ in some.tolist():
            expected[f"/{name}"] += 30
    monkeypatch.setattr("corpus_asr.export.recordings.RECORDINGS_AT_ONCE", 30)
    monkeypatch.setenv(MEMORY_VARIABLE, "96")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spilled"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "spilled").mkdir()
    with open_selection(store, Selection()) as tables:
        found = list(recordings(SeenSegments(store, tables), tables, Selection()))
        assert list((tmp_path / "spilled").rglob("*.tmp"))
    assert [(each.uri, len(each.segments)) for each in found] == sorted(expected.items())
    for each in found:
        assert [segment.start_s for segment in each.segments] == sorted(
            10.0 * index + at for index in range(len(each.segments) // 30) for at in range(30)
        )
    assert not list((tmp_path / "spilled").iterdir())


def test_the_command_writes_files_and_says_so(store: OutputStore, to: Path) -> None:
    add(store, transcribed("a.wav", 0, "one"), transcribed("half.wav", 0, "half", last=False))
    done = CliRunner().invoke(
        cli.app,
        ["export", store.uri, "--to", os.fspath(to), "--format", "srt", "--format", "vtt",
         "--set", "max_line_width=42", "--set", "max_line_count=2"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout == (f"{to}: 1 recording, 1 segment in 2 files\nomitted: 1 not done yet\n")
    assert (to / "a.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,000\none\n\n"
    wrong = ["export", store.uri, "--to", str(to), "--format", "srt", "--set", "max_line_count=2",
             "--subtitle-preset", "None"]  # fmt: skip
    done = CliRunner().invoke(cli.app, wrong)
    assert done.exit_code == 2
    assert "max_line_count without max_line_width" in done.stderr


def test_readers_name_segments_that_are_gone_and_whose_they_are(
    store: OutputStore, to: Path
) -> None:
    commit(store, results(transcribed("a.wav", 0, "two"), transcribed("b.wav", 0, "three")))
    finished(store, "a.wav", "b.wav")
    [name], [outcomes] = store.names("segments"), store.names("outcomes")
    Path(store.address(name)).unlink()
    [cli_show, cli_export] = [
        CliRunner().invoke(cli.app, [command, store.uri, *words])
        for command, words in (("show", ()), ("export", ("--to", str(to), "--format", "txt")))
    ]
    words = (
        f"found no {name}, expected it with the other tables; restore it, or remove {outcomes} and "
        f"{TABLES_NAME}, and run the job again"
    )
    for done in (cli_show, cli_export):
        assert done.exit_code == 3, done.output
        assert words in done.stderr
    with pytest.raises(CorpusAsrError, match=re.escape(words)):
        read_segments(store.uri)
    for removed in (outcomes, TABLES_NAME):
        Path(store.address(removed)).unlink()
    commit(store, results(transcribed("a.wav", 0, "again"), transcribed("b.wav", 0, "again")))
    finished(store, "/a.wav", "/b.wav")
    assert read_segments(store.uri).num_rows == 2


@pytest.mark.long
def test_segments_are_read_as_people_corrected_them_unless_the_models_are_asked_for(
    store: OutputStore,
) -> None:
    segments = rows(0, "one", "two", "tree")
    word = {"word": " tree", "start_s": 2.0, "end_s": 2.5, "probability": 0.5}
    segments[2]["words"] = [word]
    add(store, part("a.wav", 0, texts=None, segments=segments, language="en"))
    add(store, transcribed("b.wav", 0, "one more"))
    as_it_is = read_segments(store.uri, corrected=False)
    assert read_segments(store.uri).select(as_it_is.schema.names).equals(as_it_is)
    correct_segment(store, "one", "won")
    correct_segment(store, "two", "")  # nobody speaks there
    correct_segment(store, "tree", "three")
    model, people = read_segments(store.uri, corrected=False), read_segments(store.uri)
    assert model["text"].to_pylist() == [" one", " two", " tree", " one more"]
    assert people["text"].to_pylist() == [" one more", " won", " three"]
    assert people["original"].to_pylist() == [None, " one", " tree"]
    assert people["checked"].to_pylist() == people["corrected"].to_pylist() == [False, True, True]
    assert people["confidence"].to_pylist()[1:] == [1.0, 1.0]
    corrected = [{**word, "word": " three", "probability": 1.0}]
    assert people["words"][2].as_py() == corrected
    with duckdb.connect() as database:
        for _ in range(2):  # another time replaces it
            register_segments(store.uri, database, table="what is said")
        assert database.table('"what is said"').to_arrow_table().equals(people)
    says(store, model["uri"][0].as_py(), (0.0, 9.0, "S1"))
    spoken = read_segments(store.uri, speakers=True)
    assert spoken["text"].to_pylist() == [" one more", " won", " three"]
    assert spoken["speaker"].to_pylist() == [None, "S1", "S1"]
    # A person said who it is: by a label, which has a name, or by a name.
    name_speaker(store, model["uri"][0].as_py(), "S2", "Ada", seen="")
    says(store, model["uri"][0].as_py(), (0.0, 9.0, "S1"), (9.0, 9.5, "S2"))
    correct_segment(store, "one", "won", speaker="S2")
    correct_segment(store, "tree", "three", speaker="Bob")
    spoken = read_segments(store.uri, speakers=True)
    assert spoken["speaker"].to_pylist() == [None, "Ada", "Bob"]
    exported = CliRunner().invoke(cli.app, ["show", store.uri, "--speaker", "Ada"]).stdout
    assert "won" in exported
    assert "three" not in exported
    # By a name that only an edit has, also in a run that looked for nobody.
    for _ in range(2):
        exported = CliRunner().invoke(cli.app, ["show", store.uri, "--speaker", "Bob"]).stdout
        assert "three" in exported
        assert "won" not in exported
        store.remove_all(store.names("speakers"))
    for words in (["Bo"], ["Bob", "--no-corrections"]):
        refused = CliRunner().invoke(cli.app, ["show", store.uri, "--speaker", *words])
        assert refused.exit_code == 2, words


@pytest.mark.long
def test_what_people_corrected_is_written_unless_the_models_text_is_asked_for(
    store: OutputStore, to: Path
) -> None:
    add(store, transcribed("a.wav", 0, "one", "two", "three", "for", last=False))
    correct_segment(store, "one", "won", name="Anna")
    correct_segment(store, "two", "two")
    correct_segment(store, "three", "")  # nobody speaks there
    # A part is transcribed again after all, and so is another recording: the work is kept.
    add(store, transcribed("a.wav", 1, "five"), part("b.wav", 0, texts=None, status="failed"))
    add(store, transcribed("b.wav", 0, "six"))
    assert exported(store, to) == {"a.txt": "won\ntwo\nfor\nfive\n", "b.txt": "six\n"}
    # A person's word is as good as can be, whatever the model thought of its own.
    assert exported(store, to, min_confidence=0.9)["a.txt"] == "won\ntwo\n"
    export(store, str(to), options("srt", "json"), Selection(uris=("*a.wav",)))
    found = texts(to)
    assert "won" in found["a.srt"]
    segments = json.loads(found["a.json"])["segments"]
    assert [each.get("corrected") for each in segments] == [True, True, None, None]
    arguments = ["export", store.uri, "--to", str(to), "--format", "txt"]
    done = CliRunner().invoke(cli.app, arguments)
    assert "; 2 segments corrected or checked by people" in done.stdout
    done = CliRunner().invoke(cli.app, [*arguments, "--no-corrections"])
    assert "by people" not in done.stdout
    assert texts(to)["a.txt"] == "one\ntwo\nthree\nfor\nfive\n"
    for flags, words in (([], ("won", "for")), (["--no-corrections"], ("one", "three"))):
        shown = CliRunner().invoke(cli.app, ["show", store.uri, *flags]).stdout
        assert all(word in shown for word in words)
    # What is said of a segment that has changed is reported and not applied.
    add(store, transcribed("a.wav", 0, "once", etag="v2"))
    done = CliRunner().invoke(cli.app, arguments)
    assert texts(to)["a.txt"] == "once\n"
    assert "not applied: 2 corrections that do not fit the transcript" in done.stdout


def test_hits_are_written_by_the_query_of_the_guide(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add(store, part("speeches/a.wav", 0, texts=[" My contry.", " No."], language="en"))
    add(store, transcribed("songs/b.wav", 0, "My country."))
    correct_segment(store, "My contry.", "My country.")
    guide = (GUIDES / "viewing.md").read_text(encoding="utf-8")
    query = guide.partition("-- hits of a search\n")[2].partition("```")[0]
    with duckdb.connect() as database:
        register_segments(store.uri, database)
        database.sql(query)
    [hit] = csv.DictReader(Path("hits.csv").read_text(encoding="utf-8").splitlines())
    assert (hit["uri"].rpartition("/")[2], hit["text"].strip()) == ("a.wav", "My country.")
    assert hit["corrected"] == "true"


def test_another_folder_is_not_read_as_a_run_without_segments(tmp_path: Path) -> None:
    with duckdb.connect() as database:
        database.execute("create table segments as select 'kept' as text")
        for read in (read_segments, partial(register_segments, database=database)):
            with pytest.raises(ConfigError, match="expected the output folder of a run"):
                read(str(tmp_path / "outt"))
        assert database.execute("from segments").fetchall() == [("kept",)]


def test_show_names_no_recording_of_which_nothing_is_asked_for(store: OutputStore) -> None:
    add(store, transcribed("a.wav", 0, "Hi"), part("b.wav", 0, texts=None, status="no_speech"))
    correct_segment(store, "Hi", "Ho")
    add(store, part("c.wav", 0, texts=None, status="failed"))

    def shown(*arguments: str) -> tuple[str, str]:
        done = CliRunner().invoke(cli.app, ["show", store.uri, *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout, done.stderr

    everything, silent = shown()
    assert "b.wav:" in everything
    assert not silent
    confident, silent = shown("--min-confidence", "1")
    assert "a.wav:" in confident
    assert "b.wav" not in confident
    assert not silent
    nothing = "nothing to show: {} of 3 recordings with results match{}\n"
    assert shown("--uri", "*nowhere*") == ("", nothing.format(0, ""))
    failed = "; 1 failed, see corpus-asr report"
    assert shown("--uri", "*c.wav") == ("", nothing.format(1, failed))
    neither = nothing.format(3, f"{failed}; their segments do not")
    assert shown("--language", "de") == ("", neither)


GUIDES = Path(__file__).parents[2] / "docs" / "how-to"
EXAMPLES = [
    code
    for name in ("reading.md", "iceberg.md")
    for code in re.findall(r"^```python\n(.*?)^```$", (GUIDES / name).read_text(), re.M | re.S)
]


@pytest.mark.parametrize(
    "code", EXAMPLES, ids=["duckdb", "pandas", "join", "corrections", "speakers", "iceberg"]
)
def test_an_example_of_the_guides_to_tables_shows_every_recording(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "pyiceberg" in code:
        pytest.importorskip("pyiceberg")
    monkeypatch.chdir(tmp_path)
    store = OutputStore("output/demo")
    add(store, part("a.wav", 0, texts=[" Hi."]), part("b.wav", 0, texts=[" Ho."]))
    finished(store, "a.wav", "b.wav")
    find_speakers_of_run(store, SpeakerSettings(mode="auto"))
    exec(code, {})
    shown = capsys.readouterr().out
    assert "a.wav" in shown
    assert "b.wav" in shown


def names(*uris: str, suffixes: tuple[str, ...] = (".srt",)) -> dict[str, str]:
    rows = sorted(set(uris))
    table = pa.table({"uri": rows, "recording_id": [recording_id(uri) for uri in rows]})
    return dict(zip(rows, distinct_names(table, suffixes), strict=True))


def test_folders_below_the_common_one_are_kept_and_suffixes_where_they_differ() -> None:
    for expected in (
        {"s3://b/2026/01/a.mp3": "01/a", "s3://b/2026/02/a.mp3": "02/a",
         "s3://b/2026/c.d.wav": "c.d"},
        {"/x/talk1.mp3": "talk1", "/x/talk2.mp3": "talk2"},
        {"/x/dir1/a.mp3": "dir1/a", "/x/dir2/a.mp3": "dir2/a"},
        {"/x/dir/only.mp3": "only"},
        {"s3://b/x.mp3": "s3/b/x", "https://h.org/x.mp3?sig=a/b": "https/h.org/x"},
        {"/x/a.mp3": "a.mp3", "/x/a.wav": "a.wav", "/x/b.wav": "b"},
    ):  # fmt: skip
        assert names(*expected) == expected


def test_what_is_still_alike_gets_its_id() -> None:
    found = names("/x/a.mp3", "/x/A.MP3", "/x/a.wav")
    assert found["/x/a.wav"] == "a.wav"
    assert found["/x/a.mp3"] == f"a.mp3~{recording_id('/x/a.mp3')}"
    guess = f"/x/a.mp3~{recording_id('/x/a.mp3')}.srt/trap.wav"
    found = names("/x/a.mp3", "/x/A.MP3", guess)  # as one who wants to overwrite it would guess
    assert found["/x/a.mp3"] == f"a.mp3~{recording_id('/x/a.mp3')}"
    assert "~" not in found[guess]
    composed, parted = "/x/é.mp3", unicodedata.normalize("NFD", "/x/é.mp3")
    found = names(composed, parted)
    assert len({unicodedata.normalize("NFC", name) for name in found.values()}) == 2


def test_dangerous_names_are_written_out() -> None:
    expected = {
        "..": "%2E%2E", ".": "%2E", "-rf.wav": "-rf", "a\\..\\b.wav": "a%5C..%5Cb",
        "a:b*?.wav": "a%3Ab%2A%3F", "100%.wav": "100%25", "new\nline\t.wav": "new%0Aline%09",
        ".tmp-x.wav": "%2Etmp-x", ".hidden": ".hidden", " ": "%20",
        "\u202egnp.wav": "%E2%80%AEgnp", "no suffix. At all": "no suffix. At all",
    }  # fmt: skip
    for name, written in expected.items():
        assert names(f"s3://b/x/{name}", "s3://b/x/zz.wav")[f"s3://b/x/{name}"] == written


def test_long_names_are_cut_and_stay_apart() -> None:
    found = names(*(f"/x/{'ä' * 400}{number}.wav" for number in (1, 2)))
    assert len(set(found.values())) == 2
    assert all(len((name + ".srt").encode()) <= 255 for name in found.values())


FOLDER = st.sampled_from(["s3://b/", "s3://b/c/", "/r/"])
STEP: Any = st.text(
    st.sampled_from("aA.~/%\\:é\u0301\n ") | st.characters(codec="utf-8", exclude_characters="\0"),
    max_size=6,
)
SUFFIX = st.sampled_from([".wav", ".mp3", ".srt", "", ".srt/x.wav", "/../../e.wav"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(FOLDER, STEP, SUFFIX), min_size=1))
def test_no_two_are_alike_and_none_leads_out(parts: list[tuple[str, str, str]]) -> None:
    found = names(*("".join(part) for part in parts), suffixes=(".srt", ".json"))
    files = {name + suffix for name in found.values() for suffix in (".srt", ".json")}
    folded = {unicodedata.normalize("NFKC", name.casefold()) for name in files}
    assert len(folded) == 2 * len(found)
    folders = {str(parent) for name in folded for parent in Path(name).parents}
    assert not folders & folded
    for name in files:
        assert within("/to", name) == f"/to/{name}"
        assert all(step.strip(". ") for step in name.split("/"))
        assert all(len(step.encode()) <= 255 for step in name.split("/"))
