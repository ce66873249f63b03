"""Estimates a run's audio duration and remaining time, with ranges.

Headers of a few recordings are read by a child process, which a broken file may crash or block; the
estimates are pure functions of these, of sums over recordings (`activity.FileSums`) and of moments
of a run. No speed is assumed. A range contains the true value with a probability of about 0.8
(tests/runtime/test_estimate.py).
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass

import numpy as np

from corpus_asr.activity import Estimate, FileSums, Strata, added
from corpus_asr.array_types import Float64
from corpus_asr.config.decoding import expected_languages
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CorpusAsrError
from corpus_asr.logs import event
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.run_state.plan import Plan, SampledFile, sums_of
from corpus_asr.storage.run_state.run_files import ProgressSample
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE, WINDOW_S, counted

# 80 % of a normal distribution is within this number of standard deviations.
_DEVIATIONS = 1.2816
# Relative spread of seconds per byte among recordings of one type and similar size; and the added
# spread for other sizes, and again for other types.
_FILE_SPREAD, _FALLBACK_SPREAD = 0.6, 0.5
# Without a header sample, minimum fraction opened before an estimate: plans put the largest files
# first, which are not representative.
_LEAST_OPENED = 0.25
# Fixed cost per recording (opening, filling its last window), in seconds of audio. The value with
# the smallest spread of speeds so far is used.
_FILE_COSTS_S = (0.0, 2.0, 5.0, 10.0, 20.0)
_BLOCKS = 8
# Relative spread of speed between one eighth of a run and the next, before measurements.
_SPEED_SPREAD = 0.5
# Minimum relative spread, since speed drifts.
_LEAST_SPREAD = 0.1
# No estimate in the first seconds, and until this fraction of the work in progress is done, about
# one window.
_MIN_WORKING_S = 2.0
_FIRST_SHARE = 0.125
# Progress of windows in flight is unknown: one half, plus or minus this.
_PROGRESS_SPREAD = 0.3


def estimate_audio(
    planned: Strata, opened: Strata, sampled: Strata | None = None
) -> Estimate | None:
    """Estimate the audio seconds of all planned recordings; None without sufficient data.

    Args:
        planned: counts and sizes of all recordings.
        opened: recordings of known duration; the first ones, which may be the largest.
        sampled: recordings drawn at random, opened or not; None: no sample.
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
        if drawn.files >= plan.files:  # the full set
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
    """Return keys of similar recordings for a stratum, the most similar first."""
    return name, name.partition(":")[0], ""


def _ratios(*strata: Strata) -> dict[str, FileSums]:
    """Sum recordings with audio by type and size, by type, and in all."""
    by_key = ({key: sums} for of in strata for name, sums in of.items() for key in _keys(name))
    return {key: sums for key, sums in added(*by_key).items() if sums.audio_s > 0}


def _size(strata: Strata) -> float:
    return sum(sums.size for sums in strata.values())


def _estimate(value: float, spread: float) -> Estimate:
    factor = math.exp(_DEVIATIONS * min(spread, 2.0))
    return Estimate(value, value / factor, value * factor)


