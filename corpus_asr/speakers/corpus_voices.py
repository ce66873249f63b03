"""The same voice in several recordings: mean embeddings of their speakers in, a voice for each out.

The two most alike are joined, as long as they are alike enough (average linkage). Whoever is the
nearest neighbor of their nearest neighbor would be joined in any order, so that many pairs are
joined at a time, and rows of the matrix of likenesses are looked at in blocks and not kept:
a hundred thousand speakers need their embeddings and some bytes each. Two speakers of one recording
are two, as they were found to be.

Source: Murtagh 1983, A survey of recent advances in hierarchical clustering algorithms, section
4.3 (reciprocal nearest neighbors; average linkage is reducible).
"""

import numpy as np

from corpus_asr.array_types import Float32, Int64

# Likenesses in memory at a time: 64 MB, and as much again while they are made.
_BLOCK_VALUES = 16_000_000

Centroids = Float32[np.ndarray, "speaker width"]
Numbers = Int64[np.ndarray, " speaker"]
Pairs = Int64[np.ndarray, " pair"]


def find_voices(centroids: Centroids, recordings: Numbers, *, same_above: float) -> Numbers:
    """Return a voice for each speaker, from 0 in the order of the speakers.

    The same speakers in another order have the same voices, but for exact ties.

    Args:
        centroids: mean embeddings of length 1.
        recordings: a number for each speaker's recording.
        same_above: least mean cosine over the pairs of two that are joined.
    """
    size = len(centroids)
    joined = np.arange(size)  # the first speaker that each one is joined with
    apart = _pairs_within(recordings)
    sums, counts = centroids.astype(np.float32), np.ones(size, dtype=np.float32)
    firsts = np.arange(size)  # of the groups that may still be joined
    nearest, highest = np.zeros(size, dtype=np.int64), np.full(size, -np.inf, dtype=np.float32)
    stale = np.ones(size, dtype=bool)
    while len(firsts):
        _look(sums, counts, _within(apart, joined, firsts), stale, nearest, highest)
        kept, gone = _mutual(nearest, highest, same_above)
        sums[kept] += sums[gone]
        counts[kept] += counts[gone]
        moved = np.arange(size)
        moved[firsts[gone]] = firsts[kept]
        joined = moved[joined]
        # Who is not like anybody is not like those who are joined later, either.
        left = highest >= same_above
        left[kept], left[gone] = True, False
        changed = np.zeros(len(firsts), dtype=bool)
        changed[kept] = changed[gone] = True
        stale = changed | changed[nearest] | ~left[nearest]
        place = np.cumsum(left) - 1
        sums, counts, firsts = sums[left], counts[left], firsts[left]
        nearest, highest, stale = place[nearest][left], highest[left], stale[left]
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def _pairs_within(recordings: Numbers) -> Int64[np.ndarray, "pair two"]:
    """Return every two speakers of one recording, both ways."""
    order = np.argsort(recordings, kind="stable")
    sizes = np.unique(recordings, return_counts=True)[1]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for own in np.split(order, np.cumsum(sizes)[:-1]) if len(order) else ():
        one, other = np.nonzero(~np.eye(len(own), dtype=bool))
        pairs.append(np.stack([own[one], own[other]], axis=1))
    return np.concatenate(pairs)


def _within(
    pairs: Int64[np.ndarray, "pair two"], joined: Numbers, firsts: Int64[np.ndarray, " group"]
) -> Int64[np.ndarray, "shared two"]:
    """Return the pairs of groups that share a recording, sorted by the first."""
    place = np.full(len(joined), -1)
    place[firsts] = np.arange(len(firsts))
    groups = place[joined[pairs]]
    groups = groups[(groups >= 0).all(axis=1)]
    found: Int64[np.ndarray, "shared two"] = groups[np.argsort(groups[:, 0], kind="stable")]
    return found


def _look(
    sums: Centroids,
    counts: Float32[np.ndarray, " speaker"],
    apart: Int64[np.ndarray, "pair two"],
    stale: np.ndarray,
    nearest: Numbers,
    highest: Float32[np.ndarray, " speaker"],
) -> None:
    """Find the nearest neighbors of stale groups again; of equally near ones the first."""
    rows = np.flatnonzero(stale)
    step = max(1, _BLOCK_VALUES // len(sums))
    for block in (rows[at : at + step] for at in range(0, len(rows), step)):
        likeness = sums[block] @ sums.T
        likeness /= counts
        likeness /= counts[block, None]
        likeness[np.arange(len(block)), block] = -np.inf
        bounds = np.searchsorted(apart[:, 0], [block[0], block[-1] + 1])
        theirs = apart[bounds[0] : bounds[1]]
        theirs = theirs[stale[theirs[:, 0]]]
        likeness[np.searchsorted(block, theirs[:, 0]), theirs[:, 1]] = -np.inf
        nearest[block] = likeness.argmax(axis=1)
        highest[block] = likeness[np.arange(len(block)), nearest[block]]


def _mutual(
    nearest: Numbers, highest: Float32[np.ndarray, " speaker"], same_above: float
) -> tuple[Pairs, Pairs]:
    """Return the pairs to join; none where nobody is alike enough."""
    places = np.arange(len(nearest))
    alike = highest >= same_above
    first = alike & (nearest[nearest] == places) & (places < nearest)
    if not first.any() and alike.any():
        # Rounding can make three run in a circle: the most alike are joined then.
        best = int(highest.argmax())
        one, other = sorted((best, int(nearest[best])))
        return np.array([one]), np.array([other])
    return places[first], nearest[first]
