"""The picture of a recording's sound: peaks, decoded on demand, and the pauses between words.

Peaks are decoded for the span that is looked at, at most `LONGEST_S`, in tiles that are kept. Of
longer spans there are only pauses, which the tables tell: ten hours are never decoded for an
overview.
"""

import math
import threading
from collections import OrderedDict

import numpy as np

from corpus_asr.view.sound import FULL_PEAK, PEAKS_PER_S, Sound, Sounds

LONGEST_S = 600.0
MAX_PEAKS = 2_000
TILE_S = 30
# At 1.5 kB each: a day of audio.
KEPT_TILES = 3_000
# Shorter ones are within words and sentences.
MIN_PAUSE_S = 0.3

_TileKey = tuple[str, str | None, int | None, int]


class Waveforms:
    """Decodes peaks and keeps them, up to 5 MB. Thread-safe."""

    def __init__(self, sounds: Sounds) -> None:
        self._sounds = sounds
        self._tiles: OrderedDict[_TileKey, np.ndarray | None] = OrderedDict()
        self._lock = threading.Lock()

    def peaks(
        self, sound: Sound, start_s: float, end_s: float, count: int, *, channel: int | None = None
    ) -> list[int] | None:
        """Return the loudest sample in each of `count` equal parts of a span, from 0 to 255.

        None for a span beyond `LONGEST_S`, or one that is not reached without decoding hours.

        Raises:
            ItemError: the recording cannot be read or decoded.
        """
        if end_s - start_s > LONGEST_S:
            return None
        first, last = math.floor(start_s / TILE_S), math.ceil(end_s / TILE_S)
        tiles = []
        for number in range(first, last):
            tile = self._tile(sound, channel, number)
            if tile is None:
                return None
            tiles.append(tile)
        values = np.concatenate(tiles)
        edges_s = np.linspace(start_s, end_s, count + 1)[:-1] - first * TILE_S
        edges = np.floor(edges_s * PEAKS_PER_S).astype(np.int64)
        last_edge = max(edges[-1] + 1, math.ceil((end_s - first * TILE_S) * PEAKS_PER_S))
        # Of parts shorter than a peak, several have the same one.
        found: list[int] = np.maximum.reduceat(values[:last_edge], edges).tolist()
        return found

    def _tile(self, sound: Sound, channel: int | None, number: int) -> np.ndarray | None:
        key = (sound.uri, sound.etag, channel, number)
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        # One at a time, so that what is played is decoded in between.
        data = self._sounds.peaks(sound, number * TILE_S, TILE_S * PEAKS_PER_S, channel=channel)
        tile = None if data is None else np.frombuffer(data, dtype=np.uint8)
        with self._lock:
            self._tiles[key] = tile
            while len(self._tiles) > KEPT_TILES:
                self._tiles.popitem(last=False)
        return tile


class Pauses:
    """The spans of a recording in which no word is.

    `starts_s` and `ends_s` are those of words, or of segments, ascending by start.
    """

    def __init__(self, starts_s: np.ndarray, ends_s: np.ndarray, *, duration_s: float) -> None:
        silent_from = np.concatenate([[0.0], np.maximum.accumulate(ends_s)])
        silent_to = np.concatenate([starts_s, [duration_s]])
        are_pauses = silent_to - silent_from >= MIN_PAUSE_S
        self._starts, self._ends = silent_from[are_pauses], silent_to[are_pauses]

    def speech(self, start_s: float, end_s: float, count: int) -> list[int]:
        """Return how much of each of `count` equal parts of a span is no pause, from 0 to 255."""
        bounds = np.stack([self._starts, self._ends], axis=1).ravel()
        lengths = self._ends - self._starts
        silent = np.stack([np.cumsum(lengths) - lengths, np.cumsum(lengths)], axis=1).ravel()
        edges = np.linspace(start_s, end_s, count + 1)
        # Silence up to a moment is a line between the bounds of pauses.
        passed = np.interp(edges, bounds, silent) if len(bounds) else np.zeros(count + 1)
        share = 1.0 - np.diff(passed) / ((end_s - start_s) / count)
        found: list[int] = np.rint(FULL_PEAK * np.clip(share, 0.0, 1.0)).astype(int).tolist()
        return found

    def within(self, start_s: float, end_s: float, *, at_least_s: float) -> list[list[float]]:
        """Return start and end of the pauses in a span that are so long, cut to it."""
        starts, ends = np.maximum(self._starts, start_s), np.minimum(self._ends, end_s)
        long = ends - starts >= max(at_least_s, 1e-9)
        pairs = np.stack([starts[long], ends[long]], axis=1)
        found: list[list[float]] = np.round(pairs, 3).tolist()
        return found
