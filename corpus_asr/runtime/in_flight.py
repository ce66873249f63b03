"""Recordings on their way through a `Transcriber`: extracted in a thread, transcribed, collected.

A call has a child of the pool while one recording is extracted, which goes on whether or not its
caller takes results: whoever waits for a child gets one, in the order in which they asked, also in
a thread whose own iterators stand still.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from corpus_asr.audio.inputs import GivenAudio
from corpus_asr.config.decoding import ALL_TRACKS, expected_languages
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.options import CallSettings
from corpus_asr.errors import ClosedError, CorpusAsrError, check_same_process
from corpus_asr.runtime.feed import Feed
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import ExtractedPart, ExtractRequest
from corpus_asr.stages.transcribe import part_request
from corpus_asr.storage.manifest import AlignedText
from corpus_asr.transcription.windows import Listener
from corpus_asr.units import SAMPLE_RATE_HZ

if TYPE_CHECKING:  # imports torch
    from corpus_asr.transcription.engine import Engine
    from corpus_asr.transcription.routing import RoutedEngine

MAX_CHILDREN = 4  # of some 150 MiB each, and a core while they decode
# Another child starts in a second or two. Short recordings are sooner extracted by the first.
PATIENCE_S = 1.0


class ExtractorPool:
    """Lends children to calls, first come, first served; starts more where they are long in use."""

    def __init__(self, make: Callable[[], IsolatedGenerator]) -> None:
        self._make = make
        self._made_in = os.getpid()
        self.closed = False
        """Whether no call can use it any more."""
        self._idle: list[IsolatedGenerator] = []
        self._num_lent = 0
        self._queue: deque[object] = deque()
        self._calls: set[CallInFlight] = set()
        # Reentrant: an iterator may be collected, and so end its call, wherever Python allocates.
        self._changed = threading.Condition(threading.RLock())

    def start(self) -> None:
        """Start the first child without waiting for it."""
        child = self._make()
        child.start()
        self._idle.append(child)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it, and no fork."""
        return os.getpid() == self._made_in

    def check(self) -> None:
        """Refuse a call that would wait forever.

        Raises:
            ForkedError: this is a fork of the process that made the pool.
            ClosedError: it is closed.
        """
        check_same_process("transcribing", "Transcriber", made_in=self._made_in)
        if self.closed:
            raise self.closed_error()

    def closed_error(self) -> ClosedError:
        """Return what a call ends with that a closed pool keeps from going on."""
        return ClosedError(
            "transcribing: this Transcriber is closed, perhaps by another thread while this call "
            "was at work; make a new one, and close it after the last call"
        )

    def enter(self, call: "CallInFlight") -> None:
        """Count a call among those that `close` ends.

        Raises:
            EngineError: as of `check`.
        """
        with self._changed:
            self.check()
            self._calls.add(call)

    def leave(self, call: "CallInFlight") -> None:
        """Forget a call that has ended, and let it no longer wait for a child."""
        with self._changed:
            self._calls.discard(call)
            self._changed.notify_all()

    def take(self, wanted: Callable[[], bool]) -> IsolatedGenerator | None:
        """Wait for a child that nobody uses; None once it is not wanted any more."""
        turn, since_s = object(), time.monotonic()
        with self._changed:
            self._queue.append(turn)
            try:
                while wanted():
                    left_s: float | None = None
                    if self._queue[0] is turn:
                        left_s = PATIENCE_S - (time.monotonic() - since_s)
                        if (child := self._free(impatient=left_s <= 0)) is not None:
                            self._num_lent += 1
                            return child
                        left_s = left_s if left_s > 0 else None
                    self._changed.wait(left_s)
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()
        return None

    def give_back(self, child: IsolatedGenerator) -> None:
        """Let others use a child; in a closed pool it ends."""
        with self._changed:
            self._num_lent -= 1
            if not self.closed:
                self._idle.append(child)
            self._changed.notify_all()
        if self.closed:
            child.close()

    def close(self) -> None:
        """End all calls and children. Does nothing in a fork, which has neither."""
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

    def _free(self, *, impatient: bool) -> IsolatedGenerator | None:
        if self._idle:
            return self._idle.pop()
        if not self._num_lent or (impatient and self._num_lent < MAX_CHILDREN):
            return self._make()
        return None


