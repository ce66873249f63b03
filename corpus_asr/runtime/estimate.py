"""How much audio a run has, how long it and its rest take, and what it costs, with ranges.

Headers of a few recordings are read by a child process, which what is broken in one may crash or
hold up; what follows from them, sums over recordings (`activity.FileSums`) and moments of a run,
knows neither files nor clocks. Of speeds none is assumed. A range holds the truth about eight times
in ten (tests/runtime/test_estimate.py).
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

from corpus_asr.activity import Estimate, FileSums, Strata, added
from corpus_asr.config.decoding import expected_languages
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CorpusAsrError, DecodeError
from corpus_asr.logs import event
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.run_state.plan import Plan, SampledFile, sums_of
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE, WINDOW_S, counted

# Of a normal distribution, eight tenths lie within so many standard deviations.
_DEVIATIONS = 1.2816
# The spreads below are of logarithms: 0.5 means that a factor of 1.65 either way is usual. They are
# what is assumed before there is anything to measure, and count as much as so many
# recordings or blocks.
_PRIOR_COUNT = 2.0
# Of the seconds per byte among recordings of one type and about one size.
_FILE_SPREAD = 0.5
# From one size to the next, which has four times the bytes, seconds per byte fall by so much: what
# is larger is longer, or of more bytes a second. They may fall by so much more or less.
_SIZE_TREND = 0.25
_SIZE_SPREAD = 0.3
# Between recordings of about one size that come first and those that come later.
_ORDER_SPREAD = 0.12
# Between two types.
_TYPE_SPREAD = 1.3
# Of the speed between one eighth of a run and the next.
_SPEED_SPREAD = 0.3
# Speed drifts: what was measured is never better known than this.
_LEAST_SPREAD = 0.04
# Seconds of audio in whose time a recording is opened, and its last window filled up. Which of them
# explains the speeds so far best is found out as a run goes on.
_FILE_COSTS_S = (0.0, 2.0, 5.0, 10.0, 20.0)
_BLOCKS = 8
_MOST_MARKS = 64
# Of the first moments nothing follows: so long, and until such a share of what is in progress is
# done, which is about one window; of a small corpus, until such a share of it is done.
_MIN_WORKING_S = 2.0
_FIRST_SHARE = 0.125
_SMALL_SHARE = 0.15
# In the end the longest part is decoded alone, faster than in company: on a CPU, where a step takes
# as long as it has slots, by a factor of 3 to 4 (measured); on a GPU hardly.
_ALONE_SPEED = 2.7
_ALONE_SPREAD = 0.6
# Nobody knows how far what is in progress is: eight times in ten between these shares.
_PROGRESS_SHARES = (0.1, 0.9)


def estimate_audio(
    planned: Strata, known: Strata, sampled: Strata | None = None
) -> Estimate | None:
    """Estimate the seconds of all planned recordings; None without a ground for it.

    Args:
        planned: counts and sizes of all recordings.
        known: of those whose seconds are known; the first ones, which may be the largest.
        sampled: of some that were drawn without regard to order, whether or not they are known.
    """
    sampled = sampled or {}
    known_s = sum(found.audio_s for found in known.values())
    seen = added(known, sampled)
    if not any(found.audio_s for found in seen.values()):
        return None
    spread = _file_spread(seen)
    rest_s, together_s, apart = 0.0, 0.0, 0.0
    for name, plan in planned.items():
        ours, drawn = known.get(name, FileSums()), sampled.get(name, FileSums())
        size, files = plan.size - ours.size, plan.files - ours.files
        if size <= 0 or files <= 0:
            continue
        # What is neither known nor drawn; nothing, where a sample is all there is.
        unseen = 1 - min(1.0, drawn.files / plan.files)
        ratio, ratio_spread = _rest(name, plan, ours, drawn, seen, spread, unseen=unseen)
        rest_s += ratio * size
        # The mean of a stratum may be off for all of it, and others with it; its recordings differ.
        together_s += ratio * size * ratio_spread
        apart += unseen * (ratio * size * spread) ** 2 / files
    if not rest_s:
        return Estimate(known_s, known_s, known_s)
    rest = _estimate(rest_s, math.sqrt(together_s**2 + apart) / rest_s)
    return Estimate(known_s + rest.value, known_s + rest.low, known_s + rest.high)


def _rest(
    name: str,
    plan: FileSums,
    ours: FileSums,
    drawn: FileSums,
    seen: Strata,
    spread: float,
    *,
    unseen: float,
) -> tuple[float, float]:
    """Return the seconds per byte of what is left of a stratum, and how far they may be off."""
    size = plan.size - ours.size
    # What all of them have by the sample, less what is known of some.
    by_sample = max(0.0, drawn.audio_s / max(1.0, drawn.size) * plan.size - ours.audio_s) / size
    if not unseen:
        return by_sample, 0.0
    guesses = [_neighbor(name, seen, spread)]
    if ours.files:
        first_s = math.hypot(spread / math.sqrt(ours.files), _ORDER_SPREAD)
        guesses.append((ours.audio_s / ours.size, first_s))
    if drawn.files:
        apart = spread * math.sqrt(unseen / drawn.files) * plan.size / size
        guesses.append((by_sample, apart))
    return _combined(guesses)


def _file_spread(seen: Strata) -> float:
    """Return how much seconds per byte differ within strata, relative to their means."""
    squares, degrees = _PRIOR_COUNT * _FILE_SPREAD**2, _PRIOR_COUNT
    for found in seen.values():
        if found.audio_s > 0:
            # The mean of (ratio / mean ratio - 1)^2, weighted by size.
            relative = found.squares * found.size / found.audio_s**2 - 1
            squares += found.files * max(0.0, relative)
            degrees += found.files - 1
    return math.sqrt(squares / degrees)


def _combined(guesses: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of values by how surely each is known, and how surely that is."""
    precision = sum(spread**-2 for _, spread in guesses)
    return sum(value * spread**-2 for value, spread in guesses) / precision, precision**-0.5


