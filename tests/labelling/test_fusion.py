"""Of two runs the likelier text is chosen: segment by segment, or phrase by phrase."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.labelling.fusion import Choice, chosen
from corpus_asr.labelling.selection import measured
from corpus_asr.segments import Segment, SpeakerTurn, Word
from tests.support.tables import recording, segment


def said(text: str, *, at_s: float = 0.0, confidence: float = 0.9, **values: Any) -> Segment:
    """Return a segment of half a second for each word; `word:0.4` gives a word its probability."""
    words = []
    for number, each in enumerate(text.split()):
        word, _, probability = each.partition(":")
        start_s = at_s + number / 2
        words.append(
            Word(word=f" {word}", start_s=start_s, end_s=start_s + 0.5,
                 probability=float(probability or 0.9))
        )  # fmt: skip
    joined = "".join(word.word for word in words)
    usual = segment(joined, at_s, at_s + max(1, len(words)) / 2, confidence=confidence)
    return replace(usual, words=tuple(words), **values)


def fused(own: Sequence[Segment], other: Sequence[Segment], language: str = "en") -> list[str]:
    return texts(chosen(own, other, "fuse", language))


def texts(choices: Sequence[Choice]) -> list[str]:
    return [choice.segment.text.strip() for choice in choices]


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("the quiet:0.4 night.", "the quite:0.6 night", "the quite night."),
        ("the quiet:0.6 night.", "the quite:0.6 night", "the quiet night."),  # a tie: the first
        ("in Middlesex:0.9 now", "in middle:0.8 sex:0.95 now", "in Middlesex now"),  # whole phrases
        ("in middle:0.6 sex:0.6 now", "in Middlesex:0.4 now", "in Middlesex now"),
        ("he said uh:0.4 yes", "he said yes", "he said uh yes"),  # which is not compared
        ("he said so:0.4 yes", "he said yes", "he said yes"),  # what the other lacks: unlikely
        ("he said so:0.6 yes", "he said yes", "he said so yes"),
        ("he said yes", "he said so:0.6 yes", "he said so yes"),
        ("he said yes", "he said so:0.4 yes", "he said yes"),
        ("10:0.3 pounds:0.3 each", "£10:0.9 each", "10 pounds each"),  # the same, written otherwise
        ("Mr:0.2 Gray:0.9", "mister:0.9 grey:0.95", "Mr Gray"),
        ("", "only here:0.7", "only here"),
        ("", "only here:0.3", ""),
        ("only here:0.7", "", "only here"),
        ("only here:0.3", "", ""),
    ],
)
def test_the_likelier_phrase_is_chosen(own: str, other: str, expected: str) -> None:
    assert fused([said(own)], [said(other)]) == [expected]


def test_fillers_and_signs_stay_with_the_word_before_them() -> None:
    assert fused([said("♪ well:0.3 um then")], [said("wells:0.8 then")]) == ["wells then"]
    assert fused([said("♪ well um then")], [said("wells:0.8 then")]) == ["♪ well um then"]


def test_words_that_no_blank_separates_are_one() -> None:
    def pieces(number: str, rest: str, probability: float) -> Segment:
        whole = said(f"{number}{rest} each")
        assert whole.words is not None
        first = replace(whole.words[0], word=f" {number}", probability=probability)
        second = replace(first, word=rest)
        return replace(whole, words=(first, second, *whole.words[1:]))

    assert fused([pieces("£81", ",791", 0.4)], [pieces("£71", ",791", 0.5)]) == ["£71,791 each"]


def test_segments_of_the_first_run_keep_their_bounds() -> None:
    own = [said("the old:0.4 ship"), said("came in:0.4 late", at_s=2.0)]
    other = [said("the gold ship yes"), said("came on late", at_s=2.0)]
    words = tuple(word for each in other for word in each.words or ())
    other = [replace(other[0], end_s=3.5, words=words)]
    found = chosen(own, other, "fuse", "en")
    assert texts(found) == ["the gold ship yes", "came on late"]
    # A word that the first run lacks may reach further.
    assert [(each.segment.start_s, each.segment.end_s) for each in found] == [(0, 2.0), (2, 3.5)]
    assert [each.own for each in found] == [" the old ship", " came in late"]
    assert [each.from_other for each in found] == [0.5, pytest.approx(1 / 3)]


def test_what_only_the_second_run_has_is_a_segment_of_its_own() -> None:
    own = [said("the ship"), said("came in", at_s=20.0)]
    other = [said("the ship"), said("nobody saw it", at_s=9.0, confidence=0.7)]
    first, added, last = chosen(own, other, "fuse", "en")
    assert (added.segment.text, added.own, added.from_other) == (" nobody saw it", None, 1.0)
    assert (added.segment.start_s, added.segment.end_s) == (9.0, 10.5)
    assert (first.own, last.own) == (" the ship", " came in")
    other = [said("the ship"), said("nobody:0.3 saw it", at_s=9.0, confidence=0.4)]
    assert len(chosen(own, other, "fuse", "en")) == 2


def test_the_same_word_at_another_time_is_another_word() -> None:
    own = [said("no"), said("no:0.4", at_s=30.0)]
    assert fused(own, [said("no", at_s=30.0)]) == ["no", "no"]
    assert fused([said("no:0.4"), said("no", at_s=30.0)], [said("no", at_s=30.0)]) == ["", "no"]


def test_confidence_is_that_of_the_chosen_words() -> None:
    own, other = said("a b:0.2 c", confidence=0.8), said("a d:0.6 c", confidence=0.9)
    (found,) = chosen([own], [other], "fuse", "en")
    # What both say is as likely as the more confident run; d is 0.6 of 0.2 and 0.6.
    assert found.segment.confidence == pytest.approx((0.9 + 0.75 + 0.9) / 3)
    (alone,) = chosen([own], [replace(other, text=" a b c", words=own.words)], "fuse", "en")
    assert alone.segment.confidence == pytest.approx(0.9)


def test_scores_are_the_worst_of_the_segments_that_words_are_from() -> None:
    own = said("a b:0.2 c", no_speech_prob=None, compression_ratio=1.0, known_hallucination=True)
    other = said("a d c", no_speech_prob=0.5, compression_ratio=2.0, avg_logprob=-0.9)
    (found,) = chosen([own], [other], "fuse", "en")
    values = found.segment
    assert (values.no_speech_prob, values.compression_ratio) == (0.5, 2.0)
    assert (values.avg_logprob, values.known_hallucination) == (-0.9, False)
    (same,) = chosen([own], [own], "fuse", "en")
    assert (same.segment.no_speech_prob, same.segment.known_hallucination) == (None, True)


def test_of_texts_in_two_languages_the_more_confident_is_chosen() -> None:
    own = said("a b:0.2 c", confidence=0.5)
    other = said("a d c:0.1", confidence=0.4, language="de", language_probability=0.8)
    (found,) = chosen([own], [other], "fuse", "en")
    assert found.segment is own
    (found,) = chosen([own], [replace(other, confidence=0.6)], "fuse", "en")
    assert (found.segment.text, found.segment.language) == (" a d c", "de")
    assert (found.segment.language_probability, found.from_other) == (0.8, 1.0)


def test_a_run_that_names_no_language_is_in_that_of_the_other() -> None:
    nameless: dict[str, Any] = {"language": None, "language_probability": None}
    sure: dict[str, Any] = {"language": "en", "language_probability": 0.8}
    unnamed, named = said("a b:0.2 c", **nameless), said("a d c:0.1", **sure)
    for own, other in ((unnamed, named), (named, unnamed)):
        (found,) = chosen([own], [other], "fuse", "en")
        # Phrases are chosen, not whole segments.
        assert found.segment.text.split() == ["a", "d", "c"]
        assert (found.segment.language, found.segment.language_probability) == (
            own.language or named.language,
            own.language_probability or named.language_probability,
        )
    # Both are normalized as what is known of either.
    whole = replace(recording(said("Mr Gray saw colour", **nameless)), language=None)
    second = recording(said("mister gray saw color"))
    for pair in ((whole, second), (second, whole)):
        (row,) = (row for row, _ in measured(pair[0], other=pair[1]))
        assert (row["language"], row["disagreement"]) == ("en", 0.0)


def test_what_a_person_corrected_stays() -> None:
    own = said("a b:0.2 c", confidence=1.0, corrected=True)
    removed = said("", at_s=4.0, corrected=True)
    other = [said("a d c"), said("x y", at_s=4.0)]
    found = chosen([own, removed], other, "fuse", "en")
    assert [each.segment for each in found] == [own, removed]


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    def chinese(*words: tuple[str, float]) -> Segment:
        timed = tuple(
            Word(word=word, start_s=at, end_s=at + 1.0, probability=probability)
            for at, (word, probability) in enumerate(words)
        )
        text = "".join(word for word, _ in words)
        return replace(segment(text, 0.0, len(words), language="zh"), words=timed)

    own = chinese(("你好", 0.9), ("世", 0.3), ("界。", 0.9))
    other = chinese(("你", 0.5), ("好时", 0.5), ("界", 0.6))
    assert fused([own], [other], "zh") == ["你好时界。"]
    assert fused([own], [chinese(("你好时", 0.02), ("界", 0.6))], "zh") == ["你好世界。"]


_SAID = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123456789")), max_size=8)


@given(_SAID, _SAID)
def test_chosen_words_are_those_of_a_run_in_their_order(
    own: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    first, second = (
        [said(" ".join(f"{word}:0.{digit}" for word, digit in side))] for side in (own, other)
    )
    found = chosen(first, second, "fuse", "en")
    words = [word for choice in found for word in choice.segment.words or ()]
    assert {(each.word, each.start_s) for each in words} <= {
        (each.word, each.start_s) for (side,) in (first, second) for each in side.words or ()
    }
    assert [choice.segment.text for choice in found] == [
        "".join(each.word for each in choice.segment.words or ()) for choice in found
    ]
    assert texts(chosen(first, first, "fuse", "en")) == [first[0].text.strip()]


def test_rows_tell_what_the_runs_disagree_on_and_who_wrote_the_text() -> None:
    own = recording(said("the quiet:0.4 night"), said("came in", at_s=20.0))
    other = recording(said("the quite night"), said("nobody saw", at_s=9.0),
                      said("came in", at_s=20.0))  # fmt: skip
    rows = [row for row, _ in measured(own, other=other, select="fuse")]
    assert [row["text"].strip() for row in rows] == ["the quite night", "nobody saw", "came in"]
    assert [row["disagreement"] for row in rows] == [pytest.approx(1 / 3), 1.0, 0.0]
    assert [row["from_other"] for row in rows] == [pytest.approx(1 / 3), 1.0, 0.0]
    rows = [row for row, _ in measured(own, other=other)]
    assert [row["from_other"] for row in rows] == [None, None]
    # Nothing speaks against the text where the other run has no result.
    for missing in (None, replace(other, failed=True)):
        rows = [row for row, _ in measured(own, other=missing, select="fuse")]
        assert [row["text"].strip() for row in rows] == ["the quiet night", "came in"]


def test_what_only_the_second_run_has_is_divided_by_speakers() -> None:
    turns = tuple(
        SpeakerTurn(start_s=start_s, end_s=start_s + 1, speaker=name, confidence=1.0)
        for start_s, name in ((9.0, "S1"), (10.0, "S2"))
    )
    own = replace(recording(), language=None, turns=turns)
    other = recording(said("are you yes I", at_s=9.0))
    rows = [row for row, _ in measured(own, other=other, select="fuse")]
    assert [(row["text"], row["speaker"]) for row in rows] == [(" are you", "S1"), (" yes I", "S2")]
    assert [row["language"] for row in rows] == ["en", "en"]
