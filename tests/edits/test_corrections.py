"""Corrections as they are saved: one after the other, undone, and what is no correction."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.edits.corrections import (
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    Correction,
    Corrections,
    EditedSegment,
    correct,
    read_saved,
    save_correction,
)
from corpus_asr.edits.words import timed_words
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.run_state.annotations import CORRECTIONS_FOLDER, said_speakers
from corpus_asr.storage.run_state.tables import OutputStore

ID = "0123456789abcdef"


def edit(at: int, *texts: str, **values: Any) -> Correction:
    """Return a correction of a second, as texts that divide it."""
    row = {"channel": None, "start_s": float(at), "end_s": at + 1.0, "text": f" {at}"}
    step_s = 1.0 / max(1, len(texts))
    segments = [
        EditedSegment(start_s=at + number * step_s, end_s=at + (number + 1) * step_s, text=text)
        for number, text in enumerate(texts)
    ]
    return correct(ID, [row], segments, **values)


def undo(*others: Correction) -> Correction:
    return correct(ID, (), (), undoes=[other.id for other in others])


def counting(*saves: Correction) -> list[str]:
    names = {f"{CORRECTIONS_FOLDER}/{ID}/{at:06}.json": save for at, save in enumerate(saves)}
    return [correction.text for correction in Corrections(names).of(ID)]


def test_what_is_undone_counts_no_more_until_that_is_undone() -> None:
    one, other = edit(0, "a"), edit(1, "b")
    assert counting(one, other) == ["a", "b"]
    assert counting(one, other, undo(one)) == ["b"]
    taken = edit(2, "c", undoes=[one.id])
    assert counting(one, other, taken) == ["b", "c"]
    assert counting(one, other, taken, undo(taken)) == ["a", "b"]
    assert counting(one, other, undo(one, other)) == []
    assert counting(edit(0)) == [""]  # removed


def test_segments_are_counted_once() -> None:
    for saves, number in (((edit(0, "a"), edit(0, "b")), 1), ((edit(0, "a", "b"), edit(1, "c")), 3),
                          ((edit(0, "a", "b"), edit(0, "ab")), 1), ((edit(0),), 1)):  # fmt: skip
        names = {f"{at:06}.json": save for at, save in enumerate(saves)}
        assert len(Corrections(names)) == number


def test_of_two_who_save_after_the_same_one_is_refused_in_every_store(store: OutputStore) -> None:
    first = save_correction(store, edit(0, "Hello  world.\n"), {})
    assert first == f"{CORRECTIONS_FOLDER}/{ID}/000001.json"
    seen = read_saved(store)
    assert seen[first].segments[0].text == "Hello world."
    second = save_correction(store, edit(1, "b"), seen)
    assert save_correction(store, edit(1, "c"), seen) is None
    assert list(read_saved(store, seen)) == [first, second]
    assert [each.text for each in Corrections.load(store).of(ID)] == ["Hello world.", "b"]
    assert save_correction(store, edit(1, "c"), read_saved(store)) is not None
    assert Corrections.load(store).digest() != Corrections({}).digest() == ""
    editions = [Corrections(saved).edition(ID) for saved in ({}, seen, read_saved(store))]
    assert len({*editions}) == 3


def test_only_text_of_a_sensible_length_is_saved() -> None:
    for text, name, words in (
        ("a" * (MAX_TEXT_CHARS + 1), "", "expected 4,000 at most"),
        ("a", "b" * (MAX_NAME_CHARS + 1), "saving the name"),
        ("a\0b", "", r"found the character U\+0000"),
        ("\x1b[2J", "", r"U\+001B"),
        ("\ud800", "", r"U\+D800"),
    ):
        with pytest.raises(ConfigError, match=words):
            edit(0, text, name=name)
    hostile = "</script><b>\u202e=cmd|' /C calc'!A0"
    assert edit(0, hostile).segments[0].text == hostile


def test_an_object_that_is_no_correction_is_named(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    name = save_correction(store, edit(0, "Hello world."), {})
    assert name is not None
    good = store.read_json(name)
    [segment] = good["segments"]
    wrong: tuple[Any, ...] = (
        {},
        [],
        {**good, "name": "\udcff"},
        {**good, "segments": []},
        {**good, "segments": [7]},
        {**good, "segments": [segment | {"checked": 1}]},
        {**good, "segments": [segment | {"text": None}]},
        {**good, "segments": [segment | {"text": "\ud800"}]},
        {**good, "segments": [segment | {"start_s": "1"}]},
        {**good, "segments": [segment | {"start_s": True}]},
        {**good, "start_s": math.nan},
        {**good, "channel": "0"},
        {**good, "undoes": [1]},
    )
    bad = f"{CORRECTIONS_FOLDER}/x/1.json"
    for data in (*(json.dumps(value).encode() for value in wrong), b"[" * 100_000, b"\xff\xfe"):
        store.write_bytes(bad, data)
        with pytest.raises(CorpusAsrError, match=r"x/1\.json: found no correction .* remove it"):
            read_saved(store)
    for content in (*wrong[:2], {"recording_id": "x", "segments": [7]}):
        store.write_json(bad, content)
        with pytest.raises(CorpusAsrError, match=r"x/1\.json: found no correction .* remove it"):
            list(said_speakers(store))
    store.write_json(bad, {**good, "from_a_newer_version": 1})
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
