"""Plans of windows: which utterances each window of each epoch holds.

Neighboring utterances of a recording stay together with the audio between them, as *runs* of at
most 30 s; runs of other recordings fill the rest of a window (Radford et al. 2022, section 2.3,
trains on whole windows). Random numbers depend on seed, epoch and window alone, so that training
resumes at any step with any number of processes.
"""

import bisect
from dataclasses import dataclass

import numpy as np

from corpus_asr.array_types import Float64, Int64
from corpus_asr.config.finetune import WindowSettings
from corpus_asr.training.audio_cache import AudioCache
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES

_TIMESTAMPS = 2  # of each utterance
_MIN_TRUNCATED_S = 0.3  # less of an utterance that is cut off could not be recognized as speech


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How windows are filled."""

    settings: WindowSettings
    max_tokens: int
    """Largest number of tokens in a window, timestamps included."""
    speeds: tuple[float, float] = (1.0, 1.0)
    """Range of speed factors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A run of utterances in a window."""

    first: int
    """The first of its utterances."""
    end: int
    at: int
    """Where it starts, in samples of the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one window is made of."""

    seed: tuple[int, int, int]
    """Of everything drawn for it: the run's, the epoch, its number in the epoch."""
    speed: float
    runs: tuple[Placed, ...]
    """In the order of time; none: a window without speech."""
    truncated: Placed | None = None
    """An utterance after them that the end of the window cuts off."""


class EpochPlan:
    """The windows of one epoch, in training order."""

    def __init__(self, cache: AudioCache, packing: Packing, *, seed: int, epoch: int) -> None:
        self._packing = packing
        self._seed = (seed, epoch)
        draw = np.random.default_rng((seed, epoch))
        slowest = packing.speeds[0]
        longest = int(WINDOW_SAMPLES * min(1.0, slowest))
        self._first, self._end = runs_of(cache, longest=longest, max_tokens=packing.max_tokens)
        self._cache = cache
        ends = np.maximum.reduceat(cache.end, self._first)
        self._length = ends - cache.start[self._first]
        sums = np.concatenate([[0], np.cumsum(cache.tokens + _TIMESTAMPS)])
        self._tokens = sums[self._end] - sums[self._first]
        # Utterances of unknown languages share a number, -1.
        languages = cache.table["language"].combine_chunks().dictionary_encode().indices
        codes: np.ndarray = languages.fill_null(-1).to_numpy(zero_copy_only=False)
        self._languages = codes[self._first]
        order = draw.permutation(len(self._first))
        self._windows = (
            self._filled(order, draw) if packing.settings.pack else [[run] for run in order]
        )
        silent = round(packing.settings.no_speech_fraction * len(self._windows))
        self._windows += [[]] * silent
        self._order = draw.permutation(len(self._windows))

    def __len__(self) -> int:
        return len(self._windows)

    def window(self, number: int) -> Window:
        """Return a window by its number in the epoch."""
        # Of the window alone: any process draws the same for it, in any order.
        seed = (*self._seed, number)
        chosen = int(self._order[number])
        runs = self._windows[chosen]
        draw = np.random.default_rng((*seed, 0))
        speed = float(draw.uniform(*self._packing.speeds)) if runs else 1.0
        speed = max(speed, float(self._length[runs].sum()) / WINDOW_SAMPLES)  # so that all fits
        lengths = [int(self._length[run] / speed) for run in runs]
        room, pauses = WINDOW_SAMPLES - sum(lengths), self._drawn_pauses(draw, len(runs))
        if pauses.sum() > room:  # they give way to speech
            pauses *= max(0, room) / pauses.sum()
        placed, at = [], 0
        for run, length, pause in zip(runs, lengths, pauses, strict=True):
            at += int(pause)
            first, end = int(self._first[run]), int(self._end[run])
            placed.append(Placed(first=first, end=end, at=at))
            at += length
        shared = bool(runs) and self._packing.settings.pack
        truncated = self._truncated(draw, at, runs[-1], speed) if shared else None
        return Window(seed=seed, speed=speed, runs=tuple(placed), truncated=truncated)

    def _truncated(
        self, draw: np.random.Generator, at: int, last: int, speed: float
    ) -> Placed | None:
        if draw.random() >= self._packing.settings.truncation_probability:
            return None
        at += int(self._drawn_pauses(draw, 1)[0])
        alike = np.flatnonzero(self._languages == self._languages[last])
        utterance = int(self._first[draw.choice(alike)])
        length = int(self._cache.end[utterance] - self._cache.start[utterance]) / speed
        audible = at + _MIN_TRUNCATED_S * SAMPLE_RATE_HZ <= WINDOW_SAMPLES < at + length
        if not audible or not self._cache.text(utterance).strip():
            return None
        return Placed(first=utterance, end=utterance + 1, at=at)

    def _drawn_pauses(self, draw: np.random.Generator, count: int) -> Float64[np.ndarray, " run"]:
        # In samples. Squared, so that most are short and some are long.
        return self._packing.settings.max_pause_s * SAMPLE_RATE_HZ * draw.random(count) ** 2

    def _filled(self, order: np.ndarray, draw: np.random.Generator) -> list[list[int]]:
        # One window per language is open at a time, since its prompt names one language.
        windows: list[list[int]] = []
        opened: dict[int, tuple[list[int], int, int]] = {}
        # What is drawn to be played slower is longer, and has to fit as well.
        whole = int(WINDOW_SAMPLES * min(1.0, self._packing.speeds[0]))
        for run in order.tolist():
            language = int(self._languages[run])
            length, tokens = int(self._length[run]), int(self._tokens[run])
            window, samples, left = opened.get(language, ([], 0, 0))
            if not window or length > samples or tokens > left:
                window, samples, left = [], whole, self._packing.max_tokens
                windows.append(window)
            window.append(run)
            opened[language] = (window, samples - length, left - tokens)
        return windows


