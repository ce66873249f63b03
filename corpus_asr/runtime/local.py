"""The pipeline in this process, without Ray: the same stages, the same tables.

Extraction runs in threads, each with a child process, so that it overlaps with transcription; what
waits between them is bounded in bytes. One engine, on one GPU at most.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, closing, contextmanager
from typing import TypeAlias

import pyarrow as pa

from corpus_asr.activity import Activity
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime.commit import Committer, Tally, tally_of
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import Resources
from corpus_asr.runtime.shutdown import Stop, stoppable
from corpus_asr.stages.extract import REPORTING_EXTRACTOR, ExtractStage
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, TranscribeStage, load_engine

# A commit is two objects: worth it for one long part or a hundred short recordings ...
MIN_BYTES_PER_COMMIT = 64 * 1024
# ... but nobody should lose more than this to a crash.
MAX_COMMIT_AGE_S = 10.0  # since the last commit
# How soon a signal, and the age of what waits to be committed, are noticed while nothing is ready.
POLL_S = 1.0
# How long extraction and the engine are waited for after a run broke off: extraction's processes
# are then ended, the engine's thread ends after the windows that it is encoding.
GRACE_S = 2.0

# A part, what ended a thread, or None when a thread has nothing left.
_Extracted: TypeAlias = pa.Table | BaseException | None


def run_local(
    config: RunConfig,
    packs: Iterable[pa.Table],
    committer: Committer,
    *,
    resources: Resources,
    progress: Progress,
    engine_factory: EngineFactory = load_engine,
    extractor: str = REPORTING_EXTRACTOR,
    stop_at: float | None = None,
) -> None:
    """Transcribe `packs` in this process and commit all results."""
    committed, seen = Activity(), Tally()

    def commit(results: pa.Table) -> None:
        nonlocal committed
        committed += committer.timed(results)
        progress.set(progress.tally + tally_of(results))

    buffer = CommitBuffer(commit, min_bytes=MIN_BYTES_PER_COMMIT, max_age_s=MAX_COMMIT_AGE_S)
    with ExitStack() as stack:
        stop = stack.enter_context(stoppable(lambda: progress.files_left, at=stop_at))
        extracting = [
            ExtractStage(config, extractor=extractor) for _ in range(resources.extract_workers)
        ]
        room = _Room(resources.ahead_bytes)
        # The first recordings are decoded while the model is loaded.
        parts = stack.enter_context(_extracted(extracting, packs, room))
        spec = EngineSpec(
            config=config, device=resources.device, num_threads=resources.transcribe_threads
        )
        stage = TranscribeStage(spec, engine_factory=engine_factory)
        stack.enter_context(_closed(stage))
        progress.read_activity = lambda: Activity.total(
            (committed, stage.activity, *(extractor.activity for extractor in extracting))
        )
        results = _transcribed(stage, parts, stop, room, in_flight=resources.parts_in_flight)
        for result in stack.enter_context(closing(results)):
            if result is None:
                buffer.poll()
            else:
                buffer.add(result)
                if seen.failed == seen.parts:  # nothing succeeded so far
                    seen += tally_of(result)
                    if progress.is_futile(seen):
                        stop.give_up()
        buffer.flush()
        if stop.expired:
            raise KeyboardInterrupt  # nobody waits for the engine


@contextmanager
def _closed(stage: TranscribeStage) -> Iterator[None]:
    """Close the stage at the end, without waiting long for it where a run broke off."""
    try:
        yield
    except BaseException:
        closer = threading.Thread(target=stage.close, name="close-engine", daemon=True)
        closer.start()
        closer.join(GRACE_S)
        raise
    stage.close()


def _transcribed(
    stage: TranscribeStage,
    parts: Iterator[pa.Table | None],
    stop: Stop,
    room: "_Room",
    *,
    in_flight: int,
) -> Generator[pa.Table | None, None, None]:
    """Yield results as they are ready, and None when a while passed without one."""
    running: set[Future[pa.Table]] = set()
    for table in parts:
        if stop.requested:
            break
        if table is None:
            yield None
        else:
            running.add(_transcribing(stage, table, room))
        yield from _ready(running, timeout_s=0)
        while len(running) >= in_flight and not stop.requested:
            yield from _ready(running, timeout_s=POLL_S)
            yield None
    while running and not stop.expired:
        yield from _ready(running, timeout_s=POLL_S)
        yield None


def _transcribing(stage: TranscribeStage, parts: pa.Table, room: "_Room") -> Future[pa.Table]:
    """Call the stage in a thread of its own."""
    future: Future[pa.Table] = Future()

    def call() -> None:
        try:
            future.set_result(stage(parts))
        except BaseException as error:
            future.set_exception(error)
        finally:
            room.give_back(parts.nbytes)

    # Not in an executor: Python waits for its threads when it ends, and a run that breaks off would
    # hang on an engine that never answers.
    threading.Thread(target=call, name="transcribe", daemon=True).start()
    return future


def _ready(running: set[Future[pa.Table]], *, timeout_s: float) -> Iterator[pa.Table]:
    done, _ = wait(running, timeout=timeout_s, return_when=FIRST_COMPLETED)
    for future in done:
        running.remove(future)
        yield future.result()


@contextmanager
def _extracted(
    stages: Sequence[ExtractStage], packs: Iterable[pa.Table], room: "_Room"
) -> Iterator[Iterator[pa.Table | None]]:
    """Give parts from a thread per stage, and None when a while passed without one."""
    # Unbounded in number: what bounds it in bytes is `room`.
    extracted: queue.SimpleQueue[_Extracted] = queue.SimpleQueue()
    shared = _Shared(packs)
    threads = [
        threading.Thread(
            target=_extract, args=(stage, shared, extracted, room), name="extract", daemon=True
        )
        for stage in stages
    ]
    for thread in threads:
        thread.start()
    try:
        yield _taken(extracted, threads=len(threads))
    finally:
        shared.stopped = True
        room.close()
        # One deadline for all: who presses Ctrl-C waits this long and not this long for each.
        deadline = time.monotonic() + GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for stage in stages:
            stage.close()


def _taken(
    extracted: "queue.SimpleQueue[_Extracted]", *, threads: int
) -> Iterator[pa.Table | None]:
    while threads:
        try:
            table = extracted.get(timeout=POLL_S)
        except queue.Empty:
            yield None
            continue
        if isinstance(table, BaseException):
            raise table
        if table is None:
            threads -= 1
        else:
            yield table


def _extract(
    stage: ExtractStage,
    packs: "_Shared",
    extracted: "queue.SimpleQueue[_Extracted]",
    room: "_Room",
) -> None:
    try:
        for pack in packs:
            for table in stage(pack):
                room.take(table.nbytes)
                if packs.stopped:  # a room that is closed lets everything through
                    return
                extracted.put(table)
    except BaseException as error:  # raised again in the main thread
        extracted.put(error)
    else:
        extracted.put(None)


class CommitBuffer:
    """Collects small results so that a commit is worth its two objects."""

    def __init__(
        self,
        commit: Callable[[pa.Table], None],
        *,
        min_bytes: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._min_bytes = min_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._waiting: list[pa.Table] = []
        self._committed_s = -math.inf  # what comes first is shown at once

    def add(self, results: pa.Table) -> None:
        """Take rows, and commit if that is due."""
        self._waiting.append(results)
        self.poll()

    def poll(self) -> None:
        """Commit if that is due."""
        size = sum(table.nbytes for table in self._waiting)
        if size >= self._min_bytes or self._clock() - self._committed_s >= self._max_age_s:
            self.flush()

    def flush(self) -> None:
        """Commit everything that waits."""
        if self._waiting:
            self._commit(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []
            self._committed_s = self._clock()


class _Room:
    """Bytes for features that are not transcribed yet; who has more waits."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._taken = 0
        self._changed = threading.Condition()
        self._closed = False

    def take(self, num_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(
                # Something larger than all there are gets them once nobody else has any.
                lambda: (
                    self._closed or not self._taken or self._taken + num_bytes <= self._num_bytes
                )
            )
            self._taken += num_bytes

    def give_back(self, num_bytes: int) -> None:
        with self._changed:
            self._taken -= num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Shared:
    """An iterator that several threads draw from, until it is stopped."""

    def __init__(self, items: Iterable[pa.Table]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self.stopped = False

    def __iter__(self) -> Iterator[pa.Table]:
        while True:
            with self._lock:
                item = None if self.stopped else next(self._items, None)
            if item is None:
                return
            yield item
