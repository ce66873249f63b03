"""Speaker clustering of one recording: embeddings of windows in, speaker labels out.

Windows that are mutual nearest neighbors form a graph; the gaps between its smallest eigenvalues
estimate the number of speakers. Clusters with similar voices are then merged, and speakers without
a longer turn are dropped. Several graphs and numbers are tried, and the best explanation of the
windows, with a penalty per speaker, is selected. Windows of long recordings are first condensed per
block, with fewer trials.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from corpus_asr.array_types import Float32, Float64, Int64

# Maximum nodes of the graph of ten hours or of a block, as eigenvalues are O(n^3).
MAX_NODES = 600
# In smaller blocks, clusters would mix speakers.
LEAST_NODES_PER_BLOCK = 8
# Fractions of the nodes that count as neighbors: one graph each.
NEIGHBOR_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
# Numbers of speakers tried with each graph, above that of the largest gap.
MORE_SPEAKERS = 2
# Penalty for two speakers that are similar enough to be merged, in numbers of speakers.
ALIKE_COUNT = 1.5
# Total windows of all trials: all are tried for 55 minutes of speech, one for more than 8 hours.
TRIED_WINDOWS = 80_000
# Default maximum number of speakers.
MAX_SPEAKERS = 12
# Consecutive windows (2.35 s) that each speaker must have at least once: a sound, a mixture or a
# mood is not another speaker.
LEAST_RUN = 2
# Shorter windows, as of single words, are assigned last: they do not say who takes part.
LEAST_WINDOW_S = 0.8
ROUNDS = 2
# Thresholds for cosines of embeddings, fitted with the packaged CAM++ on conversations of 41
# speakers; reported results are on others (docs/background/speaker_accuracy.md). Medians of windows
# are 0.57 for one voice and 0.09 for two.
# Speakers are merged if the cosine of their mean embeddings is higher.
MERGE_ABOVE = 0.8
# Its reduction, divided by the windows of the one with fewer: means of few windows vary.
SMALL_MERGE = 1.5
# Minimum gain in similarity in one window for a speaker change.
SWITCH_COST = 0.1
# Cost of a speaker, times the logarithm of the number of windows: the minimum total gain in
# similarity from one more speaker.
SPEAKER_COST = 0.3
# Speakers of two recordings are identical if the cosine of their mean embeddings is higher.
SAME_VOICE_ABOVE = 0.7
# Factor of cosines to give log probabilities; arbitrary, as confidences are not calibrated.
SHARPNESS = 20.0
# Lloyd's iterations: far above any number needed.
_ITERATIONS = 50

Embeddings = Float32[np.ndarray, "window width"]
Voices = Float32[np.ndarray, "speaker width"]
Labels = Int64[np.ndarray, " window"]


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
    """Cluster a recording's windows, given in order of time.

    Windows shorter than `LEAST_WINDOW_S` by `lasts_s` find no speakers: they get one of those of
    the others, which may change labels too.

    Source: the graph and the choice of neighbors as in Park et al. 2020, Auto-tuning spectral
    clustering for speaker diarization using normalized maximum eigengap.
    """
    bounds = bounds or SpeakerBounds()
    vectors = np.asarray(embeddings, dtype=np.float32)
    if len(vectors) == 0:
        nobody = np.zeros((0, vectors.shape[1]), dtype=np.float32)
        return Clustering(labels=np.zeros(0, np.int64), confidences=np.zeros(0), voices=nobody)
    is_long = np.ones(len(vectors), dtype=bool) if lasts_s is None else lasts_s >= LEAST_WINDOW_S
    if max(1, bounds.least) <= is_long.sum() < len(vectors):
        speakers = find_speakers(vectors[is_long], bounds)
        scores = vectors @ speakers.voices.T
        labels = _smoothed(scores, SWITCH_COST)
        if len(np.unique(labels)) < min(bounds.least, len(speakers.voices)):
            labels = scores.argmax(axis=1)  # the required number is kept
            labels[is_long] = speakers.labels
        return _clustering(vectors, labels, speakers.voices)
    nodes = _condensed(vectors)
    tries = max(1, TRIED_WINDOWS // len(vectors))
    groupings = islice(_by_spectrum(unit(sums_of(vectors, nodes)), bounds), tries)
    settled = [_settled(vectors, labels[nodes], bounds) for labels in groupings]
    labels, voices = max(settled, key=lambda pair: _gain(vectors, *pair))
    while len(voices) > bounds.least:  # long recordings have few trials
        smallest = int(np.bincount(labels).argmin())
        fewer = _voices(
            vectors, _smoothed(vectors @ np.delete(voices, smallest, axis=0).T, SWITCH_COST)
        )
        if len(fewer[1]) < bounds.least or _gain(vectors, *fewer) < _gain(vectors, labels, voices):
            break
        labels, voices = fewer
    return _clustering(vectors, labels, voices)


def _clustering(vectors: Embeddings, labels: Labels, voices: Voices) -> Clustering:
    """Number the speakers in order of appearance, without those of no window."""
    present, first = np.unique(labels, return_index=True)
    labels, voices = _by_appearance(labels), voices[present[np.argsort(first)]]
    scores = SHARPNESS * (vectors @ voices.T)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = shares[np.arange(len(labels)), labels] / shares.sum(axis=1)
    return Clustering(labels=labels, confidences=probabilities.astype(np.float64), voices=voices)


def agglomerate(
    sums: Embeddings, counts: Float32[np.ndarray, " window"], *, most: int
) -> Int64[np.ndarray, " window"]:
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


def _condensed(vectors: Embeddings) -> Labels:
    """Return a node per window: its own, or in long recordings a cluster of its block."""
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
    """Yield distinct clusterings, starting with that of the largest gap."""
    size = len(vectors)
    # May exceed the bound: the most similar clusters are merged later, which mixes speakers less.
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
        # Few neighbors and a large gap: the graph is as clearly separated as possible.
        cost = neighbors / size / (float(gaps.max()) / max(float(values[-1]), 1e-9) + 1e-9)
        groupings.append((cost, least + int(gaps.argmax()), axes[:, :most]))
    groupings.sort(key=lambda grouping: grouping[0])
    seen: set[bytes] = set()
    for place, (_, clearest, axes) in enumerate(groupings):
        for number in range(clearest, min(clearest + MORE_SPEAKERS, most) + 1):
            tried = [_grouped(axes[:, :number], number)]
            if place == 0:  # also finds speakers of a few windows
                tried.append(agglomerate(vectors, np.ones(size, dtype=np.float32), most=number))
            for labels in map(_by_appearance, tried):
                if labels.tobytes() not in seen:
                    seen.add(labels.tobytes())
                    yield labels


def _gain(vectors: Embeddings, labels: Labels, voices: Voices) -> float:
    """Return the total similarity of windows to their speakers minus the penalty (as BIC)."""
    lengths = np.linalg.norm(sums_of(vectors, labels), axis=1)
    # A voice varies in a long recording: more windows do not justify more speakers.
    size = min(len(vectors), MAX_NODES)
    explained = size * float(lengths.sum()) / len(vectors)
    # With a required number, one voice may be split into two speakers.
    alike = float(np.triu(voices @ voices.T, 1).max()) > MERGE_ABOVE
    number = len(voices) + ALIKE_COUNT * alike
    return explained - SPEAKER_COST * number * float(np.log(size))


def _by_appearance(labels: Labels) -> Labels:
    """Number the labels in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    numbered: Labels = np.argsort(np.argsort(first))[inverse]
    return numbered


