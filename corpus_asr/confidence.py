"""Which share of a segment's words is right, estimated from what decoding knows of the segment.

Fitting is in `report/accuracy/calibration.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from corpus_asr.segments import Segment

# Thresholds for reports, pages, summaries and examples; of segments and of words. What share of
# segments has an error in each band is measured in corpus_asr/transcription/README.md.
LOW_CONFIDENCE = 0.7
HIGH_CONFIDENCE = 0.9
# Where tables of recordings and segments by confidence are divided.
CONFIDENCE_EDGES = (0.3, 0.5, LOW_CONFIDENCE, 0.8, HIGH_CONFIDENCE, 0.95)

# Certain tokens have a log-probability of 0, whose logarithm is not finite.
_LOGPROB_FLOOR = 0.02
# So that features are finite for any evidence.
_LOWEST_LOGPROB = -20.0
# Ordinary speech compresses by less than this; Whisper calls a window repetitive above 2.4.
_USUAL_COMPRESSION_RATIO = 2.0
# Loops compress by ten and more, which says no more than this does.
_MOST_REPETITION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEvidence:
    """What the model uses of a segment; None is not known, and counts neither way."""

    text_logprob: float
    """Mean log-probability of its text tokens, timestamps left out, before temperature."""
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    speech_fraction: float | None = None


EVIDENCE_COLUMNS = tuple(field.name for field in fields(SegmentEvidence))
# Each grows with the evidence that words are right; weights of a model are never negative.
FEATURES = ("likelihood", "repetition", "no_speech", "speech")


def features_of(evidence: SegmentEvidence) -> tuple[float, ...]:
    """Return the values of `FEATURES`: finite for any evidence, all of the order of 1."""
    mean = max(_LOWEST_LOGPROB, min(0.0, evidence.text_logprob))
    ratio = evidence.compression_ratio
    excess = 0.0 if ratio is None else ratio - _USUAL_COMPRESSION_RATIO
    spoken = evidence.speech_fraction
    return (
        # A logarithm: the odds of an error are about proportional to the mean surprise.
        -math.log(_LOGPROB_FLOOR - mean),
        -min(_MOST_REPETITION, max(0.0, excess)),
        -(evidence.no_speech_prob or 0.0),
        0.0 if spoken is None else spoken - 1.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceModel:
    """A logistic regression of the share of right words on `FEATURES`."""

    name: str
    """What the tables say in `calibration`."""
    offset: float
    weights: tuple[float, ...]
    model_revision: str | None = None
    """Weights it was fitted for; None where it is for any."""
    family: str | None = None
    """Family of these weights; None where it is for any."""

    def confidence(self, evidence: SegmentEvidence) -> float:
        """Estimate which share of a segment's words is right, in 0-1."""
        terms = zip(self.weights, features_of(evidence), strict=True)
        logit = self.offset + math.fsum(weight * value for weight, value in terms)
        if logit >= 0:
            return 1.0 / (1.0 + math.exp(-logit))
        # The same, for logits whose negative would overflow.
        odds = math.exp(logit)
        return odds / (1.0 + odds)


# Fitted as corpus_asr/transcription/README.md says.
DEFAULT_MODEL = ConfidenceModel(name="default", offset=-0.19, weights=(1.72, 3.30, 0.75, 0.27))


def mean_logprob_of(logprobs: Sequence[float]) -> float | None:
    """Return the mean of a segment's log-probabilities; None for no tokens."""
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def evidence_of(values: Mapping[str, Any]) -> SegmentEvidence | None:
    """Return the evidence in a row of the segments table; None without its log-probability."""
    if values.get("text_logprob") is None:
        return None
    known: dict[str, Any] = {name: values.get(name) for name in EVIDENCE_COLUMNS}
    return SegmentEvidence(**known)


def segment_evidence(segment: Segment) -> SegmentEvidence | None:
    """Return the evidence in a segment; None without its log-probability."""
    return evidence_of({name: getattr(segment, name) for name in EVIDENCE_COLUMNS})


def with_confidence(segment: Segment, model: ConfidenceModel = DEFAULT_MODEL) -> Segment:
    """Return a segment with the confidence that a model gives it; 0 for one without text."""
    evidence = segment_evidence(segment)
    return replace(segment, confidence=0.0 if evidence is None else model.confidence(evidence))
