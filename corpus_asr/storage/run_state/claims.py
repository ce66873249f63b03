"""Whose the rows of objects of segments are: each belongs to the outcome that committed it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from corpus_asr.errors import CorpusAsrError
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore, PartRows, projected, table_of
from corpus_asr.storage.stores.uri import redact_uri

_KEY = ("recording_id", "part")
# Others of the same objects are there for their places: rows lie in the order of their outcomes.
_CLAIMS = """
with asked as (select id, segments_object from {of})
select segments_object, id, recording_id, part, segments_written,
       id in (select id from asked) as counts
from outcomes
where segments_written > 0 and segments_object in (select segments_object from asked)
order by min(id) over (partition by segments_object), id
"""


class ClaimedRows(NamedTuple):
    """Rows of one object of segments, or labels, that count."""

    name: str
    rows: pa.Table
    outcomes: pa.Array
    """The `id` of each one's outcome."""


def claimed_rows(
    store: OutputStore,
    tables: RunTables,
    kind: PartRows,
    columns: Sequence[str],
    *,
    of: str = "parts",
) -> Iterator[ClaimedRows]:
    """Yield the segments or labels of parts that count, object by object, a bounded number at once.

    Args:
        of: in SQL the outcomes whose rows are wanted, some of `parts`.

    Raises:
        CorpusAsrError: an object has other rows than its outcomes say.
    """
    claims = tables.table(_CLAIMS.format(of=of)).combine_chunks()
    objects = claims["segments_object"].combine_chunks().dictionary_encode()
    starts = np.searchsorted(objects.indices.to_numpy(), np.arange(len(objects.dictionary) + 1))
    names = objects.dictionary.to_pylist()
    schema = projected(kind.schema, tuple(dict.fromkeys((*_KEY, *columns))))
    places = {
        name: slice(*starts[at : at + 2].tolist()) for at, name in enumerate(names)
        if table_of(name) == kind.folder
    }  # fmt: skip
    written = claims["segments_written"].to_numpy()
    rows_of = {name: int(written[own].sum()) for name, own in places.items()}
    seen = dict.fromkeys(places, 0)
    current, owners = "", np.empty(0, np.int64)
    for name, table in store.read_tables(places, schema):
        if name != current:
            own = places[name]
            current, owners = name, np.repeat(np.arange(own.start, own.stop), written[own])
        theirs = owners[seen[name] : seen[name] + table.num_rows]
        seen[name] += table.num_rows
        expected = claims.take(pa.array(theirs))
        if not expected.select(_KEY).equals(table.select(_KEY).cast(expected.select(_KEY).schema)):
            raise _broken(store, name, rows_of[name])
        counts = expected["counts"]
        yield ClaimedRows(
            name, table.filter(counts).select(columns),
            expected["id"].filter(counts).combine_chunks(),
        )  # fmt: skip
    for name, number in rows_of.items():
        if seen[name] != number:
            raise _broken(store, name, number)


def _broken(store: OutputStore, name: str, expected: int) -> CorpusAsrError:
    return CorpusAsrError(
        f"reading {redact_uri(store.address(name))}: found other rows, expected the {expected} "
        "that its outcomes say; restore it, or remove it to have its recordings transcribed again"
    )
