"""Recordings in a `Transcriber`: extracted in a thread, transcribed by the engine, collected.

A call borrows a child process from the pool while one recording is extracted, whether or not its
caller consumes results, so that other calls go on, even in a thread whose own iterators are
suspended.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from corpus_asr.audio.inputs import GivenAudio
from corpus_asr.config.decoding import ALL_TRACKS, expected_languages
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.options import CallSettings
from corpus_asr.errors import ClosedError, CorpusAsrError, check_same_process
from corpus_asr.runtime.pipeline import Pipeline
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import FEATURE_COLUMNS, OK, ExtractRequest, PartRow, with_last
from corpus_asr.stages.transcribe import part_request
from corpus_asr.storage.manifest import AlignedText
from corpus_asr.transcription.windows import Listener
from corpus_asr.units import SAMPLE_RATE_HZ

if TYPE_CHECKING:  # imports torch
    from corpus_asr.transcription.engine import Engine
    from corpus_asr.transcription.routing import RoutedEngine

MAX_CHILDREN = 4  # of some 150 MiB each, and one core while decoding


class ExtractorPool:
    """Lends child processes to calls; starts more under load."""

    def __init__(self, make: Callable[[], IsolatedGenerator]) -> None:
        self._make = make
        self._made_in = os.getpid()
        self.closed = False
        """Whether the pool is closed."""
        self._idle: list[IsolatedGenerator] = []
        self._num_lent = 0
        self._calls: set[CallInFlight] = set()
        # Reentrant: a collected iterator ends its call, possibly during any allocation.
        self._changed = threading.Condition(threading.RLock())

    def start(self) -> None:
        """Start the first child without waiting for it."""
        child = self._make()
        child.start()
        self._idle.append(child)

    @property
    def is_here(self) -> bool:
        """Whether this process created the pool, rather than a fork of it."""
        return os.getpid() == self._made_in

    def check(self) -> None:
        """Raise an error for a call that could never proceed.

        Raises:
            ForkedError: this process is a fork of the pool's.
            ClosedError: the pool is closed.
        """
        check_same_process("transcribing", "Transcriber", made_in=self._made_in)
        if self.closed:
            raise self.closed_error()

    def closed_error(self) -> ClosedError:
        """Return the error with which calls end when the pool is closed."""
        return ClosedError(
            "transcribing: this Transcriber is closed, perhaps by another thread during this "
            "call; make a new one, and close it after the last call"
        )

    def enter(self, call: "CallInFlight") -> None:
        """Register a call, so that `close` ends it.

        Raises:
            EngineError: as raised by `check`.
        """
        with self._changed:
            self.check()
            self._calls.add(call)

    def leave(self, call: "CallInFlight") -> None:
        """Unregister a call and cancel its wait for a child."""
        with self._changed:
            self._calls.discard(call)
            self._changed.notify_all()

    def take(self, wanted: Callable[[], bool]) -> IsolatedGenerator | None:
        """Wait for an idle child, or room for another; None when `wanted()` becomes false."""
        with self._changed:
            self._changed.wait_for(
                lambda: not wanted() or self._idle or self._num_lent < MAX_CHILDREN
            )
            if not wanted():
                return None
            self._num_lent += 1
            return self._idle.pop() if self._idle else self._make()

    def give_back(self, child: IsolatedGenerator) -> None:
        """Return a child to the pool; a closed pool ends it."""
        with self._changed:
            self._num_lent -= 1
            if not self.closed:
                self._idle.append(child)
            self._changed.notify_all()
        if self.closed:
            child.close()

    def close(self) -> None:
        """End all calls and children. No effect in a fork, which has neither."""
        if not self.is_here:
            return
        with self._changed:
            self.closed = True
            idle, self._idle = self._idle, []
            calls = [*self._calls]
        for call in calls:
            call.stop()
        for child in idle:
            child.close()


# Parts extracted ahead per slot: one in it and the next; about 10 MiB each at most.
_PARTS_PER_SLOT = 2
# Timeout for the thread of an abandoned call, which has temporary files to remove.
_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionProgress:
    """Progress of one recording."""

    uri: str
    """URI of its transcript."""
    decoded_s: float
    """Seconds of audio decoded and searched for speech."""
    transcribed_s: float
    """Seconds of these that are transcribed; grows by windows."""
    duration_s: float | None
    """Total seconds, from the file's header until all is decoded; None: unknown."""