def rest_s(
    moments: Sequence[ProgressSample],
    audio: Estimate | None,
    *,
    workers: int,
    files: int,
    slots: int = 0,
) -> Estimate | None:
    """Estimate the remaining seconds from the speed since the engines were loaded.

    Args:
        moments: of the run so far, in order, about evenly spaced; the last is the present.
        audio: of the whole run, in seconds.
        workers: number of engines.
        files: number of remaining recordings.
        slots: number of windows in progress, not counted as done.

    Returns:
        None without sufficient data.
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
    done = moment.files - moment.failed  # failed recordings take no time
    marks = _marks(moments) / np.array([workers, 1, 1])
    spreads = {cost_s: _spread(marks, cost_s) for cost_s in _FILE_COSTS_S}
    cost_s = min(spreads, key=spreads.__getitem__)
    value_s = (left_s + cost_s * files) * working_s / (done_s + cost_s * done)
    # The rest will differ from the mean as much as earlier blocks; blocks of one recording are
    # alike.
    blocks = len(marks) - 1
    blocks_left = max(0.5, min(value_s / working_s * blocks, files))
    blocks_done = min(blocks, max(1, done))
    spread = math.hypot(
        spreads[cost_s] * math.sqrt(1 / blocks_done + 1 / blocks_left),
        (audio.high - audio.low) / (2 * _DEVIATIONS * max(left_s, 1e-9)),
        _PROGRESS_SPREAD * in_progress_s / done_s,
        _LEAST_SPREAD,
    )
    return _estimate(value_s, spread)


def _marks(moments: Sequence[ProgressSample]) -> Float64[np.ndarray, "mark 3"]:
    """Return engine seconds, audio seconds and recordings at the ends of about equal blocks."""
    step = -(-len(moments) // _BLOCKS)
    ends = [(m.transcribe_alive_s, m.audio_done_s, m.files - m.failed) for m in moments[::-step]]
    # A restarted coordinator counts from zero.
    marks = np.maximum.accumulate(np.array([*ends, (0.0, 0.0, 0.0)])[::-1])
    return marks[np.diff(marks[:, 0], append=np.inf) > 0]


def _spread(marks: Float64[np.ndarray, "mark 3"], cost_s: float) -> float:
    """Return the relative spread of block speeds for a cost per recording in seconds."""
    times_s, work_s = marks[:, 0], marks[:, 1] + cost_s * marks[:, 2]
    speeds = np.diff(work_s) / np.diff(times_s) / (work_s[-1] / times_s[-1])
    squares = float(np.square(speeds - 1).sum())
    return math.sqrt((_SPEED_SPREAD**2 + squares) / len(marks))


_LOG = logging.getLogger(__name__)

READER = "corpus_asr.stages.headers:HeaderReader"
# Timeout for headers: if the store stalls, there is no estimate.
SILENCE_S = 20.0
TIME_S = 60.0
# A smaller run ends about as soon as all its files are opened.
WORTH_BYTES = 32 * MEBIBYTE
WORTH_FILES = 128  # if sizes are unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Results of reading the headers of a sample."""

    asked: int
    """Number of sampled recordings."""
    read: int
    """Number of headers with a duration."""
    sums: dict[str, FileSums]
    """Sums of these, and of unusable recordings (zero seconds), by stratum."""
    without_duration: int
    """Number of headers without a duration."""
    failures: dict[str, int]
    """Number of recordings by failure of the recording or its store."""
    tracks: dict[str, str]
    """Names of audio tracks where there are several, by URI, and the selected one."""

    def track_words(self) -> Iterator[str]:
        """Yield a line on recordings with several audio tracks, if any."""
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
    """Read the headers of a sample; failures are counted, never raised."""
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
    with closing(child), closing(child.run([file.uri for file in sample])) as answers:
        try:
            for header in answers:
                headers[header.index] = header
                if stopped() or time.monotonic() > ends_s:
                    break
        except CorpusAsrError as error:  # no child, one that ended, or a stalled store
            event(_LOG, logging.WARNING, "headers_not_read", error=str(error))
    return _found(sample, headers)


def _found(sample: Sequence[SampledFile], headers: dict[int, Header]) -> Survey:
    lengths = [
        (sample[index].uri, sample[index].size_bytes, header.audio_s or 0.0)
        for index, header in headers.items()
        if header.is_known and (header.failure is not None or header.audio_s is not None)
    ]
    failures = Counter(header.failure for header in headers.values() if header.failure is not None)
    return Survey(
        asked=len(sample),
        read=sum(header.audio_s is not None for header in headers.values()),
        sums=sums_of(lengths),
        without_duration=sum(
            header.failure is None and header.audio_s is None for header in headers.values()
        ),
        failures=dict(failures.most_common()),
        tracks={
            sample[index].uri: header.tracks
            for index, header in headers.items()
            if header.tracks is not None
        },
    )


@contextmanager
def surveying(
    plan: Plan, config: RunConfig, found: Callable[[dict[str, FileSums]], None]
) -> Iterator[None]:
    """Read headers of a plan's recordings in parallel with a run that is long enough."""
    ended = threading.Event()

    def read() -> None:
        try:
            found(survey(plan.remaining.draw(), config, stopped=ended.is_set).sums)
        except Exception as error:  # only the estimate is less accurate
            event(_LOG, logging.WARNING, "headers_not_read", error=repr(error))

    if plan.num_remaining_bytes >= WORTH_BYTES or plan.num_remaining >= WORTH_FILES:
        # A daemon: the end of a run does not wait for a store.
        threading.Thread(target=read, name="headers", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
