"""Pages read before a recording was forgotten or moved: nothing they save is lost or left."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.export.speakers import name_speaker, read_names
from corpus_asr.storage.run_state import corrections
from corpus_asr.storage.run_state.corrections import CORRECTIONS_FOLDER, hash_of
from corpus_asr.storage.run_state.forget import finish_killed, forget
from corpus_asr.storage.run_state.moved import MOVING_NAME, Move
from corpus_asr.storage.run_state.rewriting import follow
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view import catalogue
from tests.report.html.conftest import OpenPage
from tests.support.pages import Response, sent
from tests.support.runs import correct_segment, passage, run_of, says, spoken
from tests.view.conftest import serving

URI, NOW = "/c/a.wav", "/c/b.wav"
ID = recording_id(URI)
Erase = Callable[[OutputStore], object]


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
    follow(store, {ID: Move(URI, NOW)})


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
    assert (answer.status, "not in the output folder any more" in str(answer.body)) == (410, True)
    assert left(store) == {}


@pytest.mark.long
@pytest.mark.parametrize("save", [correct, named])
def test_of_a_moved_recording_the_new_address_is_named(
    url: str, store: OutputStore, save: Callable[[str], Response]
) -> None:
    moved(store)
    answer = save(url)
    told = json.loads(answer.body)
    assert (answer.status, told["moved_to"]) == (410, recording_id(NOW))
    assert f"was moved to {NOW}: nothing was saved" in told["error"]
    assert not any(b"secret" in data for data in left(store).values())
    with serving(store) as fresh:  # which knows no recording of this name
        refused = sent(fresh.url, "api/correct", {"id": ID, "keys": ["x"]})
        assert (refused.status, json.loads(refused.body)["moved_to"]) == (410, recording_id(NOW))


@pytest.mark.parametrize("happens", [forgotten, moved])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_saved_while_it_goes_is_taken_back(
    url: str, store: OutputStore, monkeypatch: pytest.MonkeyPatch, happens: Erase, first: bool
) -> None:
    save = corrections.save_correction

    def meanwhile(*args: Any) -> str | None:
        if first:
            happens(store)
        name = save(*args)
        if not first:
            happens(store)
        return name

    monkeypatch.setattr("corpus_asr.view.catalogue.save_correction", meanwhile)
    assert correct(url).status == 410
    assert list(store.all_names(f"{CORRECTIONS_FOLDER}/{ID}")) == []
    assert happens is moved or left(store) == {}


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
        # Noted, and nothing has followed yet.
        store.write_json(MOVING_NAME, {ID: Move(URI, NOW)._asdict()})
        return other

    monkeypatch.setattr(catalogue, "name_speaker", meanwhile)
    body = {"id": ID, "speaker": "S1", "name": " secret ", "seen": seen}
    assert sent(url, "api/name", body).status == 410
    assert read_names(store) == ({(ID, "S1"): before} if before else {})
    finish_killed(store)
    assert read_names(store) == ({(recording_id(NOW), "S1"): before} if before else {})


def test_what_comes_late_is_swept_or_follows(store: OutputStore, tmp_path: Path) -> None:
    # As a viewer leaves it that is killed once it has saved, or one of an earlier version.
    correct_segment(store, "one", "secret")
    [name] = store.all_names(CORRECTIONS_FOLDER)
    late = store.read_json(name)
    moved(store)
    store.write_json(name, late)
    finish_killed(store)
    saved = list(store.all_names(CORRECTIONS_FOLDER))
    assert saved == [name.replace(ID, recording_id(NOW))]
    forget(store, {recording_id(NOW): NOW})
    now = {**late, "recording_id": recording_id(NOW)}
    store.write_json(saved[0], now)
    store.write_bytes("speakers.csv", f"uri,speaker,name\n{NOW},S1,secret\n".encode())
    finish_killed(store)
    assert list(store.all_names(CORRECTIONS_FOLDER)) == []
    assert read_names(store) == {}


@pytest.mark.long
def test_the_editor_keeps_the_text_and_leads_to_the_new_address(
    url: str, store: OutputStore, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(f"{url}recording?id={ID}")
    page.wait_for_selector(".segment")
    page.click('[data-at="0"] .edit')
    page.keyboard.insert_text(" mine")
    moved(store)
    page.keyboard.press("Enter")
    page.wait_for_selector(".editor .bad a")
    said = page.inner_text(".editor .bad")
    assert f"was moved to {NOW}" in said
    assert said.endswith("Open it there")
    there = page.evaluate("document.querySelector('.editor .bad a').href")
    assert f"id={recording_id(NOW)}" in there
    assert page.input_value(".editor textarea") == "one mine"
    complaints.clear()
