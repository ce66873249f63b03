"""Detection of moved recordings: new files with the content of recordings that are gone.

A file is taken for a recording that is committed under another address if that one is not listed
any more, nor still there for another source, nothing is committed of the file's own address, and
the content agrees: by an ETag that is
made of it, else by the digest that was kept when it was extracted. For this, new files are read
that have the size of a recording which is gone. Time stamps tell nothing of content.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.schemas import FILES
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.filesystem import (
    SAMPLE_BYTES,
    StoreOptions,
    digest_content,
    exists,
    open_binary,
)
from corpus_asr.storage.stores.store import content_version
from corpus_asr.storage.stores.uri import located, public

_READERS = 16  # of some samples each: waiting for disks and stores
_ARRIVED = projected(FILES, ("recording_id", "uri", "etag", "size_bytes"))


class Move(NamedTuple):
    """The old and the new address of a recording."""

    old_uri: str
    uri: str
    content_digest: str | None = None
    """The content at the new address, if it was read ..."""
    etag: str | None = None
    """... and its version there, as which rows of this content count."""

    def __str__(self) -> str:
        """Return both URIs."""
        return f"{self.old_uri} -> {self.uri}"


_Content = tuple[int, str]
"""A size in bytes, and a digest or an ETag that is made of content."""
_Version = tuple[str | None, str | None]
"""A digest, where it was read, and an ETag."""
_CONTENTS = pa.schema([("size_bytes", pa.int64()), ("content", pa.string())])
Moves = Mapping[str, Move]
"""By `recording_id`."""

_MAY_BE_GONE = """
select recording_id from settled anti join seen using (recording_id)
where size_bytes in (select size_bytes from arrived)
"""
# Versions of recordings that are gone, and new files that may be of one of their contents.
_GONE = """
create or replace table gone as
select distinct recording_id, plain(outcomes.etag) as etag, outcomes.size_bytes, content_digest
from outcomes semi join live using (id) anti join seen using (recording_id)
where outcomes.size_bytes in (select size_bytes from arrived)
"""
_CANDIDATES = """
select uri, etag, size_bytes, plain(etag) in (select etag from gone) as has_known_etag from arrived
where size_bytes in (select size_bytes from gone where content_digest is not null)
  or plain(etag) in (select etag from gone)
"""
_SAME = """
select contents.size_bytes, content, recording_id from contents join gone
on contents.size_bytes = gone.size_bytes and content = gone.{} order by all
"""


class Arrivals:
    """Collects a listing as it arrives, and its files without committed results."""

    def __init__(self, tables: RunTables) -> None:
        self._tables = tables
        tables.add("arrived", _ARRIVED.empty_table())

    def add(self, files: pa.Table, new: pa.Table) -> None:
        """Add listed FILES rows; `new` are those that seem to have no commits."""
        self._tables.note_listed(files)
        self._tables.execute(
            "insert into arrived from arriving anti join committed using (recording_id) "
            "where size_bytes is not null",
            new.select(_ARRIVED.names),
        )

    def moves(
        self, store: OutputStore, options: StoreOptions, elsewhere: Iterable[pa.Table] = ()
    ) -> Moves:
        """Return the committed recordings that moved, once the listing is complete.

        `options` are the source's, to read new files. Recordings of other sources
        (`source_listings.other_listings`) moved only if nothing is at their URI.
        """
        arrived = self._arrived(options)
        contents = [{"size_bytes": size_bytes, "content": name} for size_bytes, name in arrived]
        self._tables.add("contents", pa.Table.from_pylist(contents, _CONTENTS))
        ids = dict.fromkeys(
            row
            for column in ("content_digest", "etag")
            for row in self._tables.rows(_SAME.format(column))
        )
        unread = tuple(prefix for (prefix,) in self._tables.rows("from unread"))
        gone_ids = {recording for *_, recording in ids}
        old_uris = dict(addresses(store, gone_ids)) if ids else {}
        old_uris |= self._tables.identities.addresses_of(gone_ids)
        for rows in elsewhere if ids else ():
            listed = old_uris.keys() & {*rows["recording_id"].to_pylist()}
            for recording in still_there({name: old_uris[name] for name in listed}, options):
                del old_uris[recording]
        gone = defaultdict[_Content, dict[str, str]](dict)
        for size_bytes, content, recording in ids:
            uri = old_uris.get(recording)
            if uri is not None and not (unread and uri.startswith(unread)):  # may still be there
                gone[size_bytes, content][uri] = recording
        moves: dict[str, Move] = {}
        for content, old in gone.items():
            new = arrived[content]
            unmoved = [uri for uri, recording in old.items() if recording not in moves]
            # Recordings of equal content may be paired in any way; names give the likeliest.
            for old_uri, uri in zip(_by_name(unmoved, new), _by_name(new, unmoved), strict=False):
                moves[old[old_uri]] = Move(old_uri, public(uri), *new[uri])
        return moves

    def _arrived(self, options: StoreOptions) -> dict[_Content, dict[str, _Version]]:
        """Return the new files of each candidate content, with digest and version."""
        self._tables.unsettle(self._tables.table(_MAY_BE_GONE)["recording_id"])
        self._tables.execute(_GONE)
        files = self._tables.rows(_CANDIDATES)
        versions = [has_etag and content_version(uri, etag) for uri, etag, _, has_etag in files]
        unread = [row[:2] for row, version in zip(files, versions, strict=True) if not version]
        digests = iter(read_digests(unread, options))
        arrived = defaultdict[_Content, dict[str, _Version]](dict)
        for (uri, etag, size_bytes, _), version in zip(files, versions, strict=True):
            digest = None if version else next(digests)
            if content := version or digest:
                arrived[size_bytes, content][uri] = (digest, etag)
        return arrived


def _by_name(uris: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return URIs sorted by name, those first whose names are also in `others`."""
    names = {uri.rpartition("/")[2] for uri in others}
    last_steps = {uri: uri.rpartition("/")[2] for uri in uris}
    return sorted(last_steps, key=lambda uri: (last_steps[uri] not in names, last_steps[uri], uri))


def read_digests(
    files: Iterable[tuple[str, str | None]], options: StoreOptions
) -> list[str | None]:
    """Return content digests of files given by URI and version; None if unreadable."""

    def read(file: tuple[str, str | None]) -> str | None:
        try:
            with open_binary(located(*file), options, block_bytes=SAMPLE_BYTES) as opened:
                return digest_content(opened)
        except FetchError:  # a failure of this recording, if it is processed
            return None

    with ThreadPoolExecutor(_READERS, thread_name_prefix="read-digests") as pool:
        return list(pool.map(read, files))


def still_there(uris: Mapping[str, str], options: StoreOptions) -> list[str]:
    """Return the keys of those URIs where an object exists or may exist."""

    def look_up(uri: str) -> bool:
        try:
            return exists(uri, options)
        except CorpusAsrError:  # of another source with unknown options
            return True

    with ThreadPoolExecutor(_READERS, thread_name_prefix="look-up") as pool:
        return list(compress(uris, pool.map(look_up, uris.values())))


def addresses(store: OutputStore, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield `recording_id` and address of those of some recordings that are committed."""
    wanted = pa.array(ids, pa.string())
    for rows in store.outcomes(["recording_id", "uri"]):
        named = rows.filter(pc.is_in(rows["recording_id"], value_set=wanted))
        yield from zip(*(column.to_pylist() for column in named.columns), strict=True)
