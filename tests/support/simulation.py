"""A run in simulated time: packs go to workers, parts wait in bounded room, slots work them off.

Packs are the seconds of audio of their files, in the order of the plan; speeds are round numbers of
the size measured.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

EXTRACT_SPEED = 250.0  # one worker, times real time
FILE_S = 0.02  # opening one
PART_S = 600.0
PACKS_PER_WORKER = 2  # the one that is worked on, and one behind it
WINDOW_S = 30.0  # what a shorter part costs the engine all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    seconds: float
    least_s: float
    """No order could be faster: work over speed, and the longest file on one worker."""
    first_part_s: float
    """When the engine got its first part."""
    idle_s: float
    """How long the engine then had nothing at all to do, before the end."""


@dataclass
class _Worker:
    packs: deque[Sequence[float]] = field(default_factory=deque)
    parts: Iterator[tuple[float, float]] = field(default_factory=lambda: iter(()))
    busy: bool = False
    ready: float | None = None  # audio of a part that waits for room


def simulated(
    packs: Sequence[Sequence[float]],
    *,
    workers: int,
    slots: int = 64,
    engine_speed: float = 400.0,
    slow: int | None = None,
    slow_s: float = 0.0,
) -> Run:
    """Simulate one run; `slow` is the place of a pack whose first file takes `slow_s` to answer."""
    delayed = [[-slow_s, *pack] if at == slow else pack for at, pack in enumerate(packs)]
    run = _Simulation(delayed, workers=workers, slots=slots, engine_speed=engine_speed)
    seconds = run.run()
    files = [file_s for pack in packs for file_s in pack]
    windows_s = sum(max(part_s, WINDOW_S) for _, part_s in _parts(files))
    extract_s = sum(file_s / EXTRACT_SPEED + FILE_S for file_s in files)
    longest_s = max(files) / EXTRACT_SPEED + FILE_S
    least_s = max(windows_s / engine_speed, extract_s / workers, longest_s)
    return Run(seconds=seconds, least_s=least_s, first_part_s=run.first_part_s, idle_s=run.idle_s)


class _Simulation:
    def __init__(
        self, packs: Sequence[Sequence[float]], *, workers: int, slots: int, engine_speed: float
    ) -> None:
        self._packs = deque(packs)
        self._workers = [_Worker() for _ in range(workers)]
        self._slots, self._slot_speed = slots, engine_speed / slots
        self._room_s = 4 * slots * PART_S
        self._waiting: deque[float] = deque()
        self._active = 0
        self._held_s = 0.0
        self._events: list[tuple[float, int, int, float]] = []
        self._order = itertools.count()
        self._now = 0.0
        self.first_part_s = -1.0
        self.idle_s = 0.0

    def run(self) -> float:
        self._step()
        while self._events:
            time, _, worker, audio_s = heapq.heappop(self._events)
            if self.first_part_s >= 0 and not self._active:
                self.idle_s += time - self._now
            self._now = time
            if worker >= 0:
                self._workers[worker].ready = audio_s
                self._workers[worker].busy = False
            else:
                self._active -= 1
                self._held_s -= audio_s
            self._step()
        return self._now

    def _step(self) -> None:
        """Let everybody begin what can be begun now."""
        for index, worker in enumerate(self._workers):
            self._advance(index, worker)
        for most in range(1, PACKS_PER_WORKER + 1):
            # As Ray does: everybody has one before anybody has two.
            for index, worker in enumerate(self._workers):
                if self._packs and self._held(worker) < most:
                    worker.packs.append(self._packs.popleft())
                    self._advance(index, worker)
        while self._waiting and self._active < self._slots:
            audio_s = self._waiting.popleft()
            if self.first_part_s < 0:
                self.first_part_s = self._now
            self._active += 1
            self._at(max(audio_s, WINDOW_S) / self._slot_speed, -1, audio_s)

    @staticmethod
    def _held(worker: _Worker) -> int:
        return len(worker.packs) + (worker.busy or worker.ready is not None)

    def _advance(self, index: int, worker: _Worker) -> None:
        if worker.ready is not None:
            if self._held_s and self._held_s + worker.ready > self._room_s:
                return
            self._held_s += worker.ready
            self._waiting.append(worker.ready)
            worker.ready = None
        if worker.busy:
            return
        part = next(worker.parts, None)
        while part is None and worker.packs:
            worker.parts = _parts(worker.packs.popleft())
            part = next(worker.parts, None)
        if part is not None:
            took_s, audio_s = part
            worker.busy = True
            self._at(took_s, index, audio_s)

    def _at(self, delay_s: float, worker: int, audio_s: float) -> None:
        heapq.heappush(self._events, (self._now + delay_s, next(self._order), worker, audio_s))


def _parts(pack: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield how long each part takes to extract, and its audio; a negative length is a delay."""
    delay_s = 0.0
    for file_s in pack:
        if file_s < 0:
            delay_s = -file_s
            continue
        delay_s += FILE_S
        while file_s > 0:
            audio_s = min(PART_S, file_s)
            yield delay_s + audio_s / EXTRACT_SPEED, audio_s
            file_s -= audio_s
            delay_s = 0.0
