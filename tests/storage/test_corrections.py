"""Corrections: the last save of a segment counts, nothing is lost, and stale ones are known."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.run_state.corrections import (
    CORRECTIONS_FOLDER,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    Corrections,
    Corrector,
    correct,
    read_saved,
    save_correction,
    timed_words,
)
from corpus_asr.storage.run_state.tables import OutputStore

RECORDING = {"recording_id": "0123456789abcdef", "etag": "v1", "size_bytes": 100}
SEGMENT = {"channel": None, "start_s": 1.25, "end_s": 3.5, "text": " Hello word."}
WORDS = [
    {"word": " Hello", "start_s": 1.25, "end_s": 2.0, "probability": 0.9},
    {"word": " word.", "start_s": 2.5, "end_s": 3.5, "probability": 0.2},
]


def save(store: OutputStore, text: str, *, checked: bool = True, **segment: Any) -> str:
    return save_correction(store, correct(RECORDING, SEGMENT | segment, text=text, checked=checked))


def table(*rows: dict[str, Any]) -> pa.Table:
    usual = {
        "recording_id": RECORDING["recording_id"],
        "confidence": 0.3,
        "tokens": [1, 2],
        "avg_logprob": -1.0,
        "known_hallucination": True,
    }
    return pa.Table.from_pylist([usual | row for row in rows])


def corrected(store: OutputStore, *rows: dict[str, Any], **version: Any) -> list[dict[str, Any]]:
    recordings = pa.Table.from_pylist([RECORDING | version])
    corrector = Corrector(Corrections.load(store), recordings)
    found: list[dict[str, Any]] = corrector.apply(table(*rows)).to_pylist()
    return found


def test_the_last_save_of_a_segment_counts_in_every_store(store: OutputStore) -> None:
    assert corrected(store, SEGMENT)[0]["corrected"] is False
    first = save(store, "Hello  world.\n")
    (row,) = corrected(store, SEGMENT | {"words": WORDS})
    assert (row["text"], row["confidence"], row["corrected"]) == (" Hello world.", 1.0, True)
    assert (row["tokens"], row["avg_logprob"], row["known_hallucination"]) == (None, None, False)
    assert [(word["word"], word["start_s"]) for word in row["words"]] == [
        (" Hello", 1.25), (" world.", 2.5)
    ]  # fmt: skip
    # Two windows save at once: both objects are there, and the later one counts.
    names = [first, save(store, "Hello, world!"), save(store, "Other", start_s=0.0)]
    assert sorted(read_saved(store)) == sorted(names)
    assert corrected(store, SEGMENT)[0]["text"] == " Hello, world!"
    # Checked without a change: the model's text and tokens stay, and are vouched for.
    save(store, "Hello word.")
    (row,) = corrected(store, SEGMENT)
    assert (row["text"], row["tokens"], row["confidence"]) == (" Hello word.", [1, 2], 1.0)
    save(store, "Hello word.", checked=False)  # withdrawn
    assert corrected(store, SEGMENT)[0]["corrected"] is False


def test_a_segment_that_changed_is_left_alone_and_its_correction_known(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    name = save(store, "Hello world.")
    for change in ({"text": " Hello work."}, {"start_s": 1.26}, {"end_s": 3.4}, {"channel": 0}):
        assert corrected(store, SEGMENT | change)[0]["corrected"] is False, change
    assert corrected(store, SEGMENT, recording_id="f" * 16)[0]["corrected"] is False
    for version in ({"etag": "v2"}, {"size_bytes": 99}):
        assert corrected(store, SEGMENT, **version)[0]["corrected"] is True, version
    corrector = Corrector(Corrections.load(store), pa.Table.from_pylist([RECORDING]))
    corrector.apply(table(SEGMENT | {"text": " Hello work."}))
    corrector.apply(table(SEGMENT | {"recording_id": "f" * 16}))  # of another recording
    assert list(corrector.stale) == [name]
    corrector.apply(table(SEGMENT))
    assert corrector.stale == {}


def test_only_text_of_a_sensible_length_is_saved() -> None:
    for text, name, words in (
        ("a" * (MAX_TEXT_CHARS + 1), "", "expected 4,000 at most"),
        ("a", "b" * (MAX_NAME_CHARS + 1), "saving the name"),
        ("a\0b", "", r"found the character U\+0000"),
        ("\x1b[2J", "", r"U\+001B"),
        ("\ud800", "", r"U\+D800"),
    ):
        with pytest.raises(ConfigError, match=words):
            correct(RECORDING, SEGMENT, text=text, checked=True, name=name)
    hostile = "</script><b>\u202e=cmd|' /C calc'!A0"
    assert correct(RECORDING, SEGMENT, text=hostile, checked=True).text == hostile


def test_an_object_that_is_no_correction_is_named(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    name = save(store, "Hello world.")
    good = store.read_json(name)
    wrong: tuple[Any, ...] = (
        {},
        [],
        {**good, "start_s": "1"},
        {**good, "text": None},
        {**good, "checked": 1},
        {**good, "text": "\ud800"},
        {**good, "name": "\udcff"},
        {**good, "start_s": math.nan},
    )
    bad = f"{CORRECTIONS_FOLDER}/x/1.json"
    for data in (*(json.dumps(value).encode() for value in wrong), b"[" * 100_000, b"\xff\xfe"):
        store.write_bytes(bad, data)
        with pytest.raises(CorpusAsrError, match=r"x/1\.json: found no correction .* remove it"):
            read_saved(store)
    store.write_json(f"{CORRECTIONS_FOLDER}/x/1.json", {**good, "from_a_newer_version": 1})
    store.write_bytes(f"{CORRECTIONS_FOLDER}/x/README.txt", b"not one of ours")
    assert len(read_saved(store)) == 2


def test_kept_words_keep_their_times_and_new_ones_share_what_is_between() -> None:
    words = [
        {"word": f" {word}", "start_s": float(at), "end_s": at + 0.8, "probability": 0.5}
        for at, word in enumerate(["ask", "not", "what", "your"])
    ]
    for text, expected in (
        (" Ask, not what your", [(" Ask,", 0.0), (" not", 1.0), (" what", 2.0), (" your", 3.0)]),
        (" ask what your", [(" ask", 0.0), (" what", 2.0), (" your", 3.0)]),
        (" ask noted wart your", [(" ask", 0.0), (" noted", 1.0), (" wart", 1.98), (" your", 3.0)]),
        (" ask us not what your", [(" ask", 0.0), (" us", 0.8), (" not", 1.0), (" what", 2.0),
                                   (" your", 3.0)]),
        ("", []),
    ):  # fmt: skip
        found = timed_words(words, text, 0.0, 4.0)
        assert [(word["word"], round(word["start_s"], 2)) for word in found] == expected, text
    # Scripts without spaces between words are divided by characters.
    spaceless = [{"word": word, "start_s": float(at), "end_s": at + 1.0, "probability": 0.5}
                 for at, word in enumerate("你好世界")]  # fmt: skip
    assert [word["word"] for word in timed_words(spaceless, "你们好", 0.0, 4.0)] == [
        "你",
        "们",
        "好",
    ]


BEFORE, AFTER = ["ab", "cd,", "e", "f!", "gé"], ["ab", "cd", "e", "f", "gé", "new"]


@given(
    st.lists(st.sampled_from(BEFORE), max_size=8),
    st.lists(st.sampled_from(AFTER), max_size=8),
    st.booleans(),
)
def test_words_with_times_are_the_text_and_in_order(
    before: list[str], after: list[str], touching: bool
) -> None:
    step_s = 0.5
    words = [
        {"word": f" {word}", "start_s": 1 + at * step_s, "probability": 0.5,
         "end_s": 1 + (at + (1.0 if touching else 0.6)) * step_s}
        for at, word in enumerate(before)
    ]  # fmt: skip
    end_s = 1 + step_s * len(before)
    text = "".join(f" {word}" for word in after)
    found = timed_words(words, text, 1.0, end_s)
    assert "".join(word["word"] for word in found) == text
    times = [time for word in found for time in (word["start_s"], word["end_s"])]
    assert times == sorted(times)
    assert all(1.0 <= time <= end_s for time in times)
