"""Tables whose rows are made of whole recordings once these are committed.

In: what rows are made of, and a folder of objects, each with all rows of its recordings. `made_of`
of a row names what it was made of: what is there already is not made again. Of a recording that two
objects hold, after a finish that was killed, the newest counts.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import SPEAKERS
from corpus_asr.storage.run_state.tables import SUFFIX, OutputStore, projected

# What an object holds at most: of turns some ten MB.
ROWS_PER_OBJECT = 250_000
# More objects than this of less than half of that are merged.
MAX_OBJECTS = 8

Ids = npt.NDArray[np.uint64]
_NO_IDS: Ids = np.zeros(0, dtype=np.uint64)
_STATE = projected(SPEAKERS, ("recording_id", "made_of"))
MADE = _STATE.append(pa.field("number", pa.int32()))
"""What recordings in an object were made of; of several objects the last counts."""
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
    """Return what finds complete recordings whose rows were not made of the same with $settings.

    `also` is what else of their parts counts, in SQL, and of what is `joined` to them.
    """
    return _WANTED.format(also=also, joined=joined)


def made_so_far(store: OutputStore, names: Sequence[str]) -> pa.Table:
    """Return as `MADE` what the recordings in some objects were made of, given in order of time."""
    found = [MADE.empty_table()]
    for number, name in enumerate(names):
        made = store.read_table(name, _STATE).group_by(_STATE.names).aggregate([])
        numbers = pa.repeat(pa.scalar(number, pa.int32()), made.num_rows)
        found.append(made.append_column("number", numbers).cast(MADE))
    return pa.concat_tables(found)


def newest_of(made: pa.Table) -> dict[int, pa.Array]:
    """Return, by the number of its object, the recordings whose rows in it count."""
    last = made.group_by("recording_id").aggregate([("number", "max")])
    numbers = last["number_max"].unique().to_pylist()
    ids = {each: last.filter(pc.equal(last["number_max"], each)) for each in numbers}
    return {each: rows["recording_id"].combine_chunks() for each, rows in ids.items()}


def rows_at(
    store: OutputStore, name: str, rows: Sequence[int], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield some rows of an object of outcomes, by their numbers."""
    wanted, start = pa.array(rows, pa.int64()), 0
    for _, table in store.committed(columns, [name]):
        numbers = pa.array(range(start, start + len(table)), pa.int64())
        start += len(table)
        yield from table.filter(pc.is_in(numbers, value_set=wanted)).to_pylist()


def put_rows(store: OutputStore, folder: str, table: pa.Table, *, stem: str | None = None) -> None:
    """Put all rows of some recordings as an object, of a stem that the caller knows if given."""
    store.write_table(f"{folder}/{stem or store.stem()}{SUFFIX}", table)


def tidy(
    store: OutputStore,
    folder: str,
    schema: pa.Schema,
    recording_ids: Iterable[pa.Array],
    *,
    rows_per_object: int | None = None,
) -> None:
    """Keep of each of these recordings the newest rows, and of others none, in few small objects.

    In memory are the rows of an object or two, and some 40 bytes of every recording.
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
        found: np.ndarray = newest & np.isin(ids, wanted)
        return found

    stale = {name for at, name in enumerate(names) if not kept(at, owners[at]).all()}
    rewritten = stale | {*small} if len(small) > MAX_OBJECTS else stale
    if not rewritten:
        return
    waiting: list[pa.Table] = []
    # First what replaces, then what is replaced: a reader sees rows twice, and never misses one.
    for number, name in enumerate(names):
        if name in rewritten:
            table = store.read_table(name, schema)
            waiting.append(table.filter(pa.array(kept(number, _numbers(table["recording_id"])))))
            if sum(len(each) for each in waiting) >= most:
                put_rows(store, folder, pa.concat_tables(waiting))
                waiting = []
    if any(len(each) for each in waiting):
        put_rows(store, folder, pa.concat_tables(waiting))
    store.remove_all(name for name in names if name in rewritten)


def _numbers(ids: pa.Array | pa.ChunkedArray) -> Ids:
    return np.array([int(each, 16) for each in ids.to_pylist()], dtype=np.uint64)
