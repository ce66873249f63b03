"""A system clock that is wrong by hours, and by other hours a moment later.

    with wrong_clock() as clock:
        clock.ahead_s = -5 * 3600

Only what the package asks of the wall clock is wrong: waiting goes by another one.
"""

import datetime
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from corpus_asr.pipelines import driver
from corpus_asr.runtime import progress
from corpus_asr.storage.run_state import finish, lock, prune, run_files

DAY_S = 24 * 3600.0
_MODULES = (driver, progress, finish, lock, prune, run_files)


@dataclass
class WrongClock:
    """How wrong the clock is; change it at any time."""

    ahead_s: float = 0.0
    jumps: random.Random | None = None
    """Draws how wrong it is for about every third time it is asked."""
    asked: int = field(default=0, init=False)

    def error_s(self) -> float:
        self.asked += 1
        if self.jumps is not None and self.jumps.random() < 0.3:
            self.ahead_s = self.jumps.uniform(-DAY_S, DAY_S)
        return self.ahead_s


@contextmanager
def wrong_clock(*, seed: int | None = None) -> Iterator[WrongClock]:
    """Have the clock be wrong while the context is open; with a seed, it jumps by itself."""
    clock = WrongClock(jumps=None if seed is None else random.Random(seed))
    time_ns, time_s = time.time_ns, time.time

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            now = datetime.datetime.now(tz)
            return now + datetime.timedelta(seconds=clock.error_s())

    def wrong_ns() -> int:
        return time_ns() + round(1e9 * clock.error_s())

    def wrong_s() -> float:
        return time_s() + clock.error_s()

    wrong = SimpleNamespace(
        datetime=Wrong, UTC=datetime.UTC, timedelta=datetime.timedelta, tzinfo=datetime.tzinfo
    )
    patches: list[Any] = [mock.patch.object(module, "datetime", wrong) for module in _MODULES]
    patches += [
        mock.patch.object(time, "time_ns", wrong_ns),
        mock.patch.object(time, "time", wrong_s),
    ]
    for patch in patches:
        patch.start()
    try:
        yield clock
    finally:
        for patch in patches:
            patch.stop()
