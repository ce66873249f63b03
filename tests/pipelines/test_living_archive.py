"""What happens to archives over the years, one test for each, through the program's entry points.

Each says what happened before. Workers are scripted: they give the text of each file by its name.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.errors import EngineError
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.corrections import read_saved
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.nightly import Archive
from tests.support.runs import correct_segment
from tests.support.tables import run_config, with_section

pytestmark = pytest.mark.long


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    return Archive(tmp_path, monkeypatch)


def texts(archive: Archive) -> dict[str, int]:
    """Return how many segments each recording has."""
    rows = archive.read("segments")
    return {Path(row["uri"]).stem: sum(each["uri"] == row["uri"] for each in rows) for row in rows}


def command(*words: object) -> str:
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def test_another_version_that_cannot_be_read_leaves_the_transcript(archive: Archive) -> None:
    """Before: the good transcript is deleted, the recording failed, never tried again."""
    archive.add("a", "b")
    archive.run()
    for kind, content, tried in (
        ("access_denied", b"another version", ["a"]),
        ("not_audio", b"broken", ["a"]),
        ("not_audio", None, []),  # which the file alone can change
    ):
        if content is not None:
            archive.add("a", content=content)
        archive.down("a", kind=kind)
        assert archive.run().earlier == 1
        assert archive.worked == tried
        assert texts(archive) == {"a": 2, "b": 2}
        [failed] = [row for row in archive.read("outcomes") if row["status"] == "failed"]
        assert failed["error_kind"] == kind
    [row] = [row for row in archive.read("recordings") if row["uri"].endswith("a.wav")]
    assert row["status"] == "ok"


def test_touched_recordings_that_a_night_has_no_time_for_keep_their_text(archive: Archive) -> None:
    """Before: all their transcripts are deleted before new ones exist, with exit 0."""
    archive.add("a", "b")
    archive.run()
    archive.add("a", "b", content=b"touched")
    archive.set(stop_after_h=1e-9)
    found = archive.night()
    assert (found.changed, found.remaining) == (2, 2)
    assert texts(archive) == {"a": 2, "b": 2}
    assert [row["status"] for row in archive.read("recordings")] == ["ok", "ok"]
    assert found.archive is not None
    assert (found.archive.done, found.archive.earlier) == (0, 2)
    assert command("show", archive.output).count("red") == 2


def test_corrections_follow_a_touched_file(archive: Archive) -> None:
    """Before: they stop applying, though times and text are the same."""
    archive.add("a", content=b"sound")
    archive.run()
    # One of two segments with different texts.
    correct_segment(OutputStore(str(archive.output)), "green", "blue")
    (archive.source / "a.wav").touch()
    archive.run()
    assert archive.worked == ["a"]
    assert "blue" in command("show", archive.output)


def test_a_night_without_permission_is_tried_again_by_the_next(archive: Archive) -> None:
    """Before: all new recordings failed for good; the next nights plan nothing and end with 0."""
    archive.set(retry_nights=0)
    archive.add(*"abc")
    archive.run()
    archive.add(*"def")
    archive.add("a", content=b"uploaded again")
    archive.down(*"adef", kind="access_denied")
    with pytest.raises(EngineError, match="all 4 recordings failed alike") as told:
        archive.night()
    for words in ("access_denied", ": scripted", "check the credentials"):
        assert words in str(told.value)
    assert archive.summaries()[-1]["state"] == "aborted"
    assert archive.night().retried == 4
    assert texts(archive) == dict.fromkeys("abc", 2)
    archive.down()
    found = archive.night()
    assert (found.retried, found.findings.done) == (4, 4)
    assert texts(archive) == dict.fromkeys("abcdef", 2)


def test_a_file_of_a_manifest_that_arrives_later_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: `not_found` is final; run, --retry-failed, --new-run and nightly do nothing."""
    archive = of_manifest(tmp_path, monkeypatch, a={}, late={})
    archive.down("late", kind="not_found")
    archive.run()
    archive.down()
    assert archive.run().failed == 0
    assert archive.worked == ["late"]
    assert texts(archive) == {"a": 2, "late": 2}


def test_the_advice_of_a_store_does_what_it_says(archive: Archive) -> None:
    """Before: the advice says `--retry-failed`, which leaves just these out."""
    for kind in ("access_denied", "archived"):
        advice = failure_kind(kind).advice
        assert "then run again: each run tries these again" in advice
        assert "--retry-failed" not in advice
    archive.add("a", "b")
    archive.down("b", kind="archived")
    archive.run()
    assert "restore these objects" in command("report", archive.output)
    archive.down()
    archive.run()
    assert archive.worked == ["b"]


