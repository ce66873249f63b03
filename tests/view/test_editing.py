"""Corrections through the server: saved, found, shown, kept apart from what they do not fit."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.edits.corrections import (
    MAX_TEXT_CHARS,
    hash_of,
    read_saved,
)
from corpus_asr.storage.run_state.annotations import CORRECTIONS_FOLDER
from corpus_asr.storage.run_state.table_names import SPEAKERS_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view.texts import segments_at
from tests.support.pages import Response, asked, fetch, sent
from tests.support.runs import correct_segment, finished, passage, run_of, says, spoken
from tests.support.tables import part
from tests.view.conftest import HOSTILE_TEXT, add, get, serving

ID = recording_id("/c/a.wav")
WORDS = [
    passage(0, "one to three", probabilities=(0.9, 0.2, 0.9)),
    passage(1, "four five", probabilities=(0.5, 0.9), confidence=0.5),
    passage(2, "five"),
]


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    """A run of two recordings; of one a part is missing."""
    return run_of(tmp_path / "output", spoken("/c/a.wav", *WORDS, last_part=False),
                  spoken("/c/b.wav", passage(0, "other")))  # fmt: skip


@pytest.fixture
def url(store: OutputStore) -> Iterator[str]:
    with serving(store) as server:
        yield server.url


def segments(url: str, **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(url, "api/segments", id=ID, block=0, **parameters)["segments"]
    return found


def content(store: OutputStore) -> dict[str, bytes]:
    """Return all files of an output folder but corrections."""
    folder = Path(store.uri)
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in names.items() if not name.startswith(CORRECTIONS_FOLDER)}


def eventually(url: str, what: str, holds: Callable[[Any], bool], **parameters: Any) -> None:
    """Wait until an answer is as expected: each one starts a look at the folder."""
    deadline = time.monotonic() + 30
    while not holds(get(url, what, **parameters)):
        assert time.monotonic() < deadline


def correct(url: str, at: int, text: str, **values: Any) -> Response:
    """Correct the text of one segment as the page does, which has just read it."""
    return replaced(url, [at], [said(url, at, text)], **values)


@pytest.mark.parametrize("reads_first", [True, False])
def test_objects_that_a_run_replaced_since_are_looked_for_again(
    tmp_path: Path, reads_first: bool
) -> None:
    """A page that was opened before a run finished, whose end nobody has looked for."""
    store = run_of(tmp_path / "output", spoken("/c/a.wav", *WORDS))
    add(store, spoken("/c/b.wav", passage(0, "other")))
    with serving(store, refresh_s=math.inf) as server:
        shown = segments(server.url)
        finished(store, "a.wav", "b.wav")
        if reads_first:
            other = recording_id("/c/b.wav")
            assert get(server.url, "api/recording", id=other)["segments"] == 1
        seen = {shown[0]["key"]: shown[0]["version"]}
        said = {"start_s": 0.0, "end_s": 2.0, "text": "one two three"}
        value = {"id": ID, "keys": [*seen], "segments": [said], "checked": True, "seen": seen}
        answer = sent(server.url, "api/correct", value)
        assert (answer.status, len(read_saved(store))) == (200, 1)
        assert fetch(asked(server.url, "saved", id=ID, format="txt")).body.startswith(b"one two")


def said(url: str, at: int, text: str, **values: Any) -> dict[str, Any]:
    row = segments(url)[at]
    return {"start_s": row["start_s"], "end_s": row["end_s"], "text": text, **values}


def replaced(url: str, numbers: Sequence[int], made: Any, **values: Any) -> Response:
    rows = [segments(url)[at] for at in numbers]
    body = {"id": ID, "keys": [row["key"] for row in rows], "segments": made, "checked": True,
            "seen": {row["key"]: row["version"] for row in rows}, **values}  # fmt: skip
    return sent(url, "api/correct", body)


def undone(url: str, at: int) -> Response:
    row = segments(url)[at]
    return sent(url, "api/undo", {"id": ID, "key": row["key"], "seen": row["version"]})


def test_what_is_saved_is_shown_found_and_exported_with_the_original(
    url: str, store: OutputStore
) -> None:
    assert get(url, "api/unsure", id=ID)["at_s"] == pytest.approx(2 / 3)
    before = content(store)
    answer = correct(url, 0, " one  two three ", name="Anna")
    assert answer.status == 200
    told = json.loads(answer.body)
    (segment,) = told["segments"]
    assert segment == segments(url)[0]
    assert told["removed"] == [".0.2000." + hash_of(" one to three")]
    said = segment["correction"]
    assert (segment["text"], segment["confidence"]) == ("one two three", 1.0)
    assert [word[0] for word in segment["words"]] == [" one", " two", " three"]
    assert (said["original"], said["name"], said["checked"]) == ("one to three", "Anna", True)
    assert (said["changed"], said["saved_at"][:2]) == (True, "20")
    # The word is no longer doubtful, nor is the search behind the page.
    assert get(url, "api/unsure", id=ID)["at_s"] == 2.0
    assert get(url, "api/search", q="to -two")["total"] == 0
    (hit,) = get(url, "api/search", q="two", min_confidence=0.99)["hits"]
    assert hit["pieces"] == [[" one ", False], ["two", True], [" three", False]]
    assert (hit["text"], hit["correction"]["original"]) == ("one two three", "one to three")
    (hit,) = get(url, "api/search", q="four")["hits"]
    assert hit["before"] == " one two three"
    assert fetch(asked(url, "saved", id=ID, format="txt")).body.startswith(b"one two three\n")
    assert get(url, "api/run")["corrections"] == 1
    # Nothing else was written, and nothing of the tables changed.
    assert content(store) == before
    (name,) = store.all_names(CORRECTIONS_FOLDER)
    assert store.read_json(name)["segments"][0]["text"] == "one two three"
    # Checked as it is, removed, and back to the model's text.
    for text, expected in (("one to three", ("one to three", False)), ("", ("", True))):
        (segment,) = json.loads(correct(url, 0, text).body)["segments"]
        assert (segment["text"], segment["correction"]["changed"]) == expected
    for before_it in ("one to three", "one two three", "one to three"):  # step by step
        (segment,) = json.loads(undone(url, 0).body)["segments"]
        assert segment["text"] == before_it
    assert segment["correction"] is None
    assert undone(url, 0).status == 409
    assert get(url, "api/run")["corrections"] == 0
    assert get(url, "api/search", q="to")["total"] == 1


def test_a_removed_segment_is_not_exported(url: str) -> None:
    correct(url, 1, "")
    assert fetch(asked(url, "saved", id=ID, format="txt")).body == b"one to three\nfive\n"
    assert segments(url)[1]["words"] == []
    assert get(url, "api/search", q="four")["total"] == 0


def test_of_two_windows_the_second_is_shown_what_is_there(url: str) -> None:
    (row, other, _) = segments(url)
    first = {"id": ID, "keys": [row["key"]], "segments": [said(url, 0, "first")], "checked": True,
             "name": "Anna", "seen": {row["key"]: row["version"]}}  # fmt: skip
    assert sent(url, "api/correct", first).status == 200
    second = first | {"segments": [said(url, 0, "second")], "name": "Bob"}
    refused = sent(url, "api/correct", second)
    assert refused.status == 409
    told = json.loads(refused.body)
    assert "Anna has changed this segment; nothing was saved" in told["error"]
    assert [each["text"] for each in told["segments"]] == ["first"]
    assert segments(url)[0]["text"] == "first"
    # Another segment of the same page is nobody's business.
    third = first | {"keys": [other["key"]], "segments": [said(url, 1, "third")], "seen": {}}
    assert sent(url, "api/correct", third).status == 200
    # Who has seen it may replace it.
    shown = told["segments"][0]
    again = second | {"keys": [shown["key"]], "seen": {shown["key"]: shown["version"]}}
    assert sent(url, "api/correct", again | {"seen": {shown["key"]: "other"}}).status == 409
    # By place alone nobody would know of which segment it is the version.
    assert sent(url, "api/correct", again | {"seen": [shown["version"]]}).status == 400
    assert sent(url, "api/correct", again).status == 200
    assert [row["text"] for row in segments(url)] == ["second", "third", "five"]


def test_a_segment_keeps_a_speaker_who_is_no_longer_found(url: str, store: OutputStore) -> None:
    says(store, "/c/a.wav", (0.0, 1.0, "S1"), (1.0, 3.0, "S2"))
    assert replaced(url, [0], [said(url, 0, "one") | {"speaker": "S2"}]).status == 200
    store.remove_all(store.names(SPEAKERS_FOLDER))
    says(store, "/c/a.wav", (0.0, 3.0, "S1"))
    with serving(store) as later:
        assert (
            replaced(later.url, [0], [said(later.url, 0, "two") | {"speaker": "S2"}]).status == 200
        )
        answer = replaced(later.url, [1], [said(later.url, 1, "two") | {"speaker": "S2"}])
        assert answer.status == 400


def test_segments_are_split_merged_moved_and_given_to_speakers(
    url: str, store: OutputStore
) -> None:
    says(store, "/c/a.wav", (0.0, 4.0, "S1"), (4.0, 6.0, "S2"))
    assert correct(url, 0, "one to three", checked=False).status == 200
    halves = [{"start_s": 0.0, "end_s": 0.7, "text": "one", "speaker": "Anna"},
              {"start_s": 0.7, "end_s": 2.0, "text": "to three"}]  # fmt: skip
    told = json.loads(replaced(url, [0], halves, checked=False).body)
    assert next((row["text"], row["speaker"], row["said_by"]) for row in told["segments"]) == (
        "one", "Anna", "Anna"
    )  # fmt: skip
    assert [[word[0] for word in row["words"]] for row in segments(url)[:2]] == [
        [" one"], [" to", " three"]
    ]  # fmt: skip
    # The words are still the model's: nobody vouched for them.
    assert segments(url)[0]["confidence"] == pytest.approx(0.9)
    assert get(url, "api/unsure", id=ID)["at_s"] is not None
    # Two people, each with a half.
    assert correct(url, 1, "two three", name="Bob").status == 200
    assert correct(url, 0, "One,", name="Anna").status == 200
    assert get(url, "api/search", q='"two three"')["total"] == 1
    assert get(url, "api/search", q="to -two")["total"] == 0
    merged = {"start_s": 0.7, "end_s": 4.0, "text": "two three four five"}
    assert replaced(url, [1, 2], [merged]).status == 200
    assert [row["text"] for row in segments(url)] == ["One,", "two three four five", "five"]
    (hit,) = get(url, "api/search", q="four")["hits"]
    assert (hit["before"], hit["after"]) == (" One,", " five")
    # What others build on is not undone first.
    assert undone(url, 0).status == 200
    refused = undone(url, 0)
    assert (refused.status, b"build on this one" in refused.body) == (409, True)
    told = json.loads(undone(url, 1).body)
    assert [row["text"] for row in told["segments"]] == ["two three", "four five"]
    # Only marked as checked; then another time.
    assert replaced(url, [3], None).status == 200
    assert segments(url)[3]["correction"]["checked"]
    moved = json.loads(replaced(url, [3], [said(url, 3, "five") | {"end_s": 5.5}]).body)
    assert moved["segments"][0]["end_s"] == 5.5
    exported = fetch(asked(url, "saved", id=ID, format="txt")).body
    words = [word for word in exported.split() if not word.startswith(b"[")]
    assert words == b"one two three four five five".split()
    assert exported.startswith(b"[Anna] one")


def test_what_cannot_be_is_refused(url: str, store: OutputStore) -> None:
    row = said(url, 1, "x")
    for numbers, made, words in (
        ([], [row], "found no keys"),
        ([0, 2], [row], "another segment between them"),
        ([1], [row | {"end_s": 2.0}], "expected it after the start"),
        ([1], [row | {"end_s": 1.0}], "expected it after the start"),
        ([1], [row | {"start_s": -1.0}], "up to the end of the recording"),
        ([2], [row | {"start_s": 4.0, "end_s": 7.0}], "up to the end of the recording"),
        ([1], [row | {"start_s": 0.5}], "expected at most 1 s of the segments"),
        ([1], [row | {"end_s": 5.5}], "expected at most 1 s of the segments"),
        ([1], [row | {"end_s": math.nan}], "expected seconds"),
        ([1], [row | {"end_s": "4"}], "expected seconds"),
        ([1], [row, row], "expected segments in order"),
        ([1], [row | {"end_s": 3.0}, row | {"start_s": 3.0, "text": " "}], "without text"),
        ([1], [row | {"speaker": "S9"}], "found the speaker S9"),
        ([1], [row | {"speaker": 9}], "segments[0].speaker is 9"),
        ([1], [row | {"text": None}], "segments[0].text is None"),
        ([1], ["x"], "segments[0] is 'x'"),
        ([1], [row] * 101, "at most 100"),
        ([1], "x", "segments is 'x'"),
    ):
        answer = replaced(url, numbers, made)
        assert (answer.status, words in json.loads(answer.body)["error"]) == (400, True), (
            words, answer.body
        )  # fmt: skip
    assert read_saved(store) == {}


def test_two_servers_of_one_run_see_each_others_corrections(url: str, store: OutputStore) -> None:
    with serving(store) as other:
        correct(url, 0, "first")
        correct(other.url, 1, "second")
        for _ in range(2):  # a look starts a refresh, which the next one sees
            for each in (url, other.url):
                eventually(each, "api/run", lambda run: run["corrections"] == 2)
                assert [row["text"] for row in segments(each)] == ["first", "second", "five"]
                assert get(each, "api/search", q="second")["total"] == 1
    assert len(read_saved(store)) == 2


def test_another_server_that_has_not_looked_yet_saves_next_to_it_or_is_refused(
    url: str, store: OutputStore
) -> None:
    with serving(store, refresh_s=math.inf) as other:
        shown = segments(other.url)
        assert correct(url, 0, "first", name="Anna").status == 200
        body = {"id": ID, "segments": [{"start_s": 2.0, "end_s": 4.0, "text": "second"}],
                "keys": [shown[1]["key"]]}  # fmt: skip
        assert sent(other.url, "api/correct", body).status == 200
        texts = [row["text"] for row in segments(other.url)]
        assert texts == ["first", "second", "five"]
        late = body | {"keys": [shown[0]["key"]],
                       "segments": [{"start_s": 0.0, "end_s": 2.0, "text": "mine"}]}  # fmt: skip
        assert correct(url, 2, "third").status == 200
        refused = sent(other.url, "api/correct", late)
        assert (refused.status, b"Anna has changed this segment" in refused.body) == (409, True)
    assert len(read_saved(store)) == 3


def test_pages_are_shown_while_a_correction_is_read(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, done = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        reading.set()
        assert done.wait(30)
        return segments_at(*args)

    with serving(store, refresh_s=3600.0) as server, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr("corpus_asr.view.texts.segments_at", slow)
        saved = pool.submit(correct, server.url, 0, "first")
        assert reading.wait(30)
        shown = pool.submit(get, server.url, "api/run")
        try:
            assert shown.result(timeout=10)["corrections"] == 0
        finally:
            done.set()
        assert saved.result().status == 200
        assert get(server.url, "api/search", q="first")["total"] == 1


@pytest.mark.long
def test_corrections_survive_what_is_transcribed_again_and_stale_ones_are_listed(
    url: str, store: OutputStore
) -> None:
    correct(url, 0, "one two three", name="Anna")
    correct(url, 2, "5")
    # The missing part comes, another recording is tried again, and tables are rewritten.
    add(store, spoken("/c/a.wav", passage(5, "late"), part=1))
    add(store, part("", 0, uri="/c/b.wav", texts=[" again"], etag="v2"))
    finished(store, "c/a.wav", "c/b.wav")
    eventually(url, "api/recording", lambda one: one["segments"] == 4, id=ID)
    assert [row["text"] for row in segments(url)] == ["one two three", "four five", "5", "late"]
    assert get(url, "api/recording", id=ID)["stale"] == []
    # A newer version that says the same at the same times keeps what was said of it.
    edition = get(url, "api/recording", id=ID)["edition"]
    add(store, spoken("/c/a.wav", *WORDS, etag="v2"))
    eventually(url, "api/recording", lambda one: one["segments"] == 3, id=ID)
    assert [row["text"] for row in segments(url)] == ["one two three", "four five", "5"]
    # One that says something else does not: it is listed, and not applied.
    others = [passage(at, f"other {at}") for at in range(3)]
    add(store, spoken("/c/a.wav", *others, etag="v3"))
    eventually(url, "api/recording", lambda one: len(one["stale"]) == 2, id=ID)
    assert [row["text"] for row in segments(url)] == ["other 0", "other 1", "other 2"]
    recording = get(url, "api/recording", id=ID)
    stale = recording["stale"][0]
    assert (stale["original"], stale["text"], stale["name"]) == (
        "one to three", "one two three", "Anna"
    )  # fmt: skip
    assert recording["edition"] == edition
    assert stale["now"] == "other 0"
    # An edit of what the model says now takes its place.
    assert correct(url, 0, "one two three").status == 200
    assert [row["text"] for row in segments(url)] == ["one two three", "other 1", "other 2"]
    assert len(get(url, "api/recording", id=ID)["stale"]) == 1


def test_hostile_texts_stay_text_and_what_is_no_correction_is_refused(
    url: str, store: OutputStore
) -> None:
    assert correct(url, 0, HOSTILE_TEXT, name="<i>").status == 200
    segment = segments(url)[0]
    assert segment["text"] == HOSTILE_TEXT  # to be edited; what is shown has signs
    shown = "".join(word[0] for word in segment["words"])
    assert shown.strip() == HOSTILE_TEXT.replace("\u202e", "[U+202E]")
    key, other = segments(url)[1]["key"], recording_id("/c/b.wav")
    row = said(url, 1, "x")
    for body, status, words in (
        ({"id": ID, "keys": [key], "segments": [row | {"text": "a" * (MAX_TEXT_CHARS + 1)}]}, 400,
         "expected 4,000"),
        ({"id": ID, "keys": [key], "segments": [row | {"text": "a\x00b"}]}, 400, "U+0000"),
        ({"id": ID, "keys": key, "segments": [row]}, 400, "expected a list"),
        ({"id": ID, "keys": [key], "checked": "yes"}, 400, "checked is 'yes'"),
        ({"keys": [key], "segments": [row]}, 400, "found no id"),
        ({"id": "0" * 16, "keys": [key], "segments": [row]}, 404, "has no recording"),
        ({"id": "../../etc", "keys": [key], "segments": [row]}, 404, "has no recording"),
        ({"id": other, "keys": [key], "segments": [row]}, 409, "this segment again"),
        ({"id": ID, "keys": [".2000.4000.0"], "segments": [row]}, 409, "this segment again"),
        ({"id": ID, "keys": ["a.b.c.d"], "segments": [row]}, 409, "no longer exists"),
        ({"id": ID, "keys": [{}], "segments": [row]}, 409, "no longer exists"),
    ):  # fmt: skip
        answer = sent(url, "api/correct", body)
        assert (answer.status, words in json.loads(answer.body)["error"]) == (status, True), body
    assert len(read_saved(store)) == 1


def test_where_nothing_may_be_written_nothing_is(store: OutputStore, tmp_path: Path) -> None:
    correct_segment(store, "five", "5")
    with serving(store, editable=False) as server:
        assert segments(server.url)[2]["text"] == "5"
        assert not get(server.url, "api/recording", id=ID)["editable"]
        refused = correct(server.url, 0, "one two three")
        assert (refused.status, b"--read-only" in refused.body) == (403, True)
    assert len(read_saved(store)) == 1
    with serving(store) as server:
        folder = Path(store.uri) / CORRECTIONS_FOLDER
        folder.rename(tmp_path / "away")
        folder.write_text("in the way")
        failed = correct(server.url, 0, "one two three")
        assert failed.status in (404, 502)
        assert b"cannot create" in failed.body
        assert segments(server.url)[0]["text"] == "one to three"
