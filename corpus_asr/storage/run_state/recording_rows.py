"""Tables with rows per recording, derived from complete recordings after commits.

Input: sources of rows, and a folder of objects, each with all rows of its recordings. `made_of`
identifies the inputs of a row: existing rows are not recomputed. If two objects hold a recording,
after a finish that was killed, the newest is current. Rows are made of `Portion`s of recordings,
which any node can process.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import SPEAKERS
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import SUFFIX
from corpus_asr.storage.run_state.tables import OutputStore, projected

# Maximum rows per object: about ten MB of turns.
ROWS_PER_OBJECT = 250_000
# More objects than this below half that size are merged.
MAX_OBJECTS = 8

NO_IDS = pa.array([], pa.string())
_STATE = projected(SPEAKERS, ("recording_id", "made_of"))
_NUMBERED = pa.schema([_STATE.field("recording_id"), pa.field("number", pa.int32())])
MADE = _STATE.append(pa.field("number", pa.int32()))
"""Inputs (`made_of`) of recordings in an object; of several objects the last is current."""
# A recording of which a run committed something, or another attempt counts, has another key.
_WANTED = """
with keys as (
  select recording_id, parts, md5($settings || concat_ws('|', begun_by, run_id, parts, status,
      coalesce(etag, ''), coalesce(size_bytes, -1)) || {also}) as made_of
  from recorded {joined})
select recording_id, keys.made_of, parts from keys
left join (select recording_id, arg_max(made_of, number) as made_of from made group by all) latest
  using (recording_id)
where latest.made_of is distinct from keys.made_of
"""


def wanted(*, also: str = "''", joined: str = "") -> str:
    """Return SQL that selects rows of the recordings table without current rows for $settings.

    `also` is an SQL expression for further inputs, of the row and of what is `joined`.
    """
    return _WANTED.format(also=also, joined=joined)


def made_so_far(store: OutputStore, names: Sequence[str]) -> pa.Table:
    """Return as `MADE` the inputs of recordings in some objects, given in time order."""
    tables = [MADE.empty_table()]
    for number, name in enumerate(names):
        made = store.read_table(name, _STATE).group_by(_STATE.names).aggregate([])
        numbers = pa.repeat(pa.scalar(number, pa.int32()), made.num_rows)
        tables.append(made.append_column("number", numbers).cast(MADE))
    return pa.concat_tables(tables)


def newest_of(made: pa.Table) -> dict[int, pa.Array]:
    """Return recordings whose rows are current, by object number."""
    last = made.group_by("recording_id").aggregate([("number", "max")])
    numbers = last["number_max"].unique().to_pylist()
    ids = {number: last.filter(pc.equal(last["number_max"], number)) for number in numbers}
    return {number: rows["recording_id"].combine_chunks() for number, rows in ids.items()}


def rows_at(
    store: OutputStore, name: str, rows: Sequence[int], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield some rows of an outcomes object, by row number."""
    wanted, start = pa.array(rows, pa.int64()), 0
    for _, table in store.committed(columns, [name]):
        numbers = pa.array(range(start, start + len(table)), pa.int64())
        start += len(table)
        yield from table.filter(pc.is_in(numbers, value_set=wanted)).to_pylist()


def put_rows(store: OutputStore, folder: str, table: pa.Table, *, stem: str | None = None) -> None:
    """Write all rows of some recordings as one object, under `stem` if given."""
    store.write_table(f"{folder}/{stem or store.stem()}{SUFFIX}", table)


def tidy(
    store: OutputStore,
    folder: str,
    schema: pa.Schema,
    recording_ids: Iterable[pa.Array],
    *,
    rows_per_object: int | None = None,
) -> None:
    """Keep only the newest rows of these recordings, in few small objects; drop other recordings.

    Memory: the rows of one or two objects, and about 50 bytes per recording.
    """
    most = rows_per_object or ROWS_PER_OBJECT
    names = store.names(folder)
    wanted = pa.chunked_array([ids.unique() for ids in recording_ids], pa.string())
    made, small = [_NUMBERED.empty_table()], []
    for number, name in enumerate(names):
        ids = store.read_table(name, projected(_STATE, ("recording_id",)))["recording_id"]
        if 2 * len(ids) < most:
            small.append(name)
        numbers = pa.repeat(pa.scalar(number, pa.int32()), len(ids.unique()))
        made.append(pa.table([ids.unique(), numbers], schema=_NUMBERED))
    objects = pa.concat_tables(made)
    newest = newest_of(objects.filter(pc.is_in(objects["recording_id"], value_set=wanted)))
    stale = {
        name for number, name in enumerate(names)
        if len(newest.get(number, NO_IDS)) < len(made[number + 1])
    }  # fmt: skip
    rewritten = stale | {*small} if len(small) > MAX_OBJECTS else stale
    if not rewritten:
        return
    waiting: list[pa.Table] = []
    # Replacements are written before removals: readers see rows twice, but never miss one.
    for number, name in enumerate(names):
        if name in rewritten:
            table, kept = store.read_table(name, schema), newest.get(number, NO_IDS)
            waiting.append(table.filter(pc.is_in(table["recording_id"], value_set=kept)))
            if sum(len(rows) for rows in waiting) >= most:
                put_rows(store, folder, pa.concat_tables(waiting))
                waiting = []
    if any(len(rows) for rows in waiting):
        put_rows(store, folder, pa.concat_tables(waiting))
    store.remove_all(name for name in names if name in rewritten)


RECORDINGS_PER_PORTION = 1_000  # speaker clustering takes a core a minute, texts a few seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Complete recordings as work for one task."""

    recordings: Mapping[str, tuple[str, int]]
    """Source key (`made_of`) and number of parts of each recording, by ID."""
    rows: Mapping[str, Sequence[int]]
    """Row numbers of the parts, by object name."""
    earlier: Sequence[str] = ()
    """Objects with earlier results of these recordings, if requested."""
    named: Mapping[str, int] = field(default_factory=dict)
    """Highest speaker number that people named in each recording, if requested."""
    numbers: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Numbers of speakers from the manifest, if requested."""


@dataclass(frozen=True, slots=True)
class LostPortion:
    """A portion during which the worker process, or its machine, died."""

    portion: Any
    error: Exception


_PLACES = """
select recording_id, made_of, wanted.parts as parts,
  list({{name: name, row: row}} order by id) as places
from parts join objects using (object) join {wanted} as wanted using (recording_id)
group by all order by min(id)
"""


def portions_of(tables: RunTables, wanted: str, *, at_once: int | None = None) -> Iterator[Portion]:
    """Yield portions of a table that has `recording_id`, `made_of` and `parts`."""
    batches = tables.batches(_PLACES.format(wanted=wanted), rows=at_once or RECORDINGS_PER_PORTION)
    return (_portion(batch.to_pylist()) for batch in batches)


def _portion(batch: Sequence[Mapping[str, Any]]) -> Portion:
    rows: dict[str, list[int]] = {}
    for recording in batch:
        for place in recording["places"]:
            rows.setdefault(place["name"], []).append(place["row"])
    recordings = {
        recording["recording_id"]: (recording["made_of"], recording["parts"]) for recording in batch
    }
    return Portion(recordings=recordings, rows=rows)
