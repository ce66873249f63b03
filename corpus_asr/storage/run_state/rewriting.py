"""Removal of rows of recordings from every table below an output folder, whoever wrote it.

In come the IDs of recordings; why they go, this does not know. Safe to be killed anywhere and
to be repeated: a replacement is put before what it replaces is removed, under a name that says of
what it is one. All tables of runs are replaced in one step; others, which keep their names, before.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state.annotations import NAMES_NAME, named_lines, remove_corrections
from corpus_asr.storage.run_state.duplicates import without_losers
from corpus_asr.storage.run_state.identities import Identities, former_address
from corpus_asr.storage.run_state.part_rows import kind_of, part_rows
from corpus_asr.storage.run_state.table_names import (
    DERIVED_FOLDERS,
    OUTCOMES_FOLDER,
    OWN_PREFIXES,
    RECORDINGS_FOLDER,
    RUNS_PREFIXES,
    is_commit,
    is_table,
    table_name,
    time_ns_of,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import read_ahead
from corpus_asr.storage.stores.uri import public, redact_uri

logger = logging.getLogger(__name__)

FAILING_NAME: Final = table_name("_run", "failing")
"""Recordings that nights have tried, with the number of tries."""
_IDS = ("recording_id", "other_recording_id")
# People save names meanwhile; more often than this in a row they do not.
_ATTEMPTS = 8


def remove_recordings(store: OutputStore, recording_ids: Collection[str]) -> list[str]:
    """Remove the rows of recordings in every table, what people saved, and speakers' names.

    Return the tables of others that do not say of which recordings their rows are.
    """
    recording_ids = {*recording_ids}
    remove_corrections(store, recording_ids)
    # By the addresses that a table names.
    remove_names(store, lambda _, recording, who: recording in recording_ids)
    folders = (RECORDINGS_FOLDER, *DERIVED_FOLDERS)
    other_names = [name for name in walk(store)[0] if is_table(name)]
    change = partial(_without, pa.array(recording_ids, pa.string()))
    return rewrite_tables(store, folders, recording_ids, change, others=other_names)


def walk(store: OutputStore) -> tuple[list[str], list[str]]:
    """Return all objects below a folder but tables of runs, and those of output folders within."""
    names = [name for name in store.all_names("") if not name.startswith(RUNS_PREFIXES)]
    # Another run may hold the lock of such a folder.
    within = tuple({f"{name.partition('/_run/')[0]}/" for name in names if "/_run/" in name})
    own_names = [name for name in names if not name.startswith(within)]
    return own_names, [name for name in names if name.startswith(within)]


def rewrite_tables(
    store: OutputStore,
    folders: Iterable[str],
    recording_ids: Collection[str],
    change: Callable[[pa.Table], pa.Table],
    *,
    others: Iterable[str] = (),
) -> list[str]:
    """Rewrite commits, outcomes, tables of folders and others that have rows of recordings.

    `change` is given rows of outcomes, and those of segments or labels, which go along. Return the
    others that do not say whose rows they are.
    """
    store.remove_leftovers()
    names = [*store.commit_names(), *(name for folder in folders for name in store.names(folder))]
    # A killed command has put a replacement that counts already.
    marks = {name.rpartition(".")[0].rpartition("-")[2] for name in names}
    find = partial(_find, store, pa.array(recording_ids, pa.string()))
    old, new, unknown = list[str](), list[str](), list[str]()
    for name, has_rows in read_ahead([*names, *others], find):
        if has_rows is None:
            unknown.append(name)
        elif has_rows and not name.startswith(RUNS_PREFIXES):
            store.write_table(name, change(pa.Table.from_batches(store.batches(name))))
        elif has_rows:
            old.append(name)
            mark = hashlib.sha256(name.encode()).hexdigest()[:12]
            if mark not in marks:
                stem = store.stem(time_ns_of(name), mark=mark)  # in its place among them
                new += _rewrite(store, name, stem, change)
    if old:
        store.replace(old, new)
        store.remove_all(old)
        logger.info("rewritten objects=%d into=%d", len(old), len(new))
    return unknown


def _rewrite(
    store: OutputStore, name: str, stem: str, change: Callable[[pa.Table], pa.Table]
) -> list[str]:
    folder = name.rpartition("/")[0]
    if folder == OUTCOMES_FOLDER:
        kind = kind_of(store, [name])
        rows = (change(table) for _, table, _ in part_rows(store, [name], kind))
        outcomes = change(store.read_table(name, OUTCOMES))
        return store.write_tables(outcomes, rows, rows=kind, stem=stem)
    table = change(pa.Table.from_batches(store.batches(name)))
    if is_commit(name) and not table.num_rows:
        return []
    new = table_name(folder, stem)
    store.write_table(new, table)
    return [new]


def _find(store: OutputStore, ids: pa.Array, name: str) -> Iterator[bool | None]:
    """Yield whether a table has rows of recordings; None: it does not say so."""
    has_rows: bool | None = False
    try:
        for batch in store.batches(name, columns=_IDS):
            if not batch.num_columns:
                has_rows = None
            columns = (column.cast(pa.string()) for column in batch.columns)
            if any(pc.any(pc.is_in(column, value_set=ids)).as_py() for column in columns):
                has_rows = True
                break
    except CorpusAsrError as error:
        if isinstance(error, FetchError) or name.startswith((*RUNS_PREFIXES, *OWN_PREFIXES)):
            raise
        logger.warning("passed over object=%s found=%s", redact_uri(store.address(name)), error)
        has_rows = None
    yield has_rows


def _without(ids: pa.Array, rows: pa.Table) -> pa.Table:
    """Return rows without those of recordings, and without pairs that include one."""
    if _IDS[1] in rows.schema.names:
        rows = without_losers(rows, pc.invert(pc.is_in(rows[_IDS[1]], value_set=ids)))
    return rows.filter(pc.invert(pc.is_in(rows[_IDS[0]].cast(pa.string()), value_set=ids)))


def remove_names(store: OutputStore, is_gone: Callable[[str, str, str], bool]) -> None:
    """Remove rows of the names file for which `is_gone` is true, by URI, ID and speaker."""
    id_of = Identities.read(store).id_of
    rewrite_names(store, lambda uri, who: None if is_gone(uri, id_of(uri), who) else uri)


def write_identities(store: OutputStore, identities: Identities) -> None:
    """Save changed recording IDs of URIs, before rows are committed that use them."""
    newcomers = identities.newcomers
    if newcomers:
        # Names stay with their recordings; later the former recording of a URI would be unknown.
        addresses = identities.addresses_of(newcomers.values())

        def present(uri: str, _: str) -> str:
            former = newcomers.get(public(uri))
            if former is None:
                return uri
            present_uri = addresses.get(former)
            # Files may have changed names; killed in between, this is done twice.
            if present_uri is None or present_uri in newcomers:
                return former_address(public(uri), former)
            return present_uri

        rewrite_names(store, present)
    identities.write(store)


def rewrite_names(store: OutputStore, change: Callable[[str, str], str | None]) -> None:
    """Change rows of the names file.

    `change` is given the URI and speaker of a row, and returns its new URI, or None to remove the
    row.
    """
    address = store.address(NAMES_NAME)
    for _ in range(_ATTEMPTS):
        if not store.exists(NAMES_NAME):
            return
        data = filesystem.read_bytes(address, store.options)
        lines, at, who = named_lines(data)
        if not lines:
            return
        changed = [lines[0]]
        for line in lines[1:]:
            if len(line) > max(at, who):  # else it names no speaker
                uri = change(line[at], line[who].strip())
                line = [] if uri is None else [*line[:at], uri, *line[at + 1 :]]
            if line:
                changed.append(line)
        if changed == lines:
            return
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows(changed)
        store.check()
        written = file.getvalue().encode(errors="surrogateescape")
        if filesystem.swap(address, written, data, store.options):
            return
    raise ConfigError(
        f"changing the names in {redact_uri(address)}: found concurrent changes in {_ATTEMPTS} "
        "attempts, expected none; stop other writers, and run the same command again"
    )
