"""Tables that `_run/tables.json` names and that are gone: named by every command, not left out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus_asr import read_segments
from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import DUPLICATES, HOOKS, SPEAKERS, VOICES
from corpus_asr.storage.run_state.identities import IDENTITIES
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.table_names import (
    DERIVED_FOLDERS,
    FINISHED_FOLDERS,
    IDENTITIES_NAME,
    OUTCOMES_FOLDER,
    PART_ROWS_FOLDERS,
    TABLES_NAME,
    beside,
    table_name,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from tests.pipelines.test_archive_commands import Typed
from tests.storage.test_run_tables import done
from tests.support.tables import commit, files, part, results

TABLES = ("outcomes", "segments", "recordings")
COMMANDS: list[tuple[str, ...]] = [
    ("show",), ("export", "--to", "exported", "--format", "srt"), ("report",), ("status",),
    ("run",), ("nightly",), ("plan",), ("remove", "--uri", "*/a.wav", "--yes"),
    ("remove", "--gone", "--yes"), ("correct", "edited.csv"),
    ("evaluate", "--references", "references.jsonl"),
]  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Return an archive of two runs whose tables are not merged."""
    monkeypatch.chdir(tmp_path)
    Path("edited.csv").write_text("uri,start_s,end_s,text\n")
    Path("references.jsonl").write_text('{"uri": "a.wav", "text": "red green"}\n')
    archive = Typed(tmp_path, monkeypatch)
    for names in ("ab", "c"):
        archive.add(*names)
        answer = archive.type("run", "--set", "output.target_file_mb=null")
        assert answer.exit_code == 0, answer.output
    return archive


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES)
def test_a_lost_table_is_named_until_what_the_message_advises_is_done(
    archive: Typed, table: str
) -> None:
    right = {name: len(archive.read(name)) for name in TABLES}
    name = archive.store.names(table)[0]
    Path(archive.store.address(name)).unlink()
    reading = [words for words in COMMANDS if table != "recordings" or words[0] in _OF_ALL_TABLES]
    for words in reading:
        answer = archive.type(*words)
        assert (words, answer.exit_code) == (words, 3), answer.output
        assert f"found no {name}, " in answer.stderr, words
    if table != "recordings":
        with pytest.raises(CorpusAsrError, match=f"found no {name}, "):
            read_segments(archive.store.uri)
    advice = re.search(r"restore it, or remove (.*), and run the job again", answer.stderr)
    assert advice is not None
    for removed in advice[1].split(" and "):
        Path(archive.store.address(removed)).unlink()
    assert archive.type("run").exit_code == 0
    assert {name: len(archive.read(name)) for name in TABLES} == right
    for words in reading[:4]:
        assert archive.type(*words).exit_code == 0, words


_OF_ALL_TABLES = ("report", "status", "run", "nightly")


@pytest.mark.parametrize("folder", [*FINISHED_FOLDERS, *DERIVED_FOLDERS])
def test_a_lost_object_of_any_table_is_named(tmp_path: Path, folder: str) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(part("a", 0, texts=["x"])))
    done(store, files("a"))
    of_hook = f"{folder}/topics" if folder == "hooks" else folder
    [outcomes] = store.names(OUTCOMES_FOLDER)
    is_of_parts = folder in PART_ROWS_FOLDERS
    name = beside(outcomes, folder) if is_of_parts else table_name(of_hook, store.stem())
    store.write_table(name, SPEAKERS.empty_table())
    store.replace((), [name])
    assert name in store.names(of_hook)
    Path(store.address(name)).unlink()
    for read in (store.commit_names, store.check_tables, Lock(store, "next").__enter__):
        with pytest.raises(CorpusAsrError, match=f"found no {name}, .*; restore it, or remove "):
            read()


@pytest.mark.parametrize(
    ("folder", "schema"),
    [("speakers", SPEAKERS), ("voices", VOICES), ("duplicates", DUPLICATES), ("hooks/x", HOOKS)],
)
def test_an_object_is_not_named_any_more_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, schema: Any
) -> None:
    store, removed = OutputStore(str(tmp_path)), list[str]()
    name = table_name(folder, store.stem())
    store.write_table(name, schema.empty_table())
    store.note_tables()

    def remove_unnamed(uri: str, *rest: Any, remove: Callable[..., None]) -> None:
        assert uri.removeprefix(store.address("")) not in store.read_json(TABLES_NAME)["tables"]
        removed.append(uri)
        remove(uri, *rest)

    remove = filesystem.remove
    monkeypatch.setattr(filesystem, "remove", lambda *words: remove_unnamed(*words, remove=remove))
    store.remove_all([name])
    assert removed == [store.address(name)]
    assert store.names(folder) == []


def test_lost_addresses_are_found_again_by_readers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(part("a", 0, texts=["x"])))
    done(store, files("a"))
    store.write_table(IDENTITIES_NAME, IDENTITIES.empty_table())
    store.note_tables()
    Path(store.address(IDENTITIES_NAME)).unlink()
    assert read_segments(store.uri).num_rows == 1
    assert IDENTITIES_NAME in caplog.text
