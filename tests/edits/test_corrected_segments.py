"""Corrections on another transcript: each is placed or listed, and no other word is touched."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus_asr.edits.corrected_segments import CorrectedRows, apply_corrections
from corpus_asr.edits.corrections import (
    Correction,
    Corrections,
    EditedSegment,
    correct,
)
from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage.run_state.tables import projected

ID = "0123456789abcdef"
_COLUMNS = ("recording_id", "part", "channel", "segment", "start_s", "end_s", "text", "words",
            "confidence", "tokens", "known_hallucination")  # fmt: skip
WORD_S = 0.5


def transcript(
    *lines: str, words: bool = True, start_s: float = 0.0, channel: int | None = None
) -> pa.Table:
    """Return segments of half a second for each word, one after the other."""
    rows, at_s = [], start_s
    for number, line in enumerate(lines):
        pieces = line.split()
        timed: list[dict[str, Any]] = [
            {"word": f" {piece}", "start_s": at_s + WORD_S * at, "end_s": at_s + WORD_S * (at + 1),
             "probability": 0.5}
            for at, piece in enumerate(pieces)
        ]  # fmt: skip
        end_s = at_s + WORD_S * len(pieces)
        rows.append({
            "recording_id": ID, "part": 0, "channel": channel, "segment": number, "start_s": at_s,
            "end_s": end_s, "text": "".join(word["word"] for word in timed), "tokens": [1, 2],
            "words": timed if words else None, "confidence": 0.3, "known_hallucination": True,
        })  # fmt: skip
        at_s = end_s
    return pa.Table.from_pylist(rows, schema=projected(SEGMENTS, _COLUMNS))


def saved(*edits: Correction) -> Sequence[Correction]:
    names = {f"corrections/{ID}/{at:06}.json": each for at, each in enumerate(edits)}
    return Corrections(names).of(ID)


def edit(
    rows: pa.Table, numbers: Sequence[int], *texts: str, checked: bool = True, **values: Any
) -> Correction:
    """Return a correction of some segments, whose time its texts divide evenly."""
    own = rows.take(pa.array(numbers)).to_pylist()
    first_s, last_s = own[0]["start_s"], own[-1]["end_s"]
    step_s = (last_s - first_s) / max(1, len(texts))
    segments = [
        EditedSegment(start_s=first_s + at * step_s, end_s=first_s + (at + 1) * step_s, text=text,
                      checked=checked)
        for at, text in enumerate(texts)
    ]  # fmt: skip
    return correct(ID, own, segments, **values)


def read(found: CorrectedRows) -> list[str]:
    return [row["text"].strip() for row in found.rows.to_pylist() if row["text"]]


FIRST = transcript("so he came home", "at tree o'clock", "and went to bed", "early")
TREE = edit(FIRST, [1], "at three o'clock")


def test_where_nothing_changed_a_correction_is_where_it_was() -> None:
    found = apply_corrections(FIRST, saved(TREE))
    assert read(found) == ["so he came home", "at three o'clock", "and went to bed", "early"]
    rows = found.rows.to_pylist()
    assert [row["corrected"] for row in rows] == [False, True, False, False]
    assert (rows[1]["confidence"], rows[1]["tokens"], rows[1]["original"]) == (
        1.0, None, " at tree o'clock"
    )  # fmt: skip
    assert [(word["word"], word["start_s"]) for word in rows[1]["words"]] == [
        (" at", 2.0), (" three", 2.5), (" o'clock", 3.0)
    ]  # fmt: skip
    assert rows[0] == apply_corrections(FIRST, []).rows.to_pylist()[0]
    # Checked as it is: the model's text and tokens stay, and are vouched for.
    checked = saved(edit(FIRST, [1], "at tree o'clock"))
    (_, row, *_) = apply_corrections(FIRST, checked).rows.to_pylist()
    assert (row["tokens"], row["confidence"], row["checked"]) == ([1, 2], 1.0, True)
    # Split without a check: nobody vouches for the words.
    split = edit(FIRST, [0], "so he", "came home", checked=False)
    one, other, *_ = apply_corrections(FIRST, saved(split)).rows.to_pylist()
    assert [one["text"], other["text"]] == [" so he", " came home"]
    assert (one["corrected"], round(one["confidence"], 2), one["segment"]) == (False, 0.3, 0)
    assert [word["word"] for word in other["words"]] == [" came", " home"]
    assert apply_corrections(FIRST, saved(split)).rows["segment"].to_pylist() == [*range(5)]
    # Merged, removed, and given to a speaker.
    merged = edit(FIRST, [2, 3], "and went to bed early")
    assert read(apply_corrections(FIRST, saved(merged)))[2:] == ["and went to bed early"]
    removed = apply_corrections(FIRST, saved(edit(FIRST, [3])))
    assert read(removed) == read(apply_corrections(FIRST, []))[:3]
    assert removed.rows.num_rows == 4  # to be restored
    said = [EditedSegment(start_s=2.0, end_s=3.5, text="at tree o'clock", speaker="Ada")]
    named = correct(ID, FIRST.slice(1, 1).to_pylist(), said)
    speakers = apply_corrections(FIRST, saved(named)).rows["speaker"].to_pylist()
    assert speakers == [None, "Ada", None, None]


def test_a_correction_survives_three_models() -> None:
    """Segments are cut otherwise, and words differ; what people said stands exactly once."""
    edits = saved(TREE, edit(FIRST, [3], "Early."))
    for rows, expected in (
        # One segment of all: it is cut out of it, as its words have times.
        (transcript("So he came home, at 3 o'clock and went to bed early"),
         ["So he came home,", "at three o'clock", "and went to bed", "Early."]),
        # Cut within its words.
        (transcript("so he came home at", "three", "o'clock and went to bed. Early"),
         ["so he came home", "at three o'clock", "and went to bed.", "Early."]),
        # Another word at its end, which is not doubled.
        (transcript("so he came home at tree a.m. and", "went to bed early"),
         ["so he came home", "at three o'clock", "and", "went to bed", "Early."]),
        # Without word times, which divide the segment by their lengths: "at" is across the border.
        (transcript("so he came home at three o'clock", "and went to bed early", words=False),
         ["so he came home", "at three o'clock", "and went to bed", "Early."]),
        # A moment later, and an unheard word before it.
        (transcript("he came home", "at tree o'clock", "and went to bed", "early", start_s=0.4),
         ["he came home", "at three o'clock", "and went to bed", "Early."]),
    ):  # fmt: skip
        found = apply_corrections(rows, edits)
        assert (read(found), found.unplaced) == (expected, [])
        times = [row["start_s"] for row in found.rows.to_pylist()]
        assert times == sorted(times)
        assert all(row["end_s"] >= row["start_s"] for row in found.rows.to_pylist())
        # Readers select by these, of pieces of the model's segments as well.
        for name in ("corrected", "checked"):
            assert found.rows[name].to_pylist() == [at in found.edits for at in range(len(times))]


def test_what_does_not_fit_is_listed_with_what_is_there_now() -> None:
    edits = saved(TREE)
    for rows in (
        transcript("so he came home", "beneath those lamps", "and went to bed"),
        transcript("so he came home"),  # the model has nothing there
        transcript("so he came home", "at tree o'clock", channel=1),
        transcript("so he came home", "at tree o'clock", start_s=100),
        FIRST.slice(0, 0),
    ):
        found = apply_corrections(rows, edits)
        assert read(found) == read(apply_corrections(rows, []))
        assert [correction.text for correction in found.unplaced] == ["at three o'clock"]
    # Where people removed what the model invented, and it is not there any more, all is well.
    shorter, removed = transcript("so he came home at tree o'clock"), edit(FIRST, [2, 3])
    found = apply_corrections(shorter, saved(removed))
    assert (found.unplaced, found.rows["text"].to_pylist()) == ([], shorter["text"].to_pylist())
    # What builds on one that does not fit is listed in its place.
    again = transcript("so he came home", "beneath those lamps", "and went to bed")
    person = [{"channel": None, "start_s": 2.0, "end_s": 3.5, "text": "at three o'clock"}]
    later = EditedSegment(start_s=2.0, end_s=3.5, text="at 3 o'clock")
    [unplaced] = apply_corrections(again, saved(TREE, correct(ID, person, [later]))).unplaced
    assert unplaced.text == "at 3 o'clock"


def test_repeated_words_are_told_by_their_time() -> None:
    rows = transcript("yes", "yes", "yes", "no")
    found = apply_corrections(transcript("yes yes yes no"), saved(edit(rows, [1], "Yes!")))
    assert read(found) == ["yes", "Yes!", "yes no"]
    # Both of two neighbors, in any order of saving.
    both = saved(edit(rows, [2], "YES"), edit(rows, [1], "Yes!"))
    found = apply_corrections(transcript("yes yes yes no"), both)
    assert read(found) == ["yes", "Yes!", "YES", "no"]


def test_scripts_without_spaces_are_cut_between_characters() -> None:
    def line(text: str, start_s: float) -> dict[str, Any]:
        words = [{"word": each, "start_s": start_s + at, "end_s": start_s + at + 1,
                  "probability": 0.5} for at, each in enumerate(text)]  # fmt: skip
        return {"recording_id": ID, "part": 0, "channel": None, "segment": 0, "start_s": start_s,
                "end_s": start_s + len(text), "text": text, "words": words}  # fmt: skip

    schema = projected(SEGMENTS, _COLUMNS)
    before = pa.Table.from_pylist([line("你好世界。", 0.0), line("再见朋友", 5.0)], schema=schema)
    after = pa.Table.from_pylist([line("你好,世界再见朋友", 0.0)], schema=schema)
    found = apply_corrections(after, saved(edit(before, [1], "再见,朋友们")))
    assert read(found) == ["你好,世界", "再见,朋友们"]


VOCABULARY = [f"{a}{b}" for a in "bdfgk" for b in "aeiou"]


@st.composite
def _two_transcripts(draw: Any) -> tuple[pa.Table, list[Correction], pa.Table, list[str]]:
    """A transcript with corrections, and another one of the same audio, with its words."""
    lines = draw(st.lists(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=6),
                          min_size=1, max_size=6))  # fmt: skip
    rows = transcript(*map(" ".join, lines))
    edits = []
    for number in draw(st.sets(st.integers(0, len(lines) - 1), max_size=3)):
        texts = [f"HUMAN{number}"] * draw(st.integers(0, 2))
        if texts and draw(st.booleans()):
            texts = [" ".join(lines[number])]
        edits.append(edit(rows, [number], *texts))
    words = [word for line in lines for word in line]
    for at in draw(st.lists(st.integers(0, len(words) - 1), max_size=6)):
        words[at] = draw(st.sampled_from([*VOCABULARY, "other"]))
    cuts = sorted(draw(st.sets(st.integers(0, len(words)), max_size=6)) | {0, len(words)})
    pieces = [words[a:b] for a, b in pairwise(cuts) if b > a]
    timed = draw(st.booleans())
    shift_s = draw(st.sampled_from([0.0, 0.0, 0.2, -0.2]))
    again = transcript(*map(" ".join, pieces), words=timed, start_s=max(0.0, shift_s))
    return rows, edits, again, words


@settings(max_examples=30)
@given(_two_transcripts())
@example((FIRST, [TREE], FIRST, " ".join(read(apply_corrections(FIRST, []))).split()))
def test_no_correction_is_lost_and_no_word_of_the_model_doubled(
    given_: tuple[pa.Table, list[Correction], pa.Table, list[str]],
) -> None:
    rows, edits, again, words = given_
    for transcribed, expected in ((rows, None), (again, words)):
        own = saved(*edits)
        found = apply_corrections(transcribed, own)
        ids = {edit.correction.id for edit in found.edits.values()}
        unplaced = {correction.id for correction in found.unplaced}
        # A removal needs no place where the model has no words.
        silent = {correction.id for correction in own if not correction.text}
        assert ids | unplaced | silent == {correction.id for correction in own}
        assert not ids & unplaced
        if expected is None:
            assert not found.unplaced
            assert ids == {correction.id for correction in own}
            continue
        # What people said of a place stands there once, and exactly.
        shown = [(edit.key, found.rows["text"][at].as_py().strip())
                 for at, edit in found.edits.items()]  # fmt: skip
        assert sorted(shown) == sorted(
            (f"{correction.id}.{index}", segment.text)
            for correction in own if correction.id in ids
            for index, segment in enumerate(correction.segments)
        )  # fmt: skip
        # All else is the model's, once each: what is left and what was cut out are all its words.
        left = [word for at, text in enumerate(found.rows["text"].to_pylist())
                if at not in found.edits for word in text.split()]  # fmt: skip
        cut: dict[str, list[str]] = {}
        for edit in found.edits.values():
            cut.setdefault(edit.correction.id, []).extend(edit.original.split())
        assert sorted([*left, *(word for each in cut.values() for word in each)]) == sorted(
            expected
        )
        for correction in own:
            # At least half of what was cut out is known to whoever corrected it.
            theirs = re.findall(r"\w+", f"{correction.original} {correction.text}".casefold())
            cut_words = [word.casefold() for word in cut.get(correction.id, ())]
            assert 2 * sum(word in theirs for word in cut_words) >= len(cut_words)


def test_a_correction_is_not_placed_on_another_channel() -> None:
    rows = pa.concat_tables([transcript("one two", channel=0), transcript("one two", channel=1)])
    found = apply_corrections(rows, saved(edit(rows, [1], "won two")))
    assert found.rows["text"].to_pylist() == [" one two", " won two"]
    replaced = {"channel": 2, "start_s": 0.0, "end_s": 1.0, "text": "one two"}
    segments = [EditedSegment(start_s=0.0, end_s=1.0, text="x")]
    found = apply_corrections(rows, saved(correct(ID, [replaced], segments)))
    assert (len(found.unplaced), found.edits) == (1, {})


def test_what_was_taken_and_given_back_is_listed_again() -> None:
    other = transcript("nobody knows", "the weather today is fine", "tomorrow")
    taken = edit(other, [1], "at three o'clock", undoes=(TREE.id,))
    undone = correct(ID, (), (), undoes=(taken.id,))
    assert not apply_corrections(other, saved(TREE, taken)).unplaced
    found = apply_corrections(other, saved(TREE, taken, undone))
    assert read(found)[1] == "the weather today is fine"
    assert [correction.text for correction in found.unplaced] == ["at three o'clock"]


def test_a_split_is_no_rewriting_where_words_have_no_blanks() -> None:
    rows = transcript("你好世界今天")
    for texts, is_changed in ((("你好", "世界今天"), False), (("你好", "世界明天"), True)):
        found = apply_corrections(rows, saved(edit(rows, [0], *texts, checked=False)))
        assert read(found) == [*texts]
        assert found.rows["corrected"].to_pylist()[1] == is_changed
    found = apply_corrections(FIRST, saved(edit(FIRST, [0], "so he came  ho me")))
    assert read(found)[0] == "so he came ho me"


def test_a_later_edit_replaces_the_edits_that_its_author_saw_and_no_other() -> None:
    halves = edit(FIRST, [0], "so he", "came home", checked=False)
    seen = apply_corrections(FIRST, saved(halves)).rows
    merged = edit(seen, [1, 2], "came home at three o'clock")
    other = transcript("so he came home at", "tree o'clock and", "went to bed early")
    for rows in (FIRST, other):
        found = apply_corrections(rows, saved(halves, merged))
        assert (read(found)[:2], found.unplaced) == (["so he", "came home at three o'clock"], [])
        [first, second] = [found.edits[at] for at in sorted(found.edits)]
        assert (first.is_changed, second.is_changed) == (False, True)
        assert [*first.builds_on, *second.builds_on] == [halves.id]
        assert first.original + second.original == " so he came home at tree o'clock"
    # An edit that the later one did not replace stays, though it is within the span.
    early = edit(transcript("at", start_s=2.0), [0], "AT", checked=False)
    found = apply_corrections(other, saved(early, TREE))
    assert read(found)[1:3] == ["AT", "at three o'clock"]


def test_what_is_left_of_a_segment_ends_where_an_edit_begins() -> None:
    rows = transcript("so he came home at tree o'clock and went", start_s=0.2)
    found = apply_corrections(rows, saved(TREE))
    times = [(row["start_s"], row["end_s"]) for row in found.rows.to_pylist()]
    assert times == [(0.2, 2.0), (2.0, 3.5), (3.7, 4.7)]
    words = [word for row in found.rows.to_pylist() for word in row["words"]]
    assert all(one["end_s"] <= other["start_s"] for one, other in pairwise(words))
