"""A recording's number of speakers and hotwords, set from its page through the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.storage.run_state.overrides import OVERRIDES_FOLDER, Override, read_override
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.pages import Response, sent
from tests.support.runs import passage, run_of, spoken
from tests.view.conftest import get, serving

ID, OTHER = recording_id("/a.wav"), recording_id("/b.wav")
MANIFEST = json.dumps({"max_speakers": 4, "hotwords": "Ada, \u202eBen"})


def made(folder: Path, metadata: str | None = None, **config: Any) -> OutputStore:
    """Return a run of two recordings, one with columns of a manifest."""
    rows = [
        spoken(uri, passage(0, "one"), metadata=columns)
        for uri, columns in (("/a.wav", metadata), ("/b.wav", MANIFEST))
    ]
    usual = {"pipeline": "transcribe_corpus", "speakers": {"mode": "auto"}}
    return run_of(folder, *rows, **(usual | config))


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return made(tmp_path / "output")


@pytest.fixture
def url(store: OutputStore) -> Iterator[str]:
    with serving(store) as server:
        yield server.url


def save(url: str, **values: Any) -> Response:
    return sent(url, "api/override", {"id": ID, **values})


def test_what_is_set_is_shown_with_what_applies_until_the_next_run(
    url: str, store: OutputStore
) -> None:
    told = get(url, "api/overrides", id=ID)
    assert told["num_speakers"] == {"set": None, "used": None, "manifest": ""}
    assert (told["seen"], told["counts"], told["editable"]) == (0, True, True)
    answer = save(url, num_speakers=2, hotwords="Ada\n Charles  Babbage,Ada", name="Anna")
    assert answer.status == 200
    told = get(url, "api/overrides", id=ID)
    assert told == json.loads(answer.body)
    assert told["num_speakers"] == {"set": 2, "used": None, "manifest": ""}
    hotwords = ["Ada", "Charles Babbage"]
    assert told["hotwords"] == {"set": hotwords, "used": [], "manifest": []}
    assert (told["name"], told["seen"]) == ("Anna", 1)
    manifest = get(url, "api/overrides", id=OTHER)
    assert manifest["num_speakers"] == {"set": None, "used": None, "manifest": "1 to 4"}
    assert manifest["hotwords"]["manifest"] == ["Ada", "[U+202E]Ben"]
    assert save(url, seen=1).status == 200
    assert get(url, "api/overrides", id=ID)["num_speakers"]["set"] is None
    assert read_override(store, ID).number == 2


def test_once_a_run_has_used_it_both_values_are_shown(tmp_path: Path) -> None:
    used = Override(recording_id=ID, num_speakers=2, hotwords=("Ada",)).of_columns(MANIFEST)
    with serving(made(tmp_path / "output", used)) as server:
        told = get(server.url, "api/overrides", id=ID)
    assert told["num_speakers"] == {"set": None, "used": 2, "manifest": "1 to 4"}
    assert told["hotwords"] == {"set": [], "used": ["Ada"], "manifest": ["Ada", "[U+202E]Ben"]}


def test_the_second_of_two_people_is_refused_and_shown_what_is_set(
    url: str, store: OutputStore
) -> None:
    assert save(url, num_speakers=2, name="Anna").status == 200
    with serving(store) as other:
        assert save(other.url, num_speakers=3, seen=1, name="Ben").status == 200
    refused = save(url, num_speakers=4, seen=1)
    assert refused.status == 409
    assert "Ben has set something of this recording meanwhile" in json.loads(refused.body)["error"]
    assert get(url, "api/overrides", id=ID)["num_speakers"]["set"] == 3
    assert save(url, num_speakers=4, seen=2).status == 200


def test_what_cannot_be_set_is_refused(url: str, store: OutputStore, tmp_path: Path) -> None:
    for body, status, words in (
        ({"num_speakers": 51}, 400, "found 51 speakers, expected 1 to 50"),
        ({"num_speakers": "2"}, 400, "num_speakers '2', expected a whole number"),
        ({"num_speakers": True}, 400, "num_speakers True"),
        ({"hotwords": ["Ada"]}, 400, "expected text, a phrase per line"),
        ({"hotwords": "a" * 201}, 400, "a phrase of 201 characters"),
        ({"seen": "1"}, 400, "found seen '1'"),
        ({"id": "../../x", "num_speakers": 2}, 404, "has no recording"),
        ({"id": 7}, 400, "found id 7"),
    ):
        answer = save(url, **body)
        assert (answer.status, words in json.loads(answer.body)["error"]) == (status, True), body
    with serving(store, editable=False) as server:
        refused = save(server.url, num_speakers=2)
        assert (refused.status, b"--read-only" in refused.body) == (403, True)
        assert get(server.url, "api/overrides", id=ID)["editable"] is False
    assert [*store.all_names(OVERRIDES_FOLDER)] == []
    for pipeline in (None, "classify_audio"):
        shown = run_of(tmp_path / str(pipeline), spoken("/a.wav"), pipeline=pipeline)
        with serving(shown) as server:
            assert get(server.url, "api/overrides", id=ID)["counts"] is False
            refused = save(server.url, num_speakers=2)
            assert (refused.status, b"no later run" in refused.body) == (400, True)