@dataclass(slots=True, kw_only=True, eq=False)
class PartInFlight:
    """An extracted part."""

    row: PartRow
    """Its columns without features."""
    transcript: Future[PartTranscript] = field(default_factory=Future)
    """Result of the engine; without anything for a part without speech."""
    segments: list[Segment] = field(default_factory=list)
    """Final segments so far."""
    num_taken: int = 0
    """Segments that `take_segments` yielded."""
    reached_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Duration of its audio in seconds."""
        return float(self.row["num_samples"] / SAMPLE_RATE_HZ)

    @property
    def transcribed_s(self) -> float:
        """Transcribed seconds."""
        return self.duration_s if self.done else min(self.reached_s, self.duration_s)

    @property
    def done(self) -> bool:
        """Whether the part is complete."""
        return self.transcript.done()


@dataclass(slots=True, kw_only=True, eq=False)
class RecordingInFlight:
    """A recording whose extraction has started."""

    audio: GivenAudio
    extract: ExtractSettings
    text: str | None = None
    """Text to align; None: transcription."""
    parts: list[PartInFlight] = field(default_factory=list)
    is_file: bool = False
    """Whether the input is stored in a file, so that the caller's object is not read any more."""
    extracted: bool = False
    """Whether all parts were extracted."""
    error: Exception | None = None
    """Exception that ended its extraction."""

    @property
    def last(self) -> PartRow:
        """The last extracted part, which describes the file; empty before the first."""
        return self.parts[-1].row if self.parts else {}

    @property
    def num_rows(self) -> int:
        """Number of channels or tracks that are transcribed separately."""
        last = self.last
        if self.extract.channels == "each":
            return int(last.get("channels", 1))
        if self.extract.track == ALL_TRACKS:
            return max(1, len(last.get("audio_tracks") or ()))
        return 1

    @property
    def done(self) -> bool:
        """Whether extraction and all parts are complete."""
        return self.extracted and all(part.done for part in self.parts)

    @property
    def decoded_s(self) -> float:
        """Seconds of audio extracted so far, averaged over channels."""
        return sum(part.duration_s for part in list(self.parts)) / self.num_rows

    @property
    def progress(self) -> TranscriptionProgress:
        """Return the progress; parts without speech count as transcribed."""
        # Read in this order, so that no value exceeds one that bounds it.
        is_extracted = self.extracted
        transcribed_s = sum(part.transcribed_s for part in [*self.parts]) / self.num_rows
        decoded_s, last = self.decoded_s, self.last
        duration_s = last.get("header_duration_s") if last and not is_extracted else decoded_s
        return TranscriptionProgress(
            uri=self.audio.name,
            decoded_s=decoded_s,
            transcribed_s=transcribed_s,
            duration_s=None if duration_s is None else max(duration_s, decoded_s),
        )

    def take_segments(self) -> Iterator[Segment]:
        """Yield the segments that became final since the last call, in time order.

        Raises:
            ItemError: transcription of a part failed.
        """
        for part in [*self.parts]:
            done = part.done  # read before the final segments
            final = part.transcript.result().segments if done else part.segments
            for segment in final[part.num_taken :]:
                part.num_taken += 1
                yield segment
            if not done:
                return


OnProgress = Callable[[TranscriptionProgress], None]


class CallCancelledError(Exception):
    """Raised in the thread of a canceled call."""


