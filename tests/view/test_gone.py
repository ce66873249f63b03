"""Pages read before a recording was forgotten or moved: nothing they save is lost or left."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.edits import corrections
from corpus_asr.edits.corrections import hash_of
from corpus_asr.export.speakers import name_speaker, read_names
from corpus_asr.storage.run_state.annotations import CORRECTIONS_FOLDER
from corpus_asr.storage.run_state.forget import finish_killed, forget
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.identities import Changes, Identities, Move
from corpus_asr.storage.run_state.rewriting import write_identities
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view import catalogue
from corpus_asr.view.catalogue import Library
from tests.support.pages import Response, sent
from tests.support.runs import correct_segment, passage, run_of, says, spoken
from tests.view.conftest import get, serving

URI, NOW = "/c/a.wav", "/c/b.wav"
ID = recording_id(URI)


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    rows = (spoken(URI, passage(0, "one"), passage(1, "two")),
            spoken("/c/other.wav", passage(0, "other")))  # fmt: skip
    store = run_of(tmp_path / "output", *rows, pipeline="transcribe_corpus")
    says(store, URI, (0.0, 2.0, "S1"))
    return store


@pytest.fixture
def url(store: OutputStore) -> Iterator[str]:
    """A server that looks at the folder once, when it starts."""
    with serving(store, refresh_s=3600.0) as server:
        yield server.url


def forgotten(store: OutputStore) -> None:
    forget(store, {ID: URI})


def moved(store: OutputStore) -> None:
    identities = Identities.read(store)
    identities.follow(Changes({ID: Move(URI, NOW)}))
    write_identities(store, identities)


def correct(url: str) -> Response:
    said = {"start_s": 0.0, "end_s": 2.0, "text": "secret"}
    body = {"id": ID, "keys": [".0.2000." + hash_of(" one")], "segments": [said]}
    return sent(url, "api/correct", body)


def named(url: str) -> Response:
    return sent(url, "api/name", {"id": ID, "speaker": "S1", "name": "secret"})


def left(store: OutputStore) -> dict[str, bytes]:
    """Return what is saved of the recording."""
    files = (path for path in Path(store.uri).rglob("*") if path.is_file())
    held = {path.relative_to(store.uri).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in held.items()
            if ID in name or ID.encode() in data or b"secret" in data}  # fmt: skip


@pytest.mark.parametrize("save", [correct, named])
def test_of_a_forgotten_recording_nothing_is_saved(
    url: str, store: OutputStore, save: Callable[[str], Response]
) -> None:
    forgotten(store)
    answer = save(url)
    assert (answer.status, "removed from the output folder" in str(answer.body)) == (410, True)
    assert left(store) == {}


@pytest.mark.parametrize("save", [correct, named])
def test_what_is_saved_of_a_recording_that_moved_is_of_it(
    url: str, store: OutputStore, save: Callable[[str], Response]
) -> None:
    moved(store)
    assert save(url).status == 200
    assert left(store)
    with serving(store) as fresh:
        listed = get(fresh.url, "api/recordings")["recordings"]
        assert [row["id"] for row in listed if row["name"] == "b.wav"] == [ID]


def test_the_page_shows_the_new_address_once_it_is_noted(store: OutputStore) -> None:
    library = Library(store, refresh_s=0.0)
    moved(store)
    row = library.wait().catalogue.recording(ID)
    assert row is not None
    assert row["uri"] == NOW
    library.close()


@pytest.mark.parametrize("first", [True, False])
def test_what_is_saved_while_it_goes_is_taken_back(
    url: str, store: OutputStore, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    save = corrections.save_correction

    def meanwhile(*args: Any) -> str | None:
        if first:
            forgotten(store)
        name = save(*args)
        if not first:
            forgotten(store)
        return name

    monkeypatch.setattr("corpus_asr.view.catalogue.save_correction", meanwhile)
    assert correct(url).status == 410
    assert list(store.all_names(f"{CORRECTIONS_FOLDER}/{ID}")) == []
    assert left(store) == {}


@pytest.mark.parametrize(
    ("before", "seen"), [("", ""), ("Anna", "Anna"), ("Anna", ""), ("Anna", "Berta")]
)
def test_a_name_that_came_too_late_leaves_the_one_of_before(
    url: str, store: OutputStore, monkeypatch: pytest.MonkeyPatch, before: str, seen: str
) -> None:
    if before:
        name_speaker(store, URI, "S1", before, seen="")

    def meanwhile(*args: Any, **options: Any) -> str | None:
        other = name_speaker(*args, **options)
        forgotten = Forgotten.read(store)  # noted, and nothing is removed yet
        forgotten.add(URI, ID, [])
        forgotten.write(store)
        return other

    monkeypatch.setattr(catalogue, "name_speaker", meanwhile)
    body = {"id": ID, "speaker": "S1", "name": " secret ", "seen": seen}
    assert sent(url, "api/name", body).status == 410
    kept = {"": before, "Anna": "", "Berta": before}[seen]  # what was in its place is gone
    assert read_names(store) == ({(ID, "S1"): kept} if kept else {})
    finish_killed(store)
    assert read_names(store) == {}


def test_what_comes_late_is_swept(store: OutputStore) -> None:
    # As a viewer leaves it that is killed once it has saved, or one of an earlier version.
    correct_segment(store, "one", "secret")
    [name] = store.all_names(CORRECTIONS_FOLDER)
    late = store.read_json(name)
    moved(store)
    finish_killed(store)
    assert list(store.all_names(CORRECTIONS_FOLDER)) == [name]
    forget(store, {ID: NOW})
    store.write_json(name, late)
    lines = ("uri,speaker,name", f"{NOW},S1,secret", f"{URI},S1,secret", "")
    store.write_bytes("speakers.csv", "\n".join(lines).encode())
    finish_killed(store)
    assert list(store.all_names(CORRECTIONS_FOLDER)) == []
    assert read_names(store) == {}
