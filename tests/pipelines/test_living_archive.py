"""What happens to archives over the years, one test for each, through the program's entry points.

Each says what happened before. Workers are scripted: they give the text of each file by its name.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config.run import SelectionSettings
from corpus_asr.edits.corrections import read_saved
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.labelling.selection import _beside_the_other, open_sources
from corpus_asr.pipelines.evaluate import evaluate
from corpus_asr.storage.run_state.identities import Changes, Identities, Move
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.nightly import Archive
from tests.support.runs import correct_segment, passage, run_of, spoken

pytestmark = pytest.mark.long


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    return Archive(tmp_path, monkeypatch)


def texts(archive: Archive) -> dict[str, int]:
    """Return how many segments each recording has."""
    uris = {row["recording_id"]: row["uri"] for row in archive.read("recordings")}
    return dict(Counter(Path(uris[row["recording_id"]]).stem for row in archive.read("segments")))


def command(*words: object) -> str:
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


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
    assert "/a.wav: 2 segments, 1 correction, not listed since" in command(*gone)
    kept = command(*gone, "--yes")
    assert "1 with corrections, which only --with-corrections removes; nothing was" in kept
    assert len(read_saved(store)) == 1
    assert command(*gone, "--yes", "--with-corrections").endswith("removed 1 recording\n")
    assert read_saved(store) == {}


@pytest.mark.parametrize("moved_in", ["output", "against"])
@pytest.mark.parametrize("at", ["/c/a.wav", "/c/b.wav"])
def test_runs_that_know_a_recording_by_other_ids_are_compared(
    tmp_path: Path, moved_in: str, at: str
) -> None:
    uris = {"output": "/c/b.wav", "against": "/c/b.wav", moved_in: "/c/a.wav"}
    stores = {
        name: run_of(
            tmp_path / name, spoken(uri, passage(0, "one two")), pipeline="transcribe_corpus"
        )
        for name, uri in uris.items()
    }
    identities = Identities()
    identities.follow(Changes({recording_id("/c/a.wav"): Move("/c/a.wav", "/c/b.wav")}))
    identities.write(stores[moved_in])
    references = tmp_path / "references.jsonl"
    references.write_text(json.dumps({"uri": at, "text": "one two"}))
    if at == "/c/a.wav" and moved_in == "against":
        with pytest.raises(ConfigError, match="found none of its 1 recordings"):
            evaluate(stores["output"].uri, str(references))
        return
    evaluation = evaluate(stores["output"].uri, str(references))
    assert (evaluation.missing, evaluation.everything.recordings) == (0, 1)
    if at == "/c/b.wav":
        compared = evaluate(stores["output"].uri, str(references), against=stores["against"].uri)
        assert compared.comparison is not None
        assert compared.comparison.recordings == 1
        settings = SelectionSettings(against=stores["against"].uri, references=str(references))
        with open_sources(stores["output"], settings) as sources:
            [(recording, other)] = _beside_the_other(sources, words=False)
            assert other is not None
            assert [*(sources.references or {})] == [recording.recording_id]
