"""What became of recordings: moved, touched, or replaced by another sound at their address.

The sound decides, by its digest (`audio.sound_digest`). Read whole are, of the files that are new
or of another version: those at the address of a known sound, and those of the size of one that is
gone or was replaced. Time stamps, sizes and ETags tell only which.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, compress
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import FILES
from corpus_asr.storage.run_state.identities import Changes, Move
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.filesystem import (
    READERS,
    Inspection,
    StoreOptions,
    exists,
    inspect_files,
)
from corpus_asr.storage.stores.uri import join, public, recording_id

SOUND_DIGEST: Final = "corpus_asr.audio.sound_digest:sound_digest"
_ARRIVED = projected(FILES, ("recording_id", "uri", "etag", "size_bytes"))

# Sounds of recordings that are gone or whose file is another, and files that may be one of them.
_GONE = """
create or replace table gone as
with sounds as (
  select recording_id, size_bytes, content_digest from attempts
  union all select recording_id, size_bytes, content_digest from unopened)
from sounds
where content_digest is not null
  and (recording_id in (select recording_id from arrived where is_changed)
       or (recording_id not in (select recording_id from seen)
           and size_bytes in (select size_bytes from arrived)))
"""
_CANDIDATES = """
select uri, etag, size_bytes, if(is_changed, recording_id, null) from arrived
where (is_changed and recording_id in (select recording_id from gone))
   or size_bytes in (select size_bytes from gone)
"""
UNLISTED = "select distinct recording_id from committed anti join seen using (recording_id)"
_SAME = "select distinct content_digest, recording_id from gone order by all"


class Arrivals:
    """Collects a listing as it arrives, and its files that are new or of another version."""

    def __init__(self, tables: RunTables) -> None:
        self._tables = tables
        no_change = pa.array([], pa.bool_())
        tables.add("arrived", _ARRIVED.empty_table().append_column("is_changed", no_change))

    def add(self, files: pa.Table, open_files: pa.Table) -> None:
        """Add listed FILES rows; `open_files` are those that seem to be new or changed."""
        self._tables.note_listed(files)
        self._tables.execute(
            "insert into arrived select *, recording_id in (select recording_id from committed) "
            "from arriving where size_bytes is not null",
            open_files.select(_ARRIVED.names),
        )

    def changes(
        self,
        store: OutputStore,
        options: StoreOptions,
        elsewhere: Iterable[pa.Table] = (),
        with_notes: Callable[[], Collection[str]] = tuple,
        inspect: Inspection = inspect_files,
    ) -> Changes:
        """Return what became of committed recordings, once the listing is complete.

        `options` are the source's, to read files. Recordings of other sources
        (`source_listings.other_listings`) moved only if nothing is at their URI. Of the recordings
        that `with_notes` returns people wrote something: another sound at their address gets its
        own ID.
        """
        self._tables.execute(_GONE)
        files = self._tables.rows(_CANDIDATES)
        arrived = defaultdict[str, dict[str, Move]](dict)
        changed: dict[str, tuple[str, str]] = {}  # recording and present digest, by address
        digests = inspect(SOUND_DIGEST, [row[:2] for row in files], options, None)
        for (uri, etag, size_bytes, recording), digest in zip(files, digests, strict=True):
            if digest is not None:
                arrived[digest][uri] = Move("", public(uri), digest, etag, size_bytes)
                if recording is not None:
                    changed[public(uri)] = recording, digest
        known = [row for row in self._tables.rows(_SAME) if row[0] in arrived]
        old_uris = self._old_uris(store, {name for _, name in known}, options, elsewhere)
        old_uris |= {recording: uri for uri, (recording, _) in changed.items()}
        gone = defaultdict[str, dict[str, str]](dict)
        for digest, recording in known:
            if recording in old_uris:
                gone[digest][old_uris[recording]] = recording
        moves: dict[str, Move] = {}
        for digest, old in gone.items():
            new = dict(arrived[digest])
            for uri in [uri for uri, move in new.items() if old.get(move.uri)]:  # where it was
                old_uri = new[uri].uri
                moves[old[old_uri]] = new.pop(uri)._replace(old_uri=old_uri)
            unmoved = [uri for uri, recording in old.items() if recording not in moves]
            # Recordings of equal sound may be paired in any way; names give the likeliest.
            for old_uri, uri in zip(_by_name(unmoved, new), _by_name(new, unmoved), strict=False):
                moves[old[old_uri]] = new[uri]._replace(old_uri=old_uri)
        held = with_notes() if changed else ()
        taken = {move.uri: recording for recording, move in moves.items()}
        newcomers, left = dict[str, tuple[str, str]](), dict[str, str]()
        for uri, (recording, digest) in changed.items():
            present = taken.get(uri)
            if present is None and (recording in moves or recording in held):
                present = recording_id(f"{uri}#{digest}")
            if present is not None and present != recording:
                newcomers[uri], left[recording] = (present, digest), uri
        return Changes(moves, newcomers, left)

    def _old_uris(
        self,
        store: OutputStore,
        ids: Collection[str],
        options: StoreOptions,
        elsewhere: Iterable[pa.Table],
    ) -> dict[str, str]:
        """Return the addresses of recordings, without those that may still be there."""
        if not ids:
            return {}
        old_uris = dict(addresses(store, ids)) | self._tables.identities.addresses_of(ids)
        for rows in elsewhere:
            listed = old_uris.keys() & {*rows["recording_id"].to_pylist()}
            for recording in still_there({name: old_uris[name] for name in listed}, options):
                del old_uris[recording]
        unread = tuple(prefix for (prefix,) in self._tables.rows("from unread"))
        return {
            name: uri for name, uri in old_uris.items() if not (unread and uri.startswith(unread))
        }


def _by_name(uris: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return URIs sorted by name, those first whose names are also in `others`."""
    names = {uri.rpartition("/")[2] for uri in others}
    last_steps = {uri: uri.rpartition("/")[2] for uri in uris}
    return sorted(last_steps, key=lambda uri: (last_steps[uri] not in names, last_steps[uri], uri))


def still_there(uris: Mapping[str, str], options: StoreOptions) -> list[str]:
    """Return the keys of those URIs where an object exists or may exist."""

    def look_up(uri: str) -> bool:
        try:
            return exists(uri, options)
        except CorpusAsrError:  # of another source with unknown options
            return True

    with ThreadPoolExecutor(READERS, thread_name_prefix="look-up") as pool:
        return list(compress(uris, pool.map(look_up, uris.values())))


def lost_folders(store: OutputStore, tables: RunTables, uris: Collection[str]) -> list[str]:
    """Return those of some URIs below which recordings of before are not listed now."""
    ids = tables.table(UNLISTED)["recording_id"].to_pylist() if uris else []
    if not ids:
        return []
    old_uris = dict(addresses(store, ids)) | tables.identities.addresses_of(ids)
    folders = {folder for uri in old_uris.values() for folder in accumulate(uri.split("/"), join)}
    return sorted(folders.intersection(uris))


def addresses(store: OutputStore, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield `recording_id` and address of those of some recordings that are committed."""
    wanted = pa.array(ids, pa.string())
    for rows in store.outcomes(["recording_id", "uri"]):
        named = rows.filter(pc.is_in(rows["recording_id"], value_set=wanted))
        yield from zip(*(column.to_pylist() for column in named.columns), strict=True)
