"""Signed record, in the output folder, of the folders from which this user's runs read recordings.

An output folder may be untrusted, including its settings and tables: they must not make local files
readable. So each run leaves a record there, signed with a key that stays in the user's own state
folder.
"""

import contextlib
import hashlib
import hmac
import itertools
import json
import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import SourceSettings
from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.logs import event
from corpus_asr.storage.listing import first_magic
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.host_allowlist import WEB, FileRules, HostRules, host_of
from corpus_asr.storage.stores.members import member_address
from corpus_asr.storage.stores.uri import LOCAL, expanded, normalize, parent, public, scheme_of

_LOG = logging.getLogger(__name__)

OWN_SOURCES_FOLDER = "_run/sources"
MOST_FOLDERS = 10_000
"""Above this number, parent folders are recorded."""
_KEY_BYTES = 32


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
        source: settings without secrets.
        listing: FILES batches of the run, to find the folders of a manifest.
    """
    try:
        key = _key() or _new_key()
    except OSError as error:  # no writable home; `view` says what to do
        event(_LOG, logging.INFO, "sources_not_recorded", why=str(error))
        return
    record = _recorded(store, key)
    folders = {*source_folders(source, listing), *(record.folders if record else ())}
    while len(folders) > MOST_FOLDERS:
        folders = {parent(folder) or "/" for folder in folders}
    _record(store, key, source, folders)


def forget_sources(store: OutputStore, named: Callable[[str], bool]) -> None:
    """Remove URIs from this user's record, and records of other users that contain some.

    `named` returns whether a text contains one of the URIs.
    """
    with contextlib.suppress(OSError):
        key = _key()
        record = None if key is None else _recorded(store, key)
        if key is not None and record is not None:
            # If the file was the only source, the record is dropped.
            uris = tuple(uri for uri in record.source.uri if not named(uri))
            if uris or record.source.manifest:
                source = record.source.model_copy(update={"uri": uris})
                _record(
                    store, key, source, {folder for folder in record.folders if not named(folder)}
                )
    for name in list(store.all_names(OWN_SOURCES_FOLDER)):
        # Signed by others, it cannot be edited; their next run writes it again.
        if named(json.dumps(store.read_json(name), ensure_ascii=False)):
            store.remove(name)


def _record(
    store: OutputStore, key: bytes, source: SourceSettings, folders: Collection[str]
) -> None:
    settings = source.model_dump(mode="json")
    signed = json.dumps({"source": settings, "folders": sorted(folders)})
    record = {"signed": signed, "signature": _signature(key, signed)}
    name = _name(key)
    if store.read_json(name) != record:
        store.write_json(name, record)


def read_own_sources(store: OutputStore) -> OwnSources | None:
    """Return this user's record; None if another user or machine made it."""
    try:
        key = _key()
    except OSError as error:
        event(_LOG, logging.INFO, "own_sources_unknown", why=str(error))
        return None
    return None if key is None else _recorded(store, key)


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


def _recorded(store: OutputStore, key: bytes) -> OwnSources | None:
    record = store.read_json(_name(key))
    if not isinstance(record, dict):
        return None
    signed, signature = str(record.get("signed")), str(record.get("signature"))
    if not hmac.compare_digest(_signature(key, signed).encode(), signature.encode()):
        return None
    content = json.loads(signed)
    try:
        source = SourceSettings.model_validate_json(json.dumps(content["source"]))
    except ValueError as error:  # signed by another version of this program
        event(_LOG, logging.INFO, "own_sources_unknown", why=str(error))
        return None
    return OwnSources(source=source, folders=tuple(content["folders"]))


def _signature(key: bytes, signed: str) -> str:
    return hmac.digest(key, signed.encode(), "sha256").hex()


def _name(key: bytes) -> str:
    # One record per user, so that users sharing an output folder keep theirs.
    return f"{OWN_SOURCES_FOLDER}/{hashlib.sha256(key).hexdigest()[:16]}.json"


def _key_path() -> Path:
    # Source: XDG Base Directory Specification 0.8; relative values must be ignored.
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~/.local/state"))
    return base / "corpus-asr" / "sources.key"


def _key() -> bytes | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        key = _key_path().read_bytes()
        # Shorter while another process writes it.
        return key if len(key) == _KEY_BYTES else None
    return None


def _new_key() -> bytes:
    path, key = _key_path(), secrets.token_bytes(_KEY_BYTES)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key)
    return key
