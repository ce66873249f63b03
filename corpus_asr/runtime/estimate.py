"""Estimates a run's audio duration and remaining time, with ranges.

Headers of a few recordings are read by a child process, which a broken file may crash or block; the
estimates are pure functions of these, of sums over recordings (`activity.FileSums`) and of a run's
progress. No speed is assumed. A range contains the true value with a probability of about 0.8
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

from corpus_asr.activity import Estimate, FileSums, SampledFile, Strata, added, sums_of
from corpus_asr.config.decoding import expected_languages
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.logs import event
from corpus_asr.stages.inspection import (
    HEADER_BLOCK_BYTES,
    INSPECTOR,
    READ_DURATION,
    InspectionRequest,
)
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.run_state.plan import Plan
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
# Cost of a recording (opening, filling its last window), in seconds of audio.
_FILE_COST_S = 3.0
# Relative spread of the speed of the rest, which has other recordings than what is done.
_SPEED_SPREAD = 0.22
# No estimate in the first seconds, nor before a window or this fraction of the audio is done.
_MIN_WORKING_S = 2.0
_FIRST_FRACTION = 0.1


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
    audio: Estimate | None, *, done_s: float, working_s: float, done: int, files: int
) -> Estimate | None:
    """Estimate the remaining seconds from the speed since the engines were loaded.

    Args:
        audio: of the whole run, in seconds.
        done_s: of these, transcribed.
        working_s: seconds since the engines were loaded.
        done: number of recordings without failed ones, which take no time.
        files: number of remaining recordings.

    Returns:
        None without sufficient data.
    """
    if audio is None or working_s < _MIN_WORKING_S:
        return None
    if done_s <= 0 or done_s < min(WINDOW_S, _FIRST_FRACTION * audio.value):
        return None
    left_s = max(0.0, audio.value - done_s)
    speed = (done_s + _FILE_COST_S * done) / working_s
    audio_spread = (audio.high - audio.low) / (2 * _DEVIATIONS * max(left_s, 1e-9))
    value_s = (left_s + _FILE_COST_S * files) / speed
    return _estimate(value_s, math.hypot(audio_spread, _SPEED_SPREAD))


_LOG = logging.getLogger(__name__)

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
    inspector: str = INSPECTOR,
    stopped: Callable[[], bool] = lambda: False,
) -> Survey:
    """Read the headers of a sample; failures are counted, never raised."""
    headers: dict[int, Header | FetchError] = {}
    ends_s = time.monotonic() + TIME_S
    child = IsolatedGenerator(inspector, init_kwargs={}, timeout_s=SILENCE_S)
    request = InspectionRequest(
        READ_DURATION,
        StoreOptions.of(config.source),
        HEADER_BLOCK_BYTES,
        {index: (file.uri, None) for index, file in enumerate(sample)},
        {"settings": config.extract, "languages": expected_languages(config.decoding)},
    )
    with closing(child), closing(child.run(request)) as answers:
        try:
            for index, answer in answers:
                if answer is not None:
                    headers[index] = answer
                if stopped() or time.monotonic() > ends_s:
                    break
        except CorpusAsrError as error:  # no child, one that ended, or a stalled store
            event(_LOG, logging.WARNING, "headers_not_read", error=str(error))
    return _found(sample, headers)


def _found(sample: Sequence[SampledFile], answers: dict[int, Header | FetchError]) -> Survey:
    headers = {
        index: answer for index, answer in answers.items() if not isinstance(answer, FetchError)
    }
    failures = Counter(
        answer.kind if isinstance(answer, FetchError) else answer.failure
        for answer in answers.values()
    )
    lengths = [
        (sample[index].uri, sample[index].size_bytes, header.audio_s or 0.0)
        for index, header in headers.items()
        if header.failure is not None or header.audio_s is not None
    ]
    return Survey(
        asked=len(sample),
        read=sum(header.audio_s is not None for header in headers.values()),
        sums=sums_of(lengths),
        without_duration=len(headers) - len(lengths),
        failures={kind: count for kind, count in failures.most_common() if kind},
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
