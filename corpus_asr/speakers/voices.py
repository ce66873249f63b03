"""Who is the same in several recordings: mean embeddings of speakers in, a voice for each out.

The two most alike are joined, as long as they are alike enough (average linkage). Whoever is the
nearest neighbor of their nearest neighbor would be joined in any order, so that many pairs are
joined at a time, and rows of the matrix of likenesses are looked at in blocks and not kept: a
hundred thousand speakers need their embeddings and some bytes each. Two speakers of one recording
are two, as they were found to be.

Where all pairs would be too many, only candidates are compared, by the same rule: groups lie in the
cell of the center that they are most like, and each is compared with those in the cells of a few
centers that it is like. A pair that is found by either side counts for both.

Source: Murtagh 1983, A survey of recent advances in hierarchical clustering algorithms, section
4.3 (reciprocal nearest neighbors; average linkage is reducible). Cells as in Sivic and Zisserman
2003, Video Google: a text retrieval approach to object matching in videos (inverted files).
"""

from collections.abc import Iterator

import numpy as np

from corpus_asr.array_types import Float32, Int32, Int64
from corpus_asr.speakers.clustering import sums_of, unit

# Likenesses in memory at a time: 64 MB, and as much again while they are made.
_BLOCK_VALUES = 16_000_000
# Pairs that are all compared, at 10 ns each: those of 50,000 speakers, or 800 with 3 million.
_ALL_PAIRS = 2_500_000_000
_CELLS_PER_ROOT = 4.0  # of the number of groups, so that cells and what is in them are alike many
_PROBED_CELLS = 16
_CELLS_COST = 4  # a pair in a cell costs as many of all pairs, whose products are large
_ROWS_AT_ONCE = 200_000  # whose cells are in memory

Centroids = Float32[np.ndarray, "speaker width"]
Numbers = Int64[np.ndarray, " speaker"]
Pairs = Int64[np.ndarray, " pair"]
Rows = Int64[np.ndarray, " row"]
Excluded = Int64[np.ndarray, " excluded"]
Block = tuple[Rows, Numbers | slice]
"""Groups, and those that they are compared with."""


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
    cells = _Cells(sums, firsts)
    # Two known voices are not alike enough, so of each only likenesses to new ones are of interest.
    waiting = np.zeros(len(firsts), dtype=bool) if known is None else known[firsts] >= 0
    stale = ~waiting
    while len(firsts):
        within = _within(apart, joined, firsts)
        _look(sums, counts, within, stale, waiting, nearest, highest, cells.of(sums, firsts, stale))
        waiting = np.zeros(len(firsts), dtype=bool)
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
        sums, counts, firsts, waiting = sums[left], counts[left], firsts[left], waiting[left]
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
    waiting: np.ndarray,
    nearest: Numbers,
    highest: Float32[np.ndarray, " speaker"],
    blocks: Iterator[Block] | None,
) -> None:
    """Find the nearest neighbors of stale groups again; of equally near ones the first.

    Those of waiting groups are found among the stale ones. Without `blocks` to compare, all pairs
    of stale groups are.
    """
    rows, every = np.flatnonzero(stale), np.arange(len(sums))
    highest[rows] = -np.inf
    in_cells = blocks is not None
    place = np.full(len(sums), -1) if in_cells else every  # columns of groups in a block
    for block, columns in blocks or _rows_and_all(rows, len(sums)):
        numbers = every[columns]
        likeness = sums[block] @ sums[columns].T
        likeness /= counts[columns]
        likeness /= counts[block, None]
        if in_cells:
            place[numbers] = np.arange(len(numbers))
        one, other = _excluded(apart, block)
        other = place[other]
        likeness[one[other >= 0], other[other >= 0]] = -np.inf
        if in_cells:
            place[numbers] = -1
        best = likeness.argmax(axis=1)
        values = likeness[np.arange(len(block)), best]
        nearer = values > highest[block]
        nearest[block[nearer]], highest[block[nearer]] = numbers[best[nearer]], values[nearer]
        if in_cells or waiting.any():
            best = likeness.argmax(axis=0)
            values = likeness[best, np.arange(len(best))]
            nearer = (waiting[columns] | in_cells) & (values > highest[columns])
            found = numbers[nearer]
            nearest[found], highest[found] = block[best[nearer]], values[nearer]