class Cancellation:
    """Cancels a call from another thread, without waiting for it.

    A window in progress is decoded to its end, but its call does not wait for that.
    """

    def __init__(self) -> None:
        self._is_cancelled = False
        self._interrupt: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Cancel the call at any point, or as soon as it starts."""
        self._is_cancelled = True  # in this order: a call binds, then checks
        self._interrupt()

    def bind(self, interrupt: Callable[[], None]) -> None:
        """Set the function that wakes the call, which then checks."""
        self._interrupt = interrupt

    def check(self) -> None:
        """Return if the call is not canceled.

        Raises:
            CallCancelledError: it is canceled.
        """
        if self._is_cancelled:
            raise CallCancelledError


class CallInFlight(Pipeline[RecordingInFlight]):
    """Work of one call; a context manager that stops unfinished work at its exit.

    Concurrent calls, of this thread or others, share the pool and the engine.
    """

    def __init__(
        self,
        pool: ExtractorPool,
        engine: "Engine | RoutedEngine",
        settings: CallSettings,
        on_progress: OnProgress | None = None,
        cancellation: Cancellation | None = None,
        *,
        detect_only: bool = False,
    ) -> None:
        # In parts: queued parts of one call delay other calls.
        super().__init__(_PARTS_PER_SLOT * engine.slots)
        self._detect_only = detect_only
        self._pool = pool
        self._cancellation = cancellation
        # Child process working for this call, if any; interrupted only while the lock is held.
        self._child: IsolatedGenerator | None = None
        self._engine = engine
        self._settings = settings
        self._waiting: list[Future[PartTranscript]] = []
        self._on_progress = on_progress
        self._reported: dict[str, TranscriptionProgress] = {}

    def check(self) -> None:
        """Return if the call may continue.

        Raises:
            CallCancelledError: the call is canceled.
            EngineError: as raised by `ExtractorPool.check`.
        """
        self._pool.check()
        if self._cancellation is not None:
            self._cancellation.check()
        if self.error is not None:
            raise self.error

    def run(
        self, audios: Iterable[tuple[GivenAudio, str | None]], *, to_the_end: bool = False
    ) -> Iterator[tuple[RecordingInFlight, bool]]:
        """Yield a recording whenever it may have changed, and whether it has ended.

        `audios` are pairs of audio and text (None: unknown), consumed on demand. A recording ends
        once it is transcribed completely or, without `to_the_end`, when its extraction failed.

        Raises:
            CallCancelledError: the call is canceled.
            EngineError: as raised by `ExtractorPool.check`.
        """
        extract = self._settings.extract
        recordings = (
            RecordingInFlight(audio=audio, extract=extract, text=text) for audio, text in audios
        )
        in_flight: list[RecordingInFlight] = []
        while in_flight or not self.is_exhausted:
            self.check()
            while (recording := self.begin(recordings)) is not None:
                in_flight.append(recording)
            self._report(in_flight)
            # In order of completion: a recording of hours must not delay a hundred clips.
            ended = [
                recording
                for recording in in_flight
                if recording.done or (recording.error is not None and not to_the_end)
            ]
            self.check()  # recordings of a canceled call end early
            self._report(ended)
            for recording in [*in_flight]:
                if recording in ended:
                    in_flight.remove(recording)
                yield recording, recording in ended
                self.check()  # may resume in a fork
            if in_flight and not ended:
                self.wait()

    def _report(self, recordings: Iterable[RecordingInFlight]) -> None:
        if self._on_progress is None:
            return
        for progress in (recording.progress for recording in recordings):
            if progress.decoded_s and progress != self._reported.get(progress.uri):
                self._reported[progress.uri] = progress
                self._on_progress(progress)

    def interrupt(self) -> None:
        """Stop extraction and submission, and wake the calling thread; from any thread."""
        self.close()
        with self._changed:
            if self._child is not None:
                self._child.interrupt()
        self._pool.leave(self)

    def stop(self) -> None:
        """Call `interrupt`, and wait for the extraction in progress; from any thread."""
        self.interrupt()
        # The caller's input may be a pipe without a writer: a thread that reads it is abandoned and
        # does nothing more. An iterator may be collected in any thread, even this one.
        for thread, recording in [*self.extractions.items()]:
            if recording.is_file and thread is not threading.current_thread():
                thread.join(_LEAVE_S)

    def __enter__(self) -> Self:
        self._pool.enter(self)
        if self._cancellation is not None:
            self._cancellation.bind(self.interrupt)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._pool.is_here:  # the thread, the child and the slots belong to another process
            return
        self.stop()
        for future in self._waiting:
            self._engine.cancel(future)
        if isinstance(error, CorpusAsrError):
            self._pool.check()  # errors caused by closing the pool are reported as such

    def extract(self, item: RecordingInFlight) -> None:
        """Extract a recording and submit its parts."""
        try:
            with item.audio.address() as uri:
                item.is_file = True
                if not self.closed:
                    self._extract_parts(item, uri)
        except Exception as error:  # raised in the calling thread
            item.error = error
        if self._pool.closed:  # parts may be missing
            item.error = self._pool.closed_error()
        item.extracted = True

    def _extract_parts(self, recording: RecordingInFlight, uri: str) -> None:
        request = ExtractRequest(
            uri=uri,
            name=recording.audio.name,
            settings=self._settings.extract,
            speakers=self._settings.speakers,
            languages=expected_languages(self._settings.decoding),
        )
        if (child := self._pool.take(lambda: not self.closed)) is None:
            return
        try:
            with self._changed:
                self._child = child
            # Closing it in the middle of a recording ends the child.
            with closing(child.run(request)) as messages:
                rows: Iterator[PartRow] = (row for row in messages if isinstance(row, dict))
                # Alignment needs to know the last part, which shows only with the next one.
                for row in rows if recording.text is None else with_last(rows):
                    self._submit(recording, row)
                    if self.closed:
                        return
        finally:
            with self._changed:
                self._child = None
            if self.closed:
                child.close()  # may be idle but about to exit
            self._pool.give_back(child)

    def _submit(self, recording: RecordingInFlight, row: PartRow) -> None:
        """Submit a part once there is room."""
        name, text = recording.audio.name, recording.text
        part = PartInFlight(row=row | dict.fromkeys(FEATURE_COLUMNS))
        if row["status"] == OK:
            if not self.take(1):
                return
            request = part_request(
                row | {"recording_id": name, "uri": name},
                None if text is None else AlignedText(text=text),
                listener=self._listener(part),
                decoding=self._settings.decoding,
                detect_only=self._detect_only,
            )
            part.transcript = self._engine.submit(request)
            self._waiting = [future for future in self._waiting if not future.done()]
            self._waiting.append(part.transcript)
            part.transcript.add_done_callback(lambda _: self.give_back(1))
        else:
            part.transcript.set_result(PartTranscript())
        recording.parts.append(part)
        self.wake()

    def _listener(self, part: PartInFlight) -> Listener:
        def listen(transcribed_s: float, segments: Sequence[Segment]) -> None:
            part.segments.extend(segments)
            part.reached_s = transcribed_s
            self.wake()

        return listen
