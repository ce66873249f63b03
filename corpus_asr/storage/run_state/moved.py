"""Which new files are known recordings that were moved.

A file is taken for a recording that is committed under another address if that one is not listed
any more, nothing is committed of the file's own address, and size and version are the same. A
version need not name a content: copies have those of each other, and so may all files of an
archive that was unpacked. So where more than these two recordings have it, the names have to be the
same as well, and where several fit, the longest end of a path that is one file's alone.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import pyarrow as pa

from corpus_asr.schemas import FILES
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.uri import public, recording_id

MOVING_NAME: Final = "_run/moving.json"
"""Recordings whose rows are following them: `recording_id` and new address of each."""
Moves = Mapping[str, str]
"""New addresses by the `recording_id` that there was."""
_ARRIVED = projected(FILES, ("recording_id", "uri", "etag", "size_bytes"))
_MOVED = pa.schema([("recording_id", pa.string()), ("now", pa.string())])

# Versions that both a new file and a recording which is gone have, with the number of all that do.
_SHARED = """
create or replace table gone as
select distinct recording_id, etag, size_bytes from known anti join listed using (recording_id)
where etag is not null and size_bytes is not null;

create or replace table shared as
with holders as (select recording_id, plain(etag) as etag, size_bytes from listed
                 union select recording_id, etag, size_bytes from known)
select etag, size_bytes, count(*) as holders from holders
semi join arrived using (etag, size_bytes) semi join gone using (etag, size_bytes) group by all
"""


class _File(NamedTuple):
    recording_id: str
    uri: str


class Arrivals:
    """What a listing names, as it comes, and the files of which nothing is committed."""

    def __init__(self, tables: RunTables) -> None:
        self._tables = tables
        tables.add("arrived", _ARRIVED.empty_table())

    def add(self, files: pa.Table, new: pa.Table) -> None:
        """Take listed FILES rows; `new` are those of which nothing seems to be committed."""
        self._tables.list_also(files)
        self._tables.execute(
            "insert into arrived select recording_id, uri, plain(etag), size_bytes from arriving "
            "anti join known using (recording_id) "
            "where etag is not null and size_bytes is not null",
            new.select(_ARRIVED.names),
        )

    def moves(self, store: OutputStore) -> Moves:
        """Return which committed recordings moved, once all of the listing has come."""
        tables = self._tables
        tables.execute(_SHARED)
        shared = tables.rows("select etag, size_bytes, holders from shared")
        if not shared:
            return {}
        wanted = tables.rows("select distinct recording_id from gone semi join shared "
                             "using (etag, size_bytes)")  # fmt: skip
        unread = tuple(prefix for (prefix,) in tables.rows("from unread"))
        uris = {
            each: uri
            for each, uri in addresses(store, {each for (each,) in wanted})
            if not unread or not uri.startswith(unread)  # it may be where it was
        }
        query = (
            "select etag, size_bytes, list({}) from {} "
            "semi join shared using (etag, size_bytes) group by all"
        )
        gone = tables.rows(query.format("recording_id", "gone"))
        file = "{'recording_id': recording_id, 'uri': uri}"
        arrived = tables.rows(query.format(file, "arrived"))
        before = {(etag, size): ids for etag, size, ids in gone}
        now = {(etag, size): files for etag, size, files in arrived}
        found: dict[str, str] = {}
        several: set[str] = set()
        for etag, size, holders in shared:
            old_files = [_File(each, uris[each]) for each in before[etag, size] if each in uris]
            new_files = [_File(**each) for each in now[etag, size]]
            for old, new in _pairs(old_files, new_files, alone=holders == 2):
                # Two of its versions were put in two places.
                several |= {old.recording_id} & found.keys()
                found[old.recording_id] = public(new.uri)
        return {each: uri for each, uri in found.items() if each not in several}


def addresses(store: OutputStore, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield `recording_id` and address of those of some recordings that are committed."""
    for batch in store.committed(["recording_id", "uri"], store.commit_names()):
        for each, uri in zip(*(column.to_pylist() for column in batch.rows.columns), strict=True):
            if each in ids:
                yield each, uri


def _pairs(
    gone: Iterable[_File], arrived: Iterable[_File], *, alone: bool
) -> Iterator[tuple[_File, _File]]:
    """Yield which of the recordings that are gone is which file; all have one version.

    They may have different names if they are `alone` with it.
    """
    gone, arrived = list(gone), list(arrived)
    if alone and len(gone) == len(arrived) == 1:
        yield gone[0], arrived[0]
        return
    deepest = max(each.uri.count("/") for each in (*gone, *arrived))
    for depth in range(deepest + 1, 0, -1):
        ends = [defaultdict[str, list[_File]](list) for _ in range(2)]
        for end, files in zip(ends, (gone, arrived), strict=True):
            for each in files:
                steps = each.uri.split("/")
                if len(steps) >= depth:
                    end["/".join(steps[-depth:])].append(each)
        paired = set[_File]()
        for name, old in ends[0].items():
            new = ends[1].get(name, ())
            if len(old) == len(new) == 1:
                yield old[0], new[0]
                paired |= {old[0], new[0]}
        gone = [each for each in gone if each not in paired]
        arrived = [each for each in arrived if each not in paired]


def as_table(moves: Moves) -> pa.Table:
    """Return moves as `RunTables.move` takes them."""
    rows = [{"recording_id": old, "now": recording_id(uri)} for old, uri in moves.items()]
    return pa.Table.from_pylist(rows, _MOVED)


def noted_moves(store: OutputStore) -> Moves:
    """Return the moves that a run began and did not end; none where there is no such run."""
    return store.read_json(MOVING_NAME) or {}
