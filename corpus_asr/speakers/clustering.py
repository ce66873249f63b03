"""Who is the same: embeddings of one recording's windows in, a speaker's number for each out.

Windows that are nearest neighbors of one another form a graph; the gaps between its smallest
eigenvalues tell about how many speakers there are. Speakers whose voices then prove to be one are
merged, and everybody who never speaks for long is dropped. Several graphs and numbers are tried,
and the speakers that explain the windows best, for how many they are, are taken. Of long
recordings, blocks are condensed first, and less is tried.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from corpus_asr.array_types import Float32, Float64, Int64

# Eigenvalues cost the third power: the graph of ten hours, and of each block of them, has no more.
MAX_NODES = 600
# Below, a block's clusters would mix speakers.
LEAST_NODES_PER_BLOCK = 8
# Shares of the nodes that count as neighbors: a graph of each.
NEIGHBOR_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
# Numbers above that of the clearest gap that are tried with each graph.
MORE_SPEAKERS = 2
# As how many speakers more two count that are one voice by their likeness.
ALIKE_COUNT = 1.5
# Windows of all tries together: all are tried in 55 minutes of speech, one in more than 8 hours.
TRIED_WINDOWS = 80_000
# Of speakers that are looked for where no bound is given.
MAX_SPEAKERS = 12
# Consecutive windows (3.1 s) that somebody must speak for at least once: mixtures of two voices,
# where one follows the other, look like a third.
LEAST_RUN = 3
# About a minute of speech: below, means of few windows make one voice look like two.
SHORT_WINDOWS = 90
ROUNDS = 2
# Lloyd's iterations: far more than were ever needed.
_ITERATIONS = 50

Embeddings = Float32[np.ndarray, "window width"]
Voices = Float32[np.ndarray, "speaker width"]
Labels = Int64[np.ndarray, " window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What cosines of a model's embeddings mean."""

    merge_above: float
    """Two speakers are one if their mean embeddings are more alike."""
    small_merge: float
    """By how much less alike if one of them has a single window; half of it with two windows."""
    short_small_merge: float
    """`small_merge` in recordings with less than `SHORT_WINDOWS`."""
    switch_cost: float
    """What the likeness must gain in one window for the speaker to change."""
    speaker_cost: float
    """Of a speaker, times the logarithm of the number of windows: the likeness that all windows
    together must gain by one more."""
    same_above: float
    """Speakers of two recordings are one person if their mean embeddings are more alike."""
    sharpness: float
    """Of probabilities: their logarithms are cosines times this."""