def _rows_and_all(rows: Rows, size: int) -> Iterator[Block]:
    step = max(1, _BLOCK_VALUES // size)
    return ((rows[at : at + step], slice(None)) for at in range(0, len(rows), step))


def _excluded(apart: Int64[np.ndarray, "pair two"], block: Rows) -> tuple[Excluded, Excluded]:
    """Return places in the block, and groups that those are not to be joined with: themselves."""
    first, last = (np.searchsorted(apart[:, 0], block, side=side) for side in ("left", "right"))
    sizes = last - first
    one = np.repeat(np.arange(len(block)), sizes)
    other = apart[np.arange(len(one)) + np.repeat(first - np.cumsum(sizes) + sizes, sizes), 1]
    return np.append(one, np.arange(len(block))), np.append(other, block)


class _Cells:
    """Cells of groups, each around one of them."""

    def __init__(self, sums: Centroids, firsts: Numbers) -> None:
        size = len(sums)
        self._centers: Centroids = sums[:0]
        if size**2 > _ALL_PAIRS:
            # Without chance in what comes out: the same speakers have the same centers.
            order = np.random.default_rng(0).permutation(size)
            self._centers = unit(sums[np.sort(order[: int(_CELLS_PER_ROOT * size**0.5)])])
        self._cells = np.full(int(firsts.max(initial=-1)) + 1, -1, dtype=np.int32)  # by speaker

    def of(self, sums: Centroids, firsts: Numbers, stale: np.ndarray) -> Iterator[Block] | None:
        """Yield stale groups, and groups that each may be like; None where all are few enough."""
        self._cells[firsts[stale]] = -1
        size, rows = len(sums), np.flatnonzero(stale)
        if len(rows) * size <= _ALL_PAIRS:
            return None
        unknown = np.flatnonzero(self._cells[firsts] < 0)
        # A night's few new speakers are compared with all sooner than all find their cells.
        cells = len(self._centers)
        in_cells = len(unknown) * cells + len(rows) * _PROBED_CELLS * size // max(1, cells)
        if not cells or len(rows) * size < _CELLS_COST * in_cells:
            return None
        return self._blocks(sums, firsts, rows, unknown)

    def _blocks(
        self, sums: Centroids, firsts: Numbers, rows: Rows, unknown: Excluded
    ) -> Iterator[Block]:
        probed = self._probed(sums, firsts, unknown)
        probed = probed[np.searchsorted(unknown, rows)]
        cells = self._cells[firsts]
        members = np.argsort(cells, kind="stable")
        every = np.arange(len(self._centers) + 1)
        borders = np.searchsorted(cells[members], every)
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            some, theirs = rows[at : at + _ROWS_AT_ONCE], probed[at : at + _ROWS_AT_ONCE].ravel()
            order = np.argsort(theirs, kind="stable")
            edges = np.searchsorted(theirs[order], every)
            for cell in np.flatnonzero(np.diff(edges) * np.diff(borders)).tolist():
                block = some[order[edges[cell] : edges[cell + 1]] // probed.shape[1]]
                own = members[borders[cell] : borders[cell + 1]]
                step = max(1, _BLOCK_VALUES // len(own))
                for first in range(0, len(block), step):
                    yield block[first : first + step], own

    def _probed(
        self, sums: Centroids, firsts: Numbers, rows: Rows
    ) -> Int32[np.ndarray, "row probed"]:
        """Return the cells that groups are compared with, and note the one that each lies in."""
        number = min(_PROBED_CELLS, len(self._centers))
        found = np.empty((len(rows), number), dtype=np.int32)
        step = max(1, _BLOCK_VALUES // len(self._centers))
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            # Lengths do not matter: centers are compared for one group at a time.
            likeness = sums[some] @ self._centers.T
            self._cells[firsts[some]] = likeness.argmax(axis=1)
            found[at : at + step] = np.argpartition(likeness, -number, axis=1)[:, -number:]
        return found


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
