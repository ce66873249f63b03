"""Fit `confidence` to how many words of a run were right.

A word is right where a cheapest alignment of the recording pairs it with the same word of the
reference. A missing word counts as an error of the segment that holds the word before it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from corpus_asr.confidence import (
    DEFAULT_MODEL,
    ConfidenceModel,
    SegmentEvidence,
    WordModel,
    features_of,
    segment_evidence,
)
from corpus_asr.errors import ConfigError
from corpus_asr.report.scoring import aligned, normalized, units
from corpus_asr.report.text import rounded, text_template
from corpus_asr.segments import Segment
from corpus_asr.storage.stores.uri import redact_uri

# Four weights and an offset are fitted; with fewer errors than this, fits to parts of the data
# differ widely.
MIN_SEGMENTS = 200
MIN_ERRORS = 20
MIN_RECORDINGS = 5
# Weight of the prior model in a fit, in words.
PRIOR_WORDS = 20.0
_MAX_STEPS = 100
Model = TypeVar("Model", ConfidenceModel, WordModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOutcome:
    """A segment compared with its reference."""

    group: str
    """Its recording."""
    evidence: SegmentEvidence
    words: int
    right: int
    missed: int
    """Deleted words of the reference that follow one of the segment's."""
    confidence: float
    """Confidence in its row."""

    @property
    def has_error(self) -> bool:
        """Whether a word is substituted, inserted or deleted."""
        return self.right < self.words or self.missed > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A model fitted to a run, and what it was fitted to."""

    model: ConfidenceModel
    address: str
    """URI of the calibration file."""
    recordings: int
    segments: int
    right: float
    """Share of words."""
    with_errors: float
    """Share of segments."""
    brier_before: float
    """Brier score of the confidences in the run's tables."""
    brier: float
    """Brier score of the model."""


def word_outcomes(
    texts: Sequence[str], reference: str, language: str | None
) -> tuple[list[list[bool]], list[int]]:
    """Return which normalized words of consecutive texts are correct, and deletions after each.

    The reference is for all texts concatenated.
    """
    words_of = [units(normalized(text, language), language) for text in texts]
    owners = [index for index, words in enumerate(words_of) for _ in words]
    hypothesis = [word for words in words_of for word in words]
    expected = units(normalized(reference, language), language)
    right, missed = [False] * len(hypothesis), [0] * len(texts)
    if hypothesis and expected:
        for chunk in aligned(expected, hypothesis).alignments[0]:
            if chunk.type == "equal":
                for at in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                    right[at] = True
            elif chunk.type == "delete":
                owner = owners[max(0, chunk.hyp_start_idx - 1)]
                missed[owner] += chunk.ref_end_idx - chunk.ref_start_idx
    marks = iter(right)
    return [[next(marks) for _ in words] for words in words_of], missed


def segment_outcomes(
    segments: Sequence[Segment], reference: str, language: str | None, *, group: str
) -> list[SegmentOutcome]:
    """Compare a recording's segments that have words and log-probabilities with its reference."""
    rights, missed = word_outcomes([segment.text for segment in segments], reference, language)
    return [
        SegmentOutcome(
            group=group,
            evidence=evidence,
            words=len(right),
            right=sum(right),
            missed=num_missed,
            confidence=segment.confidence,
        )
        for segment, right, num_missed in zip(segments, rights, missed, strict=True)
        if right and (evidence := segment_evidence(segment)) is not None
    ]


def check_enough(outcomes: Sequence[SegmentOutcome]) -> None:
    """Raise a `ConfigError` for too few segments, errors or recordings."""
    errors = sum(outcome.has_error for outcome in outcomes)
    groups = len({outcome.group for outcome in outcomes})
    both_kinds = MIN_ERRORS <= errors <= len(outcomes) - MIN_ERRORS
    if len(outcomes) >= MIN_SEGMENTS and both_kinds and groups >= MIN_RECORDINGS:
        return
    raise ConfigError(
        f"calibrating confidence: found {len(outcomes):,} scored segments, {errors:,} with an "
        f"error, in {groups:,} recordings, expected {MIN_SEGMENTS}, {MIN_ERRORS} with an error "
        f"and {MIN_ERRORS} without, in {MIN_RECORDINGS}; add references"
    )


