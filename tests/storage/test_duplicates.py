"""Audio of several recordings is found once, in any order, and follows what becomes of them."""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.schemas import DUPLICATES
from corpus_asr.storage.run_state import duplicates
from corpus_asr.storage.run_state.duplicates import (
    Copy,
    copied_fraction,
    originals,
    read_copies,
    read_pairs,
)
from corpus_asr.storage.run_state.rewriting import remove_recordings
from corpus_asr.storage.run_state.table_names import DUPLICATES_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.units import FINGERPRINT_WORDS_PER_SECOND as WORDS_PER_SECOND
from tests.support.tables import commit, part, record, results

JINGLE_S = 10.0


def find_duplicates(store: OutputStore) -> int | None:
    record(store)
    return duplicates.find_duplicates(store)


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path))


def words(name: str, seconds: float) -> np.ndarray:
    """Return the fingerprint of speech that nobody else says."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    count = round(seconds * WORDS_PER_SECOND)
    return draw.integers(1, 2**32, count, dtype=np.uint64).astype(np.uint32)


def noisy(print_: np.ndarray, share: float = 0.05) -> np.ndarray:
    flipped = np.random.default_rng(1).random((len(print_), 32)) < share
    return print_ ^ np.packbits(flipped, axis=1).view(">u4")[:, 0].astype(np.uint32)


JINGLE = words("jingle", JINGLE_S)


def with_jingle(name: str, at_s: float, *, seconds: float = 60.0) -> np.ndarray:
    own = words(name, seconds)
    at = round(at_s * WORDS_PER_SECOND)
    own[at : at + len(JINGLE)] = JINGLE if name == "a" else noisy(JINGLE)
    return own


def row(name: str, print_: np.ndarray | None, index: int = 0, **values: Any) -> dict[str, Any]:
    data = None if print_ is None else print_.astype("<u4").tobytes()
    return part(name, index, texts=["text"], fingerprint=data, **values)


def pairs(store: OutputStore) -> list[tuple[str, str, float, float]]:
    found = read_pairs(store).to_pylist()
    return sorted(
        (each["uri"], each["other_uri"], round(each["start_s"]), round(each["end_s"]))
        for each in found
    )


@pytest.mark.long
def test_the_first_by_uri_is_the_original_in_whatever_order_they_come(tmp_path: Path) -> None:
    places = {"a": 20.0, "b": 5.0, "c": 40.0}
    found = []
    for order in ("abc", "cba", "bac"):
        store = OutputStore(str(tmp_path / order))
        for name in order:
            commit(store, results(row(name, with_jingle(name, places[name]))))
            assert find_duplicates(store) == 1
        found.append(pairs(store))
    store = OutputStore(str(tmp_path / "at-once"))
    commit(store, results(*(row(name, with_jingle(name, places[name])) for name in places)))
    assert find_duplicates(store) == 3
    found.append(pairs(store))
    expected = [("/b", "/a", 6, 16), ("/c", "/a", 41, 51), ("/c", "/b", 41, 51)]
    for each in found:
        assert [pair[:2] for pair in each] == [pair[:2] for pair in expected]
        for pair, other in zip(each, expected, strict=True):
            assert pair[2:] == pytest.approx(other[2:], abs=1.5)
    assert found[0] == found[1] == found[2] == found[3]
    # One object, however often it was made; and nothing is made again.
    assert len(store.names(DUPLICATES_FOLDER)) == 1
    assert find_duplicates(store) is None


def test_the_example_of_the_guide_shows_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "duplicates.md").read_text(
        encoding="utf-8"
    )
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S)
    (code,) = (block for block in blocks if "demo/duplicates" in block)
    monkeypatch.chdir(tmp_path)
    store = OutputStore("output/demo")
    commit(store, results(*(row(name, with_jingle(name, 20.0)) for name in "ab")))
    find_duplicates(store)
    exec(code, {})
    shown = capsys.readouterr().out
    assert re.search(r"│ b +│ +21.0 │ +31.0 │ a ", shown), shown


def test_batches_give_the_same_table(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(name, with_jingle(name, 20.0)) for name in "abcd"]
    commit(store, results(*rows))
    find_duplicates(store)
    at_once = pairs(store)
    monkeypatch.setattr(duplicates, "WORDS_AT_ONCE", 1)
    monkeypatch.setattr("corpus_asr.storage.run_state.recording_rows.RECORDINGS_PER_PORTION", 1)
    store.remove_all(store.names(DUPLICATES_FOLDER))
    assert find_duplicates(store) == 4
    assert pairs(store) == at_once
    assert len(at_once) == 6


def test_silence_short_and_unknown_recordings_have_no_copies(store: OutputStore) -> None:
    silence = np.zeros(400, np.uint32)
    short = JINGLE[:3]
    commit(store, results(
        row("a", silence), row("b", silence), row("c", short), row("d", short),
        row("e", np.zeros(0, np.uint32)), row("old", None),
    ))  # fmt: skip
    assert find_duplicates(store) == 6
    assert pairs(store) == []
    [name] = store.names(DUPLICATES_FOLDER)
    known = {each["uri"]: each["compared"] for each in
             store.read_table(name, DUPLICATES).to_pylist()}  # fmt: skip
    assert known == {"/a": True, "/b": True, "/c": True, "/d": True, "/e": True, "/old": False}
    # Transcribed again, with a fingerprint, it is compared.
    commit(store, results(row("old", with_jingle("old", 1.0), etag="v2")), run_id="run2")
    assert find_duplicates(store) == 1


def test_parts_of_one_copy_are_one_span_and_channels_stay_apart(store: OutputStore) -> None:
    programme = words("programme", 120.0)
    half = len(programme) // 2

    def two(name: str, channel: int | None) -> list[dict[str, Any]]:
        shared: dict[str, Any] = {"channel": channel}
        first = row(name, programme[: half - 20], 0, last=False, **shared)
        second = row(name, programme[half:], 1, **shared)
        return [first | {"part_start_s": 0.0}, second | {"part_start_s": 60.0}]

    commit(store, results(*two("a", None), *two("b", 1)))
    find_duplicates(store)
    [found] = read_pairs(store).to_pylist()
    assert (found["channel"], found["other_channel"]) == (1, None)
    assert found["end_s"] - found["start_s"] == pytest.approx(120, abs=3)
    copies = read_copies(store)
    assert copies is not None
    [copy] = copies[recording_id("/b")]
    assert copied_fraction([copy], channel=1, start_s=30.0, end_s=40.0) == 1.0
    assert copied_fraction([copy], channel=0, start_s=30.0, end_s=40.0) == 0.0


def test_what_becomes_of_recordings_becomes_of_their_spans(store: OutputStore) -> None:
    commit(store, results(*(row(name, with_jingle(name, 20.0)) for name in "abc")))
    find_duplicates(store)
    remove_recordings(store, [recording_id("/b")])
    assert [pair[:2] for pair in pairs(store)] == [("/c", "/a")]
    assert find_duplicates(store) == 1, "that lost one, and may be copies of others"
    assert [pair[:2] for pair in pairs(store)] == [("/c", "/a")]
    assert find_duplicates(store) is None
    [name] = store.names(DUPLICATES_FOLDER)
    assert recording_id("/b") not in str(store.read_table(name, DUPLICATES).to_pylist())


def test_what_was_killed_is_made_again(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(store, results(*(row(name, with_jingle(name, 20.0)) for name in "ab")))

    def dies(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(OutputStore, "write_table", dies)
        with pytest.raises(OSError, match="killed"):
            find_duplicates(store)
    assert read_copies(store) is None
    find_duplicates(store)
    commit(store, results(row("c", with_jingle("c", 1.0))))
    record(store)
    # Killed between the new object and the removal of the one before: the newest counts.
    with monkeypatch.context() as patched:
        patched.setattr(OutputStore, "remove_all", dies)
        with pytest.raises(OSError, match="killed"):
            find_duplicates(store)
    assert len(store.names(DUPLICATES_FOLDER)) == 2
    assert len(pairs(store)) == 3
    assert find_duplicates(store) is None
    assert len(store.names(DUPLICATES_FOLDER)) == 1


def test_of_a_jingle_that_many_have_the_first_originals_are_kept(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "MAX_OTHERS", 2)
    names = "abcdef"
    for name in reversed(names):
        commit(store, results(row(name, with_jingle(name, 20.0))))
        find_duplicates(store)
    others: dict[str, list[str]] = {}
    for uri, other, *_ in pairs(store):
        others.setdefault(uri, []).append(other)
    assert others == {
        "/b": ["/a"], **{f"/{each}": ["/a", "/b"] for each in names[2:]},
    }  # fmt: skip


def test_a_fraction_counts_overlapping_copies_once() -> None:
    copies = [
        Copy(channel=None, start_s=start, end_s=end, other_recording_id=other)
        for start, end, other in ((0.0, 4.0, "x"), (2.0, 5.0, "y"), (8.0, 9.0, "x"))
    ]
    fractions = [
        copied_fraction(copies, channel=None, start_s=start, end_s=end)
        for start, end in ((0.0, 10.0), (4.0, 6.0), (6.0, 7.0), (3.0, 3.0))
    ]
    assert fractions == [pytest.approx(0.6), 0.5, 0.0, 0.0]


def names_of_originals(store: OutputStore, seconds: dict[str, float]) -> dict[str, str]:
    lengths: dict[str, float | None] = {recording_id(f"/{name}"): s for name, s in seconds.items()}
    names = {recording_id(f"/{name}"): name for name in seconds}
    return {names[copy]: names[each] for copy, each in originals(store, lengths).items()}


def test_recordings_that_are_mostly_copies_have_one_original_and_jingles_join_nothing(
    store: OutputStore,
) -> None:
    programme, other = words("programme", 60.0), words("other", 60.0)
    prints = {
        # A trailer before what it is of, a repeat with a frame, and a repeat of that.
        "a trailer": noisy(programme[60:160]), "b programme": programme,
        "c repeat": np.concatenate([words("frame", 10.0), noisy(programme, 0.02)]),
        "d jingle": JINGLE, "e": with_jingle("e", 20.0), "f": with_jingle("f", 30.0),
        # Less than half of it.
        "g excerpts": np.concatenate([words("own", 60.0), other[:200]]), "h other": other,
    }  # fmt: skip
    commit(store, results(*(row(name, print_) for name, print_ in prints.items())))
    find_duplicates(store)
    seconds = {name: len(each) / WORDS_PER_SECOND for name, each in prints.items()}
    assert names_of_originals(store, seconds) == {
        "a trailer": "b programme", "c repeat": "b programme", "d jingle": "e",
    }  # fmt: skip
    assert names_of_originals(store, dict.fromkeys(seconds, 0.0)) == {}


@given(
    st.lists(st.sets(st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")))),
    st.randoms(use_true_random=False),
)
def test_groups_of_copies_have_one_original_each_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[set[tuple[str, str]]],
    order: Any,
) -> None:
    held = {(copy, other) for pairs in drawn for copy, other in pairs if copy != other}
    found = []
    for _ in range(2):
        rows = []
        for copy, other in order.sample(sorted(held), len(held)):
            # A row says of the later one by URI: of which of both it is half or more is a length.
            later, first = max(copy, other), min(copy, other)
            spans = {"": 8.0 if copy == later else 1.0, "other_": 8.0 if copy == first else 1.0}
            rows.append(
                {"recording_id": later, "uri": later, "other_recording_id": first,
                 "other_uri": first, "compared": True}
                | {f"{side}start_s": 0.0 for side in spans}
                | {f"{side}end_s": end_s for side, end_s in spans.items()}
            )  # fmt: skip
        store = OutputStore(str(tmp_path_factory.mktemp("run")))
        store.write_table("duplicates/1.parquet", pa.Table.from_pylist(rows, DUPLICATES))
        found.append(originals(store, dict.fromkeys("abcdefg", 10.0)))
    assert found[0] == found[1]
    follows = {copy: min(other for each, other in held if each == copy) for copy, _ in held}
    for copy in "abcdefg":
        last, seen = copy, list[str]()
        while last not in seen and last in follows:
            seen.append(last)
            last = follows[last]
        expected = min(seen[seen.index(last) :]) if last in seen else last
        assert found[0].get(copy, copy) == expected


def test_where_the_first_originals_go_others_are_found(store: OutputStore) -> None:
    names = [f"u{number:02d}" for number in range(12)]
    print_ = words("programme", 30.0)
    commit(store, results(*(row(name, print_) for name in names)))
    find_duplicates(store)
    remove_recordings(store, [recording_id(f"/{name}") for name in names[: duplicates.MAX_OTHERS]])
    # What lost an original is compared again, and nothing else.
    assert find_duplicates(store) == 4
    copies = read_copies(store)
    assert copies is not None
    assert [bool(copies[recording_id(f"/{name}")]) for name in names[8:]] == [False, *3 * [True]]
    assert find_duplicates(store) is None
