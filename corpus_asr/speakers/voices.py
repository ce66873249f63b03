"""Speaker identification across recordings: mean embeddings of speakers in, voice labels out.

Agglomerative clustering with average linkage above a minimum similarity. Mutual nearest neighbors
would be merged in any order, so many pairs are merged at a time. Rows of the similarity matrix are
computed in blocks and not stored: a hundred thousand speakers need their embeddings and some bytes
each. Speakers of one recording are never merged.

Source: Murtagh 1983, A survey of recent advances in hierarchical clustering algorithms, section
4.3 (reciprocal nearest neighbors; average linkage is reducible).
"""

import numpy as np

from corpus_asr.array_types import Float32, Int64
from corpus_asr.speakers.clustering import sums_of

# Similarities in memory at a time: 64 MB, and the same again while they are computed.
_BLOCK_VALUES = 16_000_000

Centroids = Float32[np.ndarray, "speaker width"]
Numbers = Int64[np.ndarray, " speaker"]
Pairs = Int64[np.ndarray, " pair"]
Rows = Int64[np.ndarray, " row"]
Excluded = Int64[np.ndarray, " excluded"]


def find_voices(
    centroids: Centroids, recordings: Numbers, *, same_above: float, known: Numbers | None = None
) -> Numbers:
    """Return a voice index for each speaker, from 0 in the order of the speakers.

    Independent of the order of speakers, except for exact ties.

    Args:
        centroids: mean embeddings of length 1.
        recordings: recording index of each speaker.
        same_above: minimum mean cosine over the pairs of merged speakers.
        known: voice of each speaker from an earlier call, as any number; -1 for new speakers.
            Known voices are not compared with each other, unless new speakers join them.
    """
    size = len(centroids)
    joined = np.arange(size)  # the first speaker that each one is merged with
    if known is not None:
        _, first, which = np.unique(known, return_index=True, return_inverse=True)
        joined = np.where(known < 0, joined, first[which])
    apart = _pairs_within(recordings)
    firsts, groups = np.unique(joined, return_inverse=True)  # groups that may still be merged
    counts = np.bincount(groups, minlength=len(firsts)).astype(np.float32)
    sums = sums_of(centroids, groups) if size else centroids
    nearest = np.zeros(len(firsts), dtype=np.int64)
    highest = np.full(len(firsts), -np.inf, dtype=np.float32)
    # Known voices are not similar enough, so only similarities with new speakers matter.
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
        # A speaker without similar ones is not similar to later merged ones either.
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
    """Return all pairs of speakers in one recording, in both orders."""
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
    """Recompute the nearest neighbors of stale groups; the first one on ties.

    Neighbors of waiting groups are searched among the stale ones.
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
    """Return rows of the block, and the groups they must not merge with, including themselves."""
    first, last = (np.searchsorted(apart[:, 0], block, side=side) for side in ("left", "right"))
    sizes = last - first
    places = np.repeat(np.arange(len(block)), sizes)
    groups = apart[np.arange(len(places)) + np.repeat(first - np.cumsum(sizes) + sizes, sizes), 1]
    return np.append(places, np.arange(len(block))), np.append(groups, block)


def _mutual(
    nearest: Numbers, highest: Float32[np.ndarray, " speaker"], same_above: float
) -> tuple[Pairs, Pairs]:
    """Return the pairs to merge; empty if none is similar enough."""
    places = np.arange(len(nearest))
    alike = highest >= same_above
    first = alike & (nearest[nearest] == places) & (places < nearest)
    if not first.any() and alike.any():
        # Rounding can produce cycles of three: the most similar pair is merged then.
        best = int(highest.argmax())
        low, high = sorted((best, int(nearest[best])))
        return np.array([low]), np.array([high])
    return places[first], nearest[first]