# Parts extracted ahead per slot: one in it and one to follow; about 10 MiB each at most.
_PARTS_PER_SLOT = 2
# A call that is left waits so long for its thread, which has temporary files to remove.
_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionProgress:
    """How far one recording is."""

    uri: str
    """What its transcript is called."""
    decoded_s: float
    """Seconds of audio decoded and searched for speech."""
    transcribed_s: float
    """Of them transcribed; grows window by window."""
    duration_s: float | None
    """Seconds of audio in all, of the file's header until all is decoded; None: it says nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class PartInFlight:
    """A part that was extracted."""

    extracted: ExtractedPart
    """Without its features."""
    speech_s: float | None
    """Detected speech; None where it was not looked for."""
    transcript: Future[PartTranscript] | None = None
    """None for a part without speech."""
    segments: list[Segment] = field(default_factory=list)
    """What is final of it so far."""
    reached_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds of its audio."""
        return self.extracted.num_samples / SAMPLE_RATE_HZ

    @property
    def transcribed_s(self) -> float:
        """Seconds of it that are transcribed."""
        return self.duration_s if self.done else min(self.reached_s, self.duration_s)

    @property
    def done(self) -> bool:
        """Whether nothing is awaited any more."""
        return self.transcript is None or self.transcript.done()


@dataclass(slots=True, kw_only=True, eq=False)
class RecordingInFlight:
    """A recording that was begun."""

    audio: GivenAudio
    extract: ExtractSettings
    text: str | None = None
    """What is said in it, to be aligned; None: not known."""
    parts: list[PartInFlight] = field(default_factory=list)
    is_file: bool = False
    """Whether all that was given is in a file: nothing is read from the caller any more."""
    extracted: bool = False
    """Whether no part follows."""
    error: Exception | None = None
    """What ended its extraction."""
    parts_taken: int = 0
    segments_taken: int = 0
    """Of the part behind those."""

    @property
    def last(self) -> ExtractedPart | None:
        """What was extracted last, which describes the file."""
        return self.parts[-1].extracted if self.parts else None

    @property
    def num_rows(self) -> int:
        """Channels or tracks that are transcribed separately."""
        last = self.last
        if last is not None and self.extract.channels == "each":
            return last.channels
        if last is not None and self.extract.track == ALL_TRACKS:
            return max(1, len(last.audio_tracks or ()))
        return 1

    @property
    def done(self) -> bool:
        """Whether everything there is of it is transcribed."""
        return self.extracted and all(part.done for part in self.parts)

    @property
    def decoded_s(self) -> float:
        """Seconds of audio extracted so far, on average over channels."""
        return sum(part.duration_s for part in list(self.parts)) / self.num_rows

    @property
    def progress(self) -> TranscriptionProgress:
        """How far it is; parts without speech count as transcribed."""
        # In this order: no figure is behind one that it bounds.
        is_extracted = self.extracted
        transcribed_s = sum(part.transcribed_s for part in [*self.parts]) / self.num_rows
        decoded_s, last = self.decoded_s, self.last
        duration_s = decoded_s if is_extracted or last is None else last.header_duration_s
        return TranscriptionProgress(
            uri=self.audio.name,
            decoded_s=decoded_s,
            transcribed_s=transcribed_s,
            duration_s=None if duration_s is None else max(duration_s, decoded_s),
        )

    def take_segments(self) -> Iterator[Segment]:
        """Yield the segments that became final since the last call, in order of time.

        Raises:
            ItemError: a part could not be transcribed.
        """
        while self.parts_taken < len(self.parts):
            part = self.parts[self.parts_taken]
            done = part.done  # before what is final is looked at
            final: Sequence[Segment] = part.segments
            if done:
                final = part.transcript.result().segments if part.transcript else ()
            for segment in final[self.segments_taken :]:
                self.segments_taken += 1
                yield segment
            if not done:
                return
            self.parts_taken, self.segments_taken = self.parts_taken + 1, 0


