"""Who speaks, and who that is: turns, shares and names that people give, through the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.export import speakers
from corpus_asr.export.speakers import name_speaker, read_names, read_segments
from corpus_asr.schemas import VOICES
from corpus_asr.storage.run_state.annotations import NAMES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import recording_id
from tests.support.pages import Response, asked, fetch, sent
from tests.support.runs import passage, run_of, says, spoken
from tests.view.conftest import get, serving

pytestmark = pytest.mark.long

ID = recording_id("/a.wav")


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    """A run of two recordings; in one two speak, in the other nobody was looked for."""
    one = spoken("/a.wav", passage(0, "one"), passage(1, "two"))
    store = run_of(tmp_path / "output", one, spoken("/b.wav", passage(0, "other")))
    says(store, "/a.wav", (0.0, 1.5, "S1"), (2.0, 2.5, "S2"))
    return store


@pytest.fixture
def url(store: OutputStore) -> Iterator[str]:
    with serving(store) as server:
        yield server.url


def name(url: str, speaker: str, name: str, **values: Any) -> Response:
    return sent(url, "api/name", {"id": ID, "speaker": speaker, "name": name, **values})


def names(url: str) -> list[str]:
    return [each["name"] for each in get(url, "api/recording", id=ID)["speakers"]]


def test_speakers_are_shown_with_their_turns_and_shares(url: str) -> None:
    nobody = get(url, "api/recording", id=recording_id("/b.wav"))
    assert (nobody["speakers"], nobody["turns"]) == ([], [])
    shown = get(url, "api/recording", id=ID)
    assert shown["turns"] == [[0.0, 1.5, 0], [2.0, 2.5, 1]]
    assert shown["speakers"] == [
        {"speaker": "S1", "given": "", "name": "S1", "share": 0.75},
        {"speaker": "S2", "given": "", "name": "S2", "share": 0.25},
    ]
    segments = get(url, "api/segments", id=ID)["segments"]
    assert [each["speaker"] for each in segments] == ["S1", "S2"]


def test_a_name_is_shown_at_once_and_everywhere_and_changes_no_table(
    url: str, store: OutputStore
) -> None:
    folder = Path(store.uri)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = name(url, "S2", "  Anna \u202e Berg ")
    assert (answer.status, names(url)) == (200, ["S1", "Anna [U+202E] Berg"])
    assert json.loads(answer.body)["speakers"] == get(url, "api/recording", id=ID)["speakers"]
    assert name(url, "S2", "Anna", seen="Anna \u202e Berg").status == 200
    assert name(url, "S1", 'Ben, "B"').status == 200
    saved = fetch(asked(url, "saved", id=ID, format="txt")).body.decode()
    assert saved.splitlines() == ['[Ben, "B"] one', "[Anna] two"]
    rows = read_segments(store.uri, speakers=True).to_pylist()
    assert [row["speaker"] for row in rows] == ['Ben, "B"', "Anna", None]
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = written.pop(folder / NAMES_NAME).decode()
    assert written == before
    assert text == 'uri,speaker,name\n/a.wav,S2,Anna\n/a.wav,S1,"Ben, ""B"""\n'
    # One name for two speakers is one person; without a name they are as they were found.
    assert name(url, "S1", "Anna", seen='Ben, "B"').status == 200
    saved = fetch(asked(url, "saved", id=ID, format="txt")).body.decode()
    assert saved.splitlines() == ["one", "two"]  # one speaker is not named
    assert name(url, "S2", "", seen="Anna").status == 200
    assert names(url) == ["Anna", "S2"]


