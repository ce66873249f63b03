"""Streams of a pretended GPU: an error where one uses what another may still be working on.

The pretended GPU computes at once and in order, so values cannot show a wait that is missing. Here
each stream counts what is queued on it, and events and waits hand on how much of which stream is
done by then: what a tensor was last used for must be among it. Source: Mattern 1989, "Virtual Time
and Global States of Distributed Systems" (vector clocks).
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

Clock = dict["Stream", int]
"""How much of what was queued on each stream is done."""


class Stream:
    """Stands for `torch.cuda.Stream`."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = torch.device("cuda", 0) if device is None else torch.device(device)
        self.queued = 0
        self.known: Clock = {}
        """Of other streams, what was waited for."""

    def clock(self) -> Clock:
        """What is done once all that is queued here now is."""
        return {**self.known, self: self.queued}

    def wait_for(self, clock: Clock) -> None:
        """Let what is queued from here on begin after that."""
        merge(self.known, clock)

    def wait_stream(self, other: "Stream") -> None:
        """Wait, on the device, for what is queued on another one now."""
        self.wait_for(other.clock())

    def wait_event(self, event: Any) -> None:
        """Wait, on the device, for an event."""
        self.wait_for(event.clock)


def merge(clock: Clock, other: Clock) -> None:
    """Add what another clock knows."""
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


class RaceError(RuntimeError):
    """A stream would use memory that another may not be done with."""


@dataclass(slots=True)
class Stored:
    """A piece of memory, who holds it, and what was last done to it."""

    size: int
    users: int = 0
    pool: Stream | None = None
    """Where it was allocated: to what is allocated there later it is given, once it is free."""
    writer: tuple[Stream, int] | None = None
    readers: Clock = field(default_factory=dict)


class Streams:
    """Streams of all devices."""

    def __init__(self) -> None:
        self.races: list[str] = []
        self.host: Clock = {}
        """What the host has waited for."""
        self._all: list[Stream] = []
        self._defaults: dict[int, Stream] = {}
        self._mine = threading.local()
        self._freed: dict[Stream, list[tuple[Stream, int]]] = {}

    def current(self, index: int) -> Stream:
        """The stream that this thread queues work on."""
        chosen: dict[int, Stream] = getattr(self._mine, "chosen", {})
        return chosen[index] if index in chosen else self.default(index)

    def default(self, index: int) -> Stream:
        """The stream of a device that nobody chose."""
        if index not in self._defaults:
            self._defaults[index] = self.new(torch.device("cuda", index))
        return self._defaults[index]

    def choose(self, index: int, stream: Stream) -> Stream:
        """Queue work on another stream; returns the one before."""
        before = self.current(index)
        self._mine.chosen = {**getattr(self._mine, "chosen", {}), index: stream}
        return before

    def new(self, device: Any = None, priority: int = 0) -> Stream:
        """Make another stream."""
        self._all.append(Stream(device, priority))
        return self._all[-1]

    def wait_on_host(self, clock: Clock | None) -> None:
        """Let the host wait for that, or for what is queued on any stream."""
        clocks = [one.clock() for one in self._all] if clock is None else [clock]
        for known in clocks:
            merge(self.host, known)

    def is_done(self, clock: Clock) -> bool:
        """Whether the host has waited for all that."""
        return all(self.host.get(stream, 0) >= count for stream, count in clock.items())

    def use(self, index: int, read: Iterable[Stored], written: Iterable[Stored]) -> None:
        """Queue an operation on the current stream."""
        stream = self.current(index)
        stream.queued += 1
        for one in read:
            self._check(stream, one.writer, "reads what another wrote")
            one.readers[stream] = stream.queued
        for one in written:
            self._check(stream, one.writer, "overwrites what another wrote")
            for reader in one.readers.items():
                self._check(stream, reader, "overwrites what another reads")
            one.writer, one.readers = (stream, stream.queued), {}

    def allocate(self, index: int, stored: Stored) -> None:
        """Let the current stream make something, perhaps where something else was before."""
        stream = self.current(index)
        for pending in self._freed.pop(stream, ()):
            self._check(stream, pending, "is given memory that another uses")
        stored.pool, stored.writer = stream, (stream, stream.queued)

    def free(self, stored: Stored) -> None:
        """Note what other streams still do with memory that nobody holds any more."""
        pool = stored.pool
        if pool is None:
            return
        uses = [*stored.readers.items(), *([stored.writer] if stored.writer else [])]
        left = [use for use in uses if use[0] is not pool]
        self._freed.setdefault(pool, []).extend(left)

    def _check(self, stream: Stream, done: tuple[Stream, int] | None, what: str) -> None:
        if done is None or done[0] is stream:
            return
        other, count = done
        if max(stream.known.get(other, 0), self.host.get(other, 0)) < count:
            self.races.append(what)
            raise RaceError(f"a stream {what}: wait for an event of that first")
