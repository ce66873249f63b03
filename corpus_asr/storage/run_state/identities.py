"""IDs of recordings by URI: a recording keeps the ID of the URI where it was first seen.

In come listed files, and recordings that moved; out come the IDs of files, and present addresses.
Held are the addresses of recordings that moved, and of files that came to an address which another
recording left; any other address is of the recording that its hash names. So a move changes no row.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.part_rows import without_credentials
from corpus_asr.storage.run_state.table_names import (
    IDENTITIES_NAME,
    PLANS_FOLDER,
    RECORDINGS_FOLDER,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri

IDENTITIES: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("recording_id", pa.string()),
        ("is_present", pa.bool_()),
        ("content_digest", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)
"""Each address once, with the recording that came to it last, and whether that is still there.
Where it is, outcomes of the content count as those of `etag` and `size_bytes`. One at whose last
address there is another sound is at its `former_address`, while its own is nowhere."""
_PAIR = ("recording_id", "uri")

logger = logging.getLogger(__name__)


class Move(NamedTuple):
    """The old and the new address of a recording; equal if only its version is another."""

    old_uri: str
    uri: str
    content_digest: str | None = None
    """The sound at the new address ..."""
    etag: str | None = None
    """... and its version and size there, as which rows of this sound count."""
    size_bytes: int | None = None

    def __str__(self) -> str:
        """Return both URIs."""
        return f"{self.old_uri} -> {self.uri}"


Moves = Mapping[str, Move]
"""By `recording_id`."""


class Changes(NamedTuple):
    """What a listing says of the recordings that were there before."""

    moves: Moves = MappingProxyType({})
    newcomers: Mapping[str, tuple[str, str]] = MappingProxyType({})
    """Present recording and digest at addresses whose earlier recording is not there any more."""
    left: Mapping[str, str] = MappingProxyType({})
    """Address of recordings at which another sound is now."""


class Identities:
    """The recordings of addresses in an output folder."""

    def __init__(self, rows: pa.Table | None = None, *, is_changed: bool = False) -> None:
        """Initialize from IDENTITIES rows; `is_changed`: they have not been saved."""
        self.rows = IDENTITIES.empty_table() if rows is None else rows.combine_chunks()
        self.is_changed = is_changed
        self.newcomers: dict[str, str] = {}
        """IDs of recordings at whose earlier URI there is another file now."""
        self._new_ids: dict[str, str] = {}

    @classmethod
    def read(cls, store: OutputStore) -> Self:
        """Read the mapping of an output folder; rebuilt from its tables if lost or damaged."""
        if not store.exists(IDENTITIES_NAME):
            is_lost = store.is_noted(IDENTITIES_NAME)
            return cls._made_again(store, "no such object") if is_lost else cls()
        try:
            batches = list(store.batches(IDENTITIES_NAME))
            return cls(pa.Table.from_batches(batches, IDENTITIES))
        except FetchError:
            raise
        except (CorpusAsrError, pa.ArrowException) as error:
            return cls._made_again(store, f"no readable table ({error})")

    def checked(self, store: OutputStore, committed_ids: Callable[[], pa.ChunkedArray]) -> Self:
        """Return those that an output folder has; made again if of another folder.

        `committed_ids` returns the IDs of which something is committed.
        """
        if self.is_changed or not self.rows.num_rows:
            return self
        rows, ids = self.rows, committed_ids()
        unknown = rows.filter(pc.invert(pc.is_in(rows["recording_id"], value_set=ids)))
        hashes = pa.array(map(recording_id, unknown["uri"].to_pylist()), pa.string())
        hashes = hashes.filter(pc.invert(pc.is_in(hashes, value_set=rows["recording_id"])))
        if pc.any(pc.is_in(hashes, value_set=ids)).as_py():
            # What nothing is committed of took the address of what never moved.
            return self._made_again(store, "recordings of another folder")
        return self

    @classmethod
    def _made_again(cls, store: OutputStore, reason: str) -> Self:
        """Return the mapping from the recordings tables and the listings, the newest last."""
        present: dict[str, str] = {}
        listings = [name for name in store.names(PLANS_FOLDER) if "/listing/" in name]
        for name in (*store.names(RECORDINGS_FOLDER), *listings):
            for batch in store.batches(name, columns=list(_PAIR)):
                columns = (batch.column(column).to_pylist() for column in _PAIR)
                present |= {name: public(uri) for name, uri in zip(*columns, strict=True)}
        moved = {uri: name for name, uri in present.items() if recording_id(uri) != name}
        logger.warning(
            "identities rebuilt: name=%s found=%s recordings=%d",
            redact_uri(store.address(IDENTITIES_NAME)), reason, len(moved),
        )  # fmt: skip
        rows = _rows(moved, moved.values(), is_present=True)
        return cls(rows, is_changed=True)

    def write(self, store: OutputStore) -> None:
        """Write the mapping to an output folder, if changed."""
        if self.is_changed:
            store.write_table(IDENTITIES_NAME, self.rows)
        self.is_changed = False

    def name_files(
        self, files: pa.Table, is_forgotten: Callable[[str], bool] | None = None
    ) -> pa.Table:
        """Return FILES rows with recording IDs.

        A file at a URI that another recording left gets a new ID, also if `is_forgotten` returns
        that the recording of an ID was erased.
        """
        if not self.rows.num_rows and is_forgotten is None:
            return files
        uris, hashes = _public_uris(files), files["recording_id"].combine_chunks()
        places = pc.index_in(uris, value_set=self.rows["uri"])
        stays = self.rows["is_present"].take(places)
        present = pc.if_else(stays, self.rows["recording_id"].take(places), hashes)
        ids = pc.coalesce(present, hashes).combine_chunks()
        is_taken = pc.is_in(hashes, value_set=self.rows["recording_id"])
        comes_late = pc.if_else(pc.is_valid(places), pc.invert(stays), is_taken).to_pylist()
        if is_forgotten is not None:
            late = zip(comes_late, hashes.to_pylist(), places.to_pylist(), strict=True)
            comes_late = [
                is_late or (place is None and is_forgotten(name)) for is_late, name, place in late
            ]
        if any(comes_late):
            taken = set(self.rows["recording_id"].to_pylist())
            new_ids = ids.to_pylist()
            for place in (place for place, is_late in enumerate(comes_late) if is_late):
                new_id, number = hashes[place].as_py(), 0
                while new_id in taken or (is_forgotten is not None and is_forgotten(new_id)):
                    number += 1
                    new_id = recording_id(f"{hashes[place].as_py()}/{number}")
                taken.add(new_id)
                self._new_ids[uris[place].as_py()] = new_ids[place] = new_id
            ids = pa.array(new_ids, pa.string())
        return with_column(files, "recording_id", ids)

    def without_left(self, files: pa.Table) -> pa.Table:
        """Return rows of an earlier listing whose recordings are still at their URIs."""
        if not self.rows.num_rows:
            return files
        places = pc.index_in(_public_uris(files), value_set=self.rows["uri"])
        is_there = pc.equal(self.rows["recording_id"].take(places), files["recording_id"])
        is_there = pc.and_(is_there, self.rows["is_present"].take(places))
        return files.filter(pc.or_(pc.is_null(places), pc.fill_null(is_there, False)))

    def keep(self, files: pa.Table) -> None:
        """Store the IDs that `name_files` assigned to new files at reused URIs, of `files`."""
        if not self._new_ids:
            return
        uris = [uri for uri in _public_uris(files).to_pylist() if uri in self._new_ids]
        self.newcomers |= dict(zip(uris, self.ids_of(uris), strict=True))
        if uris:
            self._put(_rows(uris, map(self._new_ids.get, uris), is_present=True))
        self._new_ids.clear()

    def follow(self, changes: Changes) -> None:
        """Set the addresses and versions of recordings that moved, were touched or replaced."""
        moves, newcomers, left = changes
        rows = self.rows
        is_moved = pc.is_in(rows["recording_id"], value_set=pa.array([*moves, *left], pa.string()))
        self.rows = with_column(
            rows, "is_present", pc.and_(rows["is_present"], pc.invert(is_moved))
        )
        self._put(_rows((public(move.old_uri) for move in moves.values()), moves, is_present=False))
        former = _rows((former_address(uri, name) for name, uri in left.items()), left,
                       is_present=True)  # fmt: skip
        is_lost = pc.invert(
            pc.is_in(former["recording_id"], value_set=pa.array(moves, pa.string()))
        )
        self._put(with_column(former, "is_present", is_lost))
        self.newcomers |= {uri: name for name, uri in left.items()}
        ids = [name for name, _ in newcomers.values()]
        self._put(_rows(newcomers, ids, is_present=True))
        new = _rows((public(move.uri) for move in moves.values()), moves, is_present=True)
        for column in ("content_digest", "etag", "size_bytes"):
            values = [getattr(move, column) for move in moves.values()]
            new = with_column(new, column, pa.array(values, IDENTITIES.field(column).type))
        self._put(new)

    def leave_versions(self, files: pa.Table) -> None:
        """Let outcomes have versions of their own where FILES rows to be done are of another one.

        Outcomes of the same content that such a run commits are of the version that is there now.
        """
        rows = self.rows
        places = pc.index_in(rows["recording_id"], value_set=files["recording_id"])
        listed_etags = files["etag"].combine_chunks().take(places.combine_chunks())
        is_left = pc.fill_null(pc.not_equal(rows["etag"], listed_etags), False)
        if pc.any(is_left).as_py():
            etags = pc.if_else(is_left, pa.scalar(None, pa.string()), rows["etag"])
            self.rows, self.is_changed = with_column(rows, "etag", etags).combine_chunks(), True

    def _put(self, new: pa.Table) -> None:
        kept = self.rows.filter(pc.invert(pc.is_in(self.rows["uri"], value_set=new["uri"])))
        self.rows, self.is_changed = pa.concat_tables([kept, new]).combine_chunks(), True

    def ids_of(self, uris: Sequence[str]) -> list[str]:
        """Return the ID of the present or last recording at each URI."""
        hashes = [recording_id(uri) for uri in uris]
        if not self.rows.num_rows:
            return hashes
        places = pc.index_in(pa.array(map(public, uris), pa.string()), value_set=self.rows["uri"])
        ids: list[str] = pc.coalesce(
            self.rows["recording_id"].take(places), pa.array(hashes, pa.string())
        ).to_pylist()
        return ids

    def id_of(self, uri: str) -> str:
        """Return the ID of the present or last recording at a URI."""
        place = pc.index(self.rows["uri"], public(uri)).as_py()  # faster for a few
        return recording_id(uri) if place < 0 else str(self.rows["recording_id"][place])

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Return ID and URI of moved recordings, for each URI that they had."""
        return zip(*(self.rows[name].to_pylist() for name in _PAIR), strict=True)

    def present(self, ids: pa.Array | pa.ChunkedArray | None = None) -> pa.Table:
        """Return the rows of present URIs, of these recordings or all."""
        rows = self.rows.filter(self.rows["is_present"])
        if ids is None or not rows.num_rows:
            return rows
        return rows.filter(pc.is_in(rows["recording_id"], value_set=pc.unique(ids)))

    def addresses_of(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the present URIs of recordings that are not at their first one."""
        rows = self.present(pa.array(ids, pa.string()))
        return dict(zip(*(rows[name].to_pylist() for name in _PAIR), strict=True))

    def at_present(self, rows: pa.Table) -> pa.Table:
        """Return rows with `uri` replaced by the present URI of their recording."""
        moved = self.present(rows["recording_id"]) if self.rows.num_rows else self.rows
        if not moved.num_rows:
            return rows
        places = pc.index_in(rows["recording_id"], value_set=moved["recording_id"])
        return with_column(rows, "uri", pc.coalesce(moved["uri"].take(places), rows["uri"]))


def version_of_identities(store: OutputStore) -> str | None:
    """Return a value that changes with the mapping; None if no recording moved."""
    try:
        return filesystem.describe(store.address(IDENTITIES_NAME), store.options).etag
    except FetchError as error:
        if error.kind == NOT_FOUND:
            return None
        raise


def former_address(uri: str, recording: str) -> str:
    """Return what stands for an address of a recording where another sound is now."""
    return f"{uri}#{recording}"


def _public_uris(files: pa.Table) -> pa.Array:
    return without_credentials(files.select(["uri"]))["uri"].combine_chunks()


def _rows(uris: Iterable[str], ids: Iterable[Any], *, is_present: bool) -> pa.Table:
    columns: list[pa.Array] = [pa.array(uris, pa.string()), pa.array(ids, pa.string())]
    number = len(columns[0])
    columns.append(pa.repeat(pa.scalar(is_present), number))
    columns += [pa.nulls(number, field.type) for field in list(IDENTITIES)[len(columns) :]]
    return pa.table(columns, schema=IDENTITIES)