class Epochs:
    """The windows of all epochs, numbered through; one epoch may pack closer than another."""

    def __init__(self, cache: AudioCache, packing: Packing, *, seed: int) -> None:
        self._cache = cache
        self._packing = packing
        self._seed = seed
        self._plans: dict[int, EpochPlan] = {}
        self._ends: list[int] = []
        """Number of the first window after each epoch."""

    def window(self, number: int) -> Window:
        """Return a window by its number, which is the same after any others."""
        while not self._ends or number >= self._ends[-1]:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._plan(len(self._ends))))
        epoch = bisect.bisect_right(self._ends, number)
        return self._plan(epoch).window(number - (self._ends[epoch - 1] if epoch else 0))

    def _plan(self, epoch: int) -> EpochPlan:
        if epoch not in self._plans:
            # Processes that read ahead are in two epochs at a time, never in three.
            self._plans = {n: plan for n, plan in self._plans.items() if n == epoch - 1}
            self._plans[epoch] = EpochPlan(self._cache, self._packing, seed=self._seed, epoch=epoch)
        return self._plans[epoch]


def runs_of(
    cache: AudioCache, *, longest: int, max_tokens: int
) -> tuple[Int64[np.ndarray, " run"], Int64[np.ndarray, " run"]]:
    """Cut the utterances of each region into runs; returns the first of each, and the end."""
    firsts: list[int] = []
    begin = until = count = 0
    region = -1
    for at in range(len(cache)):
        tokens = int(cache.tokens[at]) + _TIMESTAMPS
        until = max(until, int(cache.end[at]))
        too_long = until - begin > longest
        if cache.region[at] != region or too_long or count + tokens > max_tokens:
            firsts.append(at)
            begin, until, count = int(cache.start[at]), int(cache.end[at]), 0
            region = int(cache.region[at])
        count += tokens
    starts = np.asarray(firsts, np.int64)
    return starts, np.append(starts[1:], len(cache))