# Fitted on conversations of 41 speakers, and on 32 short ones; those reported are of others
# (docs/background/speaker_accuracy.md). The sharpness is a choice: confidences are not calibrated.
GE2E_LIKENESS = Likeness(
    merge_above=0.84, small_merge=0.2, short_small_merge=0.6,
    switch_cost=0.1, speaker_cost=0.27, same_above=0.87, sharpness=20.0,
)  # fmt: skip
# Of networks that users name: fitted with CAM++, in which the middle cosine of two speakers is 0.6
# here. Of what is as above, only another `switch_cost` was tried, and was no better.
NAMED_LIKENESS = Likeness(
    merge_above=0.82, small_merge=0.2, short_small_merge=0.6,
    switch_cost=0.1, speaker_cost=0.35, same_above=0.86, sharpness=20.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerBounds:
    """How many speakers there may be."""

    least: int = 1
    most: int | None = None
    """None: at most `MAX_SPEAKERS` are looked for."""

    @classmethod
    def of(cls, num: int | None, least: int | None, most: int | None) -> "SpeakerBounds":
        """Return the bounds of settings, of which `num` is both."""
        return cls(least=num or least or 1, most=num or most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """Who speaks in each window."""

    labels: Labels
    """From 0, in order of first appearance."""
    confidences: Float64[np.ndarray, " window"]
    """Probability that the label is right, as far as likeness tells."""
    voices: Voices
    """Mean embedding of each speaker, of length 1."""


def find_speakers(
    embeddings: Embeddings, likeness: Likeness, bounds: SpeakerBounds | None = None
) -> Clustering:
    """Find the speakers of a recording's windows, given in order of time.

    Source: the graph and the choice of neighbors as in Park et al. 2020, Auto-tuning spectral
    clustering for speaker diarization using normalized maximum eigengap.
    """
    bounds = bounds or SpeakerBounds()
    vectors = np.asarray(embeddings, dtype=np.float32)
    if len(vectors) == 0:
        nobody = np.zeros((0, vectors.shape[1]), dtype=np.float32)
        return Clustering(labels=np.zeros(0, np.int64), confidences=np.zeros(0), voices=nobody)
    nodes = _condensed(vectors)
    # More were worse for short recordings in which nobody overlaps.
    tries = 1 if len(vectors) < SHORT_WINDOWS else max(1, TRIED_WINDOWS // len(vectors))
    groupings = islice(_by_spectrum(unit(sums_of(vectors, nodes)), bounds), tries)
    settled = [_settled(vectors, labels[nodes], likeness, bounds) for labels in groupings]
    labels, voices = max(settled, key=lambda pair: _gain(vectors, pair[0], pair[1], likeness))
    scores = likeness.sharpness * (vectors @ voices.T)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = shares[np.arange(len(labels)), labels] / shares.sum(axis=1)
    order = np.argsort([np.argmax(labels == number) for number in range(len(voices))])
    return Clustering(
        labels=np.argsort(order)[labels],
        confidences=probabilities.astype(np.float64),
        voices=voices[order],
    )


def agglomerate(
    sums: Embeddings, counts: Float32[np.ndarray, " window"], *, most: int
) -> Int64[np.ndarray, " window"]:
    """Merge the two most alike until `most` clusters are left; return a number for each row.

    A row is the sum of `counts` embeddings of length 1. The likeness of two clusters is the mean
    cosine over all their pairs, so that clusters of clusters are what they were found to be in one
    go (average linkage).
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


def _condensed(vectors: Embeddings) -> Labels:
    """Return a node for each window: its own, or in long recordings a cluster of its block."""
    if len(vectors) <= MAX_NODES:
        return np.arange(len(vectors))
    num_blocks = -(-len(vectors) // MAX_NODES)
    most = max(LEAST_NODES_PER_BLOCK, MAX_NODES // num_blocks)
    nodes = np.zeros(len(vectors), dtype=np.int64)
    first_node = 0
    for places in np.array_split(np.arange(len(vectors)), num_blocks):
        block = vectors[places]
        nodes[places] = first_node + agglomerate(
            block, np.ones(len(block), dtype=np.float32), most=most
        )
        first_node = int(nodes[places].max()) + 1
    if first_node > MAX_NODES:  # a day and more
        sums, counts = sums_of(vectors, nodes), np.bincount(nodes).astype(np.float32)
        nodes = agglomerate(sums, counts, most=MAX_NODES)[nodes]
    return nodes


def _by_spectrum(vectors: Embeddings, bounds: SpeakerBounds) -> Iterator[Labels]:
    """Yield groupings, each once; first that of the clearest gap."""
    size = len(vectors)
    # More than the bound may be found: what is most alike is merged afterwards, which mixes fewer.
    most = min(size, max(MAX_SPEAKERS, bounds.least))
    least = min(bounds.least, most)
    if bounds.most == 1 or size < 2 * LEAST_RUN:
        yield _split_evenly(size, least)
        return
    order = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")
    groupings: list[tuple[float, int, Float64[np.ndarray, "node axis"]]] = []
    for neighbors in sorted({max(2, round(share * size)) for share in NEIGHBOR_SHARES}):
        values, axes = np.linalg.eigh(_laplacian(order[:, :neighbors]))
        gaps = np.diff(values[: most + 1])[least - 1 :]
        if not len(gaps):
            gaps = np.zeros(1)
        # Few neighbors and a wide gap: the graph falls apart as clearly as it can.
        cost = neighbors / size / (float(gaps.max()) / max(float(values[-1]), 1e-9) + 1e-9)
        groupings.append((cost, least + int(gaps.argmax()), axes[:, :most]))
    seen: set[bytes] = set()
    for _, clearest, axes in sorted(groupings, key=lambda grouping: grouping[0]):
        for number in range(clearest, min(clearest + MORE_SPEAKERS, most) + 1):
            labels = _by_appearance(_grouped(axes[:, :number], number))
            if labels.tobytes() not in seen:
                seen.add(labels.tobytes())
                yield labels


def _gain(vectors: Embeddings, labels: Labels, voices: Voices, likeness: Likeness) -> float:
    """Return how well speakers explain the windows, less what as many cost (as BIC counts it)."""
    lengths = np.linalg.norm(sums_of(vectors, labels), axis=1)
    # A voice varies in a long recording: more windows are no more reason for another speaker.
    size = min(len(vectors), MAX_NODES)
    explained = size * float(lengths.sum()) / len(vectors)
    # Where that many were asked for, one voice may be two speakers, and then two voices are one.
    alike = float(np.triu(voices @ voices.T, 1).max()) > likeness.merge_above
    number = len(voices) + ALIKE_COUNT * alike
    return explained - likeness.speaker_cost * number * float(np.log(size))


def _by_appearance(labels: Labels) -> Labels:
    """Number the labels in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    numbered: Labels = np.argsort(np.argsort(first))[inverse]
    return numbered


def _split_evenly(size: int, number: int) -> Labels:
    # Too little to tell anybody apart: asked for two, they take turns.
    return np.arange(size) * number // max(1, size)


def _laplacian(neighbors: Int64[np.ndarray, "node neighbor"]) -> Float64[np.ndarray, "node node"]:
    size = len(neighbors)
    linked = np.zeros((size, size))
    linked[np.arange(size)[:, None], neighbors] = 1.0
    linked = (linked + linked.T) / 2
    return np.diag(linked.sum(axis=1)) - linked


def _grouped(points: Float64[np.ndarray, "node axis"], number: int) -> Labels:
    """Return k-means' groups; it begins with points far from one another, without chance."""
    centers = points[[int(np.argmax(np.square(points - points.mean(axis=0)).sum(axis=1)))]]
    while len(centers) < number:
        away = np.square(points[:, None] - centers).sum(axis=2).min(axis=1)
        centers = np.concatenate([centers, points[[int(away.argmax())]]])
    labels = np.full(len(points), -1)
    for _ in range(_ITERATIONS):
        new_labels = np.square(points[:, None] - centers).sum(axis=2).argmin(axis=1)
        if np.array_equal(new_labels, labels):
            break
        labels = new_labels
        for group in range(number):
            if (labels == group).any():
                centers[group] = points[labels == group].mean(axis=0)
    return labels.astype(np.int64)


def _settled(
    vectors: Embeddings, labels: Labels, likeness: Likeness, bounds: SpeakerBounds
) -> tuple[Labels, Voices]:
    """Merge, drop and smooth until nothing changes any more."""
    labels, voices = _voices(vectors, labels)
    is_short = len(vectors) < SHORT_WINDOWS
    small_merge = likeness.short_small_merge if is_short else likeness.small_merge
    while True:
        for _ in range(ROUNDS):
            smooth = _smoothed(vectors @ voices.T, likeness.switch_cost)
            if len(np.unique(smooth)) < min(len(voices), bounds.least):
                break  # that many were asked for
            labels, voices = _voices(vectors, smooth)
        if len(voices) <= bounds.least:
            return labels, voices
        counts = np.bincount(labels)
        least_counts = np.minimum(counts[:, None], counts)
        above = voices @ voices.T - likeness.merge_above + small_merge / least_counts
        np.fill_diagonal(above, -np.inf)
        first, second = divmod(int(above.argmax()), len(voices))
        brief = np.flatnonzero(_longest_runs(labels, len(voices)) < LEAST_RUN)
        too_many = bounds.most is not None and len(voices) > bounds.most
        if above[first, second] >= 0.0:
            labels, voices = _voices(vectors, np.where(labels == second, first, labels))
        elif len(brief):
            voices = np.delete(voices, brief[counts[brief].argmin()], axis=0)
        elif too_many:
            voices = np.delete(voices, _least_missed(vectors @ voices.T, labels), axis=0)
        else:
            return labels, voices


def _voices(vectors: Embeddings, labels: Labels) -> tuple[Labels, Voices]:
    numbered = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return numbered, unit(sums_of(vectors, numbered))


def sums_of(vectors: Embeddings, labels: Labels) -> Voices:
    """Add up the embeddings of each label."""
    sums = np.zeros((int(labels.max()) + 1, vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, vectors)
    return sums


def unit(vectors: Embeddings) -> Embeddings:
    """Return embeddings in lengths of 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Embeddings = vectors / np.maximum(lengths, np.float32(1e-9))
    return unit


def _longest_runs(labels: Labels, number: int) -> Int64[np.ndarray, " speaker"]:
    borders = np.flatnonzero(np.diff(labels)) + 1
    longest = np.zeros(number, dtype=np.int64)
    for run in np.split(labels, borders):
        longest[run[0]] = max(longest[run[0]], len(run))
    return longest


def _least_missed(scores: Float32[np.ndarray, "window speaker"], labels: Labels) -> int:
    """Return the speaker whose windows lose the least likeness if they are given to others."""
    own_scores = scores[np.arange(len(labels)), labels]
    other_scores = scores.copy()
    other_scores[np.arange(len(labels)), labels] = -np.inf
    lost = np.bincount(
        labels, weights=own_scores - other_scores.max(axis=1), minlength=scores.shape[1]
    )
    return int(lost.argmin())


def _smoothed(scores: Float32[np.ndarray, "window speaker"], switch_cost: float) -> Labels:
    """Return the best sequence of speakers, of which each change costs (Viterbi)."""
    reached = scores[0].copy()
    came_from = np.zeros(scores.shape, dtype=np.int64)
    stayed = np.arange(scores.shape[1])
    for at, row in enumerate(scores[1:], 1):
        best = int(reached.argmax())
        switched = reached[best] - switch_cost
        came_from[at] = np.where(reached >= switched, stayed, best)
        reached = np.maximum(reached, switched) + row
    labels = np.zeros(len(scores), dtype=np.int64)
    labels[-1] = reached.argmax()
    for at in range(len(scores) - 1, 0, -1):
        labels[at - 1] = came_from[at, labels[at]]
    return labels
