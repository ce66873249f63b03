"""Diarization error rate and word errors per speaker, beside an oracle that counts frames."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from corpus_asr.report.scoring import (
    Hypothesis,
    Reference,
    SpokenSpan,
    TurnErrors,
    assignment,
    paired_errors,
    score,
    turn_errors,
)


def talk(seed: int, speakers: int) -> list[SpokenSpan]:
    draw = np.random.default_rng(seed)
    spans, at_s = [], 0.0
    for _ in range(12):
        start_s = max(0.0, at_s + round(draw.uniform(-0.5, 1.0), 2))
        at_s = round(start_s + draw.uniform(0.5, 4.0), 2)
        spans.append(SpokenSpan(start_s, at_s, f"s{draw.integers(speakers)}"))
    return spans


def merged(spans: Sequence[SpokenSpan]) -> list[SpokenSpan]:
    """Join spans of one speaker that overlap, which pyannote.metrics would count for two."""
    found: dict[str, list[SpokenSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        own = found.setdefault(span.speaker, [])
        if own and span.start_s <= own[-1].end_s:
            last = own.pop()
            span = SpokenSpan(last.start_s, max(last.end_s, span.end_s), span.speaker)
        own.append(span)
    return list(itertools.chain.from_iterable(found.values()))


# By collar, of talks 0 to 3: missed, false, confused and speech, in seconds, of
# DiarizationErrorRate(collar=...) of pyannote.metrics 4.2.0, whose collar is the whole width: twice
# ours. It brings pandas and scikit-learn, so that its numbers are kept in its place.
PYANNOTE = {
    0.0: [(7.46, 4.41, 8.13, 30.11), (5.68, 7.65, 10.59, 27.19), (3.86, 10.69, 8.73, 23.08),
          (9.2, 3.21, 9.56, 26.29)],
    0.25: [(3.73, 2.46, 6.67, 22.68), (3.67, 4.42, 8.93, 21.17), (1.27, 8.23, 6.97, 15.5),
           (5.15, 0.95, 7.44, 18.33)],
}  # fmt: skip


@pytest.mark.parametrize("collar_s", PYANNOTE)
def test_turns_are_compared_as_pyannote_does(collar_s):
    for seed, expected in enumerate(PYANNOTE[collar_s]):
        reference, found = merged(talk(seed, 3)), merged(talk(seed + 100, 1 + seed % 5))
        errors = turn_errors(reference, found, collar_s=collar_s)
        seconds = (errors.missed_s, errors.false_s, errors.confused_s, errors.speech_s)
        assert seconds == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], TurnErrors(missed_s=9.0, speech_s=9.0)),
        ([SpokenSpan(0, 10, "x")], TurnErrors(confused_s=4.5, speech_s=9.0)),
        ([SpokenSpan(0, 5, "y"), SpokenSpan(5, 10, "x")], TurnErrors(speech_s=9.0)),
        (
            [SpokenSpan(0, 5, "y"), SpokenSpan(5, 10, "x"), SpokenSpan(11, 12, "y")],
            TurnErrors(false_s=1.0, speech_s=9.0),
        ),
    ],
)
def test_names_do_not_matter_and_borders_of_the_reference_do_not_count(found, expected):
    reference = [SpokenSpan(0, 5, "a"), SpokenSpan(5, 10, "b")]
    errors = turn_errors(reference, found)
    for name in ("missed_s", "false_s", "confused_s", "speech_s"):
        assert getattr(errors, name) == pytest.approx(getattr(expected, name)), name
    assert turn_errors([], found).speech_s == 0.0
    assert turn_errors([], found).rate is None


def test_errors_of_recordings_add_up():
    one, two = TurnErrors(1.0, 2.0, 3.0, 40.0), TurnErrors(0.5, 0.25, 0.125, 10.0)
    assert one + two == TurnErrors(1.5, 2.25, 3.125, 50.0)
    assert (one + two).rate == 6.875 / 50


def test_pairs_are_those_of_least_cost():
    draw = np.random.default_rng(0)
    for rows, columns in itertools.product(range(1, 7), repeat=2):
        costs = draw.integers(-9, 9, size=(rows, columns)).astype(np.float64)
        pairs = assignment(costs)
        assert len({row for row, _ in pairs}) == len({at for _, at in pairs}) == min(rows, columns)
        best = linear_sum_assignment(costs)
        assert sum(costs[pair] for pair in pairs) == costs[best].sum()


def test_words_count_for_the_speaker_who_says_them():
    def differing(one, other):
        return abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))

    pairs = paired_errors(
        {"a": ["yes", "no"], "b": ["why"]}, {"S1": ["why"], "S2": ["yes"], "S3": ["x"]}, differing
    )
    assert sorted(map(repr, pairs)) == sorted(
        map(repr, [(["yes", "no"], ["yes"]), (["why"], ["why"]), ((), ["x"])])
    )
    assert paired_errors({}, {}, differing) == []


def test_a_score_has_speakers_where_both_sides_have_them():
    speech = (SpokenSpan(0, 5, "anna", "Yes, we can."), SpokenSpan(5, 10, "ben", "Why not?"))
    reference = Reference(uri="/a", text="Yes, we can. Why not?", language="en", speech=speech)
    usual: dict[str, Any] = {"text": "Yes we can why not", "language": "en", "duration_s": 10.0}
    turns = (SpokenSpan(0, 5, "S1"), SpokenSpan(5, 10, "S2"))
    right = score(
        reference,
        Hypothesis(**usual, turns=turns, said={"S1": " Yes we can", "S2": " why not"}),
    )
    assert right.turns is not None
    assert right.speaker_words is not None
    assert (right.turns.rate, right.speaker_words.errors, right.speakers) == (0.0, 0, (2, 2))
    # What is outside the annotated time counts for nothing.
    outside = (*turns, SpokenSpan(10, 30, "S3"))
    more = score(reference, Hypothesis(**usual, turns=outside, said=right.hypothesis.said))
    assert (more.turns, more.speakers) == (right.turns, right.speakers)
    # The same words by one speaker: two are missing of one, and too many of the other.
    one = score(
        reference,
        Hypothesis(**usual, turns=(SpokenSpan(0, 10, "S1"),), said={"S1": " Yes we can why not"}),
    )
    assert one.turns is not None
    assert one.speaker_words is not None
    assert one.turns.rate == pytest.approx(0.5)
    assert (one.speaker_words.errors, one.speakers, one.words.errors) == (4, (2, 1), 0)
    assert score(reference, Hypothesis(**usual)).turns is None
