"""Words of known texts that two parts claim: one has them, whatever happened on the way."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.errors import CorpusAsrError
from corpus_asr.export.missing_words import MissingWords, missing_words_of
from corpus_asr.runtime import known_texts
from corpus_asr.runtime.known_texts import place_words_once
from corpus_asr.storage.run_state.finish import compact, keep_only
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.transcription.joined_text import text_columns
from tests.support.tables import (
    commit,
    complete,
    part,
    results,
    rows_of,
)

# A refrain of three words is said twice in the text, numbers 2 to 4 and 6 to 8.
WORDS = [" so", " we", " row", " the", " boat", " and", " row", " the", " boat", " home"]
TEXT = "".join(WORDS).strip()
ALL = pa.array([recording_id("/a"), recording_id("/b")])


def saying(
    name: str, index: int, *indices: int, probability: float, **values: Any
) -> dict[str, Any]:
    """A row of a part that says these words, a second each, in segments of two."""
    start_s = 10.0 * index
    words: list[dict[str, Any]] = [
        {"word": WORDS[at], "start_s": start_s + place, "end_s": start_s + place + 0.5,
         "probability": probability}
        for place, at in enumerate(indices)
    ]  # fmt: skip
    pairs = [words[at : at + 2] for at in range(0, len(words), 2)]
    row = part(name, index, texts=["".join(w["word"] for w in pair) for pair in pairs], **values)
    for segment, pair in zip(row["segments"], pairs, strict=True):
        segment |= {"words": pair, "start_s": pair[0]["start_s"], "end_s": pair[-1]["end_s"]}
    found = zip(indices, (word["end_s"] for word in words), strict=True)
    metadata = json.dumps({"text": TEXT})
    return row | text_columns(list(map(len, WORDS)), found) | {"metadata": metadata}


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    """Of `/a` both parts claim the refrain, each in a commit; `/b` is as it should be."""
    store = OutputStore(str(tmp_path))
    store.write_json(CONFIG_NAME, {"decoding": {"align": True}})
    commit(store, results(saying("a", 0, 0, 1, 2, 3, 4, probability=0.4, last=False),
                          saying("b", 0, 0, 1, 2, 3, 4, probability=0.9, last=False)))  # fmt: skip
    commit(store, results(saying("b", 1, 6, 7, 8, 9, probability=0.9),
                          saying("a", 1, 2, 3, 4, 9, probability=0.8)))  # fmt: skip
    return store


def said(store: OutputStore) -> dict[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows_of(store.segments()):
        found.setdefault((row["uri"], row["part"]), []).append(row["text"])
    return found


SAID = {
    ("/a", 0): [" so we"],
    ("/a", 1): [" row the", " boat home"],
    ("/b", 0): [" so we", " row the", " boat"],
    ("/b", 1): [" row the", " boat home"],
}


def missing_words(store: OutputStore) -> MissingWords | None:
    with RunTables(store) as tables:
        whole = tables.table("select recording_id from recordings where complete and not failed")
    return missing_words_of(store, whole)


def check(store: OutputStore) -> None:
    assert said(store) == SAID
    rows = {(row["uri"], row["part"]): row for row in rows_of(store.outcomes())}
    assert len(rows) == 4
    assert {key: row["text_found"] for key, row in rows.items()} == {
        ("/a", 0): 2, ("/a", 1): 4, ("/b", 0): 5, ("/b", 1): 4,
    }  # fmt: skip
    assert rows["/a", 0]["segments_written"] == 1
    assert rows["/a", 0]["text_spans"] == [{"first": 0, "stop": 2, "end_s": 1.5}]
    recordings = complete(store)
    missing = {row["uri"]: (row["missing_words"], row["text_words"]) for row in recordings}
    assert missing == {"/a": (4, 10), "/b": (1, 10)}
    words = missing_words(store) or {}
    assert [(w.word, w.index, w.after_s) for w in words[recording_id("/a")]] == [
        (" and", 5, 12.5), (" row", 6, 12.5), (" the", 7, 12.5), (" boat", 8, 12.5),
    ]  # fmt: skip
    assert [w.index for w in words[recording_id("/b")]] == [5]


def test_the_part_that_fits_better_has_the_words(store: OutputStore) -> None:
    assert place_words_once(store, ALL) == 1
    check(store)
    names = store.names("outcomes")
    assert place_words_once(store, ALL) == 0  # nothing is left to do
    assert store.names("outcomes") == names
    compact(store, 1e9)
    check(store)


def test_incomplete_recordings_are_left_alone(store: OutputStore) -> None:
    before = said(store)
    assert place_words_once(store, ALL[1:]) == 0
    assert said(store) == before


def test_killed_between_two_commits_it_is_done_by_the_next(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise CorpusAsrError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(known_texts, "keep_only", killed)
        with pytest.raises(CorpusAsrError, match="killed"):
            place_words_once(store, ALL)
    assert len(rows_of(store.outcomes())) == 5
    with RunTables(store) as tables:
        keep_only(store, tables.places())  # as a finish does first
        assert place_words_once(store, tables.ids("complete")) == 1
    check(store)


def test_a_recording_of_which_a_part_failed_has_no_missing_words(store: OutputStore) -> None:
    commit(store, results(saying("c", 0, 0, 1, probability=0.9, last=False),
                          part("c", 1, texts=None, status="failed", error_kind="x")))  # fmt: skip
    table = complete(store)
    of = {row["uri"]: row for row in table}
    assert (of["/c"]["text_words"], of["/c"]["missing_words"]) == (10, None)
    words = missing_words(store) or {}
    assert recording_id("/c") not in words
    store.write_json(CONFIG_NAME, {"decoding": {}})
    assert missing_words(store) is None
