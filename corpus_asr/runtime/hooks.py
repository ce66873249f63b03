"""Users' functions, given committed transcripts on workers: each recording once, or why not.

In: recordings that a hook has not been given, in portions. Out: rows of its table. A portion's
segments go to the function in batches of whole recordings; where a batch fails, its recordings are
tried one by one. Functions may be called again for what a killed run had not committed.
"""

import functools
import inspect
import itertools
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.hooks import KEYS, ROW_KEYS, HookSettings
from corpus_asr.config.run import RunConfig
from corpus_asr.edits.corrected_segments import SEEN_SEGMENTS, SeenSegments
from corpus_asr.edits.corrections import Corrections
from corpus_asr.errors import ConfigError
from corpus_asr.families.registry import resolve
from corpus_asr.logs import event
from corpus_asr.runtime.second_try import each_alone
from corpus_asr.schemas import SEGMENTS
from corpus_asr.segments import SpeakerTurn
from corpus_asr.speakers.turns import Timeline
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.hook_rows import (
    HookPortion,
    folder_of,
    left_of,
    remove_other_columns,
    rows_per_object,
    schema_of,
)
from corpus_asr.storage.run_state.recording_rows import LostPortion, put_rows, tidy
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.speaker_turns import read_turns
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

Function = Callable[[pa.Table], Any]
# Most results of slow functions, such as requests to a service, that a lost machine costs.
_COMMIT_EVERY_S = 30.0
_FIRST_WAIT_S = 0.5  # doubled with each attempt
# A portion of which so many recordings failed is not waited for: the service is down, say.
_PATIENCE = 3
_MESSAGE_CHARS = 2_000
# In a row: a function that ends every process is not given all recordings.
_MOST_DEATHS = 10
DIED = "process_died"
"""Error of a recording with which a worker's process ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookCounts:
    """Counts of the recordings of a hook."""

    recordings: int = 0
    failed: int = 0
    left: int = 0
    """Not tried, as the run was to end."""

    @property
    def failed_fraction(self) -> float:
        """Fraction of failures among processed recordings; 0 if there are none."""
        return self.failed / (self.recordings + self.failed) if self.failed else 0.0

    @property
    def words(self) -> str:
        """The counts as text."""
        if not (self.recordings or self.failed or self.left):
            return "nothing to do"
        remainder = f", {self.left:,} left to the next run" if self.left else ""
        failed = f", {self.failed:,} failed: see the log, and error_message" if self.failed else ""
        return f"{counted(self.recordings, 'recording')}{remainder}{failed}"


Workers = Callable[
    [Callable[[HookPortion], HookCounts], Iterable[HookPortion]], Iterable[HookCounts | LostPortion]
]
"""Have portions of work done elsewhere, in any order, and yield their results; also of those
that processes end with."""


def check_hooks(config: RunConfig) -> None:
    """Check that a job's hook functions can be imported and accept segments and options.

    Raises:
        ConfigError: one of them fails the check.
    """
    for hook in config.hooks:
        _check_function(hook)


def _check_function(hook: HookSettings) -> None:
    function = _found(hook.name, hook.function)
    is_class = isinstance(function, type)
    try:
        signature = inspect.signature(function)
    except ValueError:  # native functions may lack a signature
        return
    try:
        signature.bind(*(() if is_class else (None,)), **hook.options)
    except TypeError as error:
        takes = "its options" if is_class else "segments and its options"
        raise ConfigError(
            f"calling {hook.function} for the hook {hook.name}: found the signature {signature}, "
            f"expected to take {takes} ({error}); correct it, or hooks.{hook.name}.options"
        ) from error
    if isinstance(function, type) and not any(
        "__call__" in vars(base) for base in function.__mro__
    ):
        raise ConfigError(
            f"calling {hook.function} for the hook {hook.name}: found no __call__ of its objects, "
            "expected one; write it"
        )


def _found(name: str, function: str) -> Callable[..., Any]:
    try:
        target = resolve(function)
    except Exception as error:  # raised by a user's module
        raise ConfigError(
            f"importing {function} for the hook {name}: {type(error).__name__}: {error}; install "
            f"its package on every machine, or correct hooks.{name}.function"
        ) from error
    if not callable(target):
        raise ConfigError(
            f"importing {function} for the hook {name}: found {target!r:.200}, expected a "
            "function, or a class of callable objects; correct its name"
        )
    hook_function: Callable[..., Any] = target
    return hook_function


@functools.cache
def _function(name: str, function: str, options: str) -> Function:
    """Return the callable of a hook; a class has one object per process, with what it loaded."""
    target, arguments = _found(name, function), json.loads(options)
    return (
        target(**arguments) if isinstance(target, type) else functools.partial(target, **arguments)
    )


def run_hook(
    store: OutputStore,
    hook: HookSettings,
    *,
    workers: Workers | None = None,
    ends_at_s: float | None = None,
) -> HookCounts:
    """Give a hook the complete recordings of which it has no rows made of the same.

    May be repeated after being killed anywhere. `workers` have portions done elsewhere; after
    `ends_at_s`, by `time.time()`, no recording is given any more.
    """
    remove_other_columns(store, hook)
    corrections = Corrections.load(store)
    work = functools.partial(_do_portion, store, hook, corrections, ends_at_s)
    do: Workers = map if workers is None else workers
    with left_of(store, hook, corrections.editions) as (number, portions):
        portions_in_time = itertools.takewhile(lambda _: not _ended(ends_at_s), portions)
        outcomes = [*do(work, portions_in_time)]
    counts = [outcome for outcome in outcomes if isinstance(outcome, HookCounts)]
    portions_lost = [outcome.portion for outcome in outcomes if isinstance(outcome, LostPortion)]
    if lost := {name for portion in portions_lost for name in portion.portion.recordings}:
        counts += _one_by_one(
            store, hook, corrections, lost, lambda single_portions: do(work, single_portions)
        )
    done = sum(count.recordings for count in counts)
    failed = sum(count.failed for count in counts)
    if not store.names(folder_of(hook.name)):  # every reader finds a table's columns
        put_rows(store, folder_of(hook.name), schema_of(hook).empty_table())
    ids = (batch["recording_id"] for batch in store.outcomes(("recording_id",)))
    rows = rows_per_object(hook)
    tidy(store, folder_of(hook.name), schema_of(hook), ids, rows_per_object=rows)
    total = HookCounts(recordings=done, failed=failed, left=number - done - failed)
    if number:
        event(_LOG, logging.WARNING if failed else logging.INFO, "hook_done", hook=hook.name,
              recordings=done, failed=failed, left=total.left)  # fmt: skip
    return total


def _one_by_one(
    store: OutputStore,
    hook: HookSettings,
    corrections: Corrections,
    lost: Collection[str],
    do: Callable[[Iterable[HookPortion]], Iterable[HookCounts | LostPortion]],
) -> Iterator[HookCounts]:
    """Find which recordings of lost portions it was that processes ended with."""
    with left_of(store, hook, corrections.editions) as (_, portions):
        single_portions = [
            recording
            for portion in portions
            for recording in portion.recordings()
            if recording.is_among(lost)
        ]
    yield HookCounts(recordings=len(lost) - len(single_portions))  # they were put before
    for outcome in each_alone(do, single_portions, most_in_a_row=_MOST_DEATHS):
        yield _died(store, hook, outcome.portion) if isinstance(outcome, LostPortion) else outcome


def _ended(ends_at_s: float | None) -> bool:
    return ends_at_s is not None and time.time() >= ends_at_s


def _do_portion(
    store: OutputStore,
    hook: HookSettings,
    corrections: Corrections,
    ends_at_s: float | None,
    work: HookPortion,
) -> HookCounts:
    """Pass a hook the recordings of a portion, and write its results."""
    calls = _HookCaller(hook)
    given_segments = _GivenSegments(store, work, corrections, words=hook.words)
    rows = _RowBuffer(store, hook, work)
    turns: Mapping[str, Sequence[SpeakerTurn]] | None = None
    silent = dict(work.portion.recordings)
    failed = 0
    for segments in given_segments.batches(rows=hook.batch_segments):
        if _ended(ends_at_s):
            break
        if turns is None:
            turns = read_turns(store, work.portion.recordings, names=work.turns) or {}
        for ids, answer in calls.of(_spoken(segments, turns)):
            for recording_id in ids:
                silent.pop(recording_id)
            if isinstance(answer, pa.Table):
                rows.add(ids, answer, given_segments.uris)
            else:
                failed += len(ids)
                rows.add_failure(ids, type(answer).__name__, str(answer), given_segments.uris)
    else:
        rows.add([*silent], None, given_segments.uris)
        silent = {}
    rows.put()
    done = len(work.portion.recordings) - failed - len(silent)
    return HookCounts(recordings=done, failed=failed)


def _died(store: OutputStore, hook: HookSettings, work: HookPortion) -> HookCounts:
    """Record a failure of a recording whose worker process died."""
    rows = _RowBuffer(store, hook, work)
    message = f"the process of {hook.function} died; see the logs of Ray's workers"
    rows.add_failure([*work.portion.recordings], DIED, message, work.uris(store))
    rows.put()
    return HookCounts(failed=1)


_GIVEN = (
    "recording_id", "uri", "channel", "part", "segment", "start_s", "end_s", "language", "text",
    "confidence", "words",
)  # fmt: skip
"""Segment columns passed to functions, including those of manual corrections."""
_GIVEN_ROWS = """
(select outcomes.* from outcomes join objects using (object) semi join places using (name, row)
 semi join ids using (recording_id))
