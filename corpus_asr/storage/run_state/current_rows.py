"""Segments and labels that count, and the confidence of recordings by them.

A recording's confidence is the mean of its segments over time; of a classification, that of its
windows by their likeliest label. Of each object and part rows are summed in a table that goes to
disk when it is large, so that memory does not grow with segments.

Tables, in addition to those of `RunTables`:

- `scored`: by recording and run, rows by whether they count (`counts`) and their bin of confidence,
  with the sums of their `weight` in seconds and of confidence times weight;
- `confidences`: recording_id and `confidence` of recordings with segments that count;
- `arrived`: rows as they are read, with their place: that of their `object` among `objects`, and
  `row`, which it is of the segments of the object.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.storage.run_state.part_rows import part_rows
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import LABEL_ROWS, PartRows
from corpus_asr.storage.run_state.tables import OutputStore

# Objects with the rows of their parts, both in the order of time.
_PARTS = """
select name, list(row order by row) as numbers, list(id order by row) as ids
from (select object, row, id from {of} where segments_written > 0) join objects using (object)
group by object, name order by object
"""


def counting_rows(
    store: OutputStore,
    tables: RunTables,
    kind: PartRows,
    columns: Sequence[str],
    *,
    of: str = "parts",
) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Yield the segments or labels of parts that count, and the `id` of each one's outcome.

    They come object by object, a bounded number at once.

    Args:
        of: in SQL the outcomes whose rows are wanted, some of `parts`.

    Raises:
        CorpusAsrError: an object has other rows than its outcomes say.
    """
    parts = {name: (np.array(numbers), pa.array(ids, pa.int64()))
             for name, numbers, ids in tables.rows(_PARTS.format(of=of))}  # fmt: skip
    for name, rows, owners in part_rows(store, parts, kind, columns):
        numbers, ids = parts[name]
        places = np.minimum(np.searchsorted(numbers, owners), len(numbers) - 1)
        counts = numbers[places] == owners
        counting = rows.filter(pa.array(counts))
        if "uri" in columns:
            counting = tables.identities.at_present(counting)
        yield counting, ids.take(pa.array(places[counts]))


CONFIDENCE_BINS = 10  # of equal width over 0-1
_READ_ROWS = 65_536  # at once; commits have some thousands
_SCORED_COLUMNS = ("recording_id", "part", "start_s", "end_s", "model", "model_revision")
_OBJECTS = """
select name, object from outcomes join objects using (object) left join row_states using (id)
where segments_written > 0 and ({which})
group by all order by object
"""
_SCORED = """
create or replace table scored (recording_id varchar, run_id varchar, counts boolean, bin tinyint,
                                model varchar, model_revision varchar,
                                rows bigint, weight double, weighted double)
"""
# A segment may have no length, and still weighs something.
_ARRIVED = """
create or replace table arrived as
select arriving.*, run_id, coalesce(counts, false) as counts,
       if(confidence is null, null, greatest(end_s - start_s, 0) + 1e-3) as weight
from arriving
join (select object, row as owner, run_id, counts from outcomes left join row_states using (id)
      where object between $first and $last)
  using (object, owner)
"""
_SUMMED = f"""
insert into scored
select recording_id, run_id, counts,
       if(confidence is null, null,
          least(floor(confidence * {CONFIDENCE_BINS}::float), {CONFIDENCE_BINS - 1})) as bin,
       model, model_revision,
       count(*), exact_sum(weight), exact_sum(confidence * weight)
from arrived group by all
"""
_CONFIDENCES = """
create or replace view confidences as
select recording_id, exact_sum(weighted) / exact_sum(weight) as confidence
from scored where counts and weight is not null group by all
"""


def read_confidences(
    store: OutputStore,
    tables: RunTables,
    rows: PartRows,
    *,
    which: str = "true",
    on_batch: Callable[[], object] = lambda: None,
    **parameters: Any,
) -> None:
    """Read the segments or labels that outcomes have.

    Args:
        which: a condition on outcomes, and whether they count; of theirs all rows are read.
        on_batch: called once for every table `arrived`.
    """
    objects = dict(tables.rows(_OBJECTS.format(which=which), **parameters))
    for statement in (_SCORED, _CONFIDENCES):
        tables.execute(statement)
    for arriving in gathered(_placed(store, rows, objects)):
        first, last = (arriving["object"][place].as_py() for place in (0, -1))
        tables.execute(_ARRIVED, arriving, first=first, last=last)
        tables.execute(_SUMMED)
        on_batch()


def gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate tables, so that each statement over them processes many rows."""
    waiting: list[pa.Table] = []
    num_rows = 0
    for table in tables:
        waiting.append(table)
        num_rows += table.num_rows
        if num_rows >= _READ_ROWS:
            yield pa.concat_tables(waiting)
            waiting, num_rows = [], 0
    if num_rows:
        yield pa.concat_tables(waiting)


def _placed(store: OutputStore, rows: PartRows, objects: Mapping[str, int]) -> Iterator[pa.Table]:
    labels = rows is LABEL_ROWS
    measures = ("rank", "probability") if labels else ("confidence",)
    seen = dict.fromkeys(objects, 0)
    for name, table, owners in part_rows(store, objects, rows, (*_SCORED_COLUMNS, *measures)):
        if labels:
            # A window has several rows, and is as sure as its first.
            first = pc.equal(table["rank"], 1)
            likeliest = pc.if_else(first, table["probability"], pa.scalar(None, pa.float32()))
            table = table.select(_SCORED_COLUMNS).append_column("confidence", likeliest)
        places = np.arange(seen[name], seen[name] + table.num_rows)
        seen[name] += table.num_rows
        number = pa.repeat(pa.scalar(objects[name], pa.int32()), table.num_rows)
        for column, values in (("object", number), ("owner", pa.array(owners, pa.int32())),
                               ("row", pa.array(places))):  # fmt: skip
            table = table.append_column(column, values)
        yield table