def _split_evenly(size: int, number: int) -> Labels:
    # Too few to distinguish: two required speakers alternate.
    return np.arange(size) * number // max(1, size)


def _laplacian(neighbors: Int64[np.ndarray, "node neighbor"]) -> Float64[np.ndarray, "node node"]:
    size = len(neighbors)
    linked = np.zeros((size, size))
    linked[np.arange(size)[:, None], neighbors] = 1.0
    linked = (linked + linked.T) / 2
    return np.diag(linked.sum(axis=1)) - linked


def _grouped(points: Float64[np.ndarray, "node axis"], number: int) -> Labels:
    """Return k-means' clusters, deterministically initialized with distant points."""
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


def _settled(vectors: Embeddings, labels: Labels, bounds: SpeakerBounds) -> tuple[Labels, Voices]:
    """Merge, drop and smooth until nothing changes."""
    labels, voices = _voices(vectors, labels)
    while True:
        for _ in range(ROUNDS):
            smooth = _smoothed(vectors @ voices.T, SWITCH_COST)
            if len(np.unique(smooth)) < min(len(voices), bounds.least):
                break  # the required number is reached
            labels, voices = _voices(vectors, smooth)
        if len(voices) <= bounds.least:
            return labels, voices
        counts = np.bincount(labels)
        least_counts = np.minimum(counts[:, None], counts)
        above = voices @ voices.T - MERGE_ABOVE + SMALL_MERGE / least_counts
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
    """Normalize embeddings to length 1."""
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
    """Return the speaker whose reassignment reduces the total similarity least."""
    own_scores = scores[np.arange(len(labels)), labels]
    other_scores = scores.copy()
    other_scores[np.arange(len(labels)), labels] = -np.inf
    lost = np.bincount(
        labels, weights=own_scores - other_scores.max(axis=1), minlength=scores.shape[1]
    )
    return int(lost.argmin())


def _smoothed(scores: Float32[np.ndarray, "window speaker"], switch_cost: float) -> Labels:
    """Return the best sequence of speakers with a cost per change (Viterbi)."""
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
