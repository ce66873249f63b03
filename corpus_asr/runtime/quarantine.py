"""Keep a part that kills its worker from killing workers for ever.

A stage around the transcribe stage: parts that were begun in a worker that died are tried again
alone, one at a time with nothing else in flight, so that the next death names the culprit; a part
that has seen too many deaths becomes a failure row of kind `poison`. Knows no Ray: the board is
whatever remembers across workers.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from corpus_asr.errors import ItemError
from corpus_asr.stages.stage import OK
from corpus_asr.stages.transcribe import TranscribeStage, refuse
from corpus_asr.storage.stores.uri import redact_uri

PartKey = tuple[str, int]

# A part that was being transcribed in this many workers when they died is given up.
MAX_DEATHS = 2


class Memory(Protocol):
    """What outlives a worker."""

    def unfinished(self, parts: Sequence[PartKey]) -> list[int]:
        """Return how often each part was begun without an end."""

    def begin(self, parts: Sequence[PartKey]) -> None:
        """Note that a worker starts on these parts; returns once that is noted."""

    def end(self, parts: Sequence[PartKey]) -> None:
        """Note that a worker has these parts' results."""


class Quarantine:
    """Calls `stage` for batches of parts; safe to call from several threads."""

    def __init__(self, stage: TranscribeStage, memory: Memory) -> None:
        self._stage = stage
        self._memory = memory
        self._turns = _Turns()

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Return one RESULTS row per part, in order.

        Raises:
            EngineError: the engine cannot go on.
            CheckpointError: the weights cannot be loaded.
        """
        keys = _keys(parts)
        if keys:
            self._stage.wait_until_loaded()
        if any(self._memory.unfinished(keys)):
            with self._turns.alone():
                rows = [self._try_alone(parts.slice(row, 1)) for row in range(parts.num_rows)]
            return pa.concat_tables(rows)
        with self._turns.together():
            self._memory.begin(keys)
            results = self._stage(parts)
            self._memory.end(keys)
        return results

    def close(self) -> None:
        """Close the stage."""
        self._stage.close()

    def _try_alone(self, part: pa.Table) -> pa.Table:
        keys = _keys(part)
        deaths = max(self._memory.unfinished(keys), default=0)
        if deaths >= MAX_DEATHS:
            uri = redact_uri(part.column("uri")[0].as_py())
            error = ItemError(
                f"transcribing part {keys[0][1]} of {uri}: the worker died {deaths} times while "
                "it was being decoded, expected a result; look into the worker's log (out of "
                "memory?) and try the recording by itself with another output.uri",
                uri=uri,
                kind="poison",
                retryable=True,
            )
            return refuse(part, error, attempts=deaths)
        self._memory.begin(keys)
        results = self._stage(part)
        self._memory.end(keys)
        return _with_attempts(results, deaths + 1)


def _keys(parts: pa.Table) -> list[PartKey]:
    columns = parts.select(["recording_id", "part", "status"]).to_pylist()
    return [(row["recording_id"], row["part"]) for row in columns if row["status"] == OK]


def _with_attempts(results: pa.Table, attempts: int) -> pa.Table:
    index = results.schema.get_field_index("attempts")
    column = pa.array([attempts] * results.num_rows, type=pa.int32())
    return results.set_column(index, results.schema.field(index), column)


class _Turns:
    """Many together, or one alone; whoever wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._waiting_alone = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._inside >= 0 and self._waiting_alone == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: self._inside == 0)
            self._waiting_alone -= 1
            self._inside = -1
        try:
            yield
        finally:
            with self._changed:
                self._inside = 0
                self._changed.notify_all()
