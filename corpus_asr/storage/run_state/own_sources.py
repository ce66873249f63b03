"""Folders from which this user's runs read recordings, recorded outside of the output folder.

An output folder may be untrusted, including its settings and tables: they must not make local files
readable. So each run leaves a record in the user's state folder, by the URI of its output.
"""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import SourceSettings
from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.errors import FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.logs import event
from corpus_asr.storage.listing import first_magic
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.host_allowlist import WEB, FileRules, HostRules, host_of
from corpus_asr.storage.stores.uri import (
    LOCAL,
    expanded,
    member_address,
    normalize,
    parent,
    public,
    scheme_of,
)

_LOG = logging.getLogger(__name__)

MOST_FOLDERS = 10_000
"""Above this number, parent folders are recorded."""
_PRIVATE = StoreOptions(private=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSources:
    """Sources that this user's runs on this machine recorded in an output folder."""

    source: SourceSettings
    """Source of the last run."""
    folders: tuple[str, ...]
    """Folders and single files of all runs, normalized."""


def source_options(
    store: OutputStore, *, allowed: Iterable[str] = (), storage: StorageOptions = NO_OPTIONS
) -> StoreOptions:
    """Return the options with which a run accessed the recordings in its tables.

    Local files and hosts reachable only from here are readable if this user's own runs recorded
    them, or below the `allowed` URIs: settings and tables may be untrusted. So only this user's
    record provides the endpoint and options; secret options are never stored and come from
    `storage`.
    """
    allowed = tuple(map(normalize, allowed))
    record = read_own_sources(store)
    hosts = HostRules(trusted_names=False) if record is None else HostRules.of(record.source)
    named = tuple(host_of(uri) for uri in allowed if scheme_of(uri) in WEB)
    return StoreOptions(
        storage=storage.over(
            NO_OPTIONS if record is None else record.source.bound_options.public()
        ),
        hosts=replace(hosts, own_hosts=(*hosts.own_hosts, *named)),
        files=FileRules(folders=(*allowed, *(record.folders if record is not None else ()))),
    )


def record_sources(
    store: OutputStore, source: SourceSettings, listing: Iterable[pa.RecordBatch]
) -> None:
    """Add the folders of a run's recordings to this user's record.

    Args:
        store: the output folder.
        source: settings without secrets.
        listing: FILES batches of the run, to find the folders of a manifest.
    """
    record = read_own_sources(store)
    folders = {*source_folders(source, listing), *(record.folders if record else ())}
    while len(folders) > MOST_FOLDERS:
        folders = {parent(folder) or "/" for folder in folders}
    try:
        _record(store, source, folders)
    except FetchError as error:  # no writable home; `view` says what to do
        event(_LOG, logging.INFO, "sources_not_recorded", why=str(error))


def forget_sources(store: OutputStore, without: Callable[[Any], Any]) -> None:
    """Remove URIs from this user's record; `without` returns JSON without what names them."""
    record = read_own_sources(store)
    if record is not None:
        source = SourceSettings.model_validate(without(record.source.model_dump(mode="json")))
        _record(store, source, without(list(record.folders)))


def _record(store: OutputStore, source: SourceSettings, folders: Collection[str]) -> None:
    record = {"source": source.model_dump(mode="json"), "folders": sorted(folders)}
    filesystem.write_atomic(_record_path(store), json.dumps(record).encode(), _PRIVATE)


def read_own_sources(store: OutputStore) -> OwnSources | None:
    """Return this user's record; None if no run of this user on this machine made the folder."""
    try:
        record = json.loads(filesystem.read_bytes(_record_path(store)))
        source = SourceSettings.model_validate_json(json.dumps(record["source"]))
    except (FetchError, LookupError, TypeError, ValueError) as error:  # of another version
        if not isinstance(error, FetchError) or error.kind != NOT_FOUND:
            event(_LOG, logging.INFO, "own_sources_unknown", why=str(error))
        return None
    return OwnSources(source=source, folders=tuple(record["folders"]))


def _record_path(store: OutputStore) -> str:
    # Source: XDG Base Directory Specification 0.8; relative values must be ignored.
    state = os.environ.get("XDG_STATE_HOME", "")
    base = state if os.path.isabs(state) else os.path.expanduser("~/.local/state")
    name = hashlib.sha256(store.uri.encode()).hexdigest()[:16]
    return f"{base}/corpus-asr/sources/{name}.json"


def source_folders(source: SourceSettings, listing: Iterable[pa.RecordBatch]) -> Iterator[str]:
    """Yield the folders and files of a source, and the folders of a manifest's local rows.

    Spelled as in tables, without credentials.
    """
    for uri in map(public, map(normalize, expanded(source.uri, "source.uri"))):
        first = first_magic(uri)
        # A literal reading takes precedence, as in a listing: a name may hold glob characters.
        literal = first is None or (scheme_of(uri) == LOCAL and os.path.lexists(uri))
        yield from _container(uri)
        yield uri if literal else uri[: uri.rindex("/", 0, first)] or "/"
    if source.manifest:
        for batch in listing:
            row_folders = pc.unique(pc.replace_substring_regex(batch.column("uri"), "/[^/]*$", ""))
            folders = (
                address
                for folder in row_folders.to_pylist()
                for address in (folder or "/", *_container(folder))
            )
            yield from map(public, itertools.filterfalse(FileRules(folders=()).admits, folders))


def _container(uri: str) -> Iterator[str]:
    # The member's file; member names may contain slashes.
    member = member_address(uri)
    if member is not None:
        yield member.container
