"""Corrections on another transcript: each is placed or listed, and no other word is touched."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus_asr.edits.corrected_segments import Placing, place
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


def read(found: Placing) -> list[str]:
    return [row["text"].strip() for row in found.rows.to_pylist() if row["text"]]


FIRST = transcript("so he came home", "at tree o'clock", "and went to bed", "early")
TREE = edit(FIRST, [1], "at three o'clock")


def test_where_nothing_changed_a_correction_is_where_it_was() -> None:
    found = place(FIRST, saved(TREE))
    assert read(found) == ["so he came home", "at three o'clock", "and went to bed", "early"]
    rows = found.rows.to_pylist()
    assert [row["corrected"] for row in rows] == [False, True, False, False]
    assert (rows[1]["confidence"], rows[1]["tokens"], rows[1]["original"]) == (
        1.0, None, " at tree o'clock"
    )  # fmt: skip
    assert [(word["word"], word["start_s"]) for word in rows[1]["words"]] == [
        (" at", 2.0), (" three", 2.5), (" o'clock", 3.0)
    ]  # fmt: skip
    assert rows[0] == place(FIRST, []).rows.to_pylist()[0]
    # Checked as it is: the model's text and tokens stay, and are vouched for.
    (_, row, *_) = place(FIRST, saved(edit(FIRST, [1], "at tree o'clock"))).rows.to_pylist()
    assert (row["tokens"], row["confidence"], row["checked"]) == ([1, 2], 1.0, True)
    # Split without a check: nobody vouches for the words.
    split = edit(FIRST, [0], "so he", "came home", checked=False)
    one, other, *_ = place(FIRST, saved(split)).rows.to_pylist()
    assert [one["text"], other["text"]] == [" so he", " came home"]
    assert (one["corrected"], round(one["confidence"], 2), one["segment"]) == (False, 0.3, 0)
    assert [word["word"] for word in other["words"]] == [" came", " home"]
    assert [row["segment"] for row in place(FIRST, saved(split)).rows.to_pylist()] == [*range(5)]
    # Merged, removed, and given to a speaker.
    merged = edit(FIRST, [2, 3], "and went to bed early")
    assert read(place(FIRST, saved(merged)))[2:] == ["and went to bed early"]
    removed = place(FIRST, saved(edit(FIRST, [3])))
    assert read(removed) == read(place(FIRST, []))[:3]
    assert removed.rows.num_rows == 4  # to be restored
    said = [EditedSegment(start_s=2.0, end_s=3.5, text="at tree o'clock", speaker="Ada")]
    named = correct(ID, FIRST.slice(1, 1).to_pylist(), said)
    assert place(FIRST, saved(named)).rows["speaker"].to_pylist() == [None, "Ada", None, None]


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
        # Without word times.
        (transcript("so he came home at three o'clock", "and went to bed early", words=False),
         ["so he came home", "at three o'clock", "and went to bed", "Early."]),
        # A moment later, and an unheard word before it.
        (transcript("he came home", "at tree o'clock", "and went to bed", "early", start_s=0.4),
         ["he came home", "at three o'clock", "and went to bed", "Early."]),
    ):  # fmt: skip
        found = place(rows, edits)
        assert (read(found), found.stale) == (expected, [])
        times = [row["start_s"] for row in found.rows.to_pylist()]
        assert times == sorted(times)
        assert all(row["end_s"] >= row["start_s"] for row in found.rows.to_pylist())
        # Readers select by these, of pieces of the model's segments as well.
        for name in ("corrected", "checked"):
            assert found.rows[name].to_pylist() == [at in found.made for at in range(len(times))]


def test_what_does_not_fit_is_listed_with_what_is_there_now() -> None:
    edits = saved(TREE)
    for rows in (
        transcript("so he came home", "beneath those lamps", "and went to bed"),
        transcript("so he came home"),  # the model has nothing there
        transcript("so he came home", "at tree o'clock", channel=1),
        transcript("so he came home", "at tree o'clock", start_s=100),
        FIRST.slice(0, 0),
    ):
        found = place(rows, edits)
        assert read(found) == read(place(rows, []))
        [stale] = found.stale
        assert stale.correction.text == "at three o'clock"
    # Where people removed what the model invented, and it is not there any more, all is well.
    found = place(transcript("so he came home at tree o'clock"), saved(edit(FIRST, [2, 3])))
    assert (found.stale, len(found.blocks)) == ([], 1)
    # What builds on one that does not fit is listed in its place.
    again = transcript("so he came home", "beneath those lamps", "and went to bed")
    person = [{"channel": None, "start_s": 2.0, "end_s": 3.5, "text": "at three o'clock"}]
    later = EditedSegment(start_s=2.0, end_s=3.5, text="at 3 o'clock")
    [stale] = place(again, saved(TREE, correct(ID, person, [later]))).stale
    assert (stale.correction.text, len(stale.ids)) == ("at 3 o'clock", 2)


def test_repeated_words_are_told_by_their_time() -> None:
    rows = transcript("yes", "yes", "yes", "no")
    found = place(transcript("yes yes yes no"), saved(edit(rows, [1], "Yes!")))
    assert read(found) == ["yes", "Yes!", "yes no"]
    # Both of two neighbors, in any order of saving.
    both = saved(edit(rows, [2], "YES"), edit(rows, [1], "Yes!"))
    assert read(place(transcript("yes yes yes no"), both)) == ["yes", "Yes!", "YES", "no"]


def test_scripts_without_spaces_are_cut_between_characters() -> None:
    def line(text: str, start_s: float) -> dict[str, Any]:
        words = [{"word": each, "start_s": start_s + at, "end_s": start_s + at + 1,
                  "probability": 0.5} for at, each in enumerate(text)]  # fmt: skip
        return {"recording_id": ID, "part": 0, "channel": None, "segment": 0, "start_s": start_s,
                "end_s": start_s + len(text), "text": text, "words": words}  # fmt: skip

    schema = projected(SEGMENTS, _COLUMNS)
    before = pa.Table.from_pylist([line("你好世界。", 0.0), line("再见朋友", 5.0)], schema=schema)
    after = pa.Table.from_pylist([line("你好世界再见朋友", 0.0)], schema=schema)
    found = place(after, saved(edit(before, [1], "再见,朋友们")))
    assert read(found) == ["你好世界", "再见,朋友们"]


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
@example((FIRST, [TREE], FIRST, " ".join(read(place(FIRST, []))).split()))
def test_no_correction_is_lost_and_no_word_of_the_model_doubled(
    given_: tuple[pa.Table, list[Correction], pa.Table, list[str]],
) -> None:
    rows, edits, again, words = given_
    for transcribed, expected in ((rows, None), (again, words)):
        own = saved(*edits)
        found = place(transcribed, own)
        ids = [made.correction.id for block in found.blocks for made in block.made]
        ids += [identity for stale in found.stale for identity in stale.ids]
        assert {*ids} == {correction.id for correction in own}
        if expected is None:
            assert not found.stale
            continue
        # What people said of a place stands there once, and exactly.
        placed = [block for block in found.blocks if block.cut]
        shown = [(made.key, found.rows["text"][at].as_py().strip())
                 for at, made in found.made.items()]  # fmt: skip
        assert sorted(shown) == sorted(
            (made.key, made.segment.text) for block in placed for made in block.made
        )
        # All else is the model's, once each: what is left and what was cut out are all its words.
        left = [word for at, text in enumerate(found.rows["text"].to_pylist())
                if at not in found.made for word in text.split()]  # fmt: skip
        cut = [word for block in placed for row in block.cut for word in row["text"].split()]
        assert sorted(left + cut) == sorted(expected)
        for block in placed:
            # At least half of what was cut out is known to whoever corrected it.
            [original] = {made.correction.original for made in block.made}
            theirs = re.findall(r"\w+", f"{original} {block.text}".casefold())
            theirs_cut = [word for row in block.cut for word in row["text"].casefold().split()]
            assert 2 * sum(word in theirs for word in theirs_cut) >= len(theirs_cut)


def test_a_correction_is_not_placed_on_another_channel() -> None:
    rows = pa.concat_tables([transcript("one two", channel=0), transcript("one two", channel=1)])
    found = place(rows, saved(edit(rows, [1], "won two")))
    assert found.rows["text"].to_pylist() == [" one two", " won two"]
    replaced = {"channel": 2, "start_s": 0.0, "end_s": 1.0, "text": "one two"}
    segments = [EditedSegment(start_s=0.0, end_s=1.0, text="x")]
    found = place(rows, saved(correct(ID, [replaced], segments)))
    assert (len(found.stale), found.made) == (1, {})


def test_what_was_taken_and_given_back_is_listed_again() -> None:
    other = transcript("nobody knows", "the weather today is fine", "tomorrow")
    taken = edit(other, [1], "at three o'clock", undoes=(TREE.id,))
    undone = correct(ID, (), (), undoes=(taken.id,))
    assert not place(other, saved(TREE, taken)).stale
    found = place(other, saved(TREE, taken, undone))
    assert read(found)[1] == "the weather today is fine"
    assert [stale.correction.text for stale in found.stale] == ["at three o'clock"]


def test_a_split_is_no_rewriting_where_words_have_no_blanks() -> None:
    rows = transcript("你好世界今天")
    for texts, rewritten in ((("你好", "世界今天"), False), (("你好", "世界明天"), True)):
        [block] = place(rows, saved(edit(rows, [0], *texts, checked=False))).blocks
        assert block.rewritten == rewritten
    [block] = place(FIRST, saved(edit(FIRST, [0], "so he came  ho me"))).blocks
    assert block.rewritten
