"""Whose the rows of objects of segments are: each belongs to the outcome that committed it."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import CorpusAsrError
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import PENDING, OutputStore, PartRows, projected
from corpus_asr.storage.stores.uri import redact_uri

_KEY = ["recording_id", "part"]
# Others of the same objects are there for their places: rows lie in the order of their outcomes.
_CLAIMS = """
with asked as (select id, segments_object from {of})
select segments_object, id, recording_id, part, segments_written,
       id in (select id from asked) as counts
from outcomes
where segments_written > 0 and segments_object in (select segments_object from asked)
  and (starts_with(segments_object, $tables) or starts_with(segments_object, $pending))
order by min(id) over (partition by segments_object), id
"""


def claimed_rows(
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
    folder = f"{kind.folder}/"
    claims = tables.table(_CLAIMS.format(of=of), tables=folder, pending=PENDING + folder)
    ids = claims.select(["id", "counts"]).combine_chunks()
    schema = projected(kind.schema, tuple(dict.fromkeys((*_KEY, *columns))))
    for rows, owners in rows_with_owners(store, claims, schema):
        theirs = ids.take(pa.array(owners))
        counts = theirs["counts"]
        counting = rows.filter(counts)
        if "uri" in columns:
            counting = tables.identities.at_present(counting)
        yield counting.select(columns), theirs["id"].filter(counts).combine_chunks()


def rows_with_owners(
    store: OutputStore, claims: pa.Table, schema: pa.Schema
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield the rows of objects of segments or labels, and the place of each one's claim.

    Args:
        claims: outcomes that wrote any, those of an object together and in the order of its rows.

    Raises:
        CorpusAsrError: an object has other rows than its outcomes say.
    """
    claims = claims.combine_chunks()
    keys = claims.select(_KEY)
    written = claims["segments_written"].to_numpy()
    objects = claims["segments_object"].combine_chunks().dictionary_encode()
    names = [*objects.dictionary.to_pylist(), "(none)"]  # numbered by first appearance
    numbers = pc.fill_null(objects.indices, len(names) - 1).to_numpy()
    starts = np.searchsorted(numbers, np.arange(len(names) + 1))
    places = {name: slice(*starts[at : at + 2].tolist()) for at, name in enumerate(names)}
    num_rows = {name: int(written[own].sum()) for name, own in places.items()}
    seen = dict.fromkeys(names, 0)
    current, owners = "", np.empty(0, np.int64)
    for name, table in store.read_tables(names[:-1], schema):
        if name != current:
            own = places[name]
            current, owners = name, np.repeat(np.arange(own.start, own.stop), written[own])
        theirs = owners[seen[name] : seen[name] + table.num_rows]
        seen[name] += table.num_rows
        expected = keys.take(pa.array(theirs))
        if not expected.equals(table.select(_KEY).cast(expected.schema)):
            raise _broken(store, name, "rows of other parts", num_rows[name])
        yield table, theirs
    for name, number in num_rows.items():
        if seen[name] != number:
            raise _broken(store, name, f"{seen[name]} rows", number)


def _broken(store: OutputStore, name: str, found: str, expected: int) -> CorpusAsrError:
    return CorpusAsrError(
        f"reading {redact_uri(store.address(name))}: found {found}, expected the {expected} that "
        "its outcomes say; restore it, or remove it to have its recordings transcribed again"
    )
