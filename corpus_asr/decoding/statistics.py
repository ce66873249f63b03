"""How busy the slots were, and with what: counted by the scheduler, read by whoever measures.

In: what the lanes did. Out: counts and seconds. Knows nothing of what was decoded.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["encode_s", "fill_s", "prefill_s", "step_s", "wait_s"]


@dataclass(slots=True)
class EngineStatistics:
    """Counts since the engine began.

    Seconds are the host's: on a CPU they are those of the work, on a GPU those of handing the work
    over, where what the device takes beyond that shows as `wait_s`.
    """

    slots: int = 0
    """Slots of the plain lane at present."""
    halvings: int = 0
    """How often memory did not suffice, so that slots or encoder batches were halved."""
    steps: int = 0
    """Decoding steps, of all lanes."""
    slot_steps: int = 0
    """Occupied slots, summed over the steps."""
    slot_room: int = 0
    """Slots there were, summed over the steps."""
    body_slot_steps: int = 0
    """As `slot_steps`, over those steps only that had as many tasks as slots, or more."""
    body_slot_room: int = 0
    windows: int = 0
    """Windows encoded."""
    encoder_batches: int = 0
    """Runs of the encoder."""
    tokens: int = 0
    """Tokens decoded, end tokens left out."""
    refills: int = 0
    """Jobs that took the place of one that ended."""
    encode_s: float = 0.0
    fill_s: float = 0.0
    prefill_s: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0
    """Looking for ended slots and reading results."""

    @property
    def occupancy(self) -> float:
        """Mean share of the slots in use in a step; 0 before the first."""
        return self.slot_steps / max(1, self.slot_room)

    @property
    def body_occupancy(self) -> float:
        """The same while there was work enough for all slots: without the run's two ends."""
        return self.body_slot_steps / max(1, self.body_slot_room)

    def count_steps(self, steps: int, *, active: int, places: int, pending: int) -> None:
        """Note that so many steps were run with `active` of `places` in use."""
        self.steps += steps
        self.slot_steps += steps * active
        self.slot_room += steps * places
        if pending >= places:
            self.body_slot_steps += steps * active
            self.body_slot_room += steps * places

    @contextmanager
    def timing(self, stage: Stage) -> Iterator[None]:
        """Add the time the block takes to a stage."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started_s)
