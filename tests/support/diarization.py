"""Diarization error rate, as NIST's md-eval counts it, and a plain baseline to compare with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment

Span = tuple[float, float, str]
STEP_S = 0.01


class DiarizationErrors(NamedTuple):
    """Seconds of speech: a second in which two speak counts twice."""

    missed_s: float
    false_s: float
    confused_s: float
    speech_s: float

    @property
    def rate(self) -> float:
        """The diarization error rate."""
        return (self.missed_s + self.false_s + self.confused_s) / self.speech_s

    def plus(self, other: "DiarizationErrors") -> "DiarizationErrors":
        """Return the errors of both."""
        return DiarizationErrors(*(a + b for a, b in zip(self, other, strict=True)))


def diarization_errors(
    reference: Sequence[Span], found: Sequence[Span], *, collar_s: float = 0.25
) -> DiarizationErrors:
    """Compare turns in steps of 10 ms; within `collar_s` of a border of the reference none count.

    Speakers are paired so that most of the speech is right.
    """
    end_s = max((end for _, end, _ in [*reference, *found]), default=0.0)
    steps = round(end_s / STEP_S) + 2
    said, heard = _active(reference, steps), _active(found, steps)
    counted = np.ones(steps, dtype=bool)
    for start, end, _ in reference if collar_s else ():
        for border in (start, end):
            first, last = (round((border + side * collar_s) / STEP_S) for side in (-1, 1))
            counted[max(0, first) : last] = False
    said, heard = said[:, counted], heard[:, counted]
    shared = said.astype(np.float32) @ heard.astype(np.float32).T
    rows, columns = linear_sum_assignment(-shared)
    num_said, num_heard = said.sum(axis=0), heard.sum(axis=0)
    right = float(shared[rows, columns].sum())
    return DiarizationErrors(
        missed_s=STEP_S * float(np.maximum(0, num_said - num_heard).sum()),
        false_s=STEP_S * float(np.maximum(0, num_heard - num_said).sum()),
        confused_s=STEP_S * (float(np.minimum(num_said, num_heard).sum()) - right),
        speech_s=STEP_S * float(num_said.sum()),
    )


def _active(spans: Sequence[Span], steps: int) -> np.ndarray:
    names = sorted({speaker for _, _, speaker in spans})
    active = np.zeros((len(names), steps), dtype=bool)
    for start, end, speaker in spans:
        active[names.index(speaker), round(start / STEP_S) : round(end / STEP_S)] = True
    return active


def plain_spectral(embeddings: np.ndarray, *, most: int = 12) -> np.ndarray:
    """Return the labels of spectral clustering with the eigengap of Park et al. 2020 alone."""
    size = len(embeddings)
    if size < 3:
        return np.zeros(size, dtype=np.int64)
    order = np.argsort(-(embeddings @ embeddings.T), axis=1)
    found = []
    for neighbors in sorted({max(2, int(size * s)) for s in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25)}):
        linked = np.zeros((size, size))
        linked[np.arange(size)[:, None], order[:, :neighbors]] = 1.0
        linked = (linked + linked.T) / 2
        laplacian = np.diag(linked.sum(axis=1)) - linked
        values, vectors = np.linalg.eigh(laplacian)
        gaps = np.diff(values[: most + 1])
        ratio = neighbors / size / (gaps.max() / values[-1] + 1e-9)
        found.append((ratio, int(gaps.argmax()) + 1, vectors))
    _, number, vectors = min(found, key=lambda each: each[0])
    labels: np.ndarray = kmeans2(vectors[:, :number], number, seed=0, minit="++")[1]
    return labels.astype(np.int64)
