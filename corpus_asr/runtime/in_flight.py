"""Recordings on their way through a `Transcriber`: extracted in a thread, transcribed, collected.

    calling thread  -- recording -->  thread: extracting child -- parts -->  engine, of all calls
                    <-- wake, whenever a part, a window or a recording is done --

Only the calling thread takes results, reports and raises; the others fill in `RecordingInFlight`.
A call has a child of the pool while one recording is extracted, which goes on whether or not its
caller takes results: whoever waits for a child gets one, in the order in which they asked, also in
a thread whose own iterators stand still.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from corpus_asr.audio.inputs import GivenAudio
from corpus_asr.config.decoding import ALL_TRACKS, expected_languages
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.options import CallSettings
from corpus_asr.errors import ClosedError, CorpusAsrError, check_same_process
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.measures import measured_columns
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
        self._closed = False
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

    @property
    def closed(self) -> bool:
        """Whether no call can use it any more."""
        return self._closed

    def check(self) -> None:
        """Refuse a call that would wait forever.

        Raises:
            ForkedError: this is a fork of the process that made the pool.
            ClosedError: it is closed.
        """
        check_same_process("transcribing", "Transcriber", made_in=self._made_in)
        if self._closed:
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
            if not self._closed:
                self._idle.append(child)
            self._changed.notify_all()
        if self._closed:
            child.close()

    def close(self) -> None:
        """End all calls and children. Does nothing in a fork, which has neither."""
        if not self.is_here:
            return
        with self._changed:
            self._closed = True
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
# The caller chose the recordings: nothing is too large or too long.
NO_LIMITS = {"max_file_gb": math.inf, "max_duration_h": math.inf}
# A call that is left waits so long for its thread, which has temporary files to remove.
_LEAVE_S = 5.0


@dataclass(slots=True, kw_only=True)
class PartInFlight:
    """A part that was extracted."""

    duration_s: float
    channel: int | None
    """Number of the channel, from 0; None where channels are mixed."""
    speech_s: float | None
    """Detected speech; None where it was not looked for."""
    transcript: Future[PartTranscript] | None
    """None for a part without speech."""
    voices: SpeechWindows | None = None
    """Windows of its speech; None where speakers are not looked for."""
    said: list[Segment] = field(default_factory=list)
    """What is final of it so far."""
    transcribed_s: float = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is awaited any more."""
        return self.transcript is None or self.transcript.done()