OnProgress = Callable[[TranscriptionProgress], None]


class CallCancelledError(Exception):
    """Ends a cancelled call in its own thread."""


class Cancellation:
    """Ends a call from another thread, which does not wait for it.

    A window that is being decoded is decoded to its end; its call does not wait for that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._interrupt: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Let the call end, whatever it waits for, or as soon as it begins."""
        with self._lock:
            self._is_cancelled = True
            interrupt = self._interrupt
        interrupt()

    def bind(self, interrupt: Callable[[], None]) -> None:
        """Name what wakes the call, which then checks."""
        with self._lock:
            self._interrupt = interrupt

    def check(self) -> None:
        """Return if the call may go on.

        Raises:
            CallCancelledError: it is cancelled.
        """
        if self._is_cancelled:
            raise CallCancelledError


class CallInFlight:
    """The work of one call; a context manager, whose end stops what is not done.

    Other calls, of this thread or of others, take turns at the pool and share the engine.
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
        self._detect_only = detect_only
        self._pool = pool
        self._cancellation = cancellation
        # The child that works for this call, if any; it is interrupted only under the lock.
        self._child: IsolatedGenerator | None = None
        self._lending = threading.RLock()
        self._engine = engine
        self._settings = settings
        # In parts: one call's parts in the engine's queue keep others waiting.
        self._feed = Feed(_PARTS_PER_SLOT * engine.slots)
        self._thread: threading.Thread | None = None
        self._begun: RecordingInFlight | None = None
        self._waiting: list[Future[PartTranscript]] = []
        self._on_progress = on_progress
        self._reported: dict[str, TranscriptionProgress] = {}

    def check(self) -> None:
        """Return if the call may go on.

        Raises:
            CallCancelledError: it is cancelled.
            EngineError: as of `ExtractorPool.check`.
        """
        self._pool.check()
        if self._cancellation is not None:
            self._cancellation.check()
        if self._feed.error is not None:
            raise self._feed.error

    def run(
        self, audios: Iterable[tuple[GivenAudio, str | None]], *, to_the_end: bool = False
    ) -> Iterator[tuple[RecordingInFlight, bool]]:
        """Yield a recording whenever there may be news of it, and whether it has ended.

        Each of `audios` comes with its text, if that is known; they are taken as needed. One has
        ended once all of it is transcribed or, without `to_the_end`, its extraction failed.

        Raises:
            CallCancelledError: the call is cancelled.
            EngineError: as of `ExtractorPool.check`.
        """
        audios = iter(audios)
        in_flight: list[RecordingInFlight] = []
        more = True
        while more or in_flight:
            self.check()
            while more and (self._begun is None or self._begun.extracted):
                if (pair := next(audios, None)) is None:
                    more = False
                else:
                    in_flight.append(self.begin(*pair))
            self._report(in_flight)
            # In the order in which they end: one of hours must not hold back a hundred clips.
            ended = [
                recording
                for recording in in_flight
                if recording.done or (recording.error is not None and not to_the_end)
            ]
            self.check()  # what is cancelled has ended early
            self._report(ended)
            for recording in [*in_flight]:
                if recording in ended:
                    in_flight.remove(recording)
                yield recording, recording in ended
                self.check()  # where it goes on may be a fork
            if in_flight and not ended:
                self._feed.wait()

    def begin(self, audio: GivenAudio, text: str | None = None) -> RecordingInFlight:
        """Extract a recording and submit its parts, in the background, with its text if known."""
        recording = self._begun = RecordingInFlight(
            audio=audio, extract=self._settings.extract, text=text
        )
        self._thread = self._feed.start("extraction", partial(self._extract_all, recording))
        return recording

    def _report(self, recordings: Iterable[RecordingInFlight]) -> None:
        if self._on_progress is None:
            return
        for progress in (recording.progress for recording in recordings):
            if progress.decoded_s and progress != self._reported.get(progress.uri):
                self._reported[progress.uri] = progress
                self._on_progress(progress)

    def interrupt(self) -> None:
        """Extract and submit nothing more, and wake the calling thread; from any thread."""
        self._feed.close()
        with self._lending:
            if self._child is not None:
                self._child.interrupt()
        self._pool.leave(self)

    def stop(self) -> None:
        """As `interrupt`, and wait for what is being extracted; from any thread."""
        self.interrupt()
        # What the caller gave may be a pipe that nobody writes to: a thread that reads it is left,
        # and does nothing more. An iterator may be collected in any thread, this one included.
        thread, begun = self._thread, self._begun
        if begun is not None and begun.is_file and thread is not threading.current_thread():
            assert thread is not None, "a recording has a thread"
            thread.join(_LEAVE_S)

    def __enter__(self) -> Self:
        self._pool.enter(self)
        if self._cancellation is not None:
            self._cancellation.bind(self.interrupt)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._pool.is_here:  # the thread, the child and the slots are another process's
            return
        self.stop()
        for future in self._waiting:
            self._engine.cancel(future)
        if isinstance(error, CorpusAsrError):
            self._pool.check()  # whatever broke when all was closed: that is why

    def _extract_all(self, recording: RecordingInFlight) -> None:
        try:
            with recording.audio.address() as uri:
                recording.is_file = True
                if not self._feed.closed:
                    self._extract_parts(recording, uri)
        except Exception as error:  # raised in the calling thread
            recording.error = error
        if self._pool.closed:  # not all of it may have come
            recording.error = self._pool.closed_error()
        recording.extracted = True

    def _extract_parts(self, recording: RecordingInFlight, uri: str) -> None:
        request = ExtractRequest(
            uri=uri,
            name=recording.audio.name,
            settings=self._settings.extract,
            speakers=self._settings.speakers,
            languages=expected_languages(self._settings.decoding),
        )
        held: ExtractedPart | None = None
        child = self._pool.take(lambda: not self._feed.closed)
        if child is None:
            return
        try:
            with self._lending:
                self._child = child
            # Closed in the middle of a recording, this ends the child.
            with closing(child.run(request)) as parts:
                for part in parts:
                    # Of a text it matters which part is the last: that is known with the next one.
                    ready = part if recording.text is None else held
                    held = part
                    if ready is not None:
                        self._take(recording, ready)
                    if self._feed.closed:
                        return
        finally:
            self._give_back(child)
        if recording.text is not None and held is not None:
            self._take(recording, held, is_last=True)

    def _give_back(self, child: IsolatedGenerator) -> None:
        with self._lending:
            self._child = None
        if self._feed.closed:
            child.close()  # it may have ended its work and be dying idle
        self._pool.give_back(child)

    def _take(
        self, recording: RecordingInFlight, part: ExtractedPart, *, is_last: bool = False
    ) -> None:
        """Submit a part once there is room."""
        name, text = recording.audio.name, recording.text
        row = part.columns() | {"recording_id": name, "uri": name, "last_part": is_last}
        added = PartInFlight(
            extracted=replace(part, features=None, language_features=None, further={}),
            speech_s=row["speech_s"],
        )
        if part.features is not None:
            if not self._feed.take(1):
                return
            request = part_request(
                row,
                part.features,
                part.language_features,
                further=part.further,
                listener=self._listener(added),
                text=None if text is None else AlignedText(text=text),
            )
            request = replace(
                request, decoding=self._settings.decoding, detect_only=self._detect_only
            )
            added.transcript = self._engine.submit(request)
            self._waiting = [future for future in self._waiting if not future.done()]
            self._waiting.append(added.transcript)
            added.transcript.add_done_callback(lambda _: self._feed.give_back(1))
        recording.parts.append(added)
        self._feed.wake()

    def _listener(self, part: PartInFlight) -> Listener:
        def listen(transcribed_s: float, segments: Sequence[Segment]) -> None:
            part.segments.extend(segments)
            part.reached_s = transcribed_s
            self._feed.wake()

        return listen
