"""The pipeline in this process, without Ray: the same stages, the same tables.

Extraction runs in threads, each with a child process, so that it overlaps with transcription; what
waits between them is bounded in bytes. One engine, on one GPU at most.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from corpus_asr.activity import Activity
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime.commit import CommitBuffer, Committer, Tally, tally_of
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import Resources
from corpus_asr.runtime.shutdown import Stop, stoppable
from corpus_asr.stages.extract import REPORTING_EXTRACTOR, ExtractStage
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, TranscribeStage, load_engine

# How soon a signal, and the age of what waits to be committed, are noticed while nothing is ready.
POLL_S = 1.0
# How long extraction and the engine are waited for after a run broke off: extraction's processes
# are then ended, the engine's thread ends after the windows that it is encoding.
GRACE_S = 2.0

# What threads have done, in the order in which they did it: a part that was extracted, results of
# one, what ended a thread, or that a thread has nothing left to extract. Unbounded in number: what
# bounds it in bytes is `_Feed`.
_Done: TypeAlias = (
    "queue.SimpleQueue[tuple[Literal['part', 'results', 'error', 'nothing left'], Any]]"
)


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

    with ExitStack() as stack:
        stop = stack.enter_context(stoppable(lambda: progress.files_left, at=stop_at))
        progress.read_left_s = lambda: stop.left_s

        def commit(results: list[pa.Table]) -> None:
            nonlocal committed
            rows = pa.concat_tables(results).combine_chunks()
            done = committer(rows, leaving=lambda: stop.expired)
            committed += done.spent
            progress.set(progress.tally + done.tally)

        buffer = CommitBuffer.of(config.output, commit)
        extracting = [
            ExtractStage(config, extractor=extractor) for _ in range(resources.extract_workers)
        ]
        feed = _Feed(packs, resources.ahead_bytes)
        done: _Done = queue.SimpleQueue()
        # The first recordings are decoded while the model is loaded.
        stack.enter_context(_extraction(extracting, feed, done))
        spec = EngineSpec(
            config=config, device=resources.device, num_threads=resources.transcribe_threads
        )
        stage = TranscribeStage(spec, engine_factory=engine_factory)
        stack.enter_context(_closed(stage))
        progress.read_activity = lambda: Activity.total(
            (committed, stage.activity, *(extractor.activity for extractor in extracting))
        )
        in_flight = resources.parts_in_flight
        try:
            for result in _results(stage, feed, done, stop, len(extracting), in_flight=in_flight):
                if result is None:
                    buffer.poll()
                else:
                    buffer.add(result, result.nbytes)
                    if seen.failed == seen.parts:  # nothing succeeded so far
                        seen += tally_of(result)
                        if progress.is_futile(seen):
                            stop.give_up()
        except Exception:
            buffer.flush()  # what an engine did before it failed
            raise
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


def _results(
    stage: TranscribeStage,
    feed: "_Feed",
    done: _Done,
    stop: Stop,
    extracting: int,
    *,
    in_flight: int,
) -> Iterator[pa.Table | None]:
    """Yield results as they are ready, and None when a while passed without one."""
    waiting: deque[pa.Table] = deque()
    transcribing = 0
    while transcribing or (not stop.requested and (extracting or waiting)):
        if stop.expired:
            return
        while waiting and transcribing < in_flight and not stop.requested:
            # Not in an executor: Python waits for its threads when it ends, and a run that breaks
            # off would hang on an engine that never answers.
            threading.Thread(
                target=_transcribe,
                args=(stage, waiting.popleft(), feed, done),
                name="transcribe",
                daemon=True,
            ).start()
            transcribing += 1
        try:
            what, value = done.get(timeout=POLL_S)
        except queue.Empty:
            yield None
            continue
        if what == "error":
            raise value
        if what == "part":
            waiting.append(value)
        elif what == "results":
            transcribing -= 1
            yield value
        else:
            extracting -= 1


def _transcribe(stage: TranscribeStage, parts: pa.Table, feed: "_Feed", done: _Done) -> None:
    try:
        done.put(("results", stage(parts)))
    except BaseException as error:  # raised again in the main thread
        done.put(("error", error))
    finally:
        feed.give_back(parts.nbytes)


@contextmanager
def _extraction(stages: Sequence[ExtractStage], feed: "_Feed", done: _Done) -> Iterator[None]:
    """Extract in a thread per stage while the context is open."""
    threads = [
        threading.Thread(target=_extract, args=(stage, feed, done), name="extract", daemon=True)
        for stage in stages
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        feed.close()
        # One deadline for all: who presses Ctrl-C waits this long and not this long for each.
        deadline = time.monotonic() + GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for stage in stages:
            stage.close()


def _extract(stage: ExtractStage, feed: "_Feed", done: _Done) -> None:
    try:
        for pack in feed.packs():
            for parts in stage(pack):
                if not feed.take(parts.nbytes):
                    return
                done.put(("part", parts))
    except BaseException as error:  # raised again in the main thread
        done.put(("error", error))
    else:
        done.put(("nothing left", None))


class _Feed:
    """Packs that extract threads take, and bytes for parts that are not transcribed yet."""

    def __init__(self, packs: Iterable[pa.Table], num_bytes: int) -> None:
        self._packs = iter(packs)
        self._taking = threading.Lock()
        self._num_bytes = num_bytes
        self._used = 0
        self._changed = threading.Condition()
        self._closed = False

    def packs(self) -> Iterator[pa.Table]:
        """Yield packs, each to one thread, until it is closed."""
        while True:
            with self._taking:
                pack = None if self._closed else next(self._packs, None)
            if pack is None:
                return
            yield pack

    def take(self, num_bytes: int) -> bool:
        """Wait until there is room for so much, and return whether it is wanted at all."""
        with self._changed:
            self._changed.wait_for(
                # Something larger than all there is gets it once nobody else has any.
                lambda: self._closed or not self._used or self._used + num_bytes <= self._num_bytes
            )
            self._used += num_bytes
            return not self._closed

    def give_back(self, num_bytes: int) -> None:
        """Make room."""
        with self._changed:
            self._used -= num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Give no more packs, and let nobody wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