@dataclass(slots=True, kw_only=True)
class RecordingInFlight:
    """A recording that was begun."""

    audio: GivenAudio
    text: str | None = None
    """What is said in it, to be aligned; None: not known."""
    parts: list[PartInFlight] = field(default_factory=list)
    header_duration_s: float | None = None
    num_rows: int = 1
    """Channels or tracks that are transcribed separately."""
    audio_track: int | None = None
    audio_tracks: tuple[str, ...] = ()
    silent_tracks: tuple[int, ...] = ()
    """As in `Transcript`."""
    time_corrections: int = 0
    """Of the part that was extracted last."""
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
    def done(self) -> bool:
        """Whether everything there is of it is transcribed."""
        return self.extracted and all(part.done for part in self.parts)

    @property
    def decoded_s(self) -> float:
        """Seconds of audio extracted so far, on average over channels."""
        return sum(part.duration_s for part in list(self.parts)) / self.num_rows

    @property
    def transcribed_s(self) -> float:
        """Seconds of audio transcribed so far, silence included."""
        seconds = (
            part.duration_s if part.done else min(part.transcribed_s, part.duration_s)
            for part in list(self.parts)
        )
        return sum(seconds) / self.num_rows

    @property
    def duration_s(self) -> float | None:
        """Seconds of audio in all: of its header until all is decoded; None: unknown."""
        if self.extracted:
            return self.decoded_s
        known = self.header_duration_s
        return None if known is None else max(known, self.decoded_s)

    def note(self, part: ExtractedPart, extract: ExtractSettings) -> None:
        """Take what a part says of the whole recording."""
        self.header_duration_s = part.header_duration_s
        self.audio_track, self.audio_tracks = part.audio_track, part.audio_tracks or ()
        self.silent_tracks, self.time_corrections = part.silent_tracks, part.time_corrections
        if extract.channels == "each":
            self.num_rows = part.channels
        elif extract.track == ALL_TRACKS:
            self.num_rows = max(1, len(self.audio_tracks))

    def take_segments(self) -> Iterator[Segment]:
        """Yield the segments that became final since the last call, in order of time.

        Raises:
            ItemError: a part could not be transcribed.
        """
        while self.parts_taken < len(self.parts):
            part = self.parts[self.parts_taken]
            done = part.done  # before what it said is looked at
            final: Sequence[Segment] = part.said
            if done:
                final = part.transcript.result().segments if part.transcript else ()
            for segment in final[self.segments_taken :]:
                self.segments_taken += 1
                yield segment
            if not done:
                return
            self.parts_taken, self.segments_taken = self.parts_taken + 1, 0


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
        self._decoding = settings.decoding
        self._speakers = settings.speakers
        self._extract: ExtractSettings = settings.extract.model_copy(update=NO_LIMITS)
        self._room = threading.Semaphore(_PARTS_PER_SLOT * engine.slots)
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._last: RecordingInFlight | None = None
        self._waiting: list[Future[PartTranscript]] = []
        self._on_progress = on_progress
        self._reported: dict[str, TranscriptionProgress] = {}

    @property
    def takes_another(self) -> bool:
        """Whether no recording is being extracted."""
        return self._last is None or self._last.extracted

    def check(self) -> None:
        """Return if the call may go on.

        Raises:
            CallCancelledError: it is cancelled.
            EngineError: as of `ExtractorPool.check`.
        """
        self._pool.check()
        if self._cancellation is not None:
            self._cancellation.check()

    def begin(self, audio: GivenAudio, text: str | None = None) -> RecordingInFlight:
        """Extract a recording and submit its parts, in the background, with its text if known.

        Raises:
            EngineError: as of `ExtractorPool.check`.
        """
        self._pool.check()
        recording = self._last = RecordingInFlight(audio=audio, text=text)
        # Daemon, so that a call that is never finished does not keep the process alive.
        self._thread = threading.Thread(
            target=self._extract_all, args=(recording,), name="extraction", daemon=True
        )
        self._thread.start()
        return recording

    def report(self, recordings: Iterable[RecordingInFlight]) -> None:
        """Report those of some recordings whose figures have changed."""
        if self._on_progress is None:
            return
        for recording in recordings:
            progress = TranscriptionProgress(
                uri=recording.audio.name,
                decoded_s=recording.decoded_s,
                transcribed_s=recording.transcribed_s,
                duration_s=recording.duration_s,
            )
            if progress.decoded_s and progress != self._reported.get(progress.uri):
                self._reported[progress.uri] = progress
                self._on_progress(progress)

    def wait(self) -> None:
        """Return once something was done since the last return."""
        self._wake.wait()
        # Before the caller looks: what is done from here on wakes it again.
        self._wake.clear()

    def interrupt(self) -> None:
        """Extract and submit nothing more, and wake the calling thread; from any thread."""
        self._stopped = True
        self._room.release()
        self._wake.set()
        with self._lending:
            if self._child is not None:
                self._child.interrupt()
        self._pool.leave(self)

    def stop(self) -> None:
        """As `interrupt`, and wait for what is being extracted; from any thread."""
        self.interrupt()
        # What the caller gave may be a pipe that nobody writes to: a thread that reads it is left,
        # and does nothing more. An iterator may be collected in any thread, this one included.
        thread, last = self._thread, self._last
        if last is not None and last.is_file and thread is not threading.current_thread():
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
                if not self._stopped:
                    self._extract_parts(recording, uri)
        except Exception as error:  # raised in the calling thread
            recording.error = error
        if self._pool.closed:  # not all of it may have come
            recording.error = self._pool.closed_error()
        recording.extracted = True
        self._wake.set()

    def _extract_parts(self, recording: RecordingInFlight, uri: str) -> None:
        request = ExtractRequest(
            uri=uri,
            name=recording.audio.name,
            settings=self._extract,
            speakers=self._speakers,
            languages=expected_languages(self._decoding),
        )
        held: ExtractedPart | None = None
        child = self._pool.take(lambda: not self._stopped)
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
                    if self._stopped:
                        return
        finally:
            self._give_back(child)
        if recording.text is not None and held is not None:
            self._take(recording, held, is_last=True)

    def _give_back(self, child: IsolatedGenerator) -> None:
        with self._lending:
            self._child = None
        if self._stopped:
            child.close()  # it may have ended its work and be dying idle
        self._pool.give_back(child)

    def _take(
        self, recording: RecordingInFlight, part: ExtractedPart, *, is_last: bool = False
    ) -> None:
        """Submit a part once there is room."""
        recording.note(part, self._extract)
        name, text = recording.audio.name, recording.text
        row = part.columns() | {"recording_id": name, "uri": name, "last_part": is_last}
        added = PartInFlight(
            duration_s=part.num_samples / SAMPLE_RATE_HZ,
            channel=part.channel,
            speech_s=row["speech_s"],
            transcript=None,
            voices=_voices(part.measured, start_s=row["part_start_s"]),
        )
        if part.features is not None:
            self._room.acquire()
            if self._stopped:
                return
            request = part_request(
                row,
                part.features,
                part.language_features,
                further=part.further,
                listener=self._listener(added),
                text=None if text is None else AlignedText(text=text),
            )
            request = replace(request, detect_only=self._detect_only, decoding=self._decoding)
            added.transcript = self._engine.submit(request)
            self._waiting = [one for one in self._waiting if not one.done()]
            self._waiting.append(added.transcript)
            added.transcript.add_done_callback(self._landed)
        recording.parts.append(added)
        self._wake.set()

    def _landed(self, _: Future[PartTranscript]) -> None:
        self._room.release()
        self._wake.set()

    def _listener(self, part: PartInFlight) -> Listener:
        def listen(transcribed_s: float, said: Sequence[Segment]) -> None:
            part.said.extend(said)
            part.transcribed_s = transcribed_s
            self._wake.set()

        return listen


def _voices(measured: Iterable[Mapping[str, Any]], *, start_s: float) -> SpeechWindows | None:
    """Return the windows of a part's speech; None where speakers are not looked for."""
    voices = [row for row in measured if row["name"] in ("voices", "overlaps")]
    columns = {"overlap_spans": None} | measured_columns(voices, (), (), start_s=start_s)
    return SpeechWindows.of_columns(columns) if "voices" in columns else None
