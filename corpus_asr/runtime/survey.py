"""How much audio recordings hold, from the headers of a few: before and while a run works on them.

Headers are read by a child process, which what is broken in one may crash or hold up.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from corpus_asr.activity import FileSums
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CorpusAsrError, DecodeError
from corpus_asr.logs import event
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.sample import SampledFile, sums_of
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.units import MEBIBYTE

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
        init_kwargs={"settings": config.extract, "store": StoreOptions.of(config.source)},
        timeout_s=SILENCE_S,
    )
    uris = [file.uri for file in sample]
    with closing(child), closing(_read(child, uris)) as answers:
        try:
            for index, header in answers:
                headers[index] = header
                if stopped() or time.monotonic() > ends_s:
                    break
        except CorpusAsrError as error:  # no child could be started
            event(_LOG, logging.WARNING, "headers_not_read", error=str(error))
    return _found(sample, headers)


def _read(
    child: IsolatedGenerator, uris: Sequence[str]
) -> Generator[tuple[int, Header], None, None]:
    """Yield headers with their places: all at once, but one at a time after a crash."""
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
    )


@contextmanager
def surveying(
    plan: Plan, config: RunConfig, found: Callable[[dict[str, FileSums]], None]
) -> Iterator[None]:
    """Read headers of a plan's recordings beside a run that is long enough for it."""
    long_enough = plan.num_remaining_bytes >= WORTH_BYTES or plan.num_remaining >= WORTH_FILES
    if not long_enough:
        yield
        return
    ended = threading.Event()

    def read() -> None:
        try:
            sample = plan.remaining.draw()
            found(survey(sample, config, stopped=ended.is_set).sums)
        except Exception as error:  # only an estimate is less sure
            event(_LOG, logging.WARNING, "headers_not_read", error=repr(error))

    # A daemon: a run that is over does not wait for a store.
    threading.Thread(target=read, name="survey", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
