"""The pipeline in this process, without Ray: the same stages, the same tables.

Extraction runs in threads, each with a child process, so that it overlaps with transcription; what
waits between them is bounded in bytes. One engine, on one GPU at most.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Self

import pyarrow as pa

from corpus_asr.activity import Activity
from corpus_asr.config.run import DEFAULT_OPTIONS, RunConfig, RunOptions
from corpus_asr.runtime.commit import CommitBuffer, Committer, Tally, tally_of
from corpus_asr.runtime.feed import Feed
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


def run_local(
    config: RunConfig,
    packs: Iterable[pa.Table],
    committer: Committer,
    *,
    resources: Resources,
    progress: Progress,
    engine_factory: EngineFactory = load_engine,
    extractor: str = REPORTING_EXTRACTOR,
    options: RunOptions = DEFAULT_OPTIONS,
) -> None:
    """Transcribe `packs` in this process and commit all results."""
    committed, seen = Activity(), Tally()

    with ExitStack() as stack:
        stop = stack.enter_context(stoppable(lambda: progress.files_left, at=options.stop_at))
        progress.read_left_s = lambda: stop.left_s

        def commit(results: list[pa.Table]) -> None:
            nonlocal committed
            rows = pa.concat_tables(results).combine_chunks()
            done = committer(rows, leaving=lambda: stop.expired)
            committed += done.spent
            progress.set(progress.tally + done.tally)

        buffer = CommitBuffer.of(config.output, commit)
        extractors = [
            ExtractStage(config, extractor=extractor) for _ in range(resources.extract_workers)
        ]
        # The first recordings are decoded while the model is loaded.
        work = stack.enter_context(_Work(packs, extractors, ahead_bytes=resources.ahead_bytes))
        spec = EngineSpec(
            config=config, device=resources.device, num_threads=resources.transcribe_threads
        )
        stage = TranscribeStage(spec, engine_factory=engine_factory)
        stack.enter_context(_closed(stage))
        progress.read_activity = lambda: Activity.total(
            (committed, stage.activity, *(extractor.activity for extractor in extractors))
        )
        try:
            for result in work.results(stage, stop, at_once=resources.parts_in_flight):
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


class _Work(Feed):
    """Packs in, results out: extractors in a thread each, and parts of them in the engine.

    What is extracted and not yet transcribed takes `ahead_bytes` at most.
    """

    def __init__(
        self, packs: Iterable[pa.Table], extractors: Sequence[ExtractStage], *, ahead_bytes: int
    ) -> None:
        super().__init__(ahead_bytes)
        self._packs = iter(packs)
        self._taking = threading.Lock()
        self._extractors = extractors
        self._num_extracting = len(extractors)
        self._threads: list[threading.Thread] = []
        self._waiting: deque[pa.Table] = deque()
        self._results: deque[pa.Table] = deque()

    def __enter__(self) -> Self:
        self._threads = [
            self.start("extract", partial(self._extract, extractor))
            for extractor in self._extractors
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        # One deadline for all: who presses Ctrl-C waits this long and not this long for each.
        deadline_s = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for extractor in self._extractors:
            extractor.close()

    def results(
        self, stage: TranscribeStage, stop: Stop, *, at_once: int
    ) -> Iterator[pa.Table | None]:
        """Yield results as they are ready, and None when a while passed without one.

        The stage has `at_once` parts at most.
        """
        num_transcribing = 0
        while num_transcribing or (not stop.requested and (self._num_extracting or self._waiting)):
            if stop.expired:
                return
            while self._waiting and num_transcribing < at_once and not stop.requested:
                self.start("transcribe", partial(self._transcribe, stage, self._waiting.popleft()))
                num_transcribing += 1
            if self._results:
                num_transcribing -= 1
                yield self._results.popleft()
            elif self.error is not None:
                raise self.error
            elif not self.wait(POLL_S):
                yield None

    def _extract(self, extractor: ExtractStage) -> None:
        while (pack := self._next_pack()) is not None:
            for parts in extractor(pack):
                if not self.take(parts.nbytes):
                    return
                self._waiting.append(parts)
                self.wake()
        with self._taking:
            self._num_extracting -= 1

    def _next_pack(self) -> pa.Table | None:
        with self._taking:
            return None if self.closed else next(self._packs, None)

    def _transcribe(self, stage: TranscribeStage, parts: pa.Table) -> None:
        try:
            self._results.append(stage(parts))
        finally:
            self.give_back(parts.nbytes)
