"""Speaker clustering of one recording: embeddings of windows in, speaker labels out.

Windows are joined by average linkage to more clusters than there are speakers. Then the two most
similar ones are merged until no two are similar enough to be one voice, and windows are assigned
again. Windows of long recordings are first condensed per block.
"""

from dataclasses import dataclass

import numpy as np

from corpus_asr.array_types import Float32, Float64, Int64

# Maximum nodes of the linkage of ten hours or of a block, as time and memory are O(n^2).
MAX_NODES = 600
# In smaller blocks, clusters would mix speakers.
LEAST_NODES_PER_BLOCK = 8
# Clusters before merging: voices that few windows have are still apart.
FIRST_CLUSTERS = 20
# Default maximum number of speakers.
MAX_SPEAKERS = 12
# Thresholds for cosines of embeddings, fitted with the packaged CAM++ on conversations of 41
# speakers; reported results are on others (docs/background/speaker_accuracy.md). Medians of windows
# are 0.57 for one voice and 0.09 for two.
# Speakers are merged if the cosine of their mean embeddings is higher.
MERGE_ABOVE = 0.81
# Its reduction, divided by the seconds of the one with fewer: means of little speech vary.
SMALL_MERGE_S = 1.5
# Seconds of a longer recording count as this many: a voice varies, and what is repeated is no news.
MOST_EVIDENCE_S = 300.0
# Minimum gain in similarity, times seconds, for a speaker change.
SWITCH_COST = 0.1
# Speakers of two recordings are identical if the cosine of their mean embeddings is higher.
SAME_VOICE_ABOVE = 0.7
# Factor of cosines to give log probabilities; arbitrary, as confidences are not calibrated.
SHARPNESS = 20.0

