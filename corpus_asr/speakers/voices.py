"""Who is the same in several recordings: mean embeddings of speakers in, a voice for each out.

The two most alike are joined, as long as they are alike enough (average linkage). Whoever is the
nearest neighbor of their nearest neighbor would be joined in any order, so that many pairs are
joined at a time, and rows of the matrix of likenesses are looked at in blocks and not kept: a
hundred thousand speakers need their embeddings and some bytes each. Two speakers of one recording
are two, as they were found to be.

Source: Murtagh 1983, A survey of recent advances in hierarchical clustering algorithms, section
4.3 (reciprocal nearest neighbors; average linkage is reducible).
"""

import numpy as np

from corpus_asr.array_types import Float32, Int64
from corpus_asr.speakers.clustering import sums_of

# Likenesses in memory at a time: 64 MB, and as much again while they are made.
_BLOCK_VALUES = 16_000_000

Centroids = Float32[np.ndarray, "speaker width"]
Numbers = Int64[np.ndarray, " speaker"]
Pairs = Int64[np.ndarray, " pair"]
Rows = Int64[np.ndarray, " row"]
Excluded = Int64[np.ndarray, " excluded"]


def find_voices(
    centroids: Centroids, recordings: Numbers, *, same_above: float, known: Numbers | None = None
) -> Numbers:
    """Return a voice for each speaker, from 0 in the order of the speakers.

    The same speakers in another order have the same voices, but for exact ties.

    Args:
        centroids: mean embeddings of length 1.
        recordings: a number for each speaker's recording.
        same_above: least mean cosine over the pairs of two that are joined.
        known: voices of an earlier call, any number for each; -1 where there is none. Those are
            not compared with one another again, unless somebody joins them.
    """
    size = len(centroids)
    joined = np.arange(size)  # the first speaker that each one is joined with
    if known is not None:
        _, first, which = np.unique(known, return_index=True, return_inverse=True)
        joined = np.where(known < 0, joined, first[which])
    apart = _pairs_within(recordings)
    firsts, groups = np.unique(joined, return_inverse=True)  # groups that may still be joined
    counts = np.bincount(groups, minlength=len(firsts)).astype(np.float32)
    sums = sums_of(centroids, groups) if size else centroids
    nearest = np.zeros(len(firsts), dtype=np.int64)
    highest = np.full(len(firsts), -np.inf, dtype=np.float32)
    # Two known voices are not alike enough, so of each only likenesses to new ones are of interest.
    waiting = np.zeros(len(firsts), dtype=bool) if known is None else known[firsts] >= 0
    stale = ~waiting
    while len(firsts):
        within = _within(apart, joined, firsts)
        _look(sums, counts, within, stale, waiting, nearest, highest)
        waiting = np.zeros(len(firsts), dtype=bool)
        kept, gone = _mutual(nearest, highest, same_above)
        sums[kept] += sums[gone]
        counts[kept] += counts[gone]
        moved = np.arange(size)
        moved[firsts[gone]] = firsts[kept]
        joined = moved[joined]
        # Who is not like anybody is not like those who are joined later, either.
        is_open = highest >= same_above
        is_open[kept], is_open[gone] = True, False
        changed = np.zeros(len(firsts), dtype=bool)
        changed[kept] = changed[gone] = True
        stale = changed | changed[nearest] | ~is_open[nearest]
        place = np.cumsum(is_open) - 1
        sums, counts, firsts, waiting = (
            sums[is_open],
            counts[is_open],
            firsts[is_open],
            waiting[is_open],
        )
        nearest, highest, stale = place[nearest][is_open], highest[is_open], stale[is_open]
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def _pairs_within(recordings: Numbers) -> Int64[np.ndarray, "pair two"]:
    """Return every two speakers of one recording, both ways."""
    order = np.argsort(recordings, kind="stable")
    sizes = np.unique(recordings, return_counts=True)[1]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for members in np.split(order, np.cumsum(sizes)[:-1]) if len(order) else ():
        first, second = np.nonzero(~np.eye(len(members), dtype=bool))
        pairs.append(np.stack([members[first], members[second]], axis=1))
    return np.concatenate(pairs)


def _within(
    pairs: Int64[np.ndarray, "pair two"], joined: Numbers, firsts: Int64[np.ndarray, " group"]
) -> Int64[np.ndarray, "shared two"]:
    """Return the pairs of groups that share a recording, sorted by the first."""
    place = np.full(len(joined), -1)
    place[firsts] = np.arange(len(firsts))
    groups = place[joined[pairs]]
    groups = groups[(groups >= 0).all(axis=1)]
    group_pairs: Int64[np.ndarray, "shared two"] = groups[np.argsort(groups[:, 0], kind="stable")]
    return group_pairs


def _look(
    sums: Centroids,
    counts: Float32[np.ndarray, " speaker"],
    apart: Int64[np.ndarray, "pair two"],
    stale: np.ndarray,
    waiting: np.ndarray,
    nearest: Numbers,
    highest: Float32[np.ndarray, " speaker"],
) -> None:
    """Find the nearest neighbors of stale groups again; of equally near ones the first.

    Those of waiting groups are found among the stale ones.
    """
    rows = np.flatnonzero(stale)
    highest[rows] = -np.inf
    step = max(1, _BLOCK_VALUES // len(sums))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        likeness = sums[block] @ sums.T
        likeness /= counts
        likeness /= counts[block, None]
        likeness[_excluded(apart, block)] = -np.inf
        nearest[block] = likeness.argmax(axis=1)
        highest[block] = likeness[np.arange(len(block)), nearest[block]]
        if waiting.any():
            best = likeness.argmax(axis=0)
            values = likeness[best, np.arange(len(best))]
            nearer = waiting & (values > highest)
            nearest[nearer], highest[nearer] = block[best[nearer]], values[nearer]


def _excluded(apart: Int64[np.ndarray, "pair two"], block: Rows) -> tuple[Excluded, Excluded]:
    """Return places in the block, and groups that those are not to be joined with: themselves."""
    first, last = (np.searchsorted(apart[:, 0], block, side=side) for side in ("left", "right"))
    sizes = last - first
    places = np.repeat(np.arange(len(block)), sizes)
    groups = apart[np.arange(len(places)) + np.repeat(first - np.cumsum(sizes) + sizes, sizes), 1]
    return np.append(places, np.arange(len(block))), np.append(groups, block)


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
        low, high = sorted((best, int(nearest[best])))
        return np.array([low]), np.array([high])
    return places[first], nearest[first]
