"""Removal of rows of recordings: objects that have some of them are rewritten.

In come the IDs of recordings; why they go, this does not know. Safe to be killed anywhere and
to be repeated: a replacement is put before what it replaces is removed, under a name that says of
what it is one. So for a while some rows are there twice, and a repetition removes the older ones.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import ConfigError
from corpus_asr.schemas import DUPLICATES, HOOKS, OUTCOMES, RECORDINGS, SPEAKERS, VOICES
from corpus_asr.storage.run_state.annotations import NAMES_NAME, named_lines, remove_corrections
from corpus_asr.storage.run_state.duplicates import without_losers
from corpus_asr.storage.run_state.finish import write_empty_tables
from corpus_asr.storage.run_state.identities import Identities, former_address
from corpus_asr.storage.run_state.part_rows import kind_of, nested, part_rows
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.table_names import (
    DUPLICATES_FOLDER,
    HOOKS_FOLDER,
    LABEL_ROWS,
    RECORDINGS_FOLDER,
    SEGMENT_ROWS,
    SPEAKERS_FOLDER,
    SUFFIX,
    VOICES_FOLDER,
    is_commit,
    table_name,
    time_ns_of,
)
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import public, redact_uri

logger = logging.getLogger(__name__)

FAILING_NAME: Final = table_name("_run", "failing")
"""Recordings that nights have tried, with the number of tries."""
_TABLES = {RECORDINGS_FOLDER: RECORDINGS, SPEAKERS_FOLDER: SPEAKERS, VOICES_FOLDER: VOICES,
           DUPLICATES_FOLDER: DUPLICATES, HOOKS_FOLDER: HOOKS}  # fmt: skip
_IDS = ("recording_id", "other_recording_id")
# People save names meanwhile; more often than this in a row they do not.
_ATTEMPTS = 8


def _without(ids: pa.Array, rows: pa.Table) -> pa.Table:
    """Return rows without those of recordings, and without pairs that include one."""
    if _IDS[1] in rows.schema.names:
        rows = without_losers(rows, pc.invert(pc.is_in(rows[_IDS[1]], value_set=ids)))
    return rows.filter(pc.invert(pc.is_in(rows["recording_id"], value_set=ids)))


def remove_recordings(store: OutputStore, recording_ids: Collection[str]) -> None:
    """Remove the rows of recordings in every table, what people saved, and speakers' names."""
    recording_ids = {*recording_ids}
    if not recording_ids:
        return
    ids = pa.array(recording_ids, pa.string())
    without = partial(_without, ids)
    for folder in _TABLES:
        rewrite_table(store, folder, ids, without)
    for name in (FAILING_NAME, REDO_NAME):
        if store.exists(name):
            _remove_notes(store, name, ids)
    remove_corrections(store, recording_ids)
    remove_names(store, lambda recording, _: recording in recording_ids)
    rewrite_commits(store, ids, without)
    classified = (store.read_json(CONFIG_NAME) or {}).get("pipeline") == CLASSIFY_AUDIO
    write_empty_tables(store, LABEL_ROWS if classified else SEGMENT_ROWS)


def rewrite_commits(
    store: OutputStore, ids: pa.Array, change: Callable[[pa.Table], pa.Table]
) -> None:
    """Rewrite the commits and tables that have parts of recordings.

    `change` is given rows of outcomes, and those of segments or labels, which go along.
    """
    new = list[str]()
    old = _concerned(store, store.commit_names(), OUTCOMES, ids)
    for name in old:
        outcomes = change(store.read_table(name, OUTCOMES))
        if outcomes.num_rows:
            kind = kind_of(store, [name])
            rows = (change(table) for _, table, _ in part_rows(store, [name], kind))
            stem = store.stem(time_ns_of(name))  # in its place among them
            if is_commit(name):
                rows_left = pa.concat_tables([kind.schema.empty_table(), *rows])
                new.append(store.put_commit(nested(outcomes, rows_left, kind), stem=stem))
            else:
                new += store.write_tables(outcomes, rows, rows=kind, stem=stem)
        logger.info("rewritten object=%s rows=%d", name, outcomes.num_rows)
    if old:
        store.replace(old, new)


def rewrite_table(
    store: OutputStore, folder: str, ids: pa.Array, change: Callable[[pa.Table], pa.Table]
) -> None:
    """Rewrite objects of a folder other than commits that hold rows of recordings."""
    schema = _TABLES[folder]
    names = store.names(folder)
    replaced = _replaced(names)
    for name in _concerned(store, names, schema, ids):
        if name not in replaced:
            # Hook tables have columns of their own.
            rows = pa.Table.from_batches(store.batches(name)) if folder == HOOKS_FOLDER else (
                store.read_table(name, schema)
            )  # fmt: skip
            stem = store.stem(time_ns_of(name), mark=_mark_of(name))
            changed = f"{name.rpartition('/')[0]}/{stem}{SUFFIX}"
            store.write_table(changed, change(rows))
            if folder == RECORDINGS_FOLDER:
                store.replace([name], [changed])
        store.remove(name)


def _mark_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _replaced(names: Collection[str]) -> set[str]:
    """Return the objects that already have a replacement: a command was killed in between."""
    marks = {name.removesuffix(SUFFIX).rpartition("-")[2] for name in names}
    return {name for name in names if _mark_of(name) in marks}


def _concerned(
    store: OutputStore, names: Iterable[str], schema: pa.Schema, ids: pa.Array
) -> list[str]:
    named = tuple(name for name in _IDS if name in schema.names)
    tables = store.read_tables(names, projected(schema, named))
    return list(dict.fromkeys(name for name, rows in tables if _any_of(rows, ids)))


def _any_of(rows: pa.Table, ids: pa.Array) -> bool:
    return any(
        pc.any(pc.is_in(rows[name], value_set=ids)).as_py()
        for name in _IDS
        if name in rows.schema.names
    )


def _remove_notes(store: OutputStore, name: str, ids: pa.Array) -> None:
    batches = list(store.batches(name))
    if batches:
        rows = pa.Table.from_batches(batches)
        if _any_of(rows, ids):
            store.write_table(name, _without(ids, rows))


def remove_names(store: OutputStore, is_gone: Callable[[str, str], bool]) -> None:
    """Remove rows of the names file for which `is_gone` is true, by ID and speaker."""
    identities = Identities.read(store)

    def kept(uri: str, speaker: str) -> str | None:
        return None if is_gone(identities.id_of(uri), speaker) else uri

    rewrite_names(store, kept)


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
