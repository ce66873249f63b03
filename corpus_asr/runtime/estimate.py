"""How much audio a run has and how long its rest takes, with ranges.

Headers of a few recordings are read by a child process, which what is broken in one may crash or
hold up; what follows from them, from sums over recordings (`activity.FileSums`) and from moments of
a run, knows neither files nor clocks. Of speeds none is assumed. A range holds the truth about
eight times in ten (tests/runtime/test_estimate.py).
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import astuple, dataclass

import numpy as np

from corpus_asr.activity import Estimate, FileSums, Strata, added
from corpus_asr.array_types import Float64
from corpus_asr.config.decoding import expected_languages
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CorpusAsrError, DecodeError
from corpus_asr.logs import event
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.run_state.plan import Plan, SampledFile, sums_of
from corpus_asr.storage.run_state.run_files import Moment
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE, WINDOW_S, counted

# Of a normal distribution, eight tenths lie within so many standard deviations.
_DEVIATIONS = 1.2816
# Of the seconds per byte among recordings of one type and about one size; and how much more they
# may be off where they are those of other sizes, and again where of other types.
_FILE_SPREAD, _FALLBACK_SPREAD = 0.6, 0.5
# Without headers of a sample nothing is said of recordings before so much is opened: plans put the
# largest first, which are like no others.
_LEAST_OPENED = 0.25
# Seconds of audio in whose time a recording is opened, and its last window filled up. The one by
# which speeds so far differ least is taken.
_FILE_COSTS_S = (0.0, 2.0, 5.0, 10.0, 20.0)
_BLOCKS = 8
# Of the speed between one eighth of a run and the next, before there is anything to measure.
_SPEED_SPREAD = 0.5
# Speed drifts: what was measured is never better known than this.
_LEAST_SPREAD = 0.1
# Of the first moments nothing follows: so long, and until such a share of what is in progress is
# done, which is about one window.
_MIN_WORKING_S = 2.0
_FIRST_SHARE = 0.125
# How far the windows in progress are is not known: about half, give or take so much.
_PROGRESS_SPREAD = 0.3
# In the end the longest part is decoded alone, faster than in company: on a CPU, where a step takes
# as long as it has slots, by a factor of 3 to 4 (measured); on a GPU hardly.
_ALONE_SPEED = 2.7
_ALONE_SPREAD = 0.6


def estimate_audio(
    planned: Strata, opened: Strata, sampled: Strata | None = None
) -> Estimate | None:
    """Estimate the seconds of all planned recordings; None without a ground for it.

    Args:
        planned: counts and sizes of all recordings.
        opened: of those whose seconds are known; the first ones, which may be the largest.
        sampled: of some that were drawn without regard to order, opened or not; None: of none.
    """
    ratios = _ratios(opened, sampled or {})
    if not ratios or not (sampled or _size(opened) >= _LEAST_OPENED * _size(planned)):
        return None
    opened_s = sum(sums.audio_s for sums in opened.values())
    left_s, deviation_s = 0.0, 0.0
    for name, plan in planned.items():
        unopened = plan - opened.get(name, FileSums())
        drawn = (sampled or {}).get(name, FileSums())
        if unopened.files <= 0 or unopened.size <= 0:
            continue
        if drawn.files >= plan.files:  # all there are
            left_s += max(0.0, drawn.audio_s + unopened.audio_s)
            continue
        keys = [key for key in _keys(name) if key in ratios]
        alike, steps = ratios[keys[0]], 3 - len(keys)
        audio_s = unopened.size * alike.audio_s / alike.size
        left_s += audio_s
        deviation_s += audio_s * (_FILE_SPREAD / math.sqrt(alike.files) + _FALLBACK_SPREAD * steps)
    if not left_s:
        return Estimate(opened_s, opened_s, opened_s)
    rest = _estimate(left_s, deviation_s / left_s)
    return Estimate(*(opened_s + seconds for seconds in astuple(rest)))


def _keys(name: str) -> tuple[str, str, str]:
    """Return what the recordings of a stratum are like, the most alike first."""
    return name, name.partition(":")[0], ""


def _ratios(*strata: Strata) -> dict[str, FileSums]:
    """Add up recordings by type and size, by type, and all; without what has no audio."""
    by_key = ({key: sums} for of in strata for name, sums in of.items() for key in _keys(name))
    return {key: sums for key, sums in added(*by_key).items() if sums.audio_s > 0}


def _size(strata: Strata) -> float:
    return sum(sums.size for sums in strata.values())


def _estimate(value: float, spread: float) -> Estimate:
    factor = math.exp(_DEVIATIONS * min(spread, 2.0))
    return Estimate(value, value / factor, value * factor)


def rest_s(
    moments: Sequence[Moment],
    audio: Estimate | None,
    *,
    workers: int,
    files: int,
    slots: int = 0,
    slots_in_use: float = 0.0,
    longest_left_s: float = 0.0,
) -> Estimate | None:
    """Estimate the time that is left, by the speed since the engines were loaded.

    Args:
        moments: of the run so far in their order, about evenly spaced; the last is this one.
        audio: seconds of the whole run.
        workers: engines.
        files: recordings that are left.
        slots: windows that are in progress, of which nothing is counted as done.
        slots_in_use: of these, how many were in use on the average.
        longest_left_s: audio left of the part that has most; its windows follow each other.

    Returns:
        None as long as there is no ground for it.
    """
    moment = moments[-1]
    working_s = moment.transcribe_alive_s / workers
    if audio is None or working_s < _MIN_WORKING_S or moment.audio_done_s <= 0:
        return None
    left_s = max(0.0, audio.value - moment.audio_done_s)
    in_progress_s = min(slots * min(WINDOW_S, left_s / max(1, files)), left_s)
    if moment.audio_done_s < _FIRST_SHARE * in_progress_s:
        return None
    done_s, left_s = moment.audio_done_s + in_progress_s / 2, left_s - in_progress_s / 2
    done = moment.files - moment.failed  # failed ones take no time
    marks = _marks(moments) / np.array([workers, 1, 1])
    spreads = {cost_s: _spread(marks, cost_s) for cost_s in _FILE_COSTS_S}
    cost_s = min(spreads, key=spreads.__getitem__)
    value_s = (left_s + cost_s * files) * working_s / (done_s + cost_s * done)
    # What is left will differ as much from the mean as blocks before it did; and blocks of one
    # recording are alike.
    blocks = len(marks) - 1
    blocks_left = max(0.5, min(value_s / working_s * blocks, files))
    blocks_done = min(blocks, max(1, done))
    spread = math.hypot(
        spreads[cost_s] * math.sqrt(1 / blocks_done + 1 / blocks_left),
        (audio.high - audio.low) / (2 * _DEVIATIONS * max(left_s, 1e-9)),
        _PROGRESS_SPREAD * in_progress_s / done_s,
        _LEAST_SPREAD,
    )
    rest = _estimate(value_s, spread)
    if not slots_in_use:
        return rest
    alone = done_s / working_s / slots_in_use * _ALONE_SPEED
    last = _estimate(min(longest_left_s, audio.value - moment.audio_done_s) / alone, _ALONE_SPREAD)
    return Estimate(*(max(pair) for pair in zip(astuple(rest), astuple(last), strict=True)))


def _marks(moments: Sequence[Moment]) -> Float64[np.ndarray, "mark 3"]:
    """Return seconds of engines, of audio and recordings at the ends of about equal blocks."""
    step = -(-len(moments) // _BLOCKS)
    ends = [(m.transcribe_alive_s, m.audio_done_s, m.files - m.failed) for m in moments[::-step]]
    # A coordinator that died begins its counts again.
    marks = np.maximum.accumulate(np.array([*ends, (0.0, 0.0, 0.0)])[::-1])
    return marks[np.diff(marks[:, 0], append=np.inf) > 0]


def _spread(marks: Float64[np.ndarray, "mark 3"], cost_s: float) -> float:
    """Return how much the speeds of blocks differ, relatively, if a recording costs so much."""
    times_s, work_s = marks[:, 0], marks[:, 1] + cost_s * marks[:, 2]
    speeds = np.diff(work_s) / np.diff(times_s) / (work_s[-1] / times_s[-1])
    squares = float(np.square(speeds - 1).sum())
    return math.sqrt((_SPEED_SPREAD**2 + squares) / len(marks))


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
        (sample[index].uri, sample[index].size_bytes, header.audio_s or 0.0)
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