def _neighbor(name: str, seen: Strata, spread: float) -> tuple[float, float]:
    """Return the seconds per byte that what is most like a stratum speaks for, and how surely."""
    kind, _, size = name.partition(":")
    near: list[tuple[float, float]] = []
    for other, found in seen.items():
        other_kind, _, other_size = other.partition(":")
        if other != name and found.audio_s > 0 and "?" not in size + other_size:
            steps = int(size) - int(other_size)
            apart = math.hypot(_SIZE_SPREAD * steps, spread / math.sqrt(found.files))
            if other_kind != kind:
                apart = math.hypot(apart, _TYPE_SPREAD)
            near.append((apart, found.audio_s / found.size * math.exp(-_SIZE_TREND * steps)))
    if near:
        apart, ratio = min(near)
        return ratio, apart
    # Of other measures, or itself: all there is.
    alike = {other: found for other, found in seen.items() if ("?" in other) == ("?" in size)}
    everything = sum((alike or seen).values(), FileSums())
    return everything.audio_s / everything.size, _TYPE_SPREAD


def _estimate(value: float, spread: float) -> Estimate:
    factor = math.exp(_DEVIATIONS * spread)
    return Estimate(value, value / factor, value * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What was done by a moment of a run."""

    working_s: float
    """Time for which the engines were loaded, on the average."""
    audio_s: float
    """Audio that is through the engines."""
    files: int
    """Recordings that are done; failed ones took no time."""


class RunEstimator:
    """How long the rest of a run takes, by the speed since its engines were loaded."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []
        self._every_s = 0.0

    def note(self, now: Mark) -> None:
        """Take in a moment; they come in order."""
        last_s = self._marks[-1].working_s if self._marks else 0.0
        if now.working_s <= last_s or now.working_s - last_s < self._every_s:
            return
        self._marks.append(now)
        if len(self._marks) > _MOST_MARKS:
            # Every second one is forgotten, and as many are taken in from here on.
            self._marks = self._marks[1::2]
            self._every_s = now.working_s / len(self._marks)

    def rest_s(
        self,
        audio: Estimate | None,
        now: Mark,
        *,
        files: float,
        slots: int = 0,
        slots_in_use: float = 0.0,
        longest_left_s: float = 0.0,
    ) -> Estimate | None:
        """Estimate the time that is left; None as long as there is no ground for it.

        Args:
            audio: seconds of the whole run.
            now: this moment.
            files: recordings that are left and have audio.
            slots: windows that are in progress, of which nothing is counted as done.
            slots_in_use: of these, how many were in use on the average.
            longest_left_s: audio left of the part that has most; its windows follow each other.
        """
        if audio is None or now.working_s < _MIN_WORKING_S or now.audio_s <= 0:
            return None
        left_s = max(0.0, audio.value - now.audio_s)
        in_progress_s = min(slots * min(WINDOW_S, left_s / max(1.0, files)), left_s)
        if now.audio_s < min(_FIRST_SHARE * in_progress_s, _SMALL_SHARE * audio.value):
            return None
        low_s, high_s = (now.audio_s + share * in_progress_s for share in _PROGRESS_SHARES)
        likely = replace(now, audio_s=math.sqrt(low_s * high_s))
        left_s = max(0.0, audio.value - likely.audio_s)
        blocks = self._blocks(now)
        guesses = [
            _guess(cost_s, blocks, likely, left_s=left_s, files=files) for cost_s in _FILE_COSTS_S
        ]
        weights = sum(weight for _, _, weight in guesses)
        log_s = sum(weight * each_s for each_s, _, weight in guesses) / weights
        variance = sum(
            weight * ((each_s - log_s) ** 2 + spread**2) for each_s, spread, weight in guesses
        )
        # If more is done, speed is higher and less is left.
        both = 1 + likely.audio_s / max(left_s, likely.audio_s / 4)
        in_progress = both * math.log(high_s / low_s) / (2 * _DEVIATIONS)
        spread = math.hypot(
            math.sqrt(variance / weights),
            _spread_of_rest(audio, left_s),
            min(in_progress, 1.0),
            _LEAST_SPREAD,
        )
        rest = _estimate(math.exp(log_s), spread)
        if not slots_in_use:
            return rest
        each = likely.audio_s / now.working_s / slots_in_use * _ALONE_SPEED
        last = _estimate(min(longest_left_s, audio.value - now.audio_s) / each, _ALONE_SPREAD)
        return Estimate(*(max(pair) for pair in zip(astuple(rest), astuple(last), strict=True)))

    def _blocks(self, now: Mark) -> list[Mark]:
        """Cut the time so far into about equal blocks: what was done in each."""
        start = Mark(working_s=0.0, audio_s=0.0, files=0)
        cuts, length_s = [start], now.working_s / _BLOCKS
        for mark in [*self._marks, now]:
            ends = mark is now
            enough = mark.working_s - cuts[-1].working_s >= length_s
            leaves_enough = now.working_s - mark.working_s >= 0.5 * length_s
            if ends or (enough and leaves_enough):
                cuts.append(mark)
        return [
            Mark(
                working_s=after.working_s - before.working_s,
                audio_s=after.audio_s - before.audio_s,
                files=after.files - before.files,
            )
            for before, after in pairwise(cuts)
            if after.working_s > before.working_s
        ]


def _guess(
    cost_s: float, blocks: Sequence[Mark], now: Mark, *, left_s: float, files: float
) -> tuple[float, float, float]:
    """Return the time that is left if a recording costs so much: logarithm, spread and weight."""
    speed = (now.audio_s + cost_s * now.files) / now.working_s
    rest_s = max((left_s + cost_s * files) / speed, 1e-3)
    squares = sum(
        ((block.audio_s + cost_s * block.files) / block.working_s / speed - 1) ** 2
        for block in blocks
    )
    number = len(blocks)
    spread = math.sqrt((_PRIOR_COUNT * _SPEED_SPREAD**2 + squares) / (_PRIOR_COUNT + number - 1))
    # What is left will differ as much from the mean as blocks before it did; and blocks of one
    # recording are alike.
    before = min(number, max(1, now.files))
    left = min(max(0.5, rest_s / now.working_s * number), max(1.0, files))
    return math.log(rest_s), spread * math.sqrt(1 / before + 1 / left), spread**-number


def _spread_of_rest(audio: Estimate, left_s: float) -> float:
    """Return how far the seconds that are left may be off, relatively."""
    done_s = audio.value - left_s
    low_s = max(audio.low - done_s, 0.05 * left_s)
    high_s = max(audio.high - done_s, low_s)
    return math.log(high_s / low_s) / (2 * _DEVIATIONS) if low_s > 0 else 0.0


_LOG = logging.getLogger(__name__)

READER = "corpus_asr.stages.headers:HeaderReader"
# A store that keeps everything waiting has given an answer, too: there is no estimate.
SILENCE_S = 20.0
TIME_S = 60.0
# Recordings that may crash what reads headers before the rest of the sample is left alone.
_CRASHES = 3
# A run over less than this is over about as soon as it has opened everything.
WORTH_BYTES = 32 * MEBIBYTE
WORTH_FILES = 128  # of unknown size


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the headers of a sample say."""

    asked: int
    """Recordings of the sample."""
    read: int
    """Headers that say how long their recording is."""
    sums: dict[str, FileSums]
    """Of these and of unusable recordings, which have no seconds, by stratum."""
    without_duration: int
    """Headers that do not say how long the recording is."""
    failures: dict[str, int]
    """Numbers of recordings by what is wrong with them, or with their store."""
    tracks: dict[str, str]
    """Names of the audio tracks where there are several, by address, and which is taken."""

    def track_words(self) -> Iterator[str]:
        """Yield a line on recordings with several audio tracks, where there are any."""
        if self.tracks:
            uri, named = min(self.tracks.items())
            yield (
                f"tracks     {len(self.tracks):,} of {counted(self.read, 'header')} with several "
                f"audio tracks, such as {redact_uri(uri)}: {named}"
            )


def survey(
    sample: Sequence[SampledFile],
    config: RunConfig,
    *,
    reader: str = READER,
    stopped: Callable[[], bool] = lambda: False,
) -> Survey:
    """Read the headers of a sample; what fails is counted, and nothing is raised for it."""
    headers: dict[int, Header] = {}
    ends_s = time.monotonic() + TIME_S
    child = IsolatedGenerator(
        reader,
        init_kwargs={
            "settings": config.extract,
            "store": StoreOptions.of(config.source),
            "languages": expected_languages(config.decoding),
        },
        timeout_s=SILENCE_S,
    )
    uris = [file.uri for file in sample]
    with closing(child), closing(read_headers(child, uris)) as answers:
        try:
            for index, header in answers:
                headers[index] = header
                if stopped() or time.monotonic() > ends_s:
                    break
        except CorpusAsrError as error:  # no child could be started
            event(_LOG, logging.WARNING, "headers_not_read", error=str(error))
    return _found(sample, headers)


def read_headers(
    child: IsolatedGenerator, uris: Sequence[str]
) -> Generator[tuple[int, Header], None, None]:
    """Yield headers, read by a child with `READER`, and the places of their recordings.

    All are asked for at once, but one at a time after a crash.
    """
    left, crashes = list(range(len(uris))), 0
    while left and crashes <= _CRASHES:
        # The next crash then names its recording.
        asked = left[:1] if crashes else list(left)
        try:
            for header in child.run([uris[index] for index in asked]):
                left.remove(asked[header.index])
                yield asked[header.index], header
        except DecodeError as death:
            if death.kind == "decoder_timeout":  # the store's silence, more likely
                return
            crashes += 1
            if len(asked) == 1:
                left.remove(asked[0])
                yield asked[0], Header(index=0, failure=death.kind)


def _found(sample: Sequence[SampledFile], headers: dict[int, Header]) -> Survey:
    known = [
        (sample[index], header.audio_s or 0.0)
        for index, header in headers.items()
        if header.is_known and (header.failure is not None or header.audio_s is not None)
    ]
    failures = Counter(each.failure for each in headers.values() if each.failure is not None)
    return Survey(
        asked=len(sample),
        read=sum(each.audio_s is not None for each in headers.values()),
        sums=sums_of(known),
        without_duration=sum(
            each.failure is None and each.audio_s is None for each in headers.values()
        ),
        failures=dict(failures.most_common()),
        tracks={
            sample[index].uri: header.tracks
            for index, header in headers.items()
            if header.tracks is not None
        },
    )


def surveying(
    plan: Plan, config: RunConfig, found: Callable[[dict[str, FileSums]], None]
) -> AbstractContextManager[None]:
    """Read headers of a plan's recordings beside a run that is long enough for it."""
    long_enough = plan.num_remaining_bytes >= WORTH_BYTES or plan.num_remaining >= WORTH_FILES

    def read(ended: threading.Event) -> None:
        found(survey(plan.remaining.draw(), config, stopped=ended.is_set).sums)

    return beside(read) if long_enough else nullcontext()


@contextmanager
def beside(read: Callable[[threading.Event], None]) -> Iterator[None]:
    """Read headers in a thread while the context is open, at whose end the event is set."""
    ended = threading.Event()

    def run() -> None:
        try:
            read(ended)
        except Exception as error:  # only an estimate is less sure
            event(_LOG, logging.WARNING, "headers_not_read", error=repr(error))

    # A daemon: what is over does not wait for a store.
    threading.Thread(target=run, name="headers", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