"""
_BY_PEOPLE = ("corrected", "checked", "speaker")


class _GivenSegments:
    """Segments of a portion's recordings with corrections applied, and their speakers."""

    def __init__(
        self, store: OutputStore, work: HookPortion, corrections: Corrections, *, words: bool
    ) -> None:
        self._store, self._work, self._corrections = store, work, corrections
        self._columns = tuple(name for name in _GIVEN if words or name != "words")
        self.schema = pa.schema([
            *(SEGMENTS.field(name) for name in self._columns),
            *(SEEN_SEGMENTS.field(name) for name in _BY_PEOPLE),
        ])  # fmt: skip
        self.uris: dict[str, str] = {}
        """URI of each recording, available once `batches` has started."""

    def batches(self, *, rows: int) -> Iterator[pa.Table]:
        """Yield tables of whole recordings with at least `rows` segments in all."""
        work = self._work.portion
        names, columns = [*work.rows], (*VERSION_COLUMNS, "uri")
        with RunTables(self._store, columns=columns, names=names) as tables:
            places = [{"name": name, "row": row} for name in names for row in work.rows[name]]
            tables.add("places", pa.Table.from_pylist(places, _PLACE))
            ids = pa.array(work.recordings, pa.string())
            tables.add("ids", pa.table({"recording_id": ids}))
            uris = f"select recording_id, any_value(uri) from {_GIVEN_ROWS} group by all"
            self.uris |= dict(tables.rows(uris))
            seen = SeenSegments(self._store, tables, self._corrections)
            tables.add("gathered", self.schema.empty_table())
            for batch in seen.batches(self._columns, of=_GIVEN_ROWS):
                segments = batch.select(self.schema.names).filter(_SAID)
                tables.execute("insert into gathered from arriving", segments)
            waiting, count = list[pa.Table](), 0
            for segments in self._recordings(tables, at_once=max(rows, _LEAST_AT_ONCE)):
                begins = waiting and segments["recording_id"][0] != waiting[-1]["recording_id"][0]
                if begins and count >= rows:
                    yield pa.concat_tables(waiting).combine_chunks()
                    waiting, count = [], 0
                waiting.append(segments)
                count += segments.num_rows
            if waiting:
                yield pa.concat_tables(waiting).combine_chunks()

    def _recordings(self, tables: RunTables, *, at_once: int) -> Iterator[pa.Table]:
        """Yield segments of one recording per table; long recordings take several tables."""
        for batch in tables.batches(_IN_ORDER, rows=at_once):
            table = pa.table(batch).cast(self.schema)
            runs = pc.run_end_encode(table["recording_id"].combine_chunks()).run_ends.to_pylist()
            for start, end in pairwise([0, *runs]):
                yield table.slice(start, end - start)


