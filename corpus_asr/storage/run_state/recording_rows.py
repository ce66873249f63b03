"""Tables with rows per recording, derived from complete recordings after commits.

Input: sources of rows, and a folder of objects, each with all rows of its recordings. `made_of`
identifies the inputs of a row: existing rows are not recomputed. If two objects hold a recording,
after a finish that was killed, the newest is current.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import SPEAKERS
from corpus_asr.storage.run_state.tables import SUFFIX, OutputStore, projected

# Maximum rows per object: about ten MB of turns.
ROWS_PER_OBJECT = 250_000
# More objects than this below half that size are merged.
MAX_OBJECTS = 8

Ids = npt.NDArray[np.uint64]
_NO_IDS: Ids = np.zeros(0, dtype=np.uint64)
_STATE = projected(SPEAKERS, ("recording_id", "made_of"))
MADE = _STATE.append(pa.field("number", pa.int32()))
"""Inputs (`made_of`) of recordings in an object; of several objects the last is current."""
_WANTED = """
with keys as (
  select recording_id, count(*) as parts, md5($settings || string_agg(concat_ws('|', part, run_id,
      status, coalesce(etag, ''), coalesce(size_bytes, -1)), '/' order by part)
      || {also}) as made_of
  from parts join chosen using (recording_id) {joined}
  join (select version, whole from versions) on version = counting
  where whole group by recording_id)
select recording_id, keys.made_of, parts from keys
left join (select recording_id, arg_max(made_of, number) as made_of from made group by all) latest
  using (recording_id)
where latest.made_of is distinct from keys.made_of
"""


def wanted(*, also: str = "''", joined: str = "") -> str:
    """Return SQL that selects complete recordings without current rows for $settings.

    `also` is an SQL expression for further inputs, of their parts and of what is `joined`.
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

    Memory: the rows of one or two objects, and about 40 bytes per recording.
    """
    most = rows_per_object or ROWS_PER_OBJECT
    names = store.names(folder)
    wanted = np.unique(np.concatenate([_NO_IDS, *(_numbers(ids) for ids in recording_ids)]))
    owners, small = [], []
    for name in names:
        ids = store.read_table(name, projected(_STATE, ("recording_id",)))["recording_id"]
        owners.append(np.unique(_numbers(ids)))
        if 2 * len(ids) < most:
            small.append(name)
    every = np.concatenate([_NO_IDS, *owners])
    at = np.repeat(np.arange(len(names)), [len(ids) for ids in owners])
    order = np.lexsort((at, every))
    every, at = every[order], at[order]
    last = np.append(every[1:] != every[:-1], True)[: len(every)]
    every, at = every[last], at[last]

    def kept(number: int, ids: Ids) -> np.ndarray:
        newest = at[np.searchsorted(every, ids)] == number
        is_kept: np.ndarray = newest & np.isin(ids, wanted)
        return is_kept

    stale = {name for at, name in enumerate(names) if not kept(at, owners[at]).all()}
    rewritten = stale | {*small} if len(small) > MAX_OBJECTS else stale
    if not rewritten:
        return
    waiting: list[pa.Table] = []
    # Replacements are written before removals: readers see rows twice, but never miss one.
    for number, name in enumerate(names):
        if name in rewritten:
            table = store.read_table(name, schema)
            waiting.append(table.filter(pa.array(kept(number, _numbers(table["recording_id"])))))
            if sum(len(rows) for rows in waiting) >= most:
                put_rows(store, folder, pa.concat_tables(waiting))
                waiting = []
    if any(len(rows) for rows in waiting):
        put_rows(store, folder, pa.concat_tables(waiting))
    store.remove_all(name for name in names if name in rewritten)


def _numbers(ids: pa.Array | pa.ChunkedArray) -> Ids:
    return np.array([int(recording_id, 16) for recording_id in ids.to_pylist()], dtype=np.uint64)
