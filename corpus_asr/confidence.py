"""Estimates the fraction of correct words in a segment, and whether a word is correct.

From decoding scores; fitted in `report/calibration.py`.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from corpus_asr.segments import Segment

# Thresholds for reports, pages, summaries and examples. The fraction of segments with errors in
# each band, and of marked words, is listed in corpus_asr/transcription/README.md.
LOW_CONFIDENCE = 0.7
HIGH_CONFIDENCE = 0.9
# Words below it are marked.
LOW_WORD_CONFIDENCE = 0.55
# Text of an English-only model with a lower mean confidence is probably of another language; a word
# says less than a sentence, so that less than two seconds have a lower threshold.
_OTHER_LANGUAGE_CONFIDENCE, _OTHER_LANGUAGE_PER_S = 0.6, 0.3
# Edges of confidence bands in tables of recordings and segments.
CONFIDENCE_EDGES = (0.3, 0.5, LOW_CONFIDENCE, 0.8, HIGH_CONFIDENCE, 0.95)

# Certain tokens have a log-probability of 0, for which the feature would be infinite.
_LOGPROB_FLOOR = 0.02
# Lower bound, so that features are finite.
_LOWEST_LOGPROB = -20.0
# Ordinary speech compresses by less than this; above 2.4 Whisper considers a window repetitive.
_USUAL_COMPRESSION_RATIO = 2.0
# Bound of shares, so that their logits are finite.
_LEAST_DOUBT = 0.001
# Loops compress by ten and more; higher ratios add no information.
_MOST_REPETITION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEvidence:
    """Decoding scores of a segment; None is unknown, and has no effect."""

    text_logprob: float
    """Mean log-probability of its text tokens, excluding timestamps, before temperature."""
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    speech_fraction: float | None = None


EVIDENCE_COLUMNS = tuple(field.name for field in fields(SegmentEvidence))
# Each increases with the evidence that words are correct; weights are never negative.
FEATURES = ("likelihood", "repetition", "no_speech", "speech")


def features_of(evidence: SegmentEvidence) -> tuple[float, ...]:
    """Return the values of `FEATURES`: always finite, of the order of 1."""
    ratio = evidence.compression_ratio
    excess = 0.0 if ratio is None else ratio - _USUAL_COMPRESSION_RATIO
    spoken = evidence.speech_fraction
    return (
        _likelihood(evidence.text_logprob),
        -min(_MOST_REPETITION, max(0.0, excess)),
        -(evidence.no_speech_prob or 0.0),
        0.0 if spoken is None else spoken - 1.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceModel:
    """A logistic regression of the fraction of correct words on `FEATURES`."""

    name: str
    """Value of `calibration` in the tables."""
    offset: float
    weights: tuple[float, ...]
    model_revision: str | None = None
    """Revision of the weights it was fitted for; None: any."""
    family: str | None = None
    """Family of these weights; None: any."""

    def confidence(self, evidence: SegmentEvidence) -> float:
        """Return the estimated fraction of correct words in a segment, 0 to 1."""
        return _logistic(self.offset, self.weights, features_of(evidence))


# Fitted as described in corpus_asr/transcription/README.md.
DEFAULT_MODEL = ConfidenceModel(name="default", offset=-0.19, weights=(1.72, 3.30, 0.75, 0.27))


@dataclass(frozen=True, slots=True, kw_only=True)
class WordEvidence:
    """Scores of a word and of its segment."""

    probability: float
    """Mean probability of the word's tokens."""
    segment_confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WordModel:
    """A logistic regression of a word's correctness on the features of `word_features`."""

    offset: float
    weights: tuple[float, ...]

    def confidence(self, evidence: WordEvidence) -> float:
        """Return the estimated probability that a word is correct."""
        return _logistic(self.offset, self.weights, word_features(evidence))


# Fitted as described in corpus_asr/transcription/README.md.
WHISPER_WORDS = WordModel(offset=-0.99, weights=(1.17, 0.56))
WORD_EVIDENCE_COLUMNS = ("words", "confidence", "no_speech_prob")


def word_features(evidence: WordEvidence) -> tuple[float, ...]:
    """Return the word's likelihood and the logit of its segment's confidence, always finite."""
    logprob = math.log(evidence.probability) if evidence.probability > 0 else _LOWEST_LOGPROB
    share = min(1 - _LEAST_DOUBT, max(_LEAST_DOUBT, evidence.segment_confidence))
    return (_likelihood(logprob), math.log(share / (1 - share)))


def word_confidences(row: Mapping[str, Any]) -> list[float]:
    """Return the confidence of each word in a row of the segments table, 0 to 1."""
    # Only Whisper estimates the no-speech probability. Its curve does not apply to the words of
    # other models and of aligned or rewritten text: their confidence is the probability.
    is_fitted = None not in (row["no_speech_prob"], row["confidence"])
    confidences = []
    for word in row["words"] or ():
        probability = word["probability"] or 0.0
        if is_fitted:
            evidence = WordEvidence(probability=probability, segment_confidence=row["confidence"])
            probability = WHISPER_WORDS.confidence(evidence)
        confidences.append(probability)
    return confidences


def _likelihood(logprob: float) -> float:
    # Logarithmic: the odds of an error are roughly proportional to the mean surprisal.
    return -math.log(_LOGPROB_FLOOR - max(_LOWEST_LOGPROB, min(0.0, logprob)))


def _logistic(offset: float, weights: Sequence[float], values: Sequence[float]) -> float:
    terms = (weight * value for weight, value in zip(weights, values, strict=True))
    logit = offset + math.fsum(terms)
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    # The same function; the other form would overflow.
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def is_other_language(segments: Sequence[Segment]) -> bool:
    """Whether an English-only model that wrote these segments was given another language.

    A guess by their confidence: with whisper-tiny.en it holds for clips of 56 of 59 languages
    other than English, and for 4 of 289 English recordings, whose texts are mostly wrong.
    """
    confidence = recording_confidence(segments)
    seconds = math.fsum(segment.end_s - segment.start_s for segment in segments)
    limit = min(_OTHER_LANGUAGE_CONFIDENCE, _OTHER_LANGUAGE_PER_S * seconds)
    return confidence is not None and confidence < limit


def mean_logprob_of(logprobs: Sequence[float]) -> float | None:
    """Return the mean of a segment's log-probabilities; None if there are no tokens."""
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def recording_confidence(segments: Iterable[Segment]) -> float | None:
    """Return the mean confidence of a recording's segments over time; None without segments."""
    # A segment may have no length, and still weighs something.
    weighted = [(row.confidence, max(0.0, row.end_s - row.start_s) + 1e-3) for row in segments]
    return statistics.fmean(*zip(*weighted, strict=True)) if weighted else None


def evidence_of(values: Mapping[str, Any]) -> SegmentEvidence | None:
    """Return the evidence in a row of the segments table; None without its log-probability."""
    if values.get("text_logprob") is None:
        return None
    evidence: dict[str, Any] = {name: values.get(name) for name in EVIDENCE_COLUMNS}
    return SegmentEvidence(**evidence)


def segment_evidence(segment: Segment) -> SegmentEvidence | None:
    """Return the evidence in a segment; None without its log-probability."""
    return evidence_of({name: getattr(segment, name) for name in EVIDENCE_COLUMNS})


def with_confidence(segment: Segment, model: ConfidenceModel = DEFAULT_MODEL) -> Segment:
    """Return a segment with the confidence computed by a model; 0 for one without text."""
    evidence = segment_evidence(segment)
    return replace(segment, confidence=0.0 if evidence is None else model.confidence(evidence))
