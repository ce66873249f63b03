"""Second try of uncommitted recordings: one recording at a time, in one process.

Where a worker ends, its run goes on with all other work and leaves out what that worker had. What
is missing is what a plan made at that moment would have. Each recording of it is given alone to a
worker, and again to another one; with whichever two workers end is a failure of kind `poison`.
Hooks do the same with recordings of portions that were lost. Knows no Ray.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import Tally
from corpus_asr.config.run import DEFAULT_OPTIONS, RunOptions
from corpus_asr.errors import ItemError
from corpus_asr.runtime.commit import COUNTED, tally_of
from corpus_asr.schemas import FILE_COLUMNS, FILES, PACK_FILE, PACKS, RESULTS
from corpus_asr.stages.parts import NOTHING_SAID, failure_fields
from corpus_asr.storage.run_state.recording_rows import LostPortion
from corpus_asr.storage.run_state.run_tables import FAILED, VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

T = TypeVar("T")
R = TypeVar("R")

POISON = "poison"


def each_alone(
    do: Callable[[Iterable[T]], Iterable[R | LostPortion]],
    items: Iterable[T],
    *,
    most_in_a_row: float = float("inf"),
) -> Iterator[R | LostPortion]:
    """Yield results of items that may end a process, or their second `LostPortion`.

    Args:
        do: gives each to a process that has nothing else to do, and yields what comes of it.
        items: what is given; those that are lost are given once more.
        most_in_a_row: after so many that were lost in a row no other is given.
    """
    lost: list[T] = []
    in_a_row = 0

    def until_many_are_lost(waiting: Iterable[T]) -> Iterator[T]:
        nonlocal in_a_row
        in_a_row = 0
        yield from itertools.takewhile(lambda _: in_a_row < most_in_a_row, waiting)

    for is_last, waiting in ((False, items), (True, lost)):
        for outcome in do(until_many_are_lost(waiting)):
            in_a_row = in_a_row + 1 if isinstance(outcome, LostPortion) else 0
            if isinstance(outcome, LostPortion) and not is_last:
                lost.append(outcome.portion)
            else:
                yield outcome


@dataclass(slots=True, kw_only=True)
class RetriedRecording:
    """A recording to retry, with its earlier failures."""

    file: dict[str, Any]
    """Its row of PACKS."""
    devices: set[Hashable] = field(default_factory=set)
    """Those on which a worker ended with it."""
    reasons: list[str] = field(default_factory=list)
    """Reasons why these ended."""

    @property
    def attempt(self) -> int:
        """Number of the present try of its parts: the first was among others."""
        return 2 + len(self.reasons)

    def add_done(self, parts: Iterable[int]) -> None:
        """Note parts of it that are transcribed."""
        self.file["done_parts"] = sorted({*self.file["done_parts"], *parts})

    def pack(self) -> pa.Table:
        """Return a PACKS row of what is not done of it."""
        row = {"pack_id": 0, "pack_bytes": self.file["size_bytes"] or 0, "files": [self.file]}
        return pa.Table.from_pylist([row], schema=PACKS)

    def poison(self) -> pa.Table:
        """Return the RESULTS row that gives it up, of its first part that is not done."""
        part = next(part for part in itertools.count() if part not in self.file["done_parts"])
        reasons = "; ".join(dict.fromkeys(self.reasons))
        message = (
            f"transcribing {redact_uri(self.file['uri'])} from part {part} on: found "
            f"{len(self.reasons)} deaths of workers on it alone ({reasons}), expected a result; "
            "check their logs for lack of memory, and transcribe it alone with another output.uri"
        )
        error = ItemError(message, kind=POISON, retryable=True)
        row = {name: self.file[name] for name in FILE_COLUMNS} | NOTHING_SAID
        row |= failure_fields(error, stage="transcribe")
        row |= {"part": part, "last_part": True, "attempts": self.attempt - 1}
        return pa.Table.from_pylist([row], schema=RESULTS)


def recordings_left(
    store: OutputStore,
    packs: Iterable[pa.Table],
    *,
    run_id: str,
    options: RunOptions = DEFAULT_OPTIONS,
) -> tuple[list[RetriedRecording], Tally]:
    """Return the files of PACKS rows that are not done, as a plan made now would, and its counts.

    Args:
        store: the output folder.
        packs: what was planned.
        run_id: the run whose failures are not retried, and whose results are counted.
        options: those that it was planned with.
    """
    store.relist()
    recordings: list[RetriedRecording] = []
    columns = tuple({*VERSION_COLUMNS, *COUNTED})
    with RunTables(store, columns=columns, opened=FAILED) as tables:
        failed = tables.table(_FAILED_NOW, run_id=run_id)["recording_id"].combine_chunks()
        for pack in packs:
            files = pa.Table.from_struct_array(pc.list_flatten(pack["files"])).select(FILES.names)
            is_failed = pc.is_in(files["recording_id"], value_set=failed)
            for chosen, retry in ((is_failed, None), (pc.invert(is_failed), options.retry)):
                for batch in files.filter(chosen).to_batches():
                    remaining = tables.remaining(batch, retry, leave_alone=options.leave_alone)
                    rows = remaining.select([field.name for field in PACK_FILE]).to_pylist()
                    recordings += (RetriedRecording(file=row) for row in rows)
        return recordings, tally_of(tables.table(_DONE_NOW, run_id=run_id))


# A worker that began again may have committed a part a second time.
_DONE_NOW = "select distinct on (recording_id, part) * from outcomes where run_id = $run_id"
_FAILED_NOW = """
select distinct recording_id from outcomes where run_id = $run_id and status = 'failed'
"""