def fit(
    outcomes: Sequence[SegmentOutcome], start: ConfidenceModel = DEFAULT_MODEL
) -> ConfidenceModel:
    """Fit the confidence of segments to their fractions of correct words."""
    return fitted(
        start,
        [features_of(outcome.evidence) for outcome in outcomes],
        right=[outcome.right for outcome in outcomes],
        words=[outcome.words for outcome in outcomes],
    )


def fitted(
    start: Model, features: Sequence[Sequence[float]], *, right: Sequence[int], words: Sequence[int]
) -> Model:
    """Fit a logistic regression to the fraction of correct words, by Newton's method.

    Weights have a Gaussian prior around those of `start`; negative ones are set to 0.
    """
    design = np.hstack([np.ones((len(features), 1)), np.array(features)])
    num_right, num_words = (np.array(number, dtype=np.float64) for number in (right, words))
    prior = np.array([start.offset, *start.weights])
    stiffness = np.array([0.0, *[PRIOR_WORDS] * len(start.weights)])
    free = np.ones(len(prior), dtype=bool)
    # Each feature increases with correctness: a negative weight is noise of few errors.
    while True:
        weights = np.zeros(len(prior))
        weights[free] = _newton(design[:, free], num_right, num_words, prior[free], stiffness[free])
        if weights[1:].min() >= 0:
            break
        free[1 + int(weights[1:].argmin())] = False
    return replace(
        start, offset=float(weights[0]), weights=tuple(float(weight) for weight in weights[1:])
    )


def _newton(
    design: np.ndarray,
    right: np.ndarray,
    words: np.ndarray,
    prior: np.ndarray,
    stiffness: np.ndarray,
) -> np.ndarray:
    def loss_of(weights: np.ndarray) -> float:
        logits = design @ weights
        surprise = right @ np.logaddexp(0, -logits) + (words - right) @ np.logaddexp(0, logits)
        return float(surprise + 0.5 * stiffness @ (weights - prior) ** 2)

    weights = prior.copy()
    loss = loss_of(weights)
    for _ in range(_MAX_STEPS):
        # Clipped: exp overflows in double precision above 709.
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        gradient = design.T @ (words * probability - right) + stiffness * (weights - prior)
        curvature = (design.T * (words * probability * (1 - probability))) @ design
        # A small term for directions without data or prior.
        step = np.linalg.solve(curvature + np.diag(stiffness + 1e-9), gradient)
        # Far from the optimum a full step may increase the loss.
        while (trial := loss_of(weights - step)) > loss and np.abs(step).max() > 1e-9:
            step = step / 2
        if trial > loss:
            break
        weights, last_loss, loss = weights - step, loss, trial
        if last_loss - loss <= 1e-10 * (1 + abs(loss)):
            break
    return weights


def calibration_of(
    outcomes: Sequence[SegmentOutcome], model: ConfidenceModel, *, address: str
) -> Calibration:
    """Describe a model that was fitted to these segments."""
    words = sum(outcome.words for outcome in outcomes)
    return Calibration(
        model=model,
        address=address,
        recordings=len({outcome.group for outcome in outcomes}),
        segments=len(outcomes),
        right=sum(outcome.right for outcome in outcomes) / words,
        with_errors=sum(outcome.has_error for outcome in outcomes) / len(outcomes),
        brier_before=brier(outcomes, [outcome.confidence for outcome in outcomes]),
        brier=brier(outcomes, [model.confidence(outcome.evidence) for outcome in outcomes]),
    )


def brier(outcomes: Sequence[SegmentOutcome], confidences: Sequence[float]) -> float:
    """Return the mean squared difference of confidence and each word's outcome."""
    squares = [
        outcome.right * (1 - confidence) ** 2 + (outcome.words - outcome.right) * confidence**2
        for outcome, confidence in zip(outcomes, confidences, strict=True)
    ]
    return math.fsum(squares) / sum(outcome.words for outcome in outcomes)


def render_calibration(calibration: Calibration) -> str:
    """Return a calibration as text."""
    text = text_template("corpus_asr.report", "calibration.txt.j2").render(
        calibration=calibration, address=redact_uri(calibration.address)
    )
    return text.rstrip("\n")


def calibration_data(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON-compatible values, without the coefficients."""
    values = asdict(calibration)
    name, address = values.pop("model")["name"], redact_uri(values.pop("address"))
    figures: dict[str, Any] = rounded(values)
    return {"name": name, "address": address} | figures