def test_what_others_write_is_kept_and_shown_before_it_is_replaced(
    url: str, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(store.uri, NAMES_NAME)
    # As a spreadsheet saves it, with columns and rows of its own.
    path.write_bytes("\ufeffuri,note,speaker,name\r\n/b.wav,x,S1,Cem\r\n/a.wav\r\n".encode())
    assert name(url, "S1", "Anna").status == 200
    assert (
        path.read_text() == "uri,note,speaker,name\n/b.wav,x,S1,Cem\n/a.wav,,,\n/a.wav,,S1,Anna\n"
    )
    with serving(store) as other:
        assert names(other.url) == ["Anna", "S2"]
        assert name(other.url, "S1", "Ann", seen="Anna").status == 200
    refused = name(url, "S1", "Anne", seen="Anna")
    told = json.loads(refused.body)
    assert (refused.status, told["seen"]) == (409, "Ann")
    assert "another user has called S1 “Ann”" in told["error"]
    assert names(url) == ["Ann", "S2"]
    assert name(url, "S1", "Anne", seen=told["seen"]).status == 200
    assert name(url, "S1", "Anne", seen="long ago").status == 200  # it is so already
    # Somebody writes another row between reading and writing: both are there.
    swap = filesystem.swap

    def late(uri: str, data: bytes, expected: bytes, *rest: Any) -> bool:
        monkeypatch.setattr(filesystem, "swap", swap)
        path.write_bytes(path.read_bytes() + b"/c.wav,,S1,Dora\n")
        return swap(uri, data, expected, *rest)

    monkeypatch.setattr(filesystem, "swap", late)
    assert name(url, "S2", "Emil").status == 200
    assert {*read_names(store).values()} == {"Cem", "Anne", "Dora", "Emil"}
    monkeypatch.setattr(filesystem, "swap", lambda *_: False)
    with pytest.raises(ConfigError, match="found concurrent changes in 8 attempts"):
        name_speaker(store, "/a.wav", "S2", "Fred", seen="Emil")
    assert speakers.read_names(store)[ID, "S2"] == "Emil"


def test_what_is_no_name_is_refused(url: str, store: OutputStore) -> None:
    for body, status, words in (
        ({"id": ID, "speaker": "S1", "name": "a" * 101}, 400, "expected 100 at most"),
        ({"id": ID, "speaker": "S1", "name": "a\x07"}, 400, "U+0007"),
        ({"id": ID, "speaker": "S1", "name": "=1+1"}, 400, "a formula in spreadsheets"),
        ({"id": ID, "speaker": "S1", "name": 7}, 400, "naming a speaker: name is 7"),
        ({"speaker": "S1", "name": "Anna"}, 400, "naming a speaker: found no id"),
        ({"id": ID, "speaker": "S3", "name": "Anna"}, 404, "has no speaker 'S3'"),
        ({"id": recording_id("/b.wav"), "speaker": "S1", "name": "Anna"}, 404, "has no speaker"),
        ({"id": "../../x", "speaker": "S1", "name": "Anna"}, 404, "has no recording"),
    ):
        answer = sent(url, "api/name", body)
        assert (answer.status, words in json.loads(answer.body)["error"]) == (status, True), body
    assert not store.exists(NAMES_NAME)
    with serving(store, editable=False) as server:
        refused = name(server.url, "S1", "Anna")
        assert (refused.status, b"--read-only" in refused.body) == (403, True)
    store.write_bytes(NAMES_NAME, "uri,speaker,name\n/a.wav,S1,J\xf6rg\n".encode("latin-1"))
    refused = name(url, "S1", "Anna")
    assert (refused.status, b"not UTF-8" in refused.body) == (400, True)


def test_a_name_is_shown_in_every_recording_of_the_voice(store: OutputStore) -> None:
    says(store, "/b.wav", (0.0, 2.0, "S1"))
    rows = [("/a.wav", "S1", "V1"), ("/a.wav", "S2", "V2"), ("/b.wav", "S1", "V2")]
    table = [
        {"recording_id": recording_id(uri), "uri": uri, "speaker": speaker, "voice": voice}
        for uri, speaker, voice in rows
    ]
    store.write_table("voices/1.parquet", pa.Table.from_pylist(table, VOICES))
    with serving(store) as server:
        assert names(server.url) == ["V1", "V2"]
        answer = sent(
            server.url, "api/name", {"id": recording_id("/b.wav"), "speaker": "S1", "name": "Anna"}
        )
        assert answer.status == 200
        speakers = get(server.url, "api/recording", id=ID)["speakers"]
        assert [(each["name"], each["given"]) for each in speakers] == [("V1", ""), ("Anna", "")]
        # Here it is somebody else; what was given in /b.wav stays.
        assert name(server.url, "S2", "Ben").status == 200
        assert names(server.url) == ["V1", "Ben"]
        saved = fetch(asked(server.url, "saved", id=recording_id("/b.wav"), format="txt"))
        assert saved.body.decode() == "other\n"  # one speaker is not named
