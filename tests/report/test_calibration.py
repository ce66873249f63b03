"""Outcomes are those of an alignment; fits find what made the data; figures are what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest

from corpus_asr.confidence import ConfidenceModel, SegmentEvidence
from corpus_asr.errors import ConfigError
from corpus_asr.report.calibration import (
    MIN_SEGMENTS,
    SegmentOutcome,
    brier,
    calibration_of,
    check_enough,
    fit,
    segment_outcomes,
    word_outcomes,
)
from tests.support.tables import segment

TRUE = ConfidenceModel(name="true", offset=0.2, weights=(1.5, 2.0, 1.0, 0.6))
START = ConfidenceModel(name="start", offset=0.0, weights=(0.0, 0.0, 0.0, 0.0))


def outcome(
    group: str = "a",
    *,
    words: int,
    right: int,
    missed: int = 0,
    evidence: SegmentEvidence = SegmentEvidence(text_logprob=-0.3),  # noqa: B008 - frozen
) -> SegmentOutcome:
    return SegmentOutcome(
        group=group, evidence=evidence, words=words, right=right, missed=missed, confidence=0.5
    )


def drawn(model: ConfidenceModel, num: int, seed: int = 3) -> list[SegmentOutcome]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num):
        evidence = SegmentEvidence(
            text_logprob=-float(rng.exponential(0.4)),
            compression_ratio=float(rng.uniform(1.0, 3.5)),
            no_speech_prob=float(rng.uniform()),
            speech_fraction=float(rng.uniform(0.2, 1.0)),
        )
        right = int(rng.binomial(12, model.confidence(evidence)))
        found.append(outcome(str(number % 40), evidence=evidence, words=12, right=right))
    return found


def test_words_are_right_where_they_are_aligned_and_missing_ones_belong_to_the_one_before() -> None:
    right, missed = word_outcomes([" Red green", " blew", " ten."], "red green white blue 10", "en")
    assert right == [[True, True], [False], [True]]
    assert sum(missed) == 1
    for texts, said, language, expected in (
        ([" b"], "a b", "en", ([[True]], [1])),
        ([" um"], "red", None, ([[False]], [0])),
        ([" you"], "", "en", ([[False]], [0])),
        (["今日わ"], "今日は", "ja", ([[True, True, False]], [0])),
    ):
        assert word_outcomes(texts, said, language) == expected, texts


def test_segments_without_words_or_evidence_are_left_out() -> None:
    said = [replace(segment(text, at, at + 1.0), text_logprob=-0.1)
            for at, text in enumerate([" red", " (cough)", " blew"])]  # fmt: skip
    found = segment_outcomes(said, "red blue", "en", group="r")
    assert [(one.words, one.right, one.has_error) for one in found] == [(1, 1, False), (1, 0, True)]
    assert found[0].confidence == 0.9
    assert segment_outcomes([segment(" red", 0.0, 1.0)], "red", "en", group="r") == []


def test_a_fit_finds_the_model_that_made_the_data() -> None:
    found = fit(drawn(TRUE, 6_000), START)
    assert found.offset == pytest.approx(TRUE.offset, abs=0.1)
    assert found.weights == pytest.approx(TRUE.weights, abs=0.12)
    assert fit(drawn(TRUE, 6_000), START) == found


def test_weights_that_would_be_negative_are_zero_and_few_data_stay_near_the_start() -> None:
    wrong_way = replace(TRUE, weights=(1.5, 0.0, 0.0, -2.0))
    found = fit(drawn(wrong_way, 3_000), START)
    assert found.weights[3] == 0.0
    assert min(found.weights) >= 0.0
    few = fit(drawn(TRUE, 3), replace(TRUE, weights=(1.0, 1.0, 1.0, 1.0)))
    assert few.weights == pytest.approx((1.0, 1.0, 1.0, 1.0), abs=0.5)
    perfect = fit([outcome(words=5, right=5) for _ in range(30)], START)
    assert math.isfinite(perfect.offset)
    assert perfect.confidence(SegmentEvidence(text_logprob=-0.3)) > 0.99


def test_the_brier_score_is_of_words() -> None:
    outcomes = [outcome(words=4, right=4), outcome(words=4, right=2), outcome(words=2, right=2,
                missed=1)]  # fmt: skip
    squares = 4 * 0.05**2 + 2 * 0.55**2 + 2 * 0.45**2 + 2 * 0.25**2
    assert brier(outcomes, [0.95, 0.45, 0.75]) == pytest.approx(squares / 10)
    found = calibration_of(outcomes, TRUE, address="")
    assert (found.segments, found.recordings, found.right) == (3, 1, 0.8)
    assert found.with_errors == pytest.approx(2 / 3)


def test_too_little_is_refused_with_its_counts() -> None:
    few = [outcome(str(at), words=2, right=at % 2) for at in range(50)]
    perfect = [outcome(str(at), words=2, right=2) for at in range(MIN_SEGMENTS)]
    alone = [outcome("one", words=2, right=1 + at % 2) for at in range(300)]
    for data, words in ((few, "found 50 scored segments"), (perfect, "0 with an"),
                        (alone, "in 1 recordings")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            check_enough(data)
