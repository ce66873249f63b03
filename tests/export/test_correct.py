"""Files that `export` wrote and people edited are read back: what changed, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.edits.corrections import read_saved, save_correction
from corpus_asr.export.recordings import Selection
from corpus_asr.export.speakers import read_segments
from corpus_asr.export.write import ExportOptions, export
from corpus_asr.formats.options import ExportFormat
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import correct_segment, passage, run_of, says, spoken
from tests.support.tables import part

LONG = ("and so my fellow americans ask not what your country can do for you ask what you can do "
        "for your country")  # fmt: skip
TEXTS = ("one to three", "four five", LONG, "the end")
FORMATS = ("srt", "vtt", "eaf", "csv")


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    said = [passage(at, text, probabilities=[0.9] * len(text.split()))
            for at, text in enumerate(TEXTS)]  # fmt: skip
    return run_of(tmp_path / "output", spoken("/c/talks/a.wav", *said),
                  spoken("/c/b.wav", passage(0, "other")))  # fmt: skip


def exported(store: OutputStore, to: Path, *formats: str) -> Path:
    options = ExportOptions(formats=tuple(ExportFormat(name) for name in formats))
    export(store, str(to), options, Selection())
    return to


def correct(store: OutputStore, *paths: Path) -> str:
    done = CliRunner().invoke(cli.app, ["correct", store.uri, *map(str, paths)])
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def refused(store: OutputStore, *paths: Path) -> str:
    before = read_saved(store)
    done = CliRunner().invoke(cli.app, ["correct", store.uri, *map(str, paths)])
    assert done.exit_code == 2, done.output
    assert read_saved(store) == before
    return " ".join(done.stderr.split())


def texts(store: OutputStore) -> list[str]:
    rows = read_segments(store.uri).sort_by("start_s").to_pylist()
    own = recording_id("/c/talks/a.wav")
    return [row["text"].strip() for row in rows if row["recording_id"] == own]


def change(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_bytes().decode()
    for old, new in pairs:
        assert old in text, text
        text = text.replace(old, new)
    path.write_bytes(text.encode())


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_changed_is_a_correction_and_the_rest_is_none(
    store: OutputStore, tmp_path: Path, name: str
) -> None:
    to = exported(store, tmp_path / "edited", name)
    assert correct(store, to) == "2 files read: nothing new"
    path = to / f"talks/a.{name}"
    change(path, ("one to three", "one two three"), ("and so my fellow ", "my fellow "))
    assert correct(store, to) == "2 files read: 2 corrections saved, of 1 recording"
    assert texts(store) == ["one two three", "four five", LONG.removeprefix("and so "), "the end"]
    rows = read_segments(store.uri).to_pylist()
    assert not any(row["checked"] for row in rows)
    # Each once, whatever export makes of it by now.
    for _ in range(2):
        assert correct(store, path).endswith("nothing new")
    assert correct(store, exported(store, tmp_path / "again", name)).endswith("nothing new")
    # A file that was read before takes back nothing that was done since.
    correct_segment(store, "four five", "4 5")
    assert correct(store, to).endswith("nothing new")
    assert texts(store)[1] == "4 5"


@pytest.mark.parametrize("name", FORMATS)
def test_times_splits_joins_removals_and_insertions_are_read(
    store: OutputStore, tmp_path: Path, name: str
) -> None:
    path = exported(store, tmp_path / "edited", name) / f"talks/a.{name}"
    if name == "csv":
        split = "0.000,1.000,,one\r\n1.100,2.000,Ada,to 3\r\n"
        change(path, ("0.000,2.000,,one to three\r\n", split), ("6.000,8.000,,the end\r\n", ""))
    elif name == "eaf":
        change(path, ('TIME_VALUE="2000"', 'TIME_VALUE="1900"'), (">the end<", "><"))
    else:
        clock = "00:00:0{},{}" if name == "srt" else "00:0{}.{}"
        start, middle, later, end = (
            clock.format(*at) for at in ((0, "000"), (1, "000"), (1, "100"), (2, "000"))
        )
        change(path, (f"{start} --> {end}\none to three",
                      f"{start} --> {middle}\none\n\n{later} --> {end}\nto 3"))  # fmt: skip
        text = path.read_text()
        path.write_text(re.sub(r"(\d+\n)?[\d:.,]+ --> [\d:.,]+\nthe end\n", "", text))
    correct(store, path)
    if name == "eaf":
        assert texts(store) == [*TEXTS[:2], LONG]
        ends = read_segments(store.uri).sort_by("start_s")["end_s"].to_pylist()
        assert 1.9 in ends
        return
    assert texts(store) == ["one", "to 3", "four five", LONG]
    rows = read_segments(store.uri).sort_by("start_s").to_pylist()
    assert [(row["start_s"], row["end_s"]) for row in rows if row["corrected"]][:2] == [
        (0.0, 1.0), (1.1, 2.0)
    ]  # fmt: skip
    if name == "csv":
        assert [row["speaker"] for row in rows if row["text"].strip() == "to 3"] == ["Ada"]
    assert correct(store, path).endswith("nothing new")


@pytest.mark.long
def test_labels_of_speakers_are_read_and_kept(store: OutputStore, tmp_path: Path) -> None:
    says(store, "/c/talks/a.wav", (0.0, 4.0, "S1"), (4.0, 8.0, "S2"))
    for name in FORMATS:
        path = exported(store, tmp_path / "edited", name) / f"talks/a.{name}"
        assert correct(store, path).endswith("nothing new")
    path = tmp_path / "edited/talks/a.srt"
    change(path, ("[S1] four five", "[S2] 4 five"), ("[S2] the end", "[Ada] the end"))
    correct(store, path)
    rows = read_segments(store.uri).to_pylist()
    assert {row["text"].strip(): row["speaker"] for row in rows if row["speaker"]} == {
        "4 five": "S2", "the end": "Ada",
    }  # fmt: skip


@pytest.mark.long
def test_channels_are_told_by_labels(tmp_path: Path) -> None:
    sides = [
        spoken("/a.wav", passage(0, text), part=at, channel=at, channels=2, last_part=at == 1)
        for at, text in enumerate(("left", "right"))
    ]
    store = run_of(tmp_path / "output", *sides)
    for name in FORMATS:
        path = exported(store, tmp_path / "edited", name) / f"a.{name}"
        assert correct(store, path).endswith("nothing new")
    path = tmp_path / "edited/a.srt"
    change(path, ("right", "RIGHT"))
    correct(store, path)
    rows = read_segments(store.uri).to_pylist()
    assert sorted((row["channel"], row["text"].strip()) for row in rows) == [
        (0, "left"), (1, "RIGHT")
    ]  # fmt: skip
    change(path, ("[channel 1] ", ""))
    assert "expected a label of one of the channels 0, 1" in refused(store, path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.srt", "1\n00:00:01,000 --> 00:00:02,000\nx\n", "found no recording of this name"),
        ("a.doc", "x", "found the format .doc"),
        ("missing.srt", None, "found no such file"),
        ("b.srt", "x", "found “x”, expected a line with -->"),
        ("b.srt", "1\n1 --> 2\nx\n", "found “1 --> 2”, expected times"),
        ("b.srt", "1\n00:00:02,000 --> 00:00:01,000\nx\n", "expected its end after its start"),
        ("b.srt", "1\n00:00:01,000 --> 00:09:01,000\nx\n", "up to the end of the recording"),
        ("b.srt", "1\n00:00:01,000 --> 00:00:02,000\n<u>x</u>\n", "export --words plain"),
        ("b.vtt", "00:01.000 --> 00:02.000\nx\n", "found no WEBVTT"),
        ("b.csv", "uri,start,end,speaker,text\r\n", "found the columns uri, start"),
        ("b.csv", "start,end,speaker,text\r\nx,2,,y\r\n", "expected seconds"),
        ("b.eaf", "<a", "found no XML"),
        ("b.eaf", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "a document type declaration"),
        ("b.srt", b"\xff\xfe", "found bytes that are not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_saved(
    store: OutputStore, tmp_path: Path, name: str, text: Any, words: str
) -> None:
    good = exported(store, tmp_path / "edited", "csv") / "talks/a.csv"
    change(good, ("four", "4"))
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(store, good, path)


def test_folders_without_files_doubles_and_recordings_without_text_are_refused(
    store: OutputStore, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert "expected files of corpus-asr export" in refused(store, tmp_path / "empty")
    to = exported(store, tmp_path / "edited", "srt", "vtt")
    assert "of the same recording" in refused(store, to / "b.srt", to / "b.vtt")
    failed = run_of(tmp_path / "failed", part("d.wav", 0, texts=None, status="failed"))
    (tmp_path / "d.srt").write_text("")
    silent = run_of(tmp_path / "silent", part("", 0, uri="/d.wav", texts=None, status="no_speech"))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/d.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nx\n")
    assert "for a recording without text" in refused(silent, tmp_path / "s/d.srt")
    assert "found no transcript of its recording" in refused(failed, tmp_path / "d.srt")


def test_who_saves_meanwhile_is_looked_at_first(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(store, tmp_path / "edited", "srt") / "talks/a.srt"
    change(path, ("four five", "4 five"))
    calls = list[Any]()

    def late(*args: Any) -> str | None:
        if not calls:
            correct_segment(store, "one to three", "one two three")
        calls.append(args)
        return save_correction(*args)

    monkeypatch.setattr("corpus_asr.export.correct.save_correction", late)
    correct(store, path)
    assert texts(store)[:2] == ["one two three", "4 five"]
    assert len(calls) >= 2
