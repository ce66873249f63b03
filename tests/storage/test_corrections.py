"""Corrections as they are saved: what builds on what, what stands, and what is no correction."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.run_state.corrections import (
    CORRECTIONS_FOLDER,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    Correction,
    Corrections,
    Replaced,
    Said,
    correct,
    read_saved,
    save_correction,
    stem_of,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.run_state.timed_words import timed_words

ID = "0123456789abcdef"
RECORDING = {"recording_id": ID, "etag": "v1", "size_bytes": 100}


def model(at: int) -> Replaced:
    return Replaced(channel=None, start_s=float(at), end_s=at + 1.0, original=f" {at}")


def of(stem: str, index: int = 0) -> Replaced:
    return Replaced(channel=None, start_s=0.0, end_s=1.0, original="x", edit=stem, index=index)


def edit(replaces: list[Replaced], *texts: str, **values: Any) -> Correction:
    said = [Said(start_s=float(at), end_s=at + 1.0, text=text) for at, text in enumerate(texts)]
    return correct(RECORDING, replaces, said, **({"checked": True} | values))


def groups(**saves: Correction) -> list[tuple[str, str, bool]]:
    """Return the model's text, that of people, and whether it is in conflict, of each group."""
    found = Corrections({f"{CORRECTIONS_FOLDER}/{ID}/{stem}.json": each
                         for stem, each in saves.items()})  # fmt: skip
    return [(each.original, each.text, each.in_conflict) for each in found.of(ID)]


def test_corrections_that_build_on_each_other_are_one_group() -> None:
    split = edit([model(0)], "a", "b")
    assert groups(s1=split) == [("0", "a b", False)]
    # Two people, each with a half, also on two servers.
    saves = {"s1": split, "s2": edit([of("s1", 0)], "A"), "s3": edit([of("s1", 1)], "B")}
    assert groups(**saves) == [("0", "A B", False)]
    # A merge with what another group made makes one of both.
    saves |= {"s4": edit([model(1)], "c"), "s5": edit([of("s3"), of("s4")], "B c")}
    assert groups(**saves) == [("0 1", "A B c", False)]
    # Withdrawn, both are there again.
    saves["s6"] = edit([], withdraws=["s5"])
    assert groups(**saves) == [("0", "A B", False), ("1", "c", False)]
    # What others build on stands.
    saves["s7"] = edit([], withdraws=["s1", "s4"])
    assert groups(**saves) == [("0", "A B", False)]
    saves["s8"] = edit([], withdraws=["s2", "s3"])
    assert groups(**saves) == []
    assert groups(s1=edit([model(0)])) == [("0", "", False)]  # removed


def test_of_two_that_replace_the_same_the_later_stands_and_the_other_is_kept() -> None:
    saves = {"s1": edit([model(0)], "a"), "s2": edit([model(0), model(1)], "b"),
             "s3": edit([of("s1")], "c")}  # fmt: skip
    assert groups(**saves) == [("0", "c", True), ("0 1", "b", False)]
    # Once the other is withdrawn it stands again.
    saves["s4"] = edit([], withdraws=["s2"])
    assert groups(**saves) == [("0", "c", False)]
    # Halves of one split.
    saves = {"s1": edit([model(0)], "a", "b"), "s2": edit([of("s1", 0)], "A"),
             "s3": edit([of("s1", 0), of("s1", 1)], "AB")}  # fmt: skip
    assert sorted(groups(**saves)) == [("0", "A", True), ("0", "AB", False)]
    # What it builds on is gone: it is placed by its own times.
    assert groups(s2=edit([of("s1")], "a")) == [("x", "a", False)]


@given(st.data())
def test_no_save_is_lost(data: Any) -> None:
    """Whatever people and servers do, each save stands, is built on, in conflict or withdrawn."""
    saves: dict[str, Correction] = {}
    nodes = [model(at) for at in range(4)]
    for number in range(data.draw(st.integers(1, 8))):
        stem = f"s{number}"
        withdraws: bool = data.draw(st.booleans())
        if saves and withdraws:
            named = data.draw(st.lists(st.sampled_from(sorted(saves)), max_size=2))
            saves[stem] = edit([], withdraws=named)
            continue
        replaces = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3, unique=True))
        texts = [f"{stem}{at}" for at in range(data.draw(st.integers(1, 2)))]
        saves[stem] = edit(replaces, *texts)
        nodes += [of(stem, at) for at in range(len(texts))]
    found = Corrections({f"{CORRECTIONS_FOLDER}/{ID}/{stem}.json": each
                         for stem, each in saves.items()}).of(ID)  # fmt: skip
    standing = [stem for group in found for stem in group.stems]
    assert len(standing) == len(set(standing))
    withdrawn = {stem for each in saves.values() for stem in each.withdraws}
    assert {stem for stem, each in saves.items() if each.replaces} - withdrawn <= {*standing}
    roots = [one for group in found if not group.in_conflict for one in group.replaced]
    assert len(roots) == len({one.node for one in roots})
    leaves = [leaf.key for group in found for leaf in group.leaves]
    assert len(leaves) == len(set(leaves))


def test_saves_are_objects_of_their_own_in_every_store(store: OutputStore) -> None:
    first = save_correction(store, edit([model(0)], "Hello  world.\n"))
    # Two windows save at once: both objects are there.
    names = [first, save_correction(store, edit([model(1)], "a")),
             save_correction(store, edit([of(stem_of(first))], "b"))]  # fmt: skip
    assert list(read_saved(store)) == names
    [one, other] = Corrections.load(store).of(ID)
    assert (one.text, other.text, one.stems) == ("b", "a", (stem_of(first), stem_of(names[2])))
    assert read_saved(store)[first].segments[0].text == "Hello world."
    assert Corrections.load(store).digest() != Corrections({}).digest() == ""


def test_only_text_of_a_sensible_length_is_saved() -> None:
    for text, name, words in (
        ("a" * (MAX_TEXT_CHARS + 1), "", "expected 4,000 at most"),
        ("a", "b" * (MAX_NAME_CHARS + 1), "saving the name"),
        ("a\0b", "", r"found the character U\+0000"),
        ("\x1b[2J", "", r"U\+001B"),
        ("\ud800", "", r"U\+D800"),
    ):
        with pytest.raises(ConfigError, match=words):
            edit([model(0)], text, name=name)
    hostile = "</script><b>\u202e=cmd|' /C calc'!A0"
    assert edit([model(0)], hostile).segments[0].text == hostile


def test_an_object_that_is_no_correction_is_named(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    name = save_correction(store, edit([model(0)], "Hello world."))
    good = store.read_json(name)
    [replaced], [said] = good["replaces"], good["segments"]
    wrong: tuple[Any, ...] = (
        {},
        [],
        {**good, "checked": 1},
        {**good, "name": "\udcff"},
        {**good, "segments": []},
        {**good, "segments": [7]},
        {**good, "segments": [said | {"text": None}]},
        {**good, "segments": [said | {"text": "\ud800"}]},
        {**good, "segments": [said | {"start_s": "1"}]},
        {**good, "segments": [said | {"start_s": True}]},
        {**good, "replaces": [replaced | {"start_s": math.nan}]},
        {**good, "replaces": [replaced, replaced | {"channel": 1}]},
        {**good, "withdraws": [1]},
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