_LEAST_AT_ONCE = 2_000  # minimum number of segments read, even if fewer are passed per call
# Segments removed by a person are not passed, as readers do not see them either.
_SAID = ~(pc.field("corrected") & (pc.utf8_trim_whitespace(pc.field("text")) == ""))
_PLACE = pa.schema([("name", pa.string()), ("row", pa.int32())])
_IN_ORDER = "from gathered order by recording_id, start_s, channel, part, segment"


class _HookCaller:
    """Calls a hook's function, for recordings together, or one by one where that fails."""

    def __init__(self, hook: HookSettings) -> None:
        self._hook = hook
        self._failed = 0

    def of(self, segments: pa.Table) -> Iterator[tuple[list[str], pa.Table | BaseException]]:
        """Yield recording IDs with the function's result or exception."""
        ids = segments["recording_id"].unique().to_pylist()
        if len(ids) > 1:
            answer = self._called(segments)
            if isinstance(answer, pa.Table):
                yield ids, answer
                return
        for recording_id in ids:
            recording_segments = segments.filter(pc.equal(segments["recording_id"], recording_id))
            yield [recording_id], self._tried(recording_segments)

    def _tried(self, segments: pa.Table) -> pa.Table | BaseException:
        attempts = self._hook.attempts if self._failed < _PATIENCE else 1
        for attempt in range(attempts):
            if attempt:
                time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
            answer = self._called(segments)
            if isinstance(answer, pa.Table):
                self._failed = 0
                return answer
        self._failed += 1
        # Only the first few of consecutive failures are logged with a traceback.
        shown = without_secrets(repr(answer))[:_MESSAGE_CHARS]
        event(_LOG, logging.ERROR, "hook_failed", hook=self._hook.name,
              recording_id=segments["recording_id"][0].as_py(), error=shown,
              exc_info=answer if self._failed <= _PATIENCE else None)  # fmt: skip
        return answer

    def _called(self, segments: pa.Table) -> pa.Table | BaseException:
        hook = self._hook
        try:
            function = _function(hook.name, hook.function, json.dumps(hook.options))
            return _checked(hook, segments, function(segments))
        except (Exception, SystemExit) as error:  # raised by a user's function
            return error


