"""Confidences of segments and words are shares, follow their evidence, and know nothing else."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.confidence import (
    CONFIDENCE_EDGES,
    DEFAULT_MODEL,
    FEATURES,
    HIGH_CONFIDENCE,
    LOW_CONFIDENCE,
    LOW_WORD_CONFIDENCE,
    WHISPER_WORDS,
    ConfidenceModel,
    SegmentEvidence,
    WordEvidence,
    evidence_of,
    features_of,
    mean_logprob_of,
    segment_evidence,
    with_confidence,
    word_confidences,
    word_features,
)
from tests.support.tables import segment

CLEAN = SegmentEvidence(
    text_logprob=-0.05, compression_ratio=1.4, no_speech_prob=0.02, speech_fraction=0.98
)
NUMBERS = st.floats(-1e9, 1e9) | st.sampled_from([-math.inf, math.inf])


@given(NUMBERS, NUMBERS | st.none(), st.floats(0, 1) | st.none(), st.floats(0, 1) | st.none())
def test_it_is_a_finite_share_for_any_evidence(
    logprob: float, ratio: float | None, silence: float | None, speech: float | None
) -> None:
    evidence = SegmentEvidence(
        text_logprob=logprob, compression_ratio=ratio, no_speech_prob=silence,
        speech_fraction=speech,
    )  # fmt: skip
    assert all(math.isfinite(value) for value in features_of(evidence))
    assert 0.0 <= DEFAULT_MODEL.confidence(evidence) <= 1.0


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("text_logprob", [0.0, -0.01, -0.1, -0.5, -1.0, -3.0, -20.0]),
        ("compression_ratio", [2.0, 2.4, 3.0, 4.0]),
        ("no_speech_prob", [0.0, 0.1, 0.6, 1.0]),
        ("speech_fraction", [1.0, 0.9, 0.5, 0.0]),
    ],
)
def test_every_kind_of_evidence_counts_in_one_direction(name: str, worse: list[float]) -> None:
    found = [DEFAULT_MODEL.confidence(replace(CLEAN, **{name: value})) for value in worse]
    assert all(better > less for better, less in pairwise(found))


def test_a_clean_segment_is_above_95_percent_and_a_loop_is_low() -> None:
    assert DEFAULT_MODEL.confidence(CLEAN) > 0.95
    assert DEFAULT_MODEL.confidence(replace(CLEAN, text_logprob=0.0)) > 0.99
    # Measured: "I'm going to go back to the next one." again and again, on noise.
    loop = SegmentEvidence(text_logprob=-0.15, compression_ratio=11.0, no_speech_prob=0.9)
    assert DEFAULT_MODEL.confidence(loop) < LOW_CONFIDENCE


def test_what_is_not_known_counts_neither_way() -> None:
    bare = DEFAULT_MODEL.confidence(SegmentEvidence(text_logprob=-0.05))
    best = replace(CLEAN, no_speech_prob=0.0, speech_fraction=1.0, compression_ratio=1.0)
    assert bare == DEFAULT_MODEL.confidence(best)


def test_weights_are_never_negative_and_bands_are_in_order() -> None:
    assert len(DEFAULT_MODEL.weights) == len(FEATURES)
    assert all(weight >= 0 for weight in DEFAULT_MODEL.weights)
    assert list(CONFIDENCE_EDGES) == sorted(CONFIDENCE_EDGES)
    assert {LOW_CONFIDENCE, HIGH_CONFIDENCE} <= set(CONFIDENCE_EDGES)


def test_extreme_models_do_not_overflow() -> None:
    for offset in (-1e6, 1e6):
        model = ConfidenceModel(name="extreme", offset=offset, weights=DEFAULT_MODEL.weights)
        assert model.confidence(CLEAN) == (offset > 0)


def test_a_row_and_a_segment_hold_the_same_evidence() -> None:
    given_ = replace(segment(" hi", 0.0, 1.0), text_logprob=-0.3, speech_fraction=0.5)
    row = {"text_logprob": -0.3, "compression_ratio": 1.5, "no_speech_prob": 0.01,
           "speech_fraction": 0.5, "text": " hi"}  # fmt: skip
    assert evidence_of(row) == segment_evidence(given_)
    assert evidence_of({"text_logprob": None}) is None
    expected = segment_evidence(given_)
    assert expected is not None
    assert with_confidence(given_).confidence == DEFAULT_MODEL.confidence(expected)
    assert with_confidence(replace(given_, text_logprob=None)).confidence == 0.0


def test_the_mean_is_over_all_tokens() -> None:
    assert mean_logprob_of([-0.2, -0.4, -0.6]) == pytest.approx(-0.4)
    assert mean_logprob_of([]) is None


SHARES = st.floats(0, 1)


def row_of(*probabilities: float | None, **values: object) -> dict[str, object]:
    words = [{"word": " a", "probability": probability} for probability in probabilities]
    return {"words": words, "confidence": 0.9, "no_speech_prob": 0.01} | values


@given(SHARES, SHARES, SHARES)
def test_a_words_confidence_is_a_share_that_follows_its_probability_and_its_segment(
    probability: float, other: float, confidence: float
) -> None:
    low, high = sorted((probability, other))
    evidence = WordEvidence(probability=low, segment_confidence=confidence)
    assert all(math.isfinite(value) for value in word_features(evidence))
    found = [
        WHISPER_WORDS.confidence(each)
        for each in (
            evidence,
            replace(evidence, probability=high),
            replace(evidence, probability=high, segment_confidence=max(high, confidence)),
        )
    ]
    assert 0.0 < found[0] <= found[1] <= found[2] < 1.0
    assert word_confidences(row_of(low, high, confidence=confidence)) == found[:2]


def test_a_likely_word_of_a_clean_segment_is_high_and_an_unlikely_word_is_marked() -> None:
    unlikely, middling, likely = word_confidences(row_of(0.1, 0.5, 1.0, confidence=0.97))
    # A probability of 0.5 is usually right where its segment is clean.
    assert unlikely < LOW_WORD_CONFIDENCE < middling < HIGH_CONFIDENCE < 0.98 < likely
    assert word_confidences(row_of(0.5, confidence=0.6)) < [LOW_WORD_CONFIDENCE]
    # What a person checked has the probability and the confidence 1.
    assert word_confidences(row_of(1.0, confidence=1.0)) > [0.99]


def test_words_of_other_models_and_of_unknown_segments_keep_their_probability() -> None:
    assert word_confidences(row_of(0.2, 1.0, no_speech_prob=None)) == [0.2, 1.0]
    assert word_confidences(row_of(0.2, confidence=None)) == [0.2]
    assert word_confidences(row_of(None, no_speech_prob=None)) == [0.0]
    assert word_confidences(row_of(None)) == word_confidences(row_of(0.0))
    assert word_confidences(row_of() | {"words": None}) == []