def test_what_is_renamed_keeps_its_results(archive: Archive, tmp_path: Path) -> None:
    """Before: all is transcribed again, and old rows stay beside the new ones."""
    archive.add("a", "b", content=b"s")
    archive.add("c", content=b"another sound")
    archive.run()
    (archive.source / "c.wav").rename(archive.source / "renamed.wav")
    project = tmp_path / "project"
    project.mkdir()
    for name in ("source", "output"):
        setattr(archive, name, getattr(archive, name).rename(project / getattr(archive, name).name))
    archive.config = archive.config.model_copy(update={
        section: getattr(run_config(archive.source, archive.output), section)
        for section in ("source", "output")
    })  # fmt: skip
    found = archive.run()
    assert (found.moved, found.planned_files, archive.worked) == (3, 0, [])
    assert texts(archive) == {"a": 2, "b": 2, "renamed": 2}
    uris = {row["uri"] for table in ("outcomes", "recordings") for row in archive.read(table)}
    assert uris == {str(path) for path in archive.source.iterdir()}


def test_what_is_deleted_is_marked_and_pruned(archive: Archive) -> None:
    """Before: its rows stay for good; no column says so; counts contradict each other."""
    archive.add("a", "b", "c")
    archive.run()
    archive.remove("b")
    found = archive.run()
    assert (found.files, found.done, found.gone) == (2, 2, 1)
    archive.night()
    [summary] = archive.output.glob("nights/*.md")
    assert ", with 1 recording not listed any more." in summary.read_text()
    assert "0 remaining; 1 not listed any more" in command("status", archive.output)
    gone = {Path(row["uri"]).stem: row["gone"] for row in archive.read("recordings")}
    assert gone == {"a": False, "b": True, "c": False}
    assert load_report(OutputStore(str(archive.output))).accounting.problems == ()
    assert "nothing to remove" in command("remove", archive.output, "--gone", "--older-than", "30d")
    assert "1 recording of 3 is gone; nothing was changed" in command(
        "remove", archive.output, "--gone"
    )
    command("remove", archive.output, "--gone", "--yes")
    assert texts(archive) == {"a": 2, "c": 2}
    assert "not listed" not in command("status", archive.output)


def test_what_people_corrected_is_pruned_only_if_that_is_said(archive: Archive) -> None:
    """Before: corrections went without a word."""
    store = OutputStore(str(archive.output))
    archive.add("a", content=b"sound")
    archive.run()
    correct_segment(store, "green", "blue")
    archive.add("b", "c")
    archive.run()
    archive.remove("a")
    archive.run()
    gone = ("remove", archive.output, "--gone")
    assert "/a.wav: 2 segments, 1 correction, last listed" in command(*gone)
    kept = command(*gone, "--yes")
    assert "1 with corrections, which only --with-corrections removes; nothing was" in kept
    assert len(read_saved(store)) == 1
    assert command(*gone, "--yes", "--with-corrections").endswith("removed 1 recording\n")
    assert read_saved(store) == {}


def test_who_asks_to_be_erased_is_nowhere_and_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: no command; text and voice stay in the page, the plan and `_run/`."""
    archive = Archive(tmp_path, monkeypatch, pages=True)
    archive.add("b")
    archive.add("quill", content=b"of nobody else")
    archive.night()
    command("remove", archive.output, "--uri", "*/quill.wav", "--yes")
    for path in archive.output.rglob("*"):
        assert not path.is_file() or b"quill" not in path.read_bytes(), path
    (archive.source / "quill.wav").rename(archive.source / "other.wav")
    assert archive.run().files == 1
    assert archive.worked == []
    command("remove", archive.output, "--uri", archive.source / "quill.wav", "--allow-again")
    archive.run()
    assert archive.worked == ["other"]


def test_a_corrected_column_and_a_corrected_text_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: both are ignored for good."""
    archive = of_manifest(tmp_path, monkeypatch, a={"text": "red"}, b={"text": "red", "show": 1})
    archive.config = with_section(archive.config, "decoding", align=True, language="en")
    archive.run()
    name(archive, a={"text": "red green"}, b={"text": "red", "show": 2})
    archive.run()
    assert archive.worked == ["a"]
    found = {
        Path(row["uri"]).stem: json.loads(row["metadata"]) for row in archive.read("recordings")
    }
    assert found == {"a": {"text": "red green"}, "b": {"text": "red", "show": 2}}


def test_an_empty_inbox_is_a_night_that_is_done(archive: Archive) -> None:
    """Before: exit 2, the night "aborted"; one empty glob stops the others."""
    assert (archive.night().state, archive.night().planned) == ("done", 0)
    archive.add("a")
    both = (f"{archive.source}/*.mp3", f"{archive.source}/*.wav")
    archive.config = with_section(archive.config, "source", uri=both)
    assert archive.run().done == 1


def of_manifest(folder: Path, patch: pytest.MonkeyPatch, **recordings: dict[str, Any]) -> Archive:
    """Return an archive whose files a manifest names, with other columns."""
    source = {"uri": (), "manifest": str(folder / "in" / "list.jsonl")}
    archive = Archive(folder, patch, source=source)
    name(archive, **recordings)
    return archive


def name(archive: Archive, **recordings: dict[str, Any]) -> None:
    lines = [json.dumps({"uri": f"{stem}.wav"} | columns) for stem, columns in recordings.items()]
    (archive.source / "list.jsonl").write_text("\n".join(lines))
