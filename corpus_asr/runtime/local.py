"""The pipeline in one process, without Ray: the same stages and tables.

Extraction runs in threads, each with a child process, in parallel with transcription; the buffer
between them is bounded in bytes. One engine, on at most one GPU.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import pyarrow as pa

from corpus_asr.activity import Activity, Tally
from corpus_asr.config.run import DEFAULT_OPTIONS, RunConfig, RunOptions
from corpus_asr.runtime.commit import CommitBuffer, Committer, tally_of
from corpus_asr.runtime.pipeline import Pipeline
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import Resources
from corpus_asr.runtime.shutdown import Stop, stoppable
from corpus_asr.stages.extract import EXTRACTOR, ExtractStage
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, TranscribeStage, load_engine

# Polling interval for signals and for due commits while no results arrive, in seconds.
POLL_S = 1.0
# Time that an aborted run waits for extraction and the engine; extraction processes are
# then killed, and the engine's thread ends after the windows in progress.
GRACE_S = 2.0


def run_local(
    config: RunConfig,
    packs: Iterable[pa.Table],
    committer: Committer,
    *,
    resources: Resources,
    progress: Progress,
    engine_factory: EngineFactory = load_engine,
    extractor: str = EXTRACTOR,
    options: RunOptions = DEFAULT_OPTIONS,
) -> None:
    """Transcribe the recordings of `packs` in this process and commit all results."""
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
        pipeline = _RunPipeline(extractors, ahead_bytes=resources.ahead_bytes)
        stack.callback(pipeline.end)
        spec = EngineSpec(
            config=config, device=resources.device, num_threads=resources.transcribe_threads
        )
        stage = TranscribeStage(spec, engine_factory=engine_factory)
        stack.enter_context(_closed(stage))
        progress.read_activity = lambda: Activity.total(
            (committed, stage.activity, *(extractor.activity for extractor in extractors))
        )
        try:
            results = pipeline.run(iter(packs), stage, stop, at_once=resources.parts_in_flight)
            for result in results:
                if result is None:
                    buffer.poll()
                else:
                    buffer.add(result, result.nbytes)
                    if seen.failed == seen.parts:  # nothing has succeeded so far
                        seen += tally_of(result)
                        if progress.is_futile(seen):
                            stop.give_up()
        except Exception:
            buffer.flush()  # results before the engine failed
            raise
        buffer.flush()
        if stop.expired:
            raise KeyboardInterrupt  # without waiting for the engine


@contextmanager
def _closed(stage: TranscribeStage) -> Iterator[None]:
    """Close the stage at exit, with a short timeout after an abort."""
    try:
        yield
    except BaseException:
        closer = threading.Thread(target=stage.close, name="close-engine", daemon=True)
        closer.start()
        closer.join(GRACE_S)
        raise
    stage.close()


class _RunPipeline(Pipeline[pa.Table]):
    """Packs to extractors, and their parts to the engine.

    Extracted parts not yet transcribed take at most `ahead_bytes`.
    """

    def __init__(self, extractors: Sequence[ExtractStage], *, ahead_bytes: int) -> None:
        super().__init__(ahead_bytes, threads=len(extractors))
        self._extractors = extractors
        self._idle_extractors = [*extractors]
        self._waiting: deque[pa.Table] = deque()
        self._results: deque[pa.Table] = deque()

    def end(self) -> None:
        """End all threads, and the extractors with their children."""
        self.close()
        # One deadline for all threads, rather than one for each.
        deadline_s = time.monotonic() + GRACE_S
        for thread in [*self.extractions]:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for extractor in self._extractors:
            extractor.close()

    def run(
        self, packs: Iterator[pa.Table], stage: TranscribeStage, stop: Stop, *, at_once: int
    ) -> Iterator[pa.Table | None]:
        """Yield results as they arrive, and None after a while without any.

        At most `at_once` parts are in the stage.
        """
        num_transcribing = 0
        while not stop.expired:
            while self._waiting and num_transcribing < at_once and not stop.requested:
                parts = self._waiting.popleft()
                self.thread("transcribe", partial(self._transcribe, stage, parts)).start()
                num_transcribing += 1
            # After that: the next pack may be long in coming.
            while not stop.requested and self.begin(packs) is not None:
                pass
            is_extracted = self.is_exhausted and not self.extractions and not self._waiting
            if self._results:
                num_transcribing -= 1
                yield self._results.popleft()
            elif self.error is not None:
                raise self.error
            elif not num_transcribing and (is_extracted or stop.requested):
                return
            elif not self.wait(POLL_S):
                yield None

    def extract(self, item: pa.Table) -> None:
        """Extract a pack."""
        extractor = self._idle_extractors.pop()
        for parts in extractor(item):
            if not self.take(parts.nbytes):
                return
            self._waiting.append(parts)
            self.wake()
        self._idle_extractors.append(extractor)

    def _transcribe(self, stage: TranscribeStage, parts: pa.Table) -> None:
        try:
            self._results.append(stage(parts))
        finally:
            self.give_back(parts.nbytes)