Embeddings = Float32[np.ndarray, "window width"]
Voices = Float32[np.ndarray, "speaker width"]
Labels = Int64[np.ndarray, " window"]
Seconds = Float32[np.ndarray, " window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerBounds:
    """Bounds on the number of speakers."""

    least: int = 1
    most: int | None = None
    """None: at most `MAX_SPEAKERS`."""

    @classmethod
    def of(cls, num: int | None, least: int | None, most: int | None) -> "SpeakerBounds":
        """Return the bounds of settings; `num` sets both."""
        return cls(least=num or least or 1, most=num or most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """Speaker labels of windows."""

    labels: Labels
    """Speaker indices from 0, in order of first appearance."""
    confidences: Float64[np.ndarray, " window"]
    """Probability of each label, from similarities only."""
    voices: Voices
    """Mean embedding of each speaker, normalized."""


def find_speakers(
    embeddings: Embeddings,
    bounds: SpeakerBounds | None = None,
    *,
    lasts_s: Float64[np.ndarray, " window"] | None = None,
) -> Clustering:
    """Cluster a recording's windows, in order of time; each counts by its seconds, or 1."""
    bounds = bounds or SpeakerBounds()
    vectors = np.asarray(embeddings, dtype=np.float32)
    if len(vectors) == 0:
        nobody = np.zeros((0, vectors.shape[1]), dtype=np.float32)
        return Clustering(labels=np.zeros(0, np.int64), confidences=np.zeros(0), voices=nobody)
    seconds = np.ones(len(vectors)) if lasts_s is None else lasts_s
    counts = seconds.astype(np.float32)
    sums = vectors * counts[:, None]
    labels = _condensed(sums, counts)
    labels = _agglomerated(
        sums, counts, labels, most=max(FIRST_CLUSTERS, bounds.least, bounds.most or 0)
    )
    labels = _merged(sums, counts, labels, bounds)
    smooth = _smoothed(sums @ unit(sums_of(sums, labels)).T)
    if len(np.unique(smooth)) >= min(labels.max() + 1, bounds.least):
        labels = smooth
    labels = _by_appearance(labels)
    voices = unit(sums_of(sums, labels))
    scores = SHARPNESS * (vectors @ voices.T)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = shares[np.arange(len(labels)), labels] / shares.sum(axis=1)
    return Clustering(labels=labels, confidences=probabilities.astype(np.float64), voices=voices)


def agglomerate(sums: Embeddings, counts: Seconds, *, most: int) -> Labels:
    """Merge the most similar pair until `most` clusters are left; return a label per row.

    A row is the sum of `counts` normalized embeddings. The similarity of two clusters is the mean
    cosine over all their pairs (average linkage), so that clustering in stages is equal to
    clustering at once.
    """
    sums, counts = sums.copy(), counts.astype(np.float32)
    owner = np.arange(len(sums))
    likeness = (sums @ sums.T) / np.outer(counts, counts)
    np.fill_diagonal(likeness, -np.inf)
    nearest = likeness.argmax(axis=1)
    highest = likeness[owner, nearest]
    alive = np.ones(len(sums), dtype=bool)
    for _ in range(len(sums) - most):
        kept = int(highest.argmax())
        gone = int(nearest[kept])
        sums[kept] += sums[gone]
        counts[kept] += counts[gone]
        owner[owner == gone] = kept
        alive[gone] = False
        row = (sums @ sums[kept]) / (counts * counts[kept])
        row[~alive] = row[kept] = -np.inf
        likeness[kept] = likeness[:, kept] = row
        likeness[gone] = likeness[:, gone] = highest[gone] = -np.inf
        stale = alive & ((nearest == kept) | (nearest == gone))
        stale[kept] = True
        for cluster in np.flatnonzero(stale):
            nearest[cluster] = likeness[cluster].argmax()
            highest[cluster] = likeness[cluster, nearest[cluster]]
        nearer = alive & (row > highest)
        nearest[nearer], highest[nearer] = kept, row[nearer]
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)


def _agglomerated(sums: Embeddings, counts: Seconds, labels: Labels, *, most: int) -> Labels:
    """Merge labels until at most `most` are left."""
    if labels.max() < most:
        return labels
    label_counts = np.bincount(labels, weights=counts).astype(np.float32)
    merged: Labels = agglomerate(sums_of(sums, labels), label_counts, most=most)[labels]
    return merged


def _condensed(sums: Embeddings, counts: Seconds) -> Labels:
    """Return a node per window: its own, or in long recordings a cluster of its block."""
    places = np.arange(len(sums))
    num_blocks = -(-len(sums) // MAX_NODES)
    if num_blocks == 1:
        return places
    most = max(LEAST_NODES_PER_BLOCK, MAX_NODES // num_blocks)
    nodes = places.copy()
    first_node = 0
    for block in np.array_split(places, num_blocks):
        nodes[block] = first_node + agglomerate(sums[block], counts[block], most=most)
        first_node = int(nodes[block].max()) + 1
    return _agglomerated(sums, counts, nodes, most=MAX_NODES)  # a day and more


def _merged(sums: Embeddings, counts: Seconds, labels: Labels, bounds: SpeakerBounds) -> Labels:
    """Merge similar speakers, the most similar ones first."""
    most = max(bounds.least, bounds.most or MAX_SPEAKERS)
    reduction = SMALL_MERGE_S * max(1.0, float(counts.sum()) / MOST_EVIDENCE_S)
    while (number := int(labels.max()) + 1) > bounds.least:
        voices, seconds = unit(sums_of(sums, labels)), np.bincount(labels, weights=counts)
        above = voices @ voices.T - MERGE_ABOVE
        above += reduction / np.minimum(seconds[:, None], seconds)
        np.fill_diagonal(above, -np.inf)
        kept, gone = sorted(divmod(int(above.argmax()), number))
        if above[kept, gone] < 0.0 and number <= most:
            break
        labels = np.where(labels == gone, kept, labels)
        labels -= labels > gone
    return labels


def _by_appearance(labels: Labels) -> Labels:
    """Number the labels in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    numbered: Labels = np.argsort(np.argsort(first))[inverse]
    return numbered


def sums_of(vectors: Embeddings, labels: Labels) -> Voices:
    """Add up the embeddings of each label."""
    sums = np.zeros((int(labels.max()) + 1, vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, vectors)
    return sums


def unit(vectors: Embeddings) -> Embeddings:
    """Normalize embeddings to length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Embeddings = vectors / np.maximum(lengths, np.float32(1e-9))
    return unit


def _smoothed(scores: Float32[np.ndarray, "window speaker"]) -> Labels:
    """Return the best sequence of speakers with a cost per change (Viterbi)."""
    reached = scores[0].copy()
    came_from = np.zeros(scores.shape, dtype=np.int64)
    stayed = np.arange(scores.shape[1])
    for at, row in enumerate(scores[1:], 1):
        best = int(reached.argmax())
        switched = reached[best] - SWITCH_COST
        came_from[at] = np.where(reached >= switched, stayed, best)
        reached = np.maximum(reached, switched) + row
    labels = np.zeros(len(scores), dtype=np.int64)
    labels[-1] = reached.argmax()
    for at in range(len(scores) - 1, 0, -1):
        labels[at - 1] = came_from[at, labels[at]]
    return labels
