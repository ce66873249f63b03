"""Words are right as an alignment says, and a fit of them finds what made the data."""

import numpy as np
import pytest

from benchmarks.word_confidence import TimedWordOutcome, fit_words, timed_word_outcomes
from corpus_asr.confidence import WordEvidence, WordModel
from tests.support.tables import segment


def test_timed_words_are_right_where_all_of_their_units_are() -> None:
    said = [
        segment(" Red - (um) we'll blew", 0.0, 1.0, words=True),
        segment(" twenty one", 1.0, 2.0, words=True, confidence=0.4),
        segment(" ten", 2.0, 3.0),
    ]
    found = timed_word_outcomes(said, "red we will blue 21 10", "en")
    # Neither the dash nor what is in brackets is a word of the normalized text.
    assert [one.right for one in found] == [True, True, False, True, True]
    assert [one.evidence.segment_confidence for one in found] == [0.9] * 3 + [0.4] * 2
    assert {one.evidence.probability for one in found} == {0.5}
    assert [one.right for one in timed_word_outcomes(said[1:], "", "en")] == [False, False]


def test_a_fit_of_words_finds_the_model_that_made_the_data() -> None:
    rng = np.random.default_rng(3)
    true = WordModel(offset=-0.5, weights=(1.1, 0.4))
    drawn = []
    for probability, confidence in rng.uniform(size=(6_000, 2)).tolist():
        evidence = WordEvidence(probability=probability, segment_confidence=confidence)
        right = bool(rng.random() < true.confidence(evidence))
        drawn.append(TimedWordOutcome(evidence=evidence, right=right))
    found = fit_words(drawn, WordModel(offset=0.0, weights=(0.0, 0.0)))
    assert found.offset == pytest.approx(true.offset, abs=0.1)
    assert found.weights == pytest.approx(true.weights, abs=0.12)