def _checked(hook: HookSettings, segments: pa.Table, returned: Any) -> pa.Table:
    """Return the result of a function with the row keys, cast to its columns."""
    table = _as_table(hook, returned)
    if missing := [name for name in hook.columns if name not in table.schema.names]:
        raise _wrong(hook, f"no column {', '.join(missing)}", f"{', '.join(hook.columns)}")
    if hook.per == "segment":
        table = table.take(pa.array(_places(hook, segments, table), pa.int64()))
        keys = segments.select(KEYS["segment"])
    else:
        if "recording_id" not in table.schema.names:
            raise _wrong(hook, "no column recording_id", "one, for rows per recording")
        ids = table["recording_id"].cast(pa.string())
        is_foreign = pc.invert(pc.is_in(ids, value_set=segments["recording_id"].unique()))
        if table.num_rows and pc.any(pc.fill_null(is_foreign, True)).as_py():
            raise _wrong(hook, "an unknown recording_id", "those of its segments")
        keys = pa.table({"recording_id": ids})
    columns = dict(zip(keys.schema.names, keys.columns, strict=True))
    schema = schema_of(hook)
    for name, kind in hook.columns.items():
        try:
            columns[name] = table[name].cast(schema.field(name).type)
        except pa.ArrowException as error:
            raise _wrong(hook, f"{name} of type {table[name].type} ({error})", kind) from error
    return pa.table(columns)


def _places(hook: HookSettings, segments: pa.Table, rows: pa.Table) -> list[int]:
    """Return the row index of a function's result for each segment."""
    names = [name for name in ROW_KEYS if name in rows.schema.names]
    if not names:
        raise _wrong(hook, "no keys", f"the columns {', '.join(ROW_KEYS)} of its segments")
    expected = segments.select(names)
    try:
        returned = rows.select(names).cast(expected.schema)
    except (pa.ArrowException, ValueError) as error:
        raise _wrong(hook, f"other keys ({error})", "those of its segments") from error
    of_segments, of_rows = (
        [*zip(*(column.to_pylist() for column in table.columns), strict=True)]
        for table in (expected, returned)
    )
    places = {key: place for place, key in enumerate(of_rows)}
    if len({*of_segments}) < len(of_segments):
        raise _wrong(hook, f"only the keys {', '.join(names)}", f"{', '.join(ROW_KEYS)}")
    if len(of_rows) != len(of_segments) or places.keys() != {*of_segments}:
        counts = f"{len(of_rows)} rows of {len(places.keys() & {*of_segments})} segments"
        raise _wrong(hook, counts, f"one for each of {len(of_segments)} segments")
    return [places[key] for key in of_segments]


def _as_table(hook: HookSettings, returned: Any) -> pa.Table:
    try:
        if hasattr(returned, "__arrow_c_stream__"):  # pyarrow, pandas or polars
            return pa.table(returned)
        if isinstance(returned, Mapping):
            return pa.table({name: _values(column) for name, column in returned.items()})
        if isinstance(returned, list):
            names = {name: None for row in returned for name in row}
            rows = [{name: row.get(name) for name in names} for row in returned]
            # Without rows the columns are unknown.
            return pa.Table.from_pylist(rows) if rows else schema_of(hook).empty_table()
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise _wrong(hook, f"no table ({error})", _FORMS) from error
    raise _wrong(hook, f"a {type(returned).__name__}", _FORMS)


def _values(column: Any) -> Any:
    if isinstance(column, str):
        raise TypeError(f"{column!r:.50} is no column")
    # A matrix has one vector per row.
    return list(column) if getattr(column, "ndim", 1) == 2 else column


_FORMS = "an Arrow table or data frame, a dictionary of columns, or a list of rows"


def _wrong(hook: HookSettings, found: str, expected: str) -> ValueError:
    return ValueError(f"{hook.function} returned {found}, expected {expected}")


class _RowBuffer:
    """Rows of a hook's table, put in objects of whole recordings."""

    def __init__(self, store: OutputStore, hook: HookSettings, work: HookPortion) -> None:
        self._store, self._work = store, work
        self._folder, self._schema = folder_of(hook.name), schema_of(hook)
        self._most = rows_per_object(hook)
        self._waiting: list[pa.Table] = []
        self._put_s = time.monotonic()

    def add(self, ids: Sequence[str], found: pa.Table | None, uris: Mapping[str, str]) -> None:
        """Add the rows of recordings; recordings without rows get one row of nulls."""
        told = {*()} if found is None else {*found["recording_id"].to_pylist()}
        if found is not None and found.num_rows:
            self._take(found, found["recording_id"].to_pylist(), uris)
        if quiet := [recording_id for recording_id in ids if recording_id not in told]:
            self._take(pa.table({"recording_id": pa.array(quiet, pa.string())}), quiet, uris)
        if self._num_rows >= self._most or time.monotonic() - self._put_s >= _COMMIT_EVERY_S:
            self.put()

    def add_failure(
        self, ids: Sequence[str], kind: str, message: str, uris: Mapping[str, str]
    ) -> None:
        """Add a failure row for each recording that has no other rows."""
        rows = [
            {"recording_id": recording_id, "uri": uris[recording_id], "error_kind": kind,
             "error_message": without_secrets(message)[:_MESSAGE_CHARS]}
            for recording_id in ids if recording_id not in self._work.known
        ]  # fmt: skip
        if rows:
            self._waiting.append(pa.Table.from_pylist(rows, self._schema))

    def put(self) -> None:
        """Write the buffered rows."""
        if self._waiting:
            put_rows(self._store, self._folder, pa.concat_tables(self._waiting))
        self._waiting, self._put_s = [], time.monotonic()

    @property
    def _num_rows(self) -> int:
        return sum(table.num_rows for table in self._waiting)

    def _take(self, rows: pa.Table, ids: Sequence[str], uris: Mapping[str, str]) -> None:
        made = self._work.portion.recordings
        columns = dict(zip(rows.schema.names, rows.columns, strict=True)) | {
            "uri": pa.array([uris[recording_id] for recording_id in ids], pa.string()),
            "made_of": pa.array([made[recording_id][0] for recording_id in ids], pa.string()),
        }
        self._waiting.append(pa.table([
            columns.get(field.name, pa.nulls(len(ids), field.type)) for field in self._schema
        ], schema=self._schema))  # fmt: skip


def _spoken(segments: pa.Table, turns: Mapping[str, Sequence[SpeakerTurn]]) -> pa.Table:
    """Return segments with the main speaker of each, unless a person named one."""
    if not turns:
        return segments
    timelines: dict[tuple[str, int | None], Timeline] = {}
    speakers = []
    columns = ("recording_id", "channel", "start_s", "end_s", "speaker")
    for recording_id, channel, start_s, end_s, speaker in zip(
        *(segments[name].to_pylist() for name in columns), strict=True
    ):
        if (recording_id, channel) not in timelines:
            recording_turns = [
                turn for turn in turns.get(recording_id, ()) if turn.channel == channel
            ]
            timelines[recording_id, channel] = Timeline(recording_turns)
        speakers.append(
            timelines[recording_id, channel].speaker(start_s, end_s) if speaker is None else speaker
        )
    return with_column(segments, "speaker", speakers)
